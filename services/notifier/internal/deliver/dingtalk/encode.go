package dingtalk

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
)

// maxBytes of a whole message (open.dingtalk.com, custom robots).
const maxBytes = 20_000

type payload struct {
	MsgType  string   `json:"msgtype"`
	Markdown markdown `json:"markdown"`
}

type markdown struct {
	Title string `json:"title"`
	Text  string `json:"text"`
}

// Encode makes a markdown message of at most so many bytes, whatever the alerts hold: texts are cut first, then alerts
// are left out and counted.
func Encode(n notice.Notice, most int) ([]byte, error) {
	most = min(most, maxBytes)
	for text := most * 9 / 10; ; text = text * 3 / 4 {
		p := payload{MsgType: "markdown", Markdown: markdown{
			Title: safe(n.Title, 200), Text: compose(n, text),
		}}
		var b bytes.Buffer
		enc := json.NewEncoder(&b)
		enc.SetEscapeHTML(false)
		if err := enc.Encode(p); err != nil {
			return nil, fmt.Errorf("encoding the message: %w", err)
		}
		body := bytes.TrimSpace(b.Bytes())
		// Quotes and newlines grow in JSON, so the first try may be too long.
		if len(body) <= most || text < 100 {
			return body, nil
		}
	}
}

// compose writes the text in about so many bytes.
func compose(n notice.Notice, most int) string {
	const (
		frame   = 1200 // title, counts and footer
		minItem = 400
	)
	room := max(most-frame, minItem)
	items, more := n.Items, n.More
	if fits := max(room/minItem, 1); len(items) > fits {
		more += len(items) - fits
		items = items[:fits]
	}
	parts := []string{"### " + icon(n.Status) + " " + safe(n.Title, 300)}
	for _, it := range items {
		parts = append(parts, describe(it, room/len(items))...)
	}
	if more > 0 {
		parts = append(parts, fmt.Sprintf("… and **%d more**.", more))
	}
	if n.Truncated > 0 {
		parts = append(parts, fmt.Sprintf("⚠️ Alertmanager left out **%d more** (max_alerts); their state is unknown.", n.Truncated))
	}
	if n.Footer != "" {
		parts = append(parts, "---", safe(n.Footer, 400))
	}
	return strings.Join(parts, "\n\n")
}

func icon(s notice.Status) string {
	switch s {
	case notice.Firing:
		return "🔴"
	case notice.Resolved:
		return "✅"
	}
	return "🟡"
}

// describe is one alert in about so many bytes.
func describe(it notice.Item, most int) []string {
	state := icon(notice.Resolved)
	if it.Firing {
		state = icon(notice.Firing)
	}
	link := runbook(it, most/2)
	most = max(most-len(link), 100)
	parts := []string{"**" + state + " " + safe(it.Summary, most/3) + "**"}
	if it.Description != "" {
		parts = append(parts, quote(it.Description, most/3))
	}
	var facts []string
	if !it.Starts.IsZero() {
		facts = append(facts, "since "+stamp(it.Starts))
	}
	if !it.Ends.IsZero() {
		facts = append(facts, "ended "+stamp(it.Ends))
	}
	for _, l := range it.Labels {
		facts = append(facts, safe(l.Name, 60)+"="+safe(l.Value, 200))
	}
	if len(facts) > 0 {
		parts = append(parts, cut(strings.Join(facts, " · "), most/3))
	}
	return append(parts, link)
}

// runbook is the line below every alert: the link, or in plain sight that there is none.
func runbook(it notice.Item, most int) string {
	switch {
	case it.Runbook == "":
		return "⚠️ **No runbook.** This alert has no runbook_url."
	case len(it.Runbook) > most:
		return "⚠️ **No runbook link.** The alert's runbook_url is too long for a message."
	}
	// The characters that could end the link's target.
	link := strings.NewReplacer("(", "%28", ")", "%29", "<", "%3C", ">", "%3E", " ", "%20", `\`, "%5C").Replace(it.Runbook)
	return "📕 **Runbook:** [" + safe(it.Name+" runbook", 100) + "](" + link + ")"
}

// quote is a text of several lines as a block quotation.
func quote(s string, most int) string {
	var lines []string
	for l := range strings.Lines(cut(s, most)) {
		if l = escape(line(l)); l != "" {
			lines = append(lines, "> "+l)
		}
	}
	// Two spaces before the newline keep the lines apart.
	return cut(strings.Join(lines, "  \n"), most)
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }

func line(s string) string { return strings.Join(strings.Fields(s), " ") }

var (
	edgeUnderscore = regexp.MustCompile(`(^|[^\pL\pN_])_+|_+($|[^\pL\pN_])`)
	numbered       = regexp.MustCompile(`^(\d+)([.)])(\s|$)`)
)

// safe is one harmless line of at most so many bytes. It is cut before, too: the work shall not grow with what an alert
// holds.
func safe(s string, most int) string { return cut(escape(line(cut(s, most))), most) }

// escape makes one line of text harmless in any markdown renderer: DingTalk does not say which backslash escapes it
// knows, so what has a meaning is replaced by its full-width form, which every reader of Chinese knows.
func escape(s string) string {
	s = strings.NewReplacer(
		`\`, "＼", "*", "＊", "`", "｀", "[", "［", "]", "］", "<", "＜", ">", "＞", "@", "＠", "&", "＆", "~", "～",
		"|", "｜", "!", "！",
	).Replace(s)
	// An underscore within a word is text in every dialect, and common in names; at a word's edge it is emphasis.
	s = edgeUnderscore.ReplaceAllStringFunc(s, func(m string) string {
		return strings.ReplaceAll(m, "_", "＿")
	})
	// A heading, list or rule begins a line.
	if s == "" {
		return s
	}
	if wide, ok := map[byte]string{'#': "＃", '-': "－", '+': "＋", '=': "＝"}[s[0]]; ok {
		return wide + s[1:]
	}
	return numbered.ReplaceAllString(s, "${1}．$3")
}

// cut shortens a text to so many bytes, at a character.
func cut(s string, most int) string {
	const ellipsis = "…"
	if len(s) <= most {
		return s
	}
	n := max(most-len(ellipsis), 0)
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + ellipsis
}
