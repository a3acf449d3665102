package ingest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Generic takes alerts from scripts: one JSON object or a list of them, as {"name": "BackupFailed", "target": "db1", "severity":
// "critical", "summary": "..."}. Nothing but name is needed. The keys are
//
//	name         the alert's name, the label alertname
//	status       "firing" (also when absent), "resolved", or "event" for what happened and neither fires nor ends
//	severity, target                    labels of the same name
//	summary, description, runbook_url   annotations of the same name
//	labels, annotations                 further ones, objects of texts
//	group        alerts of one group share a message where the chat can; the name when absent
//	starts_at    RFC 3339; the time of receipt when absent, but for resolved: that ends whichever one fires
//	ends_at      RFC 3339, of a resolved one; the time of receipt when absent
//	generator_url  where the alert comes from
//	id           makes a retry harmless, for four minutes: the same alert with the same id is stored once
//
// A header Idempotency-Key does the same as id for the request as a whole; so does starts_at for an event that has it. A key that is
// unknown is an error, as one that is misspelt would be lost in silence. A list is taken whole or refused whole.
//
// It answers 200 with {"accepted": alerts, "ids": [...]}, the ids being those of the notifications that were stored, and otherwise the
// codes of Webhook with {"error": "..."}.
func (h *Handlers) Generic() http.Handler {
	return h.endpoint("generic", func(r *http.Request, data []byte) ([]*note, error) {
		alerts, err := parseGeneric(data)
		return assemble(alerts, r.Header.Get("Idempotency-Key"), h.o.Now()), err
	}, answerJSON)
}

// generic is an alert as a script posts it.
type generic struct {
	name, status, severity, target, summary, description, runbookURL, group, generatorURL, id string

	labels, annotations map[string]string
	startsAt, endsAt    time.Time
}

// parseGeneric reads an object or a list. An error names the alert's place in the list and the key.
func parseGeneric(data []byte) ([]generic, error) {
	var list []json.RawMessage
	single := !bytes.HasPrefix(bytes.TrimLeft(data, " \t\r\n"), []byte("["))
	if single {
		list = []json.RawMessage{data}
	} else if err := json.Unmarshal(data, &list); err != nil {
		return nil, fmt.Errorf("reading JSON: %w", err)
	}
	if len(list) == 0 {
		return nil, errors.New("there are no alerts in it")
	}
	out := make([]generic, 0, len(list))
	for i, raw := range list {
		place := fmt.Sprintf("[%d].", i)
		if single {
			place = ""
		}
		g, err := parseOne(place, raw)
		if err != nil {
			return nil, err
		}
		out = append(out, g)
	}
	return out, nil
}

func parseOne(place string, raw []byte) (generic, error) {
	var g generic
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(raw, &fields); err != nil {
		if wrong, is := errors.AsType[*json.UnmarshalTypeError](err); is {
			return g, fmt.Errorf("%salert must be an object, not a %s", place, wrong.Value)
		}
		return g, fmt.Errorf("reading JSON: %w", err)
	}
	takers := map[string]func(json.RawMessage) error{
		"name": text(&g.name), "status": text(&g.status), "severity": text(&g.severity), "target": text(&g.target),
		"summary": text(&g.summary), "description": text(&g.description), "runbook_url": text(&g.runbookURL),
		"labels": textObject(&g.labels), "annotations": textObject(&g.annotations), "group": text(&g.group),
		"starts_at": instant(&g.startsAt), "ends_at": instant(&g.endsAt), "generator_url": text(&g.generatorURL), "id": text(&g.id),
	}
	for _, key := range slices.Sorted(maps.Keys(fields)) {
		take, known := takers[key]
		if !known {
			return g, fmt.Errorf("%s%s: there is no such key; there are %s", place, cut(key),
				strings.Join(slices.Sorted(maps.Keys(takers)), ", "))
		}
		if err := take(fields[key]); err != nil {
			return g, fmt.Errorf("%s%s: %w", place, key, err)
		}
	}
	if err := g.check(); err != nil {
		return g, fmt.Errorf("%s%w", place, err)
	}
	return g, nil
}

func text(into *string) func(json.RawMessage) error {
	return func(raw json.RawMessage) error {
		if err := json.Unmarshal(raw, into); err != nil {
			return errors.New("must be a text")
		}
		return nil
	}
}

func textObject(into *map[string]string) func(json.RawMessage) error {
	return func(raw json.RawMessage) error {
		if err := json.Unmarshal(raw, into); err != nil {
			return errors.New("must be an object of texts")
		}
		return nil
	}
}

func instant(into *time.Time) func(json.RawMessage) error {
	return func(raw json.RawMessage) error {
		if err := json.Unmarshal(raw, into); err != nil {
			return errors.New("must be a time such as \"2026-11-21T04:00:00Z\"")
		}
		return inRange(*into)
	}
}

// check fills in what follows from the rest: the status, the labels and the annotations.
func (g *generic) check() error {
	switch g.status {
	case "":
		g.status = statusFiring
	case statusFiring, statusResolved, statusEvent:
	default:
		return fmt.Errorf("status: %q is not firing, resolved or event", cut(g.status))
	}
	if !g.endsAt.IsZero() && g.status != statusResolved {
		return errors.New("ends_at: only what is resolved has ended")
	}
	if !g.endsAt.IsZero() && g.endsAt.Before(g.startsAt) {
		return errors.New("ends_at: is before starts_at")
	}
	var err error
	if g.labels, err = with("labels", g.labels, map[string]string{"alertname": g.name, "severity": g.severity, "target": g.target}); err != nil {
		return err
	}
	if g.name = g.labels["alertname"]; g.name == "" {
		return errors.New("name: is missing")
	}
	g.annotations, err = with("annotations", g.annotations, map[string]string{
		"summary": g.summary, "description": g.description, "runbook_url": g.runbookURL,
	})
	if g.group == "" {
		g.group = g.name
	}
	return err
}

// with puts values that are not empty into a map, which may say the same but nothing else.
func with(where string, m, more map[string]string) (map[string]string, error) {
	if m == nil {
		m = map[string]string{}
	}
	for _, k := range slices.Sorted(maps.Keys(more)) {
		v := more[k]
		if v == "" {
			continue
		}
		if old, there := m[k]; there && old != v {
			return nil, fmt.Errorf("%s: %s is said twice, and not alike", where, k)
		}
		m[k] = v
	}
	return m, nil
}

// assemble makes a note of each group, in the order in which the groups come first; an alert with an id has one of its own.
func assemble(alerts []generic, key string, now time.Time) []*note {
	type place struct{ group, id string }
	var order []place
	groups := map[place][]generic{}
	for _, g := range alerts {
		p := place{g.group, g.id}
		if _, there := groups[p]; !there {
			order = append(order, p)
		}
		groups[p] = append(groups[p], g)
	}
	out := make([]*note, 0, len(order))
	for _, p := range order {
		out = append(out, groupNote(groups[p], key, now))
	}
	return out
}

// groupNote is what one group's alerts become. Its id depends on what was posted only, if that says which one it is.
func groupNote(alerts []generic, key string, now time.Time) *note {
	n := &note{origin: "webhook", groupKey: alerts[0].group, status: groupStatus(alerts)}
	known := true
	said := make([]string, 0, len(alerts))
	for _, g := range alerts {
		// An event happens once; what fires may end and fire on with the same startsAt.
		known = known && (key != "" || g.id != "" || g.status == statusEvent && !g.startsAt.IsZero())
		said = append(said, fmt.Sprintf("%q %q %q %q %q %d %d %q",
			g.id, g.status, pairs(g.labels), pairs(g.annotations), g.group, g.startsAt.UnixNano(), g.endsAt.UnixNano(), g.generatorURL))
		n.alerts = append(n.alerts, g.item(now))
	}
	n.sort()
	shared := common(alerts, func(g generic) map[string]string { return g.labels })
	n.commonLabels = textsOf(shared)
	n.commonAnnotations = textsOf(common(alerts, func(g generic) map[string]string { return g.annotations }))
	if name, same := shared["alertname"]; same {
		n.groupLabels = textsOf(map[string]string{"alertname": name})
	}
	if !known {
		n.id = newID("wh-")
		return n
	}
	slices.Sort(said)
	n.id = hashed("wh-", []byte(strconv.Quote(key)+strings.Join(said, "\n")))
	return n
}

// groupStatus is firing if any of them fires, as Alertmanager has it.
func groupStatus(alerts []generic) string {
	for _, status := range []string{statusFiring, statusEvent} {
		if slices.ContainsFunc(alerts, func(g generic) bool { return g.status == status }) {
			return status
		}
	}
	return statusResolved
}

func (g *generic) item(now time.Time) item {
	a := item{
		status: g.status, labels: textsOf(g.labels), annotations: textsOf(g.annotations), startsAt: g.startsAt, endsAt: g.endsAt,
		generatorURL: g.generatorURL, fingerprint: fingerprint(g.labels),
	}
	if a.startsAt.IsZero() && g.status != statusResolved {
		a.startsAt = now
	}
	if a.endsAt.IsZero() && g.status == statusResolved {
		a.endsAt = now
	}
	return a
}

// pairs are a map's keys and values in order.
func pairs(m map[string]string) []string {
	out := make([]string, 0, 2*len(m))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, k, m[k])
	}
	return out
}

// common are the pairs that all alerts have.
func common(alerts []generic, of func(generic) map[string]string) map[string]string {
	out := maps.Clone(of(alerts[0]))
	for _, a := range alerts[1:] {
		maps.DeleteFunc(out, func(k, v string) bool {
			other, there := of(a)[k]
			return !there || other != v
		})
	}
	return out
}

func answerJSON(w http.ResponseWriter, alerts int, ids []string, no *refusal) {
	var body any = struct {
		Accepted int      `json:"accepted"`
		IDs      []string `json:"ids"`
	}{alerts, ids}
	code := http.StatusOK
	if no != nil {
		code = no.code
		body = struct {
			Error string `json:"error"`
		}{no.err.Error()}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body) // the client has gone; there is nobody to tell
}
