package app_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/chattest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/natstest"
	"github.com/lifeboat-fleet/lifeboat/fleet/service"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/app"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait; a test that passes takes a small part of it.
const patience = 90 * time.Second

// fleet is a notifier on a real NATS server with local chats, and an observer of its events and dead letters.
type fleet struct {
	t       *testing.T
	nats    *natstest.Server
	chat    *chattest.Server
	dir     string
	port    int
	now     func() time.Time
	logs    *buffer
	bus     *bus.Bus
	events  *recorder
	dead    *recorder
	settled bool
	health  string
	webhook string
	cancel  context.CancelFunc
	done    chan error
}

type settings struct {
	alertmanagers []string
	notifier      string // more lines under notifier:
	chat          chattest.Options
	port          int
	now           func() time.Time // the notifier's clock; time.Now when nil
}

// loose has limits that our own limiter never meets.
func loose() chattest.Options {
	return chattest.Options{SlackPerSecond: 1000, SlackBurst: 1000, DingTalkPerMinute: 1000}
}

const routes = `
  route:
    receiver: ops-slack
    routes:
      - matchers: ['severity="critical"']
        receiver: ops-slack
        continue: true
      - matchers: ['severity="critical"']
        receiver: ops-dingtalk
`

func newFleet(t *testing.T, s settings) *fleet {
	t.Helper()
	f := &fleet{
		t: t, nats: natstest.New(t), chat: chattest.NewWith(t, s.chat), dir: t.TempDir(), logs: &buffer{}, port: s.port, now: s.now,
		events: newRecorder(), dead: newRecorder(),
	}
	if f.port == 0 {
		ports, err := bintest.FreePorts(1)
		require.NoError(t, err)
		f.port = ports[0]
	}
	f.write("slack-url", f.chat.SlackURL())
	f.write("slack-bot-token", f.chat.SlackBotToken())
	f.write("dingtalk-url", f.chat.DingTalkURL())
	f.write("dingtalk-secret", f.chat.DingTalkSecret())
	f.configure(s)
	f.observe()
	f.start()
	t.Cleanup(f.stop)
	return f
}

func (f *fleet) write(name, content string) {
	f.t.Helper()
	// A rename, as template renderers do it, so that nobody reads half a file.
	tmp := filepath.Join(f.dir, "."+name)
	require.NoError(f.t, os.WriteFile(tmp, []byte(content+"\n"), 0o600))
	require.NoError(f.t, os.Rename(tmp, filepath.Join(f.dir, name)))
}

func (f *fleet) configure(s settings) {
	f.t.Helper()
	if s.notifier == "" {
		s.notifier = routes
	}
	receivers := `
  receivers:
    - name: ops-slack
      slack: {webhook_url_file: slack-url}
    - name: ops-dingtalk
      dingtalk: {webhook_url_file: dingtalk-url, secret_file: dingtalk-secret}
`
	if strings.Contains(s.notifier, "receivers:") {
		receivers = ""
	}
	quoted, err := json.Marshal(s.alertmanagers)
	require.NoError(f.t, err)
	if s.alertmanagers == nil {
		quoted = []byte("[]")
	}
	f.write("lifeboat.yaml", fmt.Sprintf(`
nats: {url: %q}
alertmanager: {urls: %s, resend_interval: 1s}
notifier:
  listen: 127.0.0.1:%d
  runbooks: {base_url: "https://runbooks.example.com/lifeboat", suffix: ".md"}
%s%s`, f.nats.URL(), quoted, f.port, receivers, s.notifier))
}

// observe follows events and dead letters for the whole test.
func (f *fleet) observe() {
	t := f.t
	log, err := service.NewLogger(io.Discard, "error")
	require.NoError(t, err)
	f.bus, err = bus.Connect(bus.Options{
		Config: config.NATS{URL: f.nats.URL()}, Actor: "test", Logger: log, Registerer: prometheus.NewRegistry(),
	})
	require.NoError(t, err)
	require.NoError(t, f.bus.EnsureStreams(t.Context()))
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for stream, r := range map[string]*recorder{bus.StreamEvents: f.events, bus.StreamDead: f.dead} {
		filter := map[string]string{bus.StreamEvents: bus.SubjectAllEvents, bus.StreamDead: "lifeboat.dead.>"}[stream]
		wg.Go(func() {
			_ = f.bus.Follow(ctx, bus.Follower{
				Stream: stream, Filters: []string{filter}, Message: r.add, CaughtUp: func() {},
			})
		})
	}
	// A follower that has seen nothing yet may miss messages when NATS restarts, so each sees a first one.
	require.NoError(t, f.bus.Emit(t.Context(), &lifeboatv1.Event{Noun: "test", Verb: "started"}))
	require.NoError(t, f.bus.DeadLetter(t.Context(), "test", &lifeboatv1.DeadLetter{Subject: "test"}))
	<-f.events.began
	<-f.dead.began
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		_ = f.bus.Close() // the server may be stopped
	})
}

// start runs the notifier and waits for its addresses.
func (f *fleet) start() {
	f.t.Helper()
	log, err := service.NewLogger(f.logs, "debug")
	require.NoError(f.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	up := make(chan [2]string, 1)
	f.cancel, f.done = cancel, make(chan error, 1)
	go func() {
		f.done <- app.Run(ctx, app.Options{
			ConfigPath: filepath.Join(f.dir, "lifeboat.yaml"), HTTPAddr: "127.0.0.1:0", Logger: log, Now: f.now,
			Started: func(a app.Addresses) { up <- [2]string{a.Health, a.Webhooks} },
		})
	}()
	select {
	case addrs := <-up:
		f.health, f.webhook = "http://"+addrs[0], "http://"+addrs[1]+"/api/v1/alertmanager"
	case err := <-f.done:
		f.done <- err
		require.NoError(f.t, err, "the notifier ended")
	}
	f.settled = false
}

func (f *fleet) stop() {
	if f.settled {
		return
	}
	f.settled = true
	f.cancel()
	if err := <-f.done; err != nil {
		f.t.Errorf("the notifier ended with: %v", err)
	}
}

// post sends a webhook and returns the answer's status.
func (f *fleet) post(body string) int {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, f.webhook, strings.NewReader(body))
	require.NoError(f.t, err)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	require.NoError(f.t, err)
	defer func() { _ = resp.Body.Close() }()
	_, err = io.Copy(io.Discard, resp.Body)
	require.NoError(f.t, err)
	return resp.StatusCode
}

// send posts as Alertmanager does: until it is taken.
func (f *fleet) send(body string) {
	f.t.Helper()
	for range 20 {
		switch code := f.post(body); code {
		case http.StatusOK:
			return
		default:
			require.Equal(f.t, http.StatusServiceUnavailable, code)
		}
	}
	f.t.Fatal("the webhook was never taken")
}

func (f *fleet) waitChat(done func([]chattest.Message) bool) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := f.chat.Wait(ctx, done); err != nil {
		for _, m := range f.chat.Messages() {
			f.t.Logf("%s: %s", m.Kind, m.Title)
		}
		f.t.Fatalf("%v\nlogs:\n%s", err, f.logs.String())
	}
}

// await is a wait with the logs at hand when it fails.
func (f *fleet) await(r *recorder, what string, done func([]*bus.Message) bool) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := r.wait(ctx, done); err != nil {
		f.t.Fatalf("waiting for %s: %v\nlogs:\n%s", what, err, f.logs.String())
	}
}

func (f *fleet) waitRequests(k chattest.Kind, n int) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	require.NoError(f.t, f.chat.WaitRequests(ctx, k, n))
}

func (f *fleet) emit(noun, verb, target, message string) {
	f.t.Helper()
	require.NoError(f.t, f.bus.Emit(f.t.Context(), &lifeboatv1.Event{
		Noun: noun, Verb: verb, Target: target, Message: message,
	}))
}

// of keeps the messages of one chat whose title or text holds all words.
func of(ms []chattest.Message, k chattest.Kind, words ...string) []chattest.Message {
	return slices.DeleteFunc(slices.Clone(ms), func(m chattest.Message) bool {
		return m.Kind != k || slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(m.Title+m.Text, w) })
	})
}

// hook is a webhook with one alert.
func hook(name, status, severity string, annotations map[string]string) string {
	alert := map[string]any{
		"status":      status,
		"labels":      map[string]string{"alertname": name, "severity": severity, "target": "etcd-prod"},
		"annotations": annotations, "startsAt": "2026-11-21T04:00:00.123Z", "endsAt": "0001-01-01T00:00:00Z",
		"generatorURL": "http://prometheus/graph", "fingerprint": "f-" + name,
	}
	b, err := json.Marshal(map[string]any{
		"version": "4", "groupKey": "{}:{alertname=\"" + name + "\"}", "status": status, "receiver": `team\.x`,
		"groupLabels": map[string]string{"alertname": name}, "alerts": []any{alert}, "externalURL": "http://am",
		"truncatedAlerts": 0, "notification_reason": "first", "routeLabels": map[string]string{"a": "b"},
	})
	if err != nil {
		panic(err)
	}
	return string(b)
}

// recorder keeps messages in the order in which they came.
type recorder struct {
	mu      sync.Mutex
	all     []*bus.Message
	changed chan struct{}
	began   chan struct{} // closed at the harness's own first message, which is not kept
}

func newRecorder() *recorder {
	return &recorder{changed: make(chan struct{}), began: make(chan struct{})}
}

func (r *recorder) add(_ context.Context, m *bus.Message) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if slices.Contains([]string{"lifeboat.event.test.started.fleet", "lifeboat.dead.test"}, m.Subject) {
		select {
		case <-r.began:
		default:
			close(r.began)
		}
		return
	}
	if slices.ContainsFunc(r.all, func(o *bus.Message) bool { return o.Seq == m.Seq }) {
		return
	}
	r.all = append(r.all, m)
	close(r.changed)
	r.changed = make(chan struct{})
}

func (r *recorder) snapshot() []*bus.Message {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.all)
}

func (r *recorder) wait(ctx context.Context, done func([]*bus.Message) bool) error {
	for {
		r.mu.Lock()
		all, changed := slices.Clone(r.all), r.changed
		r.mu.Unlock()
		if done(all) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%d messages: %w", len(all), ctx.Err())
		}
	}
}

// events decodes those of one verb.
func events(t *testing.T, all []*bus.Message, noun, verb string) []*lifeboatv1.Event {
	t.Helper()
	var out []*lifeboatv1.Event
	for _, m := range all {
		e := &lifeboatv1.Event{}
		require.NoError(t, bus.Decode(m.Data, e))
		if e.GetNoun() == noun && e.GetVerb() == verb {
			out = append(out, e)
		}
	}
	return out
}

func letters(t *testing.T, all []*bus.Message) []*lifeboatv1.DeadLetter {
	t.Helper()
	out := make([]*lifeboatv1.DeadLetter, 0, len(all))
	for _, m := range all {
		d := &lifeboatv1.DeadLetter{}
		require.NoError(t, bus.Decode(m.Data, d))
		out = append(out, d)
	}
	return out
}

// buffer is a log's output.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
