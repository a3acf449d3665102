package silence

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	linkSecret    = "link-secret-0123456789abcdefghijkl"
	signingSecret = "slack-signing-secret-of-the-tests"
)

// buffer is a log that several goroutines write.
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

// bench is a Silencer with what it needs. When its test ends nothing that is secret may stand in its log or its events.
type bench struct {
	*Silencer
	t       *testing.T
	dir     string
	log     buffer
	secrets []string

	mu     sync.Mutex
	cfg    config.Config
	now    func() time.Time
	events []*lifeboatv1.Event
	emit   error
}

func newBench(t *testing.T, alertmanagers ...string) *bench {
	t.Helper()
	b := &bench{t: t, dir: t.TempDir(), now: time.Now}
	b.cfg.Alertmanager.URLs = alertmanagers
	b.cfg.Notifier.Interactions = config.Interactions{
		Listen: "127.0.0.1:0", ExternalURL: "https://lifeboat.example.com", LinkTTL: 24 * time.Hour, AcknowledgeFor: 2 * time.Hour,
		LinkSecretFile: b.file("link", linkSecret), SlackSigningSecretFile: b.file("signing", signingSecret),
	}
	b.cfg.Notifier.Receivers = []config.Receiver{
		{Name: "ops", Language: "en", TimeZone: "UTC"}, {Name: "beijing", Language: "zh", TimeZone: "Asia/Shanghai"},
	}
	b.Silencer = New(Options{
		Config: func() *config.Config { b.mu.Lock(); defer b.mu.Unlock(); c := b.cfg; return &c },
		Emit: func(_ context.Context, e *lifeboatv1.Event) error {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.events = append(b.events, e)
			return b.emit
		},
		Logger:     slog.New(slog.NewJSONHandler(&b.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Registerer: prometheus.NewRegistry(),
		Now:        func() time.Time { b.mu.Lock(); defer b.mu.Unlock(); return b.now() },
	})
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		require.NoError(t, b.Close(ctx))
		b.noSecrets()
	})
	return b
}

func (b *bench) set(change func(c *config.Config)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change(&b.cfg)
}

func (b *bench) at(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.now = func() time.Time { return now }
}

func (b *bench) recorded() []*lifeboatv1.Event {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.events)
}

func (b *bench) file(name, content string) config.SecretFile {
	b.t.Helper()
	path := filepath.Join(b.dir, name)
	require.NoError(b.t, os.WriteFile(path, []byte(content+"\n"), 0o600))
	b.secrets = append(b.secrets, strings.Fields(content)...)
	return config.SecretFile(path)
}

func (b *bench) noSecrets() {
	text := b.log.String()
	for _, e := range b.recorded() {
		text += e.String()
	}
	for _, s := range b.secrets {
		assert.NotContains(b.t, text, s, "a secret in the log or an event")
	}
}

func (b *bench) counted(way, outcome string) int {
	return int(testutil.ToFloat64(b.metrics.silences.WithLabelValues(way, outcome)))
}

func alertmanager(t *testing.T) *bintest.Alertmanager {
	t.Helper()
	am, err := bintest.StartAlertmanager(t.Context(), t.TempDir(), "http://127.0.0.1:1/")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, am.Kill()) })
	return am
}

// do asks a server and reads the whole answer.
func do(t *testing.T, method, address, body string, header http.Header) (int, string, http.Header) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, address, strings.NewReader(body))
	require.NoError(t, err)
	for name := range header {
		req.Header.Set(name, header.Get(name))
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	var b bytes.Buffer
	_, err = b.ReadFrom(resp.Body)
	require.NoError(t, err)
	return resp.StatusCode, b.String(), resp.Header
}

type seenSilence struct {
	ID        string    `json:"id"`
	CreatedBy string    `json:"createdBy"`
	Comment   string    `json:"comment"`
	EndsAt    time.Time `json:"endsAt"`
	Matchers  []struct {
		Name    string `json:"name"`
		Value   string `json:"value"`
		IsEqual bool   `json:"isEqual"`
		IsRegex bool   `json:"isRegex"`
	} `json:"matchers"`
	Status struct {
		State string `json:"state"`
	} `json:"status"`
}

func silences(t *testing.T, am string) []seenSilence {
	t.Helper()
	code, body, _ := do(t, http.MethodGet, am+"/api/v2/silences", "", nil)
	require.Equal(t, http.StatusOK, code, body)
	var out []seenSilence
	require.NoError(t, json.Unmarshal([]byte(body), &out))
	return out
}

func fire(t *testing.T, am string, labels map[string]string) {
	t.Helper()
	raw, err := json.Marshal([]any{map[string]any{"labels": labels, "endsAt": time.Now().Add(time.Hour)}})
	require.NoError(t, err)
	code, body, _ := do(t, http.MethodPost, am+"/api/v2/alerts", string(raw), http.Header{"Content-Type": {"application/json"}})
	require.Equal(t, http.StatusOK, code, body)
}

// suppressed maps the target of each alert to the silences that suppress it.
func suppressed(t *testing.T, am string) map[string][]string {
	t.Helper()
	_, body, _ := do(t, http.MethodGet, am+"/api/v2/alerts", "", nil)
	var alerts []struct {
		Labels map[string]string `json:"labels"`
		Status struct {
			State      string   `json:"state"`
			SilencedBy []string `json:"silencedBy"`
		} `json:"status"`
	}
	require.NoError(t, json.Unmarshal([]byte(body), &alerts))
	out := map[string][]string{}
	for _, a := range alerts {
		if a.Status.State == "suppressed" {
			out[a.Labels["target"]] = a.Status.SilencedBy
		}
	}
	return out
}

func disk() map[string]string {
	return map[string]string{"alertname": "DiskFull", "target": "etcd-prod"}
}

func TestASilenceSilences(t *testing.T) {
	t.Parallel()
	am := alertmanager(t)
	b := newBench(t, am.URL)
	fire(t, am.URL, map[string]string{"alertname": "DiskFull", "target": "etcd-prod", "device": "sda"})
	fire(t, am.URL, map[string]string{"alertname": "DiskFull", "target": "etcd-prod-2"})

	id, err := b.Create(t.Context(), disk(), time.Hour, "Ann (U0123)", "[FIRING:1] DiskFull\non etcd-prod")
	require.NoError(t, err)
	all := silences(t, am.URL)
	require.Len(t, all, 1)
	assert.Equal(t, id, all[0].ID)
	assert.Equal(t, "Ann (U0123)", all[0].CreatedBy)
	assert.Equal(t, "[FIRING:1] DiskFull on etcd-prod", all[0].Comment)
	assert.Equal(t, "active", all[0].Status.State)
	assert.WithinDuration(t, time.Now().Add(time.Hour), all[0].EndsAt, time.Minute)
	require.Len(t, all[0].Matchers, 2)
	for _, m := range all[0].Matchers {
		assert.Equal(t, disk()[m.Name], m.Value)
		assert.True(t, m.IsEqual)
		assert.False(t, m.IsRegex)
	}
	require.Eventually(t, func() bool { return len(suppressed(t, am.URL)) > 0 }, time.Minute, 50*time.Millisecond)
	assert.Equal(t, map[string][]string{"etcd-prod": {id}}, suppressed(t, am.URL), "this alert, and no other one")

	require.Len(t, b.recorded(), 1)
	e := b.recorded()[0]
	assert.Equal(t, "silence-created-"+id, e.GetId())
	assert.Equal(t, []string{"silence", "created", "etcd-prod", "Ann (U0123)"}, []string{e.GetNoun(), e.GetVerb(), e.GetTarget(), e.GetRequestedBy()})
	assert.Equal(t, `Ann (U0123) silenced {alertname="DiskFull", target="etcd-prod"} for 1h`, e.GetMessage())
	assert.Equal(t, id, e.GetAttributes()["silence_id"])
	assert.Equal(t, all[0].EndsAt.UTC().Format(time.RFC3339), e.GetAttributes()["until"])
	assert.Equal(t, 1, b.counted(wayAPI, "created"))
}

func TestPressingTwiceMakesOneSilence(t *testing.T) {
	t.Parallel()
	am := alertmanager(t)
	b := newBench(t, am.URL)
	b.emit = errors.New("NATS is away")
	ids := make([]string, 8)
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			id, err := b.Create(t.Context(), disk(), time.Hour, "Ann (U0123)", "DiskFull")
			assert.NoError(t, err)
			ids[i] = id
		})
	}
	wg.Wait()
	assert.Len(t, slices.Compact(ids), 1, "eight presses at once")
	assert.Len(t, b.recorded(), 1)
	assert.Equal(t, 1, b.counted(wayAPI, "created"))
	assert.Equal(t, 7, b.counted(wayAPI, "existing"))
	assert.Contains(t, b.log.String(), "could not record a silence", "a log that is away does not take the silence back")

	create := func(lasts time.Duration, author string, matchers map[string]string) string {
		id, err := b.Create(t.Context(), matchers, lasts, author, "DiskFull")
		require.NoError(t, err)
		return id
	}
	assert.Equal(t, ids[0], create(30*time.Minute, "Ann (U0123)", disk()), "a shorter one is in it")
	four := create(4*time.Hour, "Ann (U0123)", disk())
	assert.NotEqual(t, ids[0], four, "a longer one is not")
	assert.Equal(t, four, create(time.Hour, "Ann (U0123)", disk()), "the one that lasts longest")
	assert.NotEqual(t, four, create(time.Hour, "Bob (U0456)", disk()), "another person's is another one")
	wider := map[string]string{"alertname": "DiskFull"}
	assert.NotEqual(t, four, create(time.Hour, "Ann (U0123)", wider), "other labels")
	require.Len(t, silences(t, am.URL), 4)

	// Later the same press asks for what is not there yet.
	b.at(time.Now().Add(10 * time.Minute))
	assert.NotEqual(t, four, create(4*time.Hour, "Ann (U0123)", disk()))
}

func TestARegularExpressionIsNotTheSameSilence(t *testing.T) {
	t.Parallel()
	am := alertmanager(t)
	b := newBench(t, am.URL)
	for _, m := range []string{`"isRegex":true,"isEqual":true`, `"isRegex":false,"isEqual":false`} {
		body := fmt.Sprintf(`{"matchers":[{"name":"alertname","value":"DiskFull",%s}],"startsAt":%q,"endsAt":%q,"createdBy":"Ann (U1)","comment":"c"}`,
			m, time.Now().Format(time.RFC3339), time.Now().Add(9*time.Hour).Format(time.RFC3339))
		code, answer, _ := do(t, http.MethodPost, am.URL+"/api/v2/silences", body, http.Header{"Content-Type": {"application/json"}})
		require.Equal(t, http.StatusOK, code, answer)
	}
	_, err := b.Create(t.Context(), map[string]string{"alertname": "DiskFull"}, time.Hour, "Ann (U1)", "c")
	require.NoError(t, err)
	assert.Len(t, silences(t, am.URL), 3)
}

func TestAnotherAlertmanagerTakesTheSilence(t *testing.T) {
	t.Parallel()
	am := alertmanager(t)
	broken := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "no", http.StatusServiceUnavailable)
	}))
	t.Cleanup(broken.Close)
	b := newBench(t, "http://127.0.0.1:1", broken.URL, am.URL)
	id, err := b.Create(t.Context(), disk(), time.Hour, "Ann (U1)", "c")
	require.NoError(t, err)
	require.Len(t, silences(t, am.URL), 1)
	assert.Equal(t, id, silences(t, am.URL)[0].ID)

	require.NoError(t, am.Kill())
	_, err = b.Create(t.Context(), disk(), time.Hour, "Ann (U1)", "c")
	require.Error(t, err)
	for _, part := range []string{
		"alertmanager.urls", "http://127.0.0.1:1: listing silences: dial tcp", "connection refused", broken.URL + ": listing silences: status 503",
		am.URL + ": listing silences",
	} {
		assert.Contains(t, err.Error(), part)
	}
	assert.Equal(t, 1, b.counted(wayAPI, "failed"))
	assert.Len(t, b.recorded(), 1)

	b.set(func(c *config.Config) { c.Alertmanager.URLs = nil })
	_, err = b.Create(t.Context(), disk(), time.Hour, "Ann (U1)", "c")
	require.ErrorContains(t, err, "alertmanager.urls is empty")
}

func TestAnAlertmanagersRefusalIsTold(t *testing.T) {
	t.Parallel()
	refuses := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if r.Method == http.MethodGet {
			_, _ = w.Write([]byte("[]"))
			return
		}
		w.WriteHeader(http.StatusBadRequest)
		_, _ = w.Write([]byte(`"exceeded maximum number of silences: 1"`))
	}))
	t.Cleanup(refuses.Close)
	b := newBench(t, refuses.URL)
	_, err := b.Create(t.Context(), disk(), time.Hour, "Ann (U1)", "c")
	require.ErrorContains(t, err, "creating the silence: refused: exceeded maximum number of silences: 1")
}

func TestWhatWouldSilenceEverythingIsRefused(t *testing.T) {
	t.Parallel()
	am := alertmanager(t)
	b := newBench(t, am.URL)
	many := map[string]string{}
	for i := range 65 {
		many[fmt.Sprintf("l%d", i)] = "x"
	}
	for name, c := range map[string]struct {
		matchers map[string]string
		lasts    time.Duration
		author   string
	}{
		"no labels":       {nil, time.Hour, "Ann"},
		"empty labels":    {map[string]string{"foo": "", "bar": ""}, time.Hour, "Ann"},
		"no name":         {map[string]string{"": "x"}, time.Hour, "Ann"},
		"not UTF-8":       {map[string]string{"a": "\xff"}, time.Hour, "Ann"},
		"too many":        {many, time.Hour, "Ann"},
		"nobody":          {disk(), time.Hour, " \n "},
		"no time":         {disk(), 0, "Ann"},
		"a negative time": {disk(), -time.Hour, "Ann"},
		"for good":        {disk(), 1000 * time.Hour, "Ann"},
	} {
		_, err := b.Create(t.Context(), c.matchers, c.lasts, c.author, "c")
		var refused *refusedError
		require.ErrorAs(t, err, &refused, name)
	}
	assert.Empty(t, silences(t, am.URL))
	assert.Empty(t, b.recorded())
	assert.Equal(t, 9, b.counted(wayAPI, "refused"))
	// A label that must be absent narrows a silence, beside one that must be there.
	_, err := b.Create(t.Context(), map[string]string{"alertname": "DiskFull", "device": ""}, time.Hour, "Ann", "c")
	require.NoError(t, err)
}

func TestAWaitForTheSameSilenceEnds(t *testing.T) {
	t.Parallel()
	b := newBench(t, "http://127.0.0.1:1")
	release, err := b.turns.take(t.Context(), "Ann\n"+describe(disk()))
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = b.Create(ctx, disk(), time.Hour, "Ann", "c")
	require.ErrorIs(t, err, context.Canceled)
	release()
}

func TestTextsOfPeopleAreOneLine(t *testing.T) {
	t.Parallel()
	assert.Equal(t, "a b c", clean(" a\x00\tb\r\n\u2028c ", 10))
	assert.Equal(t, "evil", clean("\u202eev\u2066il", 10), "nothing turns the writing around")
	assert.Equal(t, "磁盘已…", clean("磁盘已满了", 4))
	assert.Equal(t, "1h", short(time.Hour))
	assert.Equal(t, "1h30m", short(90*time.Minute))
	assert.Equal(t, "10m", short(10*time.Minute))
	assert.Equal(t, "45s", short(45*time.Second))
	assert.Equal(t, "20h", short(20*time.Hour))
}
