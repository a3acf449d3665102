// Package notice is what people are told: one message to one receiver, before it takes the form of a particular chat.
// All strings are as the alert has them, without control characters; a chat's package escapes them.
package notice

import "time"

// Status of a notice as a whole.
type Status string

const (
	// Firing means that at least one alert fires.
	Firing Status = "firing"
	// Resolved means that all alerts have ended.
	Resolved Status = "resolved"
	// Partial means that those that came have ended, but Alertmanager left some out, and nothing is known of them.
	Partial Status = "partial"
)

// Notice is one message.
type Notice struct {
	Status   Status
	Title    string
	Severity string
	Items    []Item
	// More alerts than Items, which are known but not worth the room.
	More int
	// Truncated alerts that Alertmanager left out by its max_alerts.
	Truncated int64
	// Footer says where it comes from.
	Footer string
}

// Item is one alert.
type Item struct {
	Firing      bool
	Name        string
	Summary     string
	Description string
	// Labels without the alert's name, in order.
	Labels []Label
	Starts time.Time
	// Ends is zero while the alert fires.
	Ends time.Time
	// Runbook is an http or https address in escaped form; empty when there is none.
	Runbook string
}

// Label of an alert.
type Label struct{ Name, Value string }
