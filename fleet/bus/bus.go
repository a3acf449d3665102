// Package bus is how Lifeboat's services talk: NATS JetStream subjects and streams, publishing, consuming with
// heartbeats, dead letters, and the two protocols that need more than one message: the atomic batch of a tick (batch.go)
// and the claim that fences a worker before it commits (claim.go).
//
// Delivery is at least once. A handler may see a message again after a crash; identities that are derived from the
// message (ID, message ids) make the second time harmless.
package bus

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"strings"
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
	metrics  *metrics
}

// Options say who connects and where.
type Options struct {
	Config config.NATS
	// Actor names the service and instance, as "lifeboat-backup@host"; it signs events and dead letters.
	Actor      string
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Connect starts connecting and returns at once: while no server answers it keeps trying, for ever, and Ready says so.
// It fails only on settings that can never work, such as a credentials file that does not exist.
func Connect(o Options) (*Bus, error) {
	log := o.Logger.With(slog.String("nats_url", o.Config.URL))
	opts := []nats.Option{
		nats.Name(o.Actor),
		nats.MaxReconnects(-1),
		nats.RetryOnFailedConnect(true),
		nats.ReconnectWait(500 * time.Millisecond),
		nats.ReconnectJitter(100*time.Millisecond, time.Second),
		nats.Timeout(5 * time.Second),
		nats.ConnectHandler(func(*nats.Conn) { log.Info("connected to NATS") }),
		nats.ReconnectHandler(func(*nats.Conn) { log.Info("reconnected to NATS") }),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				log.Warn("lost NATS, reconnecting", slog.Any("err", err))
			}
		}),
		nats.ReconnectErrHandler(func(_ *nats.Conn, err error) {
			log.Warn("NATS does not answer, trying again", slog.Any("err", err))
		}),
		// A denied permission shows up as a time-out at the caller; only this handler is told the reason.
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			log.Error("NATS reports an error", slog.Any("err", err))
		}),
	}
	if o.Config.CredsFile != "" {
		if _, err := o.Config.CredsFile.Read(); err != nil {
			return nil, fmt.Errorf("nats.creds_file: %w", err)
		}
		opts = append(opts, nats.UserCredentials(string(o.Config.CredsFile)))
	}
	tlsConfig, err := o.Config.TLS.Client()
	if err != nil {
		return nil, fmt.Errorf("nats.tls: %w", err)
	}
	if tlsConfig != nil {
		opts = append(opts, nats.Secure(tlsConfig))
	} else if strings.HasPrefix(o.Config.URL, "tls://") {
		opts = append(opts, nats.Secure(&tls.Config{MinVersion: tls.VersionTLS12}))
	}
	nc, err := nats.Connect(o.Config.URL, opts...)
	if err != nil {
		return nil, fmt.Errorf("connecting to NATS at %s: %w", o.Config.URL, err)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		nc.Close()
		return nil, fmt.Errorf("opening JetStream: %w", err)
	}
	return &Bus{
		nc: nc, js: js, log: o.Logger, actor: o.Actor, replicas: max(o.Config.Replicas, 1), url: o.Config.URL,
		metrics: newMetrics(o.Registerer),
	}, nil
}

// Actor is the name that signs this connection's events.
func (b *Bus) Actor() string { return b.actor }

// Ready reports whether the server answers and JetStream with our streams is there.
func (b *Bus) Ready(ctx context.Context) error {
	if !b.nc.IsConnected() {
		if err := b.nc.LastError(); err != nil {
			return fmt.Errorf("NATS at %s is not connected: %w", b.url, err)
		}
		return fmt.Errorf("NATS at %s is not connected", b.url)
	}
	for _, name := range []string{StreamJobs, StreamEvents, StreamAlerts, StreamDead} {
		if _, err := b.js.Stream(ctx, name); err != nil {
			return fmt.Errorf("stream %s: %w", name, err)
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
