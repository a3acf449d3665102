package dingtalk_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/chattest"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/deliver/dingtalk"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
)

const limit = 20_000

// sent are the bodies of all parts of a notice.
func sent(t *testing.T, style string, n notice.Notice) (parts []notice.Notice, bodies [][]byte) {
	t.Helper()
	r := &recorder{}
	s := recorded(r, style)
	parts = s.Split(n)
	require.NotEmpty(t, parts)
	for _, p := range parts {
		require.NoError(t, send(t, s, p))
	}
	require.Len(t, r.bodies, len(parts))
	return parts, r.bodies
}

func TestWhatFitsIsOneMessage(t *testing.T) {
	t.Parallel()
	n := example("A", 3)
	parts, bodies := sent(t, "", n)
	require.Len(t, parts, 1)
	assert.NotContains(t, said(t, bodies[0]), "part 1")
	assert.Equal(t, n.Title, parts[0].Title)
	parts, _ = sent(t, "", notice.Notice{Title: "nothing at all"})
	assert.Len(t, parts, 1)
}

func TestLongNoticesArePartedAndNothingIsLost(t *testing.T) {
	t.Parallel()
	for _, style := range []string{"", dingtalk.StyleActionCard} {
		n := example(strings.Repeat("what is it? ", 100), 15)
		n.Title = strings.Repeat("[*]", 200)
		n.Silence = &notice.Silence{Links: []notice.Link{{Label: "Silence 1h", URL: "https://lb.example.com/s?t=" + strings.Repeat("x", 800)}}}
		for i := range n.Items {
			n.Items[i].Summary = fmt.Sprintf("alert-%02d", i)
			n.Items[i].Steps = []notice.Step{{Text: fmt.Sprintf("run-%02d --it", i), Code: true}}
		}
		parts, bodies := sent(t, style, n)
		require.Len(t, parts, 3)
		all := ""
		for i, b := range bodies {
			assert.LessOrEqual(t, len(b), limit)
			assert.Zero(t, chattest.CheckDingTalk(b))
			words := said(t, b)
			assert.Contains(t, words, fmt.Sprintf("part %d of 3", i+1))
			assert.Equal(t, i == 0, strings.Contains(words, "⏰"), "why it is late is said once")
			assert.Equal(t, i == 2, strings.Contains(words, "… and 3 more."))
			assert.Equal(t, i == 2, strings.Contains(words, "left out 2 more"))
			assert.Equal(t, i == 2, strings.Contains(string(b), "lb.example.com"), "the silence link stands in the last one")
			all += words
		}
		for i := range n.Items {
			assert.Equal(t, 1, strings.Count(all, fmt.Sprintf("alert-%02d", i)))
			assert.Equal(t, 1, strings.Count(all, fmt.Sprintf("```\nrun-%02d --it\n```", i)))
		}
	}
}

func TestWhatHasNoRoomInThreeMessagesIsCounted(t *testing.T) {
	t.Parallel()
	n := example(strings.Repeat("x", 3000), 500)
	n.More = 7
	parts, bodies := sent(t, "", n)
	require.Len(t, parts, 3)
	told := 0
	for _, b := range bodies {
		assert.LessOrEqual(t, len(b), limit)
		told += strings.Count(said(t, b), "**Runbook:**")
	}
	assert.Greater(t, told, 45)
	assert.Contains(t, said(t, bodies[2]), fmt.Sprintf("… and %d more.", 500-told+7))

	digest := notice.Notice{Status: notice.Firing, Title: "d", Digest: true}
	for i := range 2000 {
		digest.Items = append(digest.Items, notice.Item{Firing: true, Name: fmt.Sprintf("group %04d is on fire", i), Count: 5})
	}
	parts, bodies = sent(t, "", digest)
	require.Len(t, parts, 3)
	lines := 0
	for _, b := range bodies {
		assert.LessOrEqual(t, len(b), limit)
		lines += strings.Count(said(t, b), "- 🔴")
	}
	assert.Greater(t, lines, 800)
	assert.Equal(t, (2000-lines)*5, parts[2].More, "alerts are counted, not groups")
}

// What changes between two attempts is why a notice is late, whom it mentions, notes, dead links, and signatures of links.
func TestPartsStayTheSameWhenADeliveryIsTriedAgain(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	for range 100 {
		n := notice.Notice{Status: notice.Firing, Title: "t"}
		for range rnd.IntN(40) {
			n.Items = append(n.Items, notice.Item{
				Firing: true, Summary: strings.Repeat("s ", rnd.IntN(200)), Description: strings.Repeat("d\"", rnd.IntN(1500)),
				Runbook: "https://rb.example.com/" + strings.Repeat("r", rnd.IntN(200)),
			})
		}
		again := n
		again.Items = nil
		for _, it := range n.Items {
			it.Note, it.RunbookDead = strings.Repeat("n", rnd.IntN(400)), strings.Repeat("x", rnd.IntN(100))
			again.Items = append(again.Items, it)
		}
		again.Late, again.Mentions, again.Footer = strings.Repeat("l", rnd.IntN(600)), []string{"all", "13800138000"}, "footer"
		first, _ := sent(t, "", n)
		second, bodies := sent(t, "", again)
		require.Len(t, second, len(first))
		for i := range first {
			require.Len(t, second[i].Items, len(first[i].Items), "part %d", i)
			require.LessOrEqual(t, len(bodies[i]), limit)
			require.Equal(t, len(first[i].Items), strings.Count(said(t, bodies[i]), "📕")+strings.Count(said(t, bodies[i]), "⚠️ **Runbook**"), "none is dropped when it is sent")
		}
	}
}

func TestABodyIsPartedAtLineEnds(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	for i := range 400 {
		fmt.Fprintf(&b, "line %03d of a person's own \"template\" **with markup**\n", i)
	}
	n := notice.Notice{Status: notice.Firing, Title: "own", Body: b.String(), Items: example("A", 2).Items}
	parts, bodies := sent(t, "", n)
	require.Len(t, parts, 2)
	var joined []string
	for i, body := range bodies {
		assert.LessOrEqual(t, len(body), limit)
		assert.Contains(t, said(t, body), parts[i].Body)
		assert.NotContains(t, said(t, body), "Runbook", "a body stands instead of the items")
		joined = append(joined, parts[i].Body)
	}
	assert.Equal(t, b.String(), strings.Join(joined, "\n")+"\n")
}

func TestABodysCodeIsCodeInBothParts(t *testing.T) {
	t.Parallel()
	body := "before\n```sh\n" + strings.Repeat("echo a-command-that-is-rather-long\n", 600) + "```\nafter\n"
	parts, bodies := sent(t, "", notice.Notice{Title: "t", Body: body})
	require.Len(t, parts, 2)
	assert.True(t, strings.HasSuffix(parts[0].Body, "\n```"))
	assert.True(t, strings.HasPrefix(parts[1].Body, "```sh\n"))
	assert.True(t, strings.HasSuffix(parts[1].Body, "```\nafter"))
	for _, b := range bodies {
		assert.Zero(t, chattest.CheckDingTalk(b))
	}
}

func TestABodyWithoutEndIsCut(t *testing.T) {
	t.Parallel()
	for _, body := range []string{strings.Repeat("x", 200_000), strings.Repeat("钉 ", 50_000), strings.Repeat("\"\\\n", 60_000), strings.Repeat("```\n", 40_000)} {
		parts, bodies := sent(t, "", notice.Notice{Title: "t", Body: body})
		require.Len(t, parts, 3)
		for _, b := range bodies {
			assert.Zero(t, chattest.CheckDingTalk(b))
			assert.LessOrEqual(t, len(b), limit)
		}
		assert.True(t, strings.HasSuffix(parts[2].Body, "…"))
	}
}

func FuzzSend(f *testing.F) {
	for i, text := range hostile() {
		f.Add(text, text, 1+i%15, i%3)
	}
	f.Fuzz(func(t *testing.T, text, other string, items, form int) {
		n := example(text, min(max(items, 0), 40))
		for i := range n.Items {
			n.Items[i].Description, n.Items[i].Runbook = other, "https://rb.example.com/"+text
		}
		n.Silence = &notice.Silence{Links: []notice.Link{{Label: "Silence 1h", URL: "https://lb.example.com/" + other}}}
		style := ""
		switch form {
		case 1:
			style = dingtalk.StyleActionCard
		case 2:
			n.Digest = true
		}
		_, bodies := sent(t, style, n)
		for _, b := range bodies {
			require.Zero(t, chattest.CheckDingTalk(b), "%.200q", b)
			m := chattest.Message{Kind: chattest.DingTalk, Raw: b}
			require.Empty(t, m.Mentioned())
			require.NotContains(t, string(b), "@")
			words := said(t, b)
			require.Equal(t, strings.Count(words, "]("), strings.Count(words, "](https://rb.example.com/")+strings.Count(words, "](https://lb.example.com/"))
			for _, mark := range []string{"![", "<", "~~", "```", "\n#", "\n1. ", "\n==="} {
				require.NotContains(t, strings.TrimPrefix(words, "### "), mark)
			}
		}
	})
}
