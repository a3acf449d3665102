// Package ops holds the operator's commands that ask the fleet itself, over NATS: which jobs wait or run, what was put aside as a
// dead letter, why a target has or lacks a snapshot, and what `lifeboat status` tells beside the bucket.
//
// They read streams without taking part in their work, and say what they could not read instead of failing when an answer is
// possible without it.
package ops

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/console"
	"github.com/lifeboat-fleet/lifeboat/fleet/service"
)

// reachTimeout is how long a command waits for a connection.
const reachTimeout = 5 * time.Second

// flags are those of every command here.
type flags struct {
	config string
	output string
}

func (f *flags) add(cmd *cobra.Command) {
	console.AddConfig(cmd, &f.config)
	console.AddOutput(cmd, &f.output)
}

// fleet is a connection to the fleet and its configuration.
type fleet struct {
	bus    *bus.Bus
	config *config.Config
	file   string
}

// load checks the flags and reads the configuration.
func (f *flags) load() (*config.Config, error) {
	if err := console.CheckOutput(f.output); err != nil {
		return nil, err
	}
	cfg, err := config.Load(f.config)
	if err != nil {
		return nil, &service.UsageError{Err: err}
	}
	return cfg, nil
}

// open reads the configuration and connects. The fleet must be closed.
func (f *flags) open(ctx context.Context) (*fleet, error) {
	cfg, err := f.load()
	if err != nil {
		return nil, err
	}
	return connect(ctx, cfg, f.config, reachTimeout)
}

// connect waits until there is a connection, because the library itself would wait for ever.
func connect(ctx context.Context, cfg *config.Config, file string, within time.Duration) (*fleet, error) {
	b, err := bus.Connect(bus.Options{
		Config: cfg.NATS, Actor: service.Instance("lifeboat-cli"), Logger: slog.New(slog.DiscardHandler),
		Registerer: prometheus.NewRegistry(),
	})
	if err != nil {
		return nil, &service.UsageError{Err: err}
	}
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	look := time.NewTicker(10 * time.Millisecond)
	defer look.Stop()
	for {
		err := b.Connected()
		if err == nil {
			return &fleet{bus: b, config: cfg, file: file}, nil
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("%w (waited %s; see nats.url in %s)", err, within, file), b.Close())
		case <-look.C:
		}
	}
}

// explain adds what a person can do about a server on which nobody has made the streams yet.
func explain(err error) error {
	if errors.Is(err, jetstream.ErrStreamNotFound) || errors.Is(err, nats.ErrNoResponders) {
		return fmt.Errorf("%w; is a service of the fleet running that has made the streams, and does this user's account have them?", err)
	}
	return err
}

func (f *fleet) close() error { return f.bus.Close() }

// clean is one line of what other people and servers wrote.
func clean(s string) string {
	return strings.Join(strings.Fields(console.Printable(s)), " ")
}

// cut shortens a text for a cell.
func cut(s string, most int) string {
	r := []rune(s)
	if len(r) <= most {
		return s
	}
	return string(r[:most-1]) + "…"
}

// pointer is nil for no time.
func pointer(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// Moments on a page, in the target's time zone.
const (
	moment = "2006-01-02 15:04:05 MST"
	clock  = "15:04:05"
)
