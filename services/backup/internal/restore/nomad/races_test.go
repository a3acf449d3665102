package nomad_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore/nomad"
)

// before is a server before Nomad that does something when a request comes, before Nomad gets it.
func (r *region) before(t *testing.T, do func(*http.Request)) string {
	t.Helper()
	u, err := url.Parse(r.address)
	require.NoError(t, err)
	proxy := httputil.NewSingleHostReverseProxy(u)
	proxy.Transport = &http.Transport{DisableKeepAlives: true}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		do(req)
		proxy.ServeHTTP(w, req)
	}))
	t.Cleanup(srv.Close)
	return srv.URL
}

// rival writes something else right before each of the restore's writes, as often as it is told.
type rival struct {
	mu    sync.Mutex
	times int
	done  map[string]int
	r     *region
	w     *api.WriteOptions // of the test's own context, which a request's does not outlive
}

func (v *rival) do(t *testing.T, req *http.Request) {
	t.Helper()
	if req.Method != http.MethodPut || strings.HasSuffix(req.URL.Path, "/plan") {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.done[req.URL.Path] >= v.times {
		return
	}
	v.done[req.URL.Path]++
	n := v.done[req.URL.Path]
	w := v.w
	var err error
	switch req.URL.Path {
	case "/v1/jobs":
		j := job("web", "default")
		j.Priority = new(60 + n)
		_, _, err = v.r.api.Jobs().Register(j, w)
	case "/v1/var/a":
		_, _, err = v.r.api.Variables().Update(&api.Variable{Path: "a", Items: map[string]string{"k": strings.Repeat("rival", n)}}, w)
		if err != nil { // it is not there yet
			_, _, err = v.r.api.Variables().Create(&api.Variable{Path: "a", Items: map[string]string{"k": "rival"}}, w)
		}
	case "/v1/acl/role":
		_, _, err = v.r.api.ACLRoles().Create(&api.ACLRole{Name: "r", Description: "rival", Policies: []*api.ACLRolePolicyLink{{Name: "p"}}}, w)
	case "/v1/operator/scheduler/configuration":
		_, _, err = v.r.api.Operator().SchedulerSetConfiguration(&api.SchedulerConfiguration{
			SchedulerAlgorithm: api.SchedulerAlgorithmSpread, RejectJobRegistration: n%2 == 0, MemoryOversubscriptionEnabled: n%2 == 1,
		}, w)
	}
	assert.NoError(t, err, req.URL.Path)
}

// TestRival has somebody else write between what a restore reads and what it writes.
func TestRival(t *testing.T) {
	data := archive(t,
		entry{"jobs/default/web/job.json", web},
		entry{"acl/policies/p.json", `{"Name":"p","Rules":"namespace \"default\" { policy = \"read\" }"}`},
		entry{"acl/roles/r.json", `{"Name":"r","Policies":[{"Name":"p"}]}`},
		entry{"variables/default/a.json", `{"Namespace":"default","Path":"a","Items":{"k":"s3cr3t"}}`},
		entry{"scheduler_configuration.json", `{"SchedulerAlgorithm":"binpack","PreemptionConfig":{"BatchSchedulerEnabled":true}}`},
	)
	guarded := []string{"ACL role r", "variable default/a", "job default/web", "scheduler configuration scheduler_configuration"}
	for name, c := range map[string]struct {
		o      restore.Options
		times  int
		action restore.Action
	}{
		"left":       {apply(), 1, restore.Differs},
		"replaced":   {force(), 2, restore.Change},
		"every time": {force(), 100, restore.Failed},
	} {
		t.Run(name, func(t *testing.T) {
			dst := startRegion(t, withACLs)
			dst.variable(t, "default", "ready", map[string]string{"k": "v"})
			_, err := dst.api.Variables().Delete("ready", nil)
			require.NoError(t, err)
			v := &rival{times: c.times, done: make(map[string]int), r: dst, w: (&api.WriteOptions{}).WithContext(context.WithoutCancel(t.Context()))}
			if c.times > 1 {
				v.done["/v1/acl/role"] = c.times // it can be created once only
			}
			dst.cfg.Address = dst.before(t, func(req *http.Request) { v.do(t, req) })
			got := dst.restore(t, data, nomad.Selection{}, c.o)
			require.NoError(t, got.err)
			for _, key := range guarded {
				if key == "ACL role r" && c.times > 1 {
					continue
				}
				i := got.items[key]
				assert.Equal(t, c.action, i.Action, key)
				if c.action == restore.Failed {
					require.ErrorContains(t, i.Err, "somebody else changed it meanwhile, each of 5 times")
					assert.NotContains(t, i.Err.Error(), "rival")
				}
			}
			read, _, err := dst.api.Variables().Read("a", nil)
			require.NoError(t, err)
			j, _, err := dst.api.Jobs().Info("web", nil)
			require.NoError(t, err)
			if c.action == restore.Change {
				assert.Equal(t, "s3cr3t", read.Items["k"])
				assert.Equal(t, 50, *j.Priority)
			} else {
				assert.Contains(t, read.Items["k"], "rival", "nothing newer is overwritten")
				assert.Greater(t, *j.Priority, 60)
			}
		})
	}
}

// TestHostVolume restores a volume of a node that is there, on an agent that is a client too.
func TestHostVolume(t *testing.T) {
	// The client would wait long for a server that has no keyring yet.
	dst := startRegion(t, "")
	dst.variable(t, "default", "ready", map[string]string{"k": "v"})
	_, err := dst.api.Variables().Delete("ready", nil)
	require.NoError(t, err)
	require.NoError(t, dst.process.Kill())
	f, err := os.OpenFile(filepath.Join(dst.dir, "nomad.hcl"), os.O_APPEND|os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteString(`client {
  enabled = true
  options = { "fingerprint.denylist" = "env_aws,env_gce,env_azure,env_digitalocean" }
}`)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	dst.restart(t)
	var node string
	require.Eventually(t, func() bool {
		nodes, _, err := dst.api.Nodes().List(nil)
		if err != nil || len(nodes) == 0 {
			return false
		}
		node = nodes[0].ID
		return true
	}, 60*time.Second, 50*time.Millisecond)
	volume := func(path string) []byte {
		return archive(t, entry{"volumes/host/default/old-id.json", `{"Volume":{"Namespace":"default","Name":"data","NodeID":"` + node +
			`","NodePool":"default","HostPath":"` + path + `","PluginID":"mkdir","CapacityBytes":5,"RequestedCapabilities":[{"AttachmentMode":"file-system","AccessMode":"single-node-writer"}]}}`})
	}
	a, b := t.TempDir(), t.TempDir() // the node looks whether they are there
	key := "host volume default/data on node " + node
	for _, step := range []struct {
		path string
		o    restore.Options
		want restore.Action
	}{
		{a, restore.Options{}, restore.Create},
		{a, apply(), restore.Create},
		{a, apply(), restore.Same},
		{b, restore.Options{}, restore.Differs},
		{b, force(), restore.Change},
		{b, apply(), restore.Same},
	} {
		got := dst.restore(t, volume(step.path), nomad.Selection{}, step.o)
		require.NoError(t, got.err, "%v: %v", step, got.items)
		require.NoError(t, got.items[key].Err)
		assert.Equal(t, step.want, got.items[key].Action, "%v: %v", step, got.items)
	}
}
