package ops

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/console"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

func deadReplayCommand() *cobra.Command {
	var f flags
	var r replay
	cmd := &cobra.Command{
		Use: "replay id...", Short: "Send dead letters again, to the subject that they came from",
		Long: "replay publishes the letter's payload and headers, records dead.replayed, and only then removes the letter. If it dies in\n" +
			"between, the letter stays; the same replay within half an hour (four minutes for alerts) sends nothing twice, a later one\n" +
			"does. Workers and the notifier bear that: a job's result is the same, and an alert may be told again.",
		Example: "  lifeboat dead replay dead-lifeboat.job.snapshot.etcd-prod-20261121T040000.123Z-42\n" +
			"  lifeboat dead replay 01KAJ2ZJ5Q1J5V7K4E7X --yes --keep",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: completeLetters(&f.config, 0),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			fl, err := f.open(cmd.Context())
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, fl.close()) }()
			r.fleet, r.in, r.progress = fl, cmd.InOrStdin(), cmd.ErrOrStderr()
			all, err := r.run(cmd.Context(), args)
			return errors.Join(printReplayed(cmd.OutOrStdout(), f.output, f.config, all), err)
		},
	}
	f.add(cmd)
	cmd.Flags().BoolVarP(&r.yes, "yes", "y", false, "do not ask")
	cmd.Flags().BoolVar(&r.keep, "keep", false, "leave the letter where it is")
	return cmd
}

// replay sends letters again.
type replay struct {
	*fleet
	in        io.Reader
	progress  io.Writer
	yes, keep bool
	// hook posts webhooks that were refused; nil where they cannot be sent.
	hook *hook
}

// replayed is a letter that was sent again.
type replayed struct {
	ID       string `json:"id"`
	Subject  string `json:"subject"`
	Sequence uint64 `json:"sequence"`
	// URL is where a webhook was posted.
	URL string `json:"url,omitempty"`
	// JobID is empty for what is no job, and for a job that had ended before it could be asked for.
	JobID string `json:"job_id,omitempty"`
	Kept  bool   `json:"kept"`
}

// run looks at all letters before it sends the first, so that a mistyped id changes nothing.
func (r *replay) run(ctx context.Context, ids []string) ([]replayed, error) {
	chosen := make([]*letter, 0, len(ids))
	for _, id := range ids {
		l, err := r.find(ctx, id)
		if err != nil {
			return nil, err
		}
		if err := r.replayable(l.DeadLetter); err != nil {
			return nil, fmt.Errorf("%s: %w", clean(id), err)
		}
		chosen = append(chosen, l)
	}
	if err := r.confirm(chosen); err != nil {
		return nil, err
	}
	var all []replayed
	var errs []error
	for _, l := range chosen {
		done, err := r.one(ctx, l)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		all = append(all, done)
	}
	return all, errors.Join(errs...)
}

func (r *replay) confirm(chosen []*letter) error {
	if r.yes {
		return nil
	}
	if !console.IsTerminal(r.in) {
		return console.Usagef("nobody can be asked here; look at what would be sent with lifeboat dead show, and add --yes")
	}
	for _, l := range chosen {
		fmt.Fprintf(r.progress, "%s: %s\n", clean(l.GetId()), r.sending(l))
	}
	fmt.Fprint(r.progress, "Send again? [y/N] ")
	answer, err := bufio.NewReader(r.in).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("reading the answer: %w", err)
	}
	if a := strings.ToLower(strings.TrimSpace(answer)); a != "y" && a != "yes" {
		return errors.New("nothing was sent")
	}
	return nil
}

// sending says what would be sent where.
func (r *replay) sending(l *letter) string {
	where := clean(l.GetSubject())
	if l.GetSubject() == subjectWebhook && r.hook != nil {
		where = r.hook.address(l.DeadLetter)
	}
	return fmt.Sprintf("%d bytes to %s", l.size, where)
}

// send gives a letter back to where it came from.
func (r *replay) send(ctx context.Context, l *letter, done *replayed) (err error) {
	if l.GetSubject() == subjectWebhook && r.hook != nil {
		done.URL = r.hook.address(l.DeadLetter)
		return r.hook.post(ctx, r.fleet, l)
	}
	headers := map[string]string{}
	for k, v := range l.GetHeaders() {
		if !strings.HasPrefix(k, "Nats-") {
			headers[k] = v
		}
	}
	last := l.seqs[len(l.seqs)-1]
	id := fmt.Sprintf("replay-%s-%d", l.GetId(), last)
	if r.keep {
		id = "" // who keeps it may mean to send it again
	}
	done.Sequence, err = r.bus.PublishRaw(ctx, l.GetSubject(), l.GetPayload(), headers, id)
	if errors.Is(err, bus.ErrBusy) {
		return fmt.Errorf("%w; the letter stays. See the job with lifeboat jobs list, and try again when it has ended", err)
	}
	if err != nil {
		return fmt.Errorf("%w; the letter stays", err)
	}
	return nil
}

// one sends a letter, tells of it, and removes it: in this order, so that no crash loses it.
func (r *replay) one(ctx context.Context, l *letter) (replayed, error) {
	done := replayed{ID: l.GetId(), Subject: l.GetSubject(), Kept: r.keep}
	if err := r.send(ctx, l, &done); err != nil {
		return done, err
	}
	target := r.aimed(l.GetSubject())
	done.JobID = r.jobID(ctx, l.GetSubject(), done.Sequence)
	e := &lifeboatv1.Event{
		Id: fmt.Sprintf("dead.replayed.%s.%d", l.GetId(), done.Sequence), Noun: "dead", Verb: "replayed", Target: target,
		JobId: done.JobID, RequestedBy: "cli " + console.Whoami(),
		Message:    fmt.Sprintf("dead letter %s was sent again to %s", l.GetId(), l.GetSubject()),
		Attributes: map[string]string{"dead_id": l.GetId(), "subject": l.GetSubject(), "sequence": fmt.Sprint(done.Sequence)},
	}
	if done.URL != "" { // each post is one, for there is no sequence to tell them apart
		e.Id, e.Attributes["url"] = "", done.URL
		delete(e.Attributes, "sequence")
	}
	if err := r.bus.Emit(ctx, e); err != nil {
		return done, fmt.Errorf("%s was sent, and that could not be recorded, so the letter stays: %w", clean(l.GetId()), err)
	}
	if r.keep {
		return done, nil
	}
	for _, seq := range l.seqs {
		if err := r.bus.Delete(ctx, bus.StreamDead, seq); err != nil && !errors.Is(err, bus.ErrNoMessage) {
			return done, fmt.Errorf("%s was sent, and the letter could not be removed: %w", clean(l.GetId()), err)
		}
	}
	return done, nil
}

// jobID is the id of a job that was just published, of which the acknowledgement says the sequence only.
func (r *replay) jobID(ctx context.Context, subject string, seq uint64) string {
	if _, _, ok := bus.ParseJobSubject(subject); !ok {
		return ""
	}
	have, stored, err := r.bus.Last(ctx, bus.StreamJobs, subject, &lifeboatv1.Job{})
	if err != nil || have != seq {
		return ""
	}
	return (&bus.Message{Subject: subject, Seq: seq, Stored: stored}).ID()
}

// aimed is the target of a job's subject; empty for what is about none.
func (r *replay) aimed(subject string) string {
	if _, target, ok := bus.ParseJobSubject(subject); ok && config.ValidName(target) {
		return target
	}
	return ""
}

// replayable says why a letter cannot be sent again, and what to do instead.
func (f *fleet) replayable(d *lifeboatv1.DeadLetter) error {
	subject := d.GetSubject()
	switch {
	case subject == subjectWebhook:
		return fmt.Errorf("this is a webhook's body, which only Alertmanager's side can send: lifeboat dead show %s --payload -c %s > body.json, "+
			"mend it, and curl -X POST --data-binary @body.json http://%s/api/v1/alertmanager; or, when the notifier takes it as it is by now: "+
			"lifeboat notify replay %[1]s -c %[2]s", clean(d.GetId()), f.file, reachable(f.config.Notifier.Listen))
	case d.GetTruncated():
		return errors.New("only the beginning of its payload was kept, so it cannot be sent again; ask for it anew where it came from")
	case !strings.HasPrefix(subject, "lifeboat.job.") && !strings.HasPrefix(subject, "lifeboat.alert."),
		strings.ContainsAny(subject, "*> \t\r\n"), strings.Contains(subject, ".."), strings.HasSuffix(subject, "."):
		return fmt.Errorf("nobody takes messages of its subject %q", clean(subject))
	}
	return nil
}

// reachable is an address that a service listens on as one that can be asked on the service's machine.
func reachable(listen string) string {
	host, port, err := net.SplitHostPort(listen)
	if ip := net.ParseIP(host); err == nil && (host == "" || ip.IsUnspecified()) {
		return net.JoinHostPort("127.0.0.1", port)
	}
	return listen
}

func printReplayed(out io.Writer, output, file string, all []replayed) error {
	if output == console.OutputJSON {
		if all == nil {
			all = []replayed{}
		}
		return console.WriteJSON(out, all)
	}
	for _, d := range all {
		text := fmt.Sprintf("%s: sent again to %s", clean(d.ID), cmp.Or(d.URL, clean(d.Subject)))
		if work, target, ok := bus.ParseJobSubject(d.Subject); ok && d.JobID != "" {
			text += fmt.Sprintf(" as job %s; see how it ends: lifeboat why %s --work %s --job %s -c %s", d.JobID, clean(target), clean(string(work)), d.JobID, file)
		}
		if _, err := fmt.Fprintln(out, text); err != nil {
			return err
		}
	}
	return nil
}
