package slack_test

import (
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/chattest"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/deliver/slack"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
)

// hostile texts try to mention, link, mark up, and to exceed what Slack takes.
func hostile() []string {
	return []string{
		"plain", "<!channel> <@U123> @here", "<https://evil.example|Runbook>", "a & b < c > d &lt;!channel&gt;",
		"*bold* _it_ `code` ~s~\n> quote", strings.Repeat("x", 50_000), strings.Repeat("&", 7_000),
		strings.Repeat("🔴", 5_000), strings.Repeat("钉", 7_000), strings.Repeat("a\n", 4_000), "\x00\x1b[31m", "|>", "\xff\xfe",
		"```\nrm -rf /\n```", strings.Repeat("`", 9000), "", strings.Repeat("a b ", 2000) + "<!here>",
	}
}

// part is a text of a message.
type part struct{ Type, Text string }

// parts are all texts of a message's body, and its text.
func parts(t *testing.T, raw []byte) (texts []part, top string) {
	t.Helper()
	var whole any
	require.NoError(t, json.Unmarshal(raw, &whole))
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			text, ok := v["text"].(string)
			if kind, _ := v["type"].(string); ok && (kind == "mrkdwn" || kind == "plain_text") {
				texts = append(texts, part{kind, text})
			}
			for name, inner := range v {
				if name != "text" || !ok {
					walk(inner)
				}
			}
		case []any:
			for _, inner := range v {
				walk(inner)
			}
		}
	}
	walk(whole)
	if m, ok := whole.(map[string]any); ok {
		top, _ = m["text"].(string)
	}
	return texts, top
}

// links are the angle brackets that a message may have: our own links to the runbook and to nowhere else.
var links = regexp.MustCompile(`<https://rb\.example\.com/a%7Cb%3Ec\|[^<>|]*>`)

func assertUnforged(t *testing.T, raw []byte, about string) {
	t.Helper()
	texts, top := parts(t, raw)
	for _, p := range append(texts, part{"mrkdwn", top}) {
		s := p.Text
		if p.Type == "mrkdwn" {
			s = links.ReplaceAllString(s, "")
		}
		assert.NotContains(t, s, "<", about)
		assert.NotContains(t, s, ">", about)
		for i := strings.IndexByte(s, '&'); i >= 0; {
			assert.Regexp(t, `^&(amp|lt|gt);`, s[i:], about)
			next := strings.IndexByte(s[i+1:], '&')
			if i = i + 1 + next; next < 0 {
				break
			}
		}
	}
}

func TestEveryTextIsAcceptedAndForgesNothing(t *testing.T) {
	t.Parallel()
	s, chat := hook(t, chattest.Options{NoLimits: true})
	for _, text := range hostile() {
		for _, items := range []int{0, 1, 3, 15} {
			for _, digest := range []bool{false, true} {
				about := fmt.Sprintf("%.20q %d %v", text, items, digest)
				n := example(text, items)
				n.Digest = digest
				_, err := s.Send(t.Context(), n, notice.Ref{}, free)
				require.NoError(t, err, about)
				m := last(t, chat)
				assertUnforged(t, m.Raw, about)
				if !digest && items > 0 {
					assert.Equal(t, min(items, 15), strings.Count(m.Text, "*Runbook:*"), "every alert keeps its runbook: %s", about)
				}
				forms, err := slack.Forms(n)
				require.NoError(t, err)
				for name, body := range forms {
					assert.Empty(t, chattest.CheckSlack(body), about+name)
					assertUnforged(t, body, about+name)
				}
			}
		}
	}
	page := page(t, chat)
	assert.NotContains(t, page, `class="mention">`)
	assert.NotContains(t, page, `evil.example"`)
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

func TestARunbookIsInPlainSight(t *testing.T) {
	t.Parallel()
	n := notice.Notice{Status: notice.Firing, Title: "t", Words: notice.English(), More: 3, Items: []notice.Item{
		{Firing: true, Name: "None"},
		{Firing: true, Name: "Dead", Runbook: "https://rb.example.com/dead", RunbookDead: "404"},
		{Firing: true, Name: "Good", Runbook: "https://rb.example.com/good?a=1&b=2"},
		{Firing: true, Name: "Strange", Runbook: "javascript:alert(1)"},
		{Firing: true, Name: "Long", Runbook: "https://rb.example.com/" + strings.Repeat("x", 5000)},
		{Name: "Ended"},
		{Firing: true, Name: "Paged", HasRunbook: true},
		{Firing: true, Name: "Stepped", Steps: []notice.Step{{Text: "mend it"}}},
	}}
	text := sent(t, n)
	for _, want := range []string{
		"⚠️ *No runbook.*", "<https://rb.example.com/dead|Dead> ⚠️ the link is dead (404)",
		"<https://rb.example.com/good?a=1&amp;b=2|Good>", "📕 *Runbook:* …", "*… and 3 more.*",
	} {
		assert.Contains(t, text, want)
	}
	assert.Equal(t, 2, strings.Count(text, "No runbook"), "an alert that has ended needs none")
	assert.NotContains(t, text, "javascript")
}

// sent is the text of a notice as it arrives.
func sent(t *testing.T, n notice.Notice) string {
	t.Helper()
	s, chat := hook(t, chattest.Options{NoLimits: true})
	_, err := s.Send(t.Context(), n, notice.Ref{}, free)
	require.NoError(t, err)
	return last(t, chat).Text
}

func TestFirstStepsAreCopyable(t *testing.T) {
	t.Parallel()
	command := "kubectl get pods -o json | jq '.items[] | select(.a<1 && .b>2)'"
	fenced := "cat <<'EOF' > x.md\n```\nbreak out <!channel>\n```\nEOF"
	long := "rm -rf /data/" + strings.Repeat("x", 4000)
	n := notice.Notice{Status: notice.Firing, Title: "t", Words: notice.Chinese(), Items: []notice.Item{{
		Firing: true, Name: "A", Runbook: "https://rb.example.com/a",
		Steps: []notice.Step{{Text: "1. Look < here"}, {Text: command, Code: true}, {Text: fenced, Code: true}, {Text: "Then wait."}, {Text: long, Code: true}},
	}}}
	s, chat := hook(t, chattest.Options{NoLimits: true})
	_, err := s.Send(t.Context(), n, notice.Ref{}, free)
	require.NoError(t, err)
	m := last(t, chat)
	escaped := strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;")
	texts, _ := parts(t, m.Raw)
	assert.Contains(t, m.Text, "*首要步骤*\n1. Look &lt; here\n```\n"+escaped.Replace(command)+"\n```")
	assert.Contains(t, texts, part{"plain_text", escaped.Replace(fenced)}, "a fence inside does not break out, and is copied as it is")
	assert.Contains(t, m.Text, "Then wait.\n…")
	assert.NotContains(t, m.Text, "rm -rf", "a command is whole or not there at all")
	for _, p := range texts {
		if p.Type == "mrkdwn" {
			assert.Zero(t, strings.Count(p.Text, "```")%2, p.Text)
		}
	}
}

func TestALongDescriptionStandsBelowTheFirstSteps(t *testing.T) {
	t.Parallel()
	it := notice.Item{Firing: true, Name: "A", Description: "short", Steps: []notice.Step{{Text: "do-this", Code: true}}}
	n := notice.Notice{Status: notice.Firing, Title: "t", Words: notice.English(), Items: []notice.Item{it}}
	text := sent(t, n)
	assert.Less(t, strings.Index(text, "short"), strings.Index(text, "do-this"))
	n.Items[0].Description = strings.Repeat("long ", 200)
	text = sent(t, n)
	assert.Less(t, strings.Index(text, "do-this"), strings.Index(text, "long long"))
	assert.Equal(t, 200, strings.Count(text, "long"))
}

func TestMentionsComeFromTheRouteAlone(t *testing.T) {
	t.Parallel()
	n := example("<!everyone>", 1)
	n.Mentions = []string{"here", "channel", "everyone", "U012AB3CD", "S0123ABCD", "all", "+86-13800000000", "user:x", "<!here>", "u012ab3cd"}
	text := sent(t, n)
	assert.Contains(t, text, "<!here> <!channel> <!everyone> <@U012AB3CD> <!subteam^S0123ABCD>\n")
	assert.Equal(t, 1, strings.Count(text, "<!everyone>"))
	assert.NotContains(t, text, "13800000000")
	n.Mentions = nil
	assert.NotContains(t, sent(t, n), "<!")
}

func TestWordsAndTimesAreTheReceivers(t *testing.T) {
	t.Parallel()
	zone := time.FixedZone("CST", 8*3600)
	n := notice.Notice{
		Status: notice.Partial, Title: "标题", Words: notice.Chinese(), Zone: zone, Late: "触发于 14:02，送达于 14:23", Truncated: 7, Severity: "warning",
		Items: []notice.Item{{Name: "A", Starts: time.Unix(0, 0), Ends: time.Unix(60, 0), Note: "10m 内抖动 6 次"}},
	}
	text := sent(t, n)
	for _, want := range []string{
		"开始于 1970-01-01 08:00:00 CST, 结束于 1970-01-01 08:01:00 CST", "⏱ 触发于 14:02，送达于 14:23", "↻ 10m 内抖动 6 次", "省略了另外 7 条",
		"🟡 部分恢复 · warning",
	} {
		assert.Contains(t, text, want)
	}
}

func TestColoursSayHowItIs(t *testing.T) {
	t.Parallel()
	s, chat := hook(t, chattest.Options{NoLimits: true})
	for _, c := range []struct {
		status         notice.Status
		severity, want string
	}{
		{notice.Firing, "critical", "#d32f2f"},
		{notice.Firing, "", "#d32f2f"},
		{notice.Firing, "warning", "#e0a100"},
		{notice.Resolved, "critical", "#2eb886"},
		{notice.Partial, "critical", "#e0a100"},
		{notice.Event, "info", "#439fe0"},
	} {
		n := notice.Notice{Status: c.status, Severity: c.severity, Words: notice.English()}
		_, err := s.Send(t.Context(), n, notice.Ref{}, free)
		require.NoError(t, err)
		assert.Equal(t, c.want, last(t, chat).Colour, "%v", c)
	}
}

func TestADigestHasALineForEachGroup(t *testing.T) {
	t.Parallel()
	n := notice.Notice{Status: notice.Firing, Digest: true, Title: "95 groups", Words: notice.English(), Mentions: []string{"here"}, Truncated: 1}
	for i := range 95 {
		n.Items = append(n.Items, notice.Item{
			Firing: true, Name: fmt.Sprintf("Alert%03d", i), Count: 2, Summary: strings.Repeat("long ", 100), Note: "fired 14:02",
			Runbook: fmt.Sprintf("https://rb.example.com/%d", i%3),
		})
	}
	s, chat := hook(t, chattest.Options{NoLimits: true})
	split := s.Split(n)
	require.Len(t, split, 3)
	assert.Equal(t, split, s.Split(n), "alike each time")
	for i, p := range split {
		_, err := s.Send(t.Context(), p, notice.Ref{}, free)
		require.NoError(t, err)
		m := last(t, chat)
		assert.Contains(t, m.Title, fmt.Sprintf("part %d of 3", i+1))
		assert.Equal(t, i == 0, strings.Contains(m.Text, "<!here>"), "people are rung once")
		assert.Equal(t, i == 2, strings.Contains(m.Text, "left out 1 more"))
		for _, it := range p.Items {
			assert.Contains(t, m.Text, "🔴 "+it.Name+" ×2 — long")
		}
		assert.Contains(t, m.Text, "— fired 14:02")
		assert.Equal(t, 3, strings.Count(m.Text, "<https://rb.example.com/"), "each page once")
	}
	assert.Len(t, s.Split(example("A", 95)), 1, "Slack cuts what is no digest")
}

func TestATemplatesBodyStandsInsteadOfTheAlerts(t *testing.T) {
	t.Parallel()
	n := example("ALERT", 2)
	n.Body = "*mine* &lt;safe&gt; <https://x.example/?a=1|link>\n"
	text := sent(t, n)
	assert.Contains(t, text, "*mine* &lt;safe&gt; <https://x.example/?a=1|link>")
	assert.NotContains(t, text, "target=etcd-prod")
	n.Body = strings.Repeat("word &amp; <https://x.example/abc|a link> ```code block``` \n", 400)
	s, chat := hook(t, chattest.Options{NoLimits: true})
	_, err := s.Send(t.Context(), n, notice.Ref{}, free)
	require.NoError(t, err)
	texts, _ := parts(t, last(t, chat).Raw)
	whole := regexp.MustCompile(`<https://x\.example/abc\|a link>|&amp;`)
	for _, p := range texts {
		if p.Type == "mrkdwn" && strings.Contains(p.Text, "word") {
			assert.NotRegexp(t, `[<>&]`, whole.ReplaceAllString(p.Text, ""), "links and entities are not parted")
			assert.Zero(t, strings.Count(p.Text, "```")%2)
		}
	}
}

func TestButtonsSayWhatTheyDo(t *testing.T) {
	t.Parallel()
	n := notice.Notice{Status: notice.Firing, Title: "t", Words: notice.English(), Silence: &notice.Silence{
		Matchers: map[string]string{"alertname": "A<b>&\"c", "target": "etcd"}, Comment: "[FIRING:1] A", Buttons: true,
		Links: []notice.Link{{Label: "Silence 1h", URL: "https://n.example/silence?t=1&u=2"}, {Label: "bad", URL: "javascript:x"}},
	}}
	s, chat := hook(t, chattest.Options{NoLimits: true})
	send := func() chattest.Message {
		_, err := s.Send(t.Context(), n, notice.Ref{}, free)
		require.NoError(t, err)
		return last(t, chat)
	}
	m := send()
	for action, seconds := range map[string]int{"lifeboat_silence_1": 3600, "lifeboat_silence_4": 14400, "lifeboat_ack": 0} {
		raw, err := chat.Interaction("ada", m.TS, action)
		require.NoError(t, err)
		var p struct{ Actions []struct{ Value string } }
		require.NoError(t, json.Unmarshal(raw, &p))
		var v struct {
			R, C string
			M    map[string]string
			D    int
		}
		require.NoError(t, json.Unmarshal([]byte(p.Actions[0].Value), &v))
		assert.Equal(t, "ops", v.R)
		assert.Equal(t, "[FIRING:1] A", v.C)
		assert.Equal(t, n.Silence.Matchers, v.M)
		assert.Equal(t, seconds, v.D)
		assert.NotRegexp(t, `[<>&]`, p.Actions[0].Value, "the value comes back as it was, whatever Slack escapes")
	}
	assert.Contains(t, m.Text, "Silence 1h\nSilence 4h\nAcknowledge")
	assert.NotContains(t, m.Text, "n.example")

	n.Silence.Matchers["long"] = strings.Repeat("x", 1900)
	m = send()
	assert.NotContains(t, m.Text, "Acknowledge", "a value that does not fit is not cut: it would silence something else")
	assert.Contains(t, m.Text, "<https://n.example/silence?t=1&amp;u=2|Silence 1h>")
	assert.NotContains(t, m.Text, "javascript")
	n.Silence.Links = nil
	assert.NotContains(t, send().Text, "Silence")
	n.Silence = nil
	assert.NotContains(t, send().Text, "Silence")
}

func TestRandomNoticesFit(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	text := func(most int) string {
		alphabet := []rune("ab c\n&<>`*_~|🔴钉\t\"\\{}")
		out := make([]rune, r.IntN(most+1))
		for i := range out {
			out[i] = alphabet[r.IntN(len(alphabet))]
		}
		return string(out)
	}
	for range 250 {
		n := example(text(400), 0)
		n.Digest, n.Mentions = r.IntN(4) == 0, []string{"here", "U012345678"}
		n.Words, n.Status = notice.In([]string{"en", "zh"}[r.IntN(2)]), []notice.Status{notice.Firing, notice.Resolved, notice.Event}[r.IntN(3)]
		if r.IntN(8) == 0 {
			n.Body = text(20_000)
		}
		n.Silence.Buttons = r.IntN(2) == 0
		for range 5 {
			n.Silence.Links = append(n.Silence.Links, notice.Link{Label: text(90), URL: "https://n.example/" + strings.Repeat("x", r.IntN(900))})
		}
		for range r.IntN(25) {
			it := notice.Item{
				Firing: r.IntN(2) == 0, Name: text(120), Summary: text(600), Description: text(6000), Note: text(90), RunbookDead: text(100),
				Runbook: "https://rb.example.com/" + strings.Repeat("y", r.IntN(1200)), Starts: time.Unix(1, 0), Count: r.IntN(5),
			}
			for range r.IntN(40) {
				it.Labels = append(it.Labels, notice.Label{Name: text(60), Value: text(300)})
			}
			for range r.IntN(12) {
				it.Steps = append(it.Steps, notice.Step{Text: text(1500), Code: r.IntN(2) == 0})
			}
			n.Items = append(n.Items, it)
		}
		forms, err := slack.Forms(n)
		require.NoError(t, err)
		for name, body := range forms {
			require.Empty(t, chattest.CheckSlack(body), name)
		}
	}
}

func FuzzForms(f *testing.F) {
	for _, text := range hostile() {
		f.Add(text, 3, false)
	}
	f.Fuzz(func(t *testing.T, text string, items int, digest bool) {
		n := example(text, min(max(items, 0), 45))
		n.Digest = digest
		forms, err := slack.Forms(n)
		require.NoError(t, err)
		for name, body := range forms {
			require.Empty(t, chattest.CheckSlack(body), name)
			assertUnforged(t, body, name)
		}
	})
}

func TestFitCutsAtWholeCharacters(t *testing.T) {
	t.Parallel()
	assert.Equal(t, "a&amp;", slack.Fit("a&", 6))
	assert.Equal(t, "a…", slack.Fit("a&", 5))
	assert.Equal(t, "…", slack.Fit("🔴🔴", 2))
	assert.Equal(t, "🔴🔴", slack.Fit("🔴🔴", 4))
	for most := 1; most < 40; most++ {
		assert.LessOrEqual(t, slack.Units(slack.Fit("a&🔴<钉>b&c🔴", most)), most)
	}
	assert.Equal(t, "∗a∗ etcd_no_leader ＿b＿ ˋcˋ ∼d∼ ∣", slack.Tame("*a* etcd_no_leader _b_ `c` ~d~ |"))
}
