package dingtalk

import (
	"cmp"
	"fmt"
	"regexp"
	"strings"

	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
)

// compose writes the text, with items of at most so many bytes each. DingTalk's markdown has headings, quotations, bold and
// italic type, links, lists and code (open.dingtalk.com, "message types"), and no tables.
func compose(n notice.Notice, who *at, each int, links bool) string {
	parts := []string{"### " + icon(n.Status) + " " + safe(n.Title, titleBytes)}
	if n.Late != "" {
		parts = append(parts, "⏰ "+safe(n.Late, 400))
	}
	if names := who.text(); names != "" {
		parts = append(parts, names)
	}
	switch {
	case n.Body != "":
		parts = append(parts, n.Body)
	case n.Digest:
		lines := make([]string, 0, len(n.Items))
		for _, it := range n.Items {
			lines = append(lines, digestLine(n, it, each))
		}
		if len(lines) > 0 {
			parts = append(parts, strings.Join(lines, "\n"))
		}
	default:
		for _, it := range n.Items {
			parts = append(parts, describe(n, it, each)...)
		}
	}
	if n.More > 0 {
		parts = append(parts, "**"+fmt.Sprintf(n.Words.More, n.More)+"**")
	}
	if n.Truncated > 0 {
		parts = append(parts, "⚠️ **"+fmt.Sprintf(n.Words.Truncated, n.Truncated)+"**")
	}
	if list := silences(n); links && list != "" {
		parts = append(parts, "🔕 "+list)
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
	case notice.Event:
		return "🔵"
	}
	return "🟡"
}

// itemIcon is one alert's: in a message about an event it neither fires nor has it ended.
func itemIcon(n notice.Notice, it notice.Item) string {
	switch {
	case it.Firing:
		return icon(notice.Firing)
	case n.Status == notice.Event:
		return icon(notice.Event)
	}
	return icon(notice.Resolved)
}

// silences are the links that silence the group.
func silences(n notice.Notice) string {
	if n.Silence == nil {
		return ""
	}
	var out []string
	for _, l := range n.Silence.Links[:min(len(n.Silence.Links), maxButtons-1)] {
		if u := target(l.URL); u != "" {
			out = append(out, "["+safe(l.Label, 60)+"]("+u+")")
		}
	}
	return strings.Join(out, " · ")
}

// describe is one alert in about so many bytes: what it is and since when, what to do, and last its labels.
func describe(n notice.Notice, it notice.Item, most int) []string {
	link := runbook(n, it, most/2)
	room := max(most-len(link), 120)
	parts := []string{"**" + itemIcon(n, it) + " " + summary(it, min(room/3, 600)) + "**"}
	if it.Note != "" {
		parts = append(parts, "⚠️ "+safe(it.Note, noteBytes))
	}
	if since := times(n, it); since != "" {
		parts = append(parts, since)
	}
	if it.Description != "" {
		parts = append(parts, quote(it.Description, min(room/3, 1500)))
	}
	if link != "" {
		parts = append(parts, link)
	}
	parts = append(parts, steps(n, it, room/2)...)
	labels := make([]string, 0, len(it.Labels))
	for _, l := range it.Labels {
		labels = append(labels, safe(l.Name, 60)+"="+safe(l.Value, 200))
	}
	if len(labels) > 0 {
		parts = append(parts, cut(strings.Join(labels, " · "), min(room/3, 1200)))
	}
	return parts
}

func summary(it notice.Item, most int) string {
	return cmp.Or(safe(it.Summary, most), safe(it.Name, most), "…")
}

// titleBytes is the longest title, noteBytes the longest note, deadBytes the longest reason for which a link is dead.
const (
	titleBytes = 360
	noteBytes  = 200
	deadBytes  = 60
)

func times(n notice.Notice, it notice.Item) string {
	var out []string
	if !it.Starts.IsZero() {
		out = append(out, fmt.Sprintf(n.Words.Since, n.Stamp(it.Starts)))
	}
	if !it.Ends.IsZero() {
		out = append(out, fmt.Sprintf(n.Words.Ended, n.Stamp(it.Ends)))
	}
	return strings.Join(out, " · ")
}

// runbook is the line below every alert: the link, or in plain sight that there is none. What has ended or only happened needs none.
func runbook(n notice.Notice, it notice.Item, most int) string {
	u := target(it.Runbook)
	switch {
	case len(it.Runbook) > maxAddress, len(u) > most:
		return "⚠️ **" + n.Words.Runbook + "**: …" // it does not fit into any message; the page is found by the alert's name
	case u == "" && (!it.Firing || n.Status == notice.Event || it.HasRunbook || len(it.Steps) > 0):
		return ""
	case u == "":
		return "⚠️ **" + n.Words.NoRunbook + "**"
	}
	return "📕 **" + n.Words.Runbook + ":** [" + safe(it.Name+" "+n.Words.Runbook, 100) + "](" + u + ")" + dead(n, it)
}

// dead is the mark behind a link that leads nowhere.
func dead(n notice.Notice, it notice.Item) string {
	if it.RunbookDead == "" {
		return ""
	}
	return " ⚠️ " + fmt.Sprintf(n.Words.DeadLink, safe(it.RunbookDead, deadBytes))
}

// steps are the first ones of the runbook, each whole or not at all: half a command is another command.
func steps(n notice.Notice, it notice.Item, most int) []string {
	var out []string
	for _, st := range it.Steps {
		text := trusted(st.Text)
		if st.Code {
			text = fence(st.Text)
		}
		if most -= jsonSize(text); most < 0 {
			out = append(out, "…")
			break
		}
		if text != "" {
			out = append(out, text)
		}
	}
	if len(out) == 0 {
		return nil
	}
	return append([]string{"**" + n.Words.FirstSteps + ":**"}, out...)
}

var listMark = regexp.MustCompile(`^ *([-*+]|\d{1,3}[.)]) `)

// trusted is a text of the team's own pages: its list mark stays one, commands in backquotes and addresses stay copyable.
func trusted(s string) string {
	s = strings.NewReplacer("\r", "", "\n", " ").Replace(s)
	mark := listMark.FindString(s)
	spans := strings.Split(s[len(mark):], "`")
	if len(spans)%2 == 0 { // a backquote without a partner is one of the text
		spans = []string{s[len(mark):]}
	}
	var b strings.Builder
	b.WriteString(mark)
	for i, span := range spans {
		if i%2 == 1 {
			b.WriteString("`" + span + "`")
			continue
		}
		words := strings.Split(span, " ")
		for j, w := range words {
			if u := target(w); u != "" {
				words[j] = u
			} else {
				words[j] = escape(line(w))
			}
		}
		b.WriteString(strings.Join(words, " "))
	}
	return strings.TrimRight(b.String(), " ")
}

// fence is a block of code that is copied byte for byte. It is longer than every run of backquotes in the code, which could end it.
func fence(code string) string {
	longest, run := 0, 0
	for _, r := range code {
		if run++; r != '`' {
			run = 0
		}
		longest = max(longest, run)
	}
	mark := strings.Repeat("`", max(longest+1, 3))
	return mark + "\n" + strings.TrimSuffix(code, "\n") + "\n" + mark
}

// digestLine is a group of alerts in one line.
func digestLine(n notice.Notice, it notice.Item, most int) string {
	first := "- " + itemIcon(n, it) + " **" + cmp.Or(safe(it.Name, most/4), "…") + "**"
	if it.Count > 1 {
		first += fmt.Sprintf(" ×%d", it.Count)
	}
	if said := safe(it.Summary, min(most/4, 300)); said != "" && it.Summary != it.Name {
		first += n.Words.Colon + said
	}
	parts := []string{first}
	// The note of a group says when it fired.
	if more := cmp.Or(safe(it.Note, noteBytes), times(n, it)); more != "" {
		parts = append(parts, more)
	}
	if u := target(it.Runbook); u != "" && len(u) <= most/2 {
		parts = append(parts, "["+n.Words.Runbook+"]("+u+")"+dead(n, it))
	}
	return strings.Join(parts, " · ")
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
