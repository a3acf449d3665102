package config_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
)

// drilled is the good file with another drill of its first target, which is etcd, or its second, which is Consul, or with a third.
func drilled(kind, drill string) string {
	switch kind {
	case "etcd":
		return strings.Replace(good, `drill: {schedule: "0 4 * * 0"}`, "drill: "+drill, 1)
	case "consul":
		return strings.Replace(good, `consul: {address: "http://127.0.0.1:8500"}`, `consul: {address: "http://127.0.0.1:8500"}`+"\n    drill: "+drill, 1)
	}
	return strings.Replace(good, "alertmanager:", "  - name: nomad-jobs\n    nomad: {address: \"http://127.0.0.1:4646\"}\n    drill: "+drill+"\nalertmanager:", 1)
}

func TestADrillsSettings(t *testing.T) {
	cfg, err := config.Parse("/etc/lifeboat/lifeboat.yaml", []byte(drilled("etcd", `{schedule: "0 4 * * 0", snapshot: random, max_rto: 10m, timeout: 30m,
      max_disk_mib: 8192, max_memory_mib: 1024, escrow: {schedule: "0 5 1 * *", identity_file: escrow-identity},
      checks: [{key: a}, {key: b, value: ""}, {key: c, value_file: wanted}, {key: d, matches: "^ok$"}, {prefix: p/}, {prefix: q/, min: 3}, {count: keys, min: 9}]}`)))
	require.NoError(t, err)
	target, _ := cfg.Target("etcd-prod")
	d := target.Drill
	assert.Equal(t, config.SnapshotRandom, d.Snapshot)
	assert.Equal(t, 10*time.Minute, d.MaxRTO)
	assert.Equal(t, 30*time.Minute, d.Timeout)
	assert.Equal(t, config.SecretFile("/etc/lifeboat/escrow-identity"), d.Escrow.IdentityFile, "relative to the file")
	require.Len(t, d.Checks, 7)
	assert.Nil(t, d.Checks[0].Value)
	require.NotNil(t, d.Checks[1].Value, "an empty value is one")
	assert.Equal(t, config.SecretFile("/etc/lifeboat/wanted"), d.Checks[2].ValueFile)

	_, err = config.Parse("lifeboat.yaml", []byte(drilled("nomad", "{checks: [{job: web}, {job: api, namespace: apps}, {count: jobs, min: 2}]}")))
	require.NoError(t, err)
	_, err = config.Parse("lifeboat.yaml", []byte(drilled("consul", "{checks: [{key: config/db}, {prefix: config/}], escrow: {identity_file: only-by-hand}}")))
	require.NoError(t, err)
}

// A drill with the worker's own key says nothing about the one in the safe.
func TestAnEscrowKeyIsAnotherOne(t *testing.T) {
	text := "encryption: {identity_file: own}\n" + drilled("etcd", "{escrow: {identity_file: KEY}}")
	_, err := config.Parse("lifeboat.yaml", []byte(strings.Replace(text, "KEY", "other", 1)))
	require.NoError(t, err)
	_, err = config.Parse("lifeboat.yaml", []byte(strings.Replace(text, "KEY", "own", 1)))
	require.ErrorContains(t, err, "targets[0].drill.escrow.identity_file: is encryption.identity_file itself")
}

func TestBadDrillSettingsNameTheirKey(t *testing.T) {
	for name, c := range map[string]struct {
		kind, drill string
		want        []string
	}{
		"unknown snapshot":        {"etcd", "{snapshot: newest}", []string{"lifeboat.yaml:13:", "targets[0].drill.snapshot", "latest, oldest, random"}},
		"negative rto":            {"etcd", "{max_rto: -1m}", []string{"lifeboat.yaml:13:", "targets[0].drill.max_rto", "negative"}},
		"an rto never seen":       {"etcd", "{max_rto: 2h}", []string{"targets[0].drill.max_rto", "drill.timeout, 1h0m0s"}},
		"negative timeout":        {"etcd", "{timeout: -1m}", []string{"lifeboat.yaml:13:", "targets[0].drill.timeout", "negative"}},
		"negative disk":           {"etcd", "{max_disk_mib: -1}", []string{"lifeboat.yaml:13:", "targets[0].drill.max_disk_mib", "0 is no limit"}},
		"negative memory":         {"etcd", "{max_memory_mib: -1}", []string{"lifeboat.yaml:13:", "targets[0].drill.max_memory_mib"}},
		"escrow without a key":    {"etcd", `{escrow: {schedule: "@monthly"}}`, []string{"lifeboat.yaml:13:", "targets[0].drill.escrow", "identity_file"}},
		"bad escrow cron":         {"etcd", "{escrow: {schedule: monthly, identity_file: k}}", []string{"lifeboat.yaml:13:", "targets[0].drill.escrow.schedule", "monthly"}},
		"an escrow key as value":  {"etcd", "{escrow: {identity: AGE-SECRET-KEY-1}}", []string{"lifeboat.yaml:13:", "identity"}},
		"nothing to check":        {"etcd", "{checks: [{min: 1}]}", []string{"lifeboat.yaml:13:", "targets[0].drill.checks[0]", "exactly one of key, prefix, count and job; it has none"}},
		"two things to check":     {"etcd", "{checks: [{key: a, prefix: b}]}", []string{"targets[0].drill.checks[0]", "it has key and prefix"}},
		"the second check":        {"etcd", "{checks: [{key: a}, {prefix: b, min: -1}]}", []string{"targets[0].drill.checks[1].min", "negative"}},
		"value and matches":       {"etcd", "{checks: [{key: a, value: x, matches: y}]}", []string{"targets[0].drill.checks[0]", "value and matches exclude each other"}},
		"value and file":          {"etcd", "{checks: [{key: a, value: x, value_file: y}]}", []string{"targets[0].drill.checks[0]", "value and value_file exclude"}},
		"a value without a key":   {"etcd", "{checks: [{prefix: a, value: x}]}", []string{"targets[0].drill.checks[0].value", "goes with key"}},
		"no regular expression":   {"etcd", "{checks: [{key: a, matches: '('}]}", []string{"targets[0].drill.checks[0].matches", "missing closing"}},
		"a minimum of a key":      {"etcd", "{checks: [{key: a, min: 2}]}", []string{"targets[0].drill.checks[0].min", "prefix or count"}},
		"a count without minimum": {"etcd", "{checks: [{count: keys}]}", []string{"targets[0].drill.checks[0]", "min of at least 1"}},
		"a namespace of a key":    {"etcd", "{checks: [{key: a, namespace: b}]}", []string{"targets[0].drill.checks[0].namespace", "goes with job"}},
		"a job in etcd":           {"etcd", "{checks: [{job: web}]}", []string{"targets[0].drill.checks[0].job", "kind etcd has no jobs"}},
		"a job in Consul":         {"consul", "{checks: [{job: web}]}", []string{"lifeboat.yaml:16:", "targets[1].drill.checks[0].job", "kind consul has no jobs"}},
		"a key in Nomad":          {"nomad", "{checks: [{key: a}]}", []string{"lifeboat.yaml:18:", "targets[2].drill.checks[0].key", "kind nomad has no keys"}},
		"a prefix in Nomad":       {"nomad", "{checks: [{prefix: a}]}", []string{"targets[2].drill.checks[0].prefix", "kind nomad has no keys"}},
		"too many checks":         {"etcd", "{checks: [" + strings.Repeat("{key: a}, ", 1001) + "]}", []string{"targets[0].drill.checks", "has 1001 checks"}},
		"an unknown setting":      {"etcd", "{checks: [{keys: a}]}", []string{"lifeboat.yaml:13:", "keys"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := config.Parse("lifeboat.yaml", []byte(drilled(c.kind, c.drill)))
			require.Error(t, err)
			for _, want := range c.want {
				require.ErrorContains(t, err, want)
			}
			var place *config.Error
			require.ErrorAs(t, err, &place)
			assert.Positive(t, place.Line)
		})
	}
}
