package nomad_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore/nomad"
)

// testInterrupted cancels a restore at one item after the other, until one runs through.
func testInterrupted(t *testing.T, data []byte) {
	t.Helper()
	straight := startRegion(t, withACLs)
	require.NoError(t, straight.restore(t, data, nomad.Selection{}, apply()).err)
	dst := startRegion(t, withACLs)
	var stops int
	for stop := 1; ; stop += 3 {
		ctx, cancel := context.WithCancel(t.Context())
		o := apply()
		var seen int
		o.Item = func(restore.Item) {
			if seen++; seen == stop {
				cancel()
			}
		}
		got := dst.restoreFrom(ctx, t, opened(data), nomad.Selection{}, o)
		cancel()
		if got.err == nil {
			break
		}
		require.ErrorIs(t, got.err, context.Canceled)
		assert.Less(t, len(got.order), stop+9, "it ends promptly")
		stops++
	}
	assert.Greater(t, stops, 5)
	assert.Equal(t, comparables(t, straight.backup(t)), comparables(t, dst.backup(t)))
	again := dst.restore(t, data, nomad.Selection{}, apply())
	require.NoError(t, again.err)
	assert.Zero(t, again.summary.Created+again.summary.Changed+again.summary.Differs+again.summary.Failed)
}

// testKilled kills the server in the middle. Once it is back soon enough for the same run, and once it is not.
func testKilled(t *testing.T, data []byte) {
	t.Helper()
	dst := startRegion(t, withACLs)
	at := 3 + rand.IntN(25)
	t.Logf("killed at item %d", at)
	o := apply()
	var seen int
	o.Item = func(restore.Item) {
		if seen++; seen == at {
			require.NoError(t, dst.process.Kill())
			dst.restart(t)
		}
	}
	got := dst.restore(t, data, nomad.Selection{}, o)
	require.NoError(t, got.err, "it waits for a server that comes back")
	require.NoError(t, got.failure())
	want := comparables(t, data, "auth_methods/sso", `"sso"`)
	assert.Equal(t, want, comparables(t, dst.backup(t)))

	dst = startRegion(t, withACLs)
	o.Item = func(i restore.Item) {
		if i.Kind == "job" && dst.process != nil {
			require.NoError(t, dst.process.Kill())
		}
	}
	began := time.Now()
	got = dst.restore(t, data, nomad.Selection{}, o)
	require.ErrorContains(t, got.err, "run the restore again")
	require.ErrorContains(t, got.err, dst.address)
	assert.Less(t, time.Since(began), 40*time.Second)
	assert.NotContains(t, got.items, "scheduler configuration scheduler_configuration", "nothing is said of what was not tried")
	dst.restart(t)
	got = dst.restore(t, data, nomad.Selection{}, apply())
	require.NoError(t, got.err)
	assert.Positive(t, got.summary.Same)
	assert.Positive(t, got.summary.Created)
	assert.Equal(t, want, comparables(t, dst.backup(t)))
}

// TestNoNomad has servers of something else at the address: that is said at once, and not taken for a server that is on its way.
func TestNoNomad(t *testing.T) {
	for name, answer := range map[string]string{
		"a page": "<html>", "another's API": `"10.0.0.1:8300"`, "a list": "[]",
	} {
		t.Run(name, func(t *testing.T) {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				_, _ = io.WriteString(w, answer)
			}))
			t.Cleanup(srv.Close)
			began := time.Now()
			s, err := nomad.Restore(t.Context(), config.Nomad{Address: srv.URL}, opened(archive(t)), nomad.Selection{}, apply())
			require.ErrorContains(t, err, "not in Nomad's way")
			require.ErrorContains(t, err, srv.URL)
			assert.Zero(t, s)
			assert.Less(t, time.Since(began), 20*time.Second, "nobody waits for it")
		})
	}
}

// testCut ends the data too early, in many places, and says at the end that it is not what it should be.
func testCut(t *testing.T, data []byte) {
	t.Helper()
	dst := startRegion(t, withACLs)
	before := dst.backup(t)
	end := len(bytes.TrimRight(data, "\x00"))
	cuts := []int{0, 1, 511, 512, len(data) - 1, len(data) - 512, len(data) - 1024, end}
	for range 40 {
		cuts = append(cuts, rand.IntN(end))
	}
	for _, n := range cuts {
		got := dst.restore(t, data[:n], nomad.Selection{}, force())
		require.Error(t, got.err, "cut at %d of %d", n, len(data))
		require.Empty(t, got.order)
	}
	broken := errors.New("the sum is another one")
	got := dst.restoreFrom(t.Context(), t, func(context.Context) (io.ReadCloser, error) {
		return io.NopCloser(io.MultiReader(bytes.NewReader(data), failing{broken})), nil
	}, nomad.Selection{}, force())
	require.ErrorIs(t, got.err, broken)
	var opens atomic.Int64
	got = dst.restoreFrom(t.Context(), t, func(context.Context) (io.ReadCloser, error) {
		opens.Add(1)
		return nil, broken
	}, nomad.Selection{}, force())
	require.ErrorIs(t, got.err, broken)
	assert.EqualValues(t, 1, opens.Load())
	assert.Equal(t, before, dst.backup(t), "nothing was written")
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

const web = `{"Job":{"ID":"web","Namespace":"default","Name":"web","Type":"service","Datacenters":["*"],
"TaskGroups":[{"Name":"g","Count":1,"Tasks":[{"Name":"t","Driver":"raw_exec","Config":{"command":"/bin/true"}}]}]}}`

// TestDamaged has archives that no backup writes. None of them writes anything.
func TestDamaged(t *testing.T) {
	dst := startRegion(t, "")
	good := entry{"jobs/default/web/job.json", web}
	variable := `{"Namespace":"default","Path":"a","Items":{"k":"s3cr3t"}}`
	for what, bad := range map[string][]entry{
		"absolute":               {{"/jobs/default/x/job.json", web}},
		"above":                  {{"../jobs/default/x/job.json", web}},
		"above, inside":          {{"jobs/default/../job.json", web}},
		"twice":                  {good, good},
		"not together":           {good, {"variables/default/a.json", variable}, {"jobs/default/web/submission.json", "{}"}},
		"another spelling":       {{"jobs/default/%77eb/job.json", web}},
		"dots":                   {{"variables/default/%2e%2e.json", variable}},
		"other id":               {{"jobs/default/wob/job.json", web}},
		"other namespace":        {{"jobs/apps/web/job.json", web}},
		"other path":             {{"variables/default/b.json", variable}},
		"no JSON":                {{"jobs/default/web/job.json", web[:len(web)-2]}},
		"no JSON in a variable":  {{"variables/default/a.json", variable[:40] + "s3cr3t"}},
		"no job":                 {{"jobs/default/web/job.json", `{}`}},
		"null":                   {{"namespaces/x.json", `null`}},
		"no JSON in a version":   {good, {"jobs/default/web/versions/0.json", `{`}},
		"no JSON submitted":      {good, {"jobs/default/web/submission.json", `{`}},
		"submission without job": {{"jobs/default/web/submission.json", `{}`}},
	} {
		got := dst.restore(t, archive(t, append([]entry{{"namespaces/default.json", `{"Name":"default"}`}}, bad...)...), nomad.Selection{}, force())
		require.Error(t, got.err, what)
		assert.NotContains(t, got.err.Error(), "s3cr3t", what)
		assert.Empty(t, got.order, what)
		require.Error(t, nomad.Plans(t.Context(), dst.cfg, opened([]byte("x")), func(string, string) {}))
	}
	jobs, _, err := dst.api.Jobs().List(nil)
	require.NoError(t, err)
	assert.Empty(t, jobs)

	t.Run("left out", func(t *testing.T) { testLeftOut(t, dst) })
	t.Run("one fails", func(t *testing.T) { testOneFails(t, dst) })
}

// testLeftOut has what is never restored, and what a later version might have.
func testLeftOut(t *testing.T, dst *region) {
	t.Helper()
	multi := strings.ReplaceAll(strings.Replace(web, `"Type"`, `"Multiregion":{"Regions":[{"Name":"west"}]},"Type"`, 1), `"web"`, `"multi"`)
	child := strings.ReplaceAll(strings.Replace(web, `"Type"`, `"ParentID":"p","Type"`, 1), `"web"`, `"child"`)
	data := archive(t,
		entry{"jobs/default/child/job.json", child}, entry{"jobs/default/multi/job.json", multi},
		entry{"jobs/default/web/job.json", web}, entry{"jobs/default/web/job.pkl", "later"},
		entry{"quotas/q.json", `{"Name":"q"}`},
		entry{"sentinel/a%2.json", "later"}, entry{"sentinel/b.json", "later"}, entry{"README", "later"},
		entry{"volumes/csi/default/v.json", `{"Volumes":[{"ID":"v","Namespace":"default","Name":"v","PluginID":"ebs"}]}`},
		entry{"volumes/host/default/x.json", `{"Volume":{"Namespace":"default","Name":"data","NodeID":"5a6b4b4c-5e5f-4d4d-8f8f-111111111111"}}`},
	)
	for _, o := range []restore.Options{{}, apply()} {
		got := dst.restore(t, data, nomad.Selection{}, o)
		require.NoError(t, got.err)
		for key, why := range map[string]string{
			"job default/child":    "another job started it",
			"job default/multi":    "register it in every region",
			"quota q":              "not Enterprise",
			"file jobs/":           "unknown files: 1;",
			"file sentinel/":       "unknown files: 2;",
			"file README":          "unknown files: 1;",
			"CSI volume default/v": `its plugin "ebs" does not run at the destination`,
			"host volume default/data on node 5a6b4b4c-5e5f-4d4d-8f8f-111111111111": "which is not at the destination",
		} {
			assert.Equal(t, restore.Skip, got.items[key].Action, "%s of %v", key, got.order)
			assert.Contains(t, got.items[key].Detail, why)
		}
		assert.Equal(t, []string{"job default/web"}, got.having(restore.Create))
		assert.Len(t, got.order, 9)
	}
	var differences []string
	require.NoError(t, nomad.Plans(t.Context(), dst.cfg, opened(data), func(job, difference string) {
		differences = append(differences, job+": "+difference)
	}))
	assert.Equal(t, "default/web: ", differences[2])
	assert.Contains(t, differences[1], "default/multi: it was not restored: ")
}

// testOneFails has jobs and variables that Nomad refuses, between some that it takes.
func testOneFails(t *testing.T, dst *region) {
	t.Helper()
	named := func(id, more string) entry {
		return entry{
			"jobs/default/" + id + "/job.json",
			strings.ReplaceAll(strings.Replace(web, `"Type"`, more+`"Type"`, 1), `"web"`, `"`+id+`"`),
		}
	}
	vault := named("b-vault", "")
	vault.body = strings.Replace(vault.body, `"Driver"`, `"Vault":{"Role":"x"},"Driver"`, 1)
	secret := "s3cr3t-" + strings.Repeat("v", 70<<10) // more than a variable may hold
	data := archive(t,
		named("a", ""), vault, named("c", `"NodePool":"none",`), named("d", ""),
		entry{"variables/default/a.json", `{"Namespace":"default","Path":"a","Items":{"k":"v1"}}`},
		entry{"variables/default/b.json", `{"Namespace":"default","Path":"b","Items":{"k":"` + secret + `"}}`},
		entry{"variables/default/c.json", `{"Namespace":"default","Path":"c","Items":{}}`},
		entry{"variables/none/d.json", `{"Namespace":"none","Path":"d","Items":{"k":"v"}}`},
	)
	sel := nomad.Selection{Namespaces: []string{"default", "none"}}
	got := dst.restore(t, data, sel, restore.Options{})
	require.NoError(t, got.err)
	require.ErrorContains(t, got.items["job default/b-vault"].Err, `Vault "default" not enabled but used in the job`, "a plan asks Nomad too")
	require.ErrorContains(t, got.items["job default/c"].Err, `needs the node pool "none"`)

	got = dst.restore(t, data, sel, apply())
	require.NoError(t, got.err)
	assert.Equal(t, []string{"variable default/a", "job default/a", "job default/d"}, got.having(restore.Create))
	assert.Equal(t, []string{
		"variable default/b", "variable default/c", "variable none/d", "job default/b-vault", "job default/c",
	}, got.having(restore.Failed))
	require.ErrorContains(t, got.items["job default/b-vault"].Err, `Vault "default" not enabled but used in the job`)
	for _, i := range got.items {
		if i.Err != nil {
			assert.NotContains(t, i.Err.Error(), "s3cr3t")
			t.Log(i.Name, i.Err)
		}
	}
}
