package consul_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/consul"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/sourcetest"
)

var _ sourcetest.Opener = (*consul.Source)(nil)

// run starts a server that ends with the test.
func run(t *testing.T, opts bintest.ConsulOptions) *bintest.Consul {
	t.Helper()
	c, err := bintest.StartConsulWith(t.Context(), t.TempDir(), opts)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Kill()) })
	return c
}

func start(t *testing.T) *sourcetest.Server {
	t.Helper()
	return serve(run(t, bintest.ConsulOptions{}), func(size int) []byte { return make([]byte, size) })
}

// serve is a server for the suite, whose values are made by value.
func serve(c *bintest.Consul, value func(size int) []byte) *sourcetest.Server {
	return &sourcetest.Server{
		Address: c.Address,
		Reset: func(t *testing.T) {
			t.Helper()
			do(t, http.MethodDelete, c.Address+"/v1/kv/?recurse=true", nil)
		},
		Put: func(t *testing.T, n, size int) {
			t.Helper()
			for i := range n {
				do(t, http.MethodPut, fmt.Sprintf("%s/v1/kv/dir/item-%d?flags=%d", c.Address, i, i), value(size))
			}
		},
		Kill: func(t *testing.T) {
			t.Helper()
			require.NoError(t, c.Kill())
		},
	}
}

func do(t *testing.T, method, url string, body []byte) {
	t.Helper()
	doAs(t, "", method, url, body)
}

// doAs sends a request with a token and returns the answer.
func doAs(t *testing.T, secret, method, url string, body []byte) []byte {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, bytes.NewReader(body))
	require.NoError(t, err)
	req.Header.Set("X-Consul-Token", secret)
	resp, err := oneWay().Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	out, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, resp.StatusCode, "%s %s: %s", method, url, out)
	return out
}

// oneWay is a client that keeps no connection: none may outlive the test that looks for leaks, also when a request was
// canceled while it connected.
func oneWay() *http.Client { return &http.Client{Transport: &http.Transport{DisableKeepAlives: true}} }

type exported struct {
	Key   string
	Flags uint64
	Value []byte
}

func decode(t *testing.T, data []byte) map[string]string {
	t.Helper()
	var all []exported
	require.NoError(t, json.Unmarshal(data, &all))
	items := make(map[string]string)
	for _, e := range all {
		items[e.Key] = string(e.Value)
	}
	require.Len(t, items, len(all), "no key may come twice")
	return items
}

func mutate(address string) func(context.Context, string) error {
	return func(ctx context.Context, value string) error {
		var ops []any
		for _, key := range []string{"left", "right"} {
			ops = append(ops, map[string]any{"KV": map[string]any{"Verb": "set", "Key": key, "Value": []byte(value)}})
		}
		body, err := json.Marshal(ops)
		if err != nil {
			return err
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPut, address+"/v1/txn", bytes.NewReader(body))
		if err != nil {
			return err
		}
		resp, err := oneWay().Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		_, err = io.Copy(io.Discard, resp.Body)
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("status %s", resp.Status)
		}
		return err
	}
}

func open(address string, idle time.Duration) sourcetest.Opener {
	return consul.New(config.Consul{Address: address}, consul.Options{Idle: idle})
}

func TestConformance(t *testing.T) {
	srv := start(t)
	sourcetest.Run(t, sourcetest.Harness{
		Format: "json", New: open, Server: srv, Victim: start, Items: "keys", Decode: decode,
		Huge: 512 << 10, Mutate: mutate(srv.Address),
	})
	t.Run("consul kv import takes it", func(t *testing.T) { testImport(t, srv) })
}

// testImport gives the data to Consul's own tool and reads everything again.
func testImport(t *testing.T, srv *sourcetest.Server) {
	t.Helper()
	srv.Reset(t)
	srv.Put(t, 10, 50)
	do(t, http.MethodPut, srv.Address+"/v1/kv/empty", nil)
	do(t, http.MethodPut, srv.Address+"/v1/kv/odd%20%22name%22%20%3C%C3%BC%3E?flags=18446744073709551615", []byte{0, 0xff, '"'})
	before := read(t, srv.Address)
	assert.Contains(t, string(before), "18446744073709551615", "a flag of 64 bits must survive")
	file := filepath.Join(t.TempDir(), "kv.json")
	require.NoError(t, os.WriteFile(file, before, 0o600))
	srv.Reset(t)
	bin, err := bintest.Find("consul")
	require.NoError(t, err)
	out, err := exec.CommandContext(t.Context(), bin, "kv", "import", "-http-addr="+srv.Address, "@"+file).CombinedOutput()
	require.NoError(t, err, "%s", out)
	assert.Equal(t, string(before), string(read(t, srv.Address)))
}

func read(t *testing.T, address string) []byte {
	t.Helper()
	data, _ := readAll(t, config.Consul{Address: address})
	return data
}

func readAll(t *testing.T, cfg config.Consul) ([]byte, *lifeboatv1.SourceInfo) {
	t.Helper()
	st, err := consul.New(cfg, consul.Options{}).Open(t.Context())
	require.NoError(t, err)
	defer st.Close()
	data, err := io.ReadAll(st)
	require.NoError(t, err)
	info, err := st.Info(t.Context())
	require.NoError(t, err)
	return data, info
}

// TestAnswers gives answers that Consul itself would not, as a proxy or a broken agent may.
func TestAnswers(t *testing.T) {
	const whole = `[{"Key":"a","Flags":0,"Value":"eA=="},{"Key":"b","Flags":1,"Value":null}]`
	for name, c := range map[string]struct {
		status  int
		index   string
		body    string
		reason  source.Reason
		message string
	}{
		"not the list":       {200, "7", `{"a":1}`, source.Damaged, "not a list"},
		"a page":             {200, "7", `<html>`, source.Damaged, "not a list"},
		"no index":           {200, "", whole, source.Damaged, "X-Consul-Index"},
		"cut in an entry":    {200, "7", whole[:20], source.Unreachable, "unexpected EOF"},
		"cut between":        {200, "7", `[{"Key":"a","Flags":0,"Value":"eA=="}`, source.Unreachable, "unexpected EOF"},
		"two lists":          {200, "7", whole + "[]", source.Damaged, "follows"},
		"no key":             {200, "7", `[{"Flags":0}]`, source.Damaged, "not a list"},
		"value is no base64": {200, "7", `[{"Key":"a","Value":"%"}]`, source.Damaged, "base64"},
		"flags are negative": {200, "7", `[{"Key":"a","Flags":-1}]`, source.Damaged, "Flags"},
		"another's 404":      {404, "", "page not found", source.Damaged, "404"},
		"denied":             {403, "", "Permission denied", source.Denied, "Permission denied"},
		"no leader":          {500, "", "No cluster leader", source.Unreachable, "No cluster leader"},
		"a redirect":         {302, "", "", source.Unreachable, "302"},
	} {
		t.Run(name, func(t *testing.T) {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				if c.index != "" {
					w.Header().Set("X-Consul-Index", c.index)
				}
				w.WriteHeader(c.status)
				_, _ = io.WriteString(w, c.body)
			}))
			defer srv.Close()
			st, err := open(srv.URL, 0).Open(t.Context())
			if err == nil {
				defer st.Close()
				_, err = io.ReadAll(st)
			}
			var typed *source.Error
			require.ErrorAs(t, err, &typed)
			assert.Equal(t, c.reason, typed.Reason)
			require.ErrorContains(t, err, c.message)
			require.ErrorContains(t, err, srv.URL)
		})
	}
}

// TestToken checks that the token is sent, that it may rotate, and that it is never shown.
func TestToken(t *testing.T) {
	const secret = "b1gs3cr3t"
	tokens := make(chan string, 10)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/v1/kv/") {
			tokens <- r.Header.Get("X-Consul-Token")
		}
		http.Error(w, "Permission denied", http.StatusForbidden)
	}))
	defer srv.Close()
	file := filepath.Join(t.TempDir(), "token")
	require.NoError(t, os.WriteFile(file, []byte("first\n"), 0o600))
	src := consul.New(config.Consul{Address: srv.URL, TokenFile: config.SecretFile(file)}, consul.Options{})
	_, err := src.Open(t.Context())
	require.Error(t, err)
	assert.Equal(t, "first", <-tokens)
	require.NoError(t, os.WriteFile(file, []byte(secret), 0o600))
	_, err = src.Open(t.Context())
	require.Error(t, err)
	assert.Equal(t, secret, <-tokens)
	assert.NotContains(t, err.Error(), secret)
	var typed *source.Error
	require.ErrorAs(t, err, &typed)
	assert.False(t, typed.Retryable())
	require.NoError(t, os.Remove(file))
	_, err = src.Open(t.Context())
	require.ErrorAs(t, err, &typed)
	assert.Equal(t, source.Misconfigured, typed.Reason)
}

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
