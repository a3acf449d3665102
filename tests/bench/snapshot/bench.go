package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"filippo.io/age"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/s3test"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// bench is the servers that everything is measured on.
type bench struct {
	out    io.Writer
	dir    string
	binary string
	etcd   *bintest.Etcd
	client *clientv3.Client
	nats   *bintest.NATS
	nc     *nats.Conn
	js     jetstream.JetStream
	s3     *s3test.Server
	stops  []func()
	rand   *rand.Rand
	keys   int
	// stored is the newest snapshot's data.
	stored *lifeboatv1.Data
}

func newBench(ctx context.Context, out io.Writer, dir, binary string) (_ *bench, err error) {
	for _, tool := range []string{"etcdctl", "zstd", "rclone"} {
		if _, err = bintest.Find(tool); err != nil {
			return nil, fmt.Errorf("%w, or: apt-get install %s", err, tool)
		}
	}
	seed := rand.Uint64() //nolint:gosec // test data
	fmt.Fprintf(out, "data seed %d\n", seed)
	b := &bench{out: out, dir: dir, binary: binary, rand: rand.New(rand.NewPCG(seed, 3))} //nolint:gosec // test data
	defer func() {
		if err != nil {
			b.stop()
		}
	}()
	// No fsync while it is filled: reading is what is measured.
	if b.etcd, err = bintest.StartEtcd(ctx, b.path("etcd"), "--quota-backend-bytes=8589934592", "--unsafe-no-fsync"); err != nil {
		return nil, err
	}
	b.later(func() { _ = b.etcd.Kill() })
	if b.client, err = clientv3.New(clientv3.Config{Endpoints: []string{b.etcd.Endpoint}, Logger: zap.NewNop()}); err != nil {
		return nil, err
	}
	b.later(func() { _ = b.client.Close() })
	if b.nats, err = bintest.StartNATS(ctx, dir); err != nil {
		return nil, err
	}
	b.later(func() { _ = b.nats.Kill() })
	if b.nc, err = nats.Connect(b.nats.URL); err != nil {
		return nil, err
	}
	b.later(b.nc.Close)
	if b.js, err = jetstream.New(b.nc); err != nil {
		return nil, err
	}
	if b.s3, err = s3test.Start(b.path("s3"), ""); err != nil { //nolint:contextcheck // it lives until Stop
		return nil, err
	}
	b.later(func() { _ = b.s3.Stop() })
	return b, nil
}

func (b *bench) path(name string) string { return filepath.Join(b.dir, name) }

func (b *bench) later(f func()) { b.stops = append(b.stops, f) }

func (b *bench) stop() {
	for _, stop := range slices.Backward(b.stops) {
		stop()
	}
	b.stops = nil
}

// fill adds objects until a snapshot has so many MiB.
func (b *bench) fill(ctx context.Context, mib int) error {
	start := time.Now()
	for {
		st, err := b.client.Status(ctx, b.etcd.Endpoint)
		if err != nil {
			return fmt.Errorf("asking etcd for its size: %w", err)
		}
		if missing := int64(mib)<<20 - st.DbSize; missing <= 0 {
			fmt.Fprintf(b.out, "etcd holds %d keys in %d MiB, filled in %s\n", b.keys, st.DbSize>>20, time.Since(start).Round(time.Millisecond))
			return nil
		}
		for range 20 {
			if err := b.put(ctx, 100); err != nil {
				return err
			}
		}
	}
}

func (b *bench) put(ctx context.Context, n int) error {
	ops := make([]clientv3.Op, n)
	for i := range ops {
		key, value := object(b.rand, b.keys)
		ops[i] = clientv3.OpPut(key, value)
		b.keys++
	}
	if _, err := b.client.Txn(ctx).Then(ops...).Commit(); err != nil {
		return fmt.Errorf("filling etcd: %w", err)
	}
	return nil
}

// memory is the peak of a fresh worker's resident memory, in MiB, over two snapshots.
func (b *bench) memory(ctx context.Context) (float64, error) {
	w, err := b.startWorker(ctx, b.s3.Endpoint, "etcd: {endpoints: ["+strconv.Quote(b.etcd.Endpoint)+"]}")
	if err != nil {
		return 0, err
	}
	defer w.stop()
	for range 2 {
		if _, err = b.snapshot(ctx, w); err != nil {
			return 0, err
		}
	}
	rss, err := peakRSS(w.PID())
	fmt.Fprintf(b.out, "peak memory of the worker: %.1f MiB\n", rss)
	return rss, err
}

// peakRSS is the high-water mark of a process's resident memory, in MiB (proc(5): VmHWM).
func peakRSS(pid int) (float64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			return kib / 1024, err
		}
	}
	return 0, errors.New("no VmHWM in /proc/PID/status")
}

// times measures the raw stream, the stock tools and a snapshot in turn, so that a noisy neighbour meets all of them.
func (b *bench) times(ctx context.Context, rounds int, f *figures) error {
	w, err := b.startWorker(ctx, b.s3.Endpoint, "etcd: {endpoints: ["+strconv.Quote(b.etcd.Endpoint)+"]}")
	if err != nil {
		return err
	}
	defer w.stop()
	var raws, snapshots, stocks []time.Duration
	for i := range rounds {
		spent := b.cpu(w)
		raw, n, err := b.raw(ctx)
		if err != nil {
			return err
		}
		spent("raw stream")
		spent = b.cpu(w)
		took, err := b.snapshot(ctx, w)
		if err != nil {
			return err
		}
		spent("snapshot, with its read-back")
		stock, err := b.stock(ctx)
		if err != nil {
			return err
		}
		fmt.Fprintf(b.out, "round %d: raw %.2f s (%.0f MiB/s), snapshot %.2f s, stock tools %.2f s\n", i+1, raw.Seconds(),
			float64(n>>20)/raw.Seconds(), took.Seconds(), stock.Seconds())
		raws, snapshots, stocks = append(raws, raw), append(snapshots, took), append(stocks, stock)
	}
	fmt.Fprintf(b.out, "%d MiB of etcd are %d MiB in S3\n", b.stored.GetRaw().GetBytes()>>20, b.stored.GetStored().GetBytes()>>20)
	f.RawS, f.SnapshotS, f.StockS = median(raws).Seconds(), median(snapshots).Seconds(), median(stocks).Seconds()
	f.Ratio, f.Speedup = f.SnapshotS/f.RawS, f.StockS/f.SnapshotS
	return nil
}

// cpu starts to count the processor time of everybody involved; what it returns prints it.
func (b *bench) cpu(w *worker) func(what string) {
	names := []string{"etcd", "worker", "this process (raw reader and S3)"}
	pids := []int{b.etcd.PID(), w.PID(), os.Getpid()}
	var before [3]float64
	for i, pid := range pids {
		before[i] = cpuSeconds(pid)
	}
	return func(what string) {
		fmt.Fprintf(b.out, "  processor time of the %s:", what)
		for i, pid := range pids {
			fmt.Fprintf(b.out, " %s %.2f s", names[i], cpuSeconds(pid)-before[i])
		}
		fmt.Fprintln(b.out)
	}
}

// cpuSeconds is a process's user and system time (proc(5): stat, fields 14 and 15, in ticks of 10 ms).
func cpuSeconds(pid int) float64 {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The second field is a name in parentheses and may hold blanks.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	var ticks float64
	for _, f := range fields[11:13] {
		n, err := strconv.ParseFloat(f, 64)
		if err != nil {
			return 0
		}
		ticks += n
	}
	return ticks / 100
}

// raw reads a snapshot to nowhere.
func (b *bench) raw(ctx context.Context) (time.Duration, int64, error) {
	start := time.Now()
	s, err := b.client.SnapshotWithVersion(ctx)
	if err != nil {
		return 0, 0, fmt.Errorf("opening the raw stream: %w", err)
	}
	defer s.Snapshot.Close()
	n, err := io.Copy(io.Discard, s.Snapshot)
	if err != nil {
		return 0, n, fmt.Errorf("reading the raw stream: %w", err)
	}
	return time.Since(start), n, nil
}

// stock does with the stock tools what a cron script does: save, compress, upload.
func (b *bench) stock(ctx context.Context) (time.Duration, error) {
	id, err := b.s3.Config.AccessKeyIDFile.Read()
	if err != nil {
		return 0, err
	}
	secret, err := b.s3.Config.SecretAccessKeyFile.Read()
	if err != nil {
		return 0, err
	}
	// rclone refuses its own HTTP client when AWS_CA_BUNDLE is set, even for plain http.
	env := slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "AWS_") })
	env = append(env, "RCLONE_CONFIG_S3_TYPE=s3", "RCLONE_CONFIG_S3_PROVIDER=Other", "RCLONE_CONFIG_S3_ENDPOINT="+b.s3.Endpoint,
		"RCLONE_CONFIG_S3_ACCESS_KEY_ID="+id, "RCLONE_CONFIG_S3_SECRET_ACCESS_KEY="+secret, "RCLONE_CONFIG_S3_REGION=us-east-1",
		"RCLONE_CONFIG="+b.path("rclone.conf"))
	file := b.path("stock.db")
	defer os.Remove(file + ".zst")
	defer os.Remove(file)
	start := time.Now()
	for _, command := range [][]string{
		{"etcdctl", "--endpoints", b.etcd.Endpoint, "snapshot", "save", file},
		{"zstd", "-q", "-T2", file, "-o", file + ".zst"},
		{"rclone", "copyto", "--expect-continue-timeout", "0", "--s3-no-check-bucket", file + ".zst", "s3:" + s3test.Bucket + "/stock.db.zst"},
	} {
		path, err := bintest.Find(command[0])
		if err != nil {
			return 0, err
		}
		cmd := exec.CommandContext(ctx, path, command[1:]...)
		cmd.Env = env
		if out, err := cmd.CombinedOutput(); err != nil {
			return 0, fmt.Errorf("%s: %w\n%s", command[0], err, out)
		}
	}
	return time.Since(start), nil
}

// worker is a process that takes snapshots of one target.
type worker struct {
	*bintest.Process
	target string
	log    string
}

func (w *worker) stop() { _ = w.Stop() }

func (b *bench) startWorker(ctx context.Context, endpoint, source string) (*worker, error) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(b.dir, "worker-")
	if err != nil {
		return nil, err
	}
	name := strings.ToLower(filepath.Base(dir))
	conf := fmt.Sprintf("nats: {url: %q}\nstore: {bucket: %s, endpoint: %q, path_style: true, access_key_id_file: %q, secret_access_key_file: %q}\n"+
		"encryption: {recipients: [%s]}\ntargets:\n  - name: %s\n    %s\n", b.nats.URL, s3test.Bucket, endpoint, b.s3.Config.AccessKeyIDFile,
		b.s3.Config.SecretAccessKeyFile, id.Recipient(), name, source)
	path := filepath.Join(dir, "lifeboat.yaml")
	if err = os.WriteFile(path, []byte(conf), 0o600); err != nil {
		return nil, err
	}
	ports, err := bintest.FreePorts(1)
	if err != nil {
		return nil, err
	}
	w := &worker{target: name, log: filepath.Join(dir, "worker.log")}
	addr := fmt.Sprintf("127.0.0.1:%d", ports[0])
	w.Process, err = bintest.Start(b.binary, w.log, nil, "backup", "--config", path, "--roles", "snapshot", "--http-addr", addr)
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

// snapshot asks for one and gives the time from its start to its commit, without reading back.
func (b *bench) snapshot(ctx context.Context, w *worker) (time.Duration, error) {
	// Something changes, or there would be nothing to store.
	if _, err := b.client.Put(ctx, "/registry/changed", time.Now().String()); err != nil {
		return 0, fmt.Errorf("changing a key: %w", err)
	}
	m, err := b.commit(ctx, w)
	if err != nil {
		return 0, err
	}
	b.stored = m.GetData()
	return m.GetUploadedAt().AsTime().Sub(m.GetStartedAt().AsTime()) + m.GetCommittedAt().AsTime().Sub(m.GetVerification().GetAt().AsTime()), nil
}

// commit has a worker take a snapshot and waits for it.
func (b *bench) commit(ctx context.Context, w *worker) (*lifeboatv1.Manifest, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	// Failures too: waiting for a success that does not come would say nothing.
	sub, err := b.nc.SubscribeSync("lifeboat.event.*.*." + w.target)
	if err != nil {
		return nil, err
	}
	defer func() { _ = sub.Unsubscribe() }()
	for {
		if _, err = b.js.Publish(ctx, "lifeboat.job.snapshot."+w.target, nil); err == nil {
			break
		}
		if ctx.Err() != nil || !strings.Contains(err.Error(), "maximum messages per subject") {
			return nil, fmt.Errorf("asking for a snapshot: %w", err)
		}
	}
	for {
		m, err := sub.NextMsgWithContext(ctx)
		if err != nil {
			return nil, fmt.Errorf("waiting for a snapshot (log: %s): %w", w.log, err)
		}
		e := &lifeboatv1.Event{}
		if err := protojson.Unmarshal(m.Data, e); err != nil {
			return nil, fmt.Errorf("reading an event: %w", err)
		}
		switch e.GetVerb() {
		case "committed":
			return e.GetManifest(), nil
		case "failed", "interrupted", "rejected":
			return nil, fmt.Errorf("%s %s: %s", e.GetNoun(), e.GetVerb(), e.GetMessage())
		}
	}
}
