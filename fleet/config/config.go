// Package config is the shape of lifeboat.yaml, the one file that every service reads.
//
// Decoding is strict: an unknown key, a wrong type or a bad value is an error that names file, line and key and shows the
// line. The whole file is checked by every service, so that no service accepts what another one refuses. A secret is
// never a value: it is the path of a file (a key that ends in _file), relative to the folder of lifeboat.yaml, and is
// read when it is used, so that it may rotate.
package config

import (
	"time"
)

// Config is a whole lifeboat.yaml. Fields that a service does not use are checked all the same.
type Config struct {
	NATS         NATS         `yaml:"nats"`
	Store        Store        `yaml:"store"`
	Encryption   Encryption   `yaml:"encryption"`
	Targets      []Target     `yaml:"targets"`
	Alertmanager Alertmanager `yaml:"alertmanager"`
	Notifier     Notifier     `yaml:"notifier"`
}

// NATS says how to reach the servers that carry jobs, events and alerts.
type NATS struct {
	// URL is one server or several, separated by commas.
	URL       string     `yaml:"url"`
	CredsFile SecretFile `yaml:"creds_file"`
	TLS       TLS        `yaml:"tls"`
	// Replicas of every stream; 1 when empty. Production wants 3.
	Replicas int `yaml:"replicas"`
}

// TLS names the files of a client's TLS. All empty means the scheme of the address decides, with the system's roots.
type TLS struct {
	CAFile   string     `yaml:"ca_file"`
	CertFile string     `yaml:"cert_file"`
	KeyFile  SecretFile `yaml:"key_file"`
}

// Store is the bucket that holds every snapshot.
type Store struct {
	Bucket    string `yaml:"bucket"`
	Prefix    string `yaml:"prefix"`
	Endpoint  string `yaml:"endpoint"`
	Region    string `yaml:"region"`
	PathStyle bool   `yaml:"path_style"`
	CAFile    string `yaml:"ca_file"`
	// Both empty: the AWS SDK's own chain (environment, web identity, instance role).
	AccessKeyIDFile     SecretFile `yaml:"access_key_id_file"`
	SecretAccessKeyFile SecretFile `yaml:"secret_access_key_file"`
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
	// RPO is how old the newest good snapshot may get before it is an alert. Zero: no alert.
	RPO time.Duration `yaml:"rpo"`
	// Timeout is the longest a snapshot may take; 1h when empty. It bounds how long the source holds its read open.
	Timeout time.Duration `yaml:"timeout"`
	Drill   Drill         `yaml:"drill"`
	Verify  Verify        `yaml:"verify"`
}

// Drill says when a restore of the newest snapshot is rehearsed.
type Drill struct {
	Schedule string `yaml:"schedule"`
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
}

// Nomad is one Nomad region.
type Nomad struct {
	Address   string     `yaml:"address"`
	TLS       TLS        `yaml:"tls"`
	TokenFile SecretFile `yaml:"token_file"`
}

// Alertmanager says where the fleet's own alerts are posted.
type Alertmanager struct {
	// URLs of every Alertmanager of the cluster: they do not gossip alerts.
	URLs []string `yaml:"urls"`
	// ResendInterval is how often firing alerts are posted again; 1m when empty.
	ResendInterval time.Duration `yaml:"resend_interval"`
}

// Notifier says who is told what.
type Notifier struct {
	// Listen is the address of the webhook; 127.0.0.1:9095 when empty.
	Listen    string     `yaml:"listen"`
	Receivers []Receiver `yaml:"receivers"`
	Route     Route      `yaml:"route"`
	Runbooks  Runbooks   `yaml:"runbooks"`
	// GiveUpAfter is how long a delivery is retried before it becomes a dead letter; 24h when empty.
	GiveUpAfter time.Duration `yaml:"give_up_after"`
}

// Receiver is a chat to deliver to. Exactly one of Slack and DingTalk is set.
type Receiver struct {
	Name     string    `yaml:"name"`
	Slack    *Slack    `yaml:"slack"`
	DingTalk *DingTalk `yaml:"dingtalk"`
}

// Slack is an incoming webhook. Its URL is the credential.
type Slack struct {
	WebhookURLFile SecretFile `yaml:"webhook_url_file"`
}

// DingTalk is a custom robot (自定义机器人) with a signing secret.
type DingTalk struct {
	WebhookURLFile SecretFile `yaml:"webhook_url_file"`
	SecretFile     SecretFile `yaml:"secret_file"`
}

// Route sends alerts whose labels match to a receiver, as Alertmanager's route does: the first child that matches takes
// the alert, and further ones only after a child with continue.
type Route struct {
	Receiver string   `yaml:"receiver"`
	Matchers []string `yaml:"matchers"`
	Continue bool     `yaml:"continue"`
	Routes   []Route  `yaml:"routes"`
}

// Runbooks says where the page of an alert without runbook_url is found.
type Runbooks struct {
	// BaseURL is put before the alert's name in kebab case: LifeboatDrillFailed is BaseURL/lifeboat-drill-failed.
	BaseURL string `yaml:"base_url"`
	// Suffix is put after it: ".md" for pages in a repository.
	Suffix string `yaml:"suffix"`
}

// Work is what a job asks for. It is the third token of a job's subject.
type Work string

// The kinds of work that workers do today.
const (
	WorkSnapshot Work = "snapshot"
	WorkVerify   Work = "verify"
	WorkDrill    Work = "drill"
)

// WorkPrune applies retention, which does not exist yet: the subject does, and a job on it is refused with that reason.
const WorkPrune Work = "prune"

// Works are those that can be scheduled, in the order in which they are usually done.
func Works() []Work { return []Work{WorkSnapshot, WorkVerify, WorkDrill} }

// ScheduleOf is the target's cron line for a kind of work; empty when it has none.
func (t Target) ScheduleOf(w Work) string {
	switch w {
	case WorkSnapshot:
		return t.Schedule
	case WorkVerify:
		return t.Verify.Schedule
	case WorkDrill:
		return t.Drill.Schedule
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
	for _, t := range c.Targets {
		if t.Name == name {
			return t, true
		}
	}
	return Target{}, false
}

// Defaults for fields whose zero value means "the usual".
const (
	defaultNATSURL     = "nats://127.0.0.1:4222"
	defaultTimeout     = time.Hour
	defaultResend      = time.Minute
	defaultListen      = "127.0.0.1:9095"
	defaultGiveUpAfter = 24 * time.Hour
)

func (c *Config) setDefaults() {
	if c.NATS.URL == "" {
		c.NATS.URL = defaultNATSURL
	}
	if c.NATS.Replicas == 0 {
		c.NATS.Replicas = 1
	}
	if c.Store.Region == "" {
		c.Store.Region = "us-east-1"
	}
	for i := range c.Targets {
		if c.Targets[i].Timeout == 0 {
			c.Targets[i].Timeout = defaultTimeout
		}
	}
	if c.Alertmanager.ResendInterval == 0 {
		c.Alertmanager.ResendInterval = defaultResend
	}
	if c.Notifier.Listen == "" {
		c.Notifier.Listen = defaultListen
	}
	if c.Notifier.GiveUpAfter == 0 {
		c.Notifier.GiveUpAfter = defaultGiveUpAfter
	}
}
