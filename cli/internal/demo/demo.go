// Package demo is `lifeboat up` without a person: it makes everything happen that Lifeboat promises, watches for each,
// and prints what it saw. It talks to the fleet as an operator would: by NATS subjects, Alertmanager's API and chat.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/lifeboat-fleet/lifeboat/cli/internal/up"
	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/chattest"
	"github.com/lifeboat-fleet/lifeboat/fleet/service"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// byScheduler is what a scheduled job's events say of who asked.
const byScheduler = "scheduler"

// Command is `lifeboat demo`.
func Command() *cobra.Command {
	var kinds, dir string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Run the fleet without a person: snapshot, verify, drill, break a target, deliver alerts; print what happened",
		Long: "demo starts the same fleet as up and walks it: a scheduled snapshot of each kind, one by publishing a subject,\n" +
			"a verification of all of them, a restore drill of each by publishing a subject, a target that is stopped so that an alert\n" +
			"fires, and an alert through a real Alertmanager, both seen in both chats with their runbooks.\n" +
			"Exit code 0 says that all of it happened.",
		Example: "  lifeboat demo\n  lifeboat demo --kinds etcd",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			chosen, err := up.ParseKinds(kinds)
			if err != nil {
				return err
			}
			if dir == "" {
				if dir, err = os.MkdirTemp("", "lifeboat-demo-"); err != nil {
					return fmt.Errorf("making a folder: %w", err)
				}
				defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			return run(ctx, cmd.OutOrStdout(), dir, chosen)
		},
	}
	cmd.Flags().StringVar(&kinds, "kinds", strings.Join(up.Kinds(), ","), "targets to run, separated by commas")
	cmd.Flags().StringVar(&dir, "data", "", "`folder` to keep data and logs in (default: a temporary one, removed at the end)")
	cmd.Flags().DurationVar(&timeout, "timeout", 5*time.Minute, "how long all of it may take")
	return cmd
}

func run(ctx context.Context, out io.Writer, dir string, kinds []string) (err error) {
	// The embedded S3 server changes the working directory, so nothing may be relative to it.
	if dir, err = filepath.Abs(dir); err != nil {
		return fmt.Errorf("finding the folder: %w", err)
	}
	if err = os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("making the demo's folder: %w", err)
	}
	logFile, err := os.Create(filepath.Join(dir, "lifeboat.log"))
	if err != nil {
		return fmt.Errorf("opening the log: %w", err)
	}
	defer logFile.Close()
	log, err := service.NewLogger(logFile, "info")
	if err != nil {
		return err
	}
	f, err := up.Start(ctx, up.Options{
		Dir: dir, Kinds: kinds, Require: true, Every: "@every 6s", Logger: log, Progress: out,
	})
	defer func() { err = errors.Join(err, f.Stop()) }()
	if err != nil {
		return err
	}
	w := &walk{fleet: f, out: out, begin: time.Now()}
	if w.events, err = follow(ctx, f.NATS.URL()); err != nil {
		return err
	}
	defer w.events.close()
	for _, step := range []func(context.Context) error{
		w.scheduledSnapshots, w.snapshotBySubject, w.verifyAll, w.drillBySubject, w.pruneBySubject, w.alertThroughAlertmanager, w.breakTarget,
	} {
		if err := step(ctx); err != nil {
			return errors.Join(err, w.print(), fmt.Errorf("the demo did not complete; the services' log: %s", keepLog(logFile.Name())))
		}
	}
	return w.print()
}

// keepLog copies the log out of a folder that is about to be removed, and says where it is then.
func keepLog(path string) string {
	kept, err := os.CreateTemp("", "lifeboat-demo-*.log")
	if err != nil {
		return path
	}
	b, err := os.ReadFile(path)
	if err == nil {
		_, err = kept.Write(b)
	}
	if errors.Join(err, kept.Close()) != nil {
		return path
	}
	return kept.Name()
}

// walk is one run through everything.
type walk struct {
	fleet  *up.Fleet
	out    io.Writer
	events *events
	begin  time.Time
	rows   [][]string

	snapshots, verified, drilled, delivered int
}

func (w *walk) saw(what, target, detail string) {
	w.rows = append(w.rows, []string{what, target, time.Since(w.begin).Round(100 * time.Millisecond).String(), detail})
	fmt.Fprintf(w.out, "  %-28s %-12s %s\n", what, target, detail)
}

// scheduledSnapshots waits for a scheduled snapshot of each target.
func (w *walk) scheduledSnapshots(ctx context.Context) error {
	for _, target := range w.fleet.Targets() {
		e, err := w.events.wait(ctx, "a scheduled snapshot of "+target, func(e *lifeboatv1.Event) bool {
			return is(e, "snapshot", "committed", target) && e.GetRequestedBy() == byScheduler
		})
		if err != nil {
			return err
		}
		w.saw("snapshot by schedule", target, e.GetMessage())
	}
	return nil
}

func (w *walk) snapshotBySubject(ctx context.Context) error {
	target := w.fleet.Targets()[0]
	if err := w.events.publishJob(ctx, bus.JobSubject(config.WorkSnapshot, target)); err != nil {
		return err
	}
	e, err := w.events.wait(ctx, "a snapshot of "+target+" by subject", func(e *lifeboatv1.Event) bool {
		return is(e, "snapshot", "committed", target) && e.GetRequestedBy() != byScheduler
	})
	if err != nil {
		return err
	}
	w.saw("snapshot by subject", target, e.GetMessage())
	return nil
}

// verifyAll has every stored snapshot of every target read again.
func (w *walk) verifyAll(ctx context.Context) error {
	for _, target := range w.fleet.Targets() {
		if err := w.events.publishJob(ctx, bus.JobSubject(config.WorkVerify, target)); err != nil {
			return err
		}
		e, err := w.events.wait(ctx, "a verification of "+target, func(e *lifeboatv1.Event) bool {
			return ended(e, "verify", target)
		})
		if err != nil {
			return err
		}
		if e.GetVerb() != "passed" {
			return fmt.Errorf("the verification of %s failed: %s", target, e.GetMessage())
		}
		n, err := strconv.Atoi(e.GetAttributes()["checked"])
		if err != nil || n == 0 {
			return fmt.Errorf("the verification of %s checked nothing: %s", target, e.GetMessage())
		}
		w.verified += n
		w.saw("verified", target, e.GetMessage())
	}
	return nil
}

// drillBySubject has the newest snapshot of every kind restored into a server of that kind.
func (w *walk) drillBySubject(ctx context.Context) error {
	for _, target := range w.fleet.Targets() {
		if err := w.events.publishJob(ctx, bus.JobSubject(config.WorkDrill, target)); err != nil {
			return err
		}
		e, err := w.events.wait(ctx, "a drill of "+target, func(e *lifeboatv1.Event) bool { return ended(e, "drill", target) })
		if err != nil {
			return err
		}
		if e.GetVerb() != "passed" {
			return fmt.Errorf("the drill of %s failed: %s", target, e.GetMessage())
		}
		// One that decodes and counts would prove no restore.
		if level := e.GetDrill().GetLevel(); level != lifeboatv1.DrillReport_LEVEL_RESTORED {
			return fmt.Errorf("the drill of %s restored nothing (%s): %s", target, level, e.GetMessage())
		}
		w.drilled++
		w.saw("restore drill by subject", target, firstLine(e.GetMessage()))
	}
	return nil
}

// pruneBySubject has retention applied, which at this age deletes nothing.
func (w *walk) pruneBySubject(ctx context.Context) error {
	target := w.fleet.Targets()[0]
	if err := w.events.publishJob(ctx, bus.JobSubject(config.WorkPrune, target)); err != nil {
		return err
	}
	e, err := w.events.wait(ctx, "a prune of "+target, func(e *lifeboatv1.Event) bool {
		return ended(e, "prune", target)
	})
	if err != nil {
		return err
	}
	if e.GetVerb() != "passed" {
		return fmt.Errorf("the prune of %s: %s: %s", target, e.GetVerb(), e.GetMessage())
	}
	w.saw("retention by subject", target, e.GetMessage())
	return nil
}

// alertThroughAlertmanager posts an alert as Prometheus would.
func (w *walk) alertThroughAlertmanager(ctx context.Context) error {
	if err := w.fleet.SendSampleAlert(ctx); err != nil {
		return err
	}
	return w.inBothChats(ctx, up.SampleAlert, up.SampleRunbook)
}

// breakTarget stops a target and waits for the fleet's own alert about it.
func (w *walk) breakTarget(ctx context.Context) error {
	target, err := w.fleet.Break()
	if err != nil {
		return fmt.Errorf("stopping %s: %w", target, err)
	}
	w.saw("target stopped", target, "as an outage would")
	e, err := w.events.wait(ctx, "the failed snapshot of "+target, func(e *lifeboatv1.Event) bool {
		return is(e, "snapshot", "failed", target)
	})
	if err != nil {
		return err
	}
	w.saw("snapshot failed", target, firstLine(e.GetMessage()))
	return w.inBothChats(ctx, "LifeboatSnapshotFailed", "lifeboat-snapshot-failed")
}

// inBothChats waits until both chats show an alert with its runbook.
func (w *walk) inBothChats(ctx context.Context, alertname, runbook string) error {
	seen := map[chattest.Kind]bool{}
	err := w.fleet.Chat.Wait(ctx, func(messages []chattest.Message) bool {
		for _, m := range messages {
			if strings.Contains(m.Title+m.Text, alertname) && strings.Contains(m.Text, runbook) {
				seen[m.Kind] = true
			}
		}
		return len(seen) == 2
	})
	if err != nil {
		return fmt.Errorf("waiting for %s with its runbook in both chats (seen in %v): %w", alertname, seen, err)
	}
	w.delivered += len(seen)
	w.saw("alert in both chats", alertname, "with runbook "+runbook)
	return nil
}

// print writes the table and the last line.
func (w *walk) print() error {
	t := tabwriter.NewWriter(w.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\nWHAT\tTARGET\tAFTER\tRESULT")
	for _, r := range w.rows {
		fmt.Fprintln(t, strings.Join(r, "\t"))
	}
	w.snapshots = w.events.count("snapshot", "committed")
	fmt.Fprintf(t, "\ndemo: %d snapshots, %d verified, %d drilled, %d alerts delivered\n",
		w.snapshots, w.verified, w.drilled, w.delivered)
	return t.Flush()
}

func is(e *lifeboatv1.Event, noun, verb, target string) bool {
	return e.GetNoun() == noun && e.GetVerb() == verb && e.GetTarget() == target
}

// ended says whether an event is how a job ended; that it began, or that an attempt was interrupted, is not.
func ended(e *lifeboatv1.Event, noun, target string) bool {
	return is(e, noun, "passed", target) || is(e, noun, "failed", target) || is(e, noun, "held", target)
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}
