package render

import (
	"bytes"
	"errors"
	"fmt"
	tmplhtml "html/template"
	"reflect"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

const (
	// maxBody is how much a template may write. Chats take less.
	maxBody = 64 << 10
	// maxSteps and maxTime end a template that does not end by itself. 10,000 alerts need some 100,000 steps.
	maxSteps = 1_000_000
	maxTime  = 2 * time.Second
	// maxDepth is how deep templates may call each other: text/template itself would take half a gigabyte to find it out.
	maxDepth = 200
	// checkTime is after how many steps the time is looked at.
	checkTime = 256
)

var (
	errFull    = errors.New("the template writes too much")
	errEndless = errors.New("the template does not come to an end")
	errDeep    = errors.New("the template calls itself without end")
)

// The first byte of what mark makes. No other text has them: they are dropped from values, and what else is written is the template's
// own.
const (
	markValue = '\x00'
	markURL   = '\x01'
	// These stand alone, and are written where a template begins and ends and at each turn of a loop.
	markEnter = '\x02'
	markLeave = '\x03'
	markTurn  = '\x04'
)

// mark is the last function of every action: it prints the value as text/template would, and marks it.
func mark(v any) string {
	switch v := v.(type) {
	case nil:
		return string(rune(markValue)) + "<no value>"
	case string:
		return string(rune(markValue)) + v
	case tmplhtml.URL:
		return string(rune(markURL)) + string(v)
	case fmt.Stringer, error:
		return string(rune(markValue)) + fmt.Sprint(v)
	}
	r := reflect.ValueOf(v)
	for r.Kind() == reflect.Pointer && !r.IsNil() {
		r = r.Elem()
	}
	return string(rune(markValue)) + fmt.Sprint(r.Interface())
}

// writer takes what a template writes: its own text as it is, and marked values escaped for where they stand. It follows the template's
// text only so far that it knows where that is: in code, in a link's address, in a tag, or anywhere else. A value never changes it.
type writer struct {
	chat chat
	b    []byte
	most int

	steps, depth int
	since        time.Time

	// fence and inline say that the template has opened code.
	fence, inline bool
	// angle and paren are where the content of an open "<" or "](" begins; -1 when there is none. label says that the address in
	// angle brackets has ended and its label follows.
	angle, paren int
	label        bool
	// begun says that the line holds more than the marks that begin one.
	begun bool
}

// chat is how values are written for one kind of receiver. The zero one changes nothing.
type chat struct {
	escape func(w *writer, s string) string
	// brackets says that "](" begins a link's address, and bars that "|" ends one in angle brackets.
	brackets, bars bool
	// opens says whether a character after "<" makes a link, a mention or a tag of it.
	opens func(c byte) bool
}

// plain is the kind of a title: a chat's package escapes it.
const plain = "plain"

func newWriter(kind string, most int) *writer {
	w := &writer{most: most, since: time.Now(), angle: -1, paren: -1}
	switch kind {
	case plain:
	case "slack":
		w.chat = chat{escape: slackText, bars: true, opens: func(c byte) bool { return strings.IndexByte("hm@#!>|", c) >= 0 }}
	default:
		w.chat = chat{escape: dingtalkText, brackets: true, opens: func(c byte) bool { return isAlnum(c) && c > '9' || c == '/' || c == '!' }}
	}
	return w
}

func (w *writer) text() string { return strings.ToValidUTF8(string(w.b), "\uFFFD") }

// Write is called once for each piece of the template's text and for each value.
func (w *writer) Write(p []byte) (int, error) {
	if w.steps++; w.steps > maxSteps || w.steps%checkTime == 0 && time.Since(w.since) > maxTime {
		return 0, errEndless
	}
	if len(p) == 0 {
		return 0, nil
	}
	if len(p) == 1 && p[0] >= markEnter && p[0] <= markTurn {
		return 1, w.turn(p[0])
	}
	piece := p
	switch {
	case p[0] == markValue || p[0] == markURL:
		piece = []byte(w.value(clean(string(p[1:]), w.most), p[0] == markURL))
	case w.chat.escape != nil:
		w.follow(p)
	}
	if over := len(w.b) + len(piece) - w.most; over > 0 {
		w.add(whole(piece[:len(piece)-over]))
		return 0, errFull
	}
	w.add(piece)
	return len(p), nil
}

func (w *writer) turn(mark byte) error {
	switch mark {
	case markEnter:
		w.depth++
	case markLeave:
		w.depth--
	}
	if w.depth > maxDepth {
		return errDeep
	}
	return nil
}

// whole drops a broken character or entity at the end.
func whole(p []byte) []byte {
	for len(p) > 0 && !utf8.RuneStart(p[len(p)-1]) {
		p = p[:len(p)-1]
	}
	if n := len(p); n > 0 && p[n-1] >= utf8.RuneSelf {
		p = p[:n-1]
	}
	if i := bytes.LastIndexByte(p[max(len(p)-5, 0):], '&'); i >= 0 && !bytes.Contains(p[max(len(p)-5, 0)+i:], []byte(";")) {
		p = p[:max(len(p)-5, 0)+i]
	}
	return p
}

// follow reads the template's own text for what it opens and closes.
func (w *writer) follow(p []byte) {
	for i := 0; i < len(p); i++ {
		at := len(w.b) + i
		if w.angle == at && !w.chat.opens(p[i]) {
			w.angle = -1 // "less than", not a bracket
		}
		switch p[i] {
		case '`':
			run := len(p[i:]) - len(bytes.TrimLeft(p[i:], "`"))
			if run >= 3 && !w.inline {
				w.fence = !w.fence
			} else if !w.fence {
				w.inline = !w.inline
			}
			i += run - 1
		case '\n':
			w.inline, w.angle, w.paren, w.label = false, -1, -1, false
		case '<':
			w.angle, w.label = at+1, false
		case '>':
			w.angle, w.label = -1, false
		case '|':
			w.label = w.angle >= 0 && w.chat.bars
		case '(':
			if w.chat.brackets && at > 0 && w.before(p, i) == ']' {
				w.paren = at + 1
			}
		case ')':
			w.paren = -1
		}
	}
}

// before is the byte before p[i].
func (w *writer) before(p []byte, i int) byte {
	if i > 0 {
		return p[i-1]
	}
	return w.b[len(w.b)-1]
}

// value writes a value for where it stands.
func (w *writer) value(s string, trusted bool) string {
	if w.chat.escape == nil || s == "" {
		return s
	}
	open := w.angle
	if w.label {
		open = -1
	}
	if w.paren >= 0 {
		open = w.paren
	}
	switch {
	case open >= 0 && open == len(w.b):
		return w.address(s)
	case open >= 0:
		return w.within(s, string(w.b[open:]))
	case trusted && !w.fence && !w.inline:
		if origin, rest := address(s); origin != "" {
			return origin + strings.ReplaceAll(w.encode(rest), "_", "%5F")
		}
	}
	if w.label || w.inline {
		s = strings.ReplaceAll(s, "\n", " ")
	}
	return w.chat.escape(w, s)
}

// last is the last character written, and space at the start.
func (w *writer) last() rune {
	if len(w.b) == 0 {
		return '\n'
	}
	r, _ := utf8.DecodeLastRune(w.b)
	return r
}

// add appends what has been escaped, and notes whether the line holds nothing yet, or only marks that begin a list, a quotation or a
// heading.
func (w *writer) add(piece []byte) {
	w.b = append(w.b, piece...)
	if i := bytes.LastIndexByte(piece, '\n'); i >= 0 {
		w.begun, piece = false, piece[i+1:]
	}
	w.begun = w.begun || len(bytes.Trim(piece, " \t>*+-#0123456789.)")) > 0
}

func isWord(r rune) bool { return unicode.IsLetter(r) || unicode.IsDigit(r) }
