package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/console"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

const (
	defaultDays  = 7
	mostDays     = 3660
	defaultLimit = 50
	// natsWithin is how long NATS is waited for before the ticks are shown without what it knows.
	natsWithin = 2 * time.Second
)

// Why a tick will not be run, in the words with which it will be recorded as missed.
const (
	reasonPaused   = "paused"
	reasonBlackout = "blackout"
)

// comingTick is one line of `lifeboat schedule next`.
type comingTick struct {
	// At is when it fires, with the offset of the target's zone.
	At time.Time `json:"at"`
	// Nominal is what the cron line says, before the splay.
	Nominal  time.Time `json:"nominal"`
	TimeZone string    `json:"time_zone"`
	Target   string    `json:"target"`
	Schedule string    `json:"schedule"`
	Work     string    `json:"work"`
	// Runs is false for a tick that will be recorded as missed, for the reason "blackout" or "paused".
	Runs   bool   `json:"runs"`
	Reason string `json:"reason,omitempty"`
	// Waiting: its time has come, and it runs when the job before it has ended.
	Waiting bool   `json:"waiting"`
	Note    string `json:"note,omitempty"`

	target *config.Target
}

// next are the flags of `lifeboat schedule next`.
type next struct {
	config, output string
	days, limit    int
	offline        bool
}

func nextCommand() *cobra.Command {
	var n next
	cmd := &cobra.Command{
		Use: "next [target...]", Short: "The coming ticks of all schedules, in the order of time",
		Long: "next shows when the schedules of the targets fire, on the clock of each target's zone, and what daylight saving, blackouts\n" +
			"and pauses do to a tick. The ticks come from the configuration; pauses and ticks that wait for the job before them come from\n" +
			"NATS, and if that does not answer within a few seconds a line on standard error says that they are not known.",
		Example: "  lifeboat schedule next\n  lifeboat schedule next etcd-prod --days 30 --limit 0\n" +
			"  lifeboat schedule next --output json --offline",
		RunE: func(cmd *cobra.Command, args []string) error { return n.run(cmd, args) },
	}
	console.AddConfig(cmd, &n.config)
	console.AddOutput(cmd, &n.output)
	cmd.Flags().IntVar(&n.days, "days", defaultDays, "how many days to look ahead")
	cmd.Flags().IntVar(&n.limit, "limit", defaultLimit, "how many ticks to show; 0 is all of them")
	cmd.Flags().BoolVar(&n.offline, "offline", false, "do not ask NATS for pauses and waiting ticks")
	cmd.ValidArgsFunction = console.CompleteTargets(&n.config)
	return cmd
}

func (n *next) check() error {
	switch {
	case n.days < 1 || n.days > mostDays:
		return console.Usagef("--days: %d is not between 1 and %d", n.days, mostDays)
	case n.limit < 0:
		return console.Usagef("--limit: %d is below 0", n.limit)
	}
	return console.CheckOutput(n.output)
}

func (n *next) run(cmd *cobra.Command, args []string) error {
	if err := n.check(); err != nil {
		return err
	}
	cfg, err := loadConfig(n.config)
	if err != nil {
		return err
	}
	targets, err := n.targets(cfg, args)
	if err != nil {
		return err
	}
	var states map[string]*lifeboatv1.ScheduleState
	if !n.offline {
		if states, err = readStates(cmd.Context(), cfg, targets); err != nil {
			if cmd.Context().Err() != nil {
				return err
			}
			cmd.PrintErrf("pauses and waiting ticks are not known: %v\n", err)
		}
	}
	now := time.Now()
	ticks, more, err := n.coming(cmd.Context(), targets, states, now)
	if err != nil {
		return err
	}
	if more {
		cmd.PrintErrf("there are more within %d days; --limit 0 shows all\n", n.days)
	}
	if n.output == console.OutputJSON {
		return console.WriteJSON(cmd.OutOrStdout(), ticks)
	}
	return n.table(cmd.OutOrStdout(), ticks, now)
}

// targets are those named; all when none is.
func (n *next) targets(cfg *config.Config, names []string) ([]config.Target, error) {
	if len(names) == 0 {
		return cfg.Targets, nil
	}
	var named []config.Target
	for i, name := range names {
		if slices.Contains(names[:i], name) {
			continue
		}
		t, err := console.FindTarget(cfg, n.config, name)
		if err != nil {
			return nil, err
		}
		named = append(named, t)
	}
	return named, nil
}

func (n *next) table(out io.Writer, ticks []comingTick, now time.Time) error {
	t := console.NewTable(out, "WHEN", "IN", "TARGET", "SCHEDULE", "NOTE")
	for _, c := range ticks {
		in := console.Duration(c.At.Sub(now))
		if c.Waiting {
			in = "waiting"
		}
		t.Row(clock(c.At, c.target), in, c.Target, c.Schedule, console.OrDash(console.FirstLine(c.Note)))
	}
	return t.Flush(fmt.Sprintf("no tick within %d days; --days looks further", n.days))
}

// coming are the ticks to show, in order. more says that there are others within the days.
func (n *next) coming(
	ctx context.Context, targets []config.Target, states map[string]*lifeboatv1.ScheduleState, now time.Time,
) (ticks []comingTick, more bool, err error) {
	first := earliest{limit: n.limit, ticks: []comingTick{}}
	to := now.Add(time.Duration(n.days) * 24 * time.Hour)
	for i := range targets {
		t := &targets[i]
		for _, s := range t.Schedules() {
			state := states[bus.ScheduleSubject(t.Name, s.Name)]
			for _, p := range state.GetPending() {
				first.add(waitingOf(t, s, state, p.AsTime(), now))
			}
			for tick := range t.Upcoming(s, now, to) {
				if ctx.Err() != nil {
					return nil, false, ctx.Err()
				}
				if !first.add(comingOf(t, s, state, tick)) {
					break // the later ones of this schedule do not fit either
				}
			}
		}
	}
	return first.sorted(), first.more, nil
}

func newTick(t *config.Target, s config.Schedule, at, nominal time.Time) comingTick {
	return comingTick{
		At: at, Nominal: nominal, TimeZone: zoneName(t), Target: t.Name, Schedule: s.Name, Work: string(s.Work), Runs: true, target: t,
	}
}

// waitingOf is a tick that waits for the job before it. A pause stops it too, if it is in force when its turn comes.
func waitingOf(t *config.Target, s config.Schedule, state *lifeboatv1.ScheduleState, at, now time.Time) comingTick {
	c := newTick(t, s, at, at)
	c.Waiting, c.Note = true, "its time has come; runs when the job before it has ended"
	if why := pausedBy(t, state, now); why != "" {
		c.Runs, c.Reason, c.Note = false, reasonPaused, why
	}
	return c
}

func comingOf(t *config.Target, s config.Schedule, state *lifeboatv1.ScheduleState, tick config.Tick) comingTick {
	c := newTick(t, s, tick.At, tick.Nominal)
	var notes []string
	if tick.Note != "" {
		notes = append(notes, tick.Note)
	}
	if tick.Blackout {
		c.Runs, c.Reason = false, reasonBlackout
		notes = append(notes, "blackout: does not run")
	}
	// A tick that both stop is recorded as paused.
	if why := pausedBy(t, state, tick.At); why != "" {
		c.Runs, c.Reason = false, reasonPaused
		notes = append(notes, why)
	}
	c.Note = strings.Join(notes, "; ")
	return c
}

// pausedBy says what pauses a schedule at a moment; empty when nothing does.
func pausedBy(t *config.Target, state *lifeboatv1.ScheduleState, at time.Time) string {
	switch pause := state.GetPause(); {
	case t.Paused:
		return "paused in the configuration"
	case pausedAt(pause, at):
		return fmt.Sprintf("paused %s: %s", until(pause, t), console.FirstLine(pause.GetReason()))
	}
	return ""
}

func zoneName(t *config.Target) string { return cmp.Or(t.TimeZone, "UTC") }

// earliest keeps so many of the earliest ticks; all of them when the limit is 0.
type earliest struct {
	limit int
	// ticks are in order when there is a limit.
	ticks []comingTick
	more  bool
}

// add reports whether a tick is one of them so far.
func (e *earliest) add(c comingTick) bool {
	if e.limit == 0 {
		e.ticks = append(e.ticks, c)
		return true
	}
	if len(e.ticks) == e.limit {
		e.more = true
		if byTime(c, e.ticks[e.limit-1]) >= 0 {
			return false
		}
		e.ticks = e.ticks[:e.limit-1]
	}
	at, _ := slices.BinarySearchFunc(e.ticks, c, byTime)
	e.ticks = slices.Insert(e.ticks, at, c)
	return true
}

func (e *earliest) sorted() []comingTick {
	slices.SortFunc(e.ticks, byTime)
	return e.ticks
}

func byTime(a, b comingTick) int {
	return cmp.Or(a.At.Compare(b.At), cmp.Compare(a.Target, b.Target), cmp.Compare(a.Schedule, b.Schedule))
}

// readStates reads what was decided of the targets' schedules, by the subject of each.
func readStates(ctx context.Context, cfg *config.Config, targets []config.Target) (states map[string]*lifeboatv1.ScheduleState, err error) {
	b, err := connect(cfg)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	filter := bus.ScheduleSubject("*", "*")
	if len(targets) == 1 {
		filter = bus.ScheduleSubject(targets[0].Name, "*")
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// Once it answers it may take its time: there may be many.
	late := time.AfterFunc(natsWithin, func() { cancel(fmt.Errorf("NATS did not answer within %s", natsWithin)) })
	defer late.Stop()
	states = map[string]*lifeboatv1.ScheduleState{}
	err = b.Scan(ctx, bus.StreamJobs, filter, func(m *bus.Message) error {
		late.Stop()
		s := &lifeboatv1.ScheduleState{}
		if bad := bus.Decode(m.Data, s); bad != nil {
			return fmt.Errorf("decoding %s: %w", m.Subject, bad)
		}
		states[m.Subject] = s
		return nil
	})
	if away := b.Connected(); err != nil && away != nil {
		err = away
	} else if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return nil, err
	}
	return states, nil
}
