// Package service is what every Lifeboat process has around its work: logging, signals, a group of actors that start and
// stop together, health, metrics, tracing and the live configuration.
package service

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"

	"github.com/lifeboat-fleet/lifeboat/fleet/web"
)

// Exit codes of every command (design, section 7).
const (
	ExitDone   = 0
	ExitFailed = 1
	ExitUsage  = 2
)

// UsageError marks an error as the user's to mend: wrong usage or configuration. It exits with 2.
type UsageError struct{ Err error }

func (e *UsageError) Error() string { return e.Err.Error() }
func (e *UsageError) Unwrap() error { return e.Err }

// ExitCode is the process's exit code for what its command returned.
func ExitCode(err error) int {
	var usage *UsageError
	switch {
	case err == nil:
		return ExitDone
	case errors.As(err, &usage):
		return ExitUsage
	}
	return ExitFailed
}

// Check is one thing that must work before the service is ready.
type Check struct {
	Name  string
	Probe func(context.Context) error
}

// Actor is a part of a service. It runs until its context ends; an error stops the whole service.
type Actor struct {
	Name string
	Run  func(context.Context) error
}

// Options of a service.
type Options struct {
	Name   string
	Logger *slog.Logger
	// Listen is the address of /healthz, /readyz and /metrics.
	Listen string
	// WebConfigFile is a web configuration file for Listen, as web.Serve takes it; empty is in clear.
	WebConfigFile string
	Registry      *prometheus.Registry
	Checks        []Check
	Actors        []Actor
	// Started is told the address that Listen became. It may be nil.
	Started func(addr string)
	// telemetry exports the spans; one of its own when nil.
	telemetry *telemetry
}

// SignalContext ends at the first SIGINT or SIGTERM. A second one ends the process at once, as Go does by default: also one that comes as
// soon as anybody can know that the context has ended, for which signal.NotifyContext gives no promise.
func SignalContext(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	came := make(chan os.Signal, 1)
	signal.Notify(came, os.Interrupt, syscall.SIGTERM)
	go func() {
		var cause error
		select {
		case s := <-came:
			cause = fmt.Errorf("%s signal received", s)
		case <-ctx.Done():
		}
		signal.Stop(came)
		cancel(cause)
	}()
	return ctx, func() { cancel(nil) }
}

// NewRegistry has the collectors of the Go runtime, the process and the build. In one process with several services each has its
// own registry.
func NewRegistry() *prometheus.Registry {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), buildInfo())
	return reg
}

// Instance is "name@host:pid", to sign events with: two workers on one host are two.
func Instance(name string) string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown-host"
	}
	return fmt.Sprintf("%s@%s:%d", name, host, os.Getpid())
}

// Run serves health and metrics and runs the actors until the context ends or one of them fails.
func Run(ctx context.Context, o Options) error {
	if err := web.Check(o.WebConfigFile); err != nil {
		return &UsageError{fmt.Errorf("--web-config-file: %w", err)}
	}
	if o.telemetry == nil {
		o.telemetry = newTelemetry(o.Name, o.Logger, o.Registry)
	}
	ctx, endTraces, err := o.telemetry.start(ctx)
	if err != nil {
		return err
	}
	defer endTraces()
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", o.Listen)
	if err != nil {
		return fmt.Errorf("listening for health and metrics: %w", err)
	}
	srv := &http.Server{Handler: healthHandler(o), ReadHeaderTimeout: 5 * time.Second}
	o.Logger.InfoContext(ctx, "started", slog.String("http_addr", ln.Addr().String()))
	web.WarnIfOpen(ctx, o.Logger, web.Listener{
		Name: "health and metrics", Addr: ln.Addr(), WebConfigFile: o.WebConfigFile, Setting: "--web-config-file",
	})
	if o.Started != nil {
		o.Started(ln.Addr().String())
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return web.Serve(ctx, srv, ln, o.WebConfigFile, o.Logger) })
	for _, a := range o.Actors {
		g.Go(func() error {
			if failed := a.Run(ctx); failed != nil && !errors.Is(failed, context.Canceled) {
				return fmt.Errorf("%s: %w", a.Name, failed)
			}
			return nil
		})
	}
	err = g.Wait()
	o.Logger.Info("stopped") //nolint:sloglint // the context has ended
	return err
}

func healthHandler(o Options) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { reply(w, http.StatusOK, "alive\n") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
		defer cancel()
		if err := Probe(ctx, o.Checks); err != nil {
			reply(w, http.StatusServiceUnavailable, "not ready\n"+err.Error()+"\n")
			return
		}
		reply(w, http.StatusOK, "ready\n")
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(o.Registry, promhttp.HandlerOpts{Registry: o.Registry}))
	return mux
}

// Probe runs every check and joins what failed, each with the check's name.
func Probe(ctx context.Context, checks []Check) error {
	errs := make([]error, len(checks))
	var g errgroup.Group
	for i, c := range checks {
		g.Go(func() error {
			if err := c.Probe(ctx); err != nil {
				errs[i] = fmt.Errorf("%s: %w", c.Name, err)
			}
			return nil
		})
	}
	_ = g.Wait() // the functions return nil; the errors are in errs
	return errors.Join(errs...)
}

func reply(w http.ResponseWriter, code int, body string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(code)
	_, _ = strings.NewReader(body).WriteTo(w) // the client has gone; there is nobody to tell
}
