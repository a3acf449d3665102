package ops

import (
	"context"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
)

// summary counts alerts, by how the deliveries that they were in ended.
type summary struct {
	Deliveries int `json:"deliveries"`
	Delivered  int `json:"delivered"`
	// InDigests were told by one of Digests messages.
	InDigests int `json:"in_digests"`
	Digests   int `json:"digests"`
	Folded    int `json:"folded"`
	HandedOn  int `json:"handed_on"`
	Dead      int `json:"dead"`
	// Held flap; they are in none of the numbers above, but in those of the delivery that tells them later.
	Held int `json:"held"`
	// The lag of deliveries that were told, alone or in a digest; absent when there were none.
	LagP50 *float64 `json:"lag_p50_seconds,omitempty"`
	LagP99 *float64 `json:"lag_p99_seconds,omitempty"`
}

func (s *summary) count(d *ended) {
	s.Deliveries++
	s.Held += d.Held
	n := max(d.Alerts-d.Held, 0)
	switch d.Outcome {
	case outcomeDelivered:
		s.Delivered += n
	case outcomeDigest:
		s.InDigests += n
	case outcomeFolded:
		s.Folded += n
	case outcomeHandedOn:
		s.HandedOn += n
	case outcomeDead:
		s.Dead += n
	}
}

func (s *summary) end(lags []float64, digests int) {
	s.Digests = digests
	if len(lags) == 0 {
		return
	}
	slices.Sort(lags)
	p50, p99 := percentile(lags, 0.5), percentile(lags, 0.99)
	s.LagP50, s.LagP99 = &p50, &p99
}

// percentile of sorted numbers, by nearest rank.
func percentile(sorted []float64, p float64) float64 {
	return sorted[max(int(math.Ceil(p*float64(len(sorted)))), 1)-1]
}

func (s *summary) line() string {
	line := counted(int64(s.Delivered), "alert") + " delivered, " + fmt.Sprint(s.InDigests) + " in " + counted(int64(s.Digests), "digest") +
		fmt.Sprintf(", %d folded, %d handed on, %d dead", s.Folded, s.HandedOn, s.Dead)
	if s.Held > 0 {
		line += fmt.Sprintf(", %d put by because they flap", s.Held)
	}
	if s.LagP50 != nil {
		line += fmt.Sprintf("; lag p50 %s, p99 %s", short(*s.LagP50), short(*s.LagP99))
	}
	return line
}

// waiting is what has not ended.
type waiting struct {
	// Unrouted are webhooks that no receiver has been found for yet.
	Unrouted  uint64             `json:"unrouted"`
	Receivers map[string]*queued `json:"receivers"`
}

// queued are the deliveries that one receiver waits for.
type queued struct {
	// Waiting are all but the held ones, Critical those of them that go first.
	Waiting  uint64 `json:"waiting"`
	Critical uint64 `json:"critical"`
	// Held are for later: a time interval mutes them, or their alerts flap.
	Held uint64 `json:"held"`
}

// waiting counts what waits for some receivers; for all of them, and for a receiver, when none is named.
func (f *fleet) waiting(ctx context.Context, receivers []string) (*waiting, error) {
	w := &waiting{Receivers: map[string]*queued{}}
	of := func(name string) *queued {
		if len(receivers) > 0 && !slices.Contains(receivers, name) {
			return &queued{}
		}
		if w.Receivers[name] == nil {
			w.Receivers[name] = &queued{}
		}
		return w.Receivers[name]
	}
	// Not all subjects at once: there is one for each group of alerts that was ever told.
	for _, filter := range []string{bus.SubjectReceived, bus.DeliverySubject(">"), bus.HeldSubject(">")} {
		subjects, err := f.bus.Subjects(ctx, bus.StreamAlerts, filter)
		if err != nil {
			return nil, explain(err)
		}
		for subject, n := range subjects {
			name, isDelivery := strings.CutPrefix(subject, bus.DeliverySubject(""))
			held, isHeld := strings.CutPrefix(subject, bus.HeldSubject(""))
			switch {
			case isHeld:
				of(held).Held += n
			case isDelivery && subject == bus.CriticalSubject(strings.TrimSuffix(name, ".critical")):
				q := of(strings.TrimSuffix(name, ".critical"))
				q.Waiting, q.Critical = q.Waiting+n, q.Critical+n
			case isDelivery:
				of(name).Waiting += n
			case len(receivers) == 0:
				w.Unrouted += n
			}
		}
	}
	return w, nil
}

func (w *waiting) has(receiver string) bool { return w != nil && w.Receivers[receiver] != nil }

func (w *waiting) print(out io.Writer) {
	if w == nil {
		return
	}
	if w.Unrouted == 0 && len(w.Receivers) == 0 {
		fmt.Fprintln(out, "nothing waits")
		return
	}
	if w.Unrouted > 0 {
		fmt.Fprintf(out, "waiting for a route: %d; is a notifier running?\n", w.Unrouted)
	}
	for _, name := range slices.Sorted(maps.Keys(w.Receivers)) {
		q := w.Receivers[name]
		line := fmt.Sprintf("waiting for %s: %d", clean(name), q.Waiting)
		if q.Critical > 0 {
			line += fmt.Sprintf(", %d of them critical", q.Critical)
		}
		if q.Held > 0 {
			line += fmt.Sprintf("; %d held until a time interval ends, or because their alerts flap", q.Held)
		}
		fmt.Fprintln(out, line)
	}
}
