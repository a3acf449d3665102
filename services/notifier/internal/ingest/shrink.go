package ingest

import (
	"maps"
	"slices"
)

// cutValue is what a value is cut to when an alert is too large: enough for any summary.
const cutValue = 4 << 10

// shrink cuts what is said of the group as a whole; every alert says it again.
func (n *note) shrink() {
	for _, s := range []*string{&n.groupKey, &n.receiver, &n.externalURL, &n.notificationReason, &n.status} {
		*s = cut(*s)
	}
	for _, t := range []*texts{&n.groupLabels, &n.commonLabels, &n.commonAnnotations, &n.routeLabels} {
		*t = cutTexts(*t, maxEnvelope/8) // JSON may make a byte six long, but hardly of a label
	}
}

// shrink keeps of a monstrous alert what a person and the route need: better cut than refused for ever.
func (a *item) shrink() {
	a.fingerprint = cut(a.fingerprint)
	a.generatorURL = cut(a.generatorURL)
	a.labels = cutTexts(a.labels, 32<<10)
	a.annotations = cutTexts(a.annotations, 32<<10)
}

// cutTexts leaves alone what fits as it is written.
func cutTexts(t texts, most int) texts {
	if len(t) <= most {
		return t
	}
	return textsOf(cutMap(mapOf(t), most))
}

// cutMap keeps what fits into so many bytes, the keys that matter first. A map that fits is left alone.
func cutMap(m map[string]string, most int) map[string]string {
	total := 0
	for k, v := range m {
		total += len(k) + len(v)
	}
	if total <= most {
		return m
	}
	keys := slices.Sorted(maps.Keys(m))
	first := []string{"alertname", "severity", "target", "service", "runbook_url", "summary", "description"}
	slices.SortStableFunc(keys, func(x, y string) int { return place(first, x) - place(first, y) })
	out := map[string]string{}
	for _, k := range keys {
		v := cut(m[k])
		if most -= len(k) + len(v); most < 0 {
			break
		}
		out[k] = v
	}
	return out
}

func place(order []string, key string) int {
	if i := slices.Index(order, key); i >= 0 {
		return i
	}
	return len(order)
}

// cut shortens a text to cutValue and says so.
func cut(s string) string {
	if len(s) <= cutValue {
		return s
	}
	const mark = "… (cut)"
	end := cutValue - len(mark)
	for end > 0 && s[end]&0xC0 == 0x80 { // inside a character
		end--
	}
	return s[:end] + mark
}
