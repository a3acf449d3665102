package render

import (
	"net/url"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

// wide are the full-width forms of characters with a meaning, which every reader of Chinese knows. Neither chat has an escape for them
// that all its clients know.
func wide(r rune) string { return string(r - '!' + '！') }

// slackText makes text harmless in Slack's mrkdwn: & < > are escaped as Slack asks for (docs.slack.dev, "Escaping text"), and what would
// be markup at a word's edge is replaced.
func slackText(w *writer, s string) string {
	if plainText(s) {
		return s
	}
	var b strings.Builder
	code := w.fence || w.inline
	prev, start := w.last(), !w.begun
	for i, r := range s {
		next := following(s, i, r)
		switch {
		case r == '&':
			b.WriteString("&amp;")
		case r == '<':
			b.WriteString("&lt;")
		case r == '>' && start && !code: // Slack reads &gt; at the start of a line as a quotation
			b.WriteString(wide(r))
		case r == '>':
			b.WriteString("&gt;")
		case r == '`':
			b.WriteString(wide(r))
		case !code && strings.ContainsRune("*_~", r) && edge(prev, next):
			b.WriteString(wide(r))
		case !code && r == '@' && !isWord(prev) && isWord(next):
			b.WriteString(wide(r))
		default:
			b.WriteRune(r)
		}
		start = r == '\n' || start && unicode.IsSpace(r)
		prev = r
	}
	return b.String()
}

// plainText is the quick answer for most labels.
func plainText(s string) bool {
	for i := range len(s) {
		c := s[i]
		if c >= utf8.RuneSelf || !isAlnum(c) && c != ' ' && c != '-' && c != '.' && c != ':' && c != '/' {
			return false
		}
	}
	return true
}

func isAlnum(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

// following is the character after one, and 0 at the end of the value, where it is not known yet.
func following(s string, i int, r rune) rune {
	next, size := utf8.DecodeRuneInString(s[i+utf8.RuneLen(r):])
	if size == 0 {
		return 0
	}
	return next
}

// edge says whether a mark between two characters could begin or end emphasis: within a word and between spaces it cannot. A mark beside
// the same mark belongs to a run, of which all must be at an edge or none; it counts as an edge.
func edge(prev, next rune) bool {
	if unicode.IsSpace(prev) && unicode.IsSpace(next) {
		return false
	}
	return !isWord(prev) || !isWord(next)
}

// dingtalkText makes text harmless in any dialect of markdown: DingTalk does not say which backslash escapes it knows.
func dingtalkText(w *writer, s string) string {
	code := w.fence || w.inline
	prev, start := w.last(), !w.begun
	var b strings.Builder
	for i, r := range s {
		next := following(s, i, r)
		blank := r == ' ' || r == '\t'
		switch {
		case code && inCode(r, prev, next), !code && inMarkdown(r, prev, next, start):
			b.WriteString(wide(r))
		case blank && start && !code && (b.Len() > 0 || unicode.IsSpace(prev)):
			// Four spaces at the start of a line would begin code.
		case blank && !code:
			b.WriteByte(' ')
		default:
			b.WriteRune(r)
		}
		start = r == '\n' || start && (unicode.IsSpace(r) || unicode.IsDigit(r))
		prev = r
	}
	return b.String()
}

// inMarkdown says whether a character has to be replaced where markdown is read.
func inMarkdown(r, prev, next rune, start bool) bool {
	switch r {
	case '\\', '*', '`', '[', ']', '<', '>', '@', '&', '~', '|', '!':
		return true
	case '_':
		return edge(prev, next)
	case '(': // the template's own "]" before it would make a link
		return prev == ']'
	case '#', '-', '+', '=':
		return start
	case '.', ')':
		return start && unicode.IsDigit(prev) && (next == 0 || unicode.IsSpace(next))
	}
	return false
}

// inCode is the same inside the template's code, where a command has to stay what it is as far as possible.
func inCode(r, prev, next rune) bool {
	switch r {
	case '`', '<', '@':
		return true
	case ']':
		return next == '(' || next == 0
	case '(':
		return prev == ']'
	}
	return false
}

// address writes a value that the template has put where a link's address begins. What is no web address must not become a link, or in
// Slack's angle brackets a mention.
func (w *writer) address(s string) string {
	if origin, rest := address(s); origin != "" {
		return origin + w.encode(rest)
	}
	s = w.chat.escape(w, strings.ReplaceAll(s, "\n", " "))
	return strings.Map(func(r rune) rune {
		if strings.ContainsRune("@!#:/()|^", r) {
			return r - '!' + '！'
		}
		return r
	}, s)
}

// host is what may stand between an address's slashes; url.Parse lets brackets pass.
var host = regexp.MustCompile(`^([A-Za-z0-9._%-]+|\[[0-9A-Fa-f:.%]+\])(:[0-9]+)?$`)

// address is a web address in its escaped form, parted after the host, and nothing for anything else.
func address(s string) (origin, rest string) {
	u, err := url.Parse(strings.TrimSpace(s))
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.User != nil {
		return "", ""
	}
	origin = (&url.URL{Scheme: u.Scheme, Host: u.Host}).String()
	if !host.MatchString(strings.TrimPrefix(origin, u.Scheme+"://")) {
		return "", ""
	}
	return origin, strings.TrimPrefix(u.String(), origin)
}

// within writes a value inside an address or a tag that the template has begun.
func (w *writer) within(s, begun string) string {
	if !strings.HasPrefix(begun, "http://") && !strings.HasPrefix(begun, "https://") && w.paren < 0 {
		// A mention, a date or a tag.
		return strings.Map(func(r rune) rune {
			if r < utf8.RuneSelf && (isWord(r) || strings.ContainsRune("_- .", r)) {
				return r
			}
			return -1
		}, s)
	}
	if strings.ContainsAny(begun, "?#") {
		s = strings.NewReplacer("&", "%26", "#", "%23", "+", "%2B").Replace(s)
	}
	return w.encode(s)
}

// encode writes a part of an address so that nothing in it ends the address, or means something to the chat.
func (w *writer) encode(s string) string {
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		switch {
		case c == '&' && w.chat.bars:
			b.WriteString("&amp;")
		case c == '%' && i+2 < len(s) && isHex(s[i+1]) && isHex(s[i+2]):
			b.WriteByte(c)
		case c <= ' ', c >= 0x7f, strings.IndexByte("\"'<>\\^`{|}()[]*~!@%", c) >= 0:
			const hex = "0123456789ABCDEF"
			b.WriteByte('%')
			b.WriteByte(hex[c>>4])
			b.WriteByte(hex[c&15])
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

func isHex(c byte) bool { return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F' }
