package emit

import (
	"context"
	"log/slog"
	"strings"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// fewNew is how many new schedules are read one by one; more are read in one scan of all states.
const fewNew = 500

// load makes the timetable follow the configuration. It is false when that could not be done yet. A schedule that another line,
// zone or splay was given is a new entry: whoever works on the old one loses it when that is given back.
func (e *Emitter) load(ctx context.Context) bool {
	cfg := e.Config()
	added := e.compare(ctx, cfg)
	var err error
	if len(added) > fewNew {
		err = e.scan(ctx, added)
	}
	if err != nil {
		if ctx.Err() == nil {
			e.Logger.WarnContext(ctx, "could not load the schedules' states, trying again", slog.Any("err", err))
		}
		return false
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for k, en := range added {
		if old := e.known[k]; old != nil {
			e.table.Remove(&old.Entry)
		}
		e.known[k] = en
		if !en.unread {
			en.schedule(e.now())
			e.table.Add(&en.Entry)
		}
		if en.waitsFor() {
			e.queue(en)
		}
		e.confirmLater(en)
	}
	e.metrics.schedules.Set(float64(len(e.known)))
	return true
}

// compare finds the schedules that are new or changed, points the others to the configuration as it is now, and sends those that
// it does not have any more to be removed.
func (e *Emitter) compare(ctx context.Context, cfg *config.Config) map[key]*entry {
	e.mu.Lock()
	defer e.mu.Unlock()
	wanted, added, specs := map[key]bool{}, map[key]*entry{}, map[spec]*spec{}
	for i := range cfg.Targets {
		t := &cfg.Targets[i]
		for _, schedule := range t.Schedules() {
			k := key{t.Name, schedule.Name}
			wanted[k] = true
			s := spec{schedule, t.TimeZone, t.Splay}
			if have, ok := e.known[k]; ok && *have.spec == s {
				have.target = t
				continue
			}
			if specs[s] == nil {
				specs[s] = &s
			}
			en, err := newEntry(k, specs[s], t)
			if err != nil { // the configuration was checked
				e.Logger.ErrorContext(ctx, "a schedule cannot be used", slog.String("target", t.Name), slog.String("schedule", schedule.Name),
					slog.Any("err", err))
				continue
			}
			added[k] = en
		}
	}
	for k, en := range e.known {
		if wanted[k] {
			continue
		}
		delete(e.known, k)
		e.table.Remove(&en.Entry)
		if gone, err := newEntry(k, en.spec, en.target); err == nil {
			gone.removing = true
			e.queue(gone)
		}
	}
	return added
}

const stateSubjects = "lifeboat.state.schedule."

// scan reads all states at once, and gives the new entries theirs.
func (e *Emitter) scan(ctx context.Context, added map[key]*entry) error {
	err := e.Bus.Scan(ctx, bus.StreamJobs, stateSubjects+">", func(m *bus.Message) error {
		target, schedule, _ := strings.Cut(strings.TrimPrefix(m.Subject, stateSubjects), ".")
		en := added[key{target, schedule}]
		if en == nil {
			return nil // another configuration's, or one that is known
		}
		s := &lifeboatv1.ScheduleState{}
		if err := bus.Decode(m.Data, s); err != nil {
			// Read again by itself, it is named.
			en.unread = true
			return nil //nolint:nilerr // one state that cannot be read keeps no other schedule from firing
		}
		e.adopt(ctx, en, s, m.Seq)
		return nil
	})
	if err != nil {
		return err
	}
	now := e.now()
	for _, en := range added {
		if en.unread {
			en.adopt(&lifeboatv1.ScheduleState{}, 0, now)
		}
	}
	return nil
}
