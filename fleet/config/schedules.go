package config

// Schedule is one cron line of a target, and what each of its ticks asks for.
type Schedule struct {
	// Name tells it from the target's other schedules. It is the kind of work where that has one schedule only.
	Name string
	// Key is where the line stands, below the target: "drill.escrow.schedule".
	Key string
	// Line is the cron line.
	Line string
	Work Work
	// Identity is which key its jobs decrypt with: empty for the worker's own, or IdentityEscrow.
	Identity string
}

// IdentityEscrow is what a drill's job says to decrypt with the target's drill.escrow identity.
const IdentityEscrow = "escrow"

// Schedules are the target's schedules that are set. Two of them may ask for the same work: jobs of one kind and target never
// run at once, and a tick that finds the other one's job waiting or running is recorded as missed.
func (t Target) Schedules() []Schedule {
	var all []Schedule
	for _, s := range [...]Schedule{
		{Key: "schedule", Work: WorkSnapshot},
		{Key: "verify.schedule", Work: WorkVerify},
		{Key: "drill.schedule", Work: WorkDrill},
		{Key: "prune.schedule", Work: WorkPrune},
	} {
		if s.Line = t.ScheduleOf(s.Work); s.Line != "" {
			s.Name = string(s.Work)
			all = append(all, s)
		}
	}
	if line := t.Drill.Escrow.Schedule; line != "" {
		all = append(all, Schedule{Name: "drill-escrow", Key: "drill.escrow.schedule", Line: line, Work: WorkDrill, Identity: IdentityEscrow})
	}
	return all
}
