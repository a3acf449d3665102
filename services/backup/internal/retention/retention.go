// Package retention decides which snapshots of a target are kept. It is pure: it reads no clock, no bucket and no network.
package retention

import (
	"time"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
)

// Snapshot is what retention needs to know of one.
type Snapshot struct {
	ID string
	// At is when the source was read.
	At time.Time
	// Count is how many keys (or jobs) it holds; -1 when that is not known.
	Count int64
	// Bytes is the raw size, the measure where counts are not known.
	Bytes int64
	// Damaged: its stored data was found not to match its manifest.
	Damaged bool
	// Proven: a drill restored it and passed.
	Proven bool
	Pinned bool
	// Locked: object lock protects its data.
	Locked bool
	// ShrinkConfirmed: somebody has said that it is right that it holds less than those before.
	ShrinkConfirmed bool
}

// Verdict is what becomes of one snapshot.
type Verdict struct {
	Snapshot
	// Reasons to keep it, as "last 3 of 7" or "pinned". Empty: it is to be deleted.
	Reasons []string
}

// Plan is what retention would do now.
type Plan struct {
	// Verdicts are in the order of the snapshots given, oldest first.
	Verdicts []Verdict
	// Held is why nothing at all may be deleted, in a sentence; empty when the plan stands.
	Held string
	// Shrunk is the snapshot that must be confirmed before anything is deleted; empty when that is not the reason.
	Shrunk string
}

// Delete lists the ids to delete, oldest first; none while the plan is held.
func (p Plan) Delete() []string { return nil }

// Decide applies a policy. snapshots are in the order of At.
func Decide(now time.Time, zone *time.Location, policy config.Retention, snapshots []Snapshot) Plan {
	return Plan{}
}
