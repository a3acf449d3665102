package dingtalk

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
)

const (
	// maxBytes of a whole message (open.dingtalk.com, custom robots).
	maxBytes = 20_000
	// leastBytes is a message in which an alert still says something.
	leastBytes = 2_000
	// An item takes at most maxItem bytes, and leastItem when there is no more room: the least that says what it is, and where
	// the runbook stands.
	maxItem   = 6_000
	leastItem = 300
	// maxButtons of a card: DingTalk names no limit, and more do not fit on a telephone.
	maxButtons = 5
	// maxMentions is how many bytes of a message may be spent on whom to mention.
	maxMentions = 900
)

type payload struct {
	MsgType    string    `json:"msgtype"`
	Markdown   *markdown `json:"markdown,omitempty"`
	ActionCard *card     `json:"actionCard,omitempty"`
	At         *at       `json:"at,omitempty"`
}

type markdown struct {
	Title string `json:"title"`
	Text  string `json:"text"`
}

type card struct {
	Title string `json:"title"`
	Text  string `json:"text"`
	// Orientation "0" puts the buttons below each other.
	Orientation string   `json:"btnOrientation"`
	Buttons     []button `json:"btns"`
}

type button struct {
	Title string `json:"title"`
	URL   string `json:"actionURL"`
}

// at is who is mentioned. Each name stands in the text as well, else DingTalk mentions nobody.
type at struct {
	Mobiles []string `json:"atMobiles,omitempty"`
	Users   []string `json:"atUserIds,omitempty"`
	All     bool     `json:"isAtAll"`
}

// encode makes a message of at most so many bytes, whatever the alerts hold: texts are cut first, then alerts are left out and
// counted.
func (s *Sender) encode(n notice.Notice, most int) ([]byte, error) {
	n = spoken(n)
	for each := maxItem; ; {
		body, err := s.marshal(n, each)
		if err != nil || len(body) <= most {
			return body, err
		}
		switch {
		case n.Body != "":
			n.Body = cut(n.Body, len(n.Body)*3/4)
		case each > leastItem && len(n.Items) > 0:
			each = max(each*3/4, leastItem)
		case len(n.Items) > 0:
			n = without(n, len(n.Items)-1-len(n.Items)/8)
		case n.Silence != nil:
			n.Silence = nil
		default:
			return body, nil
		}
	}
}

// spoken is a notice that has words.
func spoken(n notice.Notice) notice.Notice {
	if n.Words.Code == "" {
		n.Words = notice.English()
	}
	return n
}

// without leaves out and counts the items from one on.
func without(n notice.Notice, from int) notice.Notice {
	for _, it := range n.Items[from:] {
		n.More += max(it.Count, 1)
	}
	n.Items = n.Items[:from]
	return n
}

// marshal makes the message with items of at most so many bytes each.
func (s *Sender) marshal(n notice.Notice, each int) ([]byte, error) {
	title := safe(n.Title, 200)
	if title == "" {
		title = "Lifeboat" // the robot refuses a message without one
	}
	who := mentioned(n.Mentions)
	p := payload{MsgType: "markdown", At: who}
	if buttons := s.buttons(n); who == nil && len(buttons) > 0 {
		p.MsgType = "actionCard"
		p.ActionCard = &card{Title: title, Text: compose(n, who, each, false), Orientation: "0", Buttons: buttons}
	} else {
		p.Markdown = &markdown{Title: title, Text: compose(n, who, each, true)}
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(p); err != nil {
		return nil, fmt.Errorf("encoding the message: %w", err)
	}
	return bytes.TrimSpace(b.Bytes()), nil
}

// buttons are those of a card; none for markdown.
func (s *Sender) buttons(n notice.Notice) []button {
	if s.o.Style != StyleActionCard {
		return nil
	}
	var silence, runbooks []button
	if n.Silence != nil {
		for _, l := range n.Silence.Links[:min(len(n.Silence.Links), maxButtons-1)] {
			if u := target(l.URL); u != "" {
				silence = append(silence, button{safe(l.Label, 60), u})
			}
		}
	}
	for _, it := range n.Items {
		u := target(it.Runbook)
		known := slices.ContainsFunc(runbooks, func(b button) bool { return b.URL == u })
		if u == "" || known || it.RunbookDead != "" || len(u) > maxButtonURL || len(silence)+len(runbooks) >= maxButtons {
			continue
		}
		runbooks = append(runbooks, button{safe(n.Words.Runbook+" "+it.Name, 60), u})
	}
	if len(runbooks) == 1 {
		runbooks[0].Title = n.Words.Runbook
	}
	return append(runbooks[:min(len(runbooks), maxRunbookButtons)], silence...)
}

// The buttons for runbooks, which stand in the text as well.
const (
	maxRunbookButtons = 2
	maxButtonURL      = 500
)

// mentioned says whom DingTalk is to mention; nil for nobody. Names that mean something to another chat only are left out.
func mentioned(names []string) *at {
	a, size := &at{}, 0
	for _, name := range names {
		list := &a.Mobiles
		id, isUser := strings.CutPrefix(name, "user:")
		switch {
		case name == "all":
			a.All = true
			continue
		case isUser:
			list = &a.Users
		case name != "" && strings.Trim(name, "+-0123456789") == "":
			id = mobile(name)
		default:
			continue
		}
		if size += 2*len(id) + len(`"",@ `); id == "" || slices.Contains(*list, id) || size > maxMentions {
			continue
		}
		*list = append(*list, id)
	}
	if !a.All && len(a.Mobiles)+len(a.Users) == 0 {
		return nil
	}
	return a
}

// mobile is a number as DingTalk has it: without the country's code in mainland China, else "+852-...".
func mobile(s string) string {
	for _, code := range []string{"+86-", "+86", "86-"} {
		if rest, ok := strings.CutPrefix(s, code); ok {
			return strings.ReplaceAll(rest, "-", "")
		}
	}
	return s
}

// text is how the names stand in a message.
func (a *at) text() string {
	if a == nil {
		return ""
	}
	names := make([]string, 0, len(a.Mobiles)+len(a.Users))
	for _, id := range slices.Concat(a.Mobiles, a.Users) {
		names = append(names, "@"+id)
	}
	return strings.Join(names, " ")
}

// jsonSize is how many bytes a text takes between the quotes of a JSON string, as encoding/json writes it without escaping HTML.
func jsonSize(s string) int {
	size := 0
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		size += runeSize(r, n)
		i += n
	}
	return size
}

func runeSize(r rune, n int) int {
	switch {
	case r == '"', r == '\\', r == '\n', r == '\r', r == '\t', r == '\b', r == '\f':
		return 2
	case r < ' ', r == '\u2028', r == '\u2029', r == utf8.RuneError && n == 1:
		return len(`\u0000`)
	}
	return n
}
