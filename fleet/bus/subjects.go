package bus

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
)

// The streams of the design, section 3.
const (
	StreamJobs   = "LIFEBOAT_JOBS"
	StreamEvents = "LIFEBOAT_EVENTS"
	StreamAlerts = "LIFEBOAT_ALERTS"
	StreamDead   = "LIFEBOAT_DEAD"
)

const (
	prefix = "lifeboat."

	// SubjectReceived carries notifications that a webhook took.
	SubjectReceived = "lifeboat.alert.received"
	// SubjectAllEvents is every record of the audit log.
	SubjectAllEvents = "lifeboat.event.>"
)

// JobSubject is where a job for a target is published.
func JobSubject(w config.Work, target string) string {
	return fmt.Sprintf("lifeboat.job.%s.%s", w, target)
}

// AllJobs matches the jobs of one kind of work, for every target.
func AllJobs(w config.Work) string { return JobSubject(w, "*") }

// ParseJobSubject is the inverse of JobSubject.
func ParseJobSubject(subject string) (w config.Work, target string, ok bool) {
	parts := strings.Split(subject, ".")
	if len(parts) != 4 || parts[0] != "lifeboat" || parts[1] != "job" {
		return "", "", false
	}
	return config.Work(parts[2]), parts[3], true
}

// ScheduleSubject holds the newest tick that was decided of a target's schedule, by the schedule's name.
func ScheduleSubject(target, schedule string) string {
	return fmt.Sprintf("lifeboat.state.schedule.%s.%s", target, schedule)
}

// ClaimSubject holds which delivery may commit for a target.
func ClaimSubject(target string, w config.Work) string {
	return fmt.Sprintf("lifeboat.state.claim.%s.%s", target, w)
}

// SlotSubject holds one of the tokens that limit how many jobs of a kind run at once in the fleet.
func SlotSubject(w config.Work, i int) string { return slotPrefix(w) + strconv.Itoa(i) }

func slotPrefix(w config.Work) string { return fmt.Sprintf("lifeboat.state.slot.%s.", w) }

// HistorySubject is where a worker is asked what the bucket knows of a target; "*" stands for all targets.
func HistorySubject(target string) string { return "lifeboat.ask.history." + target }

// EventSubject is where an event is published. An event about no target in particular uses "fleet".
func EventSubject(noun, verb, target string) string {
	if target == "" {
		target = "fleet"
	}
	return fmt.Sprintf("lifeboat.event.%s.%s.%s", noun, verb, target)
}

// DeliverySubject carries what one receiver is to be told.
func DeliverySubject(receiver string) string { return "lifeboat.alert.delivery." + receiver }

// CriticalSubject carries what one receiver is to be told before everything else.
func CriticalSubject(receiver string) string { return DeliverySubject(receiver) + ".critical" }

// HeldSubject keeps what one receiver is to be told later. No consumer takes it.
func HeldSubject(receiver string) string { return "lifeboat.alert.held." + receiver }

// GroupSubject holds what a receiver has been told of a group of alerts, by the group's hash; "*" stands for any.
func GroupSubject(receiver, group string) string {
	return fmt.Sprintf("lifeboat.alert.group.%s.%s", receiver, group)
}

// BudgetSubject holds what a robot or channel was sent lately.
func BudgetSubject(key string) string { return "lifeboat.alert.budget." + key }

// deadSubject is where the dead letter of a subject goes.
func deadSubject(subject string) string {
	return "lifeboat.dead." + strings.TrimPrefix(subject, prefix)
}
