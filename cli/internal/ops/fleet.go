package ops

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/console"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	backup "github.com/lifeboat-fleet/lifeboat/services/backup/app"
)

const (
	// statusReach is how long status waits for NATS before it does without.
	statusReach = 2 * time.Second
	// statusTimeout bounds all that it asks.
	statusTimeout = 10 * time.Second
)

// fleetView is the "fleet" of `lifeboat status --output json`.
type fleetView struct {
	// NATS is "ok", or why it could not be asked.
	NATS string `json:"nats"`
	// Workers are those that answered.
	Workers []workerView `json:"workers"`
	// Problems are zones that have targets and no worker; they make the exit code 1.
	Problems []lackView `json:"problems"`
	// Warnings are everything else that is not as it should be.
	Warnings   []string     `json:"warnings"`
	Paused     []pausedView `json:"paused"`
	Durability []string     `json:"durability"`
}

type workerView struct {
	Actor   string   `json:"actor"`
	Zone    string   `json:"zone,omitempty"`
	Roles   []string `json:"roles"`
	Version string   `json:"version"`
	// Draining takes no more jobs, and has no roles any more.
	Draining bool `json:"draining,omitempty"`
}

type lackView struct {
	Text    string   `json:"text"`
	Zone    string   `json:"zone,omitempty"`
	Targets []string `json:"targets"`
}

type pausedView struct {
	Target   string `json:"target"`
	Schedule string `json:"schedule"`
	pauseState
}

// FleetStatus is what `lifeboat status` tells of the fleet.
func FleetStatus(ctx context.Context, cfg *config.Config, file string, targets []config.Target, out io.Writer) backup.FleetStatus {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	v := &fleetView{
		NATS: "ok", Workers: []workerView{}, Problems: []lackView{}, Warnings: []string{}, Paused: []pausedView{}, Durability: []string{},
	}
	f, err := connect(ctx, cfg, file, statusReach)
	if err != nil {
		v.NATS = err.Error()
		return backup.FleetStatus{JSON: v, Lines: []string{"fleet: the table is from the bucket alone, because " + console.FirstLine(v.NATS)}}
	}
	defer func() { _ = f.close() }() // everything was read; there is nothing to lose
	f.look(ctx, v, targets)
	return backup.FleetStatus{JSON: v, Red: len(v.Problems) > 0, Lines: v.lines(out)}
}

// look asks for everything that the view shows.
func (f *fleet) look(ctx context.Context, v *fleetView, targets []config.Target) {
	workers := f.crew(ctx)
	if workers.unknown != nil {
		v.warn(workers.unknown)
	}
	for _, w := range workers.workers {
		v.Workers = append(v.Workers, workerView{
			Actor: clean(w.Actor), Zone: clean(w.Zone), Roles: w.Roles, Version: clean(w.Version), Draining: w.Draining,
		})
	}
	v.lacking(workers, targets)
	var err error
	if v.Durability, err = f.bus.Durability(ctx); err != nil {
		v.warn(fmt.Errorf("asking whether NATS is durable: %w", err))
	}
	if v.Durability == nil {
		v.Durability = []string{}
	}
	if err := f.paused(ctx, v, targets); err != nil {
		v.warn(err)
	}
}

func (v *fleetView) warn(err error) { v.Warnings = append(v.Warnings, console.FirstLine(err.Error())) }

// lacking finds the zones and the kinds of work of scheduled targets that no worker takes.
func (v *fleetView) lacking(workers crew, targets []config.Target) {
	problems, warnings := map[string]*lackView{}, map[string]*lackView{}
	for i := range targets {
		t := &targets[i]
		if t.Zone != "" && workers.unknown == nil && !workers.has(t.Zone) {
			note(problems, fmt.Sprintf("zone %s has no worker", t.Zone), t)
			continue
		}
		seen := map[config.Work]bool{}
		for _, s := range t.Schedules() {
			if lack := workers.lacking(s.Work, t.Zone); lack != "" && !seen[s.Work] {
				note(warnings, lack, t)
			}
			seen[s.Work] = true
		}
	}
	for _, text := range slices.Sorted(maps.Keys(problems)) {
		v.Problems = append(v.Problems, *problems[text])
	}
	for _, text := range slices.Sorted(maps.Keys(warnings)) {
		v.Warnings = append(v.Warnings, fmt.Sprintf("%s (targets: %s)", text, several(warnings[text].Targets)))
	}
}

func note(all map[string]*lackView, text string, t *config.Target) {
	l := all[text]
	if l == nil {
		l = &lackView{Text: text, Zone: t.Zone}
		all[text] = l
	}
	if !slices.Contains(l.Targets, t.Name) {
		l.Targets = append(l.Targets, t.Name)
	}
}

// manyTargets is from how many targets on all states are read, rather than those of each.
const manyTargets = 50

// paused finds the schedules that are paused now.
func (f *fleet) paused(ctx context.Context, v *fleetView, targets []config.Target) error {
	byName := make(map[string]bool, len(targets))
	var filters []string
	for i := range targets {
		byName[targets[i].Name] = true
		filters = append(filters, bus.ScheduleSubject(targets[i].Name, "*"))
		if targets[i].Paused {
			v.Paused = append(v.Paused, pausedView{targets[i].Name, "all", pauseState{By: "paused: true in " + f.file}})
		}
	}
	if len(targets) > manyTargets {
		filters = []string{"lifeboat.state.schedule.>"}
	}
	now := time.Now()
	for _, filter := range filters {
		err := f.bus.Scan(ctx, bus.StreamJobs, filter, func(m *bus.Message) error {
			s := &lifeboatv1.ScheduleState{}
			parts := strings.Split(m.Subject, ".")
			if len(parts) != 5 || !byName[parts[3]] {
				return nil
			}
			if err := bus.Decode(m.Data, s); err != nil {
				return fmt.Errorf("decoding %s: %w", m.Subject, err)
			}
			if p := s.GetPause(); p != nil && (p.GetUntil() == nil || p.GetUntil().AsTime().After(now)) {
				v.Paused = append(v.Paused, pausedView{parts[3], parts[4], pauseState{
					By: clean(p.GetBy()), Since: at(p.GetSince()), Until: at(p.GetUntil()), Reason: clean(p.GetReason()),
				}})
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("looking for paused schedules: %w", err)
		}
	}
	return nil
}

// lines are what stands below the table: what is wrong first.
func (v *fleetView) lines(out io.Writer) []string {
	var all []string
	for _, p := range v.Problems {
		all = append(all, console.Red(out, fmt.Sprintf("%s (targets: %s)", p.Text, several(p.Targets))))
	}
	for _, w := range v.Warnings {
		all = append(all, "warning: "+w)
	}
	for _, d := range v.Durability {
		all = append(all, "warning: NATS could lose what it acknowledged: "+console.FirstLine(d))
	}
	for i, p := range v.Paused {
		if i == maxNamed {
			all = append(all, fmt.Sprintf("%d more schedules are paused", len(v.Paused)-i))
			break
		}
		text := fmt.Sprintf("paused: %s of %s, by %s", p.Schedule, p.Target, p.By)
		if p.Until != nil {
			text += ", until " + p.Until.UTC().Format(time.RFC3339)
		}
		all = append(all, clean(text+behind(": ", p.Reason)))
	}
	zones := map[string]map[string]int{}
	count := map[string]int{}
	for _, w := range v.Workers {
		if w.Draining {
			all = append(all, fmt.Sprintf("draining: %s takes no more jobs until it is started anew", w.Actor))
			continue
		}
		if zones[w.Zone] == nil {
			zones[w.Zone] = map[string]int{}
		}
		count[w.Zone]++
		for _, r := range w.Roles {
			zones[w.Zone][r]++
		}
	}
	for _, z := range slices.Sorted(maps.Keys(zones)) {
		where := "zone " + z
		if z == "" {
			where = "no zone"
		}
		var roles []string
		for _, w := range config.Works() {
			if n := zones[z][string(w)]; n > 0 {
				roles = append(roles, fmt.Sprintf("%s %d", w, n))
			}
		}
		all = append(all, fmt.Sprintf("workers of %s: %d (%s)", where, count[z], strings.Join(roles, ", ")))
	}
	if len(v.Workers) == 0 && len(v.Problems)+len(v.Warnings) == 0 {
		all = append(all, "warning: no worker answers")
	}
	return all
}

// maxNamed is how many targets or schedules a line or a list of lines names.
const maxNamed = 10

func several(names []string) string {
	if len(names) > maxNamed {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:maxNamed], ", "), len(names)-maxNamed)
	}
	return strings.Join(names, ", ")
}
