package consul_test

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"net/http"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore/consul"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source"
	sourceconsul "github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/consul"
)

// noise is what does not compress.
func noise(size int) []byte {
	b := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{}).Read(b) // it never fails
	return b
}

func readRaft(t *testing.T, cfg config.Consul) []byte {
	t.Helper()
	st, err := sourceconsul.NewRaft(cfg, sourceconsul.Options{}).Open(t.Context())
	require.NoError(t, err)
	defer st.Close()
	data, err := io.ReadAll(st)
	require.NoError(t, err)
	return data
}

// TestRaft brings a datacenter back with its tokens, and leaves the destination alone while anything is wrong.
func TestRaft(t *testing.T) {
	from := run(t, bintest.ConsulOptions{Management: root})
	for i, size := range []int{0, 10, 500 << 10} {
		ask(t, root, http.MethodPut, from.Address+"/v1/kv/key-"+string(rune('a'+i)), noise(size))
	}
	fromCfg := withToken(t, from, root)
	data := readRaft(t, fromCfg)
	to := run(t, bintest.ConsulOptions{Management: unknown})
	before := withToken(t, to, unknown)
	ask(t, unknown, http.MethodPut, to.Address+"/v1/kv/before", nil)
	untouched := read(t, before)
	good := func() io.Reader { return bytes.NewReader(data) }
	flipped := bytes.Clone(data)
	flipped[len(flipped)/2] ^= 4
	for name, ways := range map[string][]func() io.Reader{
		"damaged":         {func() io.Reader { return bytes.NewReader(flipped) }},
		"cut":             {func() io.Reader { return bytes.NewReader(data[:len(data)-1]) }},
		"empty":           {func() io.Reader { return bytes.NewReader(nil) }},
		"wrong digest":    {func() io.Reader { return io.MultiReader(good(), iotest.ErrReader(errBroken)) }},
		"something else":  {func() io.Reader { return bytes.NewReader([]byte("[]")) }},
		"damaged later":   {good, func() io.Reader { return bytes.NewReader(flipped) }},
		"cut later":       {good, func() io.Reader { return bytes.NewReader(data[:len(data)-1]) }},
		"breaks at last":  {good, func() io.Reader { return io.MultiReader(good(), iotest.ErrReader(errBroken)) }},
		"breaks half-way": {good, func() io.Reader { return io.MultiReader(bytes.NewReader(data[:300<<10]), iotest.ErrReader(errBroken)) }},
	} {
		t.Run(name, func(t *testing.T) {
			err := consul.RestoreRaft(t.Context(), before, opener(ways...))
			require.ErrorContains(t, err, "reading the raft snapshot")
			same(t, untouched, read(t, before))
		})
	}
	t.Run("rights", func(t *testing.T) {
		err := consul.RestoreRaft(t.Context(), withToken(t, to, root), opener(good))
		var typed *source.Error
		require.ErrorAs(t, err, &typed)
		assert.Equal(t, source.Denied, typed.Reason)
		assert.NotContains(t, err.Error(), root)
		body := newTokenAs(t, to, unknown, `key_prefix "" { policy = "write" } operator = "write"`)
		err = consul.RestoreRaft(t.Context(), withToken(t, to, body), opener(good))
		require.ErrorContains(t, err, `it needs a management token, or one with: acl = "write"`)
		same(t, untouched, read(t, before))
	})
	t.Run("canceled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		require.ErrorIs(t, consul.RestoreRaft(ctx, before, opener(good)), context.Canceled)
	})
	t.Run("good", func(t *testing.T) {
		require.NoError(t, consul.RestoreRaft(t.Context(), before, opener(good)))
		same(t, read(t, fromCfg), read(t, withToken(t, to, root)))
	})
}

// TestRaftWithoutAnswer loses the answer before and after all of the snapshot was sent. Nobody knows of the latter what it did.
func TestRaftWithoutAnswer(t *testing.T) {
	const unknownEnd = "whether it was restored is not known: look at the datacenter"
	c := run(t, bintest.ConsulOptions{})
	data := readRaft(t, config.Consul{Address: c.Address})
	ask(t, "", http.MethodPut, c.Address+"/v1/kv/later", nil)
	restoring := func(b *between) error {
		return consul.RestoreRaft(t.Context(), config.Consul{Address: b.URL}, whole(data))
	}
	isRaft := func(r *http.Request) bool { return r.URL.Path == "/v1/snapshot" }
	t.Run("nobody is there", func(t *testing.T) {
		err := consul.RestoreRaft(t.Context(), config.Consul{Address: "http://127.0.0.1:1"}, whole(data))
		require.ErrorContains(t, err, "connection refused")
		assert.NotContains(t, err.Error(), unknownEnd, "nothing was sent")
	})
	t.Run("the way breaks at the end", func(t *testing.T) {
		b := proxy(t, c)
		b.before = func(r *http.Request) int {
			_, _ = io.Copy(io.Discard, r.Body)
			panic(http.ErrAbortHandler)
		}
		err := restoring(b)
		require.ErrorContains(t, err, unknownEnd)
		require.ErrorContains(t, err, b.URL)
		var typed *source.Error
		require.ErrorAs(t, err, &typed)
		assert.Len(t, parse(t, read(t, config.Consul{Address: c.Address})), 1, "it was not")
	})
	t.Run("the answer is lost", func(t *testing.T) {
		b := proxy(t, c)
		b.lose = isRaft
		require.ErrorContains(t, restoring(b), unknownEnd)
		assert.Empty(t, parse(t, read(t, config.Consul{Address: c.Address})), "it was")
	})
	t.Run("another answers in its place", func(t *testing.T) {
		b := proxy(t, c)
		b.before = func(r *http.Request) int {
			_, _ = io.Copy(io.Discard, r.Body)
			return http.StatusGatewayTimeout
		}
		require.ErrorContains(t, restoring(b), unknownEnd)
	})
}
