package consul_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore/consul"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/consulkv"
)

func reset(t *testing.T, c *bintest.Consul) {
	t.Helper()
	ask(t, "", http.MethodDelete, c.Address+"/v1/kv/?recurse", nil)
}

// TestRules follows the rules of every restore, by a destination that has something of each kind.
func TestRules(t *testing.T) {
	c := run(t, bintest.ConsulOptions{})
	cfg := config.Consul{Address: c.Address}
	data := snapshot(t, append(named("a/absent", "a/same", "b/absent"), kv{"a/flags", 7, []byte("x")}, kv{"a/value", 0, []byte("snapshot")},
		kv{"a/both", 1<<64 - 1, nil})...)
	there := append(named("a/same", "a/zextra", "c"), kv{"a/flags", 0, []byte("x")}, kv{"a/value", 0, []byte("newer")}, kv{"a/both", 3, []byte("s3cr3t")})
	plan := []string{
		"create a/absent (value 8 B, flags 8)", "differs a/both (value 6 B -> 0 B, flags 3 -> 18446744073709551615)", "differs a/flags (flags 0 -> 7)",
		"same a/same", "differs a/value (value 5 B -> 8 B)", "extra a/zextra (value 8 B, flags 8)", "create b/absent (value 8 B, flags 8)", "extra c (value 1 B, flags 1)",
	}
	write(t, c, there...)
	before := read(t, cfg)

	t.Run("a plan writes nothing", func(t *testing.T) {
		for _, force := range []bool{false, true} {
			got, sum, err := bring(t, cfg, data, consul.Selection{}, restore.Options{Force: force})
			require.NoError(t, err)
			want := strings.Join(plan, "\n")
			if force {
				want = strings.ReplaceAll(want, "differs ", "change ")
			}
			assert.Equal(t, want, strings.Join(got.short(), "\n"))
			assert.EqualValues(t, 31, sum.Bytes)
			same(t, before, read(t, cfg))
		}
	})
	t.Run("all of it is refused", func(t *testing.T) {
		for _, sel := range []consul.Selection{{}, {Prefixes: []string{""}}} {
			got, sum, err := bring(t, cfg, data, sel, restore.Options{Apply: true})
			require.ErrorIs(t, err, restore.ErrNotEmpty)
			require.ErrorContains(t, err, "3 things there differ from the snapshot and 2 are not in it")
			assert.EqualValues(t, 3, sum.Differs)
			assert.EqualValues(t, 2, sum.Extra)
			assert.Equal(t, []string{plan[1], plan[2], plan[4], plan[5], plan[7]}, got.short(), "what is in the way")
			same(t, before, read(t, cfg))
		}
	})
	t.Run("a part is restored, and what differs is left", func(t *testing.T) {
		got, sum, err := bring(t, cfg, data, consul.Selection{Prefixes: []string{"a/"}}, restore.Options{Apply: true})
		require.NoError(t, err)
		assert.Equal(t, plan[:6], got.short())
		assert.Equal(t, restore.Summary{Created: 1, Same: 1, Differs: 3, Extra: 1, Bytes: 23}, sum)
		assert.EqualValues(t, 3, sum.Left())
		same(t, snapshot(t, append(there, named("a/absent")...)...), read(t, cfg))
	})
	t.Run("force replaces, and removes nothing", func(t *testing.T) {
		got, sum, err := bring(t, cfg, data, consul.Selection{}, restore.Options{Apply: true, Force: true})
		require.NoError(t, err)
		assert.Equal(t, restore.Summary{Created: 1, Changed: 3, Same: 2, Extra: 2, Bytes: 31}, sum)
		assert.Equal(t, []string{"a/both", "a/flags", "a/value"}, got.of(restore.Change))
		same(t, snapshot(t, append(parse(t, data), named("a/zextra", "c")...)...), read(t, cfg))
		assert.NotContains(t, strings.Join(got.short(), ""), "s3cr3t")
	})
	t.Run("again", func(t *testing.T) {
		reset(t, c)
		for i, want := range []restore.Summary{{Created: 6, Bytes: 31}, {Same: 6, Bytes: 31}} {
			_, sum, err := bring(t, cfg, data, consul.Selection{}, restore.Options{Apply: true})
			require.NoError(t, err, i)
			assert.Equal(t, want, sum)
			same(t, data, read(t, cfg))
		}
	})
	t.Run("an empty snapshot", func(t *testing.T) {
		_, sum, err := bring(t, cfg, []byte("[]\n"), consul.Selection{}, restore.Options{Apply: true})
		require.ErrorIs(t, err, restore.ErrNotEmpty)
		assert.EqualValues(t, 6, sum.Extra)
		reset(t, c)
		_, sum, err = bring(t, cfg, []byte("[]\n"), consul.Selection{}, restore.Options{Apply: true})
		require.NoError(t, err)
		assert.Equal(t, restore.Summary{}, sum)
	})
}

// unusual are names that Consul takes, and that paths and tools stumble over.
func unusual() []string {
	return []string{
		"a", "a/", "a//b", "a/./b", "a/../b", "a//", "a/.", "a/..", "a/.hidden", "a..b", "/a/b", "/", "//", "///", ".", "./", "./a", "..", "../",
		" ", " a", "a ", "a/ x", "a/x y", "a/100%", "a/100%25", "a/%2e%2e", "a%20", "a%2Fb", "a%00", "a/q?x=1", "a/h#1", "a/\n", "a/\r\n", "a/\t", "a/\x00", "a/\x00/b",
		"a/\x01", "a/\x7f", "a/\u0080", "a/\u2028", "a/\u00a0", "a/\u200b", "ä", "é", "e\u0301", "日本/語", "😀", "\U0010ffff", "\ue000", `a/"quoted"\`, `\`, `a\u0000`, "a/<&>",
		"a+b;c", "a:b", "{}", "[", "'", "`", "$(x)", "a/b/c/d/e/", "A", "a/\ufeff", strings.Repeat("long/", 400),
	}
}

// TestNames brings back every name byte by byte, with no value, with one that fits a transaction, and as it can with one that does not.
func TestNames(t *testing.T) {
	c := run(t, bintest.ConsulOptions{})
	cfg := config.Consul{Address: c.Address}
	for name, value := range map[string][]byte{"empty": nil, "small": {0, 0xff, '"', '\n'}} {
		t.Run(name, func(t *testing.T) {
			reset(t, c)
			var keys []kv
			for i, n := range unusual() {
				keys = append(keys, kv{n, []uint64{0, 1, 1<<53 + 1, 1<<63 - 1, 1 << 63, 1<<64 - 1}[i%6], value})
			}
			data := snapshot(t, keys...)
			for range 2 {
				got, sum, err := bring(t, cfg, data, consul.Selection{}, restore.Options{Apply: true})
				require.NoError(t, err)
				assert.EqualValues(t, len(keys), sum.Restored(), got.short())
				same(t, data, read(t, cfg))
			}
			// What the source reads is what is restored: the bytes, not only the meaning.
			export := read(t, cfg)
			reset(t, c)
			_, _, err := bring(t, cfg, export, consul.Selection{}, restore.Options{Apply: true})
			require.NoError(t, err)
			assert.True(t, bytes.Equal(export, read(t, cfg)))
			// And under another name.
			reset(t, c)
			_, sum, err := bring(t, cfg, export, consul.Selection{Rename: []restore.Rename{{Old: "", New: "//ü%/"}}}, restore.Options{Apply: true})
			require.NoError(t, err)
			assert.EqualValues(t, len(keys), sum.Created)
			for i := range keys {
				keys[i].Key = "//ü%/" + keys[i].Key
			}
			same(t, snapshot(t, keys...), read(t, cfg))
		})
	}
	t.Run("large", func(t *testing.T) {
		reset(t, c)
		var keys, want []kv
		for _, n := range unusual() {
			k := kv{n, 1<<64 - 1, bytes.Repeat([]byte("x"), 400<<10)}
			keys = append(keys, k)
			if consulkv.Plain(n) {
				want = append(want, k)
			}
		}
		got, sum, err := bring(t, cfg, snapshot(t, keys...), consul.Selection{}, restore.Options{Apply: true})
		require.NoError(t, err)
		same(t, snapshot(t, want...), read(t, cfg))
		assert.EqualValues(t, len(want), sum.Created)
		assert.Greater(t, len(want), 20)
		for _, i := range got.items {
			if i.Action == restore.Failed {
				require.ErrorContains(t, i.Err, "limits.txn_max_req_len of the destination would have to be raised", i.Name)
			}
		}
	})
}

// TestSizes restores values up to what Consul takes, by each of the ways, and names those it does not take.
func TestSizes(t *testing.T) {
	var keys []kv
	for _, kib := range []int{1, 200, 383, 384, 385, 512} {
		for _, d := range []int{-130, -1, 0, 1} {
			keys = append(keys, kv{fmt.Sprintf("k/%03d/%+d", kib, d), uint64(kib), bytes.Repeat([]byte{byte(kib)}, kib<<10+d)})
		}
	}
	for i := range 500 {
		keys = append(keys, kv{fmt.Sprintf("k/small/%03d", i), 1, bytes.Repeat([]byte{byte(i)}, i*13)})
	}
	for name, limit := range map[string]struct {
		hcl  string
		most int
	}{
		"as Consul comes": {"", 512 << 10},
		"less":            {"limits { kv_max_value_size = 65536 txn_max_req_len = 65536 }", 64 << 10},
		"less for values": {"limits { kv_max_value_size = 204800 }", 200 << 10},
		"more":            {"limits { kv_max_value_size = 700000 }", 700_000},
	} {
		t.Run(name, func(t *testing.T) {
			c := run(t, bintest.ConsulOptions{HCL: limit.hcl})
			cfg := config.Consul{Address: c.Address}
			var want []kv
			var failed []string
			for _, k := range parse(t, snapshot(t, keys...)) {
				if len(k.Value) > limit.most {
					failed = append(failed, k.Key)
					continue
				}
				want = append(want, k)
			}
			for _, created := range []int64{int64(len(want)), 0} {
				got, sum, err := bring(t, cfg, snapshot(t, keys...), consul.Selection{}, restore.Options{Apply: true})
				require.NoError(t, err)
				assert.Equal(t, created, sum.Created)
				assert.EqualValues(t, len(failed), sum.Failed)
				assert.Equal(t, failed, got.of(restore.Failed))
				for _, i := range got.items {
					if i.Action == restore.Failed {
						require.ErrorContains(t, i.Err, "limits.kv_max_value_size", i.Name)
						require.ErrorContains(t, i.Err, fmt.Sprintf("max size: %d bytes", limit.most), i.Name)
					}
				}
				same(t, snapshot(t, want...), read(t, cfg))
			}
		})
	}
}

// TestLargeNames has a value that is too large for a PUT of such a name go in a transaction, where the destination takes more, as a
// drill's does.
func TestLargeNames(t *testing.T) {
	c := run(t, bintest.ConsulOptions{HCL: "limits { kv_max_value_size = 4000000 }"})
	cfg := config.Consul{Address: c.Address}
	data := snapshot(t, kv{"a//b", 1, noise(600 << 10)}, kv{"a/b", 2, noise(2 << 20)}, kv{" x", 3, noise(2 << 20)})
	for range 2 {
		_, sum, err := bring(t, cfg, data, consul.Selection{}, restore.Options{Apply: true})
		require.NoError(t, err)
		assert.EqualValues(t, 3, sum.Restored())
		same(t, data, read(t, cfg))
	}
}

// TestMemory restores 70 MiB with memory for what is on its way.
func TestMemory(t *testing.T) {
	c := run(t, bintest.ConsulOptions{})
	cfg := config.Consul{Address: c.Address}
	const keys = 100_000
	open := func(context.Context) (io.ReadCloser, error) {
		out, in := io.Pipe()
		go func() {
			w := bufio.NewWriterSize(in, 64<<10)
			for i := range keys {
				size := 200
				if i%500 == 0 {
					size = 400 << 10
				}
				_, _ = fmt.Fprintf(w, "%c\n{\"key\":\"large/key-%09d\",\"flags\":1,\"value\":\"%s\"}", "[,"[min(i, 1)], i, strings.Repeat("QUJD", size/4))
			}
			_, _ = w.WriteString("]")
			_ = in.CloseWithError(w.Flush())
		}()
		return out, nil
	}
	for _, pass := range []string{"into nothing", "into the same"} {
		runtime.GC()
		var now runtime.MemStats
		runtime.ReadMemStats(&now)
		before, most, next := now.HeapAlloc, uint64(0), int64(0)
		began := time.Now()
		sum, err := consul.Restore(t.Context(), cfg, open, consul.Selection{}, restore.Options{Apply: true, Progress: func(done, _ int64) {
			if done > next || done == 0 {
				next = done + 20_000
				runtime.GC()
				runtime.ReadMemStats(&now)
				most = max(most, now.HeapAlloc)
			}
		}})
		require.NoError(t, err)
		t.Logf("%s: %d keys, %d MiB in %s; the heap grew by %d KiB", pass, sum.Restored(), sum.Bytes>>20, time.Since(began), (int64(most)-int64(before))>>10)
		assert.EqualValues(t, keys, sum.Restored())
		assert.Less(t, most, before+32<<20)
	}
}

// TestSocket restores over a socket in the file system, as into a drill's server.
func TestSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "http.sock")
	c := run(t, bintest.ConsulOptions{HCL: fmt.Sprintf(`addresses { http = "127.0.0.1 unix://%s" }`, path)})
	data := snapshot(t, named("a", "b/c")...)
	_, sum, err := bring(t, config.Consul{Address: "unix://" + path}, data, consul.Selection{}, restore.Options{Apply: true})
	require.NoError(t, err)
	assert.EqualValues(t, 2, sum.Created)
	same(t, data, read(t, config.Consul{Address: c.Address}))
}

// TestLocked replaces a key that somebody holds, who goes on holding it.
func TestLocked(t *testing.T) {
	c := run(t, bintest.ConsulOptions{})
	// A session is a node's, and an agent registers its own some time after it answers.
	require.Eventually(t, func() bool {
		return strings.Contains(string(ask(t, "", http.MethodGet, c.Address+"/v1/catalog/nodes", nil)), `"Node"`)
	}, time.Minute, 50*time.Millisecond)
	session := ask(t, "", http.MethodPut, c.Address+"/v1/session/create", []byte(`{"LockDelay":"0s"}`))
	id := strings.Split(string(session), `"`)[3]
	ask(t, "", http.MethodPut, c.Address+"/v1/kv/lock?acquire="+id, []byte("holder"))
	_, sum, err := bring(t, config.Consul{Address: c.Address}, snapshot(t, named("lock")...), consul.Selection{}, restore.Options{Apply: true, Force: true})
	require.NoError(t, err)
	assert.EqualValues(t, 1, sum.Changed)
	assert.Contains(t, string(ask(t, "", http.MethodGet, c.Address+"/v1/kv/lock", nil)), id)
}

// TestProgress tells how far each pass is, and how much there is once that is known.
func TestProgress(t *testing.T) {
	c := run(t, bintest.ConsulOptions{})
	data := generated(t, 2500, func(int) int { return 10 })
	for _, apply := range []bool{false, true} {
		var seen [][2]int64
		sum, err := consul.Restore(t.Context(), config.Consul{Address: c.Address}, whole(data), consul.Selection{},
			restore.Options{Apply: apply, Progress: func(done, total int64) { seen = append(seen, [2]int64{done, total}) }})
		require.NoError(t, err)
		assert.EqualValues(t, 25_000, sum.Bytes)
		assert.Equal(t, [][2]int64{{1000, 0}, {2000, 0}, {2500, 2500}}, seen[:3])
		if !apply {
			assert.Len(t, seen, 3)
			continue
		}
		assert.Equal(t, [2]int64{0, 2500}, seen[3])
		assert.Equal(t, [2]int64{64, 2500}, seen[4])
		assert.Equal(t, [2]int64{2500, 2500}, seen[len(seen)-1])
		for i := range seen[5:] {
			assert.GreaterOrEqual(t, seen[i+5][0], seen[i+4][0])
		}
	}
}

// TestOddNames restores names whose order nobody can know: Consul's JSON shows those bytes that are no UTF-8 as U+FFFD.
func TestOddNames(t *testing.T) {
	c := run(t, bintest.ConsulOptions{})
	cfg := config.Consul{Address: c.Address}
	for _, path := range []string{"a", "odd-%F0%9F%98%80", "odd-%FE", "odd-%FF", "odd-%FF/x", "z"} {
		ask(t, "", http.MethodPut, c.Address+"/v1/kv/"+path, []byte(path))
	}
	export := read(t, cfg)
	require.Len(t, parse(t, export), 6)
	// Of the two that come to one name, one can be restored.
	reset(t, c)
	got, sum, err := bring(t, cfg, export, consul.Selection{}, restore.Options{Apply: true})
	require.NoError(t, err)
	assert.Equal(t, restore.Summary{Created: 5, Skipped: 1, Bytes: sum.Bytes}, sum, got.short())
	assert.Equal(t, []string{"odd-\ufffd"}, got.of(restore.Skip))
	// Seen again, all is there, and nothing is extra.
	got, sum, err = bring(t, cfg, export, consul.Selection{Prefixes: []string{"a", "o", "z"}}, restore.Options{Apply: true})
	require.NoError(t, err)
	assert.Equal(t, restore.Summary{Same: 5, Skipped: 1, Bytes: sum.Bytes}, sum, got.short())
	// At the destination they do not disturb either, and what the snapshot lacks is told.
	ask(t, "", http.MethodPut, c.Address+"/v1/kv/extra-%FF", nil)
	got, _, err = bring(t, cfg, snapshot(t, named("a", "odd-😀", "zz")...), consul.Selection{Prefixes: []string{""}}, restore.Options{})
	require.NoError(t, err)
	assert.ElementsMatch(t, []string{"extra-\ufffd", "odd-\ufffd", "odd-\ufffd/x", "z"}, got.of(restore.Extra))
	assert.Equal(t, []string{"zz"}, got.of(restore.Create))
}

// TestMisused refuses what cannot be meant, before anything is asked.
func TestMisused(t *testing.T) {
	never := func(context.Context) (io.ReadCloser, error) { panic("it was opened") }
	for want, sel := range map[string]consul.Selection{
		`the prefix "\xff" is not UTF-8`:   {Prefixes: []string{"\xff"}},
		`"b\xff" is not UTF-8`:             {Rename: []restore.Rename{{Old: "a", New: "b\xff"}}},
		`"a" is renamed twice`:             {Rename: []restore.Rename{{Old: "a", New: "b"}, {Old: "a", New: "c"}}},
		`"a/" and "b/" would both come`:    {Rename: []restore.Rename{{Old: "b/", New: "c/"}, {Old: "a/", New: "c/"}}},
		`no selected key begins with "b/"`: {Prefixes: []string{"a/"}, Rename: []restore.Rename{{Old: "b/", New: "c/"}}},
	} {
		_, err := consul.Restore(t.Context(), config.Consul{Address: "http://127.0.0.1:1"}, never, sel, restore.Options{})
		require.ErrorContains(t, err, want)
	}
	_, err := consul.Restore(t.Context(), config.Consul{Address: "http://127.0.0.1:1", TokenFile: "/nowhere"}, never, consul.Selection{}, restore.Options{})
	require.ErrorContains(t, err, "reading the token")
}
