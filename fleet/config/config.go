// Package config is the shape of lifeboat.yaml, the one file that every service reads.
//
// Decoding is strict: an unknown key, a wrong type or a bad value is an error that names file, line and key and shows the
// line. The whole file is checked by every service, so that no service accepts what another one refuses. A secret is
// never a value: it is the path of a file (a key that ends in _file), relative to the folder of lifeboat.yaml, and is
// read when it is used, so that it may rotate.
package config

import (
	"time"

	"github.com/prometheus/alertmanager/timeinterval"
)

// Config is a whole lifeboat.yaml. Fields that a service does not use are checked all the same.
type Config struct {
	NATS         NATS         `yaml:"nats"`
	Store        Store        `yaml:"store"`
	Encryption   Encryption   `yaml:"encryption"`
	Targets      []Target     `yaml:"targets"`
	Workers      Workers      `yaml:"workers"`
	Alertmanager Alertmanager `yaml:"alertmanager"`
	Notifier     Notifier     `yaml:"notifier"`
	Page         Page         `yaml:"page"`

	// index is where each target stands, once the file is loaded.
	index map[string]int
}

// NATS says how to reach the servers that carry jobs, events and alerts. At most one of CredsFile, NkeyFile and Username is set.
type NATS struct {
	// URL is one server or several, separated by commas.
	URL string `yaml:"url"`
	// CredsFile holds a user's JWT and its seed, as nsc writes them. It is read again for every connection, and so are the
	// files below.
	CredsFile SecretFile `yaml:"creds_file"`
	// NkeyFile holds the seed of a user's NKey ("SU...").
	NkeyFile     SecretFile `yaml:"nkey_file"`
	Username     string     `yaml:"username"`
	PasswordFile SecretFile `yaml:"password_file"`
	TLS          TLS        `yaml:"tls"`
	// Replicas of every stream; 1 when empty. Production wants 3.
	Replicas int `yaml:"replicas"`
	// InboxPrefix begins the subjects on which answers come; _INBOX when empty. {role} in it stands for the role of the
	// process (scheduler, snapshot, verify, drill, prune, notifier, cli, page), so that one file does for roles that may not read
	// each other's answers.
	InboxPrefix string `yaml:"inbox_prefix"`
	// MonitorURLs are the monitoring addresses of all servers. Only there do they tell whether they write to disk before they
	// acknowledge (sync_interval).
	MonitorURLs []string `yaml:"monitor_urls"`
}

// TLS names the files of a client's TLS. All empty means the scheme of the address decides, with the system's roots.
type TLS struct {
	CAFile   string     `yaml:"ca_file"`
	CertFile string     `yaml:"cert_file"`
	KeyFile  SecretFile `yaml:"key_file"`
}

// Store is where every snapshot is kept.
type Store struct {
	ObjectStore `yaml:",inline"`
	// Copy is a second bucket that every committed snapshot is copied to; none when empty.
	Copy *ObjectStore `yaml:"copy"`
}

// ObjectStore is a bucket of S3 or of a compatible store, and how to reach it.
type ObjectStore struct {
	Bucket    string `yaml:"bucket"`
	Prefix    string `yaml:"prefix"`
	Endpoint  string `yaml:"endpoint"`
	Region    string `yaml:"region"`
	PathStyle bool   `yaml:"path_style"`
	// CAFile, CertFile and KeyFile are as in TLS. They are read again while the service runs.
	CAFile   string     `yaml:"ca_file"`
	CertFile string     `yaml:"cert_file"`
	KeyFile  SecretFile `yaml:"key_file"`
	// Both empty: the AWS SDK's own chain (environment, shared files, assumed role, web identity, instance role).
	AccessKeyIDFile     SecretFile `yaml:"access_key_id_file"`
	SecretAccessKeyFile SecretFile `yaml:"secret_access_key_file"`
	SSE                 SSE        `yaml:"sse"`
	// StorageClass of data objects, as STANDARD_IA; the bucket's own when empty. Manifests stay in the bucket's own. Classes that
	// must be restored before they are read are refused: a snapshot is read back.
	StorageClass string     `yaml:"storage_class"`
	ObjectLock   ObjectLock `yaml:"object_lock"`
	// Accept names what the store may lack although it makes it less safe: Lacks* values.
	Accept []string `yaml:"accept"`
}

// TLS are the files of the bucket's connections.
func (s ObjectStore) TLS() TLS {
	return TLS{CAFile: s.CAFile, CertFile: s.CertFile, KeyFile: s.KeyFile}
}

// What a store may lack, as store.accept names it.
const (
	// LacksConditionalWrites: If-None-Match is ignored. Only the claim in NATS then keeps two workers apart.
	LacksConditionalWrites = "no-conditional-writes"
	// LacksMultipartAbort: parts of aborted uploads stay and are paid for.
	LacksMultipartAbort = "no-multipart-abort"
)

// SSE is encryption by the store itself, beside age.
type SSE struct {
	// Type is "s3" (SSE-S3, AES256) or "kms" (SSE-KMS); empty leaves it to the bucket.
	Type string `yaml:"type"`
	// KMSKeyID is the key's id or ARN for "kms"; the account's own key when empty.
	KMSKeyID string `yaml:"kms_key_id"`
}

// ObjectLock protects data and manifests from deletion by anybody. The bucket must have been made with object lock.
type ObjectLock struct {
	// Mode is "GOVERNANCE" or "COMPLIANCE"; empty: objects are not locked.
	Mode string `yaml:"mode"`
	// Days that each object is locked from the moment it is written.
	Days int `yaml:"days"`
}

// Encryption names who can read snapshots. No recipients means that data is stored in clear.
type Encryption struct {
	// Recipients are age public keys ("age1..."). Each of them alone can decrypt.
	Recipients []string `yaml:"recipients"`
	// IdentityFile is the age private key. Only drill and restore workers need one.
	IdentityFile SecretFile `yaml:"identity_file"`
}

// Target is one thing to back up. Exactly one of Etcd, Consul and Nomad is set.
type Target struct {
	Name   string  `yaml:"name"`
	Etcd   *Etcd   `yaml:"etcd"`
	Consul *Consul `yaml:"consul"`
	Nomad  *Nomad  `yaml:"nomad"`
	// Schedule is a cron line of five fields, or @every, @hourly, @daily and friends. Empty: only by hand.
	Schedule string `yaml:"schedule"`
	// TimeZone is an IANA name; UTC when empty.
	TimeZone string `yaml:"time_zone"`
	// Splay moves all ticks of the target by a fixed part of it, which follows from the target's name: targets with the same
	// schedule then do not all begin at once. Zero: no target is moved.
	Splay time.Duration `yaml:"splay"`
	// Blackout are times in which no job of the target is started by a schedule, in Alertmanager's time intervals and in the
	// target's time zone unless they name a location. A person's jobs run all the same.
	Blackout []Blackout `yaml:"blackout"`
	// CatchUp is what becomes of ticks that passed while no scheduler ran: CatchUpLatest (also when empty), CatchUpAll or CatchUpNone.
	CatchUp string `yaml:"catch_up"`
	// CatchUpWindow is how late a tick may still be run; with CatchUpAll 24h when empty, with CatchUpLatest any time.
	CatchUpWindow time.Duration `yaml:"catch_up_window"`
	// CatchUpMax is how many ticks CatchUpAll runs at most, the newest ones; 10 when empty.
	CatchUpMax int `yaml:"catch_up_max"`
	// Overlap is what becomes of a tick while the job before it waits or runs: OverlapSkip (also when empty), or OverlapQueue, which
	// runs one tick when that job has ended and skips further ones.
	Overlap string `yaml:"overlap"`
	// Paused stops the target's schedules, as `lifeboat schedule pause` does. A person's jobs run all the same.
	Paused bool `yaml:"paused"`
	// Zone names where the target can be reached from: only workers of this zone (--zone) take its jobs. Empty: any worker.
	Zone string `yaml:"zone"`
	// RPO is how old the newest good snapshot may get before it is an alert. Zero: no alert.
	RPO time.Duration `yaml:"rpo"`
	// Timeout is the longest a snapshot may take; 1h when empty. It bounds how long the source holds its read open.
	Timeout time.Duration `yaml:"timeout"`
	// MinKiBPerSecond is how much must be read in any one minute, in KiB/s of what a snapshot holds; -1 is no limit. When empty
	// it is 64 for etcd, whose database grows while a snapshot that crawls holds a read transaction open, and -1 for the others.
	MinKiBPerSecond int       `yaml:"min_kib_per_second"`
	ReadBack        ReadBack  `yaml:"read_back"`
	Drill           Drill     `yaml:"drill"`
	Verify          Verify    `yaml:"verify"`
	Retention       Retention `yaml:"retention"`
	Prune           Prune     `yaml:"prune"`

	// clock is that of TimeZone, shared by all targets that were loaded together.
	clock *clock
}

// Values of Target.CatchUp and Target.Overlap.
const (
	CatchUpLatest = "latest"
	CatchUpAll    = "all"
	CatchUpNone   = "none"
	OverlapSkip   = "skip"
	OverlapQueue  = "queue"
)

// Blackout is one of Alertmanager's time intervals:
// https://prometheus.io/docs/alerting/latest/configuration/#time_interval.
type Blackout struct{ timeinterval.TimeInterval }

// UnmarshalYAML implements yaml.InterfaceUnmarshaler.
func (b *Blackout) UnmarshalYAML(unmarshal func(any) error) error { return unmarshal(&b.TimeInterval) }

// Workers is about all workers together.
type Workers struct {
	FleetConcurrency FleetConcurrency `yaml:"fleet_concurrency"`
}

// FleetConcurrency is how many jobs of a kind all workers together run at once; 0 is no limit but their --concurrency.
type FleetConcurrency struct {
	Snapshot int `yaml:"snapshot"`
	Verify   int `yaml:"verify"`
	Drill    int `yaml:"drill"`
	Prune    int `yaml:"prune"`
}

// Of is the limit of one kind of work.
func (f FleetConcurrency) Of(w Work) int {
	switch w {
	case WorkSnapshot:
		return f.Snapshot
	case WorkVerify:
		return f.Verify
	case WorkDrill:
		return f.Drill
	case WorkPrune:
		return f.Prune
	}
	return 0
}

// ReadBack says how a fresh upload is compared before it is committed.
type ReadBack struct {
	// SampleAboveMiB: larger objects are compared by samples only. Zero: every object is read back whole.
	SampleAboveMiB int64 `yaml:"sample_above_mib"`
}

// Retention says which snapshots are kept; a snapshot is kept if any rule keeps it. An empty policy keeps everything.
// Days, weeks (from Monday), months and years are those of the target's time zone; of each, the newest snapshot is kept.
type Retention struct {
	// Last keeps that many of the newest.
	Last int `yaml:"last"`
	// Hourly and the next four keep the newest of each of that many hours, days, ... that have one.
	Hourly  int `yaml:"hourly"`
	Daily   int `yaml:"daily"`
	Weekly  int `yaml:"weekly"`
	Monthly int `yaml:"monthly"`
	Yearly  int `yaml:"yearly"`
	// Within keeps everything that is at most so much older than the newest snapshot: 36h, 30d, 2w. A target whose snapshots
	// have stopped loses nothing.
	Within Period `yaml:"within"`
	// ShrinkGuard is by how many percent of its keys (or jobs) the newest snapshot may have shrunk before nothing is
	// deleted until somebody confirms it; 40 when empty, 100 switches it off.
	ShrinkGuard int `yaml:"shrink_guard"`
}

// Empty says whether no rule keeps anything, which means that nothing is ever deleted.
func (r Retention) Empty() bool {
	r.ShrinkGuard = 0
	return r == Retention{}
}

// Prune says when retention is applied.
type Prune struct {
	// Schedule is a cron line; @daily when there is a retention policy and this is empty.
	Schedule string `yaml:"schedule"`
	// OrphanAge is how old data without a manifest, and an upload that was never completed, must be before it is removed; 24h
	// when empty, and at least twice the target's timeout. What a running job may still need is never removed, whatever its age.
	OrphanAge time.Duration `yaml:"orphan_age"`
}

// Drill says when a restore is rehearsed, of which snapshot, within which limits, and what must be in the restored data.
type Drill struct {
	Schedule string `yaml:"schedule"`
	// Snapshot is what a scheduled drill restores: "latest" (also when empty), "oldest" or "random".
	Snapshot string `yaml:"snapshot"`
	// MaxRTO is the longest that a restore may take, from the first byte fetched to a server that answers; a drill that
	// takes longer fails. Zero: any time.
	MaxRTO time.Duration `yaml:"max_rto"`
	// Timeout is the longest that a drill may take in all; 1h when empty.
	Timeout time.Duration `yaml:"timeout"`
	// MaxDiskMiB and MaxMemoryMiB are how much of the scratch folder and of memory a drill may use; 0 is no limit but what
	// there is. An etcd is restored in the worker's own process, all of whose growth counts: give drills with a budget of memory a
	// worker of their own, with --roles drill --concurrency 1.
	MaxDiskMiB   int64 `yaml:"max_disk_mib"`
	MaxMemoryMiB int64 `yaml:"max_memory_mib"`
	// Checks are what the user knows about the data.
	Checks []Check `yaml:"checks"`
	Escrow Escrow  `yaml:"escrow"`
}

// Check is one thing that must be true of the restored data. Exactly one of Key, Prefix, Count and Job is set. Values are never
// shown in a report.
type Check struct {
	// Key must exist (etcd and Consul). With Value, ValueFile or Matches its value must be that, what the file holds, or match
	// the regular expression (RE2, https://golang.org/s/re2syntax).
	Key       string     `yaml:"key"`
	Value     *string    `yaml:"value"`
	ValueFile SecretFile `yaml:"value_file"`
	Matches   string     `yaml:"matches"`
	// Prefix is the beginning of at least Min keys; of one when Min is empty (etcd and Consul).
	Prefix string `yaml:"prefix"`
	// Count is the name of something that is counted, as the manifest's counts name it (keys, jobs, variables, ...): at least Min.
	Count string `yaml:"count"`
	Min   int64  `yaml:"min"`
	// Job is the id of a job that must be there, in Namespace; "default" when that is empty (Nomad).
	Job       string `yaml:"job"`
	Namespace string `yaml:"namespace"`
}

// Escrow is a drill with a key that is not used otherwise, to prove that it decrypts.
type Escrow struct {
	Schedule string `yaml:"schedule"`
	// IdentityFile is an age private key.
	IdentityFile SecretFile `yaml:"identity_file"`
}

// Verify says when stored snapshots are read again and compared with their manifests.
type Verify struct {
	Schedule string `yaml:"schedule"`
}

// Etcd is an etcd v3 cluster.
type Etcd struct {
	// Endpoints are URLs of members. Each snapshot reads one of them.
	Endpoints    []string   `yaml:"endpoints"`
	TLS          TLS        `yaml:"tls"`
	Username     string     `yaml:"username"`
	PasswordFile SecretFile `yaml:"password_file"`
}

// Consul is the KV store of one Consul datacenter.
type Consul struct {
	Address   string     `yaml:"address"`
	TLS       TLS        `yaml:"tls"`
	TokenFile SecretFile `yaml:"token_file"`
	// Prefixes limits the backup to keys that begin with one of them; everything when empty.
	Prefixes []string `yaml:"prefixes"`
	// Full adds the raft snapshot of the whole datacenter, which holds every ACL secret. It needs a management token.
	Full bool `yaml:"full"`
}

// Nomad is one Nomad region.
type Nomad struct {
	Address   string     `yaml:"address"`
	TLS       TLS        `yaml:"tls"`
	TokenFile SecretFile `yaml:"token_file"`
	// Namespaces to read, by name; "*" or nothing means all.
	Namespaces []string `yaml:"namespaces"`
	// Full adds the operator snapshot, which holds the keyring and every ACL secret. It needs a management token.
	Full bool `yaml:"full"`
}

// Alertmanager says where the fleet's own alerts are posted.
type Alertmanager struct {
	// URLs of every Alertmanager of the cluster: they do not gossip alerts.
	URLs []string `yaml:"urls"`
	// ResendInterval is how often firing alerts are posted again; 1m when empty.
	ResendInterval time.Duration `yaml:"resend_interval"`
	// TLS, Username and PasswordFile are for every one of them, and are read again for each request.
	TLS          TLS        `yaml:"tls"`
	Username     string     `yaml:"username"`
	PasswordFile SecretFile `yaml:"password_file"`
}

// Work is what a job asks for. It is the third token of a job's subject.
type Work string

// The kinds of work that workers do today.
const (
	WorkSnapshot Work = "snapshot"
	WorkVerify   Work = "verify"
	WorkDrill    Work = "drill"
	WorkPrune    Work = "prune"
)

// Works are all of them, in the order in which they are usually done.
func Works() []Work { return []Work{WorkSnapshot, WorkVerify, WorkDrill, WorkPrune} }

// ScheduleOf is the target's cron line for a kind of work; empty when it has none.
func (t Target) ScheduleOf(w Work) string {
	switch w {
	case WorkSnapshot:
		return t.Schedule
	case WorkVerify:
		return t.Verify.Schedule
	case WorkDrill:
		return t.Drill.Schedule
	case WorkPrune:
		if t.Prune.Schedule == "" && !t.Retention.Empty() {
			return "@daily"
		}
		return t.Prune.Schedule
	}
	return ""
}

// Kind is "etcd", "consul" or "nomad".
func (t Target) Kind() string {
	switch {
	case t.Etcd != nil:
		return "etcd"
	case t.Consul != nil:
		return "consul"
	case t.Nomad != nil:
		return "nomad"
	}
	return ""
}

// Target finds a target by name.
func (c *Config) Target(name string) (Target, bool) {
	if i, ok := c.index[name]; ok && i < len(c.Targets) && c.Targets[i].Name == name {
		return c.Targets[i], true
	}
	for i := range c.Targets { // a Config that was put together, or changed, by hand
		if c.Targets[i].Name == name {
			return c.Targets[i], true
		}
	}
	return Target{}, false
}

// Defaults for fields whose zero value means "the usual".
const (
	defaultNATSURL     = "nats://127.0.0.1:4222"
	defaultTimeout     = time.Hour
	defaultResend      = time.Minute
	defaultMinKiB      = 64
	noPace             = -1
	defaultShrinkGuard = 40
	defaultOrphanAge   = 24 * time.Hour
	defaultDrillLimit  = time.Hour
	defaultRegion      = "us-east-1"

	defaultCatchUpWindow = 24 * time.Hour
	defaultCatchUpMax    = 10
)

func (c *Config) setDefaults() {
	if c.NATS.URL == "" {
		c.NATS.URL = defaultNATSURL
	}
	if c.NATS.Replicas == 0 {
		c.NATS.Replicas = 1
	}
	if c.Store.Region == "" {
		c.Store.Region = defaultRegion
	}
	if c.Store.Copy != nil && c.Store.Copy.Region == "" {
		c.Store.Copy.Region = defaultRegion
	}
	if c.Alertmanager.ResendInterval == 0 {
		c.Alertmanager.ResendInterval = defaultResend
	}
	c.Notifier.setDefaults()
	c.Page.setDefaults()
}

func (t *Target) setDefaults() {
	if t.Timeout == 0 {
		t.Timeout = defaultTimeout
	}
	if t.MinKiBPerSecond == 0 {
		t.MinKiBPerSecond = noPace
		if t.Etcd != nil {
			t.MinKiBPerSecond = defaultMinKiB
		}
	}
	if t.Retention.ShrinkGuard == 0 {
		t.Retention.ShrinkGuard = defaultShrinkGuard
	}
	if t.CatchUp == "" {
		t.CatchUp = CatchUpLatest
	}
	if t.CatchUp == CatchUpAll && t.CatchUpWindow == 0 {
		t.CatchUpWindow = defaultCatchUpWindow
	}
	if t.CatchUpMax == 0 {
		t.CatchUpMax = defaultCatchUpMax
	}
	if t.Overlap == "" {
		t.Overlap = OverlapSkip
	}
	if t.Drill.Timeout == 0 {
		t.Drill.Timeout = defaultDrillLimit
	}
	if t.Prune.OrphanAge == 0 {
		t.Prune.OrphanAge = defaultOrphanAge
	}
}
