package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/console"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// conflicts is how often a state is written anew that a scheduler has written in the meantime. Each try is a reading and a writing; a
// schedule of every second that several replicas catch up with may be in the way of many.
const conflicts = 100

// switchFlags are those of pause and resume.
type switchFlags struct {
	config, schedule string
	// Only pause has these.
	length, until, reason string
}

func (f *switchFlags) add(cmd *cobra.Command) {
	console.AddConfig(cmd, &f.config)
	cmd.Flags().StringVar(&f.schedule, "schedule", "", "`name` of one schedule, as `lifeboat schedule next` shows it (default: all of the target)")
	// The only error is a flag that does not exist.
	_ = cmd.RegisterFlagCompletionFunc("schedule", completeSchedule(&f.config))
	cmd.ValidArgsFunction = console.CompleteTarget(&f.config)
}

func pauseCommand() *cobra.Command {
	var f switchFlags
	cmd := &cobra.Command{
		Use: "pause target", Short: "Stop a target's schedules, for a while or until they are resumed",
		Long: "pause is kept in NATS beside each schedule's newest tick, so it holds for every scheduler at once. Each tick that it stops, also\n" +
			"one that waits for the job before it, is recorded as missed. Jobs that a person asks for run all the same, and a job that waits\n" +
			"or runs already goes on. The rpo is watched all the same: silence that alert in Alertmanager.",
		Example: "  lifeboat schedule pause etcd-prod --for 2h --reason 'upgrade, CHG-17'\n" +
			"  lifeboat schedule pause etcd-prod --schedule drill --until 2026-12-01T08:00:00Z --reason 'no disk to drill on'\n" +
			"  lifeboat schedule pause etcd-prod --reason 'until further notice, INC-42'",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			pause, err := f.pause(time.Now())
			if err != nil {
				return err
			}
			return f.run(cmd, args[0], func(ctx context.Context, s *switcher, c config.Schedule) error { return s.pause(ctx, c, pause) })
		},
	}
	f.add(cmd)
	cmd.Flags().StringVar(&f.length, "for", "", "`period` after which it ends by itself: 90m, 2h, 3d")
	cmd.Flags().StringVar(&f.until, "until", "", "`time` at which it ends by itself, in RFC 3339: 2026-12-01T08:00:00Z")
	cmd.Flags().StringVar(&f.reason, "reason", "", "why, in a person's words")
	return cmd
}

func resumeCommand() *cobra.Command {
	var f switchFlags
	cmd := &cobra.Command{
		Use: "resume target", Short: "Let paused schedules go on",
		Long:    "resume ends a pause before its time. Ticks that passed during the pause are not run; the next one is.",
		Example: "  lifeboat schedule resume etcd-prod\n  lifeboat schedule resume etcd-prod --schedule drill",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.run(cmd, args[0], func(ctx context.Context, s *switcher, c config.Schedule) error { return s.resume(ctx, c) })
		},
	}
	f.add(cmd)
	return cmd
}

// pause is what the flags ask for.
func (f *switchFlags) pause(now time.Time) (*lifeboatv1.Pause, error) {
	p := &lifeboatv1.Pause{Since: timestamppb.New(now), By: console.Whoami(), Reason: strings.TrimSpace(f.reason)}
	if p.GetReason() == "" {
		return nil, console.Usagef("--reason is missing: say why, for whoever wonders why no snapshot comes")
	}
	switch {
	case f.length != "" && f.until != "":
		return nil, console.Usagef("--for and --until say the same thing in two ways: give one of them")
	case f.length != "":
		var length config.Period
		if err := length.UnmarshalText([]byte(f.length)); err != nil {
			return nil, console.Usagef("--for: %w", err)
		}
		if length <= 0 {
			return nil, console.Usagef("--for: %s is no time at all", f.length)
		}
		p.Until = timestamppb.New(now.Add(time.Duration(length)).Truncate(time.Second))
	case f.until != "":
		at, err := time.Parse(time.RFC3339, f.until)
		if err != nil {
			return nil, console.Usagef("--until: %q is not a time in RFC 3339, such as %s", f.until, now.Add(time.Hour).UTC().Format(time.RFC3339))
		}
		if !at.After(now) {
			return nil, console.Usagef("--until: %s has passed", f.until)
		}
		p.Until = timestamppb.New(at)
	}
	return p, nil
}

// run does something to each chosen schedule of a target.
func (f *switchFlags) run(cmd *cobra.Command, name string, do func(context.Context, *switcher, config.Schedule) error) (err error) {
	cfg, err := loadConfig(f.config)
	if err != nil {
		return err
	}
	t, err := console.FindTarget(cfg, f.config, name)
	if err != nil {
		return err
	}
	schedules, err := chosen(&t, f.config, f.schedule)
	if err != nil {
		return err
	}
	b, err := connect(cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	if err = b.Reach(cmd.Context()); err != nil {
		return fmt.Errorf("%w; nothing was changed (nats.url in %s)", err, f.config)
	}
	s := &switcher{bus: b, target: &t, say: cmd.OutOrStdout()}
	var failed []error
	for _, c := range schedules {
		// What goes wrong with one is no reason to leave the others as they are.
		if err := do(cmd.Context(), s, c); err != nil {
			failed = append(failed, explain(err))
		}
	}
	if len(failed) > 0 {
		return errors.Join(failed...)
	}
	if t.Paused {
		cmd.PrintErrf("%s is paused in %s as well (paused: true): no schedule of it runs\n", t.Name, f.config)
	}
	return nil
}

// explain adds what a person can do about an error.
func explain(err error) error {
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return fmt.Errorf("%w; is a scheduler running that has made the streams?", err)
	}
	return err
}

// switcher pauses and resumes the schedules of one target.
type switcher struct {
	bus    *bus.Bus
	target *config.Target
	say    io.Writer
}

func (s *switcher) pause(ctx context.Context, c config.Schedule, pause *lifeboatv1.Pause) error {
	var before *lifeboatv1.Pause
	now := time.Now()
	seq, err := s.write(ctx, c, func(state *lifeboatv1.ScheduleState) bool {
		before = nil
		p := proto.CloneOf(pause)
		if pausedAt(state.GetPause(), now) {
			before = state.GetPause()
			p.Since = before.GetSince()
		}
		state.Pause = p
		return true
	})
	if err != nil {
		return fmt.Errorf("pausing %s of %s: %w", c.Name, s.target.Name, err)
	}
	what := "is paused "
	if before != nil {
		what = fmt.Sprintf("was paused already, %s (%s: %s); it is now paused ", until(before, s.target), console.FirstLine(before.GetBy()), console.FirstLine(before.GetReason()))
	}
	s.sayf("%s of %s %s%s: %s\n", c.Name, s.target.Name, what, until(pause, s.target), pause.GetReason())
	if end := pause.GetUntil(); end != nil {
		s.sayNext(ctx, c, end.AsTime().Add(-time.Nanosecond)) // the pause does not hold at its end any more
	} else {
		s.sayf("  next: none; it goes on with: lifeboat schedule resume %s --schedule %s\n", s.target.Name, c.Name)
	}
	e := &lifeboatv1.Event{Verb: "paused", Message: fmt.Sprintf("%s is paused %s: %s", c.Name, until(pause, s.target), pause.GetReason())}
	e.Attributes = map[string]string{"reason": pause.GetReason()}
	if end := pause.GetUntil(); end != nil {
		e.Attributes["until"] = end.AsTime().Format(time.RFC3339)
	}
	return s.record(ctx, c, seq, e)
}

func (s *switcher) resume(ctx context.Context, c config.Schedule) error {
	var was *lifeboatv1.Pause
	now := time.Now()
	seq, err := s.write(ctx, c, func(state *lifeboatv1.ScheduleState) bool {
		if was = state.GetPause(); !pausedAt(was, now) {
			was = nil
			return false
		}
		state.Pause = s.ended(c, state, now)
		return true
	})
	if err != nil {
		return fmt.Errorf("resuming %s of %s: %w", c.Name, s.target.Name, err)
	}
	if was == nil {
		s.sayf("%s of %s is not paused; nothing was changed\n", c.Name, s.target.Name)
		return nil
	}
	s.sayf("%s of %s goes on; it was paused since %s by %s: %s\n", c.Name, s.target.Name, clock(was.GetSince().AsTime(), s.target),
		console.FirstLine(was.GetBy()), console.FirstLine(was.GetReason()))
	s.sayNext(ctx, c, now)
	return s.record(ctx, c, seq, &lifeboatv1.Event{
		Verb: "resumed", Message: fmt.Sprintf("%s goes on; it was paused since %s by %s: %s", c.Name,
			clock(was.GetSince().AsTime(), s.target), was.GetBy(), was.GetReason()),
		Attributes: map[string]string{"reason": was.GetReason()},
	})
}

// ended is what stays of a pause that ends now: none, unless it stopped a tick that no scheduler has decided yet. Such a tick is
// not run because somebody resumed before it was recorded as missed; whoever decides it takes the ended pause away.
func (s *switcher) ended(c config.Schedule, state *lifeboatv1.ScheduleState, now time.Time) *lifeboatv1.Pause {
	from := state.GetTick().AsTime()
	if since := state.GetPause().GetSince().AsTime(); since.After(from) {
		from = since.Add(-time.Nanosecond)
	}
	for range s.target.Upcoming(c, from, now) {
		p := proto.CloneOf(state.GetPause())
		p.Until = timestamppb.New(now)
		return p
	}
	return nil
}

// write changes a schedule's state, and again when a scheduler has written it in the meantime. change reports whether there is
// anything to write; if not the sequence is 0.
func (s *switcher) write(ctx context.Context, c config.Schedule, change func(*lifeboatv1.ScheduleState) bool) (seq uint64, err error) {
	subject := bus.ScheduleSubject(s.target.Name, c.Name)
	for range conflicts {
		state := &lifeboatv1.ScheduleState{}
		at, _, err := s.bus.Last(ctx, bus.StreamJobs, subject, state)
		if err != nil {
			return 0, err
		}
		if at == 0 {
			state = s.anchor(c)
		}
		if !change(state) {
			return 0, nil
		}
		seq, err = s.bus.PutState(ctx, bus.State{Outgoing: bus.Outgoing{Subject: subject, Message: state}, Expect: at})
		if !errors.Is(err, bus.ErrConflict) {
			return seq, err
		}
	}
	return 0, fmt.Errorf("%w, %d times in a row; try again", bus.ErrConflict, conflicts)
}

// anchor is the state of a schedule that no scheduler has seen yet, or that NATS lost: it counts from now, and the scheduler asks
// what the bucket knows of earlier ticks, as for its own anchors.
func (s *switcher) anchor(c config.Schedule) *lifeboatv1.ScheduleState {
	now := timestamppb.Now()
	state := &lifeboatv1.ScheduleState{
		Tick: now, Outcome: lifeboatv1.ScheduleState_OUTCOME_ANCHOR, Schedule: c.Line, TimeZone: s.target.TimeZone,
		DecidedAt: now, Unconfirmed: true, AnchoredAt: now,
	}
	if s.target.Splay > 0 {
		state.Splay = durationpb.New(s.target.Splay)
	}
	return state
}

// record puts into the audit log who did what. The state is written by then: an event that cannot be stored changes nothing.
func (s *switcher) record(ctx context.Context, c config.Schedule, seq uint64, e *lifeboatv1.Event) error {
	e.Id = fmt.Sprintf("schedule.%s.%s.%s.%d", e.GetVerb(), s.target.Name, c.Name, seq)
	e.Noun, e.Target, e.RequestedBy = "schedule", s.target.Name, "cli "+console.Whoami()
	e.Attributes["schedule"], e.Attributes["work"] = c.Name, string(c.Work)
	if err := s.bus.Emit(ctx, e); err != nil {
		return fmt.Errorf("it is %s, but that could not be put into the audit log: %w", e.GetVerb(), err)
	}
	return nil
}

func (s *switcher) sayNext(ctx context.Context, c config.Schedule, from time.Time) {
	tick, ok := nextRun(ctx, s.target, c, from)
	switch {
	case s.target.Paused:
		s.sayf("  next: none; paused in the configuration\n")
	case !ok:
		s.sayf("  next: none\n")
	default:
		s.sayf("  next: %s, in %s\n", clock(tick.At, s.target), console.Duration(time.Until(tick.At)))
	}
}

func (s *switcher) sayf(format string, args ...any) { fmt.Fprintf(s.say, format, args...) }
