package runbook

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
)

func TestFirstStepsHeadings(t *testing.T) {
	t.Parallel()
	for _, title := range []string{
		"Mitigation", "MITIGATION", "mitigation:", "Mitigations", "2. Mitigation", "2) Mitigation steps", "🚨 Mitigation", ":rotating_light: Mitigation",
		"Step 1: Mitigation", "TL;DR", "tl;dr", "TLDR", "TL; DR", "TL,DR:", "## TL;DR", "TL;DR – what to do", "Quick fix", "Quick fixes (5 minutes)",
		"Immediate actions", "Immediate action", "First steps", "Mitigation and escalation", "Mitigation / recovery", "Mitigation (first 5 minutes)",
		"处置", "处置步骤", "一、处置", "第二步：缓解", "缓解措施", "🔥 应急处理", "应急处理：", "应急处置流程", "缓解（5 分钟内）", "处置与恢复", "快速止损",
	} {
		first, _ := isFirstSteps(title)
		assert.True(t, first, title)
	}
	for _, title := range []string{
		"", "Overview", "Why mitigation matters", "Mitigationist", "Mitigation history of the team", "Diagnosis", "If that does not help", "TLDRX", "处理",
		"处置记录", "原因", "How alerts are routed", "First", "Immediate", "背景",
	} {
		first, _ := isFirstSteps(title)
		assert.False(t, first, title)
	}
}

func words(s string) notice.Step { return notice.Step{Text: s} }
func code(s string) notice.Step  { return notice.Step{Text: s, Code: true} }

func TestStepsAreTheSectionInOrder(t *testing.T) {
	t.Parallel()
	page := strings.Join([]string{
		"---", "title: Mitigation", "---", "# DiskFull", "", "Not this.", "", "## 1. Mitigation", "",
		"Look **first** at [the board](https://grafana.example.com/d/1?x=a&amp;b) &amp; breathe.", "It is `df -h`", "that tells; <https://wiki.example.com>.", "",
		"1. Read it:", "", "       df -h  /data", "       du -x   | sort -n", "", "   Then wait.", "",
		"2. Free some", "   - logs first:", "", "     ```sh", "     journalctl --vacuum-size=1G", "     if true; then", "     \techo 'tab'", "     fi", "     ```", "",
		"   - delete the pod <pod-name><br>then [more](other.md#x) and [below](#check)", "",
		"### Not a new section", "", "> **Careful:** it hurts.", "", "## Escalation", "", "    rm -rf /", "",
	}, "\n")
	want := []notice.Step{
		words("Look first at the board (https://grafana.example.com/d/1?x=a&b) & breathe. It is `df -h` that tells; https://wiki.example.com."),
		words("1. Read it:"), code("df -h  /data\ndu -x   | sort -n"), words("Then wait."),
		words("2. Free some"), words("  - logs first:"), code("journalctl --vacuum-size=1G\nif true; then\n\techo 'tab'\nfi"),
		words("  - delete the pod <pod-name>\nthen more (https://rb.example.com/ops/other.md#x) and below"),
		words(moreEnglish),
	}
	got, found := steps([]byte(page), "", "https://rb.example.com/ops/disk-full.md")
	assert.True(t, found)
	assert.Equal(t, want, got)
	crlf, _ := steps([]byte("\ufeff"+strings.ReplaceAll(page, "\n", "\r\n")), "", "https://rb.example.com/ops/disk-full.md")
	assert.Equal(t, want, crlf, "a command with a carriage return fails when it is pasted")
	got, _ = steps([]byte(page), "", "")
	assert.NotContains(t, joined(got), "other.md", "a relative link without a page to be relative to")
}

func joined(all []notice.Step) string {
	var b strings.Builder
	for _, s := range all {
		b.WriteString(s.Text + "\n")
	}
	return b.String()
}

func TestStepsOfSeveralHeadings(t *testing.T) {
	t.Parallel()
	const summary = "# X\n\n## TL;DR\n\nIt is the disk.\n\n## Background\n\nLong ago.\n\n## Mitigation\n\nRun:\n\n    df\n\n## Quick fix\n\nNot that.\n"
	got, found := steps([]byte(summary), "", "")
	assert.True(t, found)
	assert.Equal(t, []notice.Step{words("It is the disk."), words("Run:"), code("df")}, got, "a summary without a command goes on with the mitigation")

	got, _ = steps([]byte("## TL;DR\n\n    df\n\n## Mitigation\n\n    rm\n"), "", "")
	assert.Equal(t, []notice.Step{code("df")}, got)

	got, found = steps([]byte("# X\n\nNothing.\n"), "", "")
	assert.False(t, found)
	assert.Empty(t, got)

	got, found = steps([]byte("## Mitigation\n\n## Next\n\ntext\n"), "", "")
	assert.True(t, found)
	assert.Empty(t, got)
}

// A page may be about many alerts: the steps of another one are worse than none.
func TestStepsByFragment(t *testing.T) {
	t.Parallel()
	const page = "# Nodes\n\n## DiskFull\n\n### Mitigation\n\n    df\n\n### Check\n\nx\n\n## CPU is high!\n\n### 处置\n\n运行：\n\n    top\n\n#### Step two\n\n    htop\n\n## Other\n\nno steps\n"
	for fragment, want := range map[string][]notice.Step{
		"diskfull": {code("df")}, "DiskFull": {code("df")}, "cpu-is-high": {words("运行："), code("top"), words("Step two"), code("htop")},
		"step-two": {words("运行："), code("top"), words("Step two"), code("htop")}, "other": nil, "unknown": nil,
	} {
		got, _ := steps([]byte(page), fragment, "")
		assert.Equal(t, want, got, fragment)
	}
	got, _ := steps([]byte("# A\n\n## Mitigation\n\n    df\n\n## Check\n\nx\n"), "check", "")
	assert.Equal(t, []notice.Step{code("df")}, got, "the only steps of the page")
}

func TestStepsAreBoundedAndNeverCutACommand(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", maxCodeBytes+1)
	got, _ := steps([]byte("## Mitigation\n\nFirst:\n\n    short\n\nThen:\n\n    "+long+"\n\nLast:\n\n    after\n"), "", "")
	assert.Equal(t, []notice.Step{words("First:"), code("short"), words("Then:"), words(moreEnglish)}, got,
		"what follows a command that was left out is left out, too")

	fits := strings.Repeat("x", maxCodeBytes)
	got, _ = steps([]byte("## Mitigation\n\n    "+fits+"\n"), "", "")
	assert.Equal(t, []notice.Step{code(fits)}, got)

	many := "## 缓解\n\n" + strings.Repeat("- 一步\n", 10)
	got, _ = steps([]byte(many), "", "")
	assert.Len(t, got, maxTexts+1)
	assert.Equal(t, words(moreChinese), got[maxTexts])

	paragraph := "One. Then run `kubectl delete pod. now " + strings.Repeat("a", maxTextBytes) + "`. End."
	got, _ = steps([]byte("## Mitigation\n\n"+paragraph+"\n"), "", "")
	assert.Equal(t, []notice.Step{words("One."), words(moreEnglish)}, got)

	got, _ = steps([]byte("## Mitigation\n\n"+strings.Repeat("第一句话。", 100)+"\n"), "", "")
	require.Len(t, got, 2)
	assert.True(t, utf8.ValidString(got[0].Text))
	assert.True(t, strings.HasSuffix(got[0].Text, "。"))
	assert.LessOrEqual(t, len(got[0].Text), maxTextBytes)
}

func TestStepsHideNothing(t *testing.T) {
	t.Parallel()
	got, _ := steps([]byte("## Mitigation\n\nA\u202eB\x07\n\n    echo \u202ehidden\n\n    more\n"), "", "")
	assert.Equal(t, []notice.Step{words("AB"), words(moreEnglish)}, got, "a command with characters that turn it around is not shown")
	got, _ = steps([]byte("## Mitigation\n\n[a](javascript:alert(1)) [b](https://u:p@x/) <b>bold</b> ![shot](x.png)<!-- no -->\n"), "", "https://x/y")
	assert.Equal(t, []notice.Step{words("a b bold shot")}, got)
	got, _ = steps([]byte("## Mitigation\n\n| Do | Then |\n|---|---|\n| `a` | b |\n\n第一行\n第二行\nlast\n"), "", "")
	assert.Equal(t, []notice.Step{words("Do | Then"), words("`a` | b"), words("第一行第二行 last")}, got)
}

// A page of the largest size that is read, as bad as can be, does not hold up a message for long.
func TestStepsOfHostilePages(t *testing.T) {
	t.Parallel()
	for name, unit := range map[string]string{
		"quotes": ">", "spaced quotes": "> ", "brackets": "[", "emphasis": "*a_ ", "backticks": "`", "lists": "- ", "numbers": "1) ", "links": "[a](",
		"images": "![", "html": "<a ", "tables": "|", "underscores": "_a__b*c**", "paragraphs": strings.Repeat("[a](", 490) + "\n\n",
		"deep": strings.Repeat(">", 95) + "\n\n",
	} {
		src := []byte("## Mitigation\n\n" + strings.Repeat(unit, (256<<10)/len(unit)) + "\n")
		from := time.Now()
		if !intricate(src) {
			steps(src, "", "")
		}
		assert.Less(t, time.Since(from), 20*time.Second, name) // tens of minutes when they are parsed
	}
	assert.False(t, intricate([]byte(strings.Repeat("A *line* of [text](x), `code` and_more.\n", 200))))
	assert.False(t, intricate([]byte("------------------------------------------\n"+strings.Repeat("- a\n", 1000))))
}

// Every page of the fleet's own runbooks has steps that a message can carry, with a command that can be pasted.
func TestOwnRunbooks(t *testing.T) {
	t.Parallel()
	dir := filepath.Join("..", "..", "..", "..", "docs", "runbooks")
	pages, err := listPages(dir)
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(pages), 13)
	for _, page := range pages {
		src, err := os.ReadFile(filepath.Join(dir, page))
		require.NoError(t, err)
		got, found := steps(src, "", "https://rb.example.com/"+page)
		assert.True(t, found, "%s has no heading TL;DR or Mitigation", page)
		i := slices.IndexFunc(got, func(s notice.Step) bool { return s.Code })
		require.NotEqual(t, -1, i, "%s has no command among its first steps", page)
		assert.LessOrEqual(t, i, 3, "%s begins with too much text", page)
		for _, s := range got {
			if !s.Code {
				continue
			}
			// What is copied stands in the page as it is, but for the indentation.
			for line := range strings.SplitSeq(s.Text, "\n") {
				assert.Contains(t, string(src), line, page)
				assert.Equal(t, strings.TrimRight(line, " "), line, "%s: a space at the end of a command", page)
			}
			assert.NotContains(t, s.Text, "\t", page)
		}
	}
}

func FuzzSteps(f *testing.F) {
	f.Add("## Mitigation\n\n1. a\n\n       b\n", "mitigation", "https://rb/x.md")
	f.Add("---\na: b\n---\n# X\n## TL;DR\n> - [a](b)\n```\nc\n", "", "")
	f.Add("## 处置\n\n| a | b |\n|--|--|\n| `c` | <d> |\n", "x", "://")
	f.Fuzz(func(t *testing.T, src, fragment, link string) {
		if intricate([]byte(src)) {
			return
		}
		from := time.Now()
		got, found := steps([]byte(src), fragment, link)
		if took := time.Since(from); took > 20*time.Second {
			t.Fatalf("%d bytes took %s", len(src), took)
		}
		if len(got) > 0 && !found {
			t.Fatal("steps without a heading")
		}
		texts, codes := 0, 0
		whole := string(normal([]byte(src)))
		for _, s := range got {
			if s.Text == "" || s.Text != clean(s.Text) {
				t.Fatalf("%q", s.Text)
			}
			if !s.Code {
				texts += len(s.Text)
				continue
			}
			codes += len(s.Text)
			for line := range strings.SplitSeq(strings.Trim(s.Text, " \t"), "\n") {
				if !strings.Contains(whole, strings.Trim(line, " \t")) {
					t.Fatalf("%q is not in the page", line)
				}
			}
		}
		if texts > maxTextBytes+len(moreEnglish)+len(moreChinese) || codes > maxCodeBytes || len(got) > maxTexts+maxCodes+1 {
			t.Fatalf("%d steps with %d and %d bytes", len(got), texts, codes)
		}
	})
}
