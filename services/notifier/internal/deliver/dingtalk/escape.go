package dingtalk

import (
	"net/url"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

// line is a text in one line: every run of white space is one space, and control characters are gone, also those that turn the
// direction of the text.
func line(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) {
			return ' '
		}
		if unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, "�"))
	return strings.Join(strings.Fields(s), " ")
}

var (
	edgeUnderscore = regexp.MustCompile(`(^|[^\pL\pN_])_+|_+($|[^\pL\pN_])`)
	numbered       = regexp.MustCompile(`^(\d+)([.)])(\s|$)`)
)

// safe is one harmless line of at most so many bytes. It is cut before, too: the work shall not grow with what an alert
// holds.
func safe(s string, most int) string {
	if s = cut(s, most); plain(s) {
		return s
	}
	return cut(escape(line(s)), most)
}

// plain is the quick answer for most texts: there is nothing in it to be made harmless.
func plain(s string) bool {
	blank := true // where a space would be one too many
	for i := range len(s) {
		c := s[i]
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		switch {
		case letter, i > 0 && (c >= '0' && c <= '9' || strings.IndexByte("-.,:;/%", c) >= 0):
			blank = false
		case c == ' ' && !blank:
			blank = true
		default:
			return false
		}
	}
	return !blank || s == ""
}

// escape makes one line of text harmless in any markdown renderer: DingTalk does not say which backslash escapes it
// knows, so what has a meaning is replaced by its full-width form, which every reader of Chinese knows.
func escape(s string) string {
	s = strings.Map(wide, s)
	// An underscore within a word is text in every dialect, and common in names; at a word's edge it is emphasis.
	if strings.Contains(s, "_") {
		s = edgeUnderscore.ReplaceAllStringFunc(s, func(m string) string { return strings.ReplaceAll(m, "_", "＿") })
	}
	// A heading, list or rule begins a line.
	if s == "" {
		return s
	}
	if w, ok := map[byte]string{'#': "＃", '-': "－", '+': "＋", '=': "＝"}[s[0]]; ok {
		return w + s[1:]
	}
	return numbered.ReplaceAllString(s, "${1}．$3")
}

// wide is the full-width form of a character that means something in markdown, in HTML or to DingTalk.
func wide(r rune) rune {
	if strings.ContainsRune("\\*`[]<>@&~|!", r) {
		return r - '!' + '！'
	}
	return r
}

// maxAddress is the longest address that is put into a message.
const maxAddress = 4_000

// target makes the address of a page safe to stand in a link: the characters that could end it, mention somebody or begin other
// markup are percent-encoded. It is empty for what is not an http or https
// address, or too long.
func target(address string) string {
	if len(address) > maxAddress || !strings.HasPrefix(address, "https://") && !strings.HasPrefix(address, "http://") {
		return ""
	}
	var b strings.Builder
	for i := range len(address) {
		c := address[i]
		if c <= ' ' || c == 0x7f || strings.IndexByte("()<>\\\"`*@|!~", c) >= 0 {
			const digits = "0123456789ABCDEF"
			b.WriteByte('%')
			b.WriteByte(digits[c>>4])
			b.WriteByte(digits[c&15])
			continue
		}
		b.WriteByte(c)
	}
	// DingTalk refuses the whole message for a button whose address it cannot read.
	if u, err := url.Parse(strings.ToValidUTF8(b.String(), "%EF%BF%BD")); err == nil && u.Host != "" {
		return u.String()
	}
	return ""
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
