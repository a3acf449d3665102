package runbook

import (
	"net/url"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/yuin/goldmark/ast"
	"github.com/yuin/goldmark/util"
)

// inline is a paragraph's text: emphasis without its marks, commands in backticks, links as "text (address)".
func (c *collector) inline(n ast.Node) string {
	var b strings.Builder
	c.writeInline(&b, n, 0)
	return strings.TrimSpace(b.String())
}

func (c *collector) writeInline(b *strings.Builder, n ast.Node, depth int) {
	if depth > maxNested {
		return
	}
	for child := n.FirstChild(); child != nil; child = child.NextSibling() {
		switch child := child.(type) {
		case *ast.Text:
			c.writeText(b, child)
		case *ast.String:
			b.Write(child.Value)
		case *ast.CodeSpan:
			b.WriteString("`" + c.raw(child) + "`")
		case *ast.AutoLink:
			b.Write(child.URL(c.src))
		case *ast.Link:
			label := c.inlineAt(child, depth+1)
			b.WriteString(label)
			if to := c.target(unescaped(string(child.Destination))); to != "" && to != label {
				b.WriteString(" (" + to + ")")
			}
		case *ast.RawHTML:
			b.WriteString(placeholder(string(child.Segments.Value(c.src))))
		default: // emphasis, an image's description
			c.writeInline(b, child, depth+1)
		}
	}
}

func (c *collector) inlineAt(n ast.Node, depth int) string {
	var b strings.Builder
	c.writeInline(&b, n, depth)
	return strings.TrimSpace(b.String())
}

func (c *collector) writeText(b *strings.Builder, t *ast.Text) {
	s := string(t.Segment.Value(c.src))
	if !t.IsRaw() {
		s = unescaped(s)
	}
	b.WriteString(s)
	switch {
	case t.HardLineBreak():
		b.WriteByte('\n')
	case t.SoftLineBreak() && !c.joins(s, t.NextSibling()):
		b.WriteByte(' ')
	}
}

// unescaped resolves what markdown lets people write for a character.
func unescaped(s string) string {
	return string(util.UnescapePunctuations(util.ResolveEntityNames(util.ResolveNumericReferences([]byte(s)))))
}

// joins says whether two lines belong together without a space, as Chinese ones do.
func (c *collector) joins(line string, next ast.Node) bool {
	t, ok := next.(*ast.Text)
	if !ok {
		return false
	}
	last, _ := utf8.DecodeLastRuneInString(line)
	first, _ := utf8.DecodeRune(t.Segment.Value(c.src))
	return wide(last) && wide(first)
}

func wide(r rune) bool {
	return unicode.In(r, unicode.Han, unicode.Hiragana, unicode.Katakana) || r >= 0x3000 && r <= 0x303f || r >= 0xff00 && r <= 0xffef
}

// raw is what stands in backticks, on one line.
func (c *collector) raw(n ast.Node) string {
	var b strings.Builder
	for child := n.FirstChild(); child != nil; child = child.NextSibling() {
		if t, ok := child.(*ast.Text); ok {
			b.Write(t.Segment.Value(c.src))
		}
	}
	return strings.ReplaceAll(b.String(), "\n", " ")
}

// target is where a link leads, if that is a page on the web; places on the page itself are not worth an address.
func (c *collector) target(raw string) string {
	u, err := url.Parse(raw)
	if err != nil || strings.HasPrefix(raw, "#") {
		return ""
	}
	if !u.IsAbs() {
		if c.page == nil {
			return ""
		}
		u = c.page.ResolveReference(u)
	}
	return safe(u.String())
}

// placeholder keeps what markdown takes for HTML although it is none: "delete the pod <name>". Real tags are dropped.
func placeholder(tag string) string {
	name := strings.ToLower(strings.TrimLeft(tag, "</"))
	if i := strings.IndexFunc(name, func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsDigit(r) && r != '-' && r != '_' }); i >= 0 {
		name = name[:i]
	}
	switch {
	case name == "br":
		return "\n"
	case name == "" || slices.Contains(tags(), name):
		return ""
	}
	return tag
}

// tags are those that people put into the text of a page.
func tags() []string {
	return []string{
		"a", "abbr", "b", "cite", "code", "del", "details", "div", "em", "font", "i", "img", "ins", "kbd", "li", "mark", "ol", "p", "pre",
		"q", "s", "samp", "small", "span", "strong", "sub", "summary", "sup", "table", "td", "th", "tr", "tt", "u", "ul", "var", "wbr",
	}
}
