// Package sourcetest is the conformance suite of sources: what source.Stream promises, tried on real servers.
package sourcetest

import (
	"bytes"
	"context"
	"io"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source"
)

// Opener is a source.
type Opener interface {
	Open(ctx context.Context) (source.Stream, error)
	Format() string
	Ping(ctx context.Context) error
}

// Server is a running server to read from.
type Server struct {
	// Address is what the source is given, "http://127.0.0.1:port".
	Address string
	// Reset removes every item.
	Reset func(t *testing.T)
	// Put adds n items with values of size bytes. Items of an earlier Put stay, those of the same number are replaced.
	Put func(t *testing.T, n, size int)
	// Kill ends the server as kill -9 does; nil when this one cannot be killed.
	Kill func(t *testing.T)
}

// Harness is what the suite needs to know about one source.
type Harness struct {
	Format string
	// New makes the source with a limit on how long the server may be silent; zero is the usual one.
	New func(address string, idle time.Duration) Opener
	// Server is shared by the tests of the suite.
	Server *Server
	// Victim starts a server that can be killed.
	Victim func(t *testing.T) *Server
	// Items is the name of the count that Put adds to.
	Items string
	// Decode reads the data with the means of the source's own tools and returns value by item. RunOpaque takes nil, too.
	Decode func(t *testing.T, data []byte) map[string]string
	// Huge is the largest value that the server takes.
	Huge int
	// Mutate changes two items, named "left" and "right", to the same value in one transaction; nil when the source
	// does not promise to be consistent across items.
	Mutate func(ctx context.Context, value string) error
}

// promptly is how soon a stream must have noticed.
const promptly = 5 * time.Second

// Run runs the suite.
func Run(t *testing.T, h Harness) {
	t.Helper()
	run(t, h, map[string]func(*testing.T, Harness){
		"empty": testEmpty, "counted": testCounted, "huge": testHuge, "unfinished": testUnfinished,
		"canceled": testCanceled, "canceled while it waits": testCanceledWaiting, "closed while it waits": testClosedWaiting,
		"slow reader": testSlowReader, "cut": testCut, "stalled": testStalled, "killed": testKilled,
		"concurrent writers": testConcurrentWriters, "unreachable": testUnreachable,
	})
}

func run(t *testing.T, h Harness, tests map[string]func(*testing.T, Harness)) {
	t.Helper()
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			leaks := goleak.IgnoreCurrent()
			t.Cleanup(func() { goleak.VerifyNone(t, leaks) })
			test(t, h)
		})
	}
}

func testEmpty(t *testing.T, h Harness) {
	t.Helper()
	h.Server.Reset(t)
	src := h.New(h.Server.Address, 0)
	require.NoError(t, src.Ping(t.Context()))
	assert.Equal(t, h.Format, src.Format())
	st := open(t, src)
	data, err := io.ReadAll(st)
	require.NoError(t, err)
	assert.Empty(t, h.Decode(t, data))
	info, err := st.Info(t.Context())
	require.NoError(t, err)
	assert.Contains(t, info.GetCounts(), h.Items)
	assert.Zero(t, info.GetCounts()[h.Items])
	assert.Empty(t, info.GetMissing())
}

func testCounted(t *testing.T, h Harness) {
	t.Helper()
	h.Server.Reset(t)
	h.Server.Put(t, 20, 100)
	st := open(t, h.New(h.Server.Address, 0))
	data, err := io.ReadAll(st)
	require.NoError(t, err)
	assert.Len(t, h.Decode(t, data), 20)
	info, err := st.Info(t.Context())
	require.NoError(t, err)
	assert.EqualValues(t, 20, info.GetCounts()[h.Items])
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

func testHuge(t *testing.T, h Harness) {
	t.Helper()
	h.Server.Reset(t)
	h.Server.Put(t, 2, h.Huge)
	st := open(t, h.New(h.Server.Address, 0))
	data, err := io.ReadAll(st)
	require.NoError(t, err)
	items := h.Decode(t, data)
	require.Len(t, items, 2)
	for name, v := range items {
		assert.Len(t, v, h.Huge, "value of %s", name)
	}
}

func testUnfinished(t *testing.T, h Harness) {
	t.Helper()
	h.Server.Reset(t)
	h.Server.Put(t, 5, 100)
	st := open(t, h.New(h.Server.Address, 0))
	_, err := st.Info(t.Context())
	require.ErrorIs(t, err, source.ErrUnfinished)
	_, err = io.ReadFull(st, make([]byte, 10))
	require.NoError(t, err)
	_, err = st.Info(t.Context())
	require.ErrorIs(t, err, source.ErrUnfinished)
	require.NoError(t, st.Close())
	_, err = io.Copy(io.Discard, st)
	require.Error(t, err, "a stream that was closed early must not end as if it were whole")
	_, err = st.Info(t.Context())
	require.Error(t, err)
}

func testCanceled(t *testing.T, h Harness) {
	t.Helper()
	h.Server.Reset(t)
	h.Server.Put(t, 40, 200<<10)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	st, err := h.New(h.Server.Address, 0).Open(ctx)
	require.NoError(t, err)
	defer closeStream(t, st)
	_, err = io.ReadFull(st, make([]byte, 300<<10))
	require.NoError(t, err)
	cancel()
	requireSoon(t, func() {
		_, err = io.Copy(io.Discard, st)
		require.ErrorIs(t, err, context.Canceled)
	})
	_, err = st.Info(t.Context())
	require.Error(t, err)
}

func testCanceledWaiting(t *testing.T, h Harness) {
	t.Helper()
	proxy := stallHalfWay(t, h)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	st, err := h.New(proxy.Address, 0).Open(ctx)
	require.NoError(t, err)
	defer closeStream(t, st)
	go func() {
		<-proxy.Full()
		cancel()
	}()
	requireSoon(t, func() {
		_, err = io.Copy(io.Discard, st)
		require.ErrorIs(t, err, context.Canceled)
	})
}

func testClosedWaiting(t *testing.T, h Harness) {
	t.Helper()
	proxy := stallHalfWay(t, h)
	st, err := h.New(proxy.Address, 0).Open(t.Context())
	require.NoError(t, err)
	closed := make(chan error, 1)
	go func() {
		<-proxy.Full()
		closed <- st.Close()
	}()
	requireSoon(t, func() {
		_, err = io.Copy(io.Discard, st)
		require.Error(t, err)
		require.NoError(t, <-closed)
	})
}

func testSlowReader(t *testing.T, h Harness) {
	t.Helper()
	h.Server.Reset(t)
	h.Server.Put(t, 50, 1000)
	st := open(t, h.New(h.Server.Address, 0))
	data, err := io.ReadAll(pieces{st})
	require.NoError(t, err)
	assert.Len(t, h.Decode(t, data), 50)
}

// testCut ends the connection after a part of what the server sends in all.
func testCut(t *testing.T, h Harness) {
	t.Helper()
	h.Server.Reset(t)
	h.Server.Put(t, 40, 50<<10)
	total := measure(t, h)
	for _, percent := range []int64{10, 50, 95} {
		proxy := NewProxy(t, h.Server.Address, total*percent/100, Cut)
		requireSoon(t, func() { require.NotErrorIs(t, requireBroken(t, h.New(proxy.Address, 0)), io.EOF) })
	}
}

// testStalled lets the server fall silent.
func testStalled(t *testing.T, h Harness) {
	t.Helper()
	proxy := stallHalfWay(t, h)
	requireSoon(t, func() {
		err := requireBroken(t, h.New(proxy.Address, 500*time.Millisecond))
		require.ErrorIs(t, err, source.ErrStalled)
		var typed *source.Error
		require.ErrorAs(t, err, &typed)
		assert.Equal(t, source.Stalled, typed.Reason)
		assert.True(t, typed.Retryable())
	})
}

// testKilled ends the server itself, with more to come than what any buffer holds.
func testKilled(t *testing.T, h Harness) {
	t.Helper()
	victim := h.Victim(t)
	victim.Put(t, 60, 400<<10)
	st, err := h.New(victim.Address, 0).Open(t.Context())
	require.NoError(t, err)
	defer closeStream(t, st)
	_, err = io.ReadFull(st, make([]byte, 100<<10))
	require.NoError(t, err)
	victim.Kill(t)
	requireSoon(t, func() {
		_, err := io.Copy(io.Discard, st)
		require.Error(t, err, "half of a source must not pass for all of it")
		var typed *source.Error
		require.ErrorAs(t, err, &typed)
		assert.Equal(t, source.Unreachable, typed.Reason)
	})
}

func testConcurrentWriters(t *testing.T, h Harness) {
	t.Helper()
	h.Server.Reset(t)
	h.Server.Put(t, 30, 10_000)
	if h.Mutate != nil {
		require.NoError(t, h.Mutate(t.Context(), "0"))
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		for i := 1; ; i++ {
			var err error
			if h.Mutate != nil {
				err = h.Mutate(ctx, string(bytes.Repeat([]byte{byte('a' + i%26)}, 1+i%2000)))
			}
			if ctx.Err() != nil || h.Mutate == nil {
				done <- nil
				return
			}
			if err != nil {
				done <- err
				return
			}
		}
	}()
	var last int64
	for range 5 {
		st := open(t, h.New(h.Server.Address, 0))
		data, err := io.ReadAll(st)
		require.NoError(t, err)
		items := h.Decode(t, data)
		assert.Equal(t, items["left"], items["right"], "half of a transaction was read")
		info, err := st.Info(t.Context())
		require.NoError(t, err)
		assert.EqualValues(t, len(items), info.GetCounts()[h.Items])
		assert.GreaterOrEqual(t, info.GetRevision(), last)
		last = info.GetRevision()
		require.NoError(t, st.Close())
	}
	stop()
	require.NoError(t, <-done)
}

// testUnreachable has nobody listen at the address.
func testUnreachable(t *testing.T, h Harness) {
	t.Helper()
	proxy := NewProxy(t, h.Server.Address, 0, Cut)
	proxy.Close()
	src := h.New(proxy.Address, 0)
	_, err := src.Open(t.Context())
	var typed *source.Error
	require.ErrorAs(t, err, &typed)
	assert.Equal(t, source.Unreachable, typed.Reason)
	assert.Equal(t, proxy.Address, typed.Endpoint)
	require.ErrorContains(t, err, proxy.Address)
	require.ErrorContains(t, src.Ping(t.Context()), proxy.Address)
}

// pieces reads a few bytes at a time.
type pieces struct{ io.Reader }

func (p pieces) Read(b []byte) (int, error) { return p.Reader.Read(b[:min(len(b), 61)]) }

func open(t *testing.T, src Opener) source.Stream {
	t.Helper()
	st, err := src.Open(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { closeStream(t, st) })
	return st
}

func closeStream(t *testing.T, st source.Stream) {
	t.Helper()
	require.NoError(t, st.Close())
}

// measure tells how many bytes the server sends for one read.
func measure(t *testing.T, h Harness) int64 {
	t.Helper()
	proxy := NewProxy(t, h.Server.Address, 1<<40, Cut)
	st, err := h.New(proxy.Address, 0).Open(t.Context())
	require.NoError(t, err)
	_, err = io.Copy(io.Discard, st)
	require.NoError(t, err)
	total := proxy.Passed()
	require.NoError(t, st.Close())
	return total
}

func stallHalfWay(t *testing.T, h Harness) *Proxy {
	t.Helper()
	h.Server.Reset(t)
	h.Server.Put(t, 40, 50<<10)
	return NewProxy(t, h.Server.Address, measure(t, h)/2, Stall)
}

// requireBroken reads a source that breaks on the way.
func requireBroken(t *testing.T, src Opener) error {
	t.Helper()
	st, err := src.Open(t.Context())
	if err != nil {
		return err
	}
	defer closeStream(t, st)
	_, err = io.Copy(io.Discard, st)
	require.Error(t, err, "a part of a source must not pass for all of it")
	_, again := st.Read(make([]byte, 1))
	require.Equal(t, err, again, "an error must stay")
	_, infoErr := st.Info(t.Context())
	require.Error(t, infoErr)
	require.NotErrorIs(t, err, io.EOF)
	return err
}

// requireSoon fails when f takes too long.
func requireSoon(t *testing.T, f func()) {
	t.Helper()
	start := time.Now()
	f()
	require.Less(t, time.Since(start), 3*promptly)
}
