package runbook

import (
	"bytes"
	"fmt"
	"net/url"
	"strings"
	"unicode"

	"github.com/yuin/goldmark"
	"github.com/yuin/goldmark/ast"
	"github.com/yuin/goldmark/extension"
	extast "github.com/yuin/goldmark/extension/ast"
	"github.com/yuin/goldmark/text"

	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
)

// What a message has room for. A person who is woken reads no more than that anyway before opening the page.
const (
	maxTexts     = 6
	maxCodes     = 6
	maxTextBytes = 1200
	maxCodeBytes = 1500
	// maxNested bounds how deep lists and quotes are followed.
	maxNested = 20
)

// What stands at the end of steps of which some were left out, in the page's language.
const (
	moreEnglish = "… The rest is on the page."
	moreChinese = "……其余步骤见手册页面。"
)

// steps takes the first steps out of a page in markdown: what stands under its TL;DR or Mitigation heading, in order, and then what
// stands under the next such heading, if there was no command yet. The fragment of an address chooses among several alerts on a page.
// link is the page's own address, which its relative links need; it may be empty. found says that there is such a heading.
//
// When something does not fit, it and all that follows is left out, and the last step says so: a command is never cut, and no step is
// shown without those before it.
func steps(src []byte, fragment, link string) (first []notice.Step, found bool) {
	src = withoutFrontMatter(normal(src))
	doc := goldmark.New(goldmark.WithExtensions(extension.Table)).Parser().Parse(text.NewReader(src))
	c := &collector{src: src, more: moreEnglish}
	if u, err := url.Parse(link); err == nil && u.Host != "" {
		c.page = u
	}
	sections := chosen(headings(doc, src), fragment)
	for _, s := range sections {
		if s.chinese {
			c.more = moreChinese
		}
		for n := s.node.NextSibling(); n != nil && !s.endsAt(n); n = n.NextSibling() {
			c.block(n, "", 0)
		}
		if c.codes > 0 || s.level != sections[0].level {
			break
		}
	}
	if c.full {
		c.steps = append(c.steps, notice.Step{Text: c.more})
	}
	return c.steps, len(sections) > 0
}

// normal has line ends that a shell takes, and no byte order mark.
func normal(src []byte) []byte {
	src = bytes.TrimPrefix(src, []byte("\ufeff"))
	return bytes.ReplaceAll(src, []byte("\r\n"), []byte("\n"))
}

// withoutFrontMatter drops what site generators keep before a page's text: markdown would take its last line for a heading.
func withoutFrontMatter(src []byte) []byte {
	for _, fence := range []string{"---\n", "+++\n"} {
		if rest, ok := bytes.CutPrefix(src, []byte(fence)); ok {
			if _, body, ok := bytes.Cut(append([]byte{'\n'}, rest...), []byte("\n"+fence)); ok {
				return body
			}
		}
	}
	return src
}

const (
	maxMarks  = 2000
	maxLevels = 100
)

// intricate says whether a page would take seconds to parse: goldmark's time grows with the square of the marks that one paragraph has
// and of the quotes and lists that begin on one line.
func intricate(src []byte) bool {
	marks := 0
	for line := range bytes.Lines(src) {
		if len(bytes.TrimSpace(line)) == 0 {
			marks = 0
			continue
		}
		levels := line[:len(line)-len(bytes.TrimLeft(line, ">-+*.)0123456789 \t"))]
		if marks += countAny(line, "[]*_<`!&\\"); marks > maxMarks || countAny(levels, ">-+*.)") > maxLevels {
			return true
		}
	}
	return false
}

func countAny(s []byte, chars string) int {
	n := 0
	for _, c := range s {
		if strings.IndexByte(chars, c) >= 0 {
			n++
		}
	}
	return n
}

// collector gathers steps until one does not fit.
type collector struct {
	src          []byte
	page         *url.URL
	more         string
	steps        []notice.Step
	texts, codes int
	textBytes    int
	codeBytes    int
	full         bool
}

func (c *collector) addText(s string) {
	s = clean(strings.TrimRightFunc(s, unicode.IsSpace))
	if strings.TrimSpace(s) == "" || c.full {
		return
	}
	room := maxTextBytes - c.textBytes
	if c.texts == maxTexts || len(s) > room {
		c.full = true
		if s = shorten(s, room); c.texts == maxTexts || s == "" {
			return
		}
	}
	c.texts++
	c.textBytes += len(s)
	c.steps = append(c.steps, notice.Step{Text: s})
}

func (c *collector) addCode(lines *text.Segments) {
	code := strings.TrimSuffix(string(lines.Value(c.src)), "\n")
	if strings.TrimSpace(code) == "" || c.full {
		return
	}
	// A character that a person does not see makes another command of it than the one that is read.
	if c.codes == maxCodes || c.codeBytes+len(code) > maxCodeBytes || code != clean(code) {
		c.full = true
		return
	}
	c.codes++
	c.codeBytes += len(code)
	c.steps = append(c.steps, notice.Step{Text: code, Code: true})
}

// shorten cuts a text after its last sentence that fits, or nowhere: half a sentence may say the opposite, and a command in it would
// be half a command.
func shorten(s string, room int) string {
	best := 0
	for i, r := range s {
		end := i + len(string(r))
		switch {
		case end > room:
			return s[:best]
		case strings.Count(s[:end], "`")%2 == 1:
			continue // inside a command
		case strings.ContainsRune("。！；", r), r == '\n', r == '.' && strings.HasPrefix(s[end:], " "):
			best = end
		}
	}
	return s[:best]
}

// block adds a block and those below it. mark stands before its first text: the bullet or number of a list's item.
func (c *collector) block(n ast.Node, mark string, depth int) {
	if c.full || depth > maxNested {
		c.full = true
		return
	}
	switch n := n.(type) {
	case *ast.CodeBlock, *ast.FencedCodeBlock:
		c.addCode(n.Lines())
	case *ast.List:
		c.list(n, mark, depth)
	case *extast.Table:
		for row := n.FirstChild(); row != nil; row = row.NextSibling() {
			c.addText(c.row(row))
		}
	case *ast.HTMLBlock, *ast.ThematicBreak, *ast.LinkReferenceDefinition:
	case *ast.Paragraph, *ast.TextBlock, *ast.Heading:
		if s := c.inline(n); s != "" {
			c.addText(mark + s)
		}
	default:
		for child := n.FirstChild(); child != nil; child = child.NextSibling() {
			c.block(child, "", depth+1)
		}
	}
}

func (c *collector) list(l *ast.List, above string, depth int) {
	indent := strings.Repeat(" ", len(above)-len(strings.TrimLeft(above, " ")))
	if depth > 0 {
		indent += "  "
	}
	number := l.Start
	for item := l.FirstChild(); item != nil; item = item.NextSibling() {
		mark := indent + "- "
		if l.IsOrdered() {
			mark = fmt.Sprintf("%s%d. ", indent, number)
			number++
		}
		for child := item.FirstChild(); child != nil; child = child.NextSibling() {
			if _, nested := child.(*ast.List); nested {
				c.block(child, indent, depth+1)
				continue
			}
			c.block(child, mark, depth+1)
			mark = indent // what else belongs to the item
		}
	}
}

func (c *collector) row(n ast.Node) string {
	var cells []string
	for cell := n.FirstChild(); cell != nil; cell = cell.NextSibling() {
		cells = append(cells, c.inline(cell))
	}
	return strings.Join(cells, " | ")
}

// clean drops characters that are not seen but turn or move those that are.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || !unicode.IsControl(r) && !unicode.Is(unicode.Bidi_Control, r) {
			return r
		}
		return -1
	}, s)
}
