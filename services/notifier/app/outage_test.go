package app_test

import (
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/chattest"
)

// clock runs like the real one, and can be moved ahead.
type clock struct {
	mu    sync.Mutex
	ahead time.Duration
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.ahead)
}

func (c *clock) move(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ahead += d
}

// hooks sends one webhook for each of n alerts and returns their names.
func (f *fleet) hooks(name, severity string, n int) (names []string) {
	f.t.Helper()
	for i := range n {
		names = append(names, fmt.Sprintf("%s%02dEnd", name, i))
		f.send(hook(names[i], "firing", severity, map[string]string{"summary": "about " + names[i]}))
	}
	return names
}

// ended adds up the alerts of the events with which a receiver's deliveries ended.
func (f *fleet) ended(receiver string, verbs ...string) (n int) {
	f.t.Helper()
	for _, verb := range verbs {
		for _, e := range events(f.t, f.events.snapshot(), "alert", verb) {
			if e.GetAttributes()["receiver"] != receiver {
				continue
			}
			for name, sign := range map[string]int{"alerts": 1, "held": -1} {
				if text, has := e.GetAttributes()[name]; has {
					alerts, err := strconv.Atoi(text)
					require.NoError(f.t, err)
					n += sign * alerts
				}
			}
		}
	}
	return n
}

// late is the mark of what could not be told in time, with the reason.
var late = regexp.MustCompile(`fired \d\d:\d\d, delivered \d\d:\d\d: \S`)

const withFallback = `
  receivers:
    - name: ops
      slack: {webhook_url_file: slack-url}
    - name: oncall
      slack: {bot_token_file: slack-bot-token, channel: %s, api_url: %q}
      fallback: robot
      fallback_after: 10m
    - name: robot
      dingtalk: {webhook_url_file: dingtalk-url, secret_file: dingtalk-secret}
  route:
    receiver: ops
    routes:
      - {receiver: oncall, matchers: ['alertname=~"Db.*"'], continue: true}
      - {receiver: ops}
`

// Slack is down for 20 minutes. Nothing is lost: where there is a fallback it took over after ten, and when Slack is back the critical
// alerts come first, each in its own message, then the others in digests, and all say since when they fire and why they come late.
func TestChatDownFor20Minutes(t *testing.T) {
	t.Parallel()
	c := &clock{}
	s := settings{now: c.now, chat: chattest.Options{Now: c.now}}
	f := newFleet(t, s)
	s.notifier = fmt.Sprintf(withFallback, f.chat.SlackChannel(), f.chat.SlackAPIURL())
	f.stop()
	f.configure(s)
	f.chat.FailAll(chattest.Slack, chattest.Fault{Status: http.StatusServiceUnavailable, Body: "down for maintenance"})
	f.start()
	others := f.hooks("Warn", "warning", 25)
	critical := f.hooks("Crit", "critical", 3)
	db := f.hooks("DbOld", "warning", 2)
	f.waitRequests(chattest.Slack, 2)
	c.move(5 * time.Minute)
	others = append(others, f.hooks("Later", "warning", 25)...)
	assert.Empty(t, of(f.chat.Messages(), chattest.DingTalk))
	c.move(6 * time.Minute) // 11
	f.waitChat(func(ms []chattest.Message) bool {
		return len(of(ms, chattest.DingTalk, db[0])) > 0 && len(of(ms, chattest.DingTalk, db[1])) > 0
	})
	for _, m := range of(f.chat.Messages(), chattest.DingTalk) {
		assert.Regexp(t, late, m.Text)
		assert.Contains(t, m.Text, "instead of oncall", "the fallback says whom it replaces")
		assert.Contains(t, m.Text, "503", "and why")
	}
	c.move(4 * time.Minute) // 15
	critical = append(critical, f.hooks("CritNext", "critical", 2)...)
	c.move(5 * time.Minute) // 20
	assert.Empty(t, of(f.chat.Messages(), chattest.Slack))
	f.chat.Heal(chattest.Slack)
	c.move(3 * time.Minute) // longer than any pause between two attempts

	all := slices.Concat(others, critical, db)
	f.await(f.events, "all ends", func([]*bus.Message) bool {
		return f.ended("ops", "delivered", "folded", "dead") >= len(all) && f.ended("robot", "delivered") >= len(db)
	})
	toOps := slices.DeleteFunc(of(f.chat.Messages(), chattest.Slack), func(m chattest.Message) bool { return m.Channel == f.chat.SlackChannel() })
	for _, name := range all {
		assert.Len(t, of(toOps, chattest.Slack, name), 1, name)
	}
	for i, m := range toOps {
		t.Log(m.Title)
		assert.Regexp(t, late, m.Text, m.Title)
		assert.Equal(t, i < len(critical), strings.Contains(m.Text, "Crit"), "critical ones come first: message %d is %s", i, m.Title)
	}
	assert.LessOrEqual(t, len(toOps), len(critical)+3, "the others come in digests")
	assert.Equal(t, len(all), f.ended("ops", "delivered"))
	assert.Equal(t, len(db), f.ended("oncall", "handed-on"), "what had waited for ten minutes")
	assert.Equal(t, len(db), f.ended("robot", "delivered"))
	assert.Zero(t, f.ended("oncall", "delivered", "folded", "dead"))
	assert.Empty(t, bot(f.chat))
	assert.Empty(t, f.dead.snapshot())
	f.unseen()
}

// The robot refuses every signature. It is left alone for a while, what is for it waits, and when somebody has written the right secret into
// the file it is delivered, without a restart.
func TestWrongSigningSecretParksTheRobotUntilItIsMended(t *testing.T) {
	t.Parallel()
	c := &clock{}
	f := newFleet(t, settings{now: c.now, chat: chattest.Options{Now: c.now}})
	const wrong = "SECwrong0123456789wrong0123456789"
	f.write("dingtalk-secret", wrong)
	names := f.hooks("Parked", "critical", 3)
	f.waitChat(func(ms []chattest.Message) bool { return len(of(ms, chattest.Slack, "Parked")) == 3 })
	require.Eventually(t, func() bool { return strings.Contains(f.logs.String(), "leaving the chat alone") }, patience, 10*time.Millisecond)
	f.write("dingtalk-secret", f.chat.DingTalkSecret())
	c.move(time.Minute)
	assert.Empty(t, of(f.chat.Messages(), chattest.DingTalk))
	assert.Equal(t, 1, f.chat.Requests(chattest.DingTalk), "a robot that needs a person is not asked again and again")
	c.move(5 * time.Minute)
	f.waitChat(func(ms []chattest.Message) bool { return len(of(ms, chattest.DingTalk, names[2])) == 1 })
	for _, name := range names {
		told := of(f.chat.Messages(), chattest.DingTalk, name)
		require.Len(t, told, 1, name)
		assert.Regexp(t, late, told[0].Text)
	}
	assert.Empty(t, f.dead.snapshot())
	f.unseen(wrong)
}

// The bot's token is revoked. As soon as a new one is in the file the bot posts again.
func TestRevokedBotTokenIsReplacedWithoutARestart(t *testing.T) {
	t.Parallel()
	s := settings{chat: loose()}
	f := newFleet(t, s)
	f.stop()
	s.notifier = fmt.Sprintf(withFallback, f.chat.SlackChannel(), f.chat.SlackAPIURL())
	f.configure(s)
	f.start()
	revoked := f.chat.SlackBotToken()
	f.chat.RevokeToken()
	names := f.hooks("DbToken", "critical", 2)
	f.waitRequests(chattest.SlackPost, 1)
	assert.Empty(t, bot(f.chat))
	f.write("slack-bot-token", f.chat.RenewToken())
	f.waitChat(func([]chattest.Message) bool { return len(bot(f.chat)) >= 2 })
	for _, name := range names {
		assert.Len(t, of(bot(f.chat), chattest.Slack, name), 1)
	}
	assert.Empty(t, f.dead.snapshot())
	f.unseen(revoked)
}

// bot are the messages in the bot's channel, without their threads.
func bot(chat *chattest.Server) []chattest.Message {
	return slices.DeleteFunc(chat.Messages(), func(m chattest.Message) bool { return m.Channel != chat.SlackChannel() || m.ThreadTS != "" })
}

// unseen looks for every secret, and more, in all that the notifier wrote.
func (f *fleet) unseen(more ...string) {
	f.t.Helper()
	f.stop()
	all := f.logs.String()
	require.NotEmpty(f.t, all, "nothing was logged, so nothing was looked at")
	for _, m := range append(f.events.snapshot(), f.dead.snapshot()...) {
		all += string(m.Data)
	}
	for _, d := range letters(f.t, f.dead.snapshot()) {
		all += d.GetReason() + string(d.GetPayload())
	}
	secrets := append(more, f.chat.SlackToken(), f.chat.SlackBotToken(), f.chat.SlackSigningSecret(), f.chat.DingTalkToken(), f.chat.DingTalkSecret())
	for _, secret := range secrets {
		assert.NotContains(f.t, all, secret)
	}
}
