package config

import (
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"filippo.io/age"
)

// problem is a failed check at a key; the loader finds the line.
type problem struct{ key, message string }

// targetName is the form that fits into a subject and an object key (design, section 3).
var targetName = regexp.MustCompile(`^[a-z0-9-]+$`)

// ValidName says whether a target's or receiver's name can stand in a subject.
func ValidName(s string) bool { return targetName.MatchString(s) }

// checker collects problems.
type checker struct {
	clocks *clocks
	found  []problem
}

func (c *checker) add(key, format string, args ...any) {
	c.found = append(c.found, problem{key, fmt.Sprintf(format, args...)})
}

// check returns everything that decoding could not see.
func (cfg *Config) check(clocks *clocks) []problem {
	c := &checker{clocks: clocks}
	c.nats(cfg.NATS)
	c.objectStore("store", cfg.Store.ObjectStore)
	if cp := cfg.Store.Copy; cp != nil {
		c.objectStore("store.copy", *cp)
		if cp.Bucket == "" {
			c.add("store.copy.bucket", "is missing")
		}
		if cp.Bucket == cfg.Store.Bucket && cp.Endpoint == cfg.Store.Endpoint && cp.Prefix == cfg.Store.Prefix {
			c.add("store.copy", "is the store itself; a copy belongs somewhere else")
		}
	}
	if cfg.Store.Bucket == "" && len(cfg.Targets) > 0 {
		c.add("store.bucket", "is missing; targets need a bucket to keep their snapshots in")
	}
	for i, r := range cfg.Encryption.Recipients {
		if _, err := age.ParseRecipients(strings.NewReader(r)); err != nil {
			c.add(fmt.Sprintf("encryption.recipients[%d]", i), "not an age recipient (age1...): %v", err)
		}
	}
	c.workers(cfg.Workers)
	c.found = append(c.found, cfg.checkTargets(clocks)...)
	c.alertmanager(cfg.Alertmanager)
	c.notifier(cfg.Notifier, cfg.Alertmanager.URLs)
	c.page(cfg.Page)
	return c.found
}

func (c *checker) alertmanager(a Alertmanager) {
	c.tls("alertmanager.tls", a.TLS)
	for i, u := range a.URLs {
		key := fmt.Sprintf("alertmanager.urls[%d]", i)
		c.url(key, u, "http", "https")
		c.encrypted(key, u, "alertmanager.tls", a.TLS)
	}
	if (a.Username == "") != (a.PasswordFile == "") {
		c.add("alertmanager", "username and password_file go together")
	}
	if a.ResendInterval < 0 {
		c.add("alertmanager.resend_interval", "must not be negative")
	}
}

func (c *checker) objectStore(key string, s ObjectStore) {
	// Bucket naming rules of S3: 3 to 63 characters.
	if s.Bucket != "" && (len(s.Bucket) < 3 || len(s.Bucket) > 63) {
		c.add(key+".bucket", "%q must have 3 to 63 characters", s.Bucket)
	}
	if strings.HasPrefix(s.Prefix, "/") || strings.HasSuffix(s.Prefix, "/") {
		c.add(key+".prefix", "%q must not start or end with a slash", s.Prefix)
	}
	if s.Endpoint != "" {
		c.url(key+".endpoint", s.Endpoint, "http", "https")
	}
	c.tls(key, s.TLS())
	if s.CertFile != "" {
		c.encrypted(key+".endpoint", s.Endpoint, key+".cert_file", s.TLS())
	}
	if (s.AccessKeyIDFile == "") != (s.SecretAccessKeyFile == "") {
		c.add(key, "access_key_id_file and secret_access_key_file go together")
	}
	c.oneOf(key+".sse.type", s.SSE.Type, "s3", "kms")
	switch s.StorageClass {
	case "GLACIER", "DEEP_ARCHIVE":
		c.add(key+".storage_class", "%q cannot be read back at once; use GLACIER_IR, STANDARD_IA or the like", s.StorageClass)
	default:
		c.oneOf(key+".storage_class", s.StorageClass, "STANDARD", "REDUCED_REDUNDANCY", "STANDARD_IA", "ONEZONE_IA",
			"INTELLIGENT_TIERING", "GLACIER_IR", "OUTPOSTS", "SNOW", "EXPRESS_ONEZONE")
	}
	if s.SSE.KMSKeyID != "" && s.SSE.Type != "kms" {
		c.add(key+".sse.kms_key_id", "goes with type: kms")
	}
	c.oneOf(key+".object_lock.mode", s.ObjectLock.Mode, "GOVERNANCE", "COMPLIANCE")
	// S3's own limit: 100 years.
	if lock := s.ObjectLock; lock.Days < 0 || lock.Days > 36500 || (lock.Mode == "") != (lock.Days == 0) {
		c.add(key+".object_lock", "mode and days go together, and days is 1 to 36500")
	}
	for i, a := range s.Accept {
		c.oneOf(fmt.Sprintf("%s.accept[%d]", key, i), a, LacksConditionalWrites, LacksMultipartAbort)
	}
}

// oneOf checks a value that may be empty.
func (c *checker) oneOf(key, got string, allowed ...string) {
	if got != "" && !slices.Contains(allowed, got) {
		c.add(key, "%q is not one of %s", got, strings.Join(allowed, ", "))
	}
}

func (c *checker) retention(key string, t Target) {
	r := t.Retention
	for _, rule := range [...]struct {
		name string
		n    int
	}{
		{"last", r.Last}, {"hourly", r.Hourly}, {"daily", r.Daily}, {"weekly", r.Weekly}, {"monthly", r.Monthly}, {"yearly", r.Yearly},
	} {
		if rule.n < 0 {
			c.add(key+".retention."+rule.name, "must not be negative")
		}
	}
	if r.ShrinkGuard < 0 || r.ShrinkGuard > 100 {
		c.add(key+".retention.shrink_guard", "is %d; it is a percentage, and 100 switches it off", r.ShrinkGuard)
	}
	timeout := t.Timeout
	if timeout == 0 {
		timeout = defaultTimeout
	}
	if age := t.Prune.OrphanAge; age != 0 && age < 2*timeout {
		c.add(key+".prune.orphan_age", "must be at least twice the target's timeout of %s, or the upload of a running snapshot could be removed", timeout)
	}
	if t.Prune.OrphanAge == 0 && defaultOrphanAge < 2*timeout {
		c.add(key+".timeout", "needs a prune.orphan_age of at least twice as much")
	}
}

func (c *checker) target(key string, t Target) {
	if !ValidName(t.Name) {
		c.add(key+".name", "%q: a name is lower-case letters, digits and dashes", t.Name)
	}
	kinds := 0
	for _, set := range []bool{t.Etcd != nil, t.Consul != nil, t.Nomad != nil} {
		if set {
			kinds++
		}
	}
	if kinds != 1 {
		c.add(key, "needs exactly one of etcd, consul and nomad; it has %d", kinds)
	}
	switch {
	case t.Etcd != nil:
		if len(t.Etcd.Endpoints) == 0 {
			c.add(key+".etcd.endpoints", "needs at least one URL")
		}
		for i, u := range t.Etcd.Endpoints {
			c.url(fmt.Sprintf("%s.etcd.endpoints[%d]", key, i), u, "http", "https")
		}
		if (t.Etcd.Username == "") != (t.Etcd.PasswordFile == "") {
			c.add(key+".etcd", "username and password_file go together")
		}
		c.tls(key+".etcd.tls", t.Etcd.TLS)
	case t.Consul != nil:
		c.url(key+".consul.address", t.Consul.Address, "http", "https")
		c.tls(key+".consul.tls", t.Consul.TLS)
		for i, p := range t.Consul.Prefixes {
			if p == "" || strings.HasPrefix(p, "/") {
				c.add(fmt.Sprintf("%s.consul.prefixes[%d]", key, i), "%q: a prefix is the beginning of a key, as config/", p)
			}
		}
	case t.Nomad != nil:
		c.url(key+".nomad.address", t.Nomad.Address, "http", "https")
		c.tls(key+".nomad.tls", t.Nomad.TLS)
		for i, ns := range t.Nomad.Namespaces {
			if ns == "" || (ns == "*" && len(t.Nomad.Namespaces) > 1) {
				c.add(fmt.Sprintf("%s.nomad.namespaces[%d]", key, i), "%q: use names, or \"*\" alone for all of them", ns)
			}
		}
	}
	if t.RPO < 0 {
		c.add(key+".rpo", "must not be negative")
	}
	if t.Timeout < 0 {
		c.add(key+".timeout", "must not be negative")
	}
	if t.MinKiBPerSecond < -1 {
		c.add(key+".min_kib_per_second", "must not be less than -1, which means no limit")
	}
	if t.ReadBack.SampleAboveMiB < 0 {
		c.add(key+".read_back.sample_above_mib", "must not be negative")
	}
	c.retention(key, t)
	c.drill(key+".drill", t)
	c.timing(key, t)
}

func (c *checker) tls(key string, t TLS) {
	switch {
	case t.CertFile != "" && t.KeyFile == "":
		c.add(key+".cert_file", "needs key_file beside it: they go together")
	case t.CertFile == "" && t.KeyFile != "":
		c.add(key+".key_file", "needs cert_file beside it: they go together")
	}
}

// encrypted says when there are TLS settings for an address in clear, with which nobody would use them.
func (c *checker) encrypted(key, raw, settings string, t TLS) {
	if t != (TLS{}) && strings.HasPrefix(raw, "http://") {
		c.add(key, "begins with http://, and %s is set: nothing would be encrypted; write https://", settings)
	}
}

func (c *checker) url(key, raw string, schemes ...string) {
	u, err := url.Parse(raw)
	switch {
	case raw == "":
		c.add(key, "is missing; it is a URL such as %s://host:port", schemes[0])
	case err != nil:
		c.add(key, "is not a URL: %v", err)
	case !slices.Contains(schemes, u.Scheme) || u.Host == "":
		c.add(key, "%q is not a URL such as %s://host:port", u.Redacted(), schemes[0])
	case u.User != nil:
		c.add(key, "must not hold a user or password; secrets go into files")
	}
}
