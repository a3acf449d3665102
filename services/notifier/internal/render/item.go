package render

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
)

// What a notice holds of a text, in bytes. Chats cut further; these keep what a 10 MB webhook can make us copy small.
const (
	maxTitle       = 400
	maxName        = 200
	maxSummary     = 1000
	maxDescription = 8000
	maxLabels      = 64
	maxLabel       = 1000
	maxFooter      = 600
	maxNote        = 400
)

func isFiring(a *lifeboatv1.Alert) bool { return a.GetStatus() == "firing" }

func isEvent(a *lifeboatv1.Alert) bool { return a.GetStatus() == "event" }

func firing(alerts []*lifeboatv1.Alert) int {
	n := 0
	for _, a := range alerts {
		if isFiring(a) {
			n++
		}
	}
	return n
}

// severities are the names that rules commonly use, from the mildest.
var severities = [...]string{"none", "info", "notice", "warning", "error", "major", "high", "critical", "page", "emergency"} //nolint:gochecknoglobals // a constant

// severityRank is 0 for what has none of the names.
func severityRank(s string) int {
	if s == "" {
		return 0
	}
	for i, known := range severities {
		if len(s) == len(known) && strings.EqualFold(s, known) {
			return i + 1
		}
	}
	return 0
}

func rank(a *lifeboatv1.Alert) int {
	r := severityRank(a.GetLabels()["severity"])
	if isFiring(a) {
		r += 100
	}
	return r
}

// sorted are the alerts with those that fire first, the worst of them at the top, then the oldest.
func sorted(alerts []*lifeboatv1.Alert) []*lifeboatv1.Alert {
	type keyed struct {
		*lifeboatv1.Alert
		rank  int
		start int64
		index int
	}
	keys := make([]keyed, len(alerts))
	for i, a := range alerts {
		keys[i] = keyed{a, rank(a), a.GetStartsAt().AsTime().UnixNano(), i}
	}
	slices.SortFunc(keys, func(a, b keyed) int {
		if a.rank != b.rank {
			return b.rank - a.rank
		}
		if a.start != b.start {
			return cmp.Compare(a.start, b.start)
		}
		return cmp.Or(cmp.Compare(a.GetFingerprint(), b.GetFingerprint()), a.index-b.index)
	})
	out := make([]*lifeboatv1.Alert, len(alerts))
	for i, k := range keys {
		out[i] = k.Alert
	}
	return out
}

// worst is the severity of the first alert that has one, of sorted alerts.
func worst(alerts []*lifeboatv1.Alert) string {
	for _, a := range alerts {
		if s := a.GetLabels()["severity"]; s != "" {
			return s
		}
	}
	return ""
}

// items are the first alerts, and how many more there are. The steps of a runbook stand below the first alert that fires and has them:
// fifteen times the same command hides what differs.
func items(in Input, alerts []*lifeboatv1.Alert) (out []notice.Item, more int) {
	w := notice.In(in.Receiver.Language)
	shown := map[string]bool{}
	for _, a := range alerts[:min(len(alerts), maxItems)] {
		it := item(a, w)
		it.Note = line(in.Notes[a.GetFingerprint()], maxNote)
		it.Told = in.Told[a.GetFingerprint()]
		if in.Page != nil {
			page := in.Page(a)
			it.Runbook, it.RunbookDead, it.HasRunbook = page.Link, page.Dead, page.Found
			if key := cmp.Or(page.Link, it.Name); it.Firing && !shown[key] && len(page.Steps) > 0 {
				it.Steps, shown[key] = page.Steps, true
			}
		}
		out = append(out, it)
	}
	return out, len(alerts) - len(out)
}

func item(a *lifeboatv1.Alert, w notice.Words) notice.Item {
	name := a.GetLabels()["alertname"]
	if isEvent(a) {
		name = cmp.Or(a.GetLabels()["event"], name)
	}
	it := notice.Item{
		Firing: isFiring(a), Name: line(name, maxName), Severity: line(a.GetLabels()["severity"], maxName),
		Summary:     line(cmp.Or(a.GetAnnotations()["summary"], a.GetAnnotations()["message"], name, w.Nameless), maxSummary),
		Description: strings.TrimSpace(clean(a.GetAnnotations()["description"], maxDescription)),
		Labels:      labels(a.GetLabels()),
	}
	if a.GetStartsAt() != nil {
		it.Starts = a.GetStartsAt().AsTime()
	}
	if !it.Firing && a.GetEndsAt() != nil {
		it.Ends = a.GetEndsAt().AsTime()
	}
	return it
}

// labels without the alert's name, in order.
func labels(all map[string]string) []notice.Label {
	if len(all) == 0 {
		return nil
	}
	out := make([]notice.Label, 0, min(len(all), maxLabels))
	for _, k := range slices.Sorted(maps.Keys(all)) {
		if k != "alertname" && len(out) < maxLabels {
			out = append(out, notice.Label{Name: line(k, maxName), Value: line(all[k], maxLabel)})
		}
	}
	return out
}

// clean drops control characters and those that turn the direction of the text or cannot be seen, with which a label could make a
// line read as something else, and cuts to so many bytes.
func clean(s string, most int) string {
	s = cut(s, most)
	if harmless(s) {
		return s
	}
	return cut(strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || !hidden(r) {
			return r
		}
		return -1
	}, s), most)
}

// harmless is the quick answer for nearly all texts.
func harmless(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' && c != '\n' && c != '\t' || c >= 0x7f {
			return false
		}
	}
	return true
}

func hidden(r rune) bool {
	switch {
	case r < 0x7f:
		return r < ' '
	case r == '\u2028', r == '\u2029', r == '\ufeff', r == '\u200b', r >= 0xE0000 && r <= 0xE007F:
		return true
	}
	return unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r)
}

// line is clean on one line.
func line(s string, most int) string {
	s = clean(s, most)
	if !strings.ContainsAny(s, "\n\t") && !strings.Contains(s, "  ") {
		return strings.TrimSpace(s)
	}
	return strings.Join(strings.Fields(s), " ")
}

const ellipsis = "…"

// cut shortens a text to so many bytes, at a character.
func cut(s string, most int) string {
	if len(s) <= most {
		return s
	}
	n := max(most-len(ellipsis), 0)
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + ellipsis
}
