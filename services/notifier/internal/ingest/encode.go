package ingest

import (
	"strconv"
	"time"
)

// note is a lifeboatv1.Notification on its way from a request's body into messages, with what is written as JSON already.
//
// It is not made into one, and that one encoded by protojson, because these two steps were the largest costs of a webhook. A test
// holds what is written here to the contract, for every field that the two messages have.
type note struct {
	id, origin, groupKey, receiver, externalURL, notificationReason, status string

	receivedAt                                                time.Time
	groupLabels, commonLabels, commonAnnotations, routeLabels texts
	truncatedAlerts                                           int64
	part, parts                                               int
	// size of the body that the alerts came in; 0 when that is not known.
	size   int
	alerts []item
}

// item is an Alert. Zero times are absent.
type item struct {
	status, generatorURL, fingerprint string
	labels, annotations               texts
	startsAt, endsAt                  time.Time
}

// object writes the members of a JSON object; what is empty is left out, as in ProtoJSON.
type object struct {
	b     []byte
	empty bool
}

func begin(b []byte) object { return object{b: append(b, '{'), empty: true} }

func (o *object) key(name string) {
	if !o.empty {
		o.b = append(o.b, ',')
	}
	o.empty = false
	o.b = append(o.b, '"')
	o.b = append(o.b, name...)
	o.b = append(o.b, '"', ':')
}

func (o *object) text(name, value string) {
	if value != "" {
		o.key(name)
		o.b = quote(o.b, value)
	}
}

func (o *object) texts(name string, value texts) {
	if len(value) > 0 && value[0] != 'n' { // null is no object
		o.key(name)
		o.b = append(o.b, value...)
	}
}

func (o *object) number(name string, value int) {
	if value != 0 {
		o.key(name)
		o.b = strconv.AppendInt(o.b, int64(value), 10)
	}
}

// long writes an int64, which ProtoJSON quotes because JavaScript has none.
func (o *object) long(name string, value int64) {
	if value != 0 {
		o.key(name)
		o.b = append(o.b, '"')
		o.b = strconv.AppendInt(o.b, value, 10)
		o.b = append(o.b, '"')
	}
}

func (o *object) time(name string, value time.Time) {
	if !value.IsZero() {
		o.key(name)
		o.b = append(o.b, '"')
		o.b = value.UTC().AppendFormat(o.b, time.RFC3339Nano)
		o.b = append(o.b, '"')
	}
}

func (o *object) end() []byte { return append(o.b, '}') }

func (a *item) append(b []byte) []byte {
	o := begin(b)
	o.text("status", a.status)
	o.texts("labels", a.labels)
	o.texts("annotations", a.annotations)
	o.time("startsAt", a.startsAt)
	o.time("endsAt", a.endsAt)
	o.text("generatorUrl", a.generatorURL)
	o.text("fingerprint", a.fingerprint)
	return o.end()
}

// append takes the alerts as they were written, with commas between them.
func (n *note) append(b, alerts []byte) []byte {
	b = n.open(b)
	b = append(b, alerts...)
	return append(b, ']', '}')
}

// open writes what stands before the alerts.
func (n *note) open(b []byte) []byte {
	o := begin(b)
	o.text("id", n.id)
	o.time("receivedAt", n.receivedAt)
	o.text("origin", n.origin)
	o.text("groupKey", n.groupKey)
	o.text("receiver", n.receiver)
	o.texts("groupLabels", n.groupLabels)
	o.texts("commonLabels", n.commonLabels)
	o.texts("commonAnnotations", n.commonAnnotations)
	o.text("externalUrl", n.externalURL)
	o.long("truncatedAlerts", n.truncatedAlerts)
	o.number("part", n.part)
	o.number("parts", n.parts)
	o.texts("routeLabels", n.routeLabels)
	o.text("notificationReason", n.notificationReason)
	o.text("status", n.status)
	o.key("alerts")
	return append(o.b, '[')
}
