package tests

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/otlptest"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// traced is a fleet whose processes export their spans, with a target that is backed up, one whose drills fail because it has no
// snapshot, and a real Alertmanager.
type traced struct {
	*fleet
	collector *otlptest.Collector
	processes map[string]*process
	// doc is docs/metrics.md.
	doc string
}

func startTraced(t *testing.T) *traced {
	t.Helper()
	f := &traced{fleet: start(t), collector: otlptest.New(t), processes: map[string]*process{}}
	am, err := bintest.StartAlertmanager(t.Context(), f.path("alertmanager"), "http://"+f.webhook+"/api/v1/alertmanager")
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, am.Stop()) })
	b, err := os.ReadFile(f.config)
	require.NoError(t, err)
	f.write("lifeboat.yaml", fmt.Sprintf("alertmanager: {urls: [%q], resend_interval: 1s}\n", am.URL)+strings.NewReplacer(
		"    timeout: 5m\n", fmt.Sprintf("    timeout: 5m\n    schedule: \"@every 2s\"\n    rpo: 1h\n    zone: here\n"+
			"  - {name: empty, etcd: {endpoints: [%q]}, drill: {schedule: \"@every 5s\"}}\n", f.etcd.Endpoint),
		"notifier:\n", "notifier:\n  events: [snapshot.committed]\n",
	).Replace(string(b)))
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f.collector.URL)
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
	t.Setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
	f.processes["scheduler"] = f.run("scheduler", "--log-level", "debug")
	f.processes["backup"] = f.run("backup", "--zone", "here")
	f.processes["notifier"] = f.run("notifier")
	return f
}

// spans waits until a trace has spans of all these names, and gives them all.
func (f *traced) spans(id string, names ...string) []otlptest.Span {
	f.t.Helper()
	var all []otlptest.Span
	require.Eventually(f.t, func() bool {
		all = f.collector.Trace(id)
		return !slices.ContainsFunc(names, func(name string) bool { return !named(all, name) })
	}, time.Minute, 100*time.Millisecond, "trace %s has not all of %q: %+v", id, names, &all)
	return all
}

func named(all []otlptest.Span, name string) bool {
	return slices.ContainsFunc(all, func(s otlptest.Span) bool { return s.Name == name })
}

// One trace goes from the scheduler's tick through the worker and the notifier to the chat: of a snapshot whose event is routed, and of
// a drill that fails, whose alert goes through a real Alertmanager. Logs, events, the manifest and the metrics tell of the same.
func TestOneTraceFromTickToChat(t *testing.T) {
	doc, err := os.ReadFile(filepath.Join(os.Getenv("PWD"), "../docs/metrics.md")) // the embedded S3 server changes the working folder
	require.NoError(t, err)
	f := startTraced(t)
	f.doc = string(doc)
	t.Run("of an event", f.ofAnEvent)
	t.Run("of an alert, through Alertmanager", f.ofAnAlert)
	t.Run("in the logs", f.inTheLogs)
	t.Run("in the metrics", f.inTheMetrics)
}

func (f *traced) ofAnEvent(t *testing.T) {
	e := f.event("lifeboat.event.snapshot.committed.etcd-prod")
	id := e.GetTraceId()
	require.Len(t, id, 32)
	spans := f.spans(id, "tick", "process backup-snapshot", "claim", "snapshot", "open", "upload", "read_back", "commit",
		"process notifier-events", "process notifier-route", "process deliver-slack", "deliver", "send")
	spans = f.connected(t, spans, "tick")
	assert.Less(t, len(spans), 40, "a snapshot has a few spans, whatever its size: %+v", spans)
	services := map[string]bool{}
	for _, s := range spans {
		services[s.Service] = true
		assert.Equal(t, "test", s.Resource["deployment.environment.name"], s.Name)
		assert.NotEmpty(t, s.Resource["service.version"], s.Name)
		assert.False(t, s.Failed, s.Name)
		if s.Name == "process backup-snapshot" {
			assert.Equal(t, "etcd-prod", s.Attributes["lifeboat.target"])
			assert.Equal(t, e.GetJobId(), s.Attributes["lifeboat.job_id"])
		}
	}
	assert.Equal(t, map[string]bool{"lifeboat-scheduler": true, "lifeboat-backup": true, "lifeboat-notifier": true}, services)
	assert.Equal(t, id, e.GetManifest().GetTraceId())
	// The delivery's own event, which the audit log keeps, has it too.
	require.Eventually(t, func() bool {
		told := &lifeboatv1.Event{}
		return f.last("LIFEBOAT_EVENTS", "lifeboat.event.alert.delivered.etcd-prod", told) && len(told.GetTraceId()) == 32 &&
			named(f.collector.Trace(told.GetTraceId()), "tick")
	}, time.Minute, 100*time.Millisecond)
}

func (f *traced) ofAnAlert(t *testing.T) {
	var id string
	require.Eventually(t, func() bool {
		for _, s := range f.collector.Spans() {
			if all := f.collector.Trace(s.TraceID); s.Name == "alert received" && named(all, "send") {
				id = s.TraceID
				return true
			}
		}
		return false
	}, time.Minute, 100*time.Millisecond, "no alert of the fleet's own came back from Alertmanager in a trace that is told in the chat")
	spans := f.spans(id, "tick", "process backup-drill", "alert received", "process notifier-route", "process deliver-slack", "deliver", "send")
	spans = f.connected(t, spans, "tick")
	e := f.event("lifeboat.event.drill.failed.empty")
	assert.NotEmpty(t, e.GetTraceId())
	i := slices.IndexFunc(spans, func(s otlptest.Span) bool { return s.Name == "alert received" })
	linked := false
	for _, other := range spans[i].Links {
		linked = linked || named(f.spans(other, "webhook alertmanager"), "webhook alertmanager")
	}
	assert.True(t, linked, "the webhook that brought it is linked: %+v", spans[i])
	i = slices.IndexFunc(spans, func(s otlptest.Span) bool { return s.Name == "process backup-drill" })
	assert.True(t, spans[i].Failed, "the drill failed")
}

// connected holds that the spans of a trace are one tree, below one root, and gives them all. A parent ends, and comes, after its children:
// it is waited for.
func (f *traced) connected(t *testing.T, spans []otlptest.Span, root string) []otlptest.Span {
	t.Helper()
	var ids map[string]bool
	whole := func() bool {
		spans, ids = f.collector.Trace(spans[0].TraceID), map[string]bool{}
		for _, s := range spans {
			ids[s.ID] = true
		}
		return !slices.ContainsFunc(spans, func(s otlptest.Span) bool { return s.Parent != "" && !ids[s.Parent] })
	}
	for end := time.After(30 * time.Second); !whole(); {
		select {
		case <-time.After(100 * time.Millisecond):
			continue
		case <-end:
		}
		break
	}
	for _, s := range spans {
		if s.Parent == "" {
			assert.Equal(t, root, s.Name, "the root")
		} else {
			assert.Truef(t, ids[s.Parent], "%s hangs on nothing", s.Name)
		}
	}
	return spans
}

// Every line about a job or an alert says which trace, target and job or delivery it is about.
func (f *traced) inTheLogs(t *testing.T) {
	e := f.event("lifeboat.event.snapshot.committed.etcd-prod")
	assert.Eventually(t, func() bool { return len(f.lines(t, "scheduler", e.GetTraceId())) > 0 }, time.Minute, 50*time.Millisecond,
		"the scheduler's log has the trace")
	for _, line := range f.lines(t, "scheduler", e.GetTraceId()) {
		assert.Equal(t, "etcd-prod", line["target"], line)
		assert.Equal(t, "snapshot", line["schedule"], line)
	}
	began := regexp.MustCompile(`^(started|not ready|taking webhooks|created stream|the .* is served in clear|.*NATS.*|.*metrics.*|.*isolat.*|.*store.*|.*probe.*)`)
	seen := map[string]int{}
	for _, line := range f.lines(t, "backup", "") {
		if line["trace_id"] == nil {
			message, _ := line["msg"].(string)
			assert.Regexp(t, began, message, "a line without a trace is about no job: %v", line)
			continue
		}
		for _, key := range []string{"target", "job_id", "work"} {
			assert.NotEmpty(t, line[key], "%s: %v", key, line)
		}
		seen["backup"]++
	}
	for _, line := range f.lines(t, "notifier", "") {
		if line["msg"] != "delivered" {
			continue
		}
		for _, key := range []string{"trace_id", "target", "receiver", "delivery_id"} {
			assert.NotEmpty(t, line[key], "%s: %v", key, line)
		}
		seen["notifier"]++
	}
	assert.Positive(t, seen["backup"])
	assert.Positive(t, seen["notifier"])
}

// lines are those of a process's log, of one trace if that is not empty.
func (f *traced) lines(t *testing.T, name, trace string) (all []map[string]any) {
	t.Helper()
	file, err := os.Open(f.processes[name].log)
	require.NoError(t, err)
	defer file.Close()
	s := bufio.NewScanner(file)
	s.Buffer(nil, 16<<20) // a line may have a long error in it
	for s.Scan() {
		line := map[string]any{}
		if json.Unmarshal(s.Bytes(), &line) != nil {
			continue // it is just being written
		}
		if trace == "" || line["trace_id"] == trace {
			all = append(all, line)
		}
	}
	require.NoError(t, s.Err())
	return all
}

// What is scraped is what docs/metrics.md says: each name, with its type and its labels.
func (f *traced) inTheMetrics(t *testing.T) {
	types, labels := map[string]string{}, map[string]string{}
	for _, row := range regexp.MustCompile("(?m)^\\| `(lifeboat_\\w+)` \\| (\\w+) \\| ([^|]*) \\|").FindAllStringSubmatch(f.doc, -1) {
		types[row[1]], labels[row[1]] = row[2], row[3]
	}
	family := regexp.MustCompile(`(?m)^# TYPE (lifeboat_\w+) (\w+)$`)
	label := regexp.MustCompile(`(\w+)="`)
	for name, p := range f.processes {
		text := p.metrics(t)
		found := family.FindAllStringSubmatch(text, -1)
		require.NotEmpty(t, found, name)
		for _, m := range found {
			assert.Equal(t, types[m[1]], m[2], "%s of the %s", m[1], name)
			line := regexp.MustCompile(`(?m)^` + m[1] + `(?:_bucket)?\{(.*)\} \S+$`).FindStringSubmatch(text)
			if line == nil {
				continue
			}
			for _, l := range label.FindAllStringSubmatch(line[1], -1) {
				if l[1] != "le" {
					assert.Contains(t, labels[m[1]], "`"+l[1]+"`", "%s of the %s", m[1], name)
				}
			}
		}
	}
	text := f.processes["scheduler"].metrics(t)
	for _, want := range []string{
		`lifeboat_target_info{kind="etcd",target="etcd-prod",zone="here"} 1`, `lifeboat_target_rpo_seconds{target="etcd-prod"} 3600`,
		`lifeboat_target_last_good_snapshot_timestamp_seconds{target="etcd-prod"} 1`, `lifeboat_schedule_paused{schedule="snapshot",target="etcd-prod"} 0`,
		`lifeboat_target_last_success_timestamp_seconds{target="etcd-prod",work="snapshot"} 1`,
		`lifeboat_target_last_failure_timestamp_seconds{target="empty",work="drill"} 1`,
		`lifeboat_next_tick_timestamp_seconds{schedule="drill",target="empty"} 1`, `lifeboat_schedule_interval_seconds{schedule="drill",target="empty"} 5`,
		`lifeboat_jobs_waiting{work="snapshot"} `, `lifeboat_build_info{`, `lifeboat_trace_export_errors_total 0`,
	} {
		assert.Contains(t, text, "\n"+want, "the scheduler's metrics")
	}
}

var listening = regexp.MustCompile(`"http_addr":"([^"]+)"`)

// metrics reads a process's.
func (p *process) metrics(t *testing.T) string {
	t.Helper()
	log, err := os.ReadFile(p.log)
	require.NoError(t, err)
	addr := listening.FindSubmatch(log)
	require.NotNil(t, addr, "the log does not say where the metrics are")
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, fmt.Sprintf("http://%s/metrics", addr[1]), nil)
	require.NoError(t, err)
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return string(body)
}
