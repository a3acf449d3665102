package chattest_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/chattest"
)

func robot(t *testing.T, s *chattest.Server, body string) string {
	t.Helper()
	code, answer, _ := do(t, http.MethodPost, s.DingTalkURL()+"&"+sign(time.Now(), s.DingTalkSecret()).Encode(), body)
	assert.Equal(t, http.StatusOK, code, "errors come with 200")
	return answer
}

func TestDingTalkCards(t *testing.T) {
	t.Parallel()
	card := func(rest string) int {
		return chattest.CheckDingTalk([]byte(`{"msgtype":"actionCard","actionCard":{` + rest + `}}`))
	}
	button := `{"title":"b","actionURL":"https://x/"}`
	for rest, want := range map[string]int{
		`"title":"t","text":"x","btns":[` + button + `]`:                                 0,
		`"title":"t","text":"x","singleTitle":"b","singleURL":"https://x/"`:              0,
		`"title":"t","text":"x","btns":[` + strings.Repeat(button+",", 4) + button + `]`: 0,
		`"title":"t","text":"x","btns":[` + strings.Repeat(button+",", 5) + button + `]`: 40035,
		`"title":"t","text":"x"`:                                                   40035,
		`"title":"t","text":"x","btns":[]`:                                         40035,
		`"title":"t","text":"x","btns":[{"title":"b"}]`:                            40035,
		`"title":"t","text":"x","btns":[{"actionURL":"https://x/"}]`:               40035,
		`"title":"t","text":"x","btns":[{"title":"b","actionURL":"javascript:1"}]`: 40035,
		`"title":"t","text":"x","btns":[{"title":"b","actionURL":"https://%zz"}]`:  40035,
		`"title":"t","text":"x","singleTitle":"b"`:                                 40035,
		`"title":"t","btns":[` + button + `]`:                                      40035,
		`"text":"x","btns":[` + button + `]`:                                       40035,
	} {
		assert.Equal(t, want, card(rest), rest)
	}
	assert.Equal(t, 460101, card(`"title":"t","text":"`+strings.Repeat("x", 20_000)+`"`))
}

func TestDingTalkMentionsOnlyWhomTheTextNames(t *testing.T) {
	t.Parallel()
	s := chattest.New(t)
	for _, c := range []struct {
		text, at  string
		mentioned []string
		problems  int
	}{
		{"hi", `{}`, nil, 0},
		{"hi @13800138000", `{}`, nil, 0},
		{"hi @13800138000!", `{"atMobiles":["13800138000"]}`, []string{"13800138000"}, 0},
		{"hi", `{"atMobiles":["13800138000"]}`, nil, 1},
		{"hi @138001380001", `{"atMobiles":["13800138000"]}`, nil, 1},
		{"hi @joe", `{"atUserIds":["joe","jane"],"isAtAll":true}`, []string{"all", "joe"}, 1},
	} {
		body := fmt.Sprintf(`{"msgtype":"markdown","markdown":{"title":"t","text":%q},"at":%s}`, c.text, c.at)
		require.Contains(t, robot(t, s, body), `"errcode":0`)
		ms := s.Messages()
		assert.Equal(t, c.mentioned, ms[len(ms)-1].Mentioned(), c.text)
		assert.Len(t, ms[len(ms)-1].Problems(), c.problems, c.text)
	}
	require.Contains(t, robot(t, s, `{"msgtype":"actionCard","at":{"isAtAll":true},"actionCard":{"title":"t","text":"x","singleTitle":"b","singleURL":"https://x/"}}`), `"errcode":0`)
	m := s.Messages()[6]
	assert.Empty(t, m.Mentioned())
	assert.Equal(t, []string{"an actionCard mentions nobody"}, m.Problems())
	assert.Equal(t, []chattest.DingTalkButton{{Title: "b", ActionURL: "https://x/"}}, m.Buttons())
}

func TestDingTalkFailsAsItIsTold(t *testing.T) {
	t.Parallel()
	const good = `{"msgtype":"text","text":{"content":"x"}}`
	s := chattest.NewWith(t, chattest.Options{NoLimits: true})
	for _, code := range []int{-1, 130101, 410100, 90030, 310000, 300005, 400101, 400102, 400013, 400106, 40035, 43004, 400105, 400403, 460101, 101002} {
		fault := chattest.DingTalkError(code)
		assert.NotEmpty(t, fault.ErrMsg, code)
		s.FailNext(chattest.DingTalk, 1, fault)
		assert.Contains(t, robot(t, s, good), fmt.Sprintf(`"errcode":%d,`, code))
	}
	s.FailNext(chattest.DingTalk, 1, chattest.DingTalkThrottled())
	assert.JSONEq(t, `{"punish":"deny","wait":600,"status":1111}`, robot(t, s, good))
	assert.Empty(t, s.Messages())

	half := chattest.DingTalkError(-1)
	half.Accept = true
	s.FailNext(chattest.DingTalk, 1, half)
	assert.Contains(t, robot(t, s, good), `"errcode":-1`)
	assert.Len(t, s.Messages(), 1, "it half succeeded")
	for range 50 {
		require.Contains(t, robot(t, s, good), `"errcode":0`)
	}
}

func TestDingTalkSaysWhatIsWrongWithASignature(t *testing.T) {
	t.Parallel()
	s := chattest.New(t)
	for want, q := range map[string]string{
		"sign not match":    sign(time.Now(), "wrong").Encode(),
		"invalid timestamp": sign(time.Now().Add(-61*time.Minute), s.DingTalkSecret()).Encode(),
	} {
		_, answer, _ := do(t, http.MethodPost, s.DingTalkURL()+"&"+q, `{}`)
		assert.Contains(t, answer, want)
		assert.Contains(t, answer, `"errcode":310000`)
	}
	_, answer, _ := do(t, http.MethodPost, s.DingTalkURL(), `{}`)
	assert.Contains(t, answer, "sign not match")
}
