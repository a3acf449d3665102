package config_test

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
)

// notifying is a notifier of which a test changes one line.
const notifying = `alertmanager: {urls: ["http://127.0.0.1:9093"]}
notifier:
  listen: 127.0.0.1:9095
  web_config_file: web.yml
  bearer_tokens_file: tokens
  template_files: ["templates/*.tmpl", /etc/lifeboat/more.tmpl]
  events: [drill.passed, snapshot.*]
  give_up_after: 6h
  flapping: {changes: 6, window: 5m}
  reconcile: {interval: -1s, after: 20m}
  runbooks:
    base_url: https://runbooks.example.com
    pages_dir: runbooks
    policy: {critical: error, "*": ignore}
  interactions:
    listen: 127.0.0.1:9096
    external_url: https://alerts.example.com
    link_secret_file: link-secret
    slack_app_token_file: app-token
  receivers:
    - name: ops
      slack: {bot_token_file: bot-token, channel: C0123456789}
      time_zone: Asia/Shanghai
      fallback: db
      fallback_after: 5m
      canary: {schedule: "0 9 * * 1"}
    - name: db
      dingtalk: {webhook_url_file: robot, secret_file: robot-secret, style: action_card}
      language: zh
      limit: {messages: 10, per: 1m, reserve: 3}
    - name: hook
      slack: {webhook_url_file: hook-url}
  time_intervals:
    - name: nights
      time_intervals:
        - times: [{start_time: "22:00", end_time: "24:00"}]
          location: Asia/Shanghai
    - {name: office, time_intervals: [{weekdays: ["monday:friday"]}]}
  route:
    receiver: ops
    repeat_interval: 2h
    mentions: {critical: [here, U0123456], "*": ["+86-13800138000", "user:manager.1"]}
    routes:
      - matchers: ['severity="critical"']
        receiver: db
        mute_time_intervals: [nights]
        routes:
          - {matchers: ['"été"=~"o.*"'], active_time_intervals: [office], repeat_interval: 5m}
      - {matchers: [team=web], receiver: hook}
`

func TestANotifiersSettings(t *testing.T) {
	cfg, err := config.Parse("/etc/lifeboat/lifeboat.yaml", []byte(notifying))
	require.NoError(t, err)
	n := cfg.Notifier
	for got, want := range map[string]string{
		n.WebConfigFile: "/etc/lifeboat/web.yml", string(n.BearerTokensFile): "/etc/lifeboat/tokens",
		n.TemplateFiles[0]: "/etc/lifeboat/templates/*.tmpl", n.TemplateFiles[1]: "/etc/lifeboat/more.tmpl",
		n.Runbooks.PagesDir: "/etc/lifeboat/runbooks", string(n.Interactions.LinkSecretFile): "/etc/lifeboat/link-secret",
		string(n.Interactions.SlackAppTokenFile): "/etc/lifeboat/app-token", string(n.Receivers[0].Slack.BotTokenFile): "/etc/lifeboat/bot-token",
		string(n.Receivers[1].DingTalk.SecretFile): "/etc/lifeboat/robot-secret", string(n.Receivers[2].Slack.WebhookURLFile): "/etc/lifeboat/hook-url",
	} {
		assert.Equal(t, want, got, "relative to the file")
	}
	assert.Empty(t, n.Interactions.WebConfigFile)
	assert.Equal(t, -time.Second, n.Reconcile.Interval, "switched off")
	assert.Equal(t, []string{"user:manager.1"}, n.Route.Mentions["*"][1:])
	at := time.Date(2026, 11, 20, 14, 30, 0, 0, time.UTC)
	assert.True(t, n.TimeIntervals[0].Contains(at), "22:30 in Shanghai")
	assert.False(t, n.TimeIntervals[0].Contains(at.Add(-time.Hour)))
	assert.True(t, n.TimeIntervals[1].Contains(at))
	assert.False(t, n.TimeIntervals[1].Contains(at.AddDate(0, 0, 1)))
}

func TestWhatANotifierIsWhenLeftOut(t *testing.T) {
	cfg, err := config.Parse("lifeboat.yaml", []byte(`
notifier:
  receivers:
    - {name: a, slack: {webhook_url_file: a}}
    - {name: b, dingtalk: {webhook_url_file: b}}
    - {name: one, slack: {webhook_url_file: c}, limit: {messages: 1}}
    - {name: free, slack: {webhook_url_file: d}, limit: {messages: -1}}
    - {name: eight, slack: {webhook_url_file: e}, limit: {messages: 8, reserve: -1}}
  route: {receiver: a}
`))
	require.NoError(t, err)
	n := cfg.Notifier
	assert.Equal(t, "127.0.0.1:9095", n.Listen)
	assert.Equal(t, []time.Duration{24 * time.Hour, time.Hour, 5 * time.Minute, 10 * time.Minute, 24 * time.Hour, 2 * time.Hour},
		[]time.Duration{n.GiveUpAfter, n.Route.RepeatInterval, n.Reconcile.Interval, n.Reconcile.After, n.Interactions.LinkTTL, n.Interactions.AcknowledgeFor})
	assert.Equal(t, config.Flapping{Changes: 4, Window: 10 * time.Minute}, n.Flapping)
	assert.Equal(t, "team", n.Runbooks.TeamLabel)
	assert.Equal(t, "https://slack.com/api/", n.Interactions.SlackAPIURL)
	a, b := n.Receivers[0], n.Receivers[1]
	assert.Equal(t, []any{"slack", "UTC", "en", 10 * time.Minute, "https://slack.com/api/"}, []any{a.Kind(), a.TimeZone, a.Language, a.FallbackAfter, a.Slack.APIURL})
	assert.Equal(t, []any{"dingtalk", "markdown"}, []any{b.Kind(), b.DingTalk.Style})
	var limits []config.Limit
	for _, r := range n.Receivers {
		limits = append(limits, r.Limit)
	}
	assert.Equal(t, []config.Limit{
		{Messages: 3, Per: 4 * time.Second, Reserve: 1},
		{Messages: 18, Per: time.Minute, Reserve: 4},
		{Messages: 1, Per: 4 * time.Second, Reserve: -1},
		{Messages: -1, Per: 4 * time.Second, Reserve: -1},
		{Messages: 8, Per: 4 * time.Second, Reserve: -1},
	}, limits, "something is always left for what is not critical")
	assert.Empty(t, config.Receiver{}.Kind())
}

func TestBadNotifierSettingsNameFileLineAndKey(t *testing.T) {
	for name, c := range map[string]struct {
		old, new string
		key      string
		want     string
	}{
		"listen without a port":        {"listen: 127.0.0.1:9095", "listen: localhost", "listen", "host:port"},
		"negative patience":            {"give_up_after: 6h", "give_up_after: -6h", "give_up_after", "negative"},
		"a receiver's name":            {"name: hook", "name: Hook.1", "receivers[2].name", "lower-case"},
		"a receiver twice":             {"name: hook", "name: ops", "receivers[2].name", "already the name of receivers[0]"},
		"no chat":                      {"      slack: {webhook_url_file: hook-url}\n", "", "receivers[2]", "exactly one of slack and dingtalk"},
		"two chats":                    {"slack: {webhook_url_file: hook-url}", "slack: {webhook_url_file: u}\n      dingtalk: {webhook_url_file: u}", "receivers[2]", "exactly one"},
		"no way into Slack":            {"{webhook_url_file: hook-url}", "{}", "receivers[2].slack", "exactly one of webhook_url_file and bot_token_file"},
		"two ways into Slack":          {"{webhook_url_file: hook-url}", "{webhook_url_file: u, bot_token_file: t, channel: C0123456789}", "receivers[2].slack", "exactly one"},
		"a bot without a channel":      {", channel: C0123456789", "", "receivers[0].slack.channel", "C0123456789"},
		"a webhook with a channel":     {"{webhook_url_file: hook-url}", "{webhook_url_file: u, channel: C0123456789}", "receivers[2].slack.channel", "means nothing"},
		"a secret as a value":          {"{webhook_url_file: hook-url}", "{webhook_url: \"https://hooks.slack.com/x\"}", "", "webhook_url"},
		"Slack elsewhere":              {"channel: C0123456789", "channel: C0123456789, api_url: slack.com", "receivers[0].slack.api_url", "not a URL"},
		"a robot without its address":  {"webhook_url_file: robot, ", "", "receivers[1].dingtalk.webhook_url_file", "missing"},
		"a style":                      {"style: action_card", "style: card", "receivers[1].dingtalk.style", "markdown or action_card"},
		"a time zone":                  {"time_zone: Asia/Shanghai", "time_zone: Beijing", "receivers[0].time_zone", "IANA"},
		"the host's time zone":         {"time_zone: Asia/Shanghai", "time_zone: Local", "receivers[0].time_zone", "IANA"},
		"a language":                   {"language: zh", "language: de", "receivers[1].language", "en or zh"},
		"too many messages":            {"messages: 10", "messages: 1001", "receivers[1].limit.messages", "1000"},
		"negative messages":            {"messages: 10", "messages: -2", "receivers[1].limit.messages", "-1 for no limit"},
		"negative time":                {"per: 1m,", "per: -1m,", "receivers[1].limit.per", "negative"},
		"all is kept":                  {"reserve: 3", "reserve: 10", "receivers[1].limit.reserve", "less than messages"},
		"all of the usual is kept":     {"limit: {messages: 10, per: 1m, reserve: 3}", "limit: {reserve: 18}", "receivers[1].limit.reserve", "less than messages"},
		"a negative reserve":           {"reserve: 3", "reserve: -2", "receivers[1].limit.reserve", "-1 for none"},
		"an unknown fallback":          {"fallback: db", "fallback: nobody", "receivers[0].fallback", `no receiver is named "nobody"`},
		"a fallback to itself":         {"fallback: db", "fallback: ops", "receivers[0].fallback", "leads back"},
		"fallbacks in a circle":        {"language: zh", "fallback: ops # to the first", "receivers[0].fallback", "leads back"},
		"a fallback that is too late":  {"fallback_after: 5m", "fallback_after: 6h", "receivers[0].fallback_after", "give_up_after"},
		"a negative wait":              {"fallback_after: 5m", "fallback_after: -5m", "receivers[0].fallback_after", "negative"},
		"a wait for no fallback":       {"fallback: db\n", "language: en\n", "receivers[0].fallback_after", "without fallback"},
		"a canary's schedule":          {"0 9 * * 1", "mondays", "receivers[0].canary.schedule", "mondays"},
		"an interval without a name":   {"{name: office, time_intervals", "{time_intervals", "time_intervals[1].name", "missing"},
		"an interval twice":            {"name: office", "name: nights", "time_intervals[1].name", "already the name of time_intervals[0]"},
		"an interval without times":    {"time_intervals: [{weekdays: [\"monday:friday\"]}]", "time_intervals: []", "time_intervals[1]", "never deliver"},
		"a weekday":                    {"monday:friday", "monday:fryday", "time_intervals[1].time_intervals[0].weekdays[0]", "fryday"},
		"a time of day":                {"22:00", "25:00", "time_intervals[0].time_intervals[0].times[0]", "25:00"},
		"a location":                   {"location: Asia/Shanghai", "location: Asia/Peking", "time_intervals[0].time_intervals[0].location", "Asia/Peking"},
		"an interval's unknown key":    {"location: Asia/Shanghai", "zone: Asia/Shanghai", "", "zone"},
		"a template pattern":           {"templates/*.tmpl", "templates/[.tmpl", "template_files[0]", "pattern"},
		"an event":                     {"snapshot.*", "snapshots", "events[1]", "noun.verb"},
		"an event of an alert":         {"snapshot.*", "alert.delivered", "events[1]", "cannot be routed"},
		"every event":                  {"snapshot.*", "'*.failed'", "events[1]", "noun.verb"},
		"a base URL":                   {"https://runbooks.example.com", "runbooks/", "runbooks.base_url", "not a URL"},
		"a grade":                      {"critical: error", "critical: fatal", "runbooks.policy.critical", "error, warning or ignore"},
		"the grade of the others":      {`"*": ignore`, `"*": maybe`, "runbooks.policy.'*'", "maybe"},
		"one change is no flapping":    {"changes: 6", "changes: 1", "flapping.changes", "2 to 100"},
		"too many changes":             {"changes: 6", "changes: 101", "flapping.changes", "2 to 100"},
		"negative changes":             {"changes: 6", "changes: -2", "flapping.changes", "-1 to switch it off"},
		"a negative window":            {"window: 5m", "window: -5m", "flapping.window", "negative"},
		"pages without a port":         {"listen: 127.0.0.1:9096", "listen: \"9096\"", "interactions.listen", "host:port"},
		"pages beside the webhooks":    {"listen: 127.0.0.1:9096", "listen: 127.0.0.1:9095", "interactions.listen", "an address each"},
		"an external URL":              {"https://alerts.example.com", "alerts.example.com", "interactions.external_url", "not a URL"},
		"links without an address":     {"    external_url: https://alerts.example.com\n", "", "interactions.external_url", "missing"},
		"links that nobody answers":    {"    listen: 127.0.0.1:9096\n", "", "interactions.listen", "answer"},
		"pages with nothing on them":   {"    link_secret_file: link-secret\n", "", "interactions.listen", "serves nothing"},
		"Slack's API":                  {"slack_app_token_file: app-token", "slack_api_url: slack", "interactions.slack_api_url", "not a URL"},
		"negative time to live":        {"slack_app_token_file: app-token", "link_ttl: -1h", "interactions.link_ttl", "negative"},
		"negative acknowledgement":     {"slack_app_token_file: app-token", "acknowledge_for: -1h", "interactions.acknowledge_for", "negative"},
		"nowhere to silence":           {`{urls: ["http://127.0.0.1:9093"]}`, "{urls: []}", "alertmanager.urls", "creates silences"},
		"negative patience of missing": {"after: 20m", "after: -20m", "reconcile.after", "negative"},
		"a route without a receiver":   {"    receiver: ops\n", "", "route.receiver", "goes nowhere"},
		"the top route's matchers":     {"repeat_interval: 2h", "matchers: [a=b]", "route.matchers", "takes everything"},
		"the top route continues":      {"repeat_interval: 2h", "continue: true", "route.continue", "means nothing"},
		"the top route is muted":       {"repeat_interval: 2h", "mute_time_intervals: [nights]", "route", "must not be muted"},
		"the top route is not active":  {"repeat_interval: 2h", "active_time_intervals: [nights]", "route", "must not be muted"},
		"a route's receiver":           {"receiver: db\n", "receiver: nobody\n", "route.routes[0].receiver", `no receiver is named "nobody"`},
		"a deep route's matcher":       {`'"été"=~"o.*"'`, `'"été"=~"o("'`, "route.routes[0].routes[0].matchers[0]", "missing closing"},
		"a muting interval":            {"mute_time_intervals: [nights]", "mute_time_intervals: [nights, days]", "route.routes[0].mute_time_intervals[1]", `"days"`},
		"an active interval":           {"active_time_intervals: [office]", "active_time_intervals: [home]", "route.routes[0].routes[0].active_time_intervals[0]", `"home"`},
		"a negative repeat":            {"repeat_interval: 5m", "repeat_interval: -5m", "route.routes[0].routes[0].repeat_interval", "negative"},
		"no duration":                  {"repeat_interval: 5m", "repeat_interval: often", "route.routes[0].routes[0].repeat_interval", "not a duration"},
		"a mention":                    {"U0123456", "bob", "route.mentions.critical", "nobody"},
		"a mention of the others":      {"user:manager.1", "user:", "route.mentions.'*'", "nobody"},
		"a mention that is markup":     {"U0123456", "'<!here>'", "route.mentions.critical", "nobody"},
		"a key that is not":            {"repeat_interval: 5m", "group_by: [x]", "", "group_by"},
		"webhooks of the wrong type":   {"bearer_tokens_file: tokens", "bearer_tokens_file: [tokens]", "bearer_tokens_file", ""},
		"pages of the wrong type":      {"pages_dir: runbooks", "pages_dir: {a: b}", "runbooks.pages_dir", ""},
		"a password in a URL":          {"https://runbooks.example.com", "https://u:geheim@runbooks.example.com", "runbooks.base_url", "secrets go into files"},
		"a reserve of more than one":   {"messages: 10, per: 1m, reserve: 3", "messages: 1, reserve: 1", "receivers[1].limit.reserve", "less than messages"},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, 1, strings.Count(notifying, c.old), "of %q", c.old)
			text := strings.Replace(notifying, c.old, c.new, 1)
			_, err := config.Parse("lifeboat.yaml", []byte(text))
			require.Error(t, err)
			var place *config.Error
			require.ErrorAs(t, err, &place)
			assert.Equal(t, "lifeboat.yaml", place.File)
			assert.Contains(t, place.Message, c.want)
			assert.NotContains(t, config.Places(err), "geheim")
			if c.key == "" { // an unknown key is named by the message
				return
			}
			key := "notifier." + c.key
			if strings.HasPrefix(c.key, "alertmanager.") {
				key = c.key
			}
			assert.Equal(t, key, place.Key)
			// It stands where the change is, or on the nearest key above when the change has taken a key away.
			changed := strings.Count(text[:firstDifference(notifying, text)], "\n") + 1
			assert.LessOrEqual(t, place.Line, changed+1)
			assert.Greater(t, place.Line, map[bool]int{true: 0, false: 1}[strings.HasPrefix(c.key, "alertmanager.")], "not just somewhere in the file")
			assert.Equal(t, strings.Split(text, "\n")[place.Line-1], place.Source)
		})
	}
}

func firstDifference(a, b string) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// All that is wrong is said at once, each at its place, and always in the same order.
func TestAllThatIsWrongWithANotifierIsSaid(t *testing.T) {
	text := strings.NewReplacer("nights]", "gone]", "[office]", "[gone]", "receiver: hook", "receiver: gone", "U0123456", "gone").Replace(notifying)
	_, err := config.Parse("lifeboat.yaml", []byte(text))
	require.Error(t, err)
	want := config.Places(err)
	for _, part := range []string{
		"lifeboat.yaml:42:26: notifier.route.mentions.critical: ", "lifeboat.yaml:46:31: notifier.route.routes[0].mute_time_intervals[0]: ",
		"lifeboat.yaml:48:66: notifier.route.routes[0].routes[0].active_time_intervals[0]: ", "lifeboat.yaml:49:42: notifier.route.routes[1].receiver: ",
	} {
		assert.Contains(t, want, part)
	}
	for range 20 {
		_, err = config.Parse("lifeboat.yaml", []byte(text))
		require.Equal(t, want, config.Places(err))
	}
}

// A fallback is for the time before a delivery is given up, also when neither time is in the file.
func TestAFallbackComesBeforeGivingUp(t *testing.T) {
	text := strings.Replace(strings.Replace(notifying, "      fallback_after: 5m\n", "", 1), "give_up_after: 6h", "give_up_after: 10m", 1)
	_, err := config.Parse("lifeboat.yaml", []byte(text))
	require.ErrorContains(t, err, "notifier.receivers[0].fallback_after: must be less than notifier.give_up_after")
	_, err = config.Parse("lifeboat.yaml", []byte(strings.Replace(text, "give_up_after: 10m", "give_up_after: 11m", 1)))
	require.NoError(t, err)
}

func TestFindingsArePlaced(t *testing.T) {
	found := []config.Finding{
		{Key: "notifier.route.routes[0].routes[0]", Message: "is wrong"},
		{Key: "notifier.receivers[2].limit.per", Message: "is odd", Warning: true},
		{Key: "nowhere.at.all", Message: "is strange"},
	}
	var got []string
	for _, e := range config.Place("lifeboat.yaml", []byte(notifying), found) {
		got = append(got, e.Error())
	}
	assert.Equal(t, []string{
		"lifeboat.yaml:48:13: notifier.route.routes[0].routes[0]: is wrong\n    48 |           - {matchers: ['\"été\"=~\"o.*\"'], active_time_intervals: [office], repeat_interval: 5m}",
		"lifeboat.yaml:31:7: notifier.receivers[2].limit.per: warning: is odd\n    31 |     - name: hook",
		"lifeboat.yaml:1:1: nowhere.at.all: is strange\n     1 | alertmanager: {urls: [\"http://127.0.0.1:9093\"]}",
	}, got)
	for _, e := range config.Place("lifeboat.yaml", []byte("a: ["), found) {
		assert.Equal(t, []int{1, 1}, []int{e.Line, e.Column}, "the file is another one by now")
	}
}

// Matchers are read by Alertmanager's parser: whatever stands there, there is no panic, and what is read can be said again.
func FuzzParseMatchers(f *testing.F) {
	for _, s := range []string{`a="b"`, `{a="b",c!="d",}`, `"été"=~"o.*"`, `a!~b`, "", "{}", `a=b c`, `a="\n"`, "a=~(", `a="\\"`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ms, err := config.ParseMatchers(s)
		if err != nil {
			return
		}
		named := true // Alertmanager reads a matcher of the name "" and cannot read it again
		for _, m := range ms {
			m.Matches("x")
			named = named && m.Name != ""
		}
		if len(ms) > 0 && named {
			_, err = config.ParseMatchers(ms.String())
			assert.NoError(t, err, "%s", ms)
		}
	})
}

// The example shows every key of the notifier, and what it says of a default is one.
func TestTheExampleShowsTheNotifier(t *testing.T) {
	path := filepath.Join("..", "..", "docs", "lifeboat.example.yaml")
	cfg, err := config.Load(path)
	require.NoError(t, err)
	n := cfg.Notifier
	assert.Len(t, n.Receivers, 3)
	assert.Equal(t, []string{"nights"}, n.Route.Routes[1].MuteTimeIntervals)
	src, err := os.ReadFile(path)
	require.NoError(t, err)
	_, section, ok := strings.Cut(string(src), "\nnotifier:\n")
	require.True(t, ok)
	var walk func(reflect.Type)
	walk = func(typ reflect.Type) {
		for typ.Kind() == reflect.Pointer || typ.Kind() == reflect.Slice {
			typ = typ.Elem()
		}
		if typ.Kind() != reflect.Struct || typ == reflect.TypeFor[config.Blackout]() {
			return
		}
		for f := range typ.Fields() {
			assert.Regexp(t, `(^|[ {])`+f.Tag.Get("yaml")+":", section)
			if f.Type != reflect.TypeFor[[]config.Route]() {
				walk(f.Type)
			}
		}
	}
	walk(reflect.TypeFor[config.Notifier]())
	walk(reflect.TypeFor[config.Route]())
}
