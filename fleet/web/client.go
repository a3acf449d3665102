package web

import (
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
)

// renewal is how long what was read last is used while the files cannot be: certificate and key are two files, and are replaced one
// after the other.
const renewal = time.Minute

// Rotated is something that is made of a client's TLS files, and made anew when what they hold has changed. It is safe for
// concurrent use.
type Rotated[T any] struct {
	files  func() config.TLS
	build  func(*tls.Config) (T, error)
	retire func(T)

	mu      sync.Mutex
	made    bool
	current T
	of      content
	at      time.Time
}

// content is what the files held: another one means that they were rotated, or that other files were configured.
type content struct {
	files config.TLS
	sum   [sha256.Size]byte
}

// NewRotated makes nothing yet. files are those of the configuration in force. build gets nil when none are configured; retire is told
// what is not handed out any more, though it may still be in use.
func NewRotated[T any](files func() config.TLS, build func(*tls.Config) (T, error), retire func(T)) *Rotated[T] {
	return &Rotated[T]{files: files, build: build, retire: retire}
}

// Get is the thing for the files as they are now. While they cannot be read, the last one for a minute, and then an error that names
// the file.
func (r *Rotated[T]) Get() (T, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	files := r.files()
	now, err := read(files)
	if err == nil && r.made && now == r.of {
		r.at = time.Now()
		return r.current, nil
	}
	var made T
	if err == nil {
		made, err = r.make(files)
	}
	switch {
	case err == nil:
		if r.made {
			r.retire(r.current)
		}
		r.made, r.current, r.of, r.at = true, made, now, time.Now()
	case r.made && r.of.files == files && time.Since(r.at) < renewal:
	default:
		var none T
		return none, fmt.Errorf("reading the TLS settings: %w", err)
	}
	return r.current, nil
}

func (r *Rotated[T]) make(files config.TLS) (T, error) {
	var none T
	cfg, err := files.Client()
	if err != nil {
		return none, err
	}
	if cfg != nil && cfg.GetClientCertificate != nil {
		// The pair that fits, for all connections: halves of two pairs must not meet in one of them.
		pair, err := cfg.GetClientCertificate(nil)
		if err != nil {
			return none, err
		}
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return pair, nil }
	}
	return r.build(cfg)
}

func read(files config.TLS) (content, error) {
	all := sha256.New()
	for _, name := range []string{files.CAFile, files.CertFile, string(files.KeyFile)} {
		if name == "" {
			continue
		}
		b, err := os.ReadFile(name)
		if err != nil {
			return content{}, err
		}
		sum := sha256.Sum256(b)
		_, _ = all.Write(sum[:]) // a hash takes everything
	}
	c := content{files: files}
	all.Sum(c.sum[:0])
	return c, nil
}

// Transport asks over HTTP with a CA and a client's certificate from files, which are looked at for each request.
type Transport struct{ rotated *Rotated[*http.Transport] }

// NewTransport asks as base does, which is not used itself. Without files the system's CAs are believed.
func NewTransport(base *http.Transport, files func() config.TLS) *Transport {
	build := func(cfg *tls.Config) (*http.Transport, error) {
		t := base.Clone()
		if cfg == nil {
			cfg = &tls.Config{MinVersion: tls.VersionTLS12}
		}
		t.TLSClientConfig = cfg
		return t, nil
	}
	return &Transport{rotated: NewRotated(files, build, (*http.Transport).CloseIdleConnections)}
}

// RoundTrip implements http.RoundTripper.
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	now, err := t.rotated.Get()
	if err != nil {
		if r.Body != nil { // as the interface wants it of a request that fails
			err = errors.Join(err, r.Body.Close())
		}
		return nil, err
	}
	return now.RoundTrip(r)
}

// CloseIdleConnections is what http.Client's looks for.
func (t *Transport) CloseIdleConnections() {
	if now, err := t.rotated.Get(); err == nil {
		now.CloseIdleConnections()
	}
}

// NewHostTransport asks one host with the files and all others as base does: neither does a certificate go to somebody whom nobody
// named, nor is the CA of that host believed for others. host is host or host:port, as an URL has it; empty is none.
func NewHostTransport(base *http.Transport, host func() string, files func() config.TLS) http.RoundTripper {
	return &hosts{host: host, named: NewTransport(base, files), others: NewTransport(base, func() config.TLS { return config.TLS{} })}
}

type hosts struct {
	host          func() string
	named, others *Transport
}

// RoundTrip implements http.RoundTripper.
func (h *hosts) RoundTrip(r *http.Request) (*http.Response, error) {
	if host := h.host(); host != "" && r.URL.Host == host {
		return h.named.RoundTrip(r)
	}
	return h.others.RoundTrip(r)
}

// CloseIdleConnections is what http.Client's looks for.
func (h *hosts) CloseIdleConnections() {
	h.named.CloseIdleConnections()
	h.others.CloseIdleConnections()
}
