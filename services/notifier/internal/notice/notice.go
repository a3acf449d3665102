// Package notice is what people are told: one message to one receiver, before it takes the form of a particular chat.
// All strings are as the alert has them, without control characters; a chat's package escapes them. Only Body is in the
// chat's own markup.
package notice

import (
	"context"
	"errors"
	"time"
)

// Status of a notice as a whole.
type Status string

const (
	// Firing means that at least one alert fires.
	Firing Status = "firing"
	// Resolved means that all alerts have ended.
	Resolved Status = "resolved"
	// Partial means that those that came have ended, but Alertmanager left some out, and nothing is known of them.
	Partial Status = "partial"
	// Event is something that happened, and neither fires nor ends.
	Event Status = "event"
)

// Notice is one message.
type Notice struct {
	Status   Status
	Title    string
	Severity string
	// Body is a person's own template's text in the chat's markup, with everything that was inserted escaped. When it is not empty it
	// stands instead of Items.
	Body  string
	Items []Item
	// More alerts than Items, which are known but not worth the room.
	More int
	// StillFires is how many alerts of the group fire on that are not of this notice. The message that it changes stands for them too.
	StillFires int
	// Truncated alerts that Alertmanager left out by its max_alerts.
	Truncated int64
	// Digest says that the items are groups of alerts, one line each, which could not be told when they came.
	Digest bool
	// Mentions are who is mentioned, as the route's mentions name them. Empty when nothing in it begins to fire.
	Mentions []string
	// Late says why it comes late: "fired 14:02, delivered 14:23: Slack throttled". Empty when it does not.
	Late string
	// Footer says where it comes from.
	Footer string
	// Silence is what a silence of this group would match; nil when there is nothing to silence.
	Silence *Silence
	// Quiet says that people were told in another message: the one of the group is only brought up to date, and nothing is posted.
	Quiet bool
	// Critical messages may use what a budget reserves.
	Critical bool
	Words    Words
	// Zone of all times.
	Zone *time.Location
}

// Silence of a group of alerts.
type Silence struct {
	// Matchers are labels with the values that all alerts of the group share.
	Matchers map[string]string
	// Comment is the message's title.
	Comment string
	// Links are signed addresses of the page that creates it, by how long it lasts; empty without notifier.interactions.
	Links []Link
	// Buttons says that somebody listens to a chat's own buttons.
	Buttons bool
}

// Link is a page.
type Link struct {
	// Label is what stands on it: "Silence 1h".
	Label string
	URL   string
}

// Item is one alert, or in a digest a group of alerts.
type Item struct {
	Firing      bool
	Name        string
	Severity    string
	Summary     string
	Description string
	// Labels without the alert's name, in order.
	Labels []Label
	Starts time.Time
	// Ends is zero while the alert fires.
	Ends time.Time
	// Runbook is an http or https address in escaped form; empty when there is none.
	Runbook string
	// RunbookDead says what is wrong with the runbook's link ("404"); empty when it is good or was not asked for.
	RunbookDead string
	// HasRunbook says that there is a page even if it has no address, as one in a folder.
	HasRunbook bool
	// Steps are the first of the runbook's mitigation. They are trusted text of the team's own pages.
	Steps []Step
	// Note is what else must be said of it: "flapped 6 times in 10 min", or why it comes late.
	Note string
	// Count of alerts, in a digest.
	Count int
	// Told says that the alert was told before in this very state, so that what is new can be told apart where a message is edited.
	Told bool
}

// Step is a paragraph of a runbook, or a command.
type Step struct {
	Text string
	// Code is to be copied as it is.
	Code bool
}

// Label of an alert.
type Label struct{ Name, Value string }

// Stamp writes a moment in the notice's zone: "2026-11-21 12:00:00 CST".
func (n Notice) Stamp(t time.Time) string { return t.In(n.zone()).Format("2006-01-02 15:04:05 MST") }

func (n Notice) zone() *time.Location {
	if n.Zone == nil {
		return time.UTC
	}
	return n.Zone
}

// Ref is where a chat keeps the message of a group, so that it can be edited. The zero one: nowhere.
type Ref struct {
	Channel, ID string
	Posted      time.Time
	// Thread is how many messages stand below it; -1 when one is missing there of which the message above rang nobody: it was
	// refused, or failed after a change of the message.
	Thread int
	// Resumed says that what is sent now has been begun: the message may have been posted by an earlier attempt at the very same.
	Resumed bool
}

// Call is a kind of request to a chat.
type Call string

// The calls that a chat counts by themselves.
const (
	Post   Call = "post"
	Update Call = "update"
)

// ErrThrottled is in a chat's error that says that it was sent too much, in contrast to one that only a person can mend.
var ErrThrottled = errors.New("throttled")

// Take waits until a request of this kind may be sent, and counts it. An error means that it must not be sent now.
type Take func(ctx context.Context, call Call) error
