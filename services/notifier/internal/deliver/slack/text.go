package slack

import (
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

func line(s string) string { return strings.Join(strings.Fields(s), " ") }

// escape is all that Slack asks for (docs.slack.dev, "Escaping text").
func escape(s string) string {
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;").Replace(s)
}

func units(s string) int {
	n := 0
	for _, r := range s {
		n += max(utf16.RuneLen(r), 1)
	}
	return n
}

// escapedUnits of one character.
func escapedUnits(r rune) int {
	switch r {
	case '&':
		return len("&amp;")
	case '<', '>':
		return len("&lt;")
	}
	return max(utf16.RuneLen(r), 1)
}

// fit escapes a text and cuts it to so many units, never inside an entity.
func fit(s string, most int) string {
	s = strings.ToValidUTF8(s, "�")
	left, end := most, 0
	for i, r := range s {
		if left -= escapedUnits(r); left < 0 {
			return escape(s[:end]) + "…"
		}
		if left >= 1 {
			end = i + utf8.RuneLen(r) // the mark of the cut fits behind this
		}
	}
	return escape(s)
}

// cut shortens a text that is escaped later.
func cut(s string, most int) string {
	if utf8.RuneCountInString(s) <= most {
		return s
	}
	return string([]rune(s)[:most-1]) + "…"
}

// tame takes the meaning from what would be Slack's markup in a text that stands among our own: lookalikes stand for its marks.
func tame(s string) string {
	runes := []rune(line(s))
	for i, r := range runes {
		switch r {
		case '*':
			runes[i] = '∗'
		case '~':
			runes[i] = '∼'
		case '`':
			runes[i] = 'ˋ'
		case '|':
			runes[i] = '∣'
		case '_':
			// Inside a word it is only itself: etcd_no_leader.
			if i == 0 || i == len(runes)-1 || !wordly(runes[i-1]) || !wordly(runes[i+1]) {
				runes[i] = '＿'
			}
		}
	}
	return string(runes)
}

func wordly(r rune) bool { return r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r) }

const fence = "```"

// chunks parts a text that is already in Slack's markup into ones of at most so many units: at the end of a line or a word where there
// is one, never inside an entity, a link or a mention, and with fences closed
// where they mean something.
func chunks(s string, most int, fences bool) []string {
	var out []string
	s = strings.ToValidUTF8(strings.TrimSpace(s), "�")
	for s != "" {
		part := s
		if units(s) > most {
			part = s[:breakAt(s, most-2*len(fence)-2)]
		}
		s = strings.TrimLeft(s[len(part):], "\n")
		part = strings.TrimRight(part, " \n")
		if fences && s != "" && strings.Count(part, fence)%2 == 1 {
			part, s = part+"\n"+fence, fence+"\n"+s
		}
		if strings.TrimSpace(part) != "" {
			out = append(out, part)
		}
	}
	return out
}

// breakAt is where to part a text that has more than so many units.
func breakAt(s string, most int) int {
	end, n := 0, 0
	for i, r := range s {
		if n += max(utf16.RuneLen(r), 1); n > most {
			break
		}
		end = i + utf8.RuneLen(r)
	}
	if i := strings.LastIndexByte(s[:end], '\n'); i > end/2 {
		return i + 1
	}
	if i := strings.LastIndexByte(s[:end], ' '); i > end*3/4 {
		end = i + 1
	}
	if i := strings.LastIndexByte(s[:end], '<'); i > end/2 && !strings.Contains(s[i:end], ">") {
		end = i
	}
	if i := strings.LastIndexByte(s[:end], '&'); i > 0 && i > end-6 && !strings.Contains(s[i:end], ";") {
		end = i
	}
	// Not between two of a fence's marks.
	for back := 0; back < 2 && end > 1 && s[end-1] == '`' && end < len(s) && s[end] == '`'; back++ {
		end--
	}
	return end
}
