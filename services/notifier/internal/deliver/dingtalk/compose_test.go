package dingtalk_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/chattest"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/deliver/dingtalk"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
)

const command = "kubectl -n kube-system exec etcd-0 -- etcdctl --endpoints=\"$E\" \\\n  defrag | tee ~/log_`date +%F` && echo <ok> @all *\n\tindented\n"

func example(text string, items int) notice.Notice {
	n := notice.Notice{Status: notice.Firing, Title: text + "!", More: 3, Truncated: 2, Footer: text, Late: text}
	for range items {
		n.Items = append(n.Items, notice.Item{
			Firing: true, Name: text, Summary: text, Description: text, Starts: time.Unix(1, 0), Ends: time.Unix(2, 0),
			Labels:  []notice.Label{{Name: text, Value: text}, {Name: "target", Value: "etcd-prod"}},
			Runbook: "https://rb.example.com/a(b)c?x=[y]", Note: text, RunbookDead: text,
		})
	}
	return n
}

// hostile texts try to mention, link, mark up, and to exceed what DingTalk takes.
func hostile() []string {
	return []string{
		"plain", "@13800138000 @all", "[Runbook](https://evil.example)", "<a href=x>y</a><script>alert(1)</script>",
		"![x](https://evil.example/x.png)", "**b** *i* __b__ _i_ `code` ~~s~~", "# heading", "> quote", "- item\n- item",
		"1. item\n2) item", "text\n===\n---\n***", "&lt;b&gt; &amp; \\* \\[", "<https://evil.example>", "[x]: https://evil.example",
		"    indented", "```\ncode\n```", "| a | b |\n|---|---|", strings.Repeat("x", 50_000), strings.Repeat("\"", 50_000),
		strings.Repeat("钉", 20_000), strings.Repeat("a\n", 10_000), "\x00\x1b[31m", "_a_ __b", "\u202e\u2028\u2029\x7f\u0085", "\xff\xfe",
		"](https://evil.example)", "%s%d%!", "a\r\n\r\n# b",
	}
}

func count(body []byte, what string) int { return bytes.Count(body, []byte(what)) }

// said is what a message says.
func said(t *testing.T, body []byte) string {
	t.Helper()
	var p struct {
		Markdown   struct{ Title, Text string }
		ActionCard struct{ Title, Text string }
	}
	require.NoError(t, json.Unmarshal(body, &p))
	return p.Markdown.Text + p.ActionCard.Text
}

func message(t *testing.T, style string, n notice.Notice) chattest.Message {
	t.Helper()
	r := &recorder{}
	require.NoError(t, send(t, recorded(r, style), n))
	require.Len(t, r.bodies, 1)
	require.Zero(t, chattest.CheckDingTalk(r.bodies[0]), "%.300s", r.bodies[0])
	return chattest.Message{Kind: chattest.DingTalk, Raw: r.bodies[0], Text: said(t, r.bodies[0])}
}

func TestEveryTextIsAcceptedAndForgesNothing(t *testing.T) {
	t.Parallel()
	chat := chattest.NewWith(t, chattest.Options{NoLimits: true})
	for _, style := range []string{"", dingtalk.StyleActionCard} {
		s := robot(t, chat, style, time.Now)
		for _, text := range hostile() {
			for _, items := range []int{1, 15} {
				forgesNothing(t, chat, s, example(text, items))
			}
		}
	}
	got := page(t, chat)
	for _, tag := range []string{"<em", "<code", "<img", "<script", "<ul", "<ol", "<h1", "<h2>text", "<pre", "<table", "evil.example\""} {
		assert.NotContains(t, got, tag)
	}
	assert.Contains(t, got, `href="https://rb.example.com/a%28b%29c?x=%5By%5D"`)
}

func forgesNothing(t *testing.T, chat *chattest.Server, s *dingtalk.Sender, n notice.Notice) {
	t.Helper()
	runbooks := 0
	for _, part := range s.Split(n) {
		require.NoError(t, send(t, s, part), "%.20q", n.Footer)
		ms := chat.Messages()
		m := ms[len(ms)-1]
		assert.NotContains(t, m.Text, "@", "%.20q", n.Footer)
		assert.Empty(t, m.Mentioned())
		assert.Empty(t, m.Problems())
		assert.Equal(t, len(part.Items), strings.Count(m.Text, "**Runbook:**"), "every alert keeps its runbook: %.20q", n.Footer)
		assert.Equal(t, len(part.Items)+len(m.Buttons()), strings.Count(m.Text, "]("), "only runbooks are links: %.20q", n.Footer)
		runbooks += len(part.Items)
	}
	assert.Equal(t, len(n.Items), runbooks)
}

func page(t *testing.T, chat *chattest.Server) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, chat.PageURL()+"columns", nil)
	require.NoError(t, err)
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return string(b)
}

func TestAMessageSaysWhatToDo(t *testing.T) {
	t.Parallel()
	zone, err := time.LoadLocation("Asia/Shanghai")
	require.NoError(t, err)
	n := notice.Notice{
		Status: notice.Firing, Title: "[告警:1] EtcdDown", Words: notice.Chinese(), Zone: zone, More: 4, Truncated: 2,
		Late: "触发于 14:02，送达于 14:23：DingTalk 限流", Footer: "delivery 1",
		Items: []notice.Item{{
			Firing: true, Name: "EtcdDown", Summary: "etcd is down", Description: "first\nsecond", Note: "flapped 6 times",
			Starts: time.Date(2026, 11, 21, 6, 2, 0, 0, time.UTC), Labels: []notice.Label{{Name: "target", Value: "etcd-prod"}},
			Runbook: "https://rb.example.com/etcd", RunbookDead: "404",
			Steps: []notice.Step{{Text: "Look at the *leader*:"}, {Text: command, Code: true}},
		}},
		Silence: &notice.Silence{Links: []notice.Link{
			{Label: "静默 1h", URL: "https://lb.example.com/silence?t=a_b-c"}, {Label: "静默 4h", URL: "https://lb.example.com/silence?t=d"},
		}},
	}
	m := message(t, "", n)
	for _, want := range []string{
		"### 🔴 ［告警:1］ EtcdDown", "⏰ 触发于 14:02，送达于 14:23：DingTalk 限流", "**🔴 etcd is down**", "⚠️ flapped 6 times",
		"开始于 2026-11-21 14:02:00 CST", "> first  \n> second", "📕 **处置手册:** [EtcdDown 处置手册](https://rb.example.com/etcd) ⚠️ 链接失效（404）",
		"**首要步骤:**", "Look at the ＊leader＊:", "```\n" + command + "```", "target=etcd-prod", "……另有 4 条。", "省略了另外 2 条",
		"🔕 [静默 1h](https://lb.example.com/silence?t=a_b-c) · [静默 4h](https://lb.example.com/silence?t=d)", "---\n\ndelivery 1",
	} {
		assert.Contains(t, m.Text, want)
	}
	n.Items[0].Runbook = ""
	n.Words = notice.English()
	assert.NotContains(t, message(t, "", n).Text, "No runbook", "its steps are there")
	n.Items[0].Steps = nil
	assert.Contains(t, message(t, "", n).Text, "⚠️ **No runbook.**")
	n.Items[0].HasRunbook = true
	assert.NotContains(t, message(t, "", n).Text, "No runbook", "a page without an address")
	n.Items[0].HasRunbook, n.Items[0].Firing = false, false
	assert.NotContains(t, message(t, "", n).Text, "No runbook", "what has ended needs none")
	n.Items[0].Runbook = "javascript:alert(1)"
	assert.NotContains(t, message(t, "", n).Text, "javascript")
}

func TestCommandsStayCopyableWhateverTheyHold(t *testing.T) {
	t.Parallel()
	for _, code := range []string{command, "```\nnested\n````", "x", "a  \n  b\t\n\nc", "</code> & \"q\" \\ '", strings.Repeat("l\n", 300)} {
		n := example("A", 1)
		n.Items[0].Steps = []notice.Step{{Text: code, Code: true}}
		m := message(t, "", n)
		assert.Contains(t, m.Text, "\n"+strings.TrimSuffix(code, "\n")+"\n")
	}
	// Half a command is another one: what has no room is left out.
	long := "rm -rf /var/lib/etcd/member.old/" + strings.Repeat("x", 5000)
	n := example("A", 1)
	n.Items[0].Steps = []notice.Step{{Text: "echo 1", Code: true}, {Text: long, Code: true}, {Text: "echo 3", Code: true}}
	m := message(t, "", n)
	assert.Contains(t, m.Text, "```\necho 1\n```\n\n…")
	assert.NotContains(t, m.Text, "rm -rf")
	assert.NotContains(t, m.Text, "echo 3", "the third step is none without the second one")
}

func TestStepsAreTheTeamsOwnText(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"1. Run `etcdctl  endpoint status -w table | tee *`, then *wait*": "\n1. Run `etcdctl  endpoint status -w table | tee *`, then ＊wait＊\n",
		"- see https://x.example.com/a?b=1&c=2 for more":                  "\n- see https://x.example.com/a?b=1&c=2 for more\n",
		"  - nested":       "\n  - nested\n",
		"a ` alone [x](y)": "\na ｀ alone ［x］(y)\n",
		"# no heading":     "\n＃ no heading\n",
		"two\nlines <b>":   "\ntwo lines ＜b＞\n",
		"a `b` c `d`":      "\na `b` c `d`\n",
	} {
		n := example("A", 1)
		n.Items[0].Steps = []notice.Step{{Text: text}}
		assert.Contains(t, message(t, "", n).Text, want)
	}
}

func TestACardHasButtonsAndMentionsMakeItMarkdown(t *testing.T) {
	t.Parallel()
	n := example("A", 2)
	n.Items[0].RunbookDead, n.Items[1].RunbookDead = "", ""
	n.Silence = &notice.Silence{Links: []notice.Link{{Label: "Silence 1h", URL: "https://lb/s?t=1"}, {Label: "Silence 4h", URL: "https://lb/s?t=4"}}}
	m := message(t, dingtalk.StyleActionCard, n)
	assert.Equal(t, []chattest.DingTalkButton{
		{Title: "Runbook", ActionURL: "https://rb.example.com/a%28b%29c?x=[y]"},
		{Title: "Silence 1h", ActionURL: "https://lb/s?t=1"},
		{Title: "Silence 4h", ActionURL: "https://lb/s?t=4"},
	}, m.Buttons())
	assert.NotContains(t, m.Text, "🔕", "what a button does is no link as well")

	n.Items[1].Runbook = "https://rb.example.com/other"
	n.Items[1].Name = "B"
	titles := []string{}
	for _, b := range message(t, dingtalk.StyleActionCard, n).Buttons() {
		titles = append(titles, b.Title)
	}
	assert.Equal(t, []string{"Runbook A", "Runbook B", "Silence 1h", "Silence 4h"}, titles)

	n.Mentions = []string{"13800138000"}
	m = message(t, dingtalk.StyleActionCard, n)
	assert.Empty(t, m.Buttons(), "a card cannot mention")
	assert.Equal(t, []string{"13800138000"}, m.Mentioned())
	assert.Contains(t, m.Text, "🔕 [Silence 1h](https://lb/s?t=1)")

	n.Mentions, n.Silence, n.Items = nil, nil, n.Items[:1]
	n.Items[0].Runbook = ""
	assert.Contains(t, string(message(t, dingtalk.StyleActionCard, n).Raw), `"msgtype":"markdown"`, "a card needs a button")
}

func TestMentions(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ mentions, want []string }{
		"nobody":            {nil, nil},
		"all":               {[]string{"all"}, []string{"all"}},
		"mobile":            {[]string{"13800138000"}, []string{"13800138000"}},
		"with country code": {[]string{"+86-13800138000", "+8613800138001"}, []string{"13800138000", "13800138001"}},
		"abroad":            {[]string{"+852-12345678"}, []string{"+852-12345678"}},
		"user":              {[]string{"user:manager_7.x"}, []string{"manager_7.x"}},
		"twice":             {[]string{"13800138000", "+86-13800138000"}, []string{"13800138000"}},
		"another chat's":    {[]string{"here", "channel", "U0123456", "S0123456"}, nil},
		"mixed":             {[]string{"user:a", "all", "here", "13800138000"}, []string{"all", "13800138000", "a"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := example("A @13900139000 @all", 1)
			n.Mentions = c.mentions
			m := message(t, "", n)
			assert.Equal(t, c.want, m.Mentioned())
			assert.Empty(t, m.Problems())
			for _, id := range []string{"@13900139000", "@all"} {
				assert.NotContains(t, m.Text, id, "the alert's own mention is text")
			}
		})
	}
	n := example("A", 15)
	for i := range 500 {
		n.Mentions = append(n.Mentions, fmt.Sprintf("138%08d", i))
	}
	parts := recorded(&recorder{}, "").Split(n)
	m := message(t, "", parts[0])
	assert.Greater(t, len(m.Mentioned()), 15)
	assert.Empty(t, m.Problems())
	for _, p := range parts[1:] {
		assert.Empty(t, p.Mentions, "telephones ring once")
	}
}

func TestADigestHasALineForEachGroup(t *testing.T) {
	t.Parallel()
	n := notice.Notice{Status: notice.Firing, Title: "3 groups while DingTalk throttled", Digest: true, Late: "late", More: 1}
	for i := range 3 {
		n.Items = append(n.Items, notice.Item{
			Firing: i < 2, Name: fmt.Sprintf("EtcdDown c%d", i), Summary: "[x](https://evil)", Starts: time.Unix(int64(i), 0), Count: i + 1,
			Note: "fired 14:02", Runbook: "https://rb.example.com/x",
		})
	}
	n.Items[2].Note, n.Items[2].Summary, n.Items[2].RunbookDead = "", "", "404"

	m := message(t, "", n)
	assert.Contains(t, m.Text, "- 🔴 **EtcdDown c0**: ［x］(https://evil) · fired 14:02 · [Runbook](https://rb.example.com/x)\n"+
		"- 🔴 **EtcdDown c1** ×2: ［x］(https://evil) · fired 14:02 · [Runbook](https://rb.example.com/x)\n"+
		"- ✅ **EtcdDown c2** ×3 · since 1970-01-01 00:00:02 UTC · [Runbook](https://rb.example.com/x) ⚠️ the link is dead (404)")
	assert.Equal(t, 3, strings.Count(m.Text, "]("))
	assert.Contains(t, m.Text, "… and 1 more.")
}

func TestAnEventIsNeitherRedNorGreen(t *testing.T) {
	t.Parallel()
	n := notice.Notice{Status: notice.Event, Title: "t", Items: []notice.Item{{Summary: "drill passed"}}}
	m := message(t, "", n)
	assert.Contains(t, m.Text, "🔵 drill passed")
	assert.False(t, slices.ContainsFunc([]string{"🔴", "✅"}, func(s string) bool { return strings.Contains(m.Text, s) }))
}

// BenchmarkSend is the share of the encoder in a delivery.
func BenchmarkSend(b *testing.B) {
	n := example("Etcd member is down, and has been for a while", 5)
	s := recorded(&recorder{}, "")
	for b.Loop() {
		for _, p := range s.Split(n) {
			r := &recorder{}
			if _, err := recorded(r, "").Send(b.Context(), p, notice.Ref{}, free); err != nil {
				b.Fatal(err)
			}
		}
	}
}
