package service

import (
	"context"
	"log/slog"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// How often the streams are looked after.
const streamsInterval = 15 * time.Second

// Base is what the three services share: the live configuration and the bus.
type Base struct {
	Name     string
	Live     *Live
	Bus      *bus.Bus
	Logger   *slog.Logger
	Registry *prometheus.Registry
	// WebConfigFile is for health and metrics; empty serves them in clear. Set it before Run.
	WebConfigFile string

	telemetry *telemetry
}

// NewBase reads the configuration and starts connecting to NATS. A bad configuration is a UsageError; a NATS that does
// not answer is not an error here. Roles are those of a service whose processes differ in what they may do.
func NewBase(name, configPath string, log *slog.Logger, roles ...string) (*Base, error) {
	log = log.With(slog.String("service", name))
	reg := NewRegistry()
	live, err := LoadLive(configPath, log, reg)
	if err != nil {
		return nil, err
	}
	b, err := bus.Connect(bus.Options{
		Config: live.Current().NATS, Actor: Instance(name), Role: role(roles), Logger: log, Registerer: reg,
	})
	if err != nil {
		return nil, &UsageError{err}
	}
	live.OnReload = func(ctx context.Context, result string, err error) {
		e := &lifeboatv1.Event{Noun: "config", Verb: "reloaded", Message: result}
		if err != nil {
			e.Verb, e.Message = "refused", config.Places(err)
		}
		if err := b.Emit(ctx, e); err != nil {
			log.WarnContext(ctx, "could not record the reload", slog.Any("err", err))
		}
	}
	return &Base{Name: name, Live: live, Bus: b, Logger: log, Registry: reg, telemetry: newTelemetry(name, log, reg)}, nil
}

// Trace gives a context whose spans are exported, if the environment asks for that, and a function that ends it. It is for who serves
// something besides Run, which does the same by itself.
func (b *Base) Trace(ctx context.Context) (traced context.Context, end func(), err error) {
	return b.telemetry.start(ctx)
}

// role is one word for all roles of a process.
func role(roles []string) string { return strings.Join(strings.Fields(strings.Join(roles, " ")), "-") }

// Config is the configuration in force.
func (b *Base) Config() *config.Config { return b.Live.Current() }

// Until tries something until it works or the context ends, and logs each failure: an unreachable part is named, and the
// service stays alive and not ready meanwhile. It returns false when the context ended.
func (b *Base) Until(ctx context.Context, what string, try func(context.Context) error) bool {
	backoff := bus.Exponential(250*time.Millisecond, 10*time.Second)
	for attempt := int64(1); ; attempt++ {
		err := try(ctx)
		if err == nil {
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		delay := backoff(attempt)
		b.Logger.WarnContext(ctx, "not ready, trying again", slog.String("waiting_for", what),
			slog.Duration("after", delay.Round(time.Millisecond)), slog.Any("err", err))
		select {
		case <-ctx.Done():
			return false
		case <-time.After(delay):
		}
	}
}

// Run runs the service: live configuration, streams, and then the actors, which start only when the streams exist.
func (b *Base) Run(ctx context.Context, listen string, started func(addr string), checks []Check, actors ...Actor) error {
	streams := make(chan struct{})
	all := []Actor{
		{Name: "configuration", Run: b.Live.Run},
		{Name: "streams", Run: func(ctx context.Context) error {
			if !b.Until(ctx, "NATS streams", b.Bus.EnsureStreams) {
				return nil
			}
			close(streams)
			// Again from time to time: a NATS that lost its data comes back without them.
			for ctx.Err() == nil {
				if err := b.Bus.ReportDurability(ctx); err != nil && ctx.Err() == nil {
					b.Logger.WarnContext(ctx, "could not see whether NATS is durable", slog.Any("err", err))
				}
				select {
				case <-ctx.Done():
				case <-time.After(streamsInterval):
					b.Until(ctx, "NATS streams", b.Bus.EnsureStreams)
				}
			}
			return nil
		}},
	}
	for _, a := range actors {
		all = append(all, Actor{Name: a.Name, Run: func(ctx context.Context) error {
			select {
			case <-streams:
				return a.Run(ctx)
			case <-ctx.Done():
				return nil
			}
		}})
	}
	err := Run(ctx, Options{
		Name: b.Name, Logger: b.Logger, Listen: listen, WebConfigFile: b.WebConfigFile, Registry: b.Registry, Started: started,
		Checks: append([]Check{{Name: "nats", Probe: b.Bus.Ready}}, checks...), Actors: all, telemetry: b.telemetry,
	})
	if closeErr := b.Bus.Close(); err == nil {
		err = closeErr
	}
	return err
}
