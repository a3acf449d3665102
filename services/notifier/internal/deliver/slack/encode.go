package slack

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"

	slackapi "github.com/slack-go/slack"

	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
)

// Slack's limits (docs.slack.dev, Block Kit reference), counted in UTF-16 code units of the escaped text, which is never
// less than what Slack counts.
const (
	maxHeader  = 150
	maxSection = 3000
	// room is what all alerts together may take. Slack accepts 13,200 in all blocks by measurement, and now and then less than 11,400
	// (github.com/slackapi/bolt-js/issues/2867); the frame takes up to 2,300.
	room = 8000
	// maxBlocks leaves some of Slack's 50 for the frame.
	maxBlocks = 42
	// maxShown is how many alerts are worth a section of their own.
	maxShown = 15
	// maxLines of a digest in one message, of at most maxLine each.
	maxLines = 40
	maxLine  = 200
	// maxPlain is the most of a message without blocks: Slack parts one of more than 4,000 characters.
	maxPlain = 3500
)

// Colours of the bar beside the last lines of a message.
const (
	red   = "#d32f2f"
	amber = "#e0a100"
	green = "#2eb886"
	blue  = "#439fe0"
)

// message is what is sent. Everything that matters is in blocks; the attachment gives it a colour and holds only who it is from, because
// Slack hides what is longer behind a "show more" (docs.slack.dev, "Legacy: attachments").
type message struct {
	text   string
	blocks []slackapi.Block
	colour string
	strip  string
	// mentions says that somebody is mentioned, and cut that something is not shown.
	mentions, cut bool
}

func (m message) attachments() []slackapi.Attachment {
	if m.strip == "" {
		return []slackapi.Attachment{}
	}
	return []slackapi.Attachment{{
		Color: m.colour, Fallback: m.text,
		Blocks: slackapi.Blocks{BlockSet: []slackapi.Block{slackapi.NewContextBlock("", plain(m.strip))}},
	}}
}

// encode makes the body for a webhook.
func (m message) encode() ([]byte, error) {
	off := false
	w := slackapi.WebhookMessage{Text: m.text, Attachments: m.attachments(), UnfurlLinks: &off, UnfurlMedia: &off}
	if len(m.blocks) > 0 {
		w.Blocks = &slackapi.Blocks{BlockSet: m.blocks}
	}
	b, err := json.Marshal(w)
	if err != nil {
		return nil, fmt.Errorf("encoding the message: %w", err)
	}
	return b, nil
}

// plain holds text that Slack shows as it is: no mention, link or markup can be forged in it.
func plain(s string) *slackapi.TextBlockObject {
	return slackapi.NewTextBlockObject(slackapi.PlainTextType, s, false, false)
}

// mrkdwn holds our own words, in which what is not ours is escaped and tame. Verbatim: Slack makes no links and mentions out of words.
func mrkdwn(s string) *slackapi.TextBlockObject {
	return slackapi.NewTextBlockObject(slackapi.MarkdownType, s, false, true)
}

func section(t *slackapi.TextBlockObject) slackapi.Block {
	return slackapi.NewSectionBlock(t, nil, nil)
}

// frame begins and ends every message of a notice.
func frame(n notice.Notice) message {
	m := message{text: fit(title(n), maxHeader), colour: colour(n), strip: strip(n)}
	m.blocks = append(m.blocks, slackapi.NewHeaderBlock(plain(m.text)))
	if who := mentions(n); who != "" {
		m.mentions = true
		m.text += " " + who
		m.blocks = append(m.blocks, section(mrkdwn(who)))
	}
	if n.Late != "" {
		m.blocks = append(m.blocks, slackapi.NewContextBlock("", plain(fit("⏱ "+line(n.Late), 400))))
	}
	return m
}

// compose makes the message of a notice. It fits into Slack's limits whatever the alerts hold.
func compose(n notice.Notice, receiver string) message {
	n = worded(n)
	m := frame(n)
	more := n.More
	switch {
	case strings.TrimSpace(n.Body) != "":
		m.body(n.Body)
	case n.Digest:
		m.digest(n)
	default:
		more += m.items(n, room-linkUnits(n, receiver))
	}
	m.cut = m.cut || more > 0
	if rest := rest(n, more, n.StillFires); rest != "" {
		m.blocks = append(m.blocks, section(mrkdwn(rest)))
	}
	m.blocks = append(m.blocks, silence(n, receiver)...)
	return m
}

// worded gives a notice words if it has none.
func worded(n notice.Notice) notice.Notice {
	if n.Words.Code == "" {
		n.Words = notice.English()
	}
	return n
}

func title(n notice.Notice) string {
	if t := line(n.Title); t != "" {
		return icon(n.Status) + " " + t
	}
	return icon(n.Status) + " " + n.Words.Status(n.Status)
}

// body is a person's own text, which is in Slack's markup.
func (m *message) body(text string) {
	left := room
	for _, part := range chunks(text, maxSection, true) {
		if left -= units(part); left < 0 || len(m.blocks) >= maxBlocks {
			m.blocks = append(m.blocks, section(plain("…")))
			m.cut = true
			return
		}
		m.blocks = append(m.blocks, section(mrkdwn(part)))
	}
}

// digest is a line for each group, and the runbooks below.
func (m *message) digest(n notice.Notice) {
	var b strings.Builder
	left, links, seen := room, []string(nil), map[string]bool{}
	flush := func() {
		if b.Len() > 0 {
			m.blocks = append(m.blocks, section(plain(b.String())))
			b.Reset()
		}
	}
	each := min(maxLine, room/max(len(n.Items), 1)-1)
	for _, it := range n.Items {
		l := fit(groupLine(it), each)
		if units(b.String())+units(l)+1 > maxSection {
			flush()
		}
		if b.Len() > 0 {
			b.WriteString("\n")
		}
		b.WriteString(l)
		left -= units(l) + 1
		if link := pageLink(it, 300); link != "" && it.Firing && !seen[it.Runbook] {
			seen[it.Runbook] = true
			links = append(links, link)
		}
	}
	flush()
	text := "📕 *" + escape(n.Words.Runbook) + ":* "
	for i, link := range links {
		if i > 0 {
			link = " · " + link
		}
		if units(text)+units(link) > min(left, maxSection) {
			break
		}
		text += link
	}
	if strings.Contains(text, "<") {
		m.blocks = append(m.blocks, section(mrkdwn(text)))
	}
}

func groupLine(it notice.Item) string {
	parts := []string{state(it), it.Name}
	if it.Count > 1 {
		parts = append(parts, fmt.Sprintf("×%d", it.Count))
	}
	if it.Summary != "" && it.Summary != it.Name {
		parts = append(parts, "— "+cut(line(it.Summary), 110))
	}
	if it.Note != "" {
		parts = append(parts, "— "+it.Note)
	}
	return line(strings.Join(parts, " "))
}

// Split implements deliver.Sender. Slack's messages are cut rather than parted, because a person wants one; all lines of a digest are
// shown.
func (s *Sender) Split(n notice.Notice) []notice.Notice {
	n = worded(n)
	if !n.Digest || len(n.Items) <= maxLines {
		return []notice.Notice{n}
	}
	parts := (len(n.Items) + maxLines - 1) / maxLines
	out := make([]notice.Notice, 0, parts)
	for i := range parts {
		p := n
		p.Items = n.Items[i*maxLines : min((i+1)*maxLines, len(n.Items))]
		p.Title = cut(line(n.Title), 120) + " " + fmt.Sprintf(n.Words.Part, i+1, parts)
		if i > 0 {
			p.Mentions = nil
		}
		if i < parts-1 {
			p.More, p.Truncated, p.Silence = 0, 0, nil
		}
		out = append(out, p)
	}
	return out
}

// rest is what is not shown: more alerts that came, and others of the group that fire on.
func rest(n notice.Notice, more, fire int) string {
	var parts []string
	if more > 0 {
		parts = append(parts, "*"+escape(fmt.Sprintf(n.Words.More, more))+"*")
	}
	if fire > 0 {
		parts = append(parts, icon(notice.Firing)+" *"+escape(fmt.Sprintf(n.Words.StillFire, fire))+"*")
	}
	if n.Truncated > 0 {
		parts = append(parts, "⚠️ "+escape(fmt.Sprintf(n.Words.Truncated, n.Truncated)))
	}
	return strings.Join(parts, "\n")
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

func state(it notice.Item) string {
	if it.Firing {
		return icon(notice.Firing)
	}
	return icon(notice.Resolved)
}

// colour is red for what fires, and the warning's colour where the severity says that it is one.
func colour(n notice.Notice) string {
	switch n.Status {
	case notice.Resolved:
		return green
	case notice.Event:
		return blue
	case notice.Firing:
		if n.Severity != "warning" && n.Severity != "info" {
			return red
		}
	}
	return amber
}

// strip says in words what the colour says, and where the message comes from.
func strip(n notice.Notice) string {
	parts := []string{n.Words.Status(n.Status), n.Severity, n.Footer}
	var said []string
	for _, p := range parts {
		if p = line(p); p != "" {
			said = append(said, cut(p, 400))
		}
	}
	dot := n.Words.Dot
	if dot == "" {
		dot = " · "
	}
	return fit(icon(n.Status)+" "+strings.Join(said, dot), 600)
}

// maxMentions are more than a message needs.
const maxMentions = 20

// mentions are who is mentioned, in Slack's form (docs.slack.dev, "Formatting message text"). What is DingTalk's is left out.
func mentions(n notice.Notice) string {
	var out []string
	for _, who := range n.Mentions {
		switch {
		case who == "here", who == "channel", who == "everyone":
			who = "<!" + who + ">"
		case regexp.MustCompile(`^[UW][A-Z0-9]{5,20}$`).MatchString(who):
			who = "<@" + who + ">"
		case regexp.MustCompile(`^S[A-Z0-9]{5,20}$`).MatchString(who):
			who = "<!subteam^" + who + ">"
		default:
			continue
		}
		if len(out) < maxMentions {
			out = append(out, who)
		}
	}
	return strings.Join(out, " ")
}
