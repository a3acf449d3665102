package etcd_test

import (
	"bytes"
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/etcd"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/sourcetest"
)

var _ sourcetest.Opener = (*etcd.Source)(nil)

// childVar makes this binary an etcd server, so that there is one to kill. Its value is the directory, which holds the
// client's URL as the file "url" once the server is ready.
const childVar = "LIFEBOAT_TEST_ETCD_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childVar); dir != "" {
		if err := serve(dir); err != nil {
			panic(err)
		}
		return
	}
	// Leaks of ours are looked for in every case of the conformance suite. Not here: an embedded member of a cluster that is
	// closed while it still starts leaves listeners behind, which is etcd's own and only ever happens in this test.
	m.Run()
}

func serve(dir string) error {
	e, err := embedded(filepath.Join(dir, "data"))
	if err != nil {
		return err
	}
	tmp := filepath.Join(dir, "url.tmp")
	if err := os.WriteFile(tmp, []byte(clientURL(e)), 0o600); err != nil {
		return err
	}
	if err := os.Rename(tmp, filepath.Join(dir, "url")); err != nil {
		return err
	}
	return <-e.Err()
}

// embedded runs a single etcd on random loopback ports.
func embedded(dir string, change ...func(*embed.Config)) (*embed.Etcd, error) {
	cfg := embed.NewConfig()
	cfg.Dir = dir
	cfg.UnsafeNoFsync = true
	cfg.TickMs, cfg.ElectionMs = 10, 50
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	any := []url.URL{{Scheme: "http", Host: "127.0.0.1:0"}}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = any, any
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = any, any
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	for _, c := range change {
		c(cfg)
	}
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return nil, err
	}
	select {
	case <-e.Server.ReadyNotify():
		return e, nil
	case err := <-e.Err():
		return nil, err
	case <-time.After(time.Minute):
		e.Close()
		return nil, fmt.Errorf("etcd was not ready within a minute")
	}
}

func clientURL(e *embed.Etcd) string {
	return e.Config().ListenClientUrls[0].Scheme + "://" + e.Clients[0].Addr().String()
}

func dial(t *testing.T, address string) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{address}, Logger: zap.NewNop()})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	// It connects on first use, which must not be within a test that looks for leaks.
	_, err = c.Get(t.Context(), "x")
	require.NoError(t, err)
	return c
}

func start(t *testing.T) *sourcetest.Server {
	t.Helper()
	return server(t, clientURL(startWith(t, t.TempDir())))
}

func startWith(t *testing.T, dir string, change ...func(*embed.Config)) *embed.Etcd {
	t.Helper()
	e, err := embedded(dir, change...)
	require.NoError(t, err)
	t.Cleanup(e.Close)
	return e
}

func server(t *testing.T, address string) *sourcetest.Server {
	t.Helper()
	c := dial(t, address)
	return &sourcetest.Server{
		Address: address,
		Reset: func(t *testing.T) {
			t.Helper()
			resp, err := c.Delete(t.Context(), "", clientv3.WithPrefix())
			require.NoError(t, err)
			if resp.Header.Revision > 1 {
				// Physical, so that the database is clean before the next snapshot.
				_, err = c.Compact(t.Context(), resp.Header.Revision, clientv3.WithCompactPhysical())
				if err != nil {
					require.ErrorContains(t, err, "compacted", "only because nothing was deleted")
				}
			}
		},
		Put: func(t *testing.T, n, size int) {
			t.Helper()
			for i := range n {
				_, err := c.Put(t.Context(), fmt.Sprintf("/dir/item-%d", i), strings.Repeat("x", size))
				require.NoError(t, err)
			}
		},
	}
}

// victim runs an etcd in a process of its own.
func victim(t *testing.T) *sourcetest.Server {
	t.Helper()
	address, p := child(t, t.TempDir())
	s := server(t, address)
	s.Kill = func(t *testing.T) {
		t.Helper()
		require.NoError(t, p.Kill())
	}
	return s
}

func child(tb testing.TB, dir string) (address string, p *bintest.Process) {
	tb.Helper()
	self, err := os.Executable()
	require.NoError(tb, err)
	p, err = bintest.Start(self, filepath.Join(dir, "log"), []string{childVar + "=" + dir})
	require.NoError(tb, err)
	tb.Cleanup(func() { require.NoError(tb, p.Kill()) })
	require.Eventually(tb, func() bool {
		url, err := os.ReadFile(filepath.Join(dir, "url"))
		address = string(url)
		return err == nil
	}, time.Minute, 20*time.Millisecond)
	return address, p
}

// decode reads the newest value of every key with the real library.
func decode(t *testing.T, data []byte) map[string]string {
	t.Helper()
	items := make(map[string]string)
	eachRevision(t, data, func(rev []byte, kv *mvccpb.KeyValue) {
		if len(rev) == 18 {
			delete(items, string(kv.Key))
		} else {
			items[string(kv.Key)] = string(kv.Value)
		}
	})
	return items
}

func eachRevision(t *testing.T, data []byte, visit func(rev []byte, kv *mvccpb.KeyValue)) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "db")
	require.NoError(t, os.WriteFile(file, data, 0o600))
	db, err := bolt.Open(file, 0o400, &bolt.Options{ReadOnly: true})
	require.NoError(t, err)
	defer db.Close()
	require.NoError(t, db.View(func(tx *bolt.Tx) error {
		return tx.Bucket([]byte("key")).ForEach(func(k, v []byte) error {
			kv := &mvccpb.KeyValue{}
			if err := proto.Unmarshal(v, kv); err != nil {
				return err
			}
			visit(bytes.Clone(k), kv)
			return nil
		})
	}))
}

func open(address string, idle time.Duration) sourcetest.Opener {
	return etcd.New(config.Etcd{Endpoints: []string{address}}, etcd.Options{Idle: idle})
}

func TestConformance(t *testing.T) {
	srv := start(t)
	c := dial(t, srv.Address)
	sourcetest.Run(t, sourcetest.Harness{
		Format: "db", New: open, Server: srv, Victim: victim, Items: "keys", Decode: decode,
		Huge: 1400 << 10,
		Mutate: func(ctx context.Context, value string) error {
			_, err := c.Txn(ctx).Then(clientv3.OpPut("left", value), clientv3.OpPut("right", value)).Commit()
			return err
		},
	})
	t.Run("info", func(t *testing.T) { testInfo(t, srv, c) })
}

// testInfo compares what the source says with what the server says at the same revision.
func testInfo(t *testing.T, srv *sourcetest.Server, c *clientv3.Client) {
	t.Helper()
	srv.Reset(t)
	srv.Put(t, 300, 200)
	srv.Put(t, 100, 5000)
	_, err := c.Delete(t.Context(), "/dir/item-1", clientv3.WithPrefix())
	require.NoError(t, err)
	head, err := c.Get(t.Context(), "", clientv3.WithPrefix(), clientv3.WithCountOnly())
	require.NoError(t, err)
	data, info := readAll(t, srv.Address)
	want, err := c.HashKV(t.Context(), srv.Address, head.Header.Revision)
	require.NoError(t, err)

	assert.Equal(t, head.Header.Revision, info.GetRevision())
	assert.Equal(t, head.Count, info.GetCounts()["keys"])
	var revisions int64
	eachRevision(t, data, func([]byte, *mvccpb.KeyValue) { revisions++ })
	assert.Equal(t, revisions, info.GetCounts()["revisions"])
	assert.Equal(t, want.Hash, info.GetHashKv().GetHash())
	assert.Equal(t, want.CompactRevision, info.GetHashKv().GetCompactRevision())
	assert.Equal(t, head.Header.Revision, info.GetHashKv().GetRevision())
	assert.Equal(t, fmt.Sprintf("%x", head.Header.ClusterId), info.GetIdentity()["cluster_id"])
	assert.Equal(t, fmt.Sprintf("%x", head.Header.MemberId), info.GetIdentity()["member_id"])
	assert.Equal(t, "default", info.GetIdentity()["member_name"])
}
