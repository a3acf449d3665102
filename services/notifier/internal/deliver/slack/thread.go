package slack

import (
	"fmt"
	"strings"

	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
)

// threadForm is what the thread below a group's message is told: each alert that is new in it, with everything that is known. Below a
// message that was posted now that is all of them; edited says that it stood there before, and rang nobody now. loud says that it belongs into the channel as well, because something begins to
// fire and an edit of the message above is noticed by nobody. ok is false when there is nothing to say.
func threadForm(n notice.Notice, main message, edited bool) (m message, loud, ok bool) {
	if n.Digest || n.Status == notice.Event && !main.cut {
		return m, false, false
	}
	n = worded(n)
	var news []notice.Item
	firing, ended := 0, 0
	for _, it := range n.Items {
		if edited && it.Told {
			continue
		}
		news = append(news, it)
		if it.Firing {
			firing++
		} else {
			ended++
		}
	}
	if len(news) == 0 {
		return m, false, false
	}
	loud = edited && firing > 0
	var said []string
	if firing > 0 {
		said = append(said, fmt.Sprintf("%s %s:%d", icon(notice.Firing), n.Words.Firing, firing))
	}
	if ended > 0 {
		said = append(said, fmt.Sprintf("%s %s:%d", icon(notice.Resolved), n.Words.Resolved, ended))
	}
	m.text = fit(strings.Join(said, " ")+" "+line(n.Title), maxHeader)
	top := "*" + escape(strings.Join(said, " ")) + "*"
	// A message that was posted now has its mentions itself; in one that was edited they would ring nobody.
	if who := mentions(n); loud && who != "" {
		top, m.text, m.mentions = top+" "+who, m.text+" "+who, true
	}
	m.blocks = append(m.blocks, section(mrkdwn(top)))
	hidden := m.details(n, news)
	if text := rest(notice.Notice{Words: n.Words}, hidden+n.More, 0); text != "" {
		m.blocks = append(m.blocks, section(mrkdwn(text)))
	}
	return m, loud, true
}

// details adds the alerts in full: the first ones if there is no room for all. It returns how many are not shown.
func (m *message) details(n notice.Notice, news []notice.Item) (hidden int) {
	left := room
	for i, it := range news {
		book := runbook(n, it, 1000)
		text := fit(full(n, it), left-units(book))
		if i > 0 && left < 300+units(book) || len(m.blocks) >= maxBlocks-4 {
			return len(news) - i
		}
		for _, part := range chunks(text, maxSection, false) {
			m.blocks = append(m.blocks, section(plain(part)))
			left -= units(part)
		}
		if book != "" {
			m.blocks = append(m.blocks, section(mrkdwn(book)))
			left -= units(book)
		}
	}
	return 0
}

// full is an alert with all its labels, one a line, and its whole description, which is of no more use when the alert has ended.
func full(n notice.Notice, it notice.Item) string {
	parts := []string{headline(it)}
	if it.Note != "" {
		parts = append(parts, "↻ "+line(it.Note))
	}
	if t := times(n, it); t != "" {
		parts = append(parts, t)
	}
	for _, l := range it.Labels {
		parts = append(parts, line(l.Name)+" = "+line(l.Value))
	}
	if d := strings.TrimSpace(it.Description); d != "" && it.Ends.IsZero() {
		parts = append(parts, d)
	}
	return strings.Join(parts, "\n")
}

// plainForm says the same without blocks and attachments, in few words: for a Slack that does not take the form, so that nothing is
// lost by it.
func plainForm(n notice.Notice) message {
	n = worded(n)
	var b strings.Builder
	left := maxPlain
	add := func(s string) bool {
		if left -= units(s) + 1; left < 200 {
			return false
		}
		if b.Len() > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(s)
		return true
	}
	add(fit(tame(title(n)), 400))
	who := mentions(n)
	if who != "" {
		add(who)
	}
	if n.Late != "" {
		add(fit("⏱ "+tame(n.Late), 400))
	}
	more := n.More
	items := n.Items
	if strings.TrimSpace(n.Body) != "" {
		items = nil
		add(chunks(n.Body, maxPlain/2, true)[0])
	}
	for i, it := range items {
		text := fit(state(it)+" "+tame(strings.TrimPrefix(headline(it), state(it))), 400)
		if t := times(n, it); t != "" {
			text += "\n" + fit(t, 200)
		}
		if book := runbook(n, it, 800); book != "" {
			text += "\n" + book
		}
		if !add(text) {
			more += len(n.Items) - i
			break
		}
	}
	left = maxPlain // what is said last is short
	if text := rest(n, more, n.StillFires); text != "" {
		add(text)
	}
	return message{text: b.String(), mentions: who != "", cut: true}
}
