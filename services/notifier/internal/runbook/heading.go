package runbook

import (
	"regexp"
	"slices"
	"strings"
	"unicode"

	"github.com/yuin/goldmark/ast"
)

// heading is one of a page's headings, and the section that it begins: what stands beside it until a heading that is no smaller.
type heading struct {
	node  *ast.Heading
	level int
	text  string
	// first says that first steps stand below it, and chinese that it is named so in Chinese.
	first, chinese bool
	// within is the heading of a section of first steps in which this one stands.
	within *heading
	// above are the headings of the sections in which this one stands.
	above []*heading
}

func (h *heading) endsAt(n ast.Node) bool {
	other, ok := n.(*ast.Heading)
	return ok && other.Level <= h.level
}

// headings are those of the page itself, not those in its quotes and lists.
func headings(doc ast.Node, src []byte) []*heading {
	var all, open []*heading
	c := &collector{src: src}
	for n := doc.FirstChild(); n != nil; n = n.NextSibling() {
		node, ok := n.(*ast.Heading)
		if !ok {
			continue
		}
		h := &heading{node: node, level: node.Level, text: c.inline(node)}
		h.first, h.chinese = isFirstSteps(h.text)
		for len(open) > 0 && open[len(open)-1].level >= h.level {
			open = open[:len(open)-1]
		}
		for _, above := range open {
			h.above = append(h.above, above)
			if above.first && h.within == nil {
				h.within = above
			}
		}
		all, open = append(all, h), append(open, h)
	}
	return all
}

// chosen are the headings whose sections hold the first steps, those that count first. With the fragment of an address it is the
// section of the heading that it names. When that has none, the page's only one is meant, but of several none: they are
// about other alerts.
func chosen(all []*heading, fragment string) []*heading {
	var first, mine []*heading
	for _, h := range all {
		if h.first && h.within == nil {
			first = append(first, h)
		}
	}
	if fragment == "" {
		return first
	}
	for _, named := range all {
		if squash(named.text) != squash(fragment) {
			continue
		}
		if named.within != nil {
			return []*heading{named.within}
		}
		for _, h := range first {
			if h == named || slices.Contains(h.above, named) {
				mine = append(mine, h)
			}
		}
		break
	}
	if len(mine) == 0 && len(first) == 1 {
		return first
	}
	return mine
}

// squash is what a heading and the fragment that a site makes of it have in common.
func squash(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsLetter(r) || unicode.IsDigit(r) {
			return unicode.ToLower(r)
		}
		return -1
	}, s)
}

var (
	// shortcode is an emoji by name, ":rotating_light:".
	shortcode = regexp.MustCompile(`:[a-z0-9_+-]+:`)
	// numbering is what may stand before a heading's name: "2.", "Step 1:", "一、", an emoji.
	numbering = regexp.MustCompile(`^(?:(?i:step|section|part)\s*\d+|第?[一二三四五六七八九十]+(?:步|节|部分)?[、.．:：\s]|[^\p{L}])+`)
	english   = regexp.MustCompile(`(?i)^(?:tl\s*[;:,.]?\s*dr\b` +
		`|(?:mitigations?|mitigating|mitigate|quick\s+fix(?:es)?|immediate\s+(?:actions?|steps|mitigations?|response)|first\s+(?:steps|aid))` +
		`(?:\s+(?:steps?|actions?|plan|procedure|measures|guide|now))?(?:\s*$|\s*[^\p{L}\p{N}\s]|\s+(?:and|or)\s))`)
	chinese = regexp.MustCompile(`^(?:(?:紧急|应急|快速|临时|立即)?(?:处置|缓解|止损|止血)|(?:紧急|应急|快速|临时|立即)(?:处理|措施|恢复|操作|修复))` +
		`(?:步骤|措施|方法|方案|办法|流程|操作|手册|指南|建议)?(?:\s*$|\s*[^\p{L}\p{N}\s]|[和与及或])`)
)

// isFirstSteps says whether a heading is TL;DR or Mitigation, by any of the names that teams give it, with a number or an emoji
// before it.
func isFirstSteps(title string) (first, inChinese bool) {
	title = shortcode.ReplaceAllString(title, " ")
	title = strings.TrimSpace(title[len(numbering.FindString(title)):])
	return english.MatchString(title) || chinese.MatchString(title), chinese.MatchString(title)
}
