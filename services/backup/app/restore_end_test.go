package app

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/fleet/service"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore"
)

// gate stands before a Consul and stops at its n-th transaction until it is told to go on.
func gate(t *testing.T, address string, n int64) (front string, reached <-chan struct{}) {
	t.Helper()
	to, err := url.Parse(address)
	require.NoError(t, err)
	proxy := httputil.NewSingleHostReverseProxy(to)
	proxy.ErrorHandler = func(http.ResponseWriter, *http.Request, error) {} // the command was interrupted
	var count atomic.Int64
	there := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/txn" {
			switch i := count.Add(1); {
			case i == n:
				close(there)
				fallthrough
			case i > n:
				_, _ = io.Copy(io.Discard, r.Body) // only then the server notices that the client has gone
				<-r.Context().Done()
				return
			}
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	return s.URL, there
}

// A restore that is interrupted half-way, by Ctrl-C or by kill -9, goes on with the same command and ends as one that ran through.
func TestRestoreInterruptedGoesOnWithTheSameCommand(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGKILL} {
		t.Run(sig.String(), func(t *testing.T) {
			l, c := labFor(t), startConsul(t, bintest.ConsulOptions{})
			keys := someKeys(2000)
			l.mustCommit(t, plan{target: consulTarget, raw: export(t, keys), encrypted: true, keys: 2000})
			front, reached := gate(t, c.Address, 12)
			args := []string{
				"restore", consulTarget, "--apply", "--identity-file", l.dir + "/lifeboat.key", "--config", l.dir + "/lifeboat.yaml",
				"--work-dir", l.dir + "/work", "--to",
			}
			cmd := exec.CommandContext(t.Context(), "lifeboat", append(args, front)...)
			var errs bytes.Buffer
			cmd.Stderr = &errs
			require.NoError(t, cmd.Start())
			<-reached
			require.NoError(t, cmd.Process.Signal(sig))
			err := cmd.Wait()
			require.Error(t, err)
			half := len(keysOf(t, c.Address))
			assert.Positive(t, half)
			assert.Less(t, half, len(keys))
			left, err := os.ReadDir(l.dir + "/work")
			require.NoError(t, err)
			if sig == syscall.SIGINT {
				assert.Equal(t, service.ExitFailed, cmd.ProcessState.ExitCode())
				assert.Contains(t, errs.String(), "run the same command again to go on")
				assert.Empty(t, left)
			} else {
				assert.NotEmpty(t, left, "kill -9 leaves the stored form, which the next run removes")
			}
			out, stderr, code := l.restores(t, consulTarget, "--apply", "--identity-file", l.dir+"/lifeboat.key", "--to", c.Address,
				"--output", "json")
			assert.Zero(t, code, stderr)
			did := parse(t, out).Summary
			assert.GreaterOrEqual(t, did.Same, int64(half), "what was under way at the end may have come to be, too")
			assert.Positive(t, did.Created)
			assert.Equal(t, int64(len(keys)), did.Created+did.Same)
			assert.Equal(t, keys, keysOf(t, c.Address))
		})
	}
}

// Every restore leaves a record when NATS answers: what, from which snapshot, where to, who, and how it ended.
func TestRestoreLeavesARecord(t *testing.T) {
	j, c := newJobs(t), startConsul(t, bintest.ConsulOptions{})
	l := labFor(t)
	require.NoError(t, os.WriteFile(filepath.Join(l.dir, "lifeboat.yaml"),
		[]byte(fmt.Sprintf("nats: {url: %q}\n", j.url)+l.yaml(l.server.Config)), 0o600))
	m := l.mustCommit(t, plan{target: consulTarget, raw: export(t, someKeys(3)), keys: 3})
	last := func(verb string) *lifeboatv1.Event {
		e := &lifeboatv1.Event{}
		_, _, err := j.bus.Last(t.Context(), bus.StreamEvents, bus.EventSubject("restore", verb, consulTarget), e)
		require.NoError(t, err)
		return e
	}
	_, _, code := l.restores(t, consulTarget, "--to", c.Address)
	assert.Zero(t, code)
	assert.Empty(t, last("applied").GetId(), "a plan is no restore")
	_, errs, code := l.restores(t, consulTarget, "--to", c.Address, "--apply", "--prefix", "config/")
	assert.Zero(t, code)
	assert.NotContains(t, errs, "no record")
	e := last("applied")
	assert.Equal(t, m.GetId(), e.GetSnapshotId())
	assert.Contains(t, e.GetRequestedBy(), "cli ")
	assert.Equal(t, "--prefix config/", e.GetAttributes()["selection"])
	assert.Equal(t, c.Address, e.GetAttributes()["destination"])
	assert.Equal(t, "3", e.GetAttributes()["created"])
	request(t, http.MethodPut, c.Address+"/v1/kv/config/app-00001", "newer")
	_, _, code = l.restores(t, consulTarget, "--to", c.Address, "--apply")
	assert.Equal(t, service.ExitFailed, code)
	assert.Contains(t, last("failed").GetMessage(), "not wholly restored into "+c.Address+": 0 created, 0 changed")
	assert.Contains(t, last("failed").GetMessage(), "not empty")
}

// A NATS that does not answer delays a restore's end by seconds, and fails nothing.
func TestRestoreWaitsForNoRecord(t *testing.T) {
	silent := httptest.NewUnstartedServer(nil) // it listens, and never says a word
	t.Cleanup(silent.Close)
	r := &restoration{
		flags: &restoreFlags{}, manifest: &lifeboatv1.Manifest{}, errs: &bytes.Buffer{},
		bucket: &bucket{config: &config.Config{NATS: config.NATS{URL: "nats://" + silent.Listener.Addr().String()}}},
	}
	began := time.Now()
	r.record(t.Context(), restore.Summary{}, nil)
	assert.Less(t, time.Since(began), 2*recordTimeout)
	assert.Contains(t, fmt.Sprint(r.errs), "no record of this restore is in the audit log")
}

// The stored snapshot lies where nobody else can put or read anything.
func TestTheWorkingFolderIsOnesOwn(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	dir, err := workFolder("")
	require.NoError(t, err)
	info, err := os.Stat(dir)
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o700), info.Mode().Perm())
	again, err := workFolder("")
	require.NoError(t, err)
	assert.Equal(t, dir, again)
	require.NoError(t, os.Chmod(dir, 0o755))
	_, err = workFolder("")
	require.ErrorContains(t, err, "--work-dir")
	require.NoError(t, os.Remove(dir))
	require.NoError(t, os.Symlink(t.TempDir(), dir))
	_, err = workFolder("")
	require.ErrorContains(t, err, "is not a folder that only you can read", "somebody else's link is not followed")
}
