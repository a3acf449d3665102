package page

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/lifeboat-fleet/lifeboat/cli/internal/ops"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
)

const (
	// nearly is the part of its RPO from which on a target is to be watched.
	nearly = 0.8
	// overdueAfter is how late a decision may be before it is said that nobody decides: schedulers look at the clock at least every 30 s.
	overdueAfter = 90 * time.Second
	// lateAfter is how long a webhook may wait for a notifier.
	lateAfter = time.Minute
	// stuckAfter is how long deliveries may wait for a receiver without one that leaves the queue; LifeboatDeliveriesStuck has the same.
	stuckAfter = 10 * time.Minute
	// jobTime is how long a job may take until its tick counts as one without success.
	jobTime = time.Hour
	// silentAfter is how long NATS may say nothing.
	silentAfter = 12 * time.Second
	// horizon is how far the next tick is looked for, and blackoutLimit behind how many ticks in a blackout no further one is.
	horizon       = 400 * 24 * time.Hour
	blackoutLimit = 1000
)

// view is the fleet at a moment, in no language yet.
type view struct {
	now   time.Time
	title string
	// flag is --config for commands, where they need it.
	flag    string
	loc     *time.Location
	runbook func(alert string) string

	// away says that NATS does not answer, since when and why; what is shown is of asOf.
	away      bool
	awaySince time.Time
	awayWhy   string
	asOf      time.Time
	starting  bool

	problems   []problem
	counts     [good + 1]int
	targets    []*targetView
	jobs       []jobView
	waitJobs   int
	stuckJobs  int
	deliveries []*ops.Delivery
	waiting    []queued
	unrouted   uint64
	letters    []letter
	dead       uint64
}

type queued struct {
	Receiver string
	Waiting  uint64
}

type jobView struct {
	ops.Job
	// usual is how long the last one took; 0: not known.
	usual time.Duration
	// gone: the worker that runs it did not answer when workers were asked since.
	gone bool
}

// problem is something red or amber about the whole fleet or a target.
type problem struct {
	level  level
	title  func(*words) string
	arg    []any
	detail string
	since  time.Time
	target string
	work   config.Work
	alert  string
	// command is what helps to find out more.
	command string
}

type targetView struct {
	name, kind, zone string
	level            level
	notes            []problem
	rpo              rpoView
	snapshot         snapshotView
	proof            proof
	next             nextTick
	schedules        []scheduleView
}

// rpoView is the RPO clock: how much of what is allowed is used.
type rpoView struct {
	limit, age time.Duration
	// known says whether the age is; counted that it is from when the target was first seen, because there is no snapshot.
	known, counted bool
	level          level
}

func (r rpoView) used() float64 {
	if r.limit <= 0 || !r.known {
		return 0
	}
	return r.age.Seconds() / r.limit.Seconds()
}

type snapshotView struct {
	of    time.Time
	took  time.Duration
	bytes int64
}

type nextTick struct {
	at     time.Time
	work   config.Work
	paused bool
}

type scheduleView struct {
	name, line string
	next       time.Time
	paused     bool
	missed     string
	by, reason string
}

// build looks at everything at a moment.
func (f *fleet) build(cfg *config.Config, file string, now time.Time) *view {
	f.mu.Lock()
	defer f.mu.Unlock()
	v := &view{
		now: now, title: cfg.Page.Title, flag: configFlag(file), loc: time.UTC, asOf: f.answered, dead: f.dead.total, deliveries: slices.Clone(f.deliveries),
		unrouted: f.waiting.unrouted, runbook: runbooks(cfg.Notifier.Runbooks),
	}
	if loc, err := time.LoadLocation(cfg.Page.TimeZone); err == nil { // Load refuses any other
		v.loc = loc
	}
	v.starting = !f.caughtUp && f.away == "" && len(f.troubles) == 0
	f.link(v)
	overdue := 0
	f.load(cfg)
	for i := range f.plans {
		t := f.target(&f.plans[i], now, &overdue)
		// It was; or what was not read yet, or cannot be, may say otherwise.
		if unread := !f.caughtUp || f.troubles[auditLog] != ""; (v.away || unread) && t.level == good {
			t.level = unknown
		}
		v.targets = append(v.targets, t)
		v.counts[t.level]++
	}
	slices.SortStableFunc(v.targets, func(a, b *targetView) int {
		return cmp.Or(cmp.Compare(a.level, b.level), cmp.Compare(b.rpo.used(), a.rpo.used()), cmp.Compare(a.name, b.name))
	})
	f.fleetProblems(v, cfg, overdue)
	for _, t := range v.targets {
		for _, n := range t.notes {
			if n.level == red {
				v.problems = append(v.problems, n)
			}
		}
	}
	f.letterProblem(v)
	f.queues(v)
	return v
}

// link says whether what is shown is still true.
func (f *fleet) link(v *view) {
	switch {
	case f.away != "":
		v.away, v.awaySince, v.awayWhy = true, f.awaySince, f.away
	case !f.answered.IsZero() && v.now.Sub(f.answered) > silentAfter:
		v.away, v.awaySince, v.awayWhy = true, f.answered, f.troubles["what waits and runs"]
	}
}

// target is a target's view. overdue counts schedules that nobody decides.
func (f *fleet) target(p *plan, now time.Time, overdue *int) *targetView {
	t, r := p.target, f.targets[p.target.Name]
	if r == nil {
		r = &record{}
	}
	v := &targetView{
		name: t.Name, kind: t.Kind(), zone: t.Zone, level: good, proof: r.proof, snapshot: snapshotView{of: r.of, took: r.took, bytes: r.bytes},
	}
	v.clock(t, r, now)
	for i := range f.rules {
		m, holds := r.bad[i]
		if rule := &f.rules[i]; holds && (rule.lasts == 0 || now.Sub(m.at) < rule.lasts) {
			v.note(problem{
				level: rule.level, title: rule.title, arg: []any{t.Name}, detail: m.message, since: m.at, alert: rule.alert, work: rule.work,
			})
		}
	}
	if v.rpo.known && v.rpo.counted && v.rpo.level != red {
		v.note(problem{level: amber, title: func(w *words) string { return w.NoSnapshot }, arg: []any{t.Name}})
	}
	if r.proof.at.IsZero() && !r.of.IsZero() {
		v.note(problem{level: amber, title: func(w *words) string { return w.NeverProven }, arg: []any{t.Name}, work: config.WorkDrill})
	}
	f.schedulesOf(p, v, now, overdue)
	v.stale(p, r, now)
	if v.level == good && !v.rpo.known {
		v.level = unknown
	}
	return v
}

// stale says that what was well is long ago, by the limits of deploy/prometheus/lifeboat.recording.yml: data that a drill has restored after
// two drills and the rpo, and a snapshot without an rpo after two ticks and jobTime.
func (v *targetView) stale(p *plan, r *record, now time.Time) {
	t, proven := p.target, cmp.Or(r.proof.of, r.proof.at)
	for i := range p.schedules {
		s := &p.schedules[i]
		switch {
		case s.Name == string(config.WorkDrill) && !proven.IsZero() && now.Sub(proven) > t.RPO:
			if gap := s.longestGap(t, proven); gap > 0 && now.Sub(proven) > 2*gap+t.RPO {
				v.note(problem{
					level: amber, title: func(w *words) string { return w.ProofOld }, arg: []any{t.Name}, since: proven, alert: "LifeboatNothingProven",
					work: config.WorkDrill,
				})
			}
		case s.Name == string(config.WorkSnapshot) && t.RPO == 0 && !r.of.IsZero() && !v.schedules[i].paused && now.Sub(r.of) > jobTime:
			if gap := s.longestGap(t, r.of); gap > 0 && now.Sub(r.of) > 2*gap+jobTime {
				v.note(problem{
					level: amber, title: func(w *words) string { return w.SnapshotOld }, arg: []any{t.Name}, since: r.of, alert: "LifeboatWorkOverdue",
				})
			}
		}
	}
}

// note adds what is wrong with a target.
func (v *targetView) note(p problem) {
	p.target = v.name
	v.notes = append(v.notes, p)
	slices.SortStableFunc(v.notes, func(a, b problem) int { return cmp.Compare(a.level, b.level) })
	v.level = min(v.level, p.level)
}

// clock is how old the newest good snapshot is.
func (v *targetView) clock(t *config.Target, r *record, now time.Time) {
	since := r.of
	v.rpo = rpoView{limit: t.RPO, level: good}
	if since.IsZero() {
		since, v.rpo.counted = r.added, true
	}
	if since.IsZero() {
		v.rpo.level = unknown
		return
	}
	v.rpo.known, v.rpo.age = true, max(now.Sub(since), 0)
	switch used := v.rpo.used(); {
	case used > 1:
		v.rpo.level = red
		v.note(problem{
			level: red, title: func(w *words) string { return w.RPOExceeded }, arg: []any{t.Name}, since: since.Add(t.RPO), alert: "LifeboatRPOExceeded",
		})
	case used >= nearly:
		v.rpo.level = amber
		v.note(problem{level: amber, title: func(w *words) string { return w.RPONearly }, arg: []any{t.Name}})
	}
}

// schedulesOf finds the next tick, and schedules that are paused, missed or nobody's.
func (f *fleet) schedulesOf(p *plan, v *targetView, now time.Time, overdue *int) {
	t := p.target
	v.schedules = make([]scheduleView, 0, len(p.schedules))
	for i := range p.schedules {
		s := &p.schedules[i]
		d := f.schedules[s.key]
		sv := scheduleView{name: s.Name, line: s.Line, paused: t.Paused || d.inForce(now), next: s.coming(t, now)}
		if d != nil {
			sv.missed = d.missed
			if sv.paused && !t.Paused {
				sv.by, sv.reason = d.by, d.reason
			}
			if s.overdue(t, d, now) {
				*overdue++
			}
		}
		v.schedules = append(v.schedules, sv)
		if !sv.next.IsZero() && (v.next.at.IsZero() || s.Work == config.WorkSnapshot) && v.next.work != config.WorkSnapshot {
			v.next = nextTick{sv.next, s.Work, sv.paused}
		}
		switch {
		case sv.paused:
			v.note(problem{
				level: amber, title: func(w *words) string { return w.Paused }, arg: []any{t.Name, s.Name}, detail: sv.reason, work: s.Work,
			})
		case sv.missed != "" && sv.missed != "blackout":
			v.note(problem{
				level: amber, title: func(w *words) string { return w.Missed }, arg: []any{t.Name, s.Name}, detail: sv.missed, since: d.tick, work: s.Work,
			})
		}
	}
}

// fleetProblems are those that are not about one target.
func (f *fleet) fleetProblems(v *view, cfg *config.Config, overdue int) {
	add := func(p problem) { v.problems = append(v.problems, p) }
	for _, what := range sortedKeys(f.troubles) {
		if !v.away {
			add(problem{
				level: red, title: func(w *words) string { return w.Unreadable }, arg: []any{what}, detail: f.troubles[what],
				command: "nats stream ls",
			})
		}
	}
	if overdue > 0 && !v.away {
		add(problem{level: red, title: func(w *words) string { return w.NoScheduler }, arg: []any{overdue}, command: "lifeboat scheduler healthcheck"})
	}
	f.lacking(v, cfg)
	f.alertProblems(v, cfg)
	if f.waiting.unrouted > 0 && v.now.Sub(f.waiting.unroutedSince) > lateAfter {
		add(problem{
			level: red, title: func(w *words) string { return w.Unrouted }, arg: []any{f.waiting.unrouted}, since: f.waiting.unroutedSince,
			command: "lifeboat notifier healthcheck",
		})
	}
	f.stuck(v)
}

// alertProblems are about what should have been told: canaries that did not arrive, and alerts that never came.
func (f *fleet) alertProblems(v *view, cfg *config.Config) {
	for _, name := range sortedKeys(f.alerts) {
		for i := range f.rules {
			m, holds := f.alerts[name].bad[i]
			rule := &f.rules[i]
			if !holds || (rule.lasts > 0 && v.now.Sub(m.at) >= rule.lasts) || (rule.noun == "canary" && !hasCanary(cfg, name)) {
				continue
			}
			v.problems = append(v.problems, problem{
				level: rule.level, title: rule.title, arg: []any{name}, detail: m.message, since: m.at, alert: rule.alert,
				command: "lifeboat notify deliveries" + v.flag,
			})
		}
	}
}

// hasCanary says whether a receiver has a canary still. One that was taken out never arrives again, and so would be late for ever; the
// notifier's alert ends likewise.
func hasCanary(cfg *config.Config, receiver string) bool {
	return slices.ContainsFunc(cfg.Notifier.Receivers, func(r config.Receiver) bool { return r.Name == receiver && r.Canary.Schedule != "" })
}

// stuck finds receivers for which alerts wait and nothing is told: the chat, or every notifier, is away.
func (f *fleet) stuck(v *view) {
	for _, name := range sortedKeys(f.waiting.receivers) {
		since := f.waiting.since[name]
		if n := f.waiting.receivers[name]; n > 0 && !since.IsZero() && v.asOf.Sub(since) > stuckAfter {
			v.problems = append(v.problems, problem{
				level: red, title: func(w *words) string { return w.Stuck }, arg: []any{n, ops.Clean(name)}, since: since, alert: "LifeboatDeliveriesStuck",
				command: "lifeboat notify deliveries --receiver " + quote(name) + v.flag,
			})
		}
	}
}

// lacking finds work that no worker takes.
func (f *fleet) lacking(v *view, cfg *config.Config) {
	if !f.crew.Known() || v.away {
		return
	}
	type lack struct {
		zone string
		work config.Work
	}
	missing := map[lack]int{}
	for i := range cfg.Targets {
		t := &cfg.Targets[i]
		seen := map[config.Work]bool{}
		for _, s := range t.Schedules() {
			if !seen[s.Work] && f.crew.Lacks(s.Work, t.Zone) {
				missing[lack{t.Zone, s.Work}]++
			}
			seen[s.Work] = true
		}
	}
	if len(f.crew.Workers()) == 0 && len(missing) > 0 {
		v.problems = append(v.problems, problem{level: red, title: func(w *words) string { return w.NoWorker }, command: "lifeboat backup healthcheck"})
		return
	}
	all := slices.SortedFunc(maps.Keys(missing), func(a, b lack) int { return cmp.Or(cmp.Compare(a.zone, b.zone), cmp.Compare(a.work, b.work)) })
	for _, l := range all {
		p := problem{
			level: red, title: func(w *words) string { return w.NoWorkerFor }, arg: []any{string(l.work), missing[l]},
			command: "lifeboat-backup --roles " + string(l.work),
		}
		if l.zone != "" {
			p.title, p.arg = func(w *words) string { return w.NoWorkerIn }, []any{l.zone, string(l.work), missing[l]}
			p.command += " --zone " + l.zone
		}
		v.problems = append(v.problems, p)
	}
}

// queues are what waits and runs: jobs that run first, then those that nobody takes.
func (f *fleet) queues(v *view) {
	for i := range f.jobs {
		j := jobView{Job: f.jobs[i]}
		if r := f.targets[j.Target]; r != nil && j.Work == config.WorkSnapshot {
			j.usual = r.took
		} else if r != nil && j.Work == config.WorkDrill {
			j.usual = r.drillTook
		}
		// Who was asked before the job began says nothing of its worker, which may have come since.
		j.gone = j.Runs() && f.crew.Known() && j.Since != nil && f.crewAt.After(*j.Since) && !f.crew.Answers(j.Worker)
		switch {
		case j.Runs():
		case j.Stuck():
			v.stuckJobs++
		default:
			v.waitJobs++
		}
		v.jobs = append(v.jobs, j)
	}
	rank := func(j jobView) int {
		switch {
		case j.Stuck():
			return 0
		case j.Runs():
			return 1
		}
		return 2
	}
	slices.SortStableFunc(v.jobs, func(a, b jobView) int { return cmp.Or(cmp.Compare(rank(a), rank(b)), a.StoredAt.Compare(b.StoredAt)) })
	for _, name := range sortedKeys(f.waiting.receivers) {
		v.waiting = append(v.waiting, queued{ops.Clean(name), f.waiting.receivers[name]})
	}
}
