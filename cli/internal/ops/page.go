package ops

import (
	"time"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
)

// page is what `lifeboat why` tells, from the tick to the object. Times are in the target's time zone; durations are in seconds.
type page struct {
	Target   string      `json:"target"`
	Kind     string      `json:"kind"`
	Work     config.Work `json:"work"`
	Zone     string      `json:"zone,omitempty"`
	TimeZone string      `json:"time_zone"`
	// Findings answer the question, the most important first.
	Findings  []finding       `json:"findings"`
	Schedules []scheduleState `json:"schedules"`
	RPO       *rpoState       `json:"rpo,omitempty"`
	Job       *jobStory       `json:"job,omitempty"`
	// Recent are the newest ticks and jobs, newest last.
	Recent []outcome `json:"recent"`
	// Unknown is what could not be read, and why.
	Unknown []string `json:"unknown,omitempty"`
	// blind: nothing that the answer rests on could be read.
	blind bool
}

// Levels of a finding.
const (
	levelGood    = "ok"
	levelNote    = "note"
	levelProblem = "problem"
)

// finding is a sentence of the answer, and what to do about it.
type finding struct {
	Level string `json:"level"`
	Text  string `json:"text"`
	Do    string `json:"do,omitempty"`
}

// scheduleState is what a scheduler last decided of a schedule, and what comes next.
type scheduleState struct {
	Name     string `json:"name"`
	Line     string `json:"line"`
	TimeZone string `json:"time_zone"`
	Splay    string `json:"splay,omitempty"`
	// Tick is the newest one that was decided; the next four are about it. Outcome is empty when no scheduler has seen the schedule.
	Tick        *time.Time  `json:"tick,omitempty"`
	Outcome     string      `json:"outcome,omitempty"`
	DecidedAt   *time.Time  `json:"decided_at,omitempty"`
	LateSeconds float64     `json:"late_seconds,omitempty"`
	Missed      []missed    `json:"missed,omitempty"`
	Pending     []time.Time `json:"pending,omitempty"`
	Paused      *pauseState `json:"paused,omitempty"`
	// Next is the coming tick, and NextNote what will become of it if that is not a job.
	Next     *time.Time `json:"next,omitempty"`
	NextNote string     `json:"next_note,omitempty"`
	// Overdue is a tick that should have been decided by now.
	Overdue *time.Time `json:"overdue,omitempty"`
	// Differs says that the scheduler last decided by another line, zone or splay than the configuration here has.
	Differs string `json:"differs,omitempty"`
}

// missed are ticks that were not run.
type missed struct {
	Reason string    `json:"reason"`
	Count  int64     `json:"count"`
	From   time.Time `json:"from"`
	To     time.Time `json:"to"`
	JobID  string    `json:"job_id,omitempty"`
}

// pauseState is a pause in force: of the schedule, or of the target by its configuration.
type pauseState struct {
	By     string     `json:"by"`
	Since  *time.Time `json:"since,omitempty"`
	Until  *time.Time `json:"until,omitempty"`
	Reason string     `json:"reason,omitempty"`
}

// rpoState is how old the newest good snapshot may be, and is.
type rpoState struct {
	RPO string `json:"rpo"`
	// State is "met" or "exceeded", or "unknown" when that could not be read; empty when the scheduler has told neither.
	State   string     `json:"state,omitempty"`
	Since   *time.Time `json:"since,omitempty"`
	Newest  *time.Time `json:"newest,omitempty"`
	Message string     `json:"message,omitempty"`
}

// jobStory is one job from its tick to its object.
type jobStory struct {
	ID   string      `json:"id"`
	Work config.Work `json:"work"`
	// Outcome is the verb of the event that ended it, or the state of one that has not ended: see openJob.
	Outcome string `json:"outcome"`
	Message string `json:"message,omitempty"`
	Ended   bool   `json:"ended"`
	Failed  bool   `json:"failed"`

	Tick        *time.Time `json:"tick,omitempty"`
	Schedule    string     `json:"schedule,omitempty"`
	DecidedAt   *time.Time `json:"decided_at,omitempty"`
	LateSeconds float64    `json:"late_seconds,omitempty"`
	Sequence    uint64     `json:"sequence"`
	StoredAt    *time.Time `json:"stored_at,omitempty"`
	RequestedBy string     `json:"requested_by,omitempty"`

	Attempts    []attempt `json:"attempts"`
	Phases      []phase   `json:"phases,omitempty"`
	TookSeconds float64   `json:"took_seconds,omitempty"`
	Objects     []object  `json:"objects,omitempty"`
	SnapshotID  string    `json:"snapshot_id,omitempty"`
	Drill       *drill    `json:"drill,omitempty"`
	Notes       []string  `json:"notes,omitempty"`
	Dead        *deadRef  `json:"dead_letter,omitempty"`
	TraceID     string    `json:"trace_id,omitempty"`
}

// attempt is one delivery that began to work.
type attempt struct {
	Number string     `json:"attempt"`
	Worker string     `json:"worker"`
	Began  *time.Time `json:"began,omitempty"`
	Ended  *time.Time `json:"ended,omitempty"`
	// How it ended: a verb, and the reason behind it.
	How string `json:"how"`
	Why string `json:"why,omitempty"`
}

// phase is a timed step.
type phase struct {
	Name    string  `json:"name"`
	Seconds float64 `json:"seconds"`
}

// object is what was stored.
type object struct {
	Bucket       string `json:"bucket"`
	Key          string `json:"key"`
	StoredBytes  int64  `json:"stored_bytes"`
	StoredSHA256 string `json:"stored_sha256"`
	RawBytes     int64  `json:"raw_bytes"`
	RawSHA256    string `json:"raw_sha256"`
	Encrypted    bool   `json:"encrypted"`
	// UnchangedSince is the snapshot that stored it, when the source had not changed since.
	UnchangedSince string `json:"unchanged_since,omitempty"`
}

// drill is the newest drill of the snapshot, or what a drill job found.
type drill struct {
	ID         string     `json:"id"`
	SnapshotID string     `json:"snapshot_id"`
	Passed     bool       `json:"passed"`
	At         *time.Time `json:"at,omitempty"`
	Summary    string     `json:"summary,omitempty"`
	Failure    string     `json:"failure,omitempty"`
	RTOSeconds float64    `json:"rto_seconds,omitempty"`
}

// deadRef is the dead letter that a job ended as.
type deadRef struct {
	ID       string     `json:"id"`
	At       *time.Time `json:"at,omitempty"`
	Reason   string     `json:"reason"`
	Attempts int64      `json:"attempts"`
	Replay   string     `json:"replay"`
}

// outcome is one line of what happened lately: a tick that was not run, or a job.
type outcome struct {
	At          time.Time  `json:"at"`
	Tick        *time.Time `json:"tick,omitempty"`
	Schedule    string     `json:"schedule,omitempty"`
	Outcome     string     `json:"outcome"`
	JobID       string     `json:"job_id,omitempty"`
	TookSeconds float64    `json:"took_seconds,omitempty"`
	Object      string     `json:"object,omitempty"`
	Message     string     `json:"message,omitempty"`
}
