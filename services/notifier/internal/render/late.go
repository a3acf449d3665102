package render

import (
	"fmt"
	"strings"
	"time"

	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
)

// lateAfter is how long a delivery may take before its message says so.
const lateAfter = time.Minute

// late is "fired 14:02, delivered 14:23: Slack throttled", and empty when it comes in time from the receiver that it was for.
func late(in Input, out notice.Notice) string {
	var parts []string
	n := in.Delivery.GetNotification()
	if received := n.GetReceivedAt(); received != nil && in.Now.Sub(received.AsTime()) > lateAfter {
		format := out.Words.Late
		switch out.Status {
		case notice.Resolved, notice.Partial:
			format = out.Words.LateEnded
		case notice.Event:
			format = out.Words.LateEvent
		}
		from, to := moments(received.AsTime(), in.Now, out.Zone)
		parts = append(parts, fmt.Sprintf(format, from, to))
	}
	if why := reasons(in, out.Words); why != "" && (len(parts) > 0 || len(in.Delivery.GetHandedFrom()) > 0) {
		parts = append(parts, why)
	}
	return line(strings.Join(parts, out.Words.Colon), maxNote)
}

// reasons of a delivery's lateness: whom it replaces, who held it, and what is wrong with the chat.
func reasons(in Input, w notice.Words) string {
	d := in.Delivery
	var why []string
	if from := d.GetHandedFrom(); len(from) > 0 {
		names := strings.Join(from, ", ")
		if d.GetHandedReason() != "" {
			why = append(why, fmt.Sprintf(w.InsteadWhy, names, d.GetHandedReason()))
		} else {
			why = append(why, fmt.Sprintf(w.Instead, names))
		}
	}
	for _, r := range []string{d.GetHeldFor(), in.Trouble} {
		if r != "" {
			why = append(why, r)
		}
	}
	return strings.Join(why, w.And)
}

// moments are two times of day, with their dates when these differ. Their zone is said in the footer.
func moments(from, to time.Time, zone *time.Location) (first, second string) {
	from, to = from.In(zone), to.In(zone)
	layout := "15:04"
	if from.Format(time.DateOnly) != to.Format(time.DateOnly) {
		layout = "2006-01-02 15:04"
	}
	return from.Format(layout), to.Format(layout)
}
