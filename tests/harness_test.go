// Package tests runs Lifeboat end to end: real servers, the real binaries as processes, and the contracts. It sees
// nothing of the services' insides.
package tests

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/chattest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/etcdtest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/s3test"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// binary is the lifeboat binary that the tests run; TestMain builds it.
var binary string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "lifeboat-tests-")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "lifeboat")
	cmd := exec.Command("go", "build", "-o", binary, ".")
	cmd.Dir = "../cli"
	if out, err := cmd.CombinedOutput(); err != nil {
		panic(fmt.Sprintf("building lifeboat: %v\n%s", err, out))
	}
	m.Run()
}

// fleet is a set of servers and one configuration.
type fleet struct {
	t      *testing.T
	dir    string
	nats   *bintest.NATS
	s3     *s3test.Server
	chat   *chattest.Server
	etcd   *etcdtest.Server
	client *clientv3.Client
	config string
	js     jetstream.JetStream
	// webhook is the notifier's address.
	webhook string
}

// start starts the servers and writes the configuration.
func start(t *testing.T) *fleet {
	t.Helper()
	f := &fleet{t: t, dir: t.TempDir()}
	var err error
	f.nats, err = bintest.StartNATS(t.Context(), f.path("."))
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, f.nats.Kill()) })
	f.s3 = s3test.New(t)
	f.chat = chattest.New(t)
	f.startEtcd()
	ports, err := bintest.FreePorts(1)
	require.NoError(t, err)
	f.webhook = fmt.Sprintf("127.0.0.1:%d", ports[0])
	f.write("slack", f.chat.SlackURL())
	f.write("dingtalk", f.chat.DingTalkURL())
	f.write("dingtalk-secret", f.chat.DingTalkSecret())
	f.config = f.write("lifeboat.yaml", fmt.Sprintf(`nats: {url: %q}
store: {bucket: %s, endpoint: %q, path_style: true, access_key_id_file: %q, secret_access_key_file: %q}
targets:
  - name: etcd-prod
    etcd: {endpoints: [%q]}
    timeout: 5m
notifier:
  listen: %s
  receivers:
    - {name: slack, slack: {webhook_url_file: slack}}
    - {name: dingtalk, dingtalk: {webhook_url_file: dingtalk, secret_file: dingtalk-secret}}
  route:
    receiver: slack
    routes:
      - {receiver: slack, matchers: ['severity=~".+"'], continue: true}
      - {receiver: dingtalk, matchers: ['severity=~".+"']}
  runbooks: {base_url: "https://runbooks.example.com"}
`, f.nats.URL, f.s3.Config.Bucket, f.s3.Endpoint, f.s3.Config.AccessKeyIDFile, f.s3.Config.SecretAccessKeyFile,
		f.etcd.Endpoint, f.webhook))
	nc, err := nats.Connect(f.nats.URL, nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond))
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	f.js, err = jetstream.New(nc)
	require.NoError(t, err)
	return f
}

func (f *fleet) path(name string) string { return filepath.Join(f.dir, name) }

func (f *fleet) write(name, content string) string {
	f.t.Helper()
	require.NoError(f.t, os.WriteFile(f.path(name), []byte(content), 0o600))
	return f.path(name)
}

func (f *fleet) startEtcd() {
	f.t.Helper()
	f.etcd = etcdtest.New(f.t, f.path("etcd"))
	var err error
	f.client, err = clientv3.New(clientv3.Config{Endpoints: []string{f.etcd.Endpoint}})
	require.NoError(f.t, err)
	f.t.Cleanup(func() { assert.NoError(f.t, f.client.Close()) })
	for i := range 50 {
		_, err = f.client.Put(f.t.Context(), fmt.Sprintf("/registry/pods/default/app-%d", i), strings.Repeat("x", 2000))
		require.NoError(f.t, err)
	}
}

// process is a service of ours with its log.
type process struct {
	*bintest.Process
	log string
}

// run starts `lifeboat ARGS...` with the fleet's configuration.
func (f *fleet) run(args ...string) *process {
	f.t.Helper()
	p := &process{log: f.path(fmt.Sprintf("%s-%d.log", args[0], time.Now().UnixNano()))}
	var err error
	p.Process, err = bintest.Start(binary, p.log, nil, append(args, "--config", f.config, "--http-addr", "127.0.0.1:0")...)
	require.NoError(f.t, err)
	f.t.Cleanup(func() {
		assert.NoError(f.t, p.Stop())
		if f.t.Failed() {
			b, err := os.ReadFile(p.log)
			f.t.Logf("%s: %v\n%s", p.log, err, b)
		}
	})
	return p
}

// logged waits until a line of the process's log contains a text.
func (p *process) logged(t *testing.T, text string) {
	t.Helper()
	require.Eventually(t, func() bool {
		b, err := os.ReadFile(p.log)
		return err == nil && bytes.Contains(b, []byte(text))
	}, time.Minute, 20*time.Millisecond, "%s never says %q", p.log, text)
}

// command runs `lifeboat ARGS...` to its end.
func (f *fleet) command(args ...string) (out string, exit int) {
	f.t.Helper()
	cmd := exec.CommandContext(f.t.Context(), binary, args...)
	b, err := cmd.CombinedOutput()
	if err != nil {
		var failed *exec.ExitError
		require.ErrorAs(f.t, err, &failed)
	}
	return string(b), cmd.ProcessState.ExitCode()
}

// publish publishes as `nats pub` does, once the services have created the streams and the subject is free.
func (f *fleet) publish(subject string) {
	f.t.Helper()
	var err error
	require.Eventually(f.t, func() bool {
		_, err = f.js.Publish(f.t.Context(), subject, nil)
		return err == nil
	}, time.Minute, 50*time.Millisecond, "publishing %s: %v", subject, err)
}

// last reads the newest message of a subject.
func (f *fleet) last(stream, subject string, into proto.Message) bool {
	ctx, cancel := context.WithTimeout(f.t.Context(), 5*time.Second)
	defer cancel()
	s, err := f.js.Stream(ctx, stream)
	if err != nil {
		return false
	}
	m, err := s.GetLastMsgForSubject(ctx, subject)
	return err == nil && protojson.Unmarshal(m.Data, into) == nil
}

// event waits for an event of a subject and returns the newest.
func (f *fleet) event(subject string) *lifeboatv1.Event {
	f.t.Helper()
	e := &lifeboatv1.Event{}
	require.Eventually(f.t, func() bool {
		return f.last("LIFEBOAT_EVENTS", subject, e)
	}, 60*time.Second, 50*time.Millisecond, "no event %s", subject)
	return e
}

// manifests reads the committed snapshots from the bucket's files, past every line of our code.
func (f *fleet) manifests() []*lifeboatv1.Manifest {
	f.t.Helper()
	paths, err := filepath.Glob(f.s3.Path("etcd-prod/snapshots/*/manifest.json"))
	require.NoError(f.t, err)
	var all []*lifeboatv1.Manifest
	for _, p := range paths {
		b, err := os.ReadFile(p)
		require.NoError(f.t, err)
		m := &lifeboatv1.Manifest{}
		require.NoError(f.t, protojson.Unmarshal(b, m))
		all = append(all, m)
	}
	return all
}

// post sends a webhook as Alertmanager does.
func (f *fleet) post(body any) (status int) {
	f.t.Helper()
	b, ok := body.([]byte)
	if !ok {
		var err error
		b, err = json.Marshal(body)
		require.NoError(f.t, err)
	}
	resp, err := http.Post("http://"+f.webhook+"/api/v1/alertmanager", "application/json", bytes.NewReader(b))
	if err != nil {
		return 0
	}
	require.NoError(f.t, resp.Body.Close())
	return resp.StatusCode
}
