package slack

import (
	"fmt"
	"math"
	"net/url"
	"strings"

	slackapi "github.com/slack-go/slack"

	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
)

// longText is from where on a description stands below the first steps: they are what is looked for.
const longText = 500

// items adds the alerts, the first one being the worst: each with its runbook, and with the first steps as long as there is room. It
// returns how many are not shown.
func (m *message) items(n notice.Notice, pool int) (hidden int) {
	shown := n.Items[:min(len(n.Items), maxShown)]
	each := min(pool/max(len(shown), 1), maxSection)
	texts, books, below := make([]string, len(shown)), make([]string, len(shown)), make([]string, len(shown))
	for i, it := range shown {
		books[i] = runbook(n, it, max(each-250, 0))
		most := max(each-units(books[i]), 150)
		// With few alerts there are blocks for it.
		if len(it.Steps) > 0 && len(it.Description) > longText && len(shown) <= maxShown/2 {
			below[i], it.Description = it.Description, ""
		}
		texts[i] = m.fit(describe(n, it), most)
		if below[i] != "" {
			below[i] = m.fit(strings.TrimSpace(below[i]), max(most-units(texts[i]), 100))
		}
		pool -= units(texts[i]) + units(books[i]) + units(below[i])
	}
	for i, it := range shown {
		m.blocks = append(m.blocks, section(plain(texts[i])))
		// Those that come after need up to three blocks each, or two when they are many.
		need := 3
		if len(shown) > maxShown/2 {
			need = 2
		}
		blocks, used, all := steps(n, it, books[i], pool, maxBlocks-len(m.blocks)-need*(len(shown)-i-1)-1)
		m.blocks = append(m.blocks, blocks...)
		m.cut = m.cut || !all
		pool -= used
		if strings.TrimSpace(below[i]) != "" {
			m.blocks = append(m.blocks, section(plain(below[i])))
		}
	}
	return len(n.Items) - len(shown)
}

// fit escapes a text and cuts it, and notes that it did.
func (m *message) fit(s string, most int) string {
	out := fit(s, most)
	m.cut = m.cut || strings.HasSuffix(out, "…") && !strings.HasSuffix(s, "…")
	return out
}

// describe is an alert in plain text: summary, note, times, labels, description. What is too long is cut at the end.
func describe(n notice.Notice, it notice.Item) string {
	var b strings.Builder
	b.WriteString(headline(it))
	if it.Note != "" {
		b.WriteString("\n↻ " + line(it.Note))
	}
	if t := times(n, it); t != "" {
		b.WriteString("\n" + t)
	}
	labels := make([]string, 0, len(it.Labels))
	for _, l := range it.Labels {
		labels = append(labels, cut(line(l.Name)+"="+line(l.Value), 200))
	}
	if len(labels) > 0 {
		b.WriteString("\n" + cut(strings.Join(labels, " "), 800))
	}
	if d := strings.TrimSpace(it.Description); d != "" {
		b.WriteString("\n" + d)
	}
	return b.String()
}

func headline(it notice.Item) string {
	said := line(it.Summary)
	if name := line(it.Name); name != "" && !strings.Contains(said, name) {
		said = strings.TrimSuffix(name+": "+said, ": ")
	}
	return state(it) + " " + cut(said, 600)
}

func times(n notice.Notice, it notice.Item) string {
	var parts []string
	if !it.Starts.IsZero() {
		parts = append(parts, fmt.Sprintf(n.Words.Since, n.Stamp(it.Starts)))
	}
	if !it.Ends.IsZero() {
		parts = append(parts, fmt.Sprintf(n.Words.Ended, n.Stamp(it.Ends)))
	}
	return strings.Join(parts, ", ")
}

// runbook is the line below an alert: the link, whether it is dead, or in plain sight that there is none. An alert that has ended,
// an event, and a page without an address have no such line.
func runbook(n notice.Notice, it notice.Item, most int) string {
	link := pageLink(it, most)
	switch {
	case link == "" && (!it.Firing || n.Status == notice.Event || it.Runbook == "" && (it.HasRunbook || len(it.Steps) > 0)):
		return ""
	case link == "" && pageLink(it, math.MaxInt) != "":
		// It is too long: it would take the room of the alert.
		return "📕 *" + escape(n.Words.Runbook) + ":* …"
	case link == "":
		return "⚠️ *" + escape(n.Words.NoRunbook) + "*"
	case it.RunbookDead != "":
		return "📕 *" + escape(n.Words.Runbook) + ":* " + link + " ⚠️ " + fit(fmt.Sprintf(n.Words.DeadLink, tame(cut(it.RunbookDead, 60))), 130)
	}
	return "📕 *" + escape(n.Words.Runbook) + ":* " + link
}

// pageLink is the link of an alert's runbook; empty when there is none, or it has more than so many units.
func pageLink(it notice.Item, most int) string {
	u, err := url.Parse(it.Runbook)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return ""
	}
	// The characters that end a link, and the one that parts it from its label.
	address := strings.NewReplacer("|", "%7C", ">", "%3E", "<", "%3C", " ", "%20", "\n", "%0A").Replace(it.Runbook)
	name := cut(it.Name, 200)
	if strings.TrimSpace(name) == "" {
		name = u.Host
	}
	link := "<" + escape(address) + "|" + fit(tame(name), 80) + ">"
	if units(link) > most {
		return ""
	}
	return link
}

// steps are the blocks of an alert's runbook and its first steps, in so many units and blocks at most. A command is whole or not there at
// all: one that is cut does something else. One that holds a fence stands in a block of plain text, in which it can be copied as it
// is.
func steps(n notice.Notice, it notice.Item, book string, most, blocks int) (out []slackapi.Block, used int, all bool) {
	text, head, all := book, "*"+escape(n.Words.FirstSteps)+"*", true
	flush := func() {
		if text != "" {
			out = append(out, section(mrkdwn(text)))
			text = ""
		}
	}
	for _, step := range it.Steps {
		said, raw := stepText(step)
		if said == "" {
			continue
		}
		need := units(said) + units(head) + 2
		// A step may begin two blocks, and one more is for what says that there is more.
		if used+need > most || need > maxSection-2 || len(out)+3 > blocks {
			text, all = join(text, "…"), false
			break
		}
		used += need
		if units(text)+need > maxSection-2 {
			flush()
		}
		text, head = join(text, head), ""
		if raw {
			flush()
			out = append(out, section(plain(said)))
			continue
		}
		text = join(text, said)
	}
	flush()
	return out, used, all
}

// stepText is a step in Slack's markup, or raw for what has to stand in a block of plain text.
func stepText(step notice.Step) (said string, raw bool) {
	switch {
	case !step.Code:
		return escape(strings.TrimSpace(step.Text)), false
	case strings.Contains(step.Text, fence):
		return escape(strings.Trim(step.Text, "\n")), true
	case strings.TrimSpace(step.Text) == "":
		return "", false
	}
	return fence + "\n" + escape(strings.Trim(step.Text, "\n")) + "\n" + fence, false
}

func join(a, b string) string {
	if a == "" || b == "" {
		return a + b
	}
	return a + "\n" + b
}
