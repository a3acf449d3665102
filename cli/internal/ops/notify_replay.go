package ops

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/console"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// replayFlags are those of `lifeboat notify replay`.
type replayFlags struct {
	flags
	receivers   []string
	since, url  string
	all, dryRun bool
	yes, keep   bool
	tls         config.TLS
}

func notifyReplayCommand() *cobra.Command {
	var f replayFlags
	cmd := &cobra.Command{
		Use: "replay {id... | --all}", Short: "Send alerts again that could not be delivered, and webhooks that were refused",
		Long: "replay gives a delivery back to its receiver's queue, and posts a refused webhook to the notifier again, as it was. Each is\n" +
			"recorded as dead.replayed before its letter is removed. A letter that cannot be sent stays, and the others are sent all the\n" +
			"same; the exit code is 1 then.\n\n" +
			"Mend the cause first: what is refused again for good becomes a dead letter again. Webhooks are posted to notifier.listen with\n" +
			"the first of its bearer tokens; from another machine, name the notifier with --url. A notifier that asks for a client's\n" +
			"certificate gets that of --cert-file and --key-file.",
		Example: "  lifeboat notify replay --all --receiver ops-slack --dry-run\n" +
			"  lifeboat notify replay --all --receiver ops-slack --since 24h --yes\n" +
			"  lifeboat notify replay dead-lifeboat.alert.delivery.ops-slack-20261121T040000.123Z-42\n" +
			"  lifeboat notify replay 01KAJ2ZJ5Q1J5V7K4E7X --url https://notifier.example.com:9095",
		RunE: func(cmd *cobra.Command, args []string) error { return f.run(cmd, args) },
	}
	f.add(cmd)
	addReceivers(cmd, &f.receivers, &f.config)
	cmd.Flags().BoolVar(&f.all, "all", false, "every one, or with --receiver and --since every one of these")
	cmd.Flags().StringVar(&f.since, "since", "", "with --all: only what is younger than this `age`, as 36h or 7d")
	cmd.Flags().BoolVar(&f.dryRun, "dry-run", false, "show what would be sent, and send nothing")
	cmd.Flags().StringVar(&f.url, "url", "", "the notifier's `address` for webhooks; that of notifier.listen when empty")
	cmd.Flags().StringVar(&f.tls.CAFile, "ca-file", "",
		"`file` of the authorities that may sign the notifier's certificate (default: the system's, and that certificate itself where it is)")
	cmd.Flags().StringVar(&f.tls.CertFile, "cert-file", "", "`file` of a client's certificate, where the notifier asks for one")
	cmd.Flags().StringVar((*string)(&f.tls.KeyFile), "key-file", "", "`file` of its key")
	cmd.Flags().BoolVarP(&f.yes, "yes", "y", false, "do not ask")
	cmd.Flags().BoolVar(&f.keep, "keep", false, "leave the letters where they are")
	console.CompleteFlag(cmd, "since", "24h", "7d", "30d")
	console.CompleteFlag(cmd, "url")
	cmd.ValidArgsFunction = completeDeadAlerts(&f)
	return cmd
}

// check says what does not go together.
func (f *replayFlags) check(ids []string) error {
	switch {
	case f.all && len(ids) > 0:
		return console.Usagef("either ids or --all")
	case !f.all && len(ids) == 0:
		return console.Usagef("name the ids of dead letters, as lifeboat notify dead lists them, or --all")
	case !f.all && (len(f.receivers) > 0 || f.since != ""):
		return console.Usagef("--receiver and --since choose among all: add --all, and name no ids")
	}
	if (f.tls.CertFile == "") != (f.tls.KeyFile == "") {
		return console.Usagef("--cert-file and --key-file go together")
	}
	return nil
}

func (f *replayFlags) run(cmd *cobra.Command, ids []string) (err error) {
	if err = f.check(ids); err != nil {
		return err
	}
	from, err := parseSince(f.since, time.Now())
	if err != nil {
		return err
	}
	cfg, err := f.load()
	if err != nil {
		return err
	}
	hook, err := newHook(cfg.Notifier, f.url, f.tls)
	if err != nil {
		return err
	}
	fl, err := connect(cmd.Context(), cfg, f.config, reachTimeout)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, fl.close()) }()
	r := &replay{fleet: fl, in: cmd.InOrStdin(), progress: cmd.ErrOrStderr(), yes: f.yes, keep: f.keep, hook: hook}
	chosen, refused, err := r.choose(cmd.Context(), f, ids, from)
	if err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	if f.dryRun {
		return errors.Join(r.preview(out, f.output, chosen), refused)
	}
	if len(chosen) == 0 {
		return errors.Join(printReplayed(out, f.output, f.config, nil), refused, r.nothing(f))
	}
	letters := make([]*letter, 0, len(chosen))
	for _, a := range chosen {
		letters = append(letters, a.letter)
	}
	if err = r.confirm(letters); err != nil {
		return err
	}
	done, err := r.stream(cmd.Context(), letters)
	return errors.Join(printReplayed(out, f.output, f.config, done), refused, err)
}

// nothing says on the side that there was nothing to do.
func (r *replay) nothing(f *replayFlags) error {
	if f.output == console.OutputJSON {
		return nil
	}
	_, err := fmt.Fprintln(r.progress, "nothing was sent; see what there is with: lifeboat notify dead")
	return err
}

// choose finds the letters. Of ids each must be there and replayable, so that a mistyped one changes nothing; of all, refused says which
// cannot be sent, and the others are.
func (r *replay) choose(ctx context.Context, f *replayFlags, ids []string, since time.Time) (chosen []*deadAlert, refused, err error) {
	all, err := r.deadAlerts(ctx, f.receivers, since)
	if err != nil {
		return nil, nil, err
	}
	for _, a := range all {
		r.hook.newest = max(r.hook.newest, slices.Max(a.seqs))
	}
	if f.all {
		for _, a := range all {
			if why := r.sendable(a.DeadLetter); why != nil {
				refused = errors.Join(refused, fmt.Errorf("%s: %w", clean(a.ID), why))
				continue
			}
			chosen = append(chosen, a)
		}
		return chosen, refused, nil
	}
	for _, id := range ids {
		i := slices.IndexFunc(all, func(a *deadAlert) bool { return a.ID == id })
		if i < 0 {
			return nil, nil, fmt.Errorf("no dead letter of alerts is named %q; see which there are: lifeboat notify dead -c %s", clean(id), r.file)
		}
		if why := r.sendable(all[i].DeadLetter); why != nil {
			return nil, nil, fmt.Errorf("%s: %w", clean(id), why)
		}
		if !slices.Contains(chosen, all[i]) {
			chosen = append(chosen, all[i])
		}
	}
	return chosen, nil, nil
}

// sendable is replayable, and for webhooks what can be posted.
func (r *replay) sendable(d *lifeboatv1.DeadLetter) error {
	if d.GetSubject() == subjectWebhook && !d.GetTruncated() {
		return nil
	}
	if d.GetSubject() == subjectWebhook {
		return errors.New("only the beginning of this webhook was kept, so it cannot be posted again; ask for it anew where it came from")
	}
	return r.replayable(d)
}

// stream sends letters as it comes upon them in the stream, so that of many only one payload is in memory.
func (r *replay) stream(ctx context.Context, chosen []*letter) (all []replayed, err error) {
	left := map[uint64]*letter{}
	for _, l := range chosen {
		left[l.seqs[len(l.seqs)-1]] = l
	}
	var errs []error
	for _, filter := range alertLetters() {
		err := r.bus.Scan(ctx, bus.StreamDead, deadFilter(filter), func(m *bus.Message) error {
			l := left[m.Seq]
			if l == nil {
				return nil
			}
			delete(left, m.Seq)
			whole := &lifeboatv1.DeadLetter{}
			if err := bus.Decode(m.Data, whole); err != nil { // it could be decoded a moment ago
				errs = append(errs, fmt.Errorf("%s: reading its payload: %w", clean(l.GetId()), err))
				return nil
			}
			l.Payload = whole.GetPayload()
			done, err := r.one(ctx, l)
			l.Payload = nil
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", clean(l.GetId()), err))
				return ctx.Err()
			}
			all = append(all, done)
			return nil
		})
		if err != nil {
			return all, errors.Join(append(errs, fmt.Errorf("reading the dead letters: %w", err))...)
		}
	}
	for _, l := range left {
		errs = append(errs, fmt.Errorf("%s is gone: somebody else sent or removed it meanwhile", clean(l.GetId())))
	}
	return all, errors.Join(errs...)
}

// planned is what --dry-run shows.
type planned struct {
	*deadAlert

	To string `json:"to"`
}

func (r *replay) preview(out io.Writer, output string, chosen []*deadAlert) error {
	plan := make([]planned, 0, len(chosen))
	for _, a := range chosen {
		p := planned{deadAlert: a, To: a.Subject}
		if a.Subject == subjectWebhook {
			p.To = r.hook.address(a.DeadLetter)
		}
		plan = append(plan, p)
	}
	if output == console.OutputJSON {
		return console.WriteJSON(out, plan)
	}
	t := console.NewTable(out, "ID", "AGE", "TO", "ALERTS", "BYTES")
	for _, p := range plan {
		t.Row(clean(p.ID), console.Age(p.Time), clean(p.To), cut(clean(p.what()), maxReason/2), fmt.Sprint(p.Bytes))
	}
	return t.Flush("nothing would be sent")
}

// completeDeadAlerts offers ids, newest first.
func completeDeadAlerts(f *replayFlags) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		const directive = cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
		cfg, err := config.Load(f.config)
		if err != nil || f.all {
			return nil, directive
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), completionTimeout)
		defer cancel()
		fl, err := connect(ctx, cfg, f.config, completionTimeout)
		if err != nil {
			return nil, directive
		}
		defer func() { _ = fl.close() }() // a shell has no place for errors
		all, err := fl.deadAlerts(ctx, nil, time.Time{})
		if err != nil {
			return nil, directive
		}
		var ids []string
		for _, a := range slices.Backward(all) {
			if !slices.Contains(args, a.ID) {
				ids = append(ids, clean(a.ID))
			}
		}
		return ids, directive
	}
}
