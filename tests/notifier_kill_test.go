package tests

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/chattest"
)

func bothChats() map[string]chattest.Kind {
	return map[string]chattest.Kind{"slack": chattest.Slack, "dingtalk": chattest.DingTalk}
}

// looseLimits are for chats without limits, in tests that would take minutes with them.
const looseLimits = `
  receivers:
    - {name: slack, slack: {webhook_url_file: slack}, limit: {messages: -1}}
    - {name: dingtalk, dingtalk: {webhook_url_file: dingtalk, secret_file: dingtalk-secret}, limit: {messages: -1}}
  route:
    receiver: slack
    routes:
      - {receiver: slack, matchers: ['alertname=~".+"'], continue: true}
      - {receiver: dingtalk, matchers: ['alertname=~".+"']}
`

// gate stands before a notifier and counts what Alertmanager sends. When the notifier breaks off, so does the gate.
type gate struct {
	*httptest.Server
	arrived, broken, taken atomic.Int64
}

func newGate(t *testing.T, to string) *gate {
	t.Helper()
	g := &gate{}
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: to})
	proxy.Transport = &http.Transport{DisableKeepAlives: true}
	proxy.ErrorHandler = func(http.ResponseWriter, *http.Request, error) {
		g.broken.Add(1)
		panic(http.ErrAbortHandler)
	}
	proxy.ModifyResponse = func(resp *http.Response) error {
		if resp.StatusCode == http.StatusOK {
			g.taken.Add(1)
		}
		return nil
	}
	g.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.arrived.Add(1)
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(g.Close)
	return g
}

// A webhook that is being posted when the notifier dies gets no answer, and Alertmanager brings it again.
func TestNotifierKilledWhileAWebhookIsPosted(t *testing.T) {
	t.Parallel()
	d := newDesk(t, chattest.Options{}, toBoth)
	g := newGate(t, d.hook)
	p := d.run()
	am, err := bintest.StartAlertmanager(t.Context(), d.dir+"/alertmanager", g.URL+"/api/v1/alertmanager")
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, am.Kill()) })
	// NATS stands still, so the webhook waits for it.
	require.NoError(t, d.nats.Signal(syscall.SIGSTOP))
	d.tellAlertmanager(am, map[string]any{"labels": map[string]string{"alertname": "StepPosted", "severity": "warning"}})
	require.Eventually(t, func() bool { return g.arrived.Load() > 0 }, time.Minute, 10*time.Millisecond)
	require.NoError(t, p.Kill())
	require.NoError(t, d.nats.Signal(syscall.SIGCONT))
	require.Eventually(t, func() bool { return g.broken.Load() > 0 }, time.Minute, 10*time.Millisecond, "it was answered")
	assert.Zero(t, g.taken.Load())
	d.run()
	d.seen("the alert", func([]chattest.Message) bool {
		return len(d.naming(chattest.Slack, "StepPosted")) == 1 && len(d.naming(chattest.DingTalk, "StepPosted")) == 1
	})
	d.accounted(bothChats(), []string{"StepPosted"}, int(g.arrived.Load()))
	d.unseen()
}

// dies is a moment in the life of alerts at which the notifier is killed.
type dies struct {
	name string
	// names are of the alerts that send sends. until waits for the moment, and again is how many alerts may be told twice.
	names []string
	send  func(d *desk)
	until func(d *desk)
	again int
	// first is done when the robot has accepted its first message, if that matters.
	first func(c *chattest.Server)

	desk   *desk
	killed time.Time
}

func moments() []dies {
	hang, late := chattest.Fault{Hang: true}, chattest.Fault{Hang: true, Accept: true}
	one := func(name string, fault chattest.Fault, again int) dies {
		return dies{
			name: name, names: []string{"StepOne"}, again: again,
			send: func(d *desk) {
				d.chat.FailNext(chattest.Slack, 1, fault)
				d.chat.FailNext(chattest.DingTalk, 1, fault)
				d.sends(hookOf(d.t, "StepOne", fires("StepOne", "critical")))
			},
			until: func(d *desk) {
				d.reached(chattest.Slack, 1)
				d.reached(chattest.DingTalk, 1)
			},
		}
	}
	return []dies{
		{
			name: "it answered 200 and has not routed", names: []string{"StepOne"},
			send: func(d *desk) {
				_, err := d.js.PauseConsumer(d.t.Context(), "LIFEBOAT_ALERTS", "notifier-route", time.Now().Add(time.Hour))
				require.NoError(d.t, err)
				d.sends(hookOf(d.t, "StepOne", fires("StepOne", "critical")))
			},
			until: func(d *desk) { require.EqualValues(d.t, 1, d.waiting()) },
		},
		one("the chats hold its requests", hang, 0),
		one("the chats have accepted and nothing is recorded", late, 1),
		digestMoment(late),
		splitMoment(late),
	}
}

// digestMoment: the robot was busy, then takes what waits in a digest, and never says so.
func digestMoment(late chattest.Fault) dies {
	s := dies{name: "a digest has been accepted and nothing is recorded", again: 10}
	for i := range 10 { // more than are told one by one, and no more than the robot takes afterwards
		s.names = append(s.names, fmt.Sprintf("StepMany%02d", i))
	}
	s.send = func(d *desk) {
		d.chat.FailNext(chattest.DingTalk, 2, chattest.DingTalkError(-1))
		d.chat.FailNext(chattest.DingTalk, 1, late)
		for _, name := range s.names {
			d.sends(hookOf(d.t, name, fires(name, "warning")))
		}
	}
	s.until = func(d *desk) {
		d.reached(chattest.DingTalk, 3)
		d.seen("the digest", func([]chattest.Message) bool {
			return len(d.naming(chattest.DingTalk, "StepMany")) == 1
		})
		for _, name := range s.names {
			require.Len(d.t, d.naming(chattest.DingTalk, name), 1, "%s is not in the digest", name)
		}
	}
	return s
}

// splitMoment: a group is too long for one message of the robot, and the notifier dies with the second one.
func splitMoment(late chattest.Fault) dies {
	s := dies{name: "the second message of three has been accepted and nothing is recorded", again: 15}
	var all []alert
	for i := range 15 { // as many as a message names
		name := fmt.Sprintf("StepLong%02d", i)
		a := fires(name, "critical")
		a.Annotations["description"] = strings.Repeat("the disk is full and this is how it came to be. ", 60)
		s.names, all = append(s.names, name), append(all, a)
	}
	s.send = func(d *desk) {
		d.sends(hookOf(d.t, "StepLong", all...))
	}
	s.first = func(c *chattest.Server) { c.FailNext(chattest.DingTalk, 1, late) }
	s.until = func(d *desk) {
		d.reached(chattest.DingTalk, 2)
		d.seen("two messages", func([]chattest.Message) bool { return len(d.naming(chattest.DingTalk, "StepLong")) == 2 })
	}
	return s
}

// Whatever a notifier was doing when it is killed with -9, its successor brings every alert to its end, and nothing is told twice but what
// was just being told. All successors wait together for the 30 s after which they are given what their predecessors held.
func TestNotifierKilledAtEachStepOfADelivery(t *testing.T) {
	t.Parallel()
	all := moments()
	for i := range all {
		all[i].kill(t)
	}
	for i := range all {
		t.Log(all[i].name)
		all[i].check(t)
	}
}

// kill sends the alerts, kills the notifier at the moment, and starts the next one.
func (s *dies) kill(t *testing.T) {
	t.Helper()
	var chat atomic.Pointer[chattest.Server]
	var once sync.Once
	s.desk = newDesk(t, chattest.Options{OnMessage: func(m chattest.Message) {
		if m.Kind == chattest.DingTalk && s.first != nil {
			once.Do(func() { s.first(chat.Load()) })
		}
	}}, toBoth)
	chat.Store(s.desk.chat)
	p := s.desk.run()
	s.send(s.desk)
	s.until(s.desk)
	require.NoError(t, p.Kill(), s.name)
	s.killed = time.Now()
	s.desk.run()
	s.desk.resume()
}

func (s *dies) check(t *testing.T) {
	t.Helper()
	d := s.desk
	d.accounted(bothChats(), s.names, len(s.names))
	for _, k := range bothChats() {
		again := d.twice(k, s.names, []time.Time{s.killed})
		t.Logf("%s: %d alerts told twice", k, again)
		assert.LessOrEqual(t, again, s.again, "%s: %s", s.name, k)
	}
	if s.first != nil {
		assert.Len(t, d.naming(chattest.DingTalk, s.names[0]), 1, "the first message was recorded as sent, and is not sent again")
	}
	assert.Empty(t, d.letters(), s.name)
	d.unseen()
}

// resume lets the routes go on that a step paused.
func (d *desk) resume() {
	d.t.Helper()
	_, err := d.js.ResumeConsumer(d.t.Context(), "LIFEBOAT_ALERTS", "notifier-route")
	require.NoError(d.t, err)
}

// expire lets NATS give the messages of a dead process to the next one at once, instead of after 30 s: the next one sets its wait again
// when it starts. It is for tests of many kills; those of a single step wait.
func (d *desk) expire() {
	d.t.Helper()
	s, err := d.js.Stream(d.t.Context(), "LIFEBOAT_ALERTS")
	require.NoError(d.t, err)
	all := s.ListConsumers(d.t.Context())
	for info := range all.Info() {
		cfg := info.Config
		cfg.AckWait = 10 * time.Millisecond
		_, err := s.UpdateConsumer(d.t.Context(), cfg)
		require.NoError(d.t, err)
	}
	require.NoError(d.t, all.Err())
}

// stream sends alerts one after the other, in groups of their own, and again what was not taken, until all are.
func (d *desk) stream(n int, every time.Duration) (names []string, done <-chan error) {
	bodies := make([][]byte, 0, n)
	for i := range n {
		name := fmt.Sprintf("Stream%03dEnd", i)
		names = append(names, name)
		bodies = append(bodies, hookOf(d.t, name, fires(name, []string{"critical", "warning", "warning"}[i%3])))
	}
	ended := make(chan error, 1)
	go func() {
		var wg sync.WaitGroup
		errs := make([]error, n)
		tick := time.NewTicker(every)
		defer tick.Stop()
		for i, b := range bodies {
			wg.Go(func() { errs[i] = d.send(b) })
			<-tick.C
		}
		wg.Wait()
		ended <- errors.Join(errs...)
	}()
	return names, ended
}

// A notifier is killed with -9 at moments that nobody chose, while alerts come in, again and again.
func TestNotifierKilledAtRandomMoments(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	d := newDesk(t, chattest.Options{NoLimits: true, OnMessage: func(chattest.Message) {
		<-time.After(10 * time.Millisecond) // it answers only then, so that many kills are between a message and its answer
	}}, looseLimits)
	p := d.run()
	names, done := d.stream(90, 100*time.Millisecond)
	var kills []time.Time
	for range 5 {
		// A moment by what has happened, for the machine may be slow: after so many more messages, and a little.
		more := len(d.chat.Messages()) + 1 + random.IntN(20)
		little := time.Duration(random.IntN(30)) * time.Millisecond
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		_ = d.chat.Wait(ctx, func(all []chattest.Message) bool { return len(all) >= more }) // or five seconds later
		cancel()
		<-time.After(little)
		require.NoError(t, p.Kill())
		kills = append(kills, time.Now())
		d.expire()
		p = d.run()
	}
	require.NoError(t, <-done)
	d.accounted(bothChats(), names, len(names))
	for _, k := range bothChats() {
		t.Logf("%s: %d alerts told twice in %d kills", k, d.twice(k, names, kills), len(kills))
	}
	assert.Empty(t, d.letters())
	d.unseen()
}
