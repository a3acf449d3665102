package etcd

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source"
)

// handshake remembers what a member said about client certificates. In TLS 1.3 a client learns that its certificate was
// refused only after it has begun to talk, from an alert that the end of the connection often overtakes; all that is left
// then is "broken pipe". But before that the member asked for a certificate and named the issuers that it accepts.
type handshake struct {
	mu      sync.Mutex
	refusal error
}

// settings are those of a client, with h looking on; nil when the address is in clear.
func (h *handshake) settings(t config.TLS, endpoint string) (*tls.Config, error) {
	cfg, err := t.Client()
	if err != nil {
		return nil, fmt.Errorf("reading the TLS settings: %w", err)
	}
	u, err := url.Parse(endpoint)
	secure := err == nil && u.Scheme == "https"
	switch {
	case cfg == nil && !secure:
		return nil, nil //nolint:nilnil // in clear
	case cfg == nil:
		cfg = &tls.Config{MinVersion: tls.VersionTLS12}
	case !secure:
		// The client would not use them without a word, and send the password in clear.
		return nil, errors.New("there are TLS settings, and the address does not begin with https://")
	}
	load := cfg.GetClientCertificate
	cfg.GetClientCertificate = func(asked *tls.CertificateRequestInfo) (*tls.Certificate, error) {
		cert := &tls.Certificate{} // none, which is an answer
		if load != nil {
			var lerr error
			if cert, lerr = load(asked); lerr != nil {
				return nil, lerr
			}
		}
		h.judge(asked, cert)
		return cert, nil
	}
	return cfg, nil
}

// judge foresees whether the member will take a certificate.
func (h *handshake) judge(asked *tls.CertificateRequestInfo, cert *tls.Certificate) {
	var refusal error
	if len(cert.Certificate) == 0 {
		refusal = errors.New("the member asks for a client certificate, and none is configured")
	} else if err := asked.SupportsCertificate(cert); err != nil {
		refusal = fmt.Errorf("the member does not take this client certificate: %w", err)
	} else if leaf := cert.Leaf; leaf != nil && time.Now().After(leaf.NotAfter) {
		refusal = fmt.Errorf("this client certificate has expired at %s", leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.refusal = refusal
}

// expected is why the member will have ended the connection; nil when nothing speaks for it.
func (h *handshake) expected() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.refusal
}

// refusedByTLS recognises an alert of the other side. gRPC passes on nothing but the text, which is that of crypto/tls.
func refusedByTLS(err error) bool { return strings.Contains(err.Error(), "remote error: tls: ") }

// tlsReason sorts a failed handshake.
func tlsReason(err error) (source.Reason, bool) {
	switch {
	case refusedByTLS(err):
		return source.Denied, true
	case strings.Contains(err.Error(), "tls: failed to verify certificate"):
		return source.Misconfigured, true
	}
	return "", false
}
