package etcd

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/throwaway"
)

// childVar makes this binary carry out one restore, so that there is one to kill, or whose disk is full. Its value is the snapshot
// and the data directory, with a newline between them.
const childVar = "LIFEBOAT_TEST_RESTORE"

func TestMain(m *testing.M) {
	if spec := os.Getenv(childVar); spec != "" {
		if err := child(spec); err != nil {
			panic(err)
		}
		return
	}
	m.Run()
}

func newRand(tb testing.TB) *rand.Rand {
	tb.Helper()
	seed := uint64(time.Now().UnixNano())
	tb.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// member is an etcd in a process of its own.
type member struct {
	*bintest.Etcd
	client *clientv3.Client
}

func startMember(tb testing.TB, args ...string) *member {
	tb.Helper()
	e, err := bintest.StartEtcd(tb.Context(), tb.TempDir(), args...)
	require.NoError(tb, err)
	m := &member{Etcd: e}
	tb.Cleanup(func() { require.NoError(tb, m.Kill()) })
	m.client = dial(tb, e.Endpoint, "", "")
	return m
}

func (m *member) config() config.Etcd { return config.Etcd{Endpoints: []string{m.Endpoint}} }

func dial(tb testing.TB, endpoint, user, password string) *clientv3.Client {
	tb.Helper()
	c, err := clientv3.New(clientv3.Config{
		Endpoints: []string{endpoint}, Username: user, Password: password, DialTimeout: 10 * time.Second, Logger: zap.NewNop(),
	})
	require.NoError(tb, err)
	tb.Cleanup(func() { _ = c.Close() })
	// It connects on first use, which must not be where leaks are looked for.
	ctx, cancel := context.WithTimeout(tb.Context(), time.Second)
	defer cancel()
	_, _ = c.Get(ctx, "x")
	return c
}

func (m *member) put(tb testing.TB, key, value string, opts ...clientv3.OpOption) {
	tb.Helper()
	_, err := m.client.Put(tb.Context(), key, value, opts...)
	require.NoError(tb, err)
}

// fill puts n keys with values of up to size bytes.
func (m *member) fill(tb testing.TB, r *rand.Rand, prefix string, n, size int) {
	tb.Helper()
	var ops []clientv3.Op
	for i := range n {
		value := make([]byte, r.IntN(size+1))
		for j := range value {
			value[j] = byte(r.UintN(256))
		}
		ops = append(ops, clientv3.OpPut(fmt.Sprintf("%s%06d", prefix, i), string(value)))
		if len(ops) == 100 || i == n-1 {
			_, err := m.client.Txn(tb.Context()).Then(ops...).Commit()
			require.NoError(tb, err)
			ops = nil
		}
	}
}

// snapshot is what the member's snapshot holds now.
func (m *member) snapshot(tb testing.TB) []byte {
	tb.Helper()
	body, err := m.client.Snapshot(tb.Context())
	require.NoError(tb, err)
	data, err := io.ReadAll(body)
	require.NoError(tb, err)
	return data
}

// all is what the member holds now, by key.
func (m *member) all(tb testing.TB) map[string]string {
	tb.Helper()
	return allOf(tb, m.client)
}

func allOf(tb testing.TB, c *clientv3.Client) map[string]string {
	tb.Helper()
	resp, err := c.Get(tb.Context(), "", clientv3.WithPrefix())
	require.NoError(tb, err)
	found := make(map[string]string)
	for _, kv := range resp.Kvs {
		found[string(kv.Key)] = string(kv.Value)
	}
	return found
}

func opens(data []byte) restore.Open {
	return func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }
}

func fileOf(tb testing.TB, data []byte) string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "snapshot.db")
	require.NoError(tb, os.WriteFile(path, data, 0o600))
	return path
}

// recorded runs a restore and keeps its items.
type recorded struct {
	summary restore.Summary
	items   []restore.Item
	done    int64
	total   int64
}

// of is the one item of a key.
func (r *recorded) of(tb testing.TB, name string) restore.Item {
	tb.Helper()
	var found []restore.Item
	for _, i := range r.items {
		if i.Name == name {
			found = append(found, i)
		}
	}
	require.Len(tb, found, 1, "items of %q", name)
	return found[0]
}

// to restores a snapshot and holds the result to what every restore keeps: whole items, a scratch folder that is as empty as before,
// and nothing that still runs.
func to(tb testing.TB, dest config.Etcd, data []byte, sel Selection, o restore.Options) (*recorded, error) {
	tb.Helper()
	defer goleak.VerifyNone(tb, goleak.IgnoreCurrent())
	return toWith(tb.Context(), tb, dest, data, sel, o)
}

// toWith is to for where others come and go meanwhile.
func toWith(
	ctx context.Context, tb testing.TB, dest config.Etcd, data []byte, sel Selection, o restore.Options,
) (*recorded, error) {
	tb.Helper()
	scratch, err := throwaway.NewScratch(tb.TempDir())
	require.NoError(tb, err)
	defer func() { require.NoError(tb, scratch.Remove()) }()
	r := &recorded{}
	also := o.Item
	o.Item = func(i restore.Item) {
		r.items = append(r.items, i)
		if also != nil {
			also(i)
		}
	}
	o.Progress = func(done, total int64) { r.done, r.total = done, total }
	before, err := os.ReadDir(scratch.Dir())
	require.NoError(tb, err)
	r.summary, err = ToCluster(ctx, dest, opens(data), scratch, int64(len(data)), sel, o)
	after, derr := os.ReadDir(scratch.Dir())
	require.NoError(tb, derr)
	require.Len(tb, after, len(before))
	for _, i := range r.items {
		require.Equal(tb, i.Action == restore.Failed, i.Err != nil, "%+v", i)
		require.Equal(tb, "key", i.Kind)
	}
	return r, err
}

func values(n int) string { return strings.Repeat("x", n) }
