package page

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/rolestest"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

const one = "  - {name: etcd-prod, etcd: {endpoints: [\"http://127.0.0.1:1\"]}, schedule: \"0 * * * *\", rpo: 2h}\n"

// stream is an open page: what it is sent, an event at a time.
func (l *lab) stream(query string) <-chan string {
	l.t.Helper()
	ctx, cancel := context.WithCancel(l.t.Context())
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, l.url()+"live"+query, http.NoBody)
	require.NoError(l.t, err)
	client := &http.Client{Transport: &http.Transport{}}
	resp, err := client.Do(req)
	require.NoError(l.t, err)
	require.Equal(l.t, "text/event-stream", resp.Header.Get("Content-Type"))
	events := make(chan string, 1000)
	var wg sync.WaitGroup
	wg.Go(func() {
		var b strings.Builder
		for in := bufio.NewScanner(resp.Body); in.Scan(); {
			if in.Text() != "" {
				b.WriteString(in.Text() + "\n")
				continue
			}
			events <- b.String()
			b.Reset()
		}
	})
	l.t.Cleanup(func() {
		cancel()
		wg.Wait()
		assert.NoError(l.t, resp.Body.Close())
		client.CloseIdleConnections()
	})
	return events
}

// until waits for an event with some text.
func until(tb testing.TB, events <-chan string, text string) {
	tb.Helper()
	late := time.After(patience)
	for {
		select {
		case e := <-events:
			if strings.Contains(e, text) {
				return
			}
		case <-late:
			require.Fail(tb, "no event has "+text)
		}
	}
}

// A snapshot that is committed stands in an open page within a second.
func TestAnOpenPageFollowsTheAuditLog(t *testing.T) {
	l := newLab(t)
	l.configure(one)
	l.committed("etcd-prod", 3*time.Hour)
	l.serve()
	l.shows(l.url(), "etcd-prod has no good snapshot within its RPO")
	events := l.stream("?lang=en")
	until(t, events, "within its RPO")
	began := time.Now()
	l.committed("etcd-prod", 43*time.Second)
	until(t, events, "% used: 40 s of 2 h")
	t.Logf("after %s", time.Since(began))

	l.fail("drill", "etcd-prod", "the restored copy differs", 0)
	until(t, events, "the restored copy differs")
	l.run(config.WorkSnapshot, "etcd-prod", time.Minute)
	until(t, events, "lifeboat-backup@node-3:71")
	l.deliver("delivered", "ops-slack", "DiskFull", "", 2*time.Second, 0)
	until(t, events, "DiskFull")
	until(t, events, `"title":"✖ `)
}

// A page that does not hear what happens does not say that all is well, and hears again when the audit log is there again.
func TestTheAuditLogIsGone(t *testing.T) {
	l := newLab(t)
	l.configure(one)
	l.worker("")
	l.committed("etcd-prod", 10*time.Minute)
	l.proven("etcd-prod", time.Hour)
	l.serve()
	l.shows(l.url(), "All is well")
	events := l.stream("?lang=en")
	nc, err := nats.Connect(l.nats.URL())
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	require.NoError(t, js.DeleteStream(t.Context(), bus.StreamEvents))
	until(t, events, "the audit log")
	l.shows(l.url(), "1 thing is red", "Could not be read: the audit log")
	require.NoError(t, l.bus.EnsureStreams(t.Context()))
	l.committed("etcd-prod", time.Minute)
	l.proven("etcd-prod", time.Minute)
	l.shows(l.url(), "All is well")
}

// While NATS is away the page says so, in red, also in open pages; and it finds back by itself.
func TestNATSIsAway(t *testing.T) {
	l := newLab(t)
	l.configure(one)
	l.committed("etcd-prod", time.Minute)
	l.proven("etcd-prod", time.Minute)
	l.worker("")
	l.serve()
	text := l.shows(l.url(), "All is well", "1 min of 2 h")
	assert.NotContains(t, text, "NATS does not answer")
	health := "http://" + l.Health
	assert.Contains(t, l.get(health+"/readyz"), "ready")
	events := l.stream("?lang=zh")
	until(t, events, "已用")

	l.nats.Stop()
	until(t, events, "没有应答")
	text = l.shows(l.url(), `class="verdict red"`, "NATS does not answer since", "1 thing is red", "✖ 1 thing is red", "1 not known, 0 well")
	assert.Contains(t, text, "1 min of 2 h", "what was known stays on the page")
	resp, err := http.Get(health + "/readyz")
	require.NoError(t, err)
	assert.Equal(t, http.StatusServiceUnavailable, resp.StatusCode)
	require.NoError(t, resp.Body.Close())

	require.NoError(t, l.nats.Restart())
	text = l.shows(l.url(), `class="verdict good"`)
	assert.NotContains(t, text, "NATS does not answer")
	require.Eventually(t, func() bool { return l.bus.Connected() == nil }, patience, 10*time.Millisecond)
	l.fail("snapshot", "etcd-prod", "after the interruption", 0)
	until(t, events, "after the interruption")
}

// The page is there before NATS is, and before anybody has made the streams.
func TestNothingIsThereYet(t *testing.T) {
	l := newLab(t)
	l.configure(one)
	l.nats.Stop()
	l.serve()
	l.shows(l.url(), "NATS has not answered yet. Nothing is known.", `class="verdict red"`, "etcd-prod")
	require.NoError(t, l.nats.Restart())
	l.shows(l.url(), "not known")
}

func TestThereAreNoStreams(t *testing.T) {
	l := newLab(t)
	l.configure(one)
	other := newLab(t)
	b, err := os.ReadFile(l.config())
	require.NoError(t, err)
	empty, err := bintest.StartNATSWith(t.Context(), t.TempDir(), bintest.NATSOptions{})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, empty.Kill()) })
	require.NoError(t, os.WriteFile(other.config(), []byte(strings.Replace(string(b), l.nats.URL(), empty.URL, 1)), 0o600))
	other.serve()
	other.shows(other.url(), "Could not be read: what waits and runs", "start lifeboat-scheduler, which makes the streams")
}

// Dead letters come and, when they are replayed, go.
func TestDeadLetters(t *testing.T) {
	l := newLab(t)
	l.configure(one)
	l.serve()
	l.shows(l.url(), "There are none.")
	for i := range 8 {
		require.NoError(t, l.bus.DeadLetter(t.Context(), "test", &lifeboatv1.DeadLetter{
			Id: fmt.Sprint("letter-", i), Subject: "webhook", Reason: fmt.Sprint("reason number ", i), Time: timestamppb.New(time.Now().Add(time.Duration(i) * time.Second)),
		}))
	}
	text := l.shows(l.url(), "reason number 7", "and 2 more: lifeboat dead list", "New dead letters in the last day: 8")
	assert.NotContains(t, text, "reason number 1<")
	var seqs []uint64
	require.NoError(t, l.bus.Scan(t.Context(), bus.StreamDead, "lifeboat.dead.>", func(m *bus.Message) error {
		seqs = append(seqs, m.Seq)
		return nil
	}))
	for _, seq := range seqs[2:] {
		require.NoError(t, l.bus.Delete(t.Context(), bus.StreamDead, seq))
	}
	f := newFleet()
	var r letterReader
	require.NoError(t, r.read(t.Context(), l.bus, f))
	assert.Equal(t, uint64(2), f.dead.total)
	require.NoError(t, l.bus.Delete(t.Context(), bus.StreamDead, seqs[0]))
	require.NoError(t, r.read(t.Context(), l.bus, f))
	assert.Equal(t, uint64(1), f.dead.total, "all are read again once in a while, but counted at once")
	r.fullAt = time.Time{}
	require.NoError(t, r.read(t.Context(), l.bus, f))
	require.Len(t, f.dead.newest, 1)
	assert.Equal(t, "letter-1", f.dead.newest[0].id)
}

// A new target is on the page without a restart.
func TestReload(t *testing.T) {
	l := newLab(t)
	l.configure(one)
	l.serve()
	l.shows(l.url(), "t-etcd-prod")
	l.configure(one + strings.Replace(one, "etcd-prod", "etcd-two", 1))
	l.shows(l.url(), "t-etcd-two")
}

// The page is only looked at: nothing but GET and HEAD, nothing inline, nothing from elsewhere.
func TestWhatTheServerAnswers(t *testing.T) {
	l := newLab(t)
	sample(l)
	l.serve()
	text := l.shows(l.url(), "the channel is gone")
	assert.NotRegexp(t, `(?i)<script>|<style|\sstyle=|\son[a-z]+=`, text)
	for _, m := range regexp.MustCompile(`(?:src|href)="([^"]*)"`).FindAllStringSubmatch(text, -1) {
		assert.Regexp(t, `^(assets/|\?|#|https://runbooks\.example\.com/)`, m[1])
	}
	for _, c := range []struct {
		method, path string
		code         int
	}{
		{http.MethodHead, "", 200},
		{http.MethodHead, "live", 200},
		{http.MethodGet, "nosuch", 404},
		{http.MethodGet, "assets/nosuch.js", 404},
		{http.MethodPost, "", 405},
		{http.MethodPut, "live", 405},
		{http.MethodDelete, "", 405},
		{http.MethodOptions, "", 405},
		{http.MethodGet, "?page=-5&lang=%00&q=" + strings.Repeat("x", 5000), 200},
	} {
		req, err := http.NewRequestWithContext(t.Context(), c.method, l.url()+c.path, http.NoBody)
		require.NoError(t, err)
		resp, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		assert.Equal(t, c.code, resp.StatusCode, "%s %s", c.method, c.path)
		assert.Equal(t, policy, resp.Header.Get("Content-Security-Policy"))
		assert.Equal(t, "nosniff", resp.Header.Get("X-Content-Type-Options"))
		if c.code == 405 {
			assert.Equal(t, "GET, HEAD", resp.Header.Get("Allow"))
		}
	}
	http.DefaultClient.CloseIdleConnections()
	assert.NotContains(t, policy, "unsafe")
	assert.Contains(t, l.get(l.url(), "Accept-Language", "zh-CN,en;q=0.3"), `<html lang="zh-Hans">`)
	assert.Contains(t, l.get(l.url()+"?lang=en", "Accept-Language", "zh-CN"), `<html lang="en">`)
	metrics := l.get("http://" + l.Health + "/metrics")
	assert.Regexp(t, `lifeboat_page_data_age_seconds [0-9.e-]+\n`, metrics)
	assert.Contains(t, metrics, "lifeboat_page_viewers 0")
	assert.Contains(t, metrics, "lifeboat_config_last_reload_successful 1")
}

// It does all of its work with the permissions that deploy/nats gives to it.
func TestThePermissionsOfThePageAreEnough(t *testing.T) {
	dir := t.TempDir()
	seeds := rolestest.Deploy(t, "../../../deploy/nats", dir)
	server, err := bintest.StartNATSWith(t.Context(), dir, bintest.NATSOptions{Conf: "include ./lifeboat.conf"})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, server.Kill()) })
	l := newLab(t)
	sched, err := bus.Connect(bus.Options{
		Config: config.NATS{URL: server.URL, NkeyFile: config.SecretFile(seeds["scheduler"]), InboxPrefix: "_INBOX_{role}"},
		Actor:  "lifeboat-scheduler@lab", Logger: discard(), Registerer: newRegistry(),
	})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, sched.Close()) })
	require.NoError(t, sched.EnsureStreams(t.Context()))
	require.NoError(t, sched.Emit(t.Context(), &lifeboatv1.Event{Noun: "target", Verb: "added", Target: "etcd-prod"}))
	_, err = sched.Publish(t.Context(), bus.Outgoing{Subject: "lifeboat.job.snapshot.etcd-prod", Message: &lifeboatv1.Job{}})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(l.config(), fmt.Appendf(nil, "nats: {url: %q, nkey_file: %q, inbox_prefix: \"_INBOX_{role}\"}\nstore: {bucket: none}\n"+
		"page: {listen: \"127.0.0.1:0\"}\ntargets:\n%s", server.URL, seeds["page"], one), 0o600))
	l.serve()
	text := l.shows(l.url(), "etcd-prod has no snapshot yet", "No worker answers: nothing is backed up", "<b>etcd-prod</b></th>")
	assert.NotContains(t, text, "Could not be read")
	require.Contains(t, l.get("http://"+l.Health+"/readyz"), "ready")
	log, err := os.ReadFile(server.Log())
	require.NoError(t, err)
	assert.NotContains(t, string(log), "Violation", filepath.Base(server.Log()))
}

// watch reads a stream until the context ends.
func watch(ctx context.Context, t *testing.T, client *http.Client, url string, each func(line string)) {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	assert.NoError(t, err) //nolint:testifylint // it is not the test's own goroutine
	resp, err := client.Do(req)
	if err != nil {
		assert.ErrorIs(t, err, context.Canceled)
		return
	}
	defer resp.Body.Close()
	for in := bufio.NewReader(resp.Body); ; {
		line, err := in.ReadString('\n')
		each(line)
		if err != nil {
			return
		}
	}
}

// 100 open pages of 5,000 targets, while events come: memory and processor stay small, everybody is told, and one who does not read
// holds up nobody.
func TestManyViewers(t *testing.T) {
	const viewers = 100
	l := newLab(t)
	told := manyTargets(t, 5000)
	f := told.f
	render, err := newRenderer()
	require.NoError(t, err)
	h := newHub(f, func() *config.Config { return told.cfg }, "lifeboat.yaml", render, time.Now, newMetrics(newRegistry(), f, time.Now))
	s, err := newServer(h, render, discard())
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	srv := serveOn(ctx, t, s.handler())
	l.Page = srv
	var wg sync.WaitGroup
	wg.Go(func() { assert.NoError(t, h.run(ctx)) })
	t.Cleanup(func() { cancel(); wg.Wait() })

	deaf, err := http.NewRequestWithContext(ctx, http.MethodGet, l.url()+"live", http.NoBody)
	require.NoError(t, err)
	unread := &http.Client{Transport: &http.Transport{ReadBufferSize: 1 << 10}}
	resp, err := unread.Do(deaf) // and never reads
	require.NoError(t, err)
	t.Cleanup(func() { _ = resp.Body.Close(); unread.CloseIdleConnections() })

	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var bytes, heard atomic.Int64
	client := &http.Client{Transport: &http.Transport{}}
	for i := range viewers {
		lang := languages()[i%2]
		wg.Go(func() {
			told := false // it stands in two parts of the page
			watch(ctx, t, client, l.url()+"live?lang="+lang, func(line string) {
				bytes.Add(int64(len(line)))
				if !told && strings.Contains(line, "the last one") {
					told = true
					heard.Add(1)
				}
			})
		})
	}
	t.Cleanup(client.CloseIdleConnections)
	require.Eventually(t, func() bool { h.mu.Lock(); defer h.mu.Unlock(); return len(h.viewers) == viewers+1 }, patience, 10*time.Millisecond)
	began, used := time.Now(), processor(t)
	for i := range 500 {
		message := "an event"
		if i == 499 {
			message = "the last one"
		}
		told.hear(0, &lifeboatv1.Event{Noun: "snapshot", Verb: "failed", Target: fmt.Sprintf("target-%04d", i%5*100+7), Message: message})
		h.changed()
	}
	require.Eventually(t, func() bool { return heard.Load() >= viewers }, patience, 10*time.Millisecond)
	took, busy := time.Since(began), processor(t)-used
	// What is on its way to them needs some, too, and for a moment only.
	assert.Eventually(t, func() bool {
		runtime.GC()
		runtime.ReadMemStats(&after)
		return int64(after.HeapAlloc)-int64(before.HeapAlloc) < 32<<20
	}, patience, 100*time.Millisecond)
	t.Logf("%d viewers, 5000 targets, 500 events: all told after %s, %s of processor (with the viewers'), %d KiB sent, heap %d KiB before and %d KiB after",
		viewers, took, busy, bytes.Load()>>10, before.HeapAlloc>>10, after.HeapAlloc>>10)
}
