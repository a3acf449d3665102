package keys

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"slices"
	"strings"
	"time"
)

const (
	caValid = 3652 * 24 * time.Hour // ten years
	// DefaultValid is for how long certificates of servers and clients are good: two years.
	DefaultValid = 730 * 24 * time.Hour
	// MaxValid is below what the CA lives.
	MaxValid = 3650 * 24 * time.Hour
	// renewWithin is how long before its end a certificate is said to end.
	renewWithin = 30 * 24 * time.Hour
	// Clocks of machines differ a little.
	clockSkew = time.Hour

	caFile, caKeyFile = "tls/ca.pem", "tls/ca-key.pem"
	serverFile        = "tls/server.pem"
	clientFile        = "tls/client.pem"
)

// always are in every server's certificate: loopback, so that health checks on the machine itself work, and the name by which NATS servers
// know each other. A client's certificate is of the same CA, and must not do for a route, which no permissions hold for: deploy/nats/server.conf
// maps a certificate to this user of the cluster.
func always() []string { return []string{"localhost", "127.0.0.1", "::1", routeUser} }

const routeUser = "nats-server.lifeboat"

// authority signs. Its key may be kept elsewhere, which is found out only when something has to be signed.
type authority struct {
	cert *x509.Certificate
	key  func() (*ecdsa.PrivateKey, error)
}

// certificates makes a CA of the deployment's own, and one certificate each for its servers and its clients.
func (m *maker) certificates() error {
	ca, err := m.authority()
	if err != nil {
		return err
	}
	hosts := slices.Concat(m.Hosts, always())
	server, err := m.leaf(serverFile, "all servers, also as clients of each other (routes)", ca, func(c *x509.Certificate) {
		c.Subject.CommonName = "lifeboat server"
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
		addHosts(c, hosts)
	})
	if err != nil {
		return err
	}
	if missing := missingHosts(server.cert, hosts); server.cert != nil && len(missing) > 0 {
		server.file.unfit("it is not for %s: remove it and run this again%s, then give it to the servers", strings.Join(missing, ", "),
			hostFlag(slices.Concat(hostsOf(server.cert), missing)))
	}
	_, err = m.leaf(clientFile, "all clients", ca, func(c *x509.Certificate) {
		c.Subject.CommonName = "lifeboat client"
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	})
	return err
}

// authority makes the CA's key and certificate. A certificate that is gone is made again from the key, and is as good as the first.
func (m *maker) authority() (*authority, error) {
	const purpose = "whoever signs: keep it in a safe, and only there"
	const afresh = "put the right one there, or remove everything below tls/, and run this again"
	content, keyFile, err := m.privateHalf(caFile, caKeyFile, purpose, "needed only to make or renew a certificate")
	if err != nil {
		return nil, err
	}
	ca := &authority{key: func() (*ecdsa.PrivateKey, error) {
		if keyFile == nil {
			return nil, fmt.Errorf("this needs the CA's key: put %s back for this (or remove everything below tls/ to begin with another CA)", caKeyFile)
		}
		return parseKey(caKeyFile, content)
	}}
	key, broken := ca.key()
	public, f, err := m.public(caFile, "all servers and clients", func() ([]byte, error) { return m.selfSigned(ca) })
	if err != nil {
		return nil, err
	}
	if ca.cert, err = parseCertificate(caFile, public); err == nil && !ca.cert.IsCA {
		err = fmt.Errorf("%s is no CA's certificate", caFile)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, afresh)
	}
	m.judge(f, ca.cert, "remove everything below tls/ and run this again")
	switch {
	case keyFile == nil:
	case broken != nil:
		keyFile.unfit("%v: %s", broken, afresh)
	case !key.PublicKey.Equal(ca.cert.PublicKey):
		keyFile.unfit("it is not the key of %s: %s", caFile, afresh)
		ca.key = func() (*ecdsa.PrivateKey, error) {
			return nil, fmt.Errorf("%s is not the key of %s: %s", caKeyFile, caFile, afresh)
		}
	}
	return ca, nil
}

// privateHalf makes a key, unless it is gone and its certificate is there: file is nil then.
func (m *maker) privateHalf(certificate, name, purpose, note string) (content []byte, file *File, err error) {
	// In this order: what is made meanwhile is made the other way round.
	certified, err := m.has(certificate)
	if err != nil {
		return nil, nil, err
	}
	there, err := m.has(name)
	if err != nil {
		return nil, nil, err
	}
	if certified && !there {
		m.elsewhere(name, purpose, note)
		return nil, nil, nil
	}
	return m.secret(name, purpose, newKey)
}

func (m *maker) selfSigned(ca *authority) ([]byte, error) {
	key, err := ca.key()
	if err != nil {
		return nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return nil, err
	}
	c, err := m.template(caValid)
	if err != nil {
		return nil, err
	}
	// Two CAs can be told apart by their names, and the same key has the same one.
	c.Subject.CommonName = "Lifeboat CA " + hex.EncodeToString(spki[len(spki)-4:])
	c.IsCA, c.BasicConstraintsValid, c.MaxPathLenZero = true, true, true
	c.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	return encodeCertificate(c, c, &key.PublicKey, key)
}

// leaf is a certificate that is no CA's. cert is nil when the file holds none.
type leaf struct {
	cert *x509.Certificate
	file *File
}

// leaf makes a key and a certificate for it. A certificate that was removed is made again for the key that is there.
func (m *maker) leaf(name, purpose string, ca *authority, fill func(*x509.Certificate)) (*leaf, error) {
	keyName := strings.TrimSuffix(name, ".pem") + "-key.pem"
	both := fmt.Sprintf("remove %s and %s and run this again", name, keyName)
	keyPEM, keyFile, err := m.privateHalf(name, keyName, purpose, "for another one remove "+name+" as well")
	if err != nil {
		return nil, err
	}
	key, broken := parseKey(keyName, keyPEM)
	content, f, err := m.public(name, purpose, func() ([]byte, error) {
		if broken != nil {
			return nil, fmt.Errorf("%w: %s", broken, both)
		}
		return m.sign(ca, &key.PublicKey, fill)
	})
	if err != nil {
		return nil, err
	}
	cert, err := parseCertificate(name, content)
	if err != nil {
		f.unfit("it holds no certificate: %s", both)
		return &leaf{file: f}, nil //nolint:nilerr // it is told as what became of the file
	}
	m.judge(f, cert, fmt.Sprintf("remove it and run this again%s, then give it to those who use it", hostFlag(hostsOf(cert))))
	switch {
	case keyFile == nil:
	case broken != nil:
		keyFile.unfit("it holds no key: %s", both)
	case !key.PublicKey.Equal(cert.PublicKey):
		keyFile.unfit("%s is for another key: %s", name, both)
	}
	if cert.CheckSignatureFrom(ca.cert) != nil {
		f.unfit("%s has not signed it: remove it and run this again", caFile)
	}
	return &leaf{cert: cert, file: f}, nil
}

func (m *maker) sign(ca *authority, key *ecdsa.PublicKey, fill func(*x509.Certificate)) ([]byte, error) {
	signer, err := ca.key()
	if err != nil {
		return nil, err
	}
	c, err := m.template(m.Valid)
	if err != nil {
		return nil, err
	}
	c.KeyUsage = x509.KeyUsageDigitalSignature // ECDSA signs; it encrypts no keys
	if c.NotAfter.After(ca.cert.NotAfter) {
		c.NotAfter = ca.cert.NotAfter
	}
	fill(c)
	return encodeCertificate(c, ca.cert, key, signer)
}

func (m *maker) template(valid time.Duration) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	return &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{Organization: []string{"Lifeboat"}},
		NotBefore: m.now.Add(-clockSkew), NotAfter: m.now.Add(valid), BasicConstraintsValid: true,
	}, nil
}

// judge says until when a certificate is good, and how it is renewed when that is soon.
func (m *maker) judge(f *File, cert *x509.Certificate, renew string) {
	f.Expires, f.Note = &cert.NotAfter, "good until "+cert.NotAfter.Format(time.DateOnly)
	switch left := cert.NotAfter.Sub(m.now); {
	case left <= 0:
		f.unfit("it has ended on %s: %s", cert.NotAfter.Format(time.DateOnly), renew)
	case left < renewWithin && f.State != Made:
		f.unfit("it ends on %s: %s", cert.NotAfter.Format(time.DateOnly), renew)
	}
}

func addHosts(c *x509.Certificate, hosts []string) {
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			c.IPAddresses = append(c.IPAddresses, ip)
		} else {
			c.DNSNames = append(c.DNSNames, h)
		}
	}
}

func missingHosts(cert *x509.Certificate, hosts []string) (missing []string) {
	if cert == nil {
		return nil
	}
	for _, h := range hosts {
		if !slices.Contains(cert.DNSNames, h) && cert.VerifyHostname(h) != nil {
			missing = append(missing, h)
		}
	}
	return missing
}

// hostsOf are the names and addresses that a certificate is for.
func hostsOf(cert *x509.Certificate) []string {
	all := slices.Clone(cert.DNSNames)
	for _, ip := range cert.IPAddresses {
		all = append(all, ip.String())
	}
	return all
}

// hostFlag is what --host has to be for these, in a shell's words.
func hostFlag(hosts []string) string {
	hosts = slices.DeleteFunc(slices.Clone(hosts), func(h string) bool { return slices.Contains(always(), h) })
	if len(hosts) == 0 {
		return ""
	}
	return " with --host '" + strings.Join(hosts, ",") + "'"
}

const (
	pemCertificate = "CERTIFICATE"
	pemKey         = "PRIVATE KEY"
)

func newKey() ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemKey, Bytes: der}), nil
}

// parseKey reads a key in PKCS #8. Errors hold nothing of it.
func parseKey(name string, content []byte) (*ecdsa.PrivateKey, error) {
	wrong := fmt.Errorf("%s holds no ECDSA key in PKCS #8 (BEGIN %s)", name, pemKey)
	block, _ := pem.Decode(content)
	if block == nil || block.Type != pemKey {
		return nil, wrong
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, wrong
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, wrong
	}
	return ec, nil
}

func parseCertificate(name string, content []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(content)
	if block == nil || block.Type != pemCertificate {
		return nil, fmt.Errorf("%s holds no certificate (BEGIN %s)", name, pemCertificate)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s holds a certificate that cannot be read: %w", name, err)
	}
	return cert, nil
}

func encodeCertificate(c, parent *x509.Certificate, key *ecdsa.PublicKey, signer *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key, signer)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: der}), nil
}
