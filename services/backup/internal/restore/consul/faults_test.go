package consul_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore/consul"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source"
)

// victim is set for a process of this test that restores until it is killed: address and snapshot.
const victim = "LIFEBOAT_TEST_RESTORE"

func TestMain(m *testing.M) {
	if address, file, ok := strings.Cut(os.Getenv(victim), "|"); ok {
		os.Exit(beVictim(address, file)) //nolint:forbidigo // this process is no test
	}
	goleak.VerifyTestMain(m)
}

func beVictim(address, file string) int {
	data, err := os.ReadFile(file)
	if err == nil {
		_, err = consul.RestoreWith(context.Background(), 4, 0, 0, config.Consul{Address: address}, whole(data), consul.Selection{},
			restore.Options{Apply: true, Progress: func(done, total int64) { _, _ = fmt.Fprintln(os.Stdout, done, total) }})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// opener opens a snapshot another way each time; the last way from then on.
func opener(ways ...func() io.Reader) restore.Open {
	var n int
	return func(context.Context) (io.ReadCloser, error) {
		way := ways[min(n, len(ways)-1)]
		n++
		return io.NopCloser(way()), nil
	}
}

// TestDamaged writes nothing of a snapshot that is not whole, however late that shows.
func TestDamaged(t *testing.T) {
	c := run(t, bintest.ConsulOptions{})
	cfg := config.Consul{Address: c.Address}
	data := generated(t, 5000, func(int) int { return 100 })
	good := func() io.Reader { return bytes.NewReader(data) }
	broken := func(n int) func() io.Reader {
		return func() io.Reader { return io.MultiReader(bytes.NewReader(data[:n]), iotest.ErrReader(errBroken)) }
	}
	is := func(text string) func() io.Reader { return func() io.Reader { return strings.NewReader(text) } }
	flipped := bytes.Clone(data)
	flipped[len(flipped)/2] ^= 1
	for name, ways := range map[string][]func() io.Reader{
		"the digest is wrong at the end":   {broken(len(data))},
		"the digest is wrong in the midst": {broken(len(data) / 2)},
		"it is cut":                        {func() io.Reader { return bytes.NewReader(data[:len(data)-4]) }},
		"it is cut between two keys":       {is(`[{"key":"a","flags":0,"value":""}`)},
		"something follows":                {func() io.Reader { return io.MultiReader(good(), strings.NewReader("x")) }},
		"it is empty":                      {is("")},
		"it is something else":             {is("<html>")},
		"it is an answer of the API":       {is(`[{"LockIndex":0,"Key":"a","Flags":0,"Value":"eA=="}]`)},
		"it is not in order":               {is(`[{"key":"b","value":""},{"key":"a","value":""}]`)},
		"a key comes twice":                {is(`[{"key":"a","value":""},{"key":"a","value":""}]`)},
		"a value is no base64":             {is(`[{"key":"a","value":"?"}]`)},
		"another one is read again":        {good, func() io.Reader { return bytes.NewReader(generated(t, 5000, func(int) int { return 101 })) }},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := consul.Restore(t.Context(), cfg, opener(ways...), consul.Selection{}, restore.Options{Apply: true, Force: true})
			require.Error(t, err)
			assert.NotContains(t, err.Error(), "writing")
			assert.Equal(t, "[]\n", string(read(t, cfg)))
		})
	}
	for name, second := range map[string]func() io.Reader{
		"it is cut later":       func() io.Reader { return bytes.NewReader(data[:len(data)/2]) },
		"it breaks later":       broken(len(data) / 2),
		"a bit flips later":     func() io.Reader { return bytes.NewReader(flipped) },
		"something is appended": func() io.Reader { return io.MultiReader(good(), strings.NewReader(" ")) },
	} {
		t.Run(name, func(t *testing.T) {
			reset(t, c)
			sum, err := consul.Restore(t.Context(), cfg, opener(good, second), consul.Selection{}, restore.Options{Apply: true})
			require.Error(t, err)
			there := parse(t, read(t, cfg))
			assert.Equal(t, parse(t, data)[:len(there)], there, "only what was proven may be there")
			assert.LessOrEqual(t, sum.Created, int64(len(there)))
			_, sum, err = bring(t, cfg, data, consul.Selection{}, restore.Options{Apply: true})
			require.NoError(t, err)
			assert.EqualValues(t, len(there), sum.Same)
			same(t, data, read(t, cfg))
		})
	}
}

// hook does something when a snapshot is read for the second time, after its first part was given.
type hook struct {
	io.Reader
	do func()
	n  int
}

func (h *hook) Read(p []byte) (int, error) {
	n, err := h.Reader.Read(p[:min(len(p), 64<<10)])
	if h.n += n; h.n > 600<<10 && h.do != nil { // the list of the destination was begun with the first 256 KiB
		h.do()
		h.do = nil
	}
	return n, err
}

// TestConflicts has somebody else write between the list and the transaction.
func TestConflicts(t *testing.T) {
	c := run(t, bintest.ConsulOptions{})
	cfg := config.Consul{Address: c.Address}
	keys := parse(t, generated(t, 8000, func(int) int { return 100 }))
	data := snapshot(t, keys...)
	other := func(i int) kv { return kv{keys[i].Key, 9, []byte("by somebody else")} }
	const appeared, appearedEqual, changed, changedTo, deleted = 6001, 6002, 6130, 6131, 6259
	for _, force := range []bool{false, true} {
		t.Run(fmt.Sprintf("force %t", force), func(t *testing.T) {
			reset(t, c)
			before := []kv{{keys[changed].Key, 0, []byte("before")}, {keys[changedTo].Key, 0, []byte("before")}, {keys[deleted].Key, 0, []byte("before")}}
			write(t, c, before...)
			good := func() io.Reader { return bytes.NewReader(data) }
			meddle := func() io.Reader {
				return &hook{Reader: good(), do: func() {
					write(t, c, other(appeared), keys[appearedEqual], other(changed), keys[changedTo])
					ask(t, "", http.MethodDelete, c.Address+"/v1/kv/"+keys[deleted].Key, nil)
				}}
			}
			var got told
			sum, err := consul.Restore(t.Context(), cfg, opener(good, meddle), consul.Selection{Prefixes: []string{"c"}},
				restore.Options{Apply: true, Force: force, Item: got.item})
			require.NoError(t, err)
			byName := make(map[string]restore.Action)
			for i, item := range got.items {
				byName[item.Name] = item.Action
				assert.Equal(t, keys[i].Key, item.Name, "in the snapshot's order")
			}
			action := func(i int) restore.Action { return byName[keys[i].Key] }
			assert.Equal(t, restore.Same, action(appearedEqual))
			if force {
				assert.Equal(t, restore.Change, action(appeared))
				assert.Equal(t, restore.Change, action(changed))
				assert.Equal(t, restore.Same, action(changedTo))
				assert.Equal(t, restore.Create, action(deleted))
				same(t, data, read(t, cfg))
				assert.Equal(t, restore.Summary{Created: 7996, Changed: 2, Same: 2, Bytes: 800_000}, sum)
				return
			}
			assert.Equal(t, restore.Differs, action(appeared))
			assert.Equal(t, restore.Differs, action(changed))
			assert.Equal(t, restore.Differs, action(changedTo), "as the list had it")
			assert.Equal(t, restore.Differs, action(deleted), "as the list had it")
			want := append([]kv{}, keys...)
			want[appeared], want[changed] = other(appeared), other(changed)
			want = append(want[:deleted], want[deleted+1:]...)
			same(t, snapshot(t, want...), read(t, cfg))
			assert.Equal(t, restore.Summary{Created: 7995, Same: 1, Differs: 4, Bytes: 800_000}, sum)
		})
	}
}

// between passes requests on to a real server. Before and after, it asks what to do.
type between struct {
	*httptest.Server
	// before answers itself when it returns a status; lose and body may lose the answer, or send another body.
	before func(r *http.Request) int
	lose   func(r *http.Request) bool
	body   func(r *http.Request, body io.Reader) io.Reader
}

func proxy(t *testing.T, c *bintest.Consul) *between {
	t.Helper()
	to, err := url.Parse(c.Address)
	require.NoError(t, err)
	b := &between{}
	transport := &http.Transport{}
	onward := &httputil.ReverseProxy{
		Rewrite:      func(r *httputil.ProxyRequest) { r.SetURL(to) },
		Transport:    transport,
		ErrorLog:     slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
		ModifyResponse: func(resp *http.Response) error {
			if b.lose != nil && b.lose(resp.Request) {
				return errors.New("lost")
			}
			if b.body != nil {
				if other := b.body(resp.Request, resp.Body); other != nil {
					resp.Body = struct {
						io.Reader
						io.Closer
					}{other, resp.Body}
				}
			}
			return nil
		},
	}
	b.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if b.before != nil {
			if status := b.before(r); status != 0 {
				http.Error(w, "in trouble", status)
				return
			}
		}
		onward.ServeHTTP(w, r)
	}))
	t.Cleanup(func() { b.Close(); transport.CloseIdleConnections() })
	return b
}

func isTxn(r *http.Request) bool {
	return r.Method == http.MethodPut && r.URL.Path == "/v1/txn" && r.URL.RawQuery == ""
}

// TestLostAnswers counts what was written as written, also when nobody said so.
func TestLostAnswers(t *testing.T) {
	c := run(t, bintest.ConsulOptions{})
	cfg := config.Consul{Address: c.Address}
	keys := append(parse(t, generated(t, 3000, func(i int) int { return i % 300 })), kv{"x/large", 3, bytes.Repeat([]byte("x"), 450<<10)})
	data := snapshot(t, keys...)
	for name, fault := range map[string]func(b *between){
		"answers are lost": func(b *between) {
			var n atomic.Int64
			b.lose = func(r *http.Request) bool {
				return (isTxn(r) || r.URL.Path == "/v1/kv/x/large" && r.Method == http.MethodPut) && n.Add(1)%2 != 0
			}
		},
		"requests are lost": func(b *between) {
			var n atomic.Int64
			b.before = func(r *http.Request) int {
				if isTxn(r) && n.Add(1)%3 == 0 {
					panic(http.ErrAbortHandler)
				}
				return 0
			}
		},
		"too many requests": func(b *between) {
			var n atomic.Int64
			b.before = func(r *http.Request) int {
				if n.Add(1)%3 == 0 {
					return http.StatusTooManyRequests
				}
				return 0
			}
		},
		"no leader": func(b *between) {
			var n atomic.Int64
			b.before = func(r *http.Request) int {
				if n.Add(1)%4 == 0 {
					return http.StatusInternalServerError
				}
				return 0
			}
		},
		"lists break": func(b *between) {
			var n atomic.Int64
			b.body = func(r *http.Request, body io.Reader) io.Reader {
				if !r.URL.Query().Has("recurse") {
					return nil
				}
				if i := n.Add(1) % 6; i != 0 { // in both passes
					return io.MultiReader(io.LimitReader(body, i*120_000), iotest.ErrReader(errors.New("cut")))
				}
				return nil
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			reset(t, c)
			there := append([]kv{}, keys[500:900]...)
			for i := range there {
				there[i].Flags = 77
			}
			there = append(there, keys[900:2900]...)
			write(t, c, there...)
			b := proxy(t, c)
			fault(b)
			sum, err := consul.Restore(t.Context(), config.Consul{Address: b.URL}, whole(data), consul.Selection{}, restore.Options{Apply: true, Force: true})
			require.NoError(t, err)
			same(t, data, read(t, cfg))
			assert.Equal(t, restore.Summary{Created: 601, Changed: 400, Same: 2000, Bytes: sum.Bytes}, sum)
		})
	}
}

// TestGivesUp ends after a while when the destination stays away, and says what to do.
func TestGivesUp(t *testing.T) {
	c := run(t, bintest.ConsulOptions{})
	b := proxy(t, c)
	var n atomic.Int64
	b.before = func(r *http.Request) int {
		if isTxn(r) && n.Add(1) > 5 {
			return http.StatusServiceUnavailable
		}
		return 0
	}
	data := generated(t, 3000, func(int) int { return 10 })
	sum, err := consul.RestoreWith(t.Context(), 2, 300*time.Millisecond, 0, config.Consul{Address: b.URL}, whole(data), consul.Selection{}, restore.Options{Apply: true})
	require.ErrorContains(t, err, "giving up after 300ms: writing keys at "+b.URL+": answered 503")
	assert.EqualValues(t, 5*64, sum.Created)
	assert.Len(t, parse(t, read(t, config.Consul{Address: c.Address})), 5*64)

	gone, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, gone.Close())
	for _, address := range []string{"http://" + gone.Addr().String(), "unix://" + filepath.Join(t.TempDir(), "none.sock")} {
		began := time.Now()
		_, err = consul.Restore(t.Context(), config.Consul{Address: address}, whole(data), consul.Selection{}, restore.Options{})
		assert.Less(t, time.Since(began), 10*time.Second, "nobody waits for an address that was mistyped")
		var typed *source.Error
		require.ErrorAs(t, err, &typed)
		assert.Equal(t, source.Unreachable, typed.Reason)
		require.ErrorContains(t, err, address)
	}
}

// TestSilent gives up on a destination that took the question and says nothing, at once or in the midst of its list.
func TestSilent(t *testing.T) {
	c := run(t, bintest.ConsulOptions{})
	data := generated(t, 3000, func(int) int { return 100 })
	write(t, c, parse(t, data)...)
	for name, fault := range map[string]func(b *between){
		"at once": func(b *between) {
			b.before = func(r *http.Request) int {
				if r.URL.Query().Has("recurse") {
					<-r.Context().Done()
				}
				return 0
			}
		},
		"in the midst": func(b *between) {
			b.body = func(r *http.Request, body io.Reader) io.Reader {
				if !r.URL.Query().Has("recurse") {
					return nil
				}
				return io.MultiReader(io.LimitReader(body, 300_000), readerFunc(func([]byte) (int, error) {
					<-r.Context().Done()
					return 0, r.Context().Err()
				}))
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := proxy(t, c)
			fault(b)
			_, err := consul.RestoreWith(t.Context(), 0, time.Second, 100*time.Millisecond, config.Consul{Address: b.URL}, whole(data), consul.Selection{}, restore.Options{})
			var typed *source.Error
			require.ErrorAs(t, err, &typed)
			assert.Contains(t, []source.Reason{source.Stalled, source.Unreachable}, typed.Reason)
			require.ErrorContains(t, err, "giving up after 1s")
		})
	}
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// TestTokenEnds stops when the token is deleted on the way, and says so.
func TestTokenEnds(t *testing.T) {
	c := run(t, bintest.ConsulOptions{Management: root})
	secret := newToken(t, c, `key_prefix "" { policy = "write" }`)
	var self struct{ AccessorID string }
	require.NoError(t, json.Unmarshal(ask(t, secret, http.MethodGet, c.Address+"/v1/acl/token/self", nil), &self))
	b := proxy(t, c)
	var n atomic.Int64
	deleted := make(chan struct{})
	b.before = func(r *http.Request) int {
		if isTxn(r) && n.Add(1) == 5 {
			defer close(deleted)
			ask(t, root, http.MethodDelete, c.Address+"/v1/acl/token/"+self.AccessorID, nil)
		}
		return 0
	}
	cfg := withToken(t, c, secret)
	cfg.Address = b.URL
	_, err := consul.Restore(t.Context(), cfg, whole(generated(t, 5000, func(int) int { return 100 })), consul.Selection{}, restore.Options{Apply: true})
	<-deleted // others may be refused before this one knows
	require.ErrorContains(t, err, "ACL not found")
	require.ErrorContains(t, err, "can be run again")
	assert.NotContains(t, err.Error(), secret)
}

// TestInterrupted stops restores anywhere, in three ways, and has the next one end where one that ran through does.
func TestInterrupted(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	c := run(t, bintest.ConsulOptions{})
	cfg := config.Consul{Address: c.Address}
	data := generated(t, 20_000, func(i int) int { return i % 500 })
	again := func(t *testing.T) {
		t.Helper()
		there := int64(len(parse(t, read(t, cfg))))
		t.Logf("%d keys were there", there)
		_, sum, err := bring(t, cfg, data, consul.Selection{}, restore.Options{Apply: true})
		require.NoError(t, err)
		assert.Equal(t, restore.Summary{Created: 20_000 - sum.Same, Same: sum.Same, Bytes: sum.Bytes}, sum)
		assert.GreaterOrEqual(t, sum.Same, there, "a transaction may have been on its way still")
		same(t, data, read(t, cfg))
	}
	t.Run("canceled", func(t *testing.T) {
		for range 3 {
			reset(t, c)
			ctx, cancel := context.WithCancel(t.Context())
			stop := random.Int64N(18_000)
			sum, err := consul.Restore(ctx, cfg, whole(data), consul.Selection{}, restore.Options{Apply: true, Progress: func(done, total int64) {
				if total > 0 && done < total && done >= stop {
					cancel()
				}
			}})
			cancel()
			require.ErrorIs(t, err, context.Canceled)
			assert.GreaterOrEqual(t, sum.Created, stop)
			assert.LessOrEqual(t, sum.Created, int64(len(parse(t, read(t, cfg)))), "nothing may count that is not there")
			again(t)
		}
	})
	t.Run("killed", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "kv.json")
		require.NoError(t, os.WriteFile(file, data, 0o600))
		for range 2 {
			reset(t, c)
			stop := random.IntN(18_000)
			cmd := exec.CommandContext(t.Context(), os.Args[0])
			cmd.Env = append(os.Environ(), victim+"="+c.Address+"|"+file)
			out, err := cmd.StdoutPipe()
			require.NoError(t, err)
			require.NoError(t, cmd.Start())
			for {
				var done, total int
				_, err := fmt.Fscanln(out, &done, &total)
				require.NoError(t, err)
				if total > 0 && done < total && done >= stop {
					break
				}
			}
			require.NoError(t, cmd.Process.Kill())
			require.Error(t, cmd.Wait())
			again(t)
		}
	})
	t.Run("the destination is killed", func(t *testing.T) {
		reset(t, c)
		stop := random.Int64N(15_000)
		back := make(chan error, 1)
		var once atomic.Bool
		sum, err := consul.Restore(t.Context(), cfg, whole(data), consul.Selection{}, restore.Options{Apply: true, Progress: func(done, total int64) {
			if total > 0 && done >= stop && done < total && once.CompareAndSwap(false, true) {
				_ = c.Kill()
				go func() { back <- c.Restart(context.WithoutCancel(t.Context())) }()
			}
		}})
		require.NoError(t, <-back)
		require.NoError(t, err, "it waits for the destination to come back")
		assert.Equal(t, restore.Summary{Created: 20_000, Bytes: sum.Bytes}, sum)
		same(t, data, read(t, cfg))
	})
	t.Run("the destination is killed and does not come back in time", func(t *testing.T) {
		reset(t, c)
		stop := random.Int64N(15_000)
		_, err := consul.RestoreWith(t.Context(), 0, 200*time.Millisecond, 0, cfg, whole(data), consul.Selection{}, restore.Options{Apply: true, Progress: func(done, total int64) {
			if total > 0 && done >= stop && done < total {
				_ = c.Kill()
			}
		}})
		require.ErrorContains(t, err, "giving up")
		require.NoError(t, c.Restart(t.Context()))
		again(t)
	})
}
