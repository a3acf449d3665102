// Package web serves and asks over HTTP with certificates that may be rotated under a running service.
//
// What it serves has around it what Prometheus' own servers have: TLS, client certificates and basic authentication by a web
// configuration file of exporter-toolkit, so that one file format serves all of them; and bearer tokens beside that.
// https://github.com/prometheus/exporter-toolkit/blob/master/docs/web-configuration.md
//
// What it asks with is a Transport, whose CA and client certificate are files of the configuration.
package web

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/prometheus/exporter-toolkit/web"
)

// grace is how long open requests may take to finish after a stop.
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
	run := func() error { return srv.Serve(ln) }
	if webConfigFile != "" {
		if err := Check(webConfigFile); err != nil {
			return errors.Join(err, ln.Close())
		}
		srv.Handler = modern(srv.Handler)
		run = func() error { return web.Serve(ln, srv, &web.FlagConfig{WebConfigFile: &webConfigFile}, log) }
	}
	done := make(chan error, 1)
	go func() { done <- run() }()
	select {
	case err := <-done:
		return errors.Join(fmt.Errorf("serving on %s%s: %w", ln.Addr(), with(webConfigFile), err), closed(ln))
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

func with(webConfigFile string) string {
	if webConfigFile == "" {
		return ""
	}
	return " with " + webConfigFile
}

// modern refuses what came over TLS 1.0 or 1.1. Check refuses a file that allows them; one that is changed under a running server is
// not checked again.
func modern(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS != nil && r.TLS.Version < tls.VersionTLS12 {
			http.Error(w, "TLS 1.2 or newer is needed", http.StatusUpgradeRequired)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// closed closes a listener that may be closed already.
func closed(ln net.Listener) error {
	if err := ln.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("closing the listener on %s: %w", ln.Addr(), err)
	}
	return nil
}

// Check says what is wrong with a web configuration file: it cannot be read, has an unknown key, a bad value, names certificates that
// are not there, or allows TLS 1.0 or 1.1. An empty name is no file, and right.
func Check(webConfigFile string) error {
	if err := web.Validate(webConfigFile); err != nil {
		return fmt.Errorf("web configuration file %s: %w", webConfigFile, err)
	}
	o, err := Read(webConfigFile)
	if err != nil {
		return err
	}
	for _, v := range []string{o.TLS.MinVersion, o.TLS.MaxVersion} {
		if slices.Contains([]string{"TLS10", "TLS11"}, v) {
			return fmt.Errorf("web configuration file %s allows %s, which can be broken; use TLS12 or TLS13", webConfigFile, v)
		}
	}
	return nil
}

// Options are those of a web configuration file that others have to know of.
type Options struct {
	TLS struct {
		Cert       string `yaml:"cert"`
		CertFile   string `yaml:"cert_file"`
		ClientAuth string `yaml:"client_auth_type"`
		MinVersion string `yaml:"min_version"`
		MaxVersion string `yaml:"max_version"`
	} `yaml:"tls_server_config"`
	Users map[string]any `yaml:"basic_auth_users"`
	Limit struct {
		Interval any `yaml:"interval"`
	} `yaml:"rate_limit"`
}

// Encrypted says whether there is TLS.
func (o Options) Encrypted() bool { return o.TLS.Cert != "" || o.TLS.CertFile != "" }

// Authenticated says whether a client has to prove who it is, by a certificate or a password.
func (o Options) Authenticated() bool {
	return len(o.Users) > 0 || o.Encrypted() && slices.Contains([]string{"RequireAndVerifyClientCert", "RequireAnyClientCert"}, o.TLS.ClientAuth)
}

// Read reads a web configuration file, without checking it. An empty name is no file, which has no options.
func Read(webConfigFile string) (o Options, err error) {
	if webConfigFile == "" {
		return o, nil
	}
	content, err := os.ReadFile(webConfigFile)
	if err != nil {
		return o, fmt.Errorf("web configuration file: %w", err)
	}
	if err := yaml.Unmarshal(content, &o); err != nil {
		// The library's text shows the lines, and with them hashes of passwords.
		return o, fmt.Errorf("web configuration file %s cannot be read as YAML", webConfigFile)
	}
	return o, nil
}

// Listener is an address that is served, as WarnIfOpen judges it.
type Listener struct {
	// Name is what it serves, in the words of an operator: "health and metrics".
	Name          string
	Addr          net.Addr
	WebConfigFile string
	// Setting is what to change, by its name: --web-config-file.
	Setting string
	// Trusted says that what comes in is believed, so that a client has to prove who it is; Proven that it has to do so by other
	// means than the web configuration file.
	Trusted, Proven bool
}

// WarnIfOpen logs a warning when an address off loopback is served in clear, or to anybody although what comes in is believed.
func WarnIfOpen(ctx context.Context, log *slog.Logger, l Listener) {
	if tcp, ok := l.Addr.(*net.TCPAddr); !ok || tcp.IP.IsLoopback() {
		return
	}
	o, err := Read(l.WebConfigFile)
	if err != nil {
		return // Check says so
	}
	var open string
	switch known := o.Authenticated() || l.Proven; {
	case !o.Encrypted() && !known:
		open = "in clear, and to anybody who reaches it"
	case !o.Encrypted():
		open = "in clear"
	case l.Trusted && !known:
		open = "to anybody who reaches it"
	default:
		return
	}
	log.WarnContext(ctx, "an address that other machines reach is served without protection",
		slog.String("listener", l.Name), slog.String("address", l.Addr.String()), slog.String("served", open), slog.String("setting", l.Setting))
}
