package consul_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore/consul"
	source "github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/consul"
)

// run starts a server that ends with the test.
func run(tb testing.TB, opts bintest.ConsulOptions) *bintest.Consul {
	tb.Helper()
	c, err := bintest.StartConsulWith(tb.Context(), tb.TempDir(), opts)
	require.NoError(tb, err)
	tb.Cleanup(func() { require.NoError(tb, c.Kill()) })
	return c
}

// kv is a key as a snapshot has it.
type kv struct {
	Key   string `json:"key"`
	Flags uint64 `json:"flags"`
	Value []byte `json:"value"`
}

// snapshot is what the source would have made of the keys.
func snapshot(tb testing.TB, keys ...kv) []byte {
	tb.Helper()
	keys = append([]kv{}, keys...)
	slices.SortFunc(keys, func(a, b kv) int { return strings.Compare(a.Key, b.Key) })
	for i := range keys {
		if keys[i].Value == nil {
			keys[i].Value = []byte{}
		}
	}
	data, err := json.Marshal(keys)
	require.NoError(tb, err)
	return data
}

// named makes keys whose value is the name.
func named(names ...string) []kv {
	var out []kv
	for _, n := range names {
		out = append(out, kv{n, uint64(len(n)), []byte(n)})
	}
	return out
}

// whole opens data that is as it should be.
func whole(data []byte) restore.Open {
	return func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }
}

// write puts keys there, in transactions, whatever their names.
func write(tb testing.TB, c *bintest.Consul, keys ...kv) {
	tb.Helper()
	for part := range slices.Chunk(keys, 64) {
		var ops []any
		for _, k := range part {
			ops = append(ops, map[string]any{"KV": map[string]any{"Verb": "set", "Key": k.Key, "Value": k.Value, "Flags": k.Flags}})
		}
		body, err := json.Marshal(ops)
		require.NoError(tb, err)
		ask(tb, "", http.MethodPut, c.Address+"/v1/txn", body)
	}
}

// ask sends a request that has to succeed.
func ask(tb testing.TB, token, method, url string, body []byte) []byte {
	tb.Helper()
	req, err := http.NewRequestWithContext(tb.Context(), method, url, bytes.NewReader(body))
	require.NoError(tb, err)
	req.Header.Set("X-Consul-Token", token)
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	require.NoError(tb, err)
	defer resp.Body.Close()
	out, err := io.ReadAll(resp.Body)
	require.NoError(tb, err)
	require.Equal(tb, http.StatusOK, resp.StatusCode, "%s %s: %s", method, url, out)
	return out
}

// read takes a snapshot of what is there.
func read(tb testing.TB, cfg config.Consul) []byte {
	tb.Helper()
	st, err := source.New(cfg, source.Options{}).Open(tb.Context())
	require.NoError(tb, err)
	defer st.Close()
	data, err := io.ReadAll(st)
	require.NoError(tb, err)
	return data
}

// same compares snapshots byte by byte, in the source's own way of writing them.
func same(tb testing.TB, want, got []byte) {
	tb.Helper()
	if !bytes.Equal(canonical(tb, want), canonical(tb, got)) {
		// Not the values: they may be large.
		assert.Fail(tb, "the snapshots differ", "wanted %s\ngot    %s", outline(tb, want), outline(tb, got))
	}
}

func parse(tb testing.TB, data []byte) []kv {
	tb.Helper()
	var all []kv
	require.NoError(tb, json.Unmarshal(data, &all))
	return all
}

func canonical(tb testing.TB, data []byte) []byte {
	tb.Helper()
	out, err := json.Marshal(parse(tb, data))
	require.NoError(tb, err)
	return out
}

func outline(tb testing.TB, data []byte) string {
	tb.Helper()
	var out strings.Builder
	for i, k := range parse(tb, data) {
		if i == 60 {
			return out.String() + " ..."
		}
		_, _ = fmt.Fprintf(&out, "%q=%d/%d ", k.Key, len(k.Value), k.Flags)
	}
	return out.String()
}

// told keeps what a restore tells.
type told struct{ items []restore.Item }

func (o *told) item(i restore.Item) { o.items = append(o.items, i) }

// short shows what was told, in its order.
func (o *told) short() []string {
	var out []string
	for _, i := range o.items {
		line := string(i.Action) + " " + i.Name
		if i.Detail != "" {
			line += " (" + i.Detail + ")"
		}
		if i.Err != nil {
			line += ": " + i.Err.Error()
		}
		out = append(out, line)
	}
	return out
}

// of gives the names of one action.
func (o *told) of(a restore.Action) []string {
	var out []string
	for _, i := range o.items {
		if i.Action == a {
			out = append(out, i.Name)
		}
	}
	return out
}

// bring restores and checks that the summary counts what was told.
func bring(
	tb testing.TB, cfg config.Consul, data []byte, sel consul.Selection, o restore.Options,
) (*told, restore.Summary, error) {
	tb.Helper()
	var seen told
	o.Item = seen.item
	sum, err := consul.Restore(tb.Context(), cfg, whole(data), sel, o)
	if err == nil {
		var count restore.Summary
		for _, i := range seen.items {
			count.Add(i.Action)
			assert.Equal(tb, "key", i.Kind)
			assert.Equal(tb, i.Action == restore.Failed, i.Err != nil)
		}
		count.Bytes = sum.Bytes
		assert.Equal(tb, count, sum)
	}
	return &seen, sum, err
}

// withToken is a configuration with a token in a file.
func withToken(tb testing.TB, c *bintest.Consul, secret string) config.Consul {
	tb.Helper()
	cfg := config.Consul{Address: c.Address}
	if secret != "" {
		file := filepath.Join(tb.TempDir(), "token")
		require.NoError(tb, os.WriteFile(file, []byte(secret), 0o600))
		cfg.TokenFile = config.SecretFile(file)
	}
	return cfg
}

var errBroken = errors.New("the digest is not the manifest's")
