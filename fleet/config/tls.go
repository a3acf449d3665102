package config

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
)

// Client builds the TLS settings of a client; nil when nothing is configured. The certificate is read again on every
// handshake, so that it may be rotated.
func (t TLS) Client() (*tls.Config, error) {
	if t == (TLS{}) {
		return nil, nil //nolint:nilnil // no settings is an answer: the address's scheme decides
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if t.CAFile != "" {
		pool, err := CertPool(t.CAFile)
		if err != nil {
			return nil, err
		}
		cfg.RootCAs = pool
	}
	if t.CertFile != "" {
		load := func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			cert, err := tls.LoadX509KeyPair(t.CertFile, string(t.KeyFile))
			if err != nil {
				return nil, fmt.Errorf("loading client certificate: %w", err)
			}
			return &cert, nil
		}
		if _, err := load(nil); err != nil {
			return nil, err
		}
		cfg.GetClientCertificate = load
	}
	return cfg, nil
}

// CertPool reads a PEM file of certificates.
func CertPool(path string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading CA file: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("CA file %s holds no PEM certificate", path)
	}
	return pool, nil
}
