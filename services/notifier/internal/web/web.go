// Package web serves HTTP with what Prometheus' own servers have around it: TLS, client certificates and basic authentication by a
// web configuration file of exporter-toolkit, so that one file format serves all of them; and bearer tokens beside that.
//
// https://github.com/prometheus/exporter-toolkit/blob/master/docs/web-configuration.md
package web

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/prometheus/exporter-toolkit/web"

	"github.com/lifeboat-fleet/lifeboat/fleet/service"
)

// grace is how long open requests may take to finish after a stop, as in service.Serve.
const grace = 5 * time.Second

// Serve runs an HTTP server on a listener until the context ends, and then lets open requests finish for five seconds. A web
// configuration file that is not empty is read again for each connection (certificates) and each request (users); while it cannot be read
// requests are answered with 500, so that an Alertmanager comes again. One that is broken at the start is an error that names it.
// The listener is closed in any case.
func Serve(ctx context.Context, srv *http.Server, ln net.Listener, webConfigFile string, log *slog.Logger) error {
	if srv.ErrorLog == nil {
		// A client whose certificate was refused shows here and nowhere else.
		srv.ErrorLog = slog.NewLogLogger(log.Handler(), slog.LevelWarn)
	}
	if webConfigFile == "" {
		return service.Serve(ctx, srv, ln)
	}
	if err := Check(webConfigFile); err != nil {
		return errors.Join(err, ln.Close())
	}
	done := make(chan error, 1)
	go func() { done <- web.Serve(ln, srv, &web.FlagConfig{WebConfigFile: &webConfigFile}, log) }()
	select {
	case err := <-done:
		return errors.Join(fmt.Errorf("serving on %s with %s: %w", ln.Addr(), webConfigFile, err), closed(ln))
	case <-ctx.Done():
	}
	stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	if err := srv.Shutdown(stopping); err != nil {
		return errors.Join(fmt.Errorf("stopping the server on %s: %w", ln.Addr(), err), srv.Close())
	}
	if err := <-done; !errors.Is(err, http.ErrServerClosed) {
		return errors.Join(fmt.Errorf("serving on %s: %w", ln.Addr(), err), closed(ln))
	}
	return closed(ln) // a stop that comes before the server knew its listener leaves that open
}

// closed closes a listener that may be closed already.
func closed(ln net.Listener) error {
	if err := ln.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("closing the listener on %s: %w", ln.Addr(), err)
	}
	return nil
}

// Check says what is wrong with a web configuration file: it cannot be read, has an unknown key, a bad value, or names certificates that
// are not there. An empty name is no file, and right.
func Check(webConfigFile string) error {
	if err := web.Validate(webConfigFile); err != nil {
		return fmt.Errorf("web configuration file %s: %w", webConfigFile, err)
	}
	return nil
}

// CheckWebhooks is Check for an address that takes alerts, with bearer tokens or without. It refuses besides what would lose alerts:
// basic authentication together with bearer tokens, because a request has one Authorization header and could never satisfy both; and a
// rate limit, because its 429 makes Alertmanager drop what it sent.
func CheckWebhooks(webConfigFile string, bearer bool) error {
	if webConfigFile == "" {
		return nil
	}
	if err := Check(webConfigFile); err != nil {
		return err
	}
	content, err := os.ReadFile(webConfigFile)
	if err != nil {
		return fmt.Errorf("web configuration file: %w", err)
	}
	var c struct {
		Users map[string]any `yaml:"basic_auth_users"`
		Limit struct {
			Interval any `yaml:"interval"`
		} `yaml:"rate_limit"`
	}
	if err := yaml.Unmarshal(content, &c); err != nil {
		// The library's text shows the lines, and with them hashes of passwords.
		return fmt.Errorf("web configuration file %s cannot be read as YAML", webConfigFile)
	}
	if bearer && len(c.Users) > 0 {
		return fmt.Errorf("web configuration file %s has basic_auth_users, and notifier.bearer_tokens_file is set: "+
			"a request has one Authorization header; remove one of the two", webConfigFile)
	}
	if c.Limit.Interval != nil {
		return fmt.Errorf("web configuration file %s has a rate_limit: "+
			"it answers 429, and Alertmanager drops the alerts after that; remove it", webConfigFile)
	}
	return nil
}
