package config_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
)

const good = `nats: {url: "nats://127.0.0.1:4222", replicas: 3}
store:
  bucket: backups
  endpoint: https://s3.example.com
  access_key_id_file: secrets/key-id
  secret_access_key_file: /run/secrets/key
targets:
  - name: etcd-prod
    etcd: {endpoints: ["https://127.0.0.1:2379"]}
    schedule: "0 */6 * * *"
    time_zone: Asia/Shanghai
    rpo: 12h
    drill: {schedule: "0 4 * * 0"}
  - name: consul-kv
    consul: {address: "http://127.0.0.1:8500"}
alertmanager: {urls: ["http://127.0.0.1:9093"]}
notifier:
  receivers:
    - name: ops-slack
      slack: {webhook_url_file: slack-url}
    - name: ops-dingtalk
      dingtalk: {webhook_url_file: dingtalk-url, secret_file: dingtalk-secret}
  route:
    receiver: ops-slack
    routes:
      - receiver: ops-dingtalk
        matchers: ['severity="critical"', 'team=~"平台|platform"']
        continue: true
`

func TestAGoodFile(t *testing.T) {
	cfg, err := config.Parse("/etc/lifeboat/lifeboat.yaml", []byte(good))
	require.NoError(t, err)
	target, ok := cfg.Target("etcd-prod")
	require.True(t, ok)
	assert.Equal(t, 12*time.Hour, target.RPO)
	assert.Equal(t, time.Hour, target.Timeout, "a default")
	assert.Equal(t, "etcd", target.Kind())
	assert.Equal(t, "0 4 * * 0", target.ScheduleOf(config.WorkDrill))
	assert.Equal(t, config.SecretFile("/etc/lifeboat/secrets/key-id"), cfg.Store.AccessKeyIDFile, "relative to the file")
	assert.Equal(t, config.SecretFile("/run/secrets/key"), cfg.Store.SecretAccessKeyFile)
	assert.Equal(t, config.SecretFile("/etc/lifeboat/slack-url"), cfg.Notifier.Receivers[0].Slack.WebhookURLFile)
}

func TestTheExampleIsAGoodFile(t *testing.T) {
	path := filepath.Join("..", "..", "docs", "lifeboat.example.yaml")
	cfg, err := config.Load(path)
	require.NoError(t, err)
	etcd, _ := cfg.Target("etcd-prod")
	assert.Equal(t, "30d", etcd.Retention.Within.String())
	assert.Equal(t, "platform-backups-copy", cfg.Store.Copy.Bucket)
	assert.Equal(t, 10*time.Minute, etcd.Splay)
	assert.Equal(t, []any{config.CatchUpAll, 12 * time.Hour, 3, config.OverlapQueue, "beijing"},
		[]any{etcd.CatchUp, etcd.CatchUpWindow, etcd.CatchUpMax, etcd.Overlap, etcd.Zone})
	assert.Len(t, etcd.Blackout, 2)
	assert.Equal(t, 2, cfg.Workers.FleetConcurrency.Of(config.WorkDrill))
	consul, _ := cfg.Target("consul-kv")
	assert.Equal(t, []any{config.CatchUpLatest, time.Duration(0), 10, config.OverlapSkip, ""},
		[]any{consul.CatchUp, consul.CatchUpWindow, consul.CatchUpMax, consul.Overlap, consul.Zone}, "what they are when left out")
	assert.Equal(t, -1, consul.MinKiBPerSecond, "no limit")
	assert.True(t, consul.Retention.Empty())
	assert.Empty(t, consul.ScheduleOf(config.WorkPrune), "without a policy nothing is pruned")
}

func TestAnInboxMayBeOfTheRole(t *testing.T) {
	assert.Equal(t, "_INBOX_drill", config.NATS{InboxPrefix: "_INBOX_{role}"}.Inbox("drill"))
	assert.Equal(t, "_INBOX.backups", config.NATS{InboxPrefix: "_INBOX.backups"}.Inbox("drill"))
	assert.Empty(t, config.NATS{}.Inbox("drill"))
}

func TestAPolicyIsAppliedDailyUnlessItSaysWhen(t *testing.T) {
	target := config.Target{Retention: config.Retention{Daily: 7, ShrinkGuard: 40}}
	assert.Equal(t, "@daily", target.ScheduleOf(config.WorkPrune))
	target.Prune.Schedule = "0 5 * * *"
	assert.Equal(t, "0 5 * * *", target.ScheduleOf(config.WorkPrune))
}

func TestBadInputNamesFileLineAndKey(t *testing.T) {
	cases := map[string]struct {
		old, new string
		want     []string
	}{
		"unknown key":         {"    rpo: 12h", "    rpoo: 12h", []string{"lifeboat.yaml:12:5: ", "rpoo", "  12 |     rpoo: 12h"}},
		"wrong type":          {"replicas: 3", "replicas: three", []string{"lifeboat.yaml:1:", "nats.replicas", "three"}},
		"bad duration":        {"rpo: 12h", "rpo: soon", []string{"lifeboat.yaml:12:", "targets[0].rpo", "soon"}},
		"bad cron":            {"0 */6 * * *", "0 */6 * *", []string{"lifeboat.yaml:10:", "targets[0].schedule", "0 */6 * *"}},
		"a date that is not":  {"0 */6 * * *", "0 0 30 2 *", []string{"lifeboat.yaml:10:", "targets[0].schedule", "never fires"}},
		"zone in cron":        {"0 */6 * * *", "TZ=UTC", []string{"lifeboat.yaml:10:", "targets[0].schedule", "time_zone"}},
		"bad period":          {"    rpo: 12h", "    retention: {within: month}", []string{"lifeboat.yaml:12:", "targets[0].retention.within", "month", "30d or 2w"}},
		"negative rule":       {"    rpo: 12h", "    retention: {daily: -1}", []string{"lifeboat.yaml:12:", "targets[0].retention.daily"}},
		"guard over 100":      {"    rpo: 12h", "    retention: {last: 1, shrink_guard: 101}", []string{"lifeboat.yaml:12:", "targets[0].retention.shrink_guard", "percentage"}},
		"orphans too young":   {"    rpo: 12h", "    prune: {orphan_age: 1h}", []string{"lifeboat.yaml:12:", "targets[0].prune.orphan_age", "twice"}},
		"a timeout of a day":  {"    rpo: 12h", "    timeout: 24h", []string{"lifeboat.yaml:12:", "targets[0].timeout", "orphan_age"}},
		"bad prune cron":      {"    rpo: 12h", "    prune: {schedule: never}", []string{"lifeboat.yaml:12:", "targets[0].prune.schedule", "never"}},
		"unknown lock mode":   {"  bucket: backups", "  bucket: backups\n  object_lock: {mode: STRICT, days: 1}", []string{"lifeboat.yaml:4:", "store.object_lock.mode", "GOVERNANCE"}},
		"lock without days":   {"  bucket: backups", "  bucket: backups\n  object_lock: {mode: GOVERNANCE}", []string{"lifeboat.yaml:4:", "store.object_lock", "go together"}},
		"unreadable class":    {"  bucket: backups", "  bucket: backups\n  storage_class: DEEP_ARCHIVE", []string{"lifeboat.yaml:4:", "store.storage_class", "read back"}},
		"unknown sse":         {"  bucket: backups", "  bucket: backups\n  sse: {type: aes}", []string{"lifeboat.yaml:4:", "store.sse.type", "kms"}},
		"unknown acceptance":  {"  bucket: backups", "  bucket: backups\n  accept: [everything]", []string{"lifeboat.yaml:4:", "store.accept[0]", "no-conditional-writes"}},
		"a copy of itself":    {"  bucket: backups\n  endpoint: https://s3.example.com", "  bucket: backups\n  endpoint: https://s3.example.com\n  copy: {bucket: backups, endpoint: \"https://s3.example.com\"}", []string{"lifeboat.yaml:5:", "store.copy", "somewhere else"}},
		"bad prefix":          {"consul: {address: \"http://127.0.0.1:8500\"}", "consul: {address: \"http://127.0.0.1:8500\", prefixes: [\"/config\"]}", []string{"lifeboat.yaml:15:", "targets[1].consul.prefixes[0]"}},
		"unknown zone":        {"Asia/Shanghai", "Asia/Shangai", []string{"lifeboat.yaml:11:", "targets[0].time_zone", "Asia/Shangai"}},
		"bad drill cron":      {"0 4 * * 0", "sundays", []string{"lifeboat.yaml:13:", "targets[0].drill.schedule", "sundays"}},
		"duplicate target":    {"name: consul-kv", "name: etcd-prod", []string{"lifeboat.yaml:14:", "targets[1].name", "already the name of targets[0]"}},
		"bad name":            {"name: consul-kv", "name: Consul.KV", []string{"lifeboat.yaml:14:", "targets[1].name"}},
		"no source":           {"    consul: {address: \"http://127.0.0.1:8500\"}\n", "", []string{"targets[1]", "exactly one of etcd, consul and nomad"}},
		"unknown receiver":    {"receiver: ops-dingtalk", "receiver: ops-dingding", []string{"lifeboat.yaml:26:", "notifier.route.routes[0].receiver", `no receiver is named "ops-dingding"`}},
		"bad matcher":         {`severity="critical"`, `severity=="critical`, []string{"lifeboat.yaml:27:", "notifier.route.routes[0].matchers[0]"}},
		"bad endpoint":        {"https://s3.example.com", "s3.example.com", []string{"lifeboat.yaml:4:", "store.endpoint"}},
		"password in URL":     {"http://127.0.0.1:8500", "http://u:geheim@127.0.0.1:8500", []string{"lifeboat.yaml:15:", "targets[1].consul.address", "secrets go into files"}},
		"a login in nats.url": {"nats://127.0.0.1:4222", "nats://u:geheim@127.0.0.1:4222", []string{"lifeboat.yaml:1:", "nats.url", "secrets go into files"}},
		"two ways to log in":  {"replicas: 3", "creds_file: a, nkey_file: b", []string{"lifeboat.yaml:1:", "nats", "one of creds_file, nkey_file and username", "2 of them"}},
		"half a login":        {"replicas: 3", "username: lifeboat", []string{"lifeboat.yaml:1:", "nats", "password_file"}},
		"a wildcard inbox":    {"replicas: 3", "inbox_prefix: \"_INBOX.>\"", []string{"lifeboat.yaml:1:", "nats.inbox_prefix", "_INBOX_{role}"}},
		"a strange monitor":   {"replicas: 3", "monitor_urls: [\"nats://n1:8222\"]", []string{"lifeboat.yaml:1:", "nats.monitor_urls[0]", "http://"}},
		"no bucket":           {"  bucket: backups\n", "", []string{"lifeboat.yaml:3:", "store.bucket", "is missing"}},
		"a secret as value":   {"slack: {webhook_url_file: slack-url}", "slack: {webhook_url: slack-url}", []string{"lifeboat.yaml:20:", "webhook_url"}},
		"not YAML":            {"store:\n", "store: [\n", []string{"lifeboat.yaml:"}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			require.Contains(t, good, c.old)
			_, err := config.Parse("lifeboat.yaml", []byte(strings.Replace(good, c.old, c.new, 1)))
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

func TestPlacesKeepsTheLinesToItself(t *testing.T) {
	_, err := config.Parse("lifeboat.yaml", []byte(strings.Replace(good, "webhook_url_file: slack-url", "webhook_url: https://hooks/geheim", 1)))
	require.ErrorContains(t, err, "geheim", "a person at a terminal sees the line")
	places := config.Places(err)
	assert.Contains(t, places, "lifeboat.yaml:20:")
	assert.NotContains(t, places, "geheim")

	_, err = config.Parse("lifeboat.yaml", []byte(strings.NewReplacer("rpo: 12h", "rpo: -12h", "0 */6 * * *", "geheim").Replace(good)))
	places = config.Places(err)
	assert.Contains(t, places, "targets[0].rpo")
	assert.Contains(t, places, "targets[0].schedule")
}

func TestEverythingWrongIsSaidAtOnce(t *testing.T) {
	bad := strings.NewReplacer("0 */6 * * *", "whenever", "receiver: ops-dingtalk", "receiver: nobody").Replace(good)
	_, err := config.Parse("lifeboat.yaml", []byte(bad))
	require.ErrorContains(t, err, "whenever")
	require.ErrorContains(t, err, "nobody")
}

func TestASecretIsReadWhenUsed(t *testing.T) {
	f := config.SecretFile(filepath.Join(t.TempDir(), "token"))
	_, err := f.Read()
	require.ErrorIs(t, err, os.ErrNotExist)
	require.NoError(t, os.WriteFile(string(f), []byte("first\n"), 0o600))
	got, err := f.Read()
	require.NoError(t, err)
	assert.Equal(t, "first", got)
	require.NoError(t, os.WriteFile(string(f), []byte("second\n"), 0o600))
	got, err = f.Read()
	require.NoError(t, err)
	assert.Equal(t, "second", got, "rotated")
	require.NoError(t, os.WriteFile(string(f), []byte("\n"), 0o600))
	_, err = f.Read()
	require.ErrorContains(t, err, "is empty")
}

func FuzzParse(f *testing.F) {
	f.Add(good)
	f.Add("targets: [{name: a, etcd: {endpoints: [x]}, schedule: '@every 1s'}]")
	f.Add("{")
	f.Fuzz(func(t *testing.T, src string) {
		cfg, err := config.Parse("lifeboat.yaml", []byte(src))
		if err == nil {
			require.NotNil(t, cfg)
			return
		}
		var place *config.Error
		require.ErrorAs(t, err, &place, "an error without a place")
	})
}

func FuzzParseSchedule(f *testing.F) {
	for _, s := range []string{"0 */6 * * *", "@every 1h", "TZ=UTC", "0 0 30 2 *", "@daily", "* * * *"} {
		f.Add(s, "Asia/Shanghai")
	}
	f.Fuzz(func(t *testing.T, line, zone string) {
		s, err := config.ParseSchedule(line, zone)
		if err == nil {
			now := time.Now()
			require.True(t, s.Next(now).After(now))
		}
	})
}
