package dingtalk

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
)

const (
	// maxParts is how many messages one notice may take of the robot's 20 a minute.
	maxParts = 3
	// frameBytes are what stands around the items at most: title, whom it mentions, why it is late, counts, footer. It is not
	// measured, because some of that changes between two attempts, and the parts must not.
	frameBytes = 3_600
	// changingBytes are what may change about an item: its note, and whether the link of its runbook is dead.
	changingBytes = noteBytes + deadBytes + 60
)

// split parts a notice into at most maxParts of at most so many bytes each. It counts only what stays the same when a delivery is
// tried again, and what does not at its largest.
func (s *Sender) split(n notice.Notice, most int) []notice.Notice {
	n = spoken(n)
	room := max(most-min(frameBytes, most/2)-s.linkBytes(n), leastItem+changingBytes)
	if n.Body != "" {
		return parts(n, bodies(n.Body, room), func(part *notice.Notice, text string) { part.Body = text })
	}
	var bins [][]notice.Item
	for each := maxItem; ; each = max(each*3/4, leastItem) {
		bins = fill(n, room, each)
		if len(bins) <= maxParts {
			break
		}
		if each == leastItem {
			fit := 0
			for _, bin := range bins[:maxParts] {
				fit += len(bin)
			}
			n = without(n, fit)
			bins = bins[:maxParts]
			break
		}
	}
	return parts(n, bins, func(part *notice.Notice, items []notice.Item) { part.Items = items })
}

// linkBytes are what silencing takes, and the buttons of a card. The links are signed anew for each attempt, so their size is rounded.
func (s *Sender) linkBytes(n notice.Notice) int {
	const step = 512
	size := len(silences(n))
	size += (step - size%step) % step
	if s.o.Style == StyleActionCard {
		size += maxRunbookButtons * (maxButtonURL + 100)
	}
	return size
}

// fill puts items of at most so many bytes into messages with so much room for them, in order.
func fill(n notice.Notice, room, each int) [][]notice.Item {
	if len(n.Items) == 0 {
		return [][]notice.Item{nil}
	}
	var bins [][]notice.Item
	begin, used := 0, 0
	for i, it := range n.Items {
		size := itemSize(n, it, each)
		if used+size > room && i > begin {
			bins = append(bins, n.Items[begin:i:i])
			begin, used = i, 0
		}
		used += size
	}
	return append(bins, n.Items[begin:])
}

func itemSize(n notice.Notice, it notice.Item, each int) int {
	if n.Digest { // one is put together anew for each attempt
		return jsonSize(digestLine(n, it, each)) + len(`\n`)
	}
	it.Note, it.RunbookDead = "", ""
	size := changingBytes
	for _, p := range describe(n, it, each) {
		size += jsonSize(p) + len(`\n\n`)
	}
	return size
}

// parts makes the messages. The first one says why it is late and mentions, once; the last one counts what is missing, and silences.
func parts[T any](n notice.Notice, contents []T, put func(*notice.Notice, T)) []notice.Notice {
	out := make([]notice.Notice, 0, len(contents))
	for i, content := range contents {
		part := n
		put(&part, content)
		if len(contents) > 1 {
			part.Title = shortTitle(n.Title) + " · " + fmt.Sprintf(n.Words.Part, i+1, len(contents))
		}
		if i > 0 {
			part.Late, part.Mentions = "", nil
		}
		if i < len(contents)-1 {
			part.More, part.Truncated, part.Silence = 0, 0, nil
		}
		out = append(out, part)
	}
	return out
}

// shortTitle leaves room for which part it is, also when all of the title has to be escaped.
func shortTitle(title string) string {
	title = line(title)
	for most := titleBytes - 60; len(escape(title)) > titleBytes-60; most = most * 3 / 4 {
		title = cut(title, most)
	}
	return title
}

// bodies parts a text at its line ends into pieces of at most so many bytes of JSON; what does not fit into maxParts of them is cut. A
// block of code that is parted is a block in both parts.
func bodies(text string, room int) []string {
	var out []string
	var b strings.Builder
	open := ""
	closing := func() string {
		if open == "" {
			return ""
		}
		return "\n" + fenceMark(open)
	}
	used := 0
	flush := func() {
		out = append(out, strings.TrimSuffix(b.String(), "\n")+closing())
		b.Reset()
		used = 0
		if open != "" {
			b.WriteString(open + "\n")
			used = jsonSize(open) + len(`\n`)
		}
	}
	for _, l := range lines(text, room/2) {
		size := jsonSize(l)
		if used+size+jsonSize(open)+len(`\n`) > room && used > 0 {
			if flush(); len(out) == maxParts {
				out[maxParts-1] += "\n\n…"
				return out
			}
		}
		b.WriteString(l)
		used += size
		if mark := fenceMark(l); mark != "" {
			switch {
			case open == "":
				open = cut(strings.TrimSpace(l), 60)
			case strings.HasPrefix(strings.TrimSpace(l), fenceMark(open)):
				open = ""
			}
		}
	}
	if b.Len() > 0 || len(out) == 0 {
		out = append(out, strings.TrimSuffix(b.String(), "\n"))
	}
	return out
}

// fenceMark is the run of backquotes or tildes with which a line begins or ends a block of code; empty for any other line.
func fenceMark(l string) string {
	l = strings.TrimLeft(l, " ")
	for _, c := range []string{"`", "~"} {
		if n := len(l) - len(strings.TrimLeft(l, c)); n >= 3 && n <= 60 {
			return l[:n]
		}
	}
	return ""
}

// lines are those of a text, with their ends. One that takes more than so many bytes of JSON comes in pieces, at a space if there is one.
func lines(text string, most int) []string {
	var out []string
	for l := range strings.Lines(text) {
		for jsonSize(l) > most {
			n := within(l, most)
			out = append(out, l[:n]+"\n")
			l = l[n:]
		}
		out = append(out, l)
	}
	return out
}

// within is how much of a text takes at most so many bytes of JSON: up to a space of its last quarter, else up to any character.
func within(s string, most int) int {
	size, end := 0, len(s)
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		if size += runeSize(r, n); size > most {
			end = max(i, n)
			break
		}
		i += n
	}
	if space := strings.LastIndexByte(s[:end], ' '); space > end*3/4 {
		return space + 1
	}
	return end
}
