package testbed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"filippo.io/age"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/s3test"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// Target is one thing that is backed up, encrypted for a key of its own.
type Target struct {
	Name string
	// Config is the configuration of somebody who cannot decrypt, Keyed that of somebody who can.
	Config, Keyed string
	// IdentityFile holds the age identity.
	IdentityFile string
	dir          string
}

// NewTarget configures one. endpoint is S3's; source is the target's own block, as `etcd: {endpoints: [...]}`.
func (b *Bed) NewTarget(endpoint, source string) (*Target, error) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(b.dir, "target-")
	if err != nil {
		return nil, err
	}
	t := &Target{
		Name: strings.ToLower(filepath.Base(dir)), Config: filepath.Join(dir, "lifeboat.yaml"), Keyed: filepath.Join(dir, "keyed.yaml"),
		IdentityFile: filepath.Join(dir, "identity"), dir: dir,
	}
	for path, more := range map[string]string{t.Config: "", t.Keyed: fmt.Sprintf(", identity_file: %q", t.IdentityFile)} {
		conf := fmt.Sprintf("nats: {url: %q}\nstore: {bucket: %s, endpoint: %q, path_style: true, access_key_id_file: %q, secret_access_key_file: %q}\n"+
			"encryption: {recipients: [%s]%s}\ntargets:\n  - name: %s\n    %s\n", b.NATS.URL, s3test.Bucket, endpoint, b.S3.Config.AccessKeyIDFile,
			b.S3.Config.SecretAccessKeyFile, id.Recipient(), more, t.Name, source)
		if err := os.WriteFile(path, []byte(conf), 0o600); err != nil {
			return nil, err
		}
	}
	return t, os.WriteFile(t.IdentityFile, []byte(id.String()+"\n"), 0o600)
}

// Worker is a process that works on one target.
type Worker struct {
	*bintest.Process
	Target *Target
	log    string
}

// Stop ends the process.
func (w *Worker) Stop() { _ = w.Process.Stop() }

// StartWorker starts one for a role and waits until it is ready. Only one for drills can decrypt.
func (b *Bed) StartWorker(ctx context.Context, t *Target, role string) (*Worker, error) {
	ports, err := bintest.FreePorts(1)
	if err != nil {
		return nil, err
	}
	conf := t.Config
	if role == "drill" {
		conf = t.Keyed
	}
	w := &Worker{Target: t, log: filepath.Join(t.dir, role+".log")}
	addr := fmt.Sprintf("127.0.0.1:%d", ports[0])
	w.Process, err = bintest.Start(b.Binary, w.log, nil, "backup", "--config", conf, "--roles", role, "--http-addr", addr,
		"--scratch-dir", filepath.Join(t.dir, "scratch"))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := w.WaitHTTP(ctx, "http://"+addr+"/readyz", nil); err != nil {
		return nil, errors.Join(err, w.Kill())
	}
	return w, nil
}

// Snapshot has a worker take one and waits for it.
func (b *Bed) Snapshot(ctx context.Context, w *Worker) (*lifeboatv1.Manifest, error) {
	e, err := b.job(ctx, w, "snapshot", "committed")
	return e.GetManifest(), err
}

// Drill has a worker drill the newest snapshot and waits for it to pass.
func (b *Bed) Drill(ctx context.Context, w *Worker) (*lifeboatv1.DrillReport, error) {
	e, err := b.job(ctx, w, "drill", "passed")
	return e.GetDrill(), err
}

// job asks for something by its subject and waits for the event that says that it is done.
func (b *Bed) job(ctx context.Context, w *Worker, work, done string) (*lifeboatv1.Event, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	// Failures too: waiting for a success that does not come would say nothing.
	sub, err := b.Conn.SubscribeSync("lifeboat.event.*.*." + w.Target.Name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = sub.Unsubscribe() }()
	for {
		if _, err = b.JetStream.Publish(ctx, "lifeboat.job."+work+"."+w.Target.Name, nil); err == nil {
			break
		}
		if ctx.Err() != nil || !strings.Contains(err.Error(), "maximum messages per subject") {
			return nil, fmt.Errorf("asking for a %s: %w", work, err)
		}
	}
	for {
		m, err := sub.NextMsgWithContext(ctx)
		if err != nil {
			return nil, fmt.Errorf("waiting for a %s (log: %s): %w", work, w.log, err)
		}
		e := &lifeboatv1.Event{}
		if err := protojson.Unmarshal(m.Data, e); err != nil {
			return nil, fmt.Errorf("reading an event: %w", err)
		}
		switch e.GetVerb() {
		case done:
			return e, nil
		case "failed", "interrupted", "rejected":
			return nil, fmt.Errorf("%s %s: %s", e.GetNoun(), e.GetVerb(), e.GetMessage())
		}
	}
}
