package ingest_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/alertmanager/template"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/natstest"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/ingest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// server is the endpoints on a listener of their own, with a real NATS behind them.
type server struct {
	t    *testing.T
	addr string
	bus  *bus.Bus
	reg  *prometheus.Registry
}

func newServer(t *testing.T, natsURL string) *server {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	reg := prometheus.NewRegistry()
	b, err := bus.Connect(bus.Options{Config: config.NATS{URL: natsURL}, Actor: "test", Logger: log, Registerer: reg})
	require.NoError(t, err)
	t.Cleanup(func() { _ = b.Close() }) // the server may be stopped
	require.NoError(t, b.EnsureStreams(t.Context()))
	h := ingest.New(ingest.Options{Store: b, Logger: log, Registerer: reg, Now: time.Now})
	mux := http.NewServeMux()
	mux.Handle(ingest.Path, h.Webhook())
	mux.Handle(ingest.GenericPath, h.Generic())
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 30 * time.Second}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ln) }()
	t.Cleanup(func() {
		require.NoError(t, srv.Close())
		require.ErrorIs(t, <-done, http.ErrServerClosed)
	})
	return &server{t: t, addr: ln.Addr().String(), bus: b, reg: reg}
}

// post is a client without keep-alive, as a sender that restarts.
func (s *server) post(path string, body io.Reader, header ...string) (code int, answer string) {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodPost, "http://"+s.addr+path, body)
	require.NoError(s.t, err)
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	require.NoError(s.t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	require.NoError(s.t, err)
	return resp.StatusCode, string(text)
}

func (s *server) stored() (all []*lifeboatv1.Notification) {
	s.t.Helper()
	require.NoError(s.t, s.bus.Scan(context.Background(), bus.StreamAlerts, bus.SubjectReceived, func(m *bus.Message) error {
		n := &lifeboatv1.Notification{}
		all = append(all, n)
		return bus.DecodeStrict(m.Data, n)
	}))
	return all
}

func (s *server) dead() (all []*lifeboatv1.DeadLetter) {
	s.t.Helper()
	require.NoError(s.t, s.bus.Scan(context.Background(), bus.StreamDead, "lifeboat.dead.webhook", func(m *bus.Message) error {
		d := &lifeboatv1.DeadLetter{}
		all = append(all, d)
		return bus.DecodeStrict(m.Data, d)
	}))
	return all
}

// counted is a metric's value by its labels.
func (s *server) counted(line string) {
	s.t.Helper()
	name, _, _ := strings.Cut(line, "{")
	all, err := testutil.GatherAndCount(s.reg, name)
	require.NoError(s.t, err)
	require.Positive(s.t, all)
	families, err := s.reg.Gather()
	require.NoError(s.t, err)
	var have []string
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
			}
			have = append(have, fmt.Sprintf("%s{%s} %v", name, strings.Join(labels, ","), m.GetCounter().GetValue()))
		}
	}
	assert.Contains(s.t, have, line)
}

// message is what Alertmanager's webhook encodes (notify/webhook.Message), with its own Data.
type message struct {
	*template.Data

	Version         string `json:"version"`
	GroupKey        string `json:"groupKey"`
	TruncatedAlerts uint64 `json:"truncatedAlerts"`
}

func TestWhatAlertmanagersOwnTypesEncodeIsTaken(t *testing.T) {
	t.Parallel()
	s := newServer(t, natstest.New(t).URL())
	starts := time.Date(2026, 11, 21, 4, 0, 0, 123456789, time.FixedZone("", 8*3600))
	body, err := json.Marshal(message{Data: &template.Data{
		Receiver: `team\.x \(eu\)`, Status: "firing", NotificationReason: "first notification", ExternalURL: "http://am",
		GroupLabels: template.KV{"g": "1"}, CommonLabels: template.KV{"c": "<&>\u2028"}, CommonAnnotations: template.KV{"a": "1"},
		RouteLabels: template.KV{"route": "r"},
		Alerts: template.Alerts{{
			Status: "firing", Labels: template.KV{"alertname": "A"}, Annotations: template.KV{"summary": "日本"}, StartsAt: starts,
			GeneratorURL: "http://p", Fingerprint: "f1",
		}},
	}, Version: "4", GroupKey: "{}:{}", TruncatedAlerts: 3})
	require.NoError(t, err)
	code, answer := s.post(ingest.Path, bytes.NewReader(body))
	require.Equal(t, http.StatusOK, code, answer)
	require.Len(t, s.stored(), 1)
	n := s.stored()[0]
	assert.Equal(t, "team.x (eu)", n.GetReceiver())
	assert.Equal(t, "first notification", n.GetNotificationReason())
	assert.Equal(t, map[string]string{"route": "r"}, n.GetRouteLabels())
	assert.Equal(t, map[string]string{"c": "<&>\u2028"}, n.GetCommonLabels())
	assert.EqualValues(t, 3, n.GetTruncatedAlerts())
	assert.True(t, starts.Equal(n.GetAlerts()[0].GetStartsAt().AsTime()))
	assert.Nil(t, n.GetAlerts()[0].GetEndsAt())
	s.counted(`lifeboat_webhook_requests_total{code="200",endpoint="alertmanager"} 1`)
	s.counted(`lifeboat_webhook_alerts_total{status="firing"} 1`)
}

func TestTenThousandAlertsAreTakenWhole(t *testing.T) {
	t.Parallel()
	s := newServer(t, natstest.New(t).URL())
	const alerts = 10_000
	body := payload(alerts, 1)
	require.Greater(t, len(body), 9_000_000)
	var packed bytes.Buffer
	gz := gzip.NewWriter(&packed)
	_, err := gz.Write(body)
	require.NoError(t, err)
	require.NoError(t, gz.Close())
	code, answer := s.post(ingest.Path, bytes.NewReader(body))
	require.Equal(t, http.StatusOK, code, answer)
	parts := s.stored()
	assert.Greater(t, len(parts), 10)
	seen := map[string]bool{}
	for i, n := range parts {
		assert.EqualValues(t, len(parts), n.GetParts())
		assert.EqualValues(t, i+1, n.GetPart())
		for _, a := range n.GetAlerts() {
			assert.False(t, seen[a.GetFingerprint()])
			seen[a.GetFingerprint()] = true
		}
	}
	assert.Len(t, seen, alerts)
	s.counted(`lifeboat_webhook_alerts_total{status="firing"} 10000`)
	// The same, compressed.
	code, answer = s.post(ingest.Path, &packed, "Content-Encoding", "gzip")
	require.Equal(t, http.StatusOK, code, answer)
	assert.Len(t, s.stored(), 2*len(parts))
}

// A webhook in many messages for which there is not enough room leaves none of them behind; once there is, it is taken.
func TestALargeWebhookIsRefusedWhole(t *testing.T) {
	t.Parallel()
	url := natstest.New(t).URL()
	s := newServer(t, url)
	nc, err := nats.Connect(url)
	require.NoError(t, err)
	defer nc.Close()
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	limit := func(bytes int64) {
		t.Helper()
		st, err := js.Stream(t.Context(), bus.StreamAlerts)
		require.NoError(t, err)
		cfg := st.CachedInfo().Config
		cfg.Discard, cfg.MaxBytes = jetstream.DiscardNew, bytes
		_, err = js.UpdateStream(t.Context(), cfg)
		require.NoError(t, err)
	}
	limit(4 << 20)
	body := payload(10_000, 1)
	code, answer := s.post(ingest.Path, bytes.NewReader(body))
	assert.Equal(t, http.StatusServiceUnavailable, code, answer)
	assert.Empty(t, s.stored())
	assert.Empty(t, s.dead(), "it is to come again")
	limit(-1)
	code, answer = s.post(ingest.Path, bytes.NewReader(body))
	require.Equal(t, http.StatusOK, code, answer)
	assert.Greater(t, len(s.stored()), 10)
}

func TestAWebhookThatIsCutOffLeavesNothing(t *testing.T) {
	t.Parallel()
	s := newServer(t, natstest.New(t).URL())
	body := payload(2000, 1)
	for _, framing := range []string{
		fmt.Sprintf("Content-Length: %d\r\n\r\n", len(body)), fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n%x\r\n", len(body)),
	} {
		for _, part := range []int{0, 100, len(body) / 2, len(body) - 1} {
			conn, err := net.Dial("tcp", s.addr)
			require.NoError(t, err)
			_, err = fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\n%s%s", ingest.Path, framing, body[:part])
			require.NoError(t, err)
			half, can := conn.(interface{ CloseWrite() error })
			require.True(t, can)
			require.NoError(t, half.CloseWrite())
			answer, err := io.ReadAll(conn)
			require.NoError(t, err)
			assert.Contains(t, string(answer), "503 Service Unavailable", "the sender may still listen, and must come again")
			require.NoError(t, conn.Close())
		}
	}
	assert.Empty(t, s.stored())
	assert.Empty(t, s.dead(), "half a webhook says nothing that the whole one does not")
	code, _ := s.post(ingest.Path, bytes.NewReader(body))
	assert.Equal(t, http.StatusOK, code)
}

func TestWhatCannotBeTakenIsRefusedWithACopy(t *testing.T) {
	t.Parallel()
	s := newServer(t, natstest.New(t).URL())
	squeeze := func(size int) []byte {
		var b bytes.Buffer
		gz := gzip.NewWriter(&b)
		_, err := io.CopyN(gz, strings.NewReader(strings.Repeat(" ", size)), int64(size))
		require.NoError(t, err)
		require.NoError(t, gz.Close())
		return b.Bytes()
	}
	bomb := squeeze(64 << 20)
	require.Less(t, len(bomb), 1<<20)
	both := []string{ingest.Path, ingest.GenericPath}
	for _, c := range []struct {
		name, encoding, why string
		body                func() io.Reader
		want                int
		paths               []string
	}{
		{"version 3", "", `version is "3"`, texted(strings.Replace(webhook034, `"4"`, `"3"`, 1)), 400, both[:1]},
		{"wrong type", "", "alerts/0/labels", texted(`{"version":"4","alerts":[{"status":"firing","labels":7}]}`), 400, both[:1]},
		{"wrong type", "", "labels: must be", texted(`{"name":"A","labels":7}`), 400, both[1:]},
		{"100 MB", "", "larger than", func() io.Reader { return bytes.NewReader(bytes.Repeat([]byte(" "), 100<<20)) }, 413, both},
		{"100 MB of unknown length", "", "larger than", func() io.Reader { return io.LimitReader(spaces{}, 100<<20) }, 413, both},
		{"zip bomb", "gzip", "larger than", texted(string(bomb)), 413, both},
		{"no gzip", "gzip", "decompressing", texted(webhook034), 400, both},
		{"gzip cut short", "gzip", "decompressing", texted(string(squeeze(4096)[:20])), 400, both},
		{"another encoding", "br", "Content-Encoding is", texted(webhook034), 415, both},
		{"two encodings", "gzip, br", "Content-Encoding is", texted(webhook034), 415, both},
	} {
		for _, path := range c.paths {
			before := len(s.dead())
			code, answer := s.post(path, c.body(), "Content-Encoding", c.encoding)
			assert.Equal(t, c.want, code, "%s: %s", c.name, answer)
			assert.Contains(t, strings.ReplaceAll(answer, `\"`, `"`), c.why, c.name)
			dead := s.dead()
			require.Len(t, dead, before+1, c.name)
			assert.Contains(t, dead[before].GetReason(), c.why, c.name)
			assert.NotEmpty(t, dead[before].GetPayload(), c.name)
		}
	}
	assert.Empty(t, s.stored())
	code, _ := s.post(ingest.Path, strings.NewReader(webhook034))
	assert.Equal(t, http.StatusOK, code, "and the next one is taken")
}

func texted(s string) func() io.Reader { return func() io.Reader { return strings.NewReader(s) } }

type spaces struct{}

// Read is a body without an end.
func (spaces) Read(p []byte) (int, error) {
	return copy(p, strings.Repeat(" ", min(len(p), 32<<10))), nil
}

func TestWhileNATSIsAwaySendersAreToldToComeAgain(t *testing.T) {
	t.Parallel()
	n := natstest.New(t)
	s := newServer(t, n.URL())
	n.Stop()
	code, answer := s.post(ingest.Path, strings.NewReader(webhook034))
	assert.Equal(t, http.StatusServiceUnavailable, code)
	assert.Contains(t, answer, "storing the alerts")
	code, _ = s.post(ingest.GenericPath, strings.NewReader(`{"name":"A","id":"1"}`))
	assert.Equal(t, http.StatusServiceUnavailable, code)
	code, _ = s.post(ingest.Path, strings.NewReader("hello"))
	assert.Equal(t, http.StatusServiceUnavailable, code, "what is malformed has no copy yet")
	require.NoError(t, n.Restart())
	require.Eventually(t, func() bool {
		again, _ := s.post(ingest.Path, strings.NewReader(webhook034))
		return again == http.StatusOK
	}, time.Minute, 50*time.Millisecond)
	code, _ = s.post(ingest.GenericPath, strings.NewReader(`{"name":"A","id":"1"}`))
	assert.Equal(t, http.StatusOK, code)
	// What the library sent after all, when it had connected again, is there too. One that names itself is there once.
	count := map[string]int{}
	for _, n := range s.stored() {
		count[n.GetOrigin()]++
	}
	assert.Equal(t, 1, count["webhook"])
	assert.Positive(t, count["alertmanager"])
	s.counted(`lifeboat_webhook_requests_total{code="503",endpoint="generic"} 1`)
}

// A server that does not answer may store the alerts all the same.
func TestASlowNATSIsNotWaitedForAndTheRetryIsStored(t *testing.T) {
	t.Parallel()
	n, err := bintest.StartNATS(t.Context(), t.TempDir())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, n.Kill()) })
	s := newServer(t, n.URL)
	require.NoError(t, n.Signal(syscall.SIGSTOP))
	begin := time.Now()
	code, _ := s.post(ingest.Path, bytes.NewReader(payload(2000, 1)))
	assert.Equal(t, http.StatusServiceUnavailable, code)
	assert.Less(t, time.Since(begin), 9*time.Second, "Alertmanager waits no longer than its group_interval")
	require.NoError(t, n.Signal(syscall.SIGCONT))
	require.Eventually(t, func() bool {
		code, _ := s.post(ingest.Path, bytes.NewReader(payload(2000, 1)))
		return code == http.StatusOK
	}, time.Minute, 50*time.Millisecond)
	alerts := map[string]bool{}
	for _, n := range s.stored() { // what the slow one was given may be among it too: to tell it once is not this package's part
		for _, a := range n.GetAlerts() {
			alerts[a.GetFingerprint()] = true
		}
	}
	assert.Len(t, alerts, 2000)
}
