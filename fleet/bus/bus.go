// Package bus is how Lifeboat's services talk: NATS JetStream subjects and streams, publishing, consuming with
// heartbeats, dead letters, and the two protocols that need more than one message: the atomic batch of a tick (batch.go)
// and the claim that fences a worker before it commits (claim.go).
//
// Delivery is at least once. A handler may see a message again after a crash; identities that are derived from the
// message (ID, message ids) make the second time harmless.
package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
)

// Bus is one service's connection. It is safe for concurrent use.
type Bus struct {
	nc       *nats.Conn
	js       jetstream.JetStream
	log      *slog.Logger
	actor    string
	replicas int
	url      string
	monitor  *monitor
	denials  *denials
	metrics  *metrics
	// refused are the updates of streams that this user may not do, by stream, and told the last word on durability: each is
	// logged once.
	mu      sync.Mutex
	refused map[string]string
	told    string
	// kept are the streams' handles, by name.
	kept  sync.Map
	slots map[config.Work]slotLine
}

// Options say who connects and where.
type Options struct {
	Config config.NATS
	// Actor names the service and instance, as "lifeboat-backup@host:4711"; it signs events and dead letters.
	Actor string
	// Role is what stands for {role} in nats.inbox_prefix; when empty the service's name in Actor without "lifeboat-".
	Role       string
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

func (o Options) role() string {
	if o.Role != "" {
		return o.Role
	}
	name, _, _ := strings.Cut(o.Actor, "@")
	return strings.TrimPrefix(name, "lifeboat-")
}

// Actor is the name that signs this connection's events.
func (b *Bus) Actor() string { return b.actor }

// Connected reports whether there is a connection now, for who would rather do without than wait for one.
func (b *Bus) Connected() error {
	if b.nc.IsConnected() {
		return nil
	}
	// The library's handlers are not told of a handshake that failed, and what it keeps itself is often only that the server
	// hung up after it had given the reason.
	err := b.nc.LastError()
	if told := b.denials.whyAway(); told != nil && !errors.Is(err, nats.ErrTLS) {
		err = told
	}
	if err != nil && !errors.Is(err, nats.ErrPermissionViolation) {
		return fmt.Errorf("NATS at %s is not connected: %w", b.url, err)
	}
	return fmt.Errorf("NATS at %s is not connected", b.url)
}

// reachTimeout is how long Reach waits.
const reachTimeout = 5 * time.Second

// Reach waits until there is a connection, and says after five seconds why there is none: the library itself would wait for ever. It is
// for a person's command.
func (b *Bus) Reach(ctx context.Context) error {
	late := time.NewTimer(reachTimeout)
	defer late.Stop()
	look := time.NewTicker(10 * time.Millisecond)
	defer look.Stop()
	for {
		err := b.Connected()
		if err == nil {
			return nil
		}
		select {
		case <-look.C:
		case <-late.C:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Ready reports whether the server answers and JetStream with our streams is there.
func (b *Bus) Ready(ctx context.Context) error {
	if err := b.Connected(); err != nil {
		return err
	}
	for _, name := range streams() {
		if _, err := b.stream(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// Close flushes what was published and closes the connection.
func (b *Bus) Close() error {
	if b.nc.IsClosed() {
		return nil
	}
	var err error
	if b.nc.IsConnected() {
		err = b.nc.FlushTimeout(2 * time.Second)
	}
	b.nc.Close()
	if err != nil && !errors.Is(err, nats.ErrConnectionClosed) {
		return fmt.Errorf("flushing NATS: %w", err)
	}
	return nil
}
