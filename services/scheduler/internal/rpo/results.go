package rpo

import (
	"encoding/json"
	"time"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
)

// result says of which work an event tells the end, and whether that was a good one.
type result struct {
	work int
	good bool
}

// works are the values of the label "work" of the metrics about how work ended. A drill with the escrow identity is another work than
// one with the workers' own: neither makes up for the other. So is the copy in the second bucket.
func works() [worksKept]string {
	return [worksKept]string{"snapshot", "verify", "drill", "prune", "drill-escrow", "copy"}
}

const worksKept = 6

// resultOf is what an event, noun.verb, tells; ok is false when that is no end of a work.
func resultOf(about string) (r result, ok bool) {
	switch about {
	case "snapshot.committed":
		return result{0, true}, true
	case "snapshot.failed":
		return result{0, false}, true
	case "verify.passed":
		return result{1, true}, true
	case "verify.failed":
		return result{1, false}, true
	case "drill.passed":
		return result{2, true}, true
	case "drill.failed":
		return result{2, false}, true
	case "prune.passed":
		return result{3, true}, true
	case "prune.failed", "prune.held": // nothing is deleted until somebody has looked
		return result{3, false}, true
	case "drill.escrow-passed":
		return result{4, true}, true
	case "drill.escrow-failed":
		return result{4, false}, true
	case "copy.passed":
		return result{5, true}, true
	case "copy.failed":
		return result{5, false}, true
	}
	return result{}, false
}

// heard are the subjects of the audit log that the watch follows.
func heard() []string {
	var all []string
	for _, e := range [][2]string{
		{"rpo", "*"},
		{"target", "added"},
		{"snapshot", "committed"},
		{"snapshot", "failed"},
		{"verify", "passed"},
		{"verify", "failed"},
		{"drill", "passed"},
		{"drill", "failed"},
		{"drill", "escrow-passed"},
		{"drill", "escrow-failed"},
		{"prune", "passed"},
		{"prune", "failed"},
		{"prune", "held"},
		{"copy", "passed"},
		{"copy", "failed"},
	} {
		all = append(all, bus.EventSubject(e[0], e[1], "*"))
	}
	return all
}

// ends are when a work last ended well and badly, in Unix seconds by NATS's clock; 0: it did not yet. Seconds of 32 bits reach to 2106.
type ends struct{ good, bad uint32 }

func (e *ends) note(good bool, at time.Time) {
	to := &e.bad
	if good {
		to = &e.good
	}
	*to = max(*to, uint32(max(at.Unix(), 0))) //nolint:gosec // see above
}

// proof is what a drill that passed has shown, with the workers' identity or the escrow one: the moment that the restored data is of, in Unix seconds, and how long the restore took.
type proof struct {
	taken uint32
	rto   float32
}

// proofOf reads it from the event of a drill; ok is false when the drill restored nothing, or does not say.
func proofOf(data []byte) (p proof, ok bool) {
	// As in beganAt, the rest of the event is not decoded: the comparisons may be many.
	var e struct {
		Drill struct {
			StartedAt time.Time     `json:"startedAt"`
			DataAge   *jsonDuration `json:"dataAge"`
			RTO       *jsonDuration `json:"rto"`
			Level     string        `json:"level"`
		} `json:"drill"`
	}
	if err := json.Unmarshal(data, &e); err != nil || e.Drill.Level != "LEVEL_RESTORED" || e.Drill.DataAge == nil || e.Drill.StartedAt.IsZero() {
		return proof{}, false
	}
	taken := e.Drill.StartedAt.Add(-time.Duration(*e.Drill.DataAge)).Unix()
	if e.Drill.RTO != nil {
		p.rto = float32(time.Duration(*e.Drill.RTO).Seconds())
	}
	p.taken = uint32(max(taken, 0)) //nolint:gosec // as in note
	return p, true
}

// jsonDuration is a duration as ProtoJSON writes it, "1.5s".
type jsonDuration time.Duration

// UnmarshalJSON implements json.Unmarshaler.
func (d *jsonDuration) UnmarshalJSON(b []byte) error {
	var text string
	if err := json.Unmarshal(b, &text); err != nil {
		return err
	}
	took, err := time.ParseDuration(text)
	*d = jsonDuration(took)
	return err
}
