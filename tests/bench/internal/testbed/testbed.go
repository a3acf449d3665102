// Package testbed is what the benchmarks measure on: an etcd with objects as Kubernetes keeps them, NATS, S3 in this process, and
// lifeboat's services as processes, all of them on loopback and with their data in one folder.
package testbed

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/s3test"
)

// Bed is the servers that everything is measured on.
type Bed struct {
	// Out is told what is done.
	Out io.Writer
	// Binary is the lifeboat that is measured.
	Binary string
	Etcd   *bintest.Etcd
	Client *clientv3.Client
	S3     *s3test.Server
	// NATS is one server with its storage in files; Conn and JetStream talk to it.
	NATS      *bintest.NATS
	Conn      *nats.Conn
	JetStream jetstream.JetStream

	dir   string
	stops []func()
	rand  *rand.Rand
	keys  int
}

// New starts the servers with their data in dir. tools are programs that will be needed besides.
func New(ctx context.Context, out io.Writer, dir, binary string, tools ...string) (_ *Bed, err error) {
	seed := rand.Uint64() //nolint:gosec // test data
	fmt.Fprintf(out, "data seed %d\n", seed)
	b, err := NewFleet(ctx, out, dir, binary, tools...)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			b.Stop()
		}
	}()
	b.rand = rand.New(rand.NewPCG(seed, 3)) //nolint:gosec // test data
	// No fsync while it is filled: reading is what is measured.
	if b.Etcd, err = bintest.StartEtcd(ctx, b.Path("etcd"), "--quota-backend-bytes=8589934592", "--unsafe-no-fsync"); err != nil {
		return nil, err
	}
	b.Later(func() { _ = b.Etcd.Kill() })
	if b.Client, err = clientv3.New(clientv3.Config{Endpoints: []string{b.Etcd.Endpoint}, Logger: zap.NewNop()}); err != nil {
		return nil, err
	}
	b.Later(func() { _ = b.Client.Close() })
	return b, nil
}

// NewFleet is New with only what the services talk to each other through: NATS and S3, and no source.
func NewFleet(ctx context.Context, out io.Writer, dir, binary string, tools ...string) (_ *Bed, err error) {
	for _, tool := range tools {
		if _, err = bintest.Find(tool); err != nil {
			return nil, fmt.Errorf("%w, or: apt-get install %s", err, tool)
		}
	}
	b := &Bed{Out: out, dir: dir, Binary: binary}
	defer func() {
		if err != nil {
			b.Stop()
		}
	}()
	if b.NATS, err = bintest.StartNATS(ctx, dir); err != nil {
		return nil, err
	}
	b.Later(func() { _ = b.NATS.Kill() })
	if b.Conn, err = nats.Connect(b.NATS.URL); err != nil {
		return nil, err
	}
	b.Later(b.Conn.Close)
	if b.JetStream, err = jetstream.New(b.Conn); err != nil {
		return nil, err
	}
	if b.S3, err = s3test.Start(b.Path("s3"), ""); err != nil { //nolint:contextcheck // it lives until Stop
		return nil, err
	}
	b.Later(func() { _ = b.S3.Stop() })
	return b, nil
}

// Path is a name in the folder of all data.
func (b *Bed) Path(name string) string { return filepath.Join(b.dir, name) }

// Later has f run by Stop, before what was given earlier.
func (b *Bed) Later(f func()) { b.stops = append(b.stops, f) }

// Stop ends everything that was started.
func (b *Bed) Stop() {
	for _, stop := range slices.Backward(b.stops) {
		stop()
	}
	b.stops = nil
}

// Fill adds objects to etcd until a snapshot has so many MiB.
func (b *Bed) Fill(ctx context.Context, mib int) error {
	start := time.Now()
	for {
		st, err := b.Client.Status(ctx, b.Etcd.Endpoint)
		if err != nil {
			return fmt.Errorf("asking etcd for its size: %w", err)
		}
		if missing := int64(mib)<<20 - st.DbSize; missing <= 0 {
			fmt.Fprintf(b.Out, "etcd holds %d keys in %d MiB, filled in %s\n", b.keys, st.DbSize>>20, time.Since(start).Round(time.Millisecond))
			return nil
		}
		for range 20 {
			if err := b.put(ctx, 100); err != nil {
				return err
			}
		}
	}
}

func (b *Bed) put(ctx context.Context, n int) error {
	ops := make([]clientv3.Op, n)
	for i := range ops {
		key, value := object(b.rand, b.keys)
		ops[i] = clientv3.OpPut(key, value)
		b.keys++
	}
	if _, err := b.Client.Txn(ctx).Then(ops...).Commit(); err != nil {
		return fmt.Errorf("filling etcd: %w", err)
	}
	return nil
}
