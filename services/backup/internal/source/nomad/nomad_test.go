package nomad_test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/nomad"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/sourcetest"
)

var _ sourcetest.Opener = (*nomad.Source)(nil)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func dial(t *testing.T, address string) *api.Client {
	t.Helper()
	// No connection may outlive the test that looks for leaks.
	hc := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	c, err := api.NewClient(&api.Config{Address: address, HttpClient: hc})
	require.NoError(t, err)
	return c
}

func job(id, namespace string, size int) *api.Job {
	j := api.NewServiceJob(id, id, "global", 50)
	j.Namespace = &namespace
	j.Datacenters = []string{"dc1"}
	task := api.NewTask("t", "raw_exec").SetConfig("command", "/bin/true")
	j.AddTaskGroup(api.NewTaskGroup("g", 1).AddTask(task))
	j.SetMeta("value", strings.Repeat("x", size))
	return j
}

// pauseScheduler keeps Nomad 1.11 from its own end: it panics (planner.applyPlan) when a job is purged while the plan for
// it is on its way, and these tests purge right after they register.
func pauseScheduler(t *testing.T, c *api.Client) {
	t.Helper()
	require.Eventually(t, func() bool { // the leader may be known before it has taken over
		conf, _, err := c.Operator().SchedulerGetConfiguration(nil)
		if err != nil {
			return false
		}
		conf.SchedulerConfig.PauseEvalBroker = true
		_, _, err = c.Operator().SchedulerSetConfiguration(conf.SchedulerConfig, nil)
		return err == nil
	}, time.Minute, 50*time.Millisecond)
}

func start(t *testing.T) *sourcetest.Server {
	t.Helper()
	dir := t.TempDir()
	n, err := bintest.StartNomad(t.Context(), dir)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, n.Kill())
		if log, err := os.ReadFile(filepath.Join(dir, "nomad.log")); t.Failed() {
			t.Logf("%v: %s", err, log[max(0, len(log)-5000):])
		}
	})
	c := dial(t, n.Address)
	pauseScheduler(t, c)
	return &sourcetest.Server{
		Address: n.Address,
		Reset: func(t *testing.T) {
			t.Helper()
			jobs, _, err := c.Jobs().List(&api.QueryOptions{Namespace: "*"})
			require.NoError(t, err)
			for _, j := range jobs {
				_, _, err := c.Jobs().Deregister(j.ID, true, &api.WriteOptions{Namespace: j.Namespace})
				require.NoError(t, err)
			}
		},
		Put: func(t *testing.T, n, size int) {
			t.Helper()
			for i := range n {
				_, _, err := c.Jobs().Register(job(fmt.Sprintf("item-%d", i), "default", size), nil)
				require.NoError(t, err)
			}
		},
		Kill: func(t *testing.T) {
			t.Helper()
			require.NoError(t, n.Kill())
		},
	}
}

func open(address string, idle time.Duration) sourcetest.Opener {
	// Few to a page, so that several are read.
	return nomad.New(config.Nomad{Address: address}, nomad.Options{Idle: idle, PerPage: 7})
}

// untar reads all files and checks that their names are fit for a disk.
func untar(t *testing.T, data []byte) map[string][]byte {
	t.Helper()
	files := make(map[string][]byte)
	tr := tar.NewReader(bytes.NewReader(data))
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		require.NoError(t, err)
		require.NotContains(t, files, h.Name)
		require.True(t, filepath.IsLocal(h.Name), h.Name)
		files[h.Name], err = io.ReadAll(tr)
		require.NoError(t, err)
	}
}

func decode(t *testing.T, data []byte) map[string]string {
	t.Helper()
	items := make(map[string]string)
	for name, b := range untar(t, data) {
		if path.Base(name) != "job.json" {
			continue
		}
		var spec struct{ Job api.Job }
		require.NoError(t, json.Unmarshal(b, &spec))
		items[*spec.Job.Namespace+"/"+*spec.Job.ID] = spec.Job.Meta["value"]
	}
	return items
}

func TestConformance(t *testing.T) {
	srv := start(t)
	sourcetest.Run(t, sourcetest.Harness{
		Format: "tar", New: open, Server: srv, Victim: start, Items: "jobs", Decode: decode, Huge: 900 << 10,
	})
	t.Run("nomad job run takes it", func(t *testing.T) { testRun(t, srv) })
	t.Run("jobs change while they are read", func(t *testing.T) { testPurged(t, srv) })
	t.Run("memory", func(t *testing.T) { testMemory(t, srv) })
	t.Run("denied", func(t *testing.T) { testDenied(t, srv) })
	t.Run("no address", func(t *testing.T) { testNoAddress(t, srv) })
}

func readAll(t *testing.T, address string) ([]byte, *lifeboatv1.SourceInfo) {
	t.Helper()
	st, err := open(address, 0).Open(t.Context())
	require.NoError(t, err)
	defer st.Close()
	data, err := io.ReadAll(st)
	require.NoError(t, err)
	info, err := st.Info(t.Context())
	require.NoError(t, err)
	return data, info
}

const original = `
job "with/slash" {
  namespace   = "apps"
  datacenters = ["dc1"]
  periodic {
    crons = ["0 0 1 1 *"]
  }
  type = "batch"
  group "g" {
    task "t" {
      driver = "raw_exec"
      config { command = "/bin/true" }
    }
  }
}
`

// testRun restores what was read with Nomad's own tool, and reads it again.
func testRun(t *testing.T, srv *sourcetest.Server) {
	t.Helper()
	srv.Reset(t)
	c := dial(t, srv.Address)
	_, err := c.Namespaces().Register(&api.Namespace{Name: "apps", Description: "what we run"}, nil)
	require.NoError(t, err)
	srv.Put(t, 2, 10)
	bin, err := bintest.Find("nomad")
	require.NoError(t, err)
	run := func(args ...string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), bin, args...)
		cmd.Env = append(os.Environ(), "NOMAD_ADDR="+srv.Address)
		out, rerr := cmd.CombinedOutput()
		require.NoError(t, rerr, "%s", out)
	}
	hcl := filepath.Join(t.TempDir(), "job.nomad.hcl")
	require.NoError(t, os.WriteFile(hcl, []byte(original), 0o600))
	run("job", "run", "-detach", hcl)
	// It has a child now, which must not be kept: restored beside its parent it would run once too often.
	run("job", "periodic", "force", "-detach", "-namespace=apps", "with/slash")
	_, _, err = c.Jobs().Register(job(`odd"id"&%üé+?#/../x//y`, "default", 1), nil)
	require.NoError(t, err)

	before, info := readAll(t, srv.Address)
	files := untar(t, before)
	assert.Subset(t, info.GetCounts(), map[string]int64{"jobs": 4, "namespaces": 2, "submissions": 1, "versions": 4})
	assert.Equal(t, original, string(files["jobs/apps/with%2Fslash/job.nomad.hcl"]))
	assert.Contains(t, files, "jobs/apps/with%2Fslash/submission.json")
	assert.Contains(t, files, "jobs/default/"+url.PathEscape(`odd"id"&%üé+?#/../x//y`)+"/job.json")
	assert.Contains(t, string(files["namespaces/apps.json"]), "what we run")
	assert.Equal(t, "global", info.GetIdentity()["region"])
	assert.Equal(t, "lifeboat-test.global", info.GetIdentity()["server"])
	spec := files["jobs/apps/with%2Fslash/job.json"]
	for _, field := range []string{"ModifyIndex", "SubmitTime", "NomadTokenID", "Status", "Version\""} {
		assert.NotContains(t, string(spec), `"`+field)
	}

	srv.Reset(t)
	_, info = readAll(t, srv.Address)
	require.Zero(t, info.GetCounts()["jobs"])
	for name, b := range files {
		if path.Base(name) == "job.json" {
			file := filepath.Join(t.TempDir(), "job.json")
			require.NoError(t, os.WriteFile(file, b, 0o600))
			run("job", "run", "-json", "-detach", file)
		}
	}
	after, _ := readAll(t, srv.Address)
	restored := untar(t, after)
	for name, b := range files {
		if path.Base(name) == "job.json" {
			assert.Equal(t, string(b), string(restored[name]), name)
		}
	}
}

// front is a server before Nomad that may answer in its place.
func front(t *testing.T, address string, instead func(w http.ResponseWriter, r *http.Request) bool) string {
	t.Helper()
	u, err := url.Parse(address)
	require.NoError(t, err)
	proxy := httputil.NewSingleHostReverseProxy(u)
	proxy.Transport = &http.Transport{DisableKeepAlives: true}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !instead(w, r) {
			proxy.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(srv.Close)
	return srv.URL
}

// testPurged purges a job after it was listed, and another time lets the server contradict itself.
func testPurged(t *testing.T, srv *sourcetest.Server) {
	t.Helper()
	srv.Reset(t)
	srv.Put(t, 10, 10)
	c := dial(t, srv.Address)
	var once sync.Once
	address := front(t, srv.Address, func(_ http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/v1/job/item-0" {
			once.Do(func() {
				_, _, err := c.Jobs().Deregister("item-5", true, nil)
				assert.NoError(t, err)
			})
		}
		return false
	})
	data, info := readAll(t, address)
	assert.Len(t, decode(t, data), 9)
	assert.EqualValues(t, 9, info.GetCounts()["jobs"])
	assert.Equal(t, []string{"job default/item-5: purged while the jobs were read"}, info.GetMissing())

	address = front(t, srv.Address, func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/v1/job/item-7" {
			http.Error(w, "job not found", http.StatusNotFound)
			return true
		}
		return false
	})
	st, err := open(address, 0).Open(t.Context())
	require.NoError(t, err)
	defer st.Close()
	_, err = io.Copy(io.Discard, st)
	require.ErrorContains(t, err, "listed and cannot be read")
}

// testDenied refuses one thing after the other, as a token with few rights is refused.
func testDenied(t *testing.T, srv *sourcetest.Server) {
	t.Helper()
	srv.Reset(t)
	srv.Put(t, 3, 10)
	const secret = "s3cr3t-t0k3n"
	file := filepath.Join(t.TempDir(), "token")
	require.NoError(t, os.WriteFile(file, []byte(secret), 0o600))
	through := func(denied ...string) *nomad.Source {
		address := front(t, srv.Address, func(w http.ResponseWriter, r *http.Request) bool {
			assert.Equal(t, secret, r.Header.Get("X-Nomad-Token"))
			r.Header.Del("X-Nomad-Token") // the server behind knows no tokens
			if slices.Contains(denied, r.URL.Path) {
				http.Error(w, "Permission denied", http.StatusForbidden)
				return true
			}
			return false
		})
		return nomad.New(config.Nomad{Address: address, TokenFile: config.SecretFile(file)}, nomad.Options{})
	}
	_, err := through("/v1/jobs").Open(t.Context())
	var typed *source.Error
	require.ErrorAs(t, err, &typed)
	assert.Equal(t, source.Denied, typed.Reason)
	assert.NotContains(t, err.Error(), secret)

	st, err := through("/v1/job/item-1", "/v1/job/item-2/submission", "/v1/namespaces", "/v1/agent/self").Open(t.Context())
	require.NoError(t, err)
	defer st.Close()
	data, err := io.ReadAll(st)
	require.NoError(t, err)
	assert.Len(t, decode(t, data), 2)
	info, err := st.Info(t.Context())
	require.NoError(t, err)
	assert.Equal(t, []string{
		`job default/item-1: denied (403); the token needs namespace "*" { policy = "read" }`,
		`submission of job default/item-2: denied (403); the token needs namespace "*" { policy = "read" }`,
		`all of namespaces: denied (403); the token needs namespace "*" { policy = "read" }`,
		`version, region, server: denied (403); the token needs agent { policy = "read" }`,
	}, info.GetMissing())
}

// testMemory reads far more than it may hold.
func testMemory(t *testing.T, srv *sourcetest.Server) {
	t.Helper()
	srv.Reset(t)
	srv.Put(t, 100, 400<<10)
	st, err := open(srv.Address, 0).Open(t.Context())
	require.NoError(t, err)
	defer st.Close()
	heap := func() uint64 {
		var stats runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&stats)
		return stats.HeapAlloc
	}
	before := heap()
	var most, total uint64
	buf := make([]byte, 256<<10)
	for {
		n, err := io.ReadFull(st, buf)
		total += uint64(n)
		if err != nil {
			require.ErrorIs(t, err, io.ErrUnexpectedEOF)
			break
		}
		most = max(most, heap())
	}
	require.Greater(t, total, uint64(75<<20), "each job and its version")
	assert.Less(t, most-min(most, before), uint64(12<<20), "a few copies of one job")
}

// testNoAddress has a job that Nomad accepts and then redirects to another path. It cannot be purged either, so this
// test is the server's last.
func testNoAddress(t *testing.T, srv *sourcetest.Server) {
	t.Helper()
	srv.Reset(t)
	srv.Put(t, 3, 10)
	_, _, err := dial(t, srv.Address).Jobs().Register(job("..", "default", 1), nil)
	require.NoError(t, err)
	data, info := readAll(t, srv.Address)
	assert.Len(t, decode(t, data), 3)
	require.Len(t, info.GetMissing(), 1)
	assert.Contains(t, info.GetMissing()[0], "job default/..: ")
}
