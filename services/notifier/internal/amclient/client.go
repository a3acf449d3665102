// Package amclient makes the HTTP client that every part of the notifier asks Alertmanagers with, so that they are all asked with
// the same certificates and the same password.
package amclient

import (
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/web"
)

const (
	handshakeTimeout = 10 * time.Second
	idleTimeout      = time.Minute
)

// New makes a client of its own. cfg is asked for each request, for settings and files that have changed. It sends the password to
// whoever is asked, so it is for Alertmanagers only, and follows no redirects: they would lead to somebody whom nobody named.
func New(cfg func() config.Alertmanager) *http.Client {
	base := &http.Transport{
		Proxy: http.ProxyFromEnvironment, TLSHandshakeTimeout: handshakeTimeout, IdleConnTimeout: idleTimeout, ForceAttemptHTTP2: true,
	}
	return &http.Client{
		Transport:     &login{cfg: cfg, next: web.NewTransport(base, func() config.TLS { return cfg().TLS })},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// login adds the password.
type login struct {
	cfg  func() config.Alertmanager
	next *web.Transport
}

// RoundTrip implements http.RoundTripper.
func (l *login) RoundTrip(r *http.Request) (*http.Response, error) {
	cfg := l.cfg()
	if cfg.Username == "" {
		return l.next.RoundTrip(r)
	}
	password, err := cfg.PasswordFile.Read()
	if err != nil {
		err = fmt.Errorf("alertmanager.password_file: %w", err)
		if r.Body != nil { // as the interface wants it of a request that fails
			err = errors.Join(err, r.Body.Close())
		}
		return nil, err
	}
	r = r.Clone(r.Context())
	r.SetBasicAuth(cfg.Username, password)
	return l.next.RoundTrip(r)
}

// CloseIdleConnections is what http.Client's looks for.
func (l *login) CloseIdleConnections() { l.next.CloseIdleConnections() }
