package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/console"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/catalog"
)

// targetStatus is one line of `lifeboat status`.
type targetStatus struct {
	Target string `json:"target"`
	Kind   string `json:"kind"`
	// State is "ok", "rpo exceeded", "drill failed" or "no snapshot".
	State     string     `json:"state"`
	Snapshots int        `json:"snapshots"`
	Newest    string     `json:"newest_snapshot,omitempty"`
	NewestAt  *time.Time `json:"newest_at,omitempty"`
	RPO       string     `json:"rpo,omitempty"`
	// LastDrill is the newest one, of whichever snapshot and with whichever key.
	LastDrill   string `json:"last_drill,omitempty"`
	DrillPassed *bool  `json:"last_drill_passed,omitempty"`
	// FailedDrill is a drill that failed since when none with the same key has passed, and where and why.
	FailedDrill  string `json:"failed_drill,omitempty"`
	FailedPhase  string `json:"failed_phase,omitempty"`
	DrillFailure string `json:"drill_failure,omitempty"`
	// Proven is the newest snapshot that a drill has restored, ProvenAt the moment that its data is of, and ProvenBy and
	// LastProvenAt the newest drill that restored it and when that ended.
	Proven       string     `json:"proven_snapshot,omitempty"`
	ProvenAt     *time.Time `json:"proven_at,omitempty"`
	ProvenBy     string     `json:"proven_by_drill,omitempty"`
	LastProvenAt *time.Time `json:"last_proven_at,omitempty"`
	NextSnapshot *time.Time `json:"next_snapshot,omitempty"`
}

const (
	stateOK       = "ok"
	stateNone     = "no snapshot"
	stateExceeded = "rpo exceeded"
	stateFailed   = "drill failed"
)

// What makes the exit code say what the table and the lines below it say.
var (
	errRed      = errors.New("at least one target is not ok")
	errRedFleet = errors.New("at least one zone has targets and no worker")
)

// FleetStatus is what `lifeboat status` tells of the fleet itself.
type FleetStatus struct {
	// Lines stand below the table.
	Lines []string
	// Red says that they tell of something that nobody may overlook.
	Red bool
	// JSON is what --output json has as "fleet".
	JSON any
}

// FleetFunc asks the fleet about targets of a configuration, which is the one in file, within a few seconds; what it cannot learn is
// one of the lines. Lines are written for out, which may be a terminal.
type FleetFunc func(ctx context.Context, cfg *config.Config, file string, targets []config.Target, out io.Writer) FleetStatus

// statusDocument is what --output json prints.
type statusDocument struct {
	Targets []targetStatus `json:"targets"`
	Fleet   any            `json:"fleet,omitempty"`
}

// StatusCommand is `lifeboat status`. fleet asks NATS for what stands below the table; nil: nothing does.
func StatusCommand(fleet FleetFunc) *cobra.Command {
	var r reader
	var noFleet bool
	cmd := &cobra.Command{
		Use:   "status [target...]",
		Short: "One line per target: is its newest snapshot young enough, and proven; and how the fleet is",
		Long: "status reads the bucket, so it works while the fleet is down. Exit code 1 says that a target is not ok:\n" +
			"its newest snapshot is older than its rpo, there is none, or its newest drill with one of its keys failed. PROVEN is the\n" +
			"age of the newest data that a drill has restored, LAST PROVEN how long ago that was.\n\n" +
			"Below the table it tells what NATS knows of the fleet: the workers of each zone, what no worker takes, paused schedules, and\n" +
			"whether NATS keeps what it acknowledges. A zone that has targets and no worker is exit code 1 too; that NATS does not answer\n" +
			"is not. --no-fleet leaves it out.",
		Example: "  lifeboat status\n  lifeboat status --output json etcd-prod\n  lifeboat status --no-fleet    # the bucket alone",
		RunE: func(cmd *cobra.Command, args []string) error {
			if noFleet {
				fleet = nil
			}
			return r.status(cmd.Context(), cmd.OutOrStdout(), args, fleet)
		},
	}
	r.add(cmd)
	cmd.Flags().BoolVar(&noFleet, "no-fleet", false, "do not ask NATS about workers, zones and schedules")
	return cmd
}

func (r *reader) status(ctx context.Context, out io.Writer, args []string, fleet FleetFunc) error {
	b, err := r.bucket(ctx)
	if err != nil {
		return err
	}
	cat := b.catalog
	targets, err := r.targets(b.config, args)
	if err != nil {
		return err
	}
	told := make(chan FleetStatus, 1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // both take their time
		if fleet == nil {
			told <- FleetStatus{}
			return
		}
		told <- fleet(ctx, b.config, r.config, targets, out)
	}()
	all := make([]targetStatus, 0, len(targets))
	var red error
	for _, t := range targets {
		snapshots, err := cat.List(ctx, t.Name)
		if err != nil {
			return err
		}
		s := statusOf(t, snapshots, time.Now())
		if s.State != stateOK {
			red = errRed
		}
		all = append(all, s)
	}
	f := <-told
	if f.Red {
		red = errors.Join(red, errRedFleet)
	}
	if r.output == console.OutputJSON {
		return errors.Join(console.WriteJSON(out, statusDocument{Targets: all, Fleet: f.JSON}), red)
	}
	t := console.NewTable(out, "TARGET", "KIND", "STATE", "SNAPSHOTS", "NEWEST", "AGE", "RPO", "PROVEN", "LAST PROVEN", "NEXT")
	for _, s := range all {
		t.Row(s.Target, s.Kind, paint(out, s.State+inPhase(s)), fmt.Sprint(s.Snapshots), console.OrDash(s.Newest), ageOf(s.NewestAt), console.OrDash(s.RPO),
			ageOf(s.ProvenAt), ageOf(s.LastProvenAt), untilOf(s.NextSnapshot))
	}
	if err := t.Flush("no targets are configured"); err != nil {
		return err
	}
	for i, line := range f.Lines {
		if i == 0 {
			line = "\n" + line
		}
		if _, err := fmt.Fprintln(out, line); err != nil {
			return err
		}
	}
	return red
}

// inPhase says where the newest drill failed, if that is what is wrong.
func inPhase(s targetStatus) string {
	if s.State != stateFailed || s.FailedPhase == "" {
		return ""
	}
	return ": " + s.FailedPhase
}

// statusOf judges one target at a moment.
func statusOf(t config.Target, snapshots []catalog.Snapshot, now time.Time) targetStatus {
	s := targetStatus{Target: t.Name, Kind: t.Kind(), State: stateNone, Snapshots: len(snapshots)}
	if t.RPO > 0 {
		s.RPO = t.RPO.String()
	}
	s.NextSnapshot = nextSnapshot(t, now)
	for _, snap := range snapshots {
		at := snap.GetStartedAt().AsTime()
		s.Newest, s.NewestAt = snap.GetId(), &at
		if p := snap.Proven(); p != nil {
			drilled := p.GetFinishedAt().AsTime()
			s.Proven, s.ProvenAt, s.ProvenBy, s.LastProvenAt = snap.GetId(), &at, p.GetId(), &drilled
		}
	}
	s.drilled(t, snapshots)
	switch {
	case s.NewestAt == nil:
	case t.RPO > 0 && now.Sub(*s.NewestAt) > t.RPO:
		s.State = stateExceeded
	case s.FailedDrill != "":
		s.State = stateFailed
	default:
		s.State = stateOK
	}
	return s
}

// drilled judges the newest drill with each key: that the worker's key decrypts says nothing of the one in the safe.
func (s *targetStatus) drilled(t config.Target, snapshots []catalog.Snapshot) {
	newest := map[string]*lifeboatv1.DrillReport{}
	var last *lifeboatv1.DrillReport
	later := func(d, than *lifeboatv1.DrillReport) bool {
		return than == nil || d.GetFinishedAt().AsTime().After(than.GetFinishedAt().AsTime())
	}
	for _, snap := range snapshots {
		for _, d := range snap.Drills {
			key := ""
			if d.GetIdentity() == config.IdentityEscrow {
				key = config.IdentityEscrow
			}
			if later(d, newest[key]) {
				newest[key] = d
			}
			if later(d, last) {
				last = d
			}
		}
	}
	if t.Drill.Escrow.IdentityFile == "" {
		delete(newest, config.IdentityEscrow) // nobody drills with it any more
	}
	if last != nil {
		passed := last.GetPassed()
		s.LastDrill, s.DrillPassed = last.GetId(), &passed
	}
	for _, key := range []string{config.IdentityEscrow, ""} {
		if d := newest[key]; d != nil && !d.GetPassed() {
			s.FailedDrill, s.FailedPhase, s.DrillFailure = d.GetId(), d.GetFailedPhase(), d.GetFailure()
		}
	}
}

// nextLimit is how far the next snapshot is looked for; a line that fires on 29 February comes within it.
const nextLimit = 9 * 366 * 24 * time.Hour

// blackoutLimit is behind how many ticks in a blackout no further one is looked at.
const blackoutLimit = 10_000

// nextSnapshot is the next tick that asks for a snapshot; nil when none does.
func nextSnapshot(t config.Target, now time.Time) *time.Time {
	if t.Paused {
		return nil
	}
	for _, s := range t.Schedules() {
		if s.Work != config.WorkSnapshot {
			continue
		}
		n := 0
		for tick := range t.Upcoming(s, now, now.Add(nextLimit)) {
			if !tick.Blackout {
				return &tick.At
			}
			if n++; n == blackoutLimit {
				return nil
			}
		}
	}
	return nil
}

// paint colours a state on a terminal: red is what a person must see first.
func paint(out io.Writer, state string) string {
	if state == stateOK {
		return console.Green(out, state)
	}
	return console.Red(out, state)
}

func ageOf(t *time.Time) string {
	if t == nil {
		return "-"
	}
	return console.Age(*t)
}

func untilOf(t *time.Time) string {
	if t == nil {
		return "-"
	}
	return "in " + time.Until(*t).Round(time.Second).String()
}
