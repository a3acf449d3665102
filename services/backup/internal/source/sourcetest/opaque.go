package sourcetest

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source"
)

const (
	// flips is how many places of an archive are tried.
	flips = 200
	// gzipFree and gzipData bound the time, level and operating system in gzip's header (RFC 1952, section 2.3).
	gzipFree, gzipData = 4, 10
)

// RunOpaque runs what applies to a source whose data is an archive for the server's own restore command, such as a raft
// snapshot: nothing is counted by item, and the archive carries checksums of its own, which the stream must check.
//
// The values that Harness.Put stores must not compress: what is tried half-way needs an archive of their size.
// Harness.Items names the count of the archive's bytes. Harness.Decode may be nil; when it is not, it restores the data
// to a server of its own and reads that.
func RunOpaque(t *testing.T, h Harness) {
	t.Helper()
	run(t, h, map[string]func(*testing.T, Harness){
		"empty": testOpaqueEmpty, "whole": testOpaqueWhole, "slow reader": testOpaqueSlowReader,
		"concurrent writers": testOpaqueWriters, "damaged": testOpaqueDamaged,
		"unfinished": testUnfinished, "canceled": testCanceled, "canceled while it waits": testCanceledWaiting,
		"closed while it waits": testClosedWaiting, "cut": testCut, "stalled": testStalled, "killed": testKilled,
		"unreachable": testUnreachable,
	})
}

// testOpaqueEmpty reads a server without any item: its archive is small, and not empty.
func testOpaqueEmpty(t *testing.T, h Harness) {
	t.Helper()
	h.Server.Reset(t)
	src := h.New(h.Server.Address, 0)
	require.NoError(t, src.Ping(t.Context()))
	assert.Equal(t, h.Format, src.Format())
	requireItems(t, h, readWhole(t, h, src), 0)
}

func testOpaqueWhole(t *testing.T, h Harness) {
	t.Helper()
	h.Server.Reset(t)
	h.Server.Put(t, 20, h.Huge)
	st := open(t, h.New(h.Server.Address, 0))
	data, err := io.ReadAll(st)
	require.NoError(t, err)
	require.Greater(t, len(data), 20*h.Huge, "do the values compress?")
	requireItems(t, h, data, 20)
	info, err := st.Info(t.Context())
	require.NoError(t, err)
	assert.Greater(t, info.GetCounts()[h.Items], int64(20*h.Huge))
	assert.Positive(t, info.GetRevision())
	assert.NotEmpty(t, info.GetVersion())
	assert.NotEmpty(t, info.GetIdentity()["endpoint"])
	assert.Empty(t, info.GetMissing())

	n, err := st.Read(make([]byte, 10))
	assert.Zero(t, n)
	require.ErrorIs(t, err, io.EOF, "the end must stay the end")
	require.NoError(t, st.Close())
	require.NoError(t, st.Close(), "Close must be idempotent")
	again, err := st.Info(t.Context())
	require.NoError(t, err, "Info must be remembered")
	assert.Same(t, info, again)
}

func testOpaqueSlowReader(t *testing.T, h Harness) {
	t.Helper()
	h.Server.Reset(t)
	h.Server.Put(t, 50, 1000)
	st := open(t, h.New(h.Server.Address, 0))
	data, err := io.ReadAll(pieces{st})
	require.NoError(t, err)
	requireItems(t, h, data, 50)
}

// testOpaqueWriters reads while somebody writes.
func testOpaqueWriters(t *testing.T, h Harness) {
	t.Helper()
	h.Server.Reset(t)
	h.Server.Put(t, 30, 10_000)
	if h.Mutate == nil {
		return
	}
	require.NoError(t, h.Mutate(t.Context(), "0"))
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	done := make(chan error, 1)
	go func() {
		for i := 1; ; i++ {
			err := h.Mutate(ctx, strings.Repeat(string(rune('a'+i%26)), 1+i%2000))
			if ctx.Err() != nil {
				err = nil
			}
			if ctx.Err() != nil || err != nil {
				done <- err
				return
			}
		}
	}()
	var last int64
	for range 3 {
		st := open(t, h.New(h.Server.Address, 0))
		data, err := io.ReadAll(st)
		require.NoError(t, err)
		info, err := st.Info(t.Context())
		require.NoError(t, err)
		assert.GreaterOrEqual(t, info.GetRevision(), last)
		last = info.GetRevision()
		if h.Decode != nil {
			items := h.Decode(t, data)
			assert.NotEmpty(t, items["left"])
			assert.Equal(t, items["left"], items["right"], "half of a transaction was read")
		}
		require.NoError(t, st.Close())
	}
	stop()
	require.NoError(t, <-done)
}

// testOpaqueDamaged changes what the server sent, behind a connection that ends as it should.
func testOpaqueDamaged(t *testing.T, h Harness) {
	t.Helper()
	h.Server.Reset(t)
	h.Server.Put(t, 10, 2000)
	replay := NewReplay(t, h.Server.Address)
	src := h.New(replay.Address, 0)
	whole := readWhole(t, h, src)
	replay.Alter(func(body []byte) []byte { return body })
	require.Equal(t, whole, readWhole(t, h, src), "the replay itself must be sound")

	seed := rand.Uint64() //nolint:gosec // not for secrets
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // not for secrets
	requireDamaged := func(what string, at int, alter func([]byte) []byte) {
		replay.Alter(alter)
		err := requireBroken(t, src)
		var typed *source.Error
		require.ErrorAs(t, err, &typed, "%s at %d of %d, seed %d", what, at, len(whole), seed)
		require.Equal(t, source.Damaged, typed.Reason, "%s at %d of %d, seed %d: %v", what, at, len(whole), seed, err)
	}
	for range flips {
		at := rnd.IntN(len(whole))
		if at >= gzipFree && at < gzipData {
			at = gzipData // no checksum covers what stands there, and no restore reads it
		}
		requireDamaged("flipped", at, func(body []byte) []byte {
			body[at] ^= 0xff
			return body
		})
	}
	// The last bytes are where a reader stops that does not wait for the end.
	cuts := []int{0, 1, 10, len(whole) - 1, len(whole) - 4, len(whole) - 8, len(whole) - 9, len(whole) - 14}
	for range flips / 4 {
		cuts = append(cuts, rnd.IntN(len(whole)))
	}
	for _, at := range cuts {
		requireDamaged("cut", at, func(body []byte) []byte { return body[:at] })
	}
	requireDamaged("followed by a byte", len(whole), func(body []byte) []byte { return append(body, 0) })
	requireDamaged("followed by itself", len(whole), func(body []byte) []byte { return append(body, body...) })
}

func readWhole(t *testing.T, h Harness, src Opener) []byte {
	t.Helper()
	st := open(t, src)
	data, err := io.ReadAll(st)
	require.NoError(t, err)
	info, err := st.Info(t.Context())
	require.NoError(t, err)
	assert.Positive(t, info.GetCounts()[h.Items])
	require.NoError(t, st.Close())
	return data
}

func requireItems(t *testing.T, h Harness, data []byte, n int) {
	t.Helper()
	if h.Decode != nil {
		require.Len(t, h.Decode(t, data), n)
	}
}

// Replay stands before a server and remembers its largest answer, an archive, to give it again with a changed body.
// Every other request passes.
type Replay struct {
	// Address is the replay's, "http://127.0.0.1:port".
	Address string

	mu     sync.Mutex
	path   string
	header http.Header
	body   []byte
	alter  func([]byte) []byte
}

// NewReplay starts a replay in front of a server. It ends with the test.
func NewReplay(t *testing.T, server string) *Replay {
	t.Helper()
	target, err := url.Parse(server)
	require.NoError(t, err)
	transport := &http.Transport{DisableKeepAlives: true, DisableCompression: true}
	r := &Replay{}
	proxy := &httputil.ReverseProxy{
		Rewrite:        func(p *httputil.ProxyRequest) { p.SetURL(target) },
		Transport:      transport,
		ModifyResponse: r.record,
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if !r.answer(w, req) {
			proxy.ServeHTTP(w, req)
		}
	}))
	t.Cleanup(srv.Close)
	r.Address = srv.URL
	return r
}

// Alter sets how the remembered body is changed; it is given a copy. From now on the server is not asked for it anymore.
func (r *Replay) Alter(alter func(body []byte) []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.alter = alter
}

func (r *Replay) record(resp *http.Response) error {
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(body) > len(r.body) && bytes.HasPrefix(body, []byte{0x1f, 0x8b}) {
		r.path, r.header, r.body = resp.Request.URL.Path, resp.Header.Clone(), body
	}
	return nil
}

func (r *Replay) answer(w http.ResponseWriter, req *http.Request) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.alter == nil || req.URL.Path != r.path {
		return false
	}
	for name, values := range r.header {
		if name != "Content-Length" { // it would tell of a cut, and Consul sends none
			w.Header()[name] = values
		}
	}
	_, _ = w.Write(r.alter(bytes.Clone(r.body)))
	return true
}
