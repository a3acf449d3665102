package app

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	agecrypt "filippo.io/age"
	"github.com/klauspost/compress/zstd"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/s3test"
	"github.com/lifeboat-fleet/lifeboat/fleet/service"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/catalog"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store/s3"
)

// The scripts under testdata/script run the real command in a process of its own.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"lifeboat": func() { os.Exit(service.Main(root())) }, //nolint:forbidigo // a process of its own
	})
}

func root() *cobra.Command {
	cmd := &cobra.Command{Use: "lifeboat"}
	cmd.AddCommand(StatusCommand(nil), SnapshotCommand(), DrillCommand(), RestoreCommand(), PruneCommand(), Command())
	return cmd
}

const (
	etcdTarget   = "etcd-prod"
	consulTarget = "consul-kv"
	nomadTarget  = "nomad-jobs"
)

// lab is a bucket with a configuration, and snapshots that were made with the stock libraries of zstd and age.
type lab struct {
	server   *s3test.Server
	objects  *s3.Store
	catalog  *catalog.Catalog
	prefix   string
	dir      string
	identity *agecrypt.X25519Identity
	made     atomic.Int64
}

// newLab keeps everything of one test below a prefix; files are written into dir.
func newLab(server *s3test.Server, prefix, dir string) (*lab, error) {
	l := &lab{server: server, prefix: prefix, dir: dir}
	var err error
	if l.objects, err = s3.New(context.Background(), server.Config); err != nil {
		return nil, err
	}
	l.catalog = catalog.New(l.objects, prefix)
	if l.identity, err = agecrypt.GenerateX25519Identity(); err != nil {
		return nil, err
	}
	for name, content := range map[string]string{
		"lifeboat.key": l.identity.String() + "\n", "lifeboat.yaml": l.yaml(server.Config),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			return nil, err
		}
	}
	return l, nil
}

func labFor(t *testing.T) *lab {
	t.Helper()
	l, err := newLab(s3test.New(t, s3test.WithBuckets("copies")), "p", t.TempDir())
	require.NoError(t, err)
	return l
}

// yaml is a configuration whose first bucket is reached as cfg says.
func (l *lab) yaml(cfg config.ObjectStore) string {
	bucket := func(cfg config.ObjectStore, prefix string) string {
		return fmt.Sprintf("{bucket: %s, prefix: %s, endpoint: %q, region: %s, path_style: true, "+
			"access_key_id_file: %s, secret_access_key_file: %s", cfg.Bucket, prefix, cfg.Endpoint, cfg.Region,
			cfg.AccessKeyIDFile, cfg.SecretAccessKeyFile)
	}
	second := l.server.Config
	second.Bucket = "copies"
	return "store: " + bucket(cfg, l.prefix) + ", copy: " + bucket(second, "elsewhere") + "}}\n" +
		"targets:\n  - name: " + etcdTarget + "\n    etcd: {endpoints: [\"http://127.0.0.1:1\"]}\n    retention: {last: 1}\n" +
		"  - name: " + consulTarget + "\n    consul: {address: \"http://127.0.0.1:1\"}\n" +
		"  - name: " + nomadTarget + "\n    nomad: {address: \"http://127.0.0.1:1\"}\n"
}

// through lets the commands reach the bucket through a proxy.
func (l *lab) through(t *testing.T, p *s3test.Proxy) {
	t.Helper()
	require.NoError(t, os.WriteFile(filepath.Join(l.dir, "lifeboat.yaml"), []byte(l.yaml(p.Config)), 0o600))
}

// plan is what to make of a snapshot.
type plan struct {
	// target is etcdTarget when empty.
	target    string
	raw       []byte
	encrypted bool
	// snap is a further part; none when nil.
	snap      []byte
	unchanged *lifeboatv1.Manifest
	keys      int64
}

// commit makes a snapshot. Their ids are in the order in which they are made.
func (l *lab) commit(ctx context.Context, p plan) (*lifeboatv1.Manifest, error) {
	kinds := map[string]lifeboatv1.Kind{
		etcdTarget: lifeboatv1.Kind_KIND_ETCD, consulTarget: lifeboatv1.Kind_KIND_CONSUL, nomadTarget: lifeboatv1.Kind_KIND_NOMAD,
	}
	formats := map[string]string{etcdTarget: "db", consulTarget: "json", nomadTarget: "tar"}
	p.target = cmp.Or(p.target, etcdTarget)
	n := l.made.Add(1)
	at := time.Date(2026, 11, 20, 4, 0, 0, 0, time.UTC).Add(time.Duration(n) * time.Hour)
	id := fmt.Sprintf("%s-%08x", at.Format("20060102T150405.000Z"), n)
	m := &lifeboatv1.Manifest{
		Format: catalog.Format, Id: id, Target: p.target, Kind: kinds[p.target], JobId: id,
		StartedAt: timestamppb.New(at), UploadedAt: timestamppb.New(at.Add(time.Second)),
		CommittedAt: timestamppb.New(at.Add(2 * time.Second)), LifeboatVersion: "v1.2.3",
		Source: &lifeboatv1.SourceInfo{
			Version: "3.7.3", Revision: 42, Identity: map[string]string{"cluster": "c1", "member": "m1"},
			Counts:     map[string]int64{"keys": p.keys},
			EtcdHealth: &lifeboatv1.EtcdHealth{Alarms: []string{"NOSPACE member m1"}, DbBytes: 20 << 20, DbBytesInUse: 10 << 20, QuotaBytes: 2 << 30},
			Worries:    []string{"the quota is nearly used\x1b[2J"}, Missing: []string{"users: not allowed to list them"},
		},
		Verification: &lifeboatv1.Verification{At: timestamppb.New(at.Add(time.Second)), Method: "decoded", Bytes: 1},
		Store: &lifeboatv1.StoreCapabilities{
			ConditionalWrites: true, Endpoint: l.server.Endpoint, Bucket: s3test.Bucket, Versioning: "off", ObjectLock: "off",
		},
	}
	var err error
	if p.unchanged != nil {
		m.Data = proto.CloneOf(p.unchanged.Data)
		m.Data.UnchangedSince = p.unchanged.Id
	} else if m.Data, err = l.put(ctx, p.target, id, formats[p.target], p.raw, p.encrypted); err != nil {
		return nil, err
	}
	if p.snap != nil {
		part, err := l.put(ctx, p.target, id, formatRaft, p.snap, p.encrypted)
		if err != nil {
			return nil, err
		}
		part.Source = &lifeboatv1.SourceInfo{Version: "1.22.5", Revision: 7}
		m.Parts = append(m.Parts, part)
	}
	m.RestoreCommands = append(l.restore(m.Data), "etcdutl snapshot restore etcd-prod.db --data-dir DATA_DIR")
	if p.snap != nil {
		m.RestoreCommands = append(m.RestoreCommands, "# or all of it:")
		m.RestoreCommands = append(append(m.RestoreCommands, l.restore(m.Parts[0])...), "consul snapshot restore etcd-prod.snap")
	}
	return m, l.catalog.Commit(ctx, m)
}

// restore are the commands up to the plain file, as a worker writes them.
func (l *lab) restore(d *lifeboatv1.Data) []string {
	object, plain := path.Base(d.Key), etcdTarget+"."+d.Format
	decode := fmt.Sprintf("zstd -d %s -o %s", object, plain)
	if len(d.Recipients) > 0 {
		decode = fmt.Sprintf("age -d -i IDENTITY_FILE %s | zstd -d -o %s", object, plain)
	}
	return []string{
		fmt.Sprintf("aws --endpoint-url %s s3 cp s3://lifeboat/%s %s", l.server.Endpoint, d.Key, object),
		fmt.Sprintf("echo '%s  %s' | sha256sum -c", d.Stored.Sha256, object), decode,
	}
}

func (l *lab) put(ctx context.Context, target, id, format string, raw []byte, encrypted bool) (*lifeboatv1.Data, error) {
	var stored bytes.Buffer
	d := &lifeboatv1.Data{Key: l.catalog.Data(target, id, format, encrypted), Format: format, Compression: "zstd"}
	z, err := zstd.NewWriter(nil)
	if err != nil {
		return nil, err
	}
	frame := z.EncodeAll(raw, nil)
	if encrypted {
		d.Recipients = []string{l.identity.Recipient().String()}
		w, failed := agecrypt.Encrypt(&stored, l.identity.Recipient())
		if failed != nil {
			return nil, failed
		}
		_, err = w.Write(frame)
		if err = errors.Join(err, w.Close()); err != nil {
			return nil, err
		}
	} else {
		stored.Write(frame)
	}
	d.Raw, d.Stored = digest(raw), digest(stored.Bytes())
	_, err = l.objects.Put(ctx, d.Key, bytes.NewReader(stored.Bytes()), int64(stored.Len()), store.Condition{})
	return d, err
}

func digest(b []byte) *lifeboatv1.Digest {
	sum := sha256.Sum256(b)
	return &lifeboatv1.Digest{Bytes: int64(len(b)), Sha256: hex.EncodeToString(sum[:])}
}

func (l *lab) mustCommit(t *testing.T, p plan) *lifeboatv1.Manifest {
	t.Helper()
	m, err := l.commit(t.Context(), p)
	require.NoError(t, err)
	return m
}

// drilled adds a drill's report.
func (l *lab) drilled(ctx context.Context, m *lifeboatv1.Manifest, passed bool) error {
	r := &lifeboatv1.DrillReport{
		Format: catalog.Format, Id: "drill-of-" + m.Id, Target: m.Target, SnapshotId: m.Id, Kind: m.Kind, Passed: passed,
		Level: lifeboatv1.DrillReport_LEVEL_RESTORED, Rto: durationpb.New(1500 * time.Millisecond), JobId: "drill-of-" + m.Id,
		StartedAt:  timestamppb.New(m.CommittedAt.AsTime().Add(time.Hour - 2*time.Second)),
		FinishedAt: timestamppb.New(m.CommittedAt.AsTime().Add(time.Hour)), Summary: "restored and compared 3 keys", Identity: "worker",
		DataAge: durationpb.New(59 * time.Minute), MaxRto: durationpb.New(time.Minute), Isolation: "in process", RequestedBy: "scheduler",
		Usage: &lifeboatv1.Usage{DiskBytes: 3 << 20, DiskBudget: 1 << 30, MemoryBytes: 5 << 20},
		Phases: []*lifeboatv1.Phase{
			{Name: "fetch", Began: durationpb.New(0), Took: durationpb.New(time.Second)},
			{Name: "decrypt", Began: durationpb.New(0), Took: durationpb.New(time.Second)},
			{Name: "compare", Began: durationpb.New(1500 * time.Millisecond), Took: durationpb.New(500 * time.Millisecond)},
		},
		Comparisons: []*lifeboatv1.Comparison{
			{What: "keys", Want: "3", Got: "3", Ok: true},
			{What: "HashKV", Ok: true, NotComparable: "the manifest does not say"},
			{What: "key /registry/a", Want: "exists", Got: "exists", Ok: true, Check: true},
		},
	}
	if !passed {
		r.Failure, r.FailedPhase = "compare: the hash differs", "compare"
		r.Comparisons = append(r.Comparisons, &lifeboatv1.Comparison{What: "revision", Want: "42", Got: "41"})
	}
	return l.catalog.AddDrill(ctx, r)
}

// flip changes a bit of a stored object on the server's disk.
func (l *lab) flip(key string) error {
	file := l.server.Path(key)
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	b[len(b)/2] ^= 1
	return os.WriteFile(file, b, 0o600)
}

// random does not compress, so that what is stored is as long as what was sent.
func random(t *testing.T, n int) []byte {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, seed))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// lifeboat runs a command in this process and gives what it wrote and its exit code.
func (l *lab) lifeboat(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := root()
	cmd.SetOut(&out)
	cmd.SetErr(&errs)
	cmd.SetArgs(append(args, "--config", filepath.Join(l.dir, "lifeboat.yaml")))
	code = service.Main(cmd)
	t.Logf("lifeboat %s: exit %d\n%s%s", strings.Join(args, " "), code, out.String(), errs.String())
	return out.String(), errs.String(), code
}

// copyTo puts a snapshot into another bucket, as a worker does: its manifest there names the objects there.
func (l *lab) copyTo(ctx context.Context, m *lifeboatv1.Manifest, bucket, prefix string) error {
	cfg := l.server.Config
	cfg.Bucket = bucket
	objects, err := s3.New(ctx, cfg)
	if err != nil {
		return err
	}
	there := catalog.New(objects, prefix)
	moved := proto.CloneOf(m)
	for _, d := range allData(moved) {
		r, _, err := l.objects.Get(ctx, d.Key)
		if err != nil {
			return err
		}
		d.Key = there.Rebase(l.catalog.Layout, d.Key)
		_, err = objects.Put(ctx, d.Key, r, d.Stored.Bytes, store.Condition{})
		if err = errors.Join(err, r.Close()); err != nil {
			return err
		}
	}
	return there.Commit(ctx, moved)
}
