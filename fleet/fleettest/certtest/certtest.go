// Package certtest makes certificates for tests: a CA of the test's own, and what it signs, as PEM files. Nothing is kept
// beyond the test, and nothing is valid for longer than a day.
package certtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// CA signs certificates.
type CA struct {
	// File holds its certificate.
	File string

	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// Pair is a certificate and its key, as files.
type Pair struct{ Cert, Key string }

// Option changes a certificate.
type Option func(*x509.Certificate)

// Expired makes a certificate that was valid until an hour ago.
func Expired() Option {
	return func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	}
}

// For replaces the names and addresses that a server's certificate is for.
func For(hosts ...string) Option {
	return func(c *x509.Certificate) {
		c.DNSNames, c.IPAddresses = nil, nil
		for _, h := range hosts {
			if ip := net.ParseIP(h); ip != nil {
				c.IPAddresses = append(c.IPAddresses, ip)
			} else {
				c.DNSNames = append(c.DNSNames, h)
			}
		}
	}
}

// New makes a CA. name is its common name: two of one name cannot be told apart by what they are called.
func New(tb testing.TB, name string) *CA {
	tb.Helper()
	ca := &CA{File: filepath.Join(tb.TempDir(), "ca.pem")}
	template := certificate(tb, name)
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	ca.cert, ca.key = template, newKey(tb)
	der := ca.sign(tb, template, ca.key)
	var err error
	ca.cert, err = x509.ParseCertificate(der)
	require.NoError(tb, err)
	writePEM(tb, ca.File, "CERTIFICATE", der)
	return ca
}

// Server makes a certificate for a server at 127.0.0.1, ::1 and localhost. It may also be used by a client: members of an
// etcd cluster are both.
func (ca *CA) Server(tb testing.TB, options ...Option) Pair {
	tb.Helper()
	options = append([]Option{For("127.0.0.1", "::1", "localhost")}, options...)
	return ca.issue(tb, "server", []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, options)
}

// Client makes a certificate for a client. name is its common name, which some servers take for the user's.
func (ca *CA) Client(tb testing.TB, name string, options ...Option) Pair {
	tb.Helper()
	return ca.issue(tb, name, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, options)
}

func (ca *CA) issue(tb testing.TB, name string, usage []x509.ExtKeyUsage, options []Option) Pair {
	tb.Helper()
	template := certificate(tb, name)
	template.KeyUsage, template.ExtKeyUsage = x509.KeyUsageDigitalSignature, usage
	for _, o := range options {
		o(template)
	}
	key := newKey(tb)
	dir := tb.TempDir()
	pair := Pair{Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem")}
	writePEM(tb, pair.Cert, "CERTIFICATE", ca.sign(tb, template, key))
	der, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(tb, err)
	writePEM(tb, pair.Key, "PRIVATE KEY", der)
	return pair
}

func (ca *CA) sign(tb testing.TB, template *x509.Certificate, key *ecdsa.PrivateKey) []byte {
	tb.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, &key.PublicKey, ca.key)
	require.NoError(tb, err)
	return der
}

func certificate(tb testing.TB, name string) *x509.Certificate {
	tb.Helper()
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	require.NoError(tb, err)
	return &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name},
		// Clocks of containers and of their host may differ a little.
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
}

func newKey(tb testing.TB) *ecdsa.PrivateKey {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(tb, err)
	return key
}

func writePEM(tb testing.TB, path, kind string, der []byte) {
	tb.Helper()
	require.NoError(tb, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
}
