package drill_test

import (
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/nomad/api"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/drill"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source"
)

// tampered is a drill in whose throwaway server something is changed between the restore and the comparison: what would happen if a
// restore did other than it says.
func tampered(t *testing.T, s *shelf, tamper func(client *http.Client, base, token string)) drill.Input {
	t.Helper()
	in := s.input(t)
	in.Servers.Confine = []string{os.Args[0], "confine"}
	// A socket's path has to be short.
	dir, err := os.MkdirTemp("", "d") //nolint:usetesting // the folder of this test has a longer one
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	in.Dir = dir
	once := false
	in.Began = func(phase string) {
		if phase != "compare" || once {
			return
		}
		once = true
		var socket, token string
		require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type()&fs.ModeSocket != 0 {
				socket = path
			}
			if err == nil && d.Name() == "token" {
				b, rerr := os.ReadFile(path)
				token, err = string(b), rerr
			}
			return err
		}))
		require.NotEmpty(t, socket)
		client, base, err := source.NewHTTPClient("unix://"+socket, config.TLS{}, 0)
		require.NoError(t, err)
		defer client.CloseIdleConnections()
		tamper(client, base, token)
	}
	return in
}

func TestTheComparisonSeesWhatIsThereConsul(t *testing.T) {
	s := smallConsul(t)
	kv := func(change func(call func(method, key, body string))) drill.Input {
		return tampered(t, s, func(client *http.Client, base, _ string) {
			change(func(method, key, body string) {
				req, err := http.NewRequestWithContext(t.Context(), method, base+"/v1/kv/"+key, strings.NewReader(body))
				require.NoError(t, err)
				resp, err := client.Do(req)
				require.NoError(t, err)
				require.NoError(t, resp.Body.Close())
				require.Equal(t, http.StatusOK, resp.StatusCode)
			})
		})
	}
	rep := requireFailed(t, kv(func(call func(method, key, body string)) {
		call(http.MethodPut, "extra", "hunter2")
		call(http.MethodDelete, "config/key-7", "")
		call(http.MethodPut, "config/key-9?flags=9", "hunter2")
		call(http.MethodPut, "config/key-8?flags=99", strings.Repeat("v", 8))
	}), "compare", "bytes is ", `key "extra" is there and should be missing`, `key "config/key-7" is missing and should be there`,
		`key "config/key-9" is another value of 7 B with flags 9 and should be a value of 9 B with flags 9`,
		`key "config/key-8" is the same value with flags 99 and should be a value of 8 B with flags 8`,
		"the number of keys that differ is 4 and should be 0")
	assert.NotContains(t, rep.String(), "hunter2")
	assert.NotContains(t, found(rep), "content")

	rep = requireFailed(t, kv(func(call func(method, key, body string)) { call(http.MethodDelete, "?recurse", "") }),
		"compare", "keys is 0 and should be 51", "and 3 more")
	assert.Equal(t, "!0=51", found(rep)["the number of keys that differ"])
}

func TestTheComparisonSeesWhatIsThereNomad(t *testing.T) {
	s := smallNomad(t)
	in := func(change func(c *api.Client)) drill.Input {
		return tampered(t, s, func(client *http.Client, base, token string) {
			c, err := api.NewClient(&api.Config{Address: base, HttpClient: client, SecretID: strings.TrimSpace(token)})
			require.NoError(t, err)
			change(c)
		})
	}
	apps := &api.WriteOptions{Namespace: "apps"}
	rep := requireFailed(t, in(func(c *api.Client) {
		_, _, err := c.Variables().Update(&api.Variable{Namespace: "apps", Path: "a/b", Items: map[string]string{"password": "hunter3"}}, apps)
		require.NoError(t, err)
		_, err = c.ACLPolicies().Upsert(&api.ACLPolicy{Name: "ops", Rules: `namespace "*" { policy = "write" }`}, nil)
		require.NoError(t, err)
		_, _, err = c.Jobs().Deregister("batch/nightly", true, apps)
		require.NoError(t, err)
		_, _, err = c.Jobs().Register(nomadJob("web", "apps", 9), apps)
		require.NoError(t, err)
	}), "compare", "field Items.password of variables/apps/a%2Fb.json is another", "field Rules of acl/policies/ops.json",
		"jobs is 3 and should be 4", `the plan of job "apps/web" is `, "jobs whose plan is empty is ")
	t.Log(rep.GetFailure())
	assert.NotContains(t, rep.String(), "hunter3")
	assert.NotContains(t, rep.String(), "hunter2")
	assert.Equal(t, lifeboatv1.DrillReport_LEVEL_RESTORED, rep.GetLevel())
}
