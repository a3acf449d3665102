package app

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/console"
	"github.com/lifeboat-fleet/lifeboat/fleet/service"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// ScheduleCommand is `lifeboat schedule`: what will run when, and how to stop it for a while.
func ScheduleCommand() *cobra.Command {
	return service.Group(&cobra.Command{
		Use: "schedule", Short: "See the coming ticks, pause schedules and resume them",
		Example: "  lifeboat schedule next etcd-prod\n  lifeboat schedule pause etcd-prod --for 2h --reason 'upgrade, CHG-17'\n" +
			"  lifeboat schedule resume etcd-prod",
	}, nextCommand(), pauseCommand(), resumeCommand())
}

// connect begins a connection of a person's command.
func connect(cfg *config.Config) (*bus.Bus, error) {
	b, err := bus.Connect(bus.Options{
		Config: cfg.NATS, Actor: service.Instance("lifeboat-cli"), Logger: slog.New(slog.DiscardHandler),
		Registerer: prometheus.NewRegistry(),
	})
	if err != nil {
		return nil, &service.UsageError{Err: err}
	}
	return b, nil
}

// loadConfig reads the configuration; what is wrong with it is the user's to mend.
func loadConfig(file string) (*config.Config, error) {
	cfg, err := config.Load(file)
	if err != nil {
		return nil, &service.UsageError{Err: err}
	}
	return cfg, nil
}

// chosen are the schedules of a target that a command is about: all of them, or the one with a name.
func chosen(t *config.Target, file, name string) ([]config.Schedule, error) {
	all := t.Schedules()
	if len(all) == 0 {
		return nil, console.Usagef("%s has no schedule in %s", t.Name, file)
	}
	if name == "" {
		return all, nil
	}
	names := make([]string, 0, len(all))
	for _, s := range all {
		if s.Name == name {
			return []config.Schedule{s}, nil
		}
		names = append(names, s.Name)
	}
	return nil, console.Usagef("--schedule: %s has no schedule named %q in %s; it has %s", t.Name, name, file, strings.Join(names, ", "))
}

// completeSchedule offers the names of the schedules of the target that is the first argument.
func completeSchedule(file *string) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		var names []string
		if cfg, err := config.Load(*file); err == nil && len(args) > 0 {
			t, _ := cfg.Target(args[0]) // one that does not exist has none
			for _, s := range t.Schedules() {
				names = append(names, s.Name)
			}
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

// pausedAt says whether a pause is in force at a moment.
func pausedAt(p *lifeboatv1.Pause, at time.Time) bool {
	return p != nil && (p.GetUntil() == nil || p.GetUntil().AsTime().After(at))
}

// until is the end of a pause in words.
func until(p *lifeboatv1.Pause, t *config.Target) string {
	if p.GetUntil() == nil {
		return "until it is resumed"
	}
	return "until " + clock(p.GetUntil().AsTime(), t)
}

// clock is a moment on the clock of a target's zone, with the zone's name. The abbreviation tells apart what an overlap shows
// twice.
func clock(at time.Time, t *config.Target) string {
	loc, err := time.LoadLocation(t.TimeZone)
	if err != nil { // the configuration was checked
		loc = time.UTC
	}
	text := at.In(loc).Format("2006-01-02 15:04:05 MST")
	if loc == time.UTC {
		return text
	}
	return fmt.Sprintf("%s (%s)", text, loc)
}

// nextRun is the first tick after a moment that is not in a blackout.
func nextRun(ctx context.Context, t *config.Target, s config.Schedule, from time.Time) (tick config.Tick, ok bool) {
	for tick := range t.Upcoming(s, from, from.Add(farthest)) {
		if ctx.Err() != nil {
			break
		}
		if !tick.Blackout {
			return tick, true
		}
	}
	return config.Tick{}, false
}

// farthest is how far ahead a single next tick is looked for: a line may name the 29th of February.
const farthest = 9 * 366 * 24 * time.Hour
