package slack

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"time"
	"unicode/utf16"

	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
)

// Slack's limits (docs.slack.dev, Block Kit reference), counted in UTF-16 code units of the escaped text, which is never
// less than what Slack counts.
const (
	maxHeader  = 150
	maxSection = 3000
	// budget is what all alerts together may take of the 13,200 that Slack accepts in all blocks.
	budget = 11_000
	// maxLink is the longest runbook address that is worth its room.
	maxLink = 800
)

type payload struct {
	Text        string  `json:"text"`
	Mrkdwn      bool    `json:"mrkdwn"`
	UnfurlLinks bool    `json:"unfurl_links"`
	UnfurlMedia bool    `json:"unfurl_media"`
	Blocks      []block `json:"blocks"`
}

type block struct {
	Type     string `json:"type"`
	Text     *text  `json:"text,omitempty"`
	Elements []text `json:"elements,omitempty"`
}

type text struct {
	Type  string `json:"type"`
	Text  string `json:"text"`
	Emoji *bool  `json:"emoji,omitempty"`
}

// plain holds text that Slack shows as it is: no mention, link or markup can be forged in it.
func plain(s string) *text {
	off := false
	return &text{Type: "plain_text", Text: s, Emoji: &off}
}

// mrkdwn holds our own words.
func mrkdwn(s string) *text { return &text{Type: "mrkdwn", Text: s} }

// Encode makes the message of a notice. It fits into Slack's limits whatever the alerts hold.
func Encode(n notice.Notice) ([]byte, error) {
	title := fit(icon(n.Status)+" "+line(n.Title), maxHeader)
	blocks := []block{{Type: "header", Text: plain(title)}}
	each := min(budget/max(len(n.Items), 1), maxSection)
	for _, it := range n.Items {
		link := runbook(it)
		blocks = append(
			blocks,
			block{Type: "section", Text: plain(fit(describe(it), max(each-units(link), 200)))},
			block{Type: "section", Text: mrkdwn(link)},
		)
	}
	if more := rest(n); more != "" {
		blocks = append(blocks, block{Type: "section", Text: mrkdwn(more)})
	}
	if n.Footer != "" {
		blocks = append(blocks, block{Type: "context", Elements: []text{*plain(fit(n.Footer, 500))}})
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(payload{Text: title, Blocks: blocks}); err != nil {
		return nil, fmt.Errorf("encoding the message: %w", err)
	}
	return bytes.TrimSpace(b.Bytes()), nil
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

// describe is an alert in plain text: summary, description, labels, times.
func describe(it notice.Item) string {
	var b strings.Builder
	state := icon(notice.Resolved)
	if it.Firing {
		state = icon(notice.Firing)
	}
	b.WriteString(state + " " + line(it.Summary))
	// Times and labels come before the description, because what is too long is cut at the end.
	if !it.Starts.IsZero() {
		b.WriteString("\nsince " + stamp(it.Starts))
	}
	if !it.Ends.IsZero() {
		b.WriteString(", ended " + stamp(it.Ends))
	}
	labels := make([]string, 0, len(it.Labels))
	for _, l := range it.Labels {
		labels = append(labels, cut(line(l.Name)+"="+line(l.Value), 200))
	}
	if len(labels) > 0 {
		b.WriteString("\n" + cut(strings.Join(labels, " "), 800))
	}
	if it.Description != "" {
		b.WriteString("\n" + it.Description)
	}
	return b.String()
}

// runbook is the line below every alert: the link, or in plain sight that there is none.
func runbook(it notice.Item) string {
	switch {
	case it.Runbook == "":
		return "⚠️ *No runbook.* This alert has no `runbook_url`."
	case len(it.Runbook) > maxLink:
		return "⚠️ *No runbook link.* The alert's `runbook_url` is too long for a message."
	}
	// The characters that end a link, and the one that parts it from its label.
	link := strings.NewReplacer("|", "%7C", ">", "%3E", "<", "%3C", " ", "%20").Replace(it.Runbook)
	return "📕 *Runbook:* <" + escape(link) + "|" + fit(pageName(it), 80) + ">"
}

func pageName(it notice.Item) string {
	name := it.Name
	if name == "" {
		if u, err := url.Parse(it.Runbook); err == nil {
			name = u.Host
		}
	}
	// A label's own end mark; the rest is escaped.
	return strings.ReplaceAll(line(name), "|", "/")
}

func rest(n notice.Notice) string {
	var parts []string
	if n.More > 0 {
		parts = append(parts, fmt.Sprintf("… and *%d more*.", n.More))
	}
	if n.Truncated > 0 {
		parts = append(parts, fmt.Sprintf("⚠️ Alertmanager left out *%d more* (max_alerts); their state is unknown.", n.Truncated))
	}
	return strings.Join(parts, "\n")
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }

func line(s string) string { return strings.Join(strings.Fields(s), " ") }

// escape is all that Slack asks for (docs.slack.dev, "Escaping text").
func escape(s string) string {
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;").Replace(s)
}

func units(s string) int { return len(utf16.Encode([]rune(s))) }

// fit escapes a text and cuts it to so many units, never inside an entity.
func fit(s string, most int) string {
	if e := escape(s); units(e) <= most {
		return e
	}
	var b strings.Builder
	left := most - 1
	for _, r := range s {
		e := escape(string(r))
		if left -= units(e); left < 0 {
			break
		}
		b.WriteString(e)
	}
	return b.String() + "…"
}

// cut shortens a text that is escaped later.
func cut(s string, most int) string {
	if runes := []rune(s); len(runes) > most {
		return string(runes[:most-1]) + "…"
	}
	return s
}
