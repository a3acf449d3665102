package emit

import (
	"context"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// record puts the ticks that a state calls missed into the audit log, and notes in the state that they are there. A
// scheduler that died between the two writes, or one that lost the race to it, finds the note missing and does it; the
// event's id makes the second time the same event.
func (e *Emitter) record(ctx context.Context, en *entry) error {
	s := en.unrecorded
	if err := e.Bus.Emit(ctx, missedEvent(en, s)); err != nil {
		return fmt.Errorf("recording missed ticks: %w", err)
	}
	noted, _ := proto.Clone(s).(*lifeboatv1.ScheduleState)
	noted.Recorded = true
	seq, err := e.Bus.PutState(ctx, en.put(noted))
	if err != nil {
		// After a conflict the state is read again: another replica has noted it, or gone on.
		return fmt.Errorf("noting that missed ticks are recorded: %w", err)
	}
	en.seq, en.unrecorded = seq, nil
	return nil
}

// missedEvent tells what a state says of missed ticks. Its id follows from the state, which is one decision.
func missedEvent(en *entry, s *lifeboatv1.ScheduleState) *lifeboatv1.Event {
	ev := &lifeboatv1.Event{
		Id: fmt.Sprintf("tick.missed.%s.%s.%d.%d", en.key.target, en.key.schedule, s.GetTick().AsTime().Unix(),
			s.GetDecidedAt().AsTime().UnixNano()),
		Noun: "tick", Verb: "missed", Target: en.key.target, RequestedBy: "scheduler",
		Attributes: map[string]string{
			"work": string(en.spec.Work), "schedule": en.key.schedule, "tick": stamp(s.GetTick().AsTime()),
		},
	}
	var texts []string
	for _, m := range s.GetMissed() {
		a, reason := ev.GetAttributes(), m.GetReason()
		from, to := m.GetFrom().AsTime(), m.GetTo().AsTime()
		if m.GetTo() == nil { // a state of an earlier version
			to = from
		}
		a[reason+"_count"], a[reason+"_from"], a[reason+"_to"] = fmt.Sprint(m.GetCount()), stamp(from), stamp(to)
		if reason == reasonOverlap {
			a["reason"] = reasonOverlap
			if m.GetJobId() != "" {
				a["overlap_job"] = m.GetJobId()
			}
		}
		texts = append(texts, sentence(en.key.schedule, m, from, to))
	}
	ev.Message = strings.Join(texts, "; ")
	return ev
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// sentence says why ticks were not run, for a person.
func sentence(schedule string, m *lifeboatv1.MissedTicks, from, to time.Time) string {
	which := fmt.Sprintf("the tick of %s at %s", schedule, stamp(from))
	if m.GetCount() > 1 {
		which = fmt.Sprintf("%d ticks of %s from %s to %s", m.GetCount(), schedule, stamp(from), stamp(to))
	}
	switch m.GetReason() {
	case reasonDown:
		return which + " passed while no scheduler ran, or were not decided in time"
	case reasonPaused:
		return which + " passed while the schedule was paused"
	case reasonBlackout:
		return which + " passed in a blackout"
	case reasonRemoved:
		return which + " waited when the schedule was taken out of the configuration"
	case reasonOverlap:
		if m.GetJobId() != "" {
			return which + " skipped: a job waits or runs, " + m.GetJobId()
		}
		return which + " skipped: a job waits or runs"
	}
	return which + " not run: " + m.GetReason()
}
