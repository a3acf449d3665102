package render_test

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	amtemplate "github.com/prometheus/alertmanager/template"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/render"
)

// community is written as most people's Slack templates are.
const community = `{{ define "slack.monzo.severity" }}{{ if eq .Status "firing" }}:fire:{{ else }}:white_check_mark:{{ end }}{{ end }}
{{ define "__alert_silence_link" -}}
{{ .ExternalURL }}/#/silences/new?filter=%7B
{{- range .CommonLabels.SortedPairs -}}{{- if ne .Name "alertname" -}}{{- .Name }}%3D%22{{- .Value -}}%22%2C%20{{- end -}}{{- end -}}
alertname%3D%22{{ .CommonLabels.alertname }}%22%7D
{{- end }}
{{ define "slack.text" }}{{ template "slack.monzo.severity" . }} *{{ .CommonLabels.alertname | title }}* {{ with index .Alerts 0 }}<{{ .Annotations.runbook_url }}|Runbook>{{ end }}
{{ range .Alerts.Firing -}}
*{{ .Annotations.summary }}* since {{ .StartsAt.Format "15:04" }} ({{ since .StartsAt | humanizeDuration }})
{{ range .Labels.SortedPairs }}• *{{ .Name }}:* ` + "`{{ .Value }}`" + `
{{ end }}<{{ .GeneratorURL }}|Graph>
{{ end -}}
{{ if gt (len .Alerts.Resolved) 0 }}ended: {{ range .Alerts.Resolved }}{{ .Labels.instance }}{{ end }}{{ end }}
{{ (.CommonLabels.Remove (stringSlice "alertname" "severity")).Values | join ", " }} {{ .GroupLabels.SortedPairs.Names.Join "+" }}
{{ reReplaceAll "node-([0-9]+)" "n$1" "node-3" }} {{ .Status | toUpper }} {{ routeLabels "team" }} {{ .NotificationReason }}
{{ (index .Alerts 0).StartsAt | tz "Asia/Tokyo" | date "15:04 MST" }} {{ match "^Disk" .CommonLabels.alertname }} {{ .Foo.Bar | len }}
<{{ template "__alert_silence_link" . }}|Silence>{{ end }}`

// group is one firing and one resolved alert, with labels as they are in life.
func group() *lifeboatv1.Delivery {
	in := woken()
	n := in.Delivery.GetNotification()
	n.TruncatedAlerts = 0
	n.ExternalUrl, n.NotificationReason = "http://am:9093", "firing"
	n.RouteLabels, n.GroupLabels = map[string]string{"team": "db"}, map[string]string{"alertname": "DiskFull", "job": "node"}
	for _, a := range n.GetAlerts() {
		a.GeneratorUrl = "http://prom:9090/graph?g0.expr=node_filesystem_avail_bytes+%3C+5&g0.tab=1"
	}
	return in.Delivery
}

func slack(title, text string) config.Receiver {
	return config.Receiver{Name: "ops", Slack: &config.Slack{}, TimeZone: "Asia/Shanghai", Title: title, Text: text}
}

func dingtalk(text string) config.Receiver {
	return config.Receiver{Name: "ops", DingTalk: &config.DingTalk{}, TimeZone: "UTC", Text: text}
}

func body(t *testing.T, r config.Receiver, d *lifeboatv1.Delivery) notice.Notice {
	t.Helper()
	in := input(d)
	in.Receiver = r
	return message(t, in)
}

func TestPeoplesOwnSlackTemplatesCarryOver(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "slack.tmpl")
	require.NoError(t, os.WriteFile(file, []byte(strings.Replace(community, " {{ .Foo.Bar | len }}", "", 1)), 0o600))
	receiver := slack(`{{ template "slack.default.title" . }}`, `{{ template "slack.text" . }}`)
	r, err := render.New(config.Notifier{Receivers: []config.Receiver{receiver}, TemplateFiles: []string{filepath.Join(dir, "*.tmpl")}})
	require.NoError(t, err)
	in := input(group())
	in.Receiver = receiver
	n, err := r.Message(in)
	require.NoError(t, err)
	assert.Equal(t, "[FIRING:1] DiskFull node", n.Title)
	assert.Equal(t, `:fire: *Diskfull* <https://rb/DiskFull|Runbook>
*node-3: 97% of /var is used* since 03:01 (1m 1s)
• *alertname:* `+"`DiskFull`"+`
• *instance:* `+"`node-3`"+`
• *job:* `+"`node`"+`
• *severity:* `+"`critical`"+`
<http://prom:9090/graph?g0.expr=node_filesystem_avail_bytes+%3C+5&amp;g0.tab=1|Graph>
ended: node-4
node alertname+job
n3 FIRING db firing
04:01 JST true
<http://am:9093/#/silences/new?filter=%7Bjob%3D%22node%22%2C%20alertname%3D%22DiskFull%22%7D|Silence>`, n.Body)
	assert.NotContains(t, n.Footer, "template")
	assert.Len(t, n.Items, 2, "the items stay for chats that tell details elsewhere")
}

func TestAlertmanagersOwnTemplatesSayWhatAlertmanagerSays(t *testing.T) {
	t.Parallel()
	am, err := amtemplate.FromGlobs(nil)
	require.NoError(t, err)
	am.ExternalURL = &url.URL{}
	d := group()
	n := d.GetNotification()
	// Only such characters as no chat has to escape, so that the texts can be compared.
	data := &amtemplate.Data{
		Receiver: n.GetReceiver(), Status: "firing", ExternalURL: n.GetExternalUrl(), GroupLabels: n.GetGroupLabels(),
		CommonLabels: amtemplate.KV{"alertname": "DiskFull", "job": "node"}, CommonAnnotations: amtemplate.KV{},
	}
	for _, a := range []*lifeboatv1.Alert{n.GetAlerts()[1], n.GetAlerts()[0]} {
		a.Annotations["runbook_url"], a.GeneratorUrl = "http://rb/x", "http://prom:9090/graph"
		data.Alerts = append(data.Alerts, amtemplate.Alert{
			Status: a.GetStatus(), Labels: a.GetLabels(), Annotations: a.GetAnnotations(), GeneratorURL: a.GetGeneratorUrl(),
		})
	}
	data.CommonAnnotations["runbook_url"] = "http://rb/x"
	for _, name := range []string{
		"slack.default.title", "slack.default.fallback", "slack.default.color", "wechat.default.message", "telegram.default.message",
		"opsgenie.default.description", "msteams.default.text", "discord.default.message", "jira.default.priority", "mattermost.default.text",
	} {
		source := `{{ template "` + name + `" . }}`
		want, err := am.ExecuteTextString(source, data)
		require.NoError(t, err)
		assert.Equal(t, strings.TrimSpace(want), body(t, slack("", source), d).Body, name)
		assert.NotEmpty(t, want, name)
	}
}

func TestEmptyTemplateLeavesTheDefault(t *testing.T) {
	t.Parallel()
	n := body(t, slack(` {{ template "slack.default.pretext" . }}`, `{{ template "slack.default.text" . }}`+"\n"), group())
	assert.Empty(t, n.Body)
	assert.Equal(t, "[FIRING:1] DiskFull node (critical)", n.Title)
	assert.Len(t, n.Items, 2)
}

func TestTemplateOfDefinitionsAloneLeavesTheDefault(t *testing.T) {
	t.Parallel()
	for _, source := range []string{" ", "\n", `{{ define "x" }}{{ end }}`, `{{ define "x" }}y{{ end }}{{/* nothing */}}`} {
		n := body(t, slack(source, source), group())
		assert.Empty(t, n.Body)
		assert.Equal(t, "[FIRING:1] DiskFull node (critical)", n.Title)
		assert.NotContains(t, n.Footer, "template")
	}
}

func TestTemplateThatDoesNotParseSaysWhichAndWhere(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, text string) string {
		file := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
		return file
	}
	good := write("good.tmpl", `{{ define "good" }}x{{ template "far" . }}{{ end }}`)
	for name, c := range map[string]struct {
		cfg  config.Notifier
		want []string
	}{
		"syntax": {config.Notifier{Receivers: []config.Receiver{{Name: "a"}, slack("", "fine\n{{ if }}")}}, []string{"notifier.receivers[1].text (receiver ops)", "text of ops:2"}},
		"title":  {config.Notifier{Receivers: []config.Receiver{slack("{{ nope }}", "")}}, []string{"notifier.receivers[0].title (receiver ops)", "title of ops:1", `"nope" not defined`}},
		"file":   {config.Notifier{TemplateFiles: []string{good, write("bad.tmpl", "\n\n{{ end }}")}}, []string{"notifier.template_files[1]", "bad.tmpl:3"}},
		"missing": {
			config.Notifier{TemplateFiles: []string{filepath.Join(dir, "none.tmpl")}}, []string{"notifier.template_files[0]", "no such file"},
		},
		"pattern": {config.Notifier{TemplateFiles: []string{"["}}, []string{"notifier.template_files[0]", "syntax error in pattern"}},
		"calls what is not there": {
			config.Notifier{Receivers: []config.Receiver{slack("", "{{ if true }}\n{{ template \"slakc.default.text\" . }}{{ end }}")}},
			[]string{"notifier.receivers[0].text", "text of ops:2", `no template is named "slakc.default.text"`},
		},
		"calls what calls what is not there": {
			config.Notifier{TemplateFiles: []string{good}, Receivers: []config.Receiver{slack("", `{{ template "good" . }}`)}},
			[]string{"good.tmpl:1", `no template is named "far"`},
		},
		"turns times twice": {
			config.Notifier{Receivers: []config.Receiver{slack("", "{{ range .Alerts }}\n{{ (.StartsAt.Add 28800e9).Format \"15:04\" }}{{ end }}")}},
			[]string{"text of ops:2", "28800e9", "Asia/Shanghai", "remove the Add"},
		},
		"both": {
			config.Notifier{Receivers: []config.Receiver{slack("{{", "{{")}}, []string{"receivers[0].title", "receivers[0].text"},
		},
		"time zone": {config.Notifier{Receivers: []config.Receiver{{Name: "x", TimeZone: "Mars/Base"}}}, []string{"receivers[0].time_zone", "Mars/Base"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, err := render.New(c.cfg)
			require.Error(t, err)
			for _, want := range c.want {
				require.ErrorContains(t, err, want)
			}
			require.NotNil(t, r)
			in := input(group())
			in.Receiver = slack("", "")
			n, err := r.Message(in)
			require.NoError(t, err, "an alert is told whatever its template is")
			assert.Equal(t, "[FIRING:1] DiskFull node (critical)", n.Title)
			assert.Empty(t, n.Body)
		})
	}
	r, err := render.New(config.Notifier{TemplateFiles: []string{filepath.Join(dir, "*.none")}})
	require.NoError(t, err, "Alertmanager takes a pattern without files too")
	require.NotNil(t, r)
	utc := slack("", `{{ (index .Alerts 0).StartsAt.Add 28800e9 }}`)
	utc.TimeZone = "UTC"
	assert.Contains(t, body(t, utc, group()).Body, "2026-11-21 03:01:10", "without a zone the hours are added as before")
}

func TestBrokenTemplateIsSaidInTheMessage(t *testing.T) {
	t.Parallel()
	receiver := slack("", "{{ nope }}")
	r, err := render.New(config.Notifier{Receivers: []config.Receiver{receiver}})
	require.Error(t, err)
	in := input(group())
	in.Receiver = receiver
	n, err := r.Message(in)
	require.NoError(t, err)
	assert.Contains(t, n.Footer, "this is the default message, because the template failed: notifier.receivers[0].text")
	assert.Contains(t, n.Footer, "from alertmanager")
}

func TestTemplateThatFailsNeverLosesTheAlert(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ source, want string }{
		"no such field":        {"a\n{{ .Alerts.Foo }}", "text of ops:2"},
		"index":                {"{{ index .Alerts 9 }}", "index out of range"},
		"a label as a pattern": {`{{ reReplaceAll "[" "" .Status }}`, "reReplaceAll"},
		"endless loop":         {`{{ range 9000000000000000000 }}{{ end }}`, "does not come to an end"},
		"loops in loops":       {`{{ range 9000000 }}{{ range 9000000 }}{{ if false }}x{{ end }}{{ end }}{{ end }}`, "does not come to an end"},
		"endless assignment":   {`{{ $x := "" }}{{ range 900000000 }}{{ $x = "y" }}{{ end }}`, "does not come to an end"},
		"calls itself":         {`{{ define "x" }}{{ template "x" . }}{{ end }}{{ template "x" . }}`, "calls itself without end"},
		"calls itself through others": {
			`{{ define "x" }}{{ with $y := . }}{{ template "y" . }}{{ end }}{{ end }}{{ define "y" }}{{ range .Alerts }}{{ template "x" $ }}{{ end }}{{ end }}{{ template "x" . }}`,
			"calls itself without end",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			receiver := slack("", c.source)
			r, err := render.New(config.Notifier{Receivers: []config.Receiver{receiver}})
			require.NoError(t, err)
			in := input(group())
			in.Receiver = receiver
			begun := time.Now()
			n, err := r.Message(in)
			require.NoError(t, err)
			assert.Less(t, time.Since(begun), 20*time.Second)
			assert.Empty(t, n.Body)
			assert.Len(t, n.Items, 2)
			assert.Equal(t, "[FIRING:1] DiskFull node (critical)", n.Title)
			assert.Contains(t, n.Footer, "the template failed")
			assert.Contains(t, n.Footer, c.want)
		})
	}
}

func TestTitleAndTextFailApart(t *testing.T) {
	t.Parallel()
	n := body(t, slack("{{ .Nope }}", "text {{ .Status }}"), group())
	assert.Equal(t, "text firing", n.Body)
	assert.Equal(t, "[FIRING:1] DiskFull node (critical)", n.Title)
	assert.Contains(t, n.Footer, "template failed: template: title of ops:1")
}

func TestTooMuchTextIsCutAndSaysSo(t *testing.T) {
	t.Parallel()
	for i := range 13 {
		n := body(t, slack("", strings.Repeat("x", i)+`{{ range 9000000000000 }}{{ range $.Alerts }}{{ end }}长&amp;{{ "&" | toUpper }}{{ end }}`), group())
		assert.LessOrEqual(t, len(n.Body), 64<<10)
		assert.Greater(t, len(n.Body), 60<<10)
		assert.Contains(t, n.Footer, "cut: the template's text is longer than 64 KiB")
		assert.NotContains(t, strings.ReplaceAll(n.Body, "&amp;", ""), "&")
		assert.NotContains(t, n.Body, "\uFFFD")
	}
}

func TestTemplateSeesValuesAsTheyAre(t *testing.T) {
	t.Parallel()
	d := group()
	d.Notification.Alerts[1].Labels["team"] = "<db> & *co*"
	n := body(t, slack("<{{ (index .Alerts 0).Labels.team }}>",
		`{{ with index .Alerts 0 }}{{ if eq .Labels.team "<db> & *co*" }}{{ $t := .Labels.team }}{{ len $t }} {{ $t }} {{ "*own*" }} {{ printf "%s" $t | len }}{{ end }}{{ end }}`), d)
	assert.Equal(t, "<<db> & *co*>", n.Title, "a title is escaped by the chat")
	assert.Equal(t, "11 &lt;db&gt; &amp; ＊co＊ *own* 11", n.Body)
}

func TestEventsAreToldByDefault(t *testing.T) {
	t.Parallel()
	a := alert("event", "LifeboatEvent", "info", 1)
	n := body(t, slack("x", "[FIRING] {{ .Status }}"), delivery(a))
	assert.Empty(t, n.Body)
	assert.Equal(t, "[EVENT] LifeboatEvent etcd-prod (info)", n.Title)
}

func TestTruncatedGroupDoesNotLookResolvedToTemplates(t *testing.T) {
	t.Parallel()
	d := delivery(alert("resolved", "A", "info", 1))
	assert.Equal(t, "resolved", body(t, slack("", "{{ .Status }}"), d).Body)
	d.Notification.TruncatedAlerts = 3
	assert.Equal(t, "firing", body(t, slack("", "{{ .Status }}"), d).Body)
}

func TestTimesInTemplatesAreInTheReceiversZone(t *testing.T) {
	t.Parallel()
	d := group()
	assert.Equal(t, "03:01 CST 03:02 2026", body(t, slack("", `{{ with index .Alerts 0 }}{{ .StartsAt | date "15:04 MST" }}{{ end }} {{ now | date "15:04 2006" }}`), d).Body)
	d.Notification.Alerts[1].StartsAt = timestamppb.New(night.Add(-time.Hour))
	assert.Equal(t, "1h 0m 1s", body(t, slack("", `{{ range .Alerts.Firing }}{{ since .StartsAt | humanizeDuration }}{{ end }}`), d).Body)
}

func TestReceiversTemplatesAreTheirOwn(t *testing.T) {
	t.Parallel()
	one, two := slack("", `{{ define "mine" }}one{{ end }}{{ template "mine" . }}`), dingtalk(`{{ define "mine" }}two{{ end }}{{ template "mine" . }}`)
	two.Name = "other"
	r := renderer(t, one, two)
	for _, receiver := range []config.Receiver{one, two} {
		in := input(group())
		in.Receiver = receiver
		n, err := r.Message(in)
		require.NoError(t, err)
		assert.Contains(t, receiver.Text, n.Body)
		assert.Len(t, n.Body, 3)
	}
}

func TestSeveralMessagesMayBeRenderedAtOnce(t *testing.T) {
	t.Parallel()
	receiver := slack("{{ now | date `15:04` }}", `{{ range .Alerts }}{{ .StartsAt | tz "Asia/Tokyo" }} {{ .Labels }} {{ routeLabels "n" }}{{ end }}`)
	r := renderer(t, receiver)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			in := input(group())
			in.Receiver, in.Now = receiver, night.Add(time.Duration(i)*time.Minute)
			in.Delivery.Notification.RouteLabels["n"] = fmt.Sprint("n", i)
			for range 50 {
				n, err := r.Message(in)
				if err != nil || n.Title != fmt.Sprintf("03:%02d", 2+i) || !strings.Contains(n.Body, fmt.Sprint("n", i)) {
					t.Errorf("message %d is another's: %v, %q, %q", i, err, n.Title, n.Body)
					return
				}
			}
		})
	}
	wg.Wait()
}
