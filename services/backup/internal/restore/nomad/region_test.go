package nomad_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore/nomad"
	source "github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/nomad"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// region is a server with ACLs on, or off when root is empty.
type region struct {
	process *bintest.Process
	dir     string
	address string
	root    string // the management token that was made at the start
	cfg     config.Nomad
	api     *api.Client
}

func dial(t *testing.T, address string) *api.Client {
	t.Helper()
	// No connection may outlive the test that looks for leaks.
	hc := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	c, err := api.NewClient(&api.Config{Address: address, HttpClient: hc})
	require.NoError(t, err)
	return c
}

const withACLs = "acl { enabled = true }\n"

func startRegion(t *testing.T, hcl string) *region {
	t.Helper()
	return startRegionIn(t, t.TempDir(), hcl)
}

func startRegionIn(t *testing.T, dir, hcl string) *region {
	t.Helper()
	n, err := bintest.StartNomadWith(t.Context(), dir, bintest.NomadOptions{HCL: hcl})
	require.NoError(t, err)
	r := &region{process: n.Process, dir: dir, address: n.Address, api: dial(t, n.Address)}
	t.Cleanup(func() {
		require.NoError(t, r.process.Kill())
		if t.Failed() {
			log, err := os.ReadFile(filepath.Join(dir, "nomad.log"))
			t.Logf("%v: %s", err, log[max(0, len(log)-500):])
		}
	})
	r.cfg = config.Nomad{Address: n.Address}
	if hcl != "" && hcl[:3] == "acl" {
		require.Eventually(t, func() bool { // the leader may be known before it has taken over
			token, _, berr := r.api.ACLTokens().Bootstrap(nil)
			if berr != nil {
				return false
			}
			r.root = token.SecretID
			return true
		}, time.Minute, 50*time.Millisecond)
		r.api.SetSecretID(r.root)
		file := filepath.Join(t.TempDir(), "token")
		require.NoError(t, os.WriteFile(file, []byte(r.root+"\n"), 0o600))
		r.cfg.TokenFile = config.SecretFile(file)
	}
	return r
}

// restart runs the server again on the same data and ports.
func (r *region) restart(t *testing.T) {
	t.Helper()
	bin, err := bintest.Find("nomad")
	require.NoError(t, err)
	r.process, err = bintest.Start(bin, filepath.Join(r.dir, "nomad.log"), nil, "agent", "-config="+filepath.Join(r.dir, "nomad.hcl"))
	require.NoError(t, err)
}

// run gives a command to Nomad's own tool.
func (r *region) run(t *testing.T, dir string, args ...string) {
	t.Helper()
	bin, err := bintest.Find("nomad")
	require.NoError(t, err)
	cmd := exec.CommandContext(t.Context(), bin, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "NOMAD_ADDR="+r.address, "NOMAD_TOKEN="+r.root)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%v: %s", args, out)
}

// backup is the region as a snapshot has it.
func (r *region) backup(t *testing.T) []byte {
	t.Helper()
	st, err := source.New(r.cfg, source.Options{}).Open(t.Context())
	require.NoError(t, err)
	defer st.Close()
	data, err := io.ReadAll(st)
	require.NoError(t, err)
	return data
}

// opened gives the same bytes each time.
func opened(data []byte) restore.Open {
	return func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }
}

func untar(t *testing.T, data []byte) map[string]string {
	t.Helper()
	files := make(map[string]string)
	tr := tar.NewReader(bytes.NewReader(data))
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		require.NoError(t, err)
		b, err := io.ReadAll(tr)
		require.NoError(t, err)
		files[h.Name] = string(b)
	}
}

// entry is a file of a tar that a test makes.
type entry struct{ name, body string }

func archive(t *testing.T, entries ...entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, e := range entries {
		require.NoError(t, tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: e.name, Mode: 0o600, Size: int64(len(e.body))}))
		_, err := tw.Write([]byte(e.body))
		require.NoError(t, err)
	}
	require.NoError(t, tw.Close())
	return buf.Bytes()
}

// told is what a restore said, by kind and name.
type told struct {
	items   map[string]restore.Item
	order   []string
	summary restore.Summary
	err     error
}

func (r *region) restore(t *testing.T, data []byte, sel nomad.Selection, o restore.Options) told {
	t.Helper()
	return r.restoreFrom(t.Context(), t, opened(data), sel, o)
}

func (r *region) restoreFrom(ctx context.Context, t *testing.T, open restore.Open, sel nomad.Selection, o restore.Options) told {
	t.Helper()
	got := told{items: make(map[string]restore.Item)}
	next := o.Item
	o.Item = func(i restore.Item) {
		key := i.Kind + " " + i.Name
		require.NotContains(t, got.items, key, "told twice")
		got.items[key] = i
		got.order = append(got.order, key)
		if next != nil {
			next(i)
		}
	}
	got.summary, got.err = nomad.Restore(ctx, r.cfg, open, sel, o)
	return got
}

// having are the names of what became of in one way.
func (g told) having(a restore.Action) (names []string) {
	for _, key := range g.order {
		if g.items[key].Action == a {
			names = append(names, key)
		}
	}
	return names
}

// failure is why the first thing failed that did.
func (g told) failure() error {
	for _, key := range g.having(restore.Failed) {
		return fmt.Errorf("%s: %w", key, g.items[key].Err)
	}
	return nil
}

func apply() restore.Options { return restore.Options{Apply: true} }

func force() restore.Options { return restore.Options{Apply: true, Force: true} }
