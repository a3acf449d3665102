package tests

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// Guarantee 5: the commands that a manifest holds are run as they stand, in a shell, against fresh servers. Those that fetch and
// decompress need tools that a machine which builds Lifeboat may lack, so zstd's library stands for them.
func TestGuarantee5TheManifestsCommandsRestoreConsulAndNomad(t *testing.T) {
	f := start(t)
	oldConsul, err := bintest.StartConsul(t.Context(), f.path("consul-old"))
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, oldConsul.Kill()) })
	oldNomad, err := bintest.StartNomad(t.Context(), f.path("nomad-old"))
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, oldNomad.Kill()) })
	request(t, http.MethodPut, oldConsul.Address+"/v1/kv/config/a?flags=42", "one")
	request(t, http.MethodPut, oldConsul.Address+"/v1/kv/config/b", "")
	request(t, http.MethodPut, oldNomad.Address+"/v1/namespace", `{"Name": "team", "Description": "a team"}`)
	request(t, http.MethodPut, oldNomad.Address+"/v1/var/nomad/jobs/web?namespace=team", `{"Items": {"password": "it's \"quoted\""}}`)
	request(t, http.MethodPut, oldNomad.Address+"/v1/jobs", `{"Job": {"ID": "web-it's", "Name": "web", "Namespace": "team", "Datacenters": ["dc1"],
		"TaskGroups": [{"Name": "g", "Count": 3, "Tasks": [{"Name": "t", "Driver": "raw_exec", "Config": {"command": "/bin/true"}}]}]}}`)
	f.edit("notifier:\n", fmt.Sprintf("  - {name: consul-kv, consul: {address: %q}}\n  - {name: nomad-jobs, nomad: {address: %q}}\nnotifier:\n",
		oldConsul.Address, oldNomad.Address))
	f.run("backup", "--roles", "snapshot")

	newConsul, err := bintest.StartConsul(t.Context(), f.path("consul-new"))
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, newConsul.Kill()) })
	newNomad, err := bintest.StartNomad(t.Context(), f.path("nomad-new"))
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, newNomad.Kill()) })
	for _, target := range []string{"consul-kv", "nomad-jobs"} {
		f.publish("lifeboat.job.snapshot." + target)
		m := f.event("lifeboat.event.snapshot.committed." + target).GetManifest()
		f.restoreByHand(m, "CONSUL_HTTP_ADDR="+newConsul.Address, "NOMAD_ADDR="+newNomad.Address)
	}
	for _, path := range []string{"/v1/kv/config/a?raw", "/v1/kv/config/b?raw"} {
		assert.Equal(t, request(t, http.MethodGet, oldConsul.Address+path, ""), request(t, http.MethodGet, newConsul.Address+path, ""))
	}
	var entries []struct{ Flags int }
	require.NoError(t, json.Unmarshal([]byte(request(t, http.MethodGet, newConsul.Address+"/v1/kv/config/a", "")), &entries))
	assert.Equal(t, 42, entries[0].Flags)
	assert.Contains(t, request(t, http.MethodGet, newNomad.Address+"/v1/namespace/team", ""), "a team")
	assert.Contains(t, request(t, http.MethodGet, newNomad.Address+"/v1/var/nomad/jobs/web?namespace=team", ""), `it's \"quoted\"`)
	assert.Contains(t, request(t, http.MethodGet, newNomad.Address+"/v1/job/web-it's?namespace=team", ""), `"Count":3`)
}

// restoreByHand runs a manifest's commands after those that fetch and decode.
func (f *fleet) restoreByHand(m *lifeboatv1.Manifest, env ...string) {
	f.t.Helper()
	dir := f.t.TempDir()
	stored, err := os.Open(f.s3.Path(m.GetData().GetKey()))
	require.NoError(f.t, err)
	defer stored.Close()
	z, err := zstd.NewReader(stored)
	require.NoError(f.t, err)
	defer z.Close()
	plain, err := io.ReadAll(z)
	require.NoError(f.t, err)
	require.NoError(f.t, os.WriteFile(filepath.Join(dir, m.GetTarget()+"."+m.GetData().GetFormat()), plain, 0o600))
	commands := m.GetRestoreCommands()
	require.Greater(f.t, len(commands), 3, protojson.Format(m))
	require.Contains(f.t, commands[2], "zstd -d", "what stands before is the fetching")
	bin, err := bintest.Find("nomad")
	require.NoError(f.t, err)
	cmd := exec.CommandContext(f.t.Context(), "/bin/sh", "-ex")
	cmd.Stdin = strings.NewReader(strings.Join(commands[3:], "\n"))
	cmd.Dir = dir
	cmd.Env = append(append(os.Environ(), "PATH="+filepath.Dir(bin)+":"+os.Getenv("PATH")), env...)
	out, err := cmd.CombinedOutput()
	require.NoError(f.t, err, "%s", out)
}

// request sends one, again while a server that has just started is not ready for it.
func request(t *testing.T, method, url, body string) (answer string) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
		require.NoError(c, err)
		resp, err := http.DefaultClient.Do(req)
		require.NoError(c, err)
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		require.NoError(c, err)
		require.Equal(c, http.StatusOK, resp.StatusCode, "%s %s: %s", method, url, b)
		answer = string(b)
	}, 20*time.Second, 100*time.Millisecond)
	return answer
}
