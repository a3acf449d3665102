package tests

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/chattest"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// webhook is a group of alerts as Alertmanager sends it.
func webhook(alerts ...map[string]string) map[string]any {
	var list []map[string]any
	for i, labels := range alerts {
		list = append(list, map[string]any{
			"status": "firing", "labels": labels, "annotations": map[string]string{"summary": "it hurts"},
			"startsAt": "2026-11-21T04:00:00Z", "endsAt": "0001-01-01T00:00:00Z", "fingerprint": fmt.Sprintf("%016x", i),
		})
	}
	return map[string]any{
		"version": "4", "groupKey": `{}:{alertname="X"}`, "status": "firing", "receiver": "lifeboat",
		"groupLabels": map[string]string{}, "commonLabels": map[string]string{}, "commonAnnotations": map[string]string{},
		"externalURL": "http://127.0.0.1:9093", "truncatedAlerts": 0, "alerts": list,
	}
}

func TestTheWholeLineAsProcesses(t *testing.T) {
	f := start(t)
	b, err := os.ReadFile(f.config)
	require.NoError(t, err)
	f.write("lifeboat.yaml", strings.Replace(string(b), "    timeout: 5m\n",
		"    timeout: 5m\n    schedule: \"@every 1s\"\n    rpo: 1h\n", 1))
	f.run("scheduler")
	f.run("backup")
	f.run("notifier")
	e := f.event("lifeboat.event.snapshot.committed.etcd-prod")
	assert.Equal(t, "scheduler", e.GetRequestedBy())
	f.publish("lifeboat.job.drill.etcd-prod")
	drill := f.event("lifeboat.event.drill.passed.etcd-prod").GetDrill()
	assert.Equal(t, lifeboatv1.DrillReport_LEVEL_RESTORED, drill.GetLevel())
	for _, c := range drill.GetComparisons() {
		assert.True(t, c.GetOk(), c.GetWhat())
	}
	require.Eventually(t, func() bool {
		return f.post(webhook(map[string]string{"alertname": "CheckoutSlow", "severity": "critical"})) == http.StatusOK
	}, time.Minute, 50*time.Millisecond)
	f.inBothChats("CheckoutSlow", "https://runbooks.example.com/checkout-slow")

	out, exit := f.command("status", "-c", f.config)
	assert.Zero(t, exit, out)
	assert.Contains(t, out, "etcd-prod")

	// What needs only the bucket works when NATS is gone.
	require.NoError(t, f.nats.Kill())
	out, exit = f.command("snapshot", "list", "-c", f.config, "--output", "json")
	require.Zero(t, exit, out)
	var listed []map[string]any
	require.NoError(t, json.Unmarshal([]byte(out), &listed))
	assert.NotEmpty(t, listed)
	out, exit = f.command("drill", "list", "-c", f.config)
	assert.Zero(t, exit, out)
	assert.Contains(t, out, drill.GetId())
	require.NoError(t, f.nats.Restart(t.Context()))
}

func (f *fleet) inBothChats(texts ...string) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), 60*time.Second)
	defer cancel()
	seen := map[chattest.Kind]bool{}
	require.NoError(f.t, f.chat.Wait(ctx, func(messages []chattest.Message) bool {
		for _, m := range messages {
			all := true
			for _, text := range texts {
				all = all && strings.Contains(m.Title+m.Text, text)
			}
			if all {
				seen[m.Kind] = true
			}
		}
		return len(seen) == 2
	}), "only in %v", seen)
}

// slowS3 puts a proxy before S3 that lets kb kilobytes a second through, and points the configuration to it.
func (f *fleet) slowS3(kb int64) *toxiproxy.Proxy {
	f.t.Helper()
	log := zerolog.Nop()
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), log)
	u, err := url.Parse(f.s3.Endpoint)
	require.NoError(f.t, err)
	p := toxiproxy.NewProxy(server, "s3", "127.0.0.1:0", u.Host)
	require.NoError(f.t, p.Start())
	f.t.Cleanup(p.Stop)
	f.throttle(p, kb)
	b, err := os.ReadFile(f.config)
	require.NoError(f.t, err)
	f.write("lifeboat.yaml", strings.Replace(string(b), f.s3.Endpoint, "http://"+p.Listen, 1))
	return p
}

func (f *fleet) throttle(p *toxiproxy.Proxy, kb int64) {
	f.t.Helper()
	_, err := p.Toxics.AddToxicJson(strings.NewReader(fmt.Sprintf(
		`{"name":"slow","type":"bandwidth","stream":"upstream","attributes":{"rate":%d}}`, kb)))
	require.NoError(f.t, err)
}

// Guarantees 2 and 3, with a worker that is killed with -9 in the middle of its upload: its job is done by another one,
// once, and what is committed is whole.
func TestGuarantee2And3AKilledWorkersJobIsDoneOnce(t *testing.T) {
	f := start(t)
	f.fill(t, 3000)
	p := f.slowS3(1000)
	first := f.run("backup")
	f.publish("lifeboat.job.snapshot.etcd-prod")
	f.uploading()
	require.NoError(t, first.Kill())
	assert.Empty(t, f.manifests())
	require.NoError(t, p.Toxics.RemoveToxic(t.Context(), "slow"))
	f.run("backup")
	f.run("backup")
	e := f.event("lifeboat.event.snapshot.committed.etcd-prod")
	all := f.manifests()
	require.Len(t, all, 1)
	assert.Equal(t, e.GetSnapshotId(), all[0].GetId())
	f.publish("lifeboat.job.verify.etcd-prod")
	assert.Equal(t, "1", f.event("lifeboat.event.verify.passed.etcd-prod").GetAttributes()["checked"])
	f.publish("lifeboat.job.drill.etcd-prod")
	f.event("lifeboat.event.drill.passed.etcd-prod")
}

// Guarantee 2, with a worker that is stopped in the middle of its upload until its job was given to another one, and then
// goes on: it can neither commit nor replace what the other one stored.
func TestGuarantee2AStoppedWorkerThatWakesUpCannotCommit(t *testing.T) {
	f := start(t)
	f.fill(t, 3000)
	p := f.slowS3(1000)
	stopped := f.run("backup")
	f.publish("lifeboat.job.snapshot.etcd-prod")
	f.uploading()
	require.NoError(t, stopped.Signal(syscall.SIGSTOP))
	require.NoError(t, p.Toxics.RemoveToxic(t.Context(), "slow"))
	f.run("backup")
	e := f.event("lifeboat.event.snapshot.committed.etcd-prod")
	assert.Equal(t, "lifeboat-backup", strings.Split(e.GetActor(), "@")[0])
	require.NoError(t, stopped.Signal(syscall.SIGCONT))
	// Its upload is refused, or its commit; either way it records that it was interrupted.
	f.event("lifeboat.event.snapshot.interrupted.etcd-prod")
	all := f.manifests()
	require.Len(t, all, 1)
	f.publish("lifeboat.job.verify.etcd-prod")
	assert.Equal(t, "0", f.event("lifeboat.event.verify.passed.etcd-prod").GetAttributes()["damaged"])
	f.publish("lifeboat.job.drill.etcd-prod")
	f.event("lifeboat.event.drill.passed.etcd-prod")
}

// fill puts n values of 1,500 bytes into etcd that do not compress, so that their upload takes a while.
func (f *fleet) fill(t *testing.T, n int) {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 4))
	const together = 100 // of at most 128 operations in a transaction
	for i := 0; i < n; i += together {
		ops := make([]clientv3.Op, together)
		for k := range ops {
			v := make([]byte, 1500)
			for j := range v {
				v[j] = byte(r.Uint32())
			}
			ops[k] = clientv3.OpPut(fmt.Sprintf("/big/%d", i+k), string(v))
		}
		_, err := f.client.Txn(t.Context()).Then(ops...).Commit()
		require.NoError(t, err)
	}
}

// uploading waits until a worker has begun, and then for a random moment of the seconds that its upload takes.
func (f *fleet) uploading() {
	f.t.Helper()
	f.event("lifeboat.event.snapshot.started.etcd-prod")
	moment := time.Duration(rand.IntN(2000)) * time.Millisecond
	f.t.Logf("the fault comes after %s", moment)
	<-time.After(moment)
	require.Equal(f.t, 1, f.inFlight(), "the job is still under way")
}

// inFlight counts the jobs that a worker has and has not settled.
func (f *fleet) inFlight() int {
	c, err := f.js.Consumer(f.t.Context(), "LIFEBOAT_JOBS", "backup-snapshot")
	if err != nil {
		return 0
	}
	info, err := c.Info(f.t.Context())
	if err != nil {
		return 0
	}
	return info.NumAckPending
}

func TestAJobForAnUnknownTargetEndsWithAReason(t *testing.T) {
	f := start(t)
	p := f.run("backup")
	f.publish("lifeboat.job.snapshot.no-such-target")
	d := &lifeboatv1.DeadLetter{}
	require.Eventually(t, func() bool {
		return f.last("LIFEBOAT_DEAD", "lifeboat.dead.job.snapshot.no-such-target", d)
	}, 60*time.Second, 20*time.Millisecond) // for half a minute the worker may be one that has not read the new configuration yet
	assert.Contains(t, d.GetReason(), `no target is named "no-such-target"`)
	f.event("lifeboat.event.job.rejected.no-such-target")
	select {
	case <-p.Done():
		assert.Fail(t, "the worker died of it")
	default:
	}
	f.publish("lifeboat.job.snapshot.etcd-prod")
	f.event("lifeboat.event.snapshot.committed.etcd-prod")
}

func TestBadInputExitsWith2AndNamesThePlace(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "lifeboat.yaml")
	for name, c := range map[string]struct{ yaml, want string }{
		"unknown key":      {"store:\n  bucket: backups\n  buckte: x\n", ":3:3: store.buckte"},
		"wrong type":       {"nats:\n  replicas: many\n", ":2:13: nats.replicas"},
		"bad cron line":    {"store: {bucket: backups}\ntargets:\n  - name: a\n    etcd: {endpoints: [\"http://h:1\"]}\n    schedule: \"* * *\"\n", ":5:15: targets[0].schedule"},
		"unknown receiver": {"notifier:\n  route: {receiver: nobody}\n", ":2:21: notifier.route.receiver"},
		"duplicate target": {"store: {bucket: backups}\ntargets:\n  - {name: a, etcd: {endpoints: [\"http://h:1\"]}}\n  - {name: a, etcd: {endpoints: [\"http://h:1\"]}}\n", ":4:12: targets[1].name"},
	} {
		t.Run(name, func(t *testing.T) {
			f := &fleet{t: t}
			require.NoError(t, os.WriteFile(path, []byte(c.yaml), 0o600))
			for _, command := range [][]string{{"check-config"}, {"scheduler"}, {"backup"}, {"notifier"}, {"status"}} {
				out, exit := f.command(append(command, "-c", path)...)
				assert.Equal(t, 2, exit, "%v: %s", command, out)
				assert.Contains(t, out, path+c.want, "%v", command)
			}
		})
	}
	f := &fleet{t: t}
	_, exit := f.command("backup", "--no-such-flag")
	assert.Equal(t, 2, exit)
	for _, wrong := range [][]string{{"snapshot", "run"}, {"snapshot", "lst"}, {"nosuch"}, {"scheduler", "x"}, {"status", "-o", "xml"}, {"notify", "test"}} {
		out, exit := f.command(wrong...)
		assert.Equal(t, 2, exit, "%v: %s", wrong, out)
	}
}

// An unreachable part at start: the service says which, keeps trying, is alive and not ready.
func TestUnreachablePartsAreNamedAndWaitedFor(t *testing.T) {
	f := start(t)
	require.NoError(t, f.nats.Kill())
	good, err := os.ReadFile(f.config)
	require.NoError(t, err)
	f.write("lifeboat.yaml", strings.Replace(string(good), f.s3.Endpoint, "http://127.0.0.1:1", 1))
	p := f.run("backup")
	p.logged(t, "waiting_for\":\"NATS streams")
	addr := p.httpAddr(t)
	code, body := get(t, addr, "/healthz")
	assert.Equal(t, http.StatusOK, code, body)
	code, body = get(t, addr, "/readyz")
	assert.Equal(t, http.StatusServiceUnavailable, code)
	assert.Contains(t, body, f.nats.URL)
	assert.Contains(t, body, "http://127.0.0.1:1")
	require.NoError(t, p.Stop())

	f.write("lifeboat.yaml", string(good))
	p = f.run("backup")
	require.NoError(t, f.nats.Restart(t.Context()))
	addr = p.httpAddr(t)
	require.Eventually(t, func() bool {
		code, _ := get(t, addr, "/readyz")
		return code == http.StatusOK
	}, time.Minute, 50*time.Millisecond)
}

// httpAddr reads the address of health and metrics from the log.
func (p *process) httpAddr(t *testing.T) string {
	t.Helper()
	p.logged(t, "http_addr")
	b, err := os.ReadFile(p.log)
	require.NoError(t, err)
	for line := range strings.Lines(string(b)) {
		var record struct {
			Addr string `json:"http_addr"`
		}
		if json.Unmarshal([]byte(line), &record) == nil && record.Addr != "" {
			return record.Addr
		}
	}
	require.Fail(t, "no http_addr in the log")
	return ""
}

func get(t *testing.T, addr, path string) (int, string) {
	t.Helper()
	resp, err := http.Get("http://" + addr + path)
	require.NoError(t, err)
	defer resp.Body.Close()
	var b strings.Builder
	buf := make([]byte, 4096)
	for {
		n, err := resp.Body.Read(buf)
		b.Write(buf[:n])
		if err != nil {
			return resp.StatusCode, b.String()
		}
	}
}

// Guarantee 7: 200 means stored. The notifier is killed with -9 while chats fail; at the end every accepted alert is in
// both chats or a dead letter.
func TestGuarantee7NoAcceptedAlertIsLostWhenTheNotifierIsKilled(t *testing.T) {
	f := start(t)
	p := f.run("notifier")
	accepted := map[string]bool{}
	for i := range 12 {
		name := fmt.Sprintf("Alert%02dX", i)
		body := webhook(map[string]string{"alertname": name, "severity": "warning"})
		body["groupKey"] = name
		require.Eventually(t, func() bool { return f.post(body) == http.StatusOK }, time.Minute, 20*time.Millisecond)
		accepted[name] = true
		if i%4 == 3 {
			require.NoError(t, p.Kill())
			p = f.run("notifier")
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 120*time.Second)
	defer cancel()
	seen := map[string]map[chattest.Kind]bool{}
	err := f.chat.Wait(ctx, func(messages []chattest.Message) bool {
		for _, m := range messages {
			for name := range accepted {
				if strings.Contains(m.Title+m.Text, name) {
					if seen[name] == nil {
						seen[name] = map[chattest.Kind]bool{}
					}
					seen[name][m.Kind] = true
				}
			}
		}
		for name := range accepted {
			if len(seen[name]) < 2 {
				return false
			}
		}
		return true
	})
	require.NoError(t, err, "accepted %d, delivered %v", len(accepted), seen)
}

// Guarantee 8: no secret in any log or event of any service.
func TestGuarantee8NoSecretInLogsEventsOrManifests(t *testing.T) {
	f := start(t)
	for _, service := range []string{"scheduler", "backup", "notifier"} {
		f.run(service)
	}
	f.chat.FailNext(chattest.Slack, 2, chattest.Fault{Status: http.StatusInternalServerError})
	f.chat.FailNext(chattest.DingTalk, 2, chattest.Fault{ErrCode: -1, ErrMsg: "system busy"})
	f.publish("lifeboat.job.snapshot.etcd-prod")
	f.event("lifeboat.event.snapshot.committed.etcd-prod")
	require.Eventually(t, func() bool {
		return f.post(webhook(map[string]string{"alertname": "Leaky", "severity": "critical"})) == http.StatusOK
	}, time.Minute, 50*time.Millisecond)
	f.inBothChats("Leaky")
	var secrets []string
	for _, file := range []string{"slack", "dingtalk", "dingtalk-secret", string(f.s3.Config.SecretAccessKeyFile)} {
		if !filepath.IsAbs(file) {
			file = f.path(file)
		}
		b, err := os.ReadFile(file)
		require.NoError(t, err)
		secret := strings.TrimSpace(string(b))
		if u, err := url.Parse(secret); err == nil && u.Host != "" { // a webhook's secret is its token
			secret = u.Path + u.RawQuery
			if token := u.Query().Get("access_token"); token != "" {
				secret = token
			}
		}
		require.Greater(t, len(secret), 8)
		secrets = append(secrets, secret)
	}
	// Logs, everything that NATS keeps, and everything in the bucket.
	searched := map[string]int{}
	for _, dir := range []string{f.dir, f.s3.Dir} {
		require.NoError(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			ext := filepath.Ext(path)
			if err != nil || d.IsDir() || (ext != ".log" && ext != ".blk" && ext != ".json") {
				return err
			}
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			searched[ext]++
			for _, s := range secrets {
				assert.False(t, bytes.Contains(b, []byte(s)), "a secret is in %s", path)
			}
			return nil
		}))
	}
	assert.GreaterOrEqual(t, searched[".log"], 3)
	assert.Positive(t, searched[".blk"], "the streams of NATS")
	assert.Positive(t, searched[".json"], "manifests")
}
