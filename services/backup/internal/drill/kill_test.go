package drill_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/drill"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store"
)

// errand is what a process is told that runs a drill and is killed.
type errand struct {
	Phase    string // where it says so, and
	Hold     bool   // waits there
	Scratch  string
	Shelf    string // a folder with the manifest and the stored objects
	Identity string
	Kind     string
	Confine  []string
	Servers  drill.Servers
}

// save writes a shelf to a folder for another process.
func (s *shelf) save(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	b, err := protojson.Marshal(s.manifest)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "manifest.json"), b, 0o600))
	require.NoError(t, s.objects.List(t.Context(), "", func(o store.Object) error {
		r, _, err := s.objects.Get(t.Context(), o.Key)
		require.NoError(t, err)
		data, err := io.ReadAll(r)
		require.NoError(t, err)
		path := filepath.Join(dir, o.Key)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
		return os.WriteFile(path, data, 0o600)
	}))
	return dir
}

// drillUntil is what the process runs. It never comes back.
func drillUntil(args []string) {
	var e errand
	check := func(err error) {
		if err != nil {
			panic(err)
		}
	}
	check(json.Unmarshal([]byte(args[0]), &e))
	b, err := os.ReadFile(filepath.Join(e.Shelf, "manifest.json"))
	check(err)
	m := &lifeboatv1.Manifest{}
	check(protojson.Unmarshal(b, m))
	identity, err := age.ParseX25519Identity(e.Identity)
	check(err)
	rep, err := drill.Run(context.Background(), drill.Input{
		DrillID: "killed", Target: targetOf(e.Kind, m.GetTarget()), SnapshotID: m.GetId(), Manifest: m, Dir: e.Scratch, Servers: e.Servers,
		Identities: []age.Identity{identity}, Identity: drill.IdentityWorker,
		Fetch: func(_ context.Context, key string) (io.ReadCloser, error) {
			return os.Open(filepath.Join(e.Shelf, key))
		},
		Began: func(phase string) {
			if phase != e.Phase {
				return
			}
			fmt.Fprintln(os.Stdout, "reached")
			if e.Hold {
				select {}
			}
		},
	})
	fmt.Fprintln(os.Stdout, "it ended", rep.GetSummary(), err)
	select {}
}

// targetOf has a check, so that there is a phase for it.
func targetOf(kind, name string) config.Target {
	t := config.Target{Name: name}
	switch kind {
	case "etcd":
		t.Etcd = &config.Etcd{}
	case "consul":
		t.Consul = &config.Consul{}
	case "nomad":
		t.Nomad = &config.Nomad{}
	}
	t.Drill.Checks = []config.Check{{Count: map[string]string{"etcd": "keys", "consul": "keys", "nomad": "jobs"}[kind], Min: 1}}
	return t
}

// testKill kills a drill in each of its phases. What it leaves is gone after the next drill, which passes.
func testKill(t *testing.T, s *shelf, wanted ...string) {
	t.Helper()
	s.target = targetOf(s.target.Kind(), s.target.Name)
	scratch := t.TempDir()
	e := errand{Scratch: scratch, Shelf: s.save(t), Identity: s.identity.String(), Kind: s.target.Kind(), Servers: servers(t)}
	e.Servers.Confine = []string{os.Args[0], "confine"}
	left := false
	for _, phase := range wanted {
		for _, hold := range []bool{true, false} {
			e.Phase, e.Hold = phase, hold
			b, err := json.Marshal(e)
			require.NoError(t, err)
			cmd := exec.Command(os.Args[0], "drill-until", string(b))
			out, err := cmd.StdoutPipe()
			require.NoError(t, err)
			require.NoError(t, cmd.Start())
			line, err := bufio.NewReader(out).ReadString('\n')
			require.NoError(t, err)
			require.Equal(t, "reached\n", line, phase)
			require.NoError(t, cmd.Process.Kill())
			_ = cmd.Wait() // it was killed
			entries, err := os.ReadDir(scratch)
			require.NoError(t, err)
			left = left || len(entries) > 0
		}
	}
	require.True(t, left, "nothing was killed in the middle")
	in := s.input(t)
	in.Dir, in.Servers = scratch, e.Servers
	rep, err := drill.Run(t.Context(), in)
	require.NoError(t, err)
	require.True(t, rep.GetPassed(), rep.GetFailure())
	entries, err := os.ReadDir(scratch)
	require.NoError(t, err)
	for _, left := range entries {
		// Killed before the folder was locked, and with it the name that a drill's folder has. There is nothing in it.
		assert.True(t, strings.HasPrefix(left.Name(), ".lifeboat-drill-new-"), left.Name())
		require.NoError(t, os.Remove(filepath.Join(scratch, left.Name())))
	}
	require.Eventually(t, func() bool { return len(processesOf(t, scratch)) == 0 }, waitFor, pollEvery, "%v", processesOf(t, scratch))
}

// processesOf are the processes that name a folder in their command line.
func processesOf(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := filepath.Glob("/proc/[0-9]*/cmdline")
	require.NoError(t, err)
	var all []string
	for _, path := range entries {
		b, err := os.ReadFile(path)
		if err == nil && strings.Contains(string(b), dir) {
			all = append(all, strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
	return all
}

func TestKilledInEveryPhase(t *testing.T) {
	all := []string{"prepare", "fetch", "decrypt", "start", "restore", "compare", "check", "stop"}
	t.Run("etcd", func(t *testing.T) { testKill(t, smallEtcd(t), all...) })
	t.Run("consul", func(t *testing.T) { testKill(t, smallConsul(t), all...) })
	t.Run("nomad", func(t *testing.T) { testKill(t, smallNomad(t), "fetch", "start", "restore", "compare", "stop") })
}
