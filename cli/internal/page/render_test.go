package page

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/cli/internal/ops"
	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/service"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	backup "github.com/lifeboat-fleet/lifeboat/services/backup/app"
	notifier "github.com/lifeboat-fleet/lifeboat/services/notifier/app"
	scheduler "github.com/lifeboat-fleet/lifeboat/services/scheduler/app"
)

var update = flag.Bool("update", false, "write the goldens anew")

// three in the morning.
func threeAM() time.Time { return time.Date(2026, 11, 21, 3, 0, 0, 0, time.UTC) }

// told is a fleet without NATS, whose clock stands still.
type told struct {
	t   *testing.T
	f   *fleet
	cfg *config.Config
	seq uint64
}

func newTold(t *testing.T, targets string) *told {
	t.Helper()
	cfg, err := config.Parse("lifeboat.yaml", []byte("store: {bucket: none}\npage: {title: Lifeboat Beijing}\n"+
		"notifier: {runbooks: {base_url: \"https://runbooks.example.com\", suffix: .md}}\ntargets:\n"+targets))
	require.NoError(t, err)
	f := newFleet()
	f.caughtUp, f.answered = true, threeAM()
	return &told{t: t, f: f, cfg: cfg}
}

func (l *told) hear(age time.Duration, e *lifeboatv1.Event) {
	l.t.Helper()
	at := threeAM().Add(-age)
	e.Time = timestamppb.New(at)
	b, err := protojson.Marshal(e)
	require.NoError(l.t, err)
	l.seq++
	assert.True(l.t, l.f.hear(&bus.Message{Subject: bus.EventSubject(e.GetNoun(), e.GetVerb(), e.GetTarget()), Data: b, Seq: l.seq, Stored: at}))
}

func (l *told) committed(target string, age time.Duration) {
	l.t.Helper()
	of := threeAM().Add(-age)
	l.hear(age-42*time.Second, &lifeboatv1.Event{
		Noun: "snapshot", Verb: "committed", Target: target, Detail: &lifeboatv1.Event_Manifest{Manifest: &lifeboatv1.Manifest{
			StartedAt: timestamppb.New(of), CommittedAt: timestamppb.New(of.Add(42 * time.Second)),
			Data: &lifeboatv1.Data{Stored: &lifeboatv1.Digest{Bytes: 734003200}},
		}},
	})
}

func (l *told) drilled(target, verb string, age time.Duration, r *lifeboatv1.DrillReport) {
	l.t.Helper()
	at := threeAM().Add(-age)
	r.StartedAt, r.FinishedAt = timestamppb.New(at.Add(-2*time.Minute)), timestamppb.New(at)
	l.hear(age, &lifeboatv1.Event{Noun: "drill", Verb: verb, Target: target, Detail: &lifeboatv1.Event_Drill{Drill: r}})
}

func (l *told) proven(target string, age time.Duration) {
	l.t.Helper()
	l.drilled(target, "passed", age, &lifeboatv1.DrillReport{
		Passed: true, Level: lifeboatv1.DrillReport_LEVEL_RESTORED, Rto: durationpb.New(83 * time.Second), DataAge: durationpb.New(time.Hour),
	})
}

func (l *told) decided(target, schedule string, s *lifeboatv1.ScheduleState) {
	l.t.Helper()
	b, err := protojson.Marshal(s)
	require.NoError(l.t, err)
	l.seq++
	require.NoError(l.t, l.f.decided(&bus.Message{Subject: bus.ScheduleSubject(target, schedule), Data: b, Seq: l.seq}))
}

func (l *told) view() *view { return l.f.build(l.cfg, "lifeboat.yaml", threeAM()) }

// page writes the page with assets whose names do not change.
func (l *told) page(q request) string {
	l.t.Helper()
	r, err := newRenderer()
	require.NoError(l.t, err)
	v := l.view()
	parts, err := r.parts(v, q)
	require.NoError(l.t, err)
	b, err := r.page(v, q, parts, map[string]string{"page.css": "page.css", "page.js": "page.js", "favicon.svg": "favicon.svg"})
	require.NoError(l.t, err)
	return string(b)
}

// everything is a fleet with something of each kind.
func everything(t *testing.T) *told {
	t.Helper()
	l := newTold(t, `  - {name: etcd-prod, etcd: {endpoints: ["http://10.0.0.1:2379"]}, schedule: "0 */6 * * *", time_zone: Asia/Shanghai, rpo: 12h, drill: {schedule: "0 4 * * 0"}}
  - {name: consul-kv, consul: {address: "http://10.0.0.2:8500"}, schedule: "@hourly", rpo: 3h}
  - {name: nomad-jobs, nomad: {address: "http://10.0.0.3:4646"}, schedule: "@hourly", rpo: 4h}
  - {name: etcd-seoul, etcd: {endpoints: ["http://10.1.0.1:2379"]}, schedule: "30 * * * *", rpo: 2h, zone: seoul}
  - {name: etcd-new, etcd: {endpoints: ["http://10.3.0.1:2379"]}, schedule: "@daily", rpo: 24h}
  - {name: by-hand, etcd: {endpoints: ["http://10.4.0.1:2379"]}}
  - {name: etcd-lab, etcd: {endpoints: ["http://10.5.0.1:2379"]}, schedule: "@hourly", paused: true}
`)
	l.cfg.Notifier.Receivers = []config.Receiver{{Name: "ops-slack", Canary: config.Canary{Schedule: "@daily"}}}
	l.committed("etcd-prod", 14*time.Hour)
	l.hear(2*time.Hour, &lifeboatv1.Event{Noun: "snapshot", Verb: "failed", Target: "etcd-prod", Message: "no member has a leader"})
	l.proven("etcd-prod", 5*24*time.Hour)
	l.committed("consul-kv", 40*time.Minute)
	l.proven("consul-kv", 20*time.Hour)
	l.drilled("consul-kv", "failed", 3*time.Hour, &lifeboatv1.DrillReport{Failure: "compare: 1204 keys, the snapshot says 1205"})
	l.committed("nomad-jobs", 20*time.Minute)
	l.proven("nomad-jobs", 6*time.Hour)
	l.committed("etcd-seoul", 105*time.Minute)
	l.hear(time.Hour, &lifeboatv1.Event{Noun: "target", Verb: "added", Target: "etcd-new"})
	l.committed("etcd-lab", 72*time.Hour)
	l.proven("etcd-lab", 71*time.Hour)
	l.decided("nomad-jobs", "snapshot", &lifeboatv1.ScheduleState{
		Tick: timestamppb.New(threeAM().Add(-3 * time.Hour)), Outcome: lifeboatv1.ScheduleState_OUTCOME_EMITTED, Schedule: "@hourly",
	})
	l.decided("etcd-seoul", "snapshot", &lifeboatv1.ScheduleState{
		Tick: timestamppb.New(threeAM().Add(-30 * time.Minute)), Outcome: lifeboatv1.ScheduleState_OUTCOME_MISSED, Schedule: "30 * * * *",
		Missed: []*lifeboatv1.MissedTicks{{Reason: "overlap", Count: 1}},
	})
	l.hear(time.Hour, &lifeboatv1.Event{Noun: "canary", Verb: "late", Target: "ops-slack", Message: "sent at 02:00, not there"})
	for i, verb := range []string{"delivered", "folded", "handed-on", "dead"} {
		l.hear(time.Duration(i+1)*time.Minute, &lifeboatv1.Event{Noun: "alert", Verb: verb, Target: "etcd-prod", Attributes: map[string]string{
			"receiver": "ops-slack", "to": "ops-dingtalk", "alertname": "LifeboatRPOExceeded", "alerts": "1", "lag_seconds": fmt.Sprint(i * 40), "delivery_id": verb,
		}})
	}
	l.f.dead = deadLetters{total: 9, newest: []letter{
		{id: "a", subject: "lifeboat.alert.delivery.web-slack", reason: "channel_not_found", at: threeAM().Add(-time.Hour)},
		{id: "b", subject: "lifeboat.job.snapshot.nomad-jobs", reason: "timed out", at: threeAM().Add(-2 * time.Hour)},
		{id: "c", subject: "webhook", reason: "it is no JSON", at: threeAM().Add(-48 * time.Hour)},
	}}
	since := threeAM().Add(-25 * time.Second)
	l.f.jobs = []ops.Job{
		{ID: "1", Work: config.WorkSnapshot, Target: "nomad-jobs", State: "running", Worker: "lifeboat-backup@node-3:71", Attempt: 1, Since: &since, StoredAt: since},
		{ID: "2", Work: config.WorkDrill, Target: "etcd-prod", State: "retrying", Attempt: 2, StoredAt: since},
		{ID: "3", Work: config.WorkSnapshot, Target: "etcd-seoul", State: "no worker", StoredAt: since},
	}
	l.f.waiting = waiting{
		unrouted: 2, unroutedSince: threeAM().Add(-10 * time.Minute), receivers: map[string]uint64{"ops-slack": 3},
		since: map[string]time.Time{"ops-slack": threeAM().Add(-11 * time.Minute)},
	}
	l.f.crew = ops.NewCrew([]bus.WorkerInfo{{Actor: "lifeboat-backup@node-3:71", Roles: []string{"snapshot", "drill", "verify", "prune"}}}, nil)
	return l
}

func TestGoldens(t *testing.T) {
	for _, lang := range languages() {
		got := everything(t).page(request{lang: lang, page: 1})
		path := filepath.Join("testdata", "page."+lang+".html")
		if *update {
			require.NoError(t, os.WriteFile(path, []byte(got), 0o600))
		}
		want, err := os.ReadFile(path)
		require.NoError(t, err)
		assert.Equal(t, string(want), got, "when this is meant: go test ./internal/page -run Goldens -update")
	}
}

func TestWhatIsRedStandsFirst(t *testing.T) {
	l := everything(t)
	v := l.view()
	var names []string
	levels := map[string]string{}
	for _, row := range v.targets {
		names = append(names, row.name)
		levels[row.name] = row.level.String()
	}
	assert.Equal(t, map[string]string{
		"etcd-prod": "red", "consul-kv": "red", "etcd-seoul": "amber", "etcd-lab": "amber", "nomad-jobs": "good", "etcd-new": "amber", "by-hand": "unknown",
	}, levels)
	assert.Equal(t, []string{"etcd-prod", "consul-kv"}, names[:2], "by how much of the RPO is used")
	assert.Equal(t, [good + 1]int{red: 2, amber: 3, unknown: 1, good: 1}, v.counts)

	s := (&renderer{words: map[string]*words{english: inEnglish()}}).screen(v, request{lang: english})
	var texts []string
	for _, it := range s.Problems() {
		for _, line := range it.Lines {
			texts = append(texts, line.Text)
		}
	}
	assert.Equal(t, []string{
		"Nobody decides: 1 schedules are overdue. No scheduler runs, or it cannot write to NATS.",
		"Zone seoul has no worker for snapshot jobs (targets: 1)",
		"The canary of receiver ops-slack did not arrive",
		"2 webhooks wait: no notifier takes them", "3 deliveries wait for ops-slack, and none gets through",
		"etcd-prod has no good snapshot within its RPO", "The last snapshot of etcd-prod failed",
		"The last restore drill of consul-kv failed",
		"New dead letters in the last day: 1", // that of nomad-jobs was mended by a snapshot since
	}, texts)

	// What went well since takes it back.
	l.committed("etcd-prod", time.Minute)
	l.proven("consul-kv", time.Minute)
	for _, row := range l.view().targets {
		assert.NotEqual(t, red, row.level, row.name)
	}
}

// An interruption makes the log's last messages come again, the older ones too.
func TestWhatComesAgainChangesNothing(t *testing.T) {
	l := newTold(t, "  - {name: a, etcd: {endpoints: [\"http://127.0.0.1:1\"]}, rpo: 1h}\n")
	failed := &lifeboatv1.Event{Noun: "snapshot", Verb: "failed", Target: "a"}
	l.hear(2*time.Minute, failed)
	l.committed("a", time.Minute+42*time.Second)
	b, err := protojson.Marshal(failed)
	require.NoError(t, err)
	assert.False(t, l.f.hear(&bus.Message{Subject: "lifeboat.event.snapshot.failed.a", Data: b, Seq: 1, Stored: threeAM()}))
	assert.Empty(t, l.f.targets["a"].bad)
	assert.False(t, l.f.hear(&bus.Message{Subject: "lifeboat.event.nonsense", Seq: 99}))
	assert.True(t, l.f.hear(&bus.Message{Subject: "lifeboat.event.snapshot.failed.a", Data: []byte("no JSON"), Seq: 99, Stored: threeAM()}))
	assert.Len(t, l.f.targets["a"].bad, 1, "that it happened is said by the subject")
}

// Only what was restored is proven, and a worker's clock that is ahead makes no snapshot younger.
func TestWhatIsNoProof(t *testing.T) {
	l := newTold(t, "  - {name: a, etcd: {endpoints: [\"http://127.0.0.1:1\"]}, rpo: 1h}\n")
	l.drilled("a", "passed", time.Hour, &lifeboatv1.DrillReport{Passed: true, Level: lifeboatv1.DrillReport_LEVEL_DECODED})
	assert.Zero(t, l.f.targets["a"].proof)
	l.committed("a", -time.Hour)
	assert.False(t, l.f.targets["a"].of.After(threeAM().Add(time.Hour+42*time.Second)))
	l.drilled("a", "escrow-passed", time.Hour, &lifeboatv1.DrillReport{Passed: true, Level: lifeboatv1.DrillReport_LEVEL_RESTORED, Rto: durationpb.New(1500 * time.Millisecond)})
	assert.Equal(t, 1500*time.Millisecond, l.f.targets["a"].proof.rto)
}

func TestWordsAreCompleteInBothLanguages(t *testing.T) {
	en, zh := reflect.ValueOf(*inEnglish()), reflect.ValueOf(*inChinese())
	verbs := regexp.MustCompile(`%[ds%]`)
	for i := range en.NumField() {
		name := en.Type().Field(i).Name
		if en.Field(i).Kind() == reflect.Map {
			assert.Len(t, zh.Field(i).Interface(), en.Field(i).Len(), name)
			continue
		}
		a, b := en.Field(i).String(), zh.Field(i).String()
		assert.NotEmpty(t, a, name)
		assert.NotEmpty(t, b, name)
		assert.Equal(t, verbs.FindAllString(a, -1), verbs.FindAllString(b, -1), name)
	}
	for name, want := range map[string]string{"zh-CN,zh;q=0.9": "zh", "zh-TW": "zh", "en-GB,zh;q=0.5": "en", "fr": "en", "": "en", ";;;": "en", "ko, zh;q=0.4": "zh"} {
		assert.Equal(t, want, speak("", name), name)
	}
	assert.Equal(t, "zh", speak("zh", "en"))
	assert.Equal(t, "en", speak("xx", "en"))
}

func TestLengthsOfTime(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0 s", 300 * time.Millisecond: "< 1 s", 83 * time.Second: "1 min 23 s", time.Hour: "1 h", 26 * time.Hour: "1 d 2 h", 72 * time.Hour: "3 d",
		72*time.Hour + 5*time.Minute: "3 d", -time.Second: "0 s",
	} {
		assert.Equal(t, want, inEnglish().duration(d), d.String())
	}
	assert.Equal(t, "1 小时 30 分", inChinese().duration(90*time.Minute))
	assert.Equal(t, "55 s", inEnglish().age(58*time.Second))
	assert.Equal(t, "4 min", inEnglish().age(4*time.Minute+59*time.Second))
}

// Nothing that others wrote becomes part of the page: neither as HTML, nor as an event of the stream.
func TestHostileStrings(t *testing.T) {
	const evil = `<script>alert(1)</script><img src=x onerror=alert(2)>" onmouseover="alert(3)` + "\n\nevent: part\ndata: head\n\x00\u202e'`javascript:alert(4)`"
	l := newTold(t, "  - {name: a, etcd: {endpoints: [\"http://127.0.0.1:1\"]}, schedule: \"@hourly\", rpo: 1h}\n")
	l.cfg.Page.Title = evil
	l.cfg.Notifier.Runbooks.BaseURL = "javascript:alert(5)//"
	l.committed("a", 2*time.Hour)
	l.hear(time.Minute, &lifeboatv1.Event{Noun: "snapshot", Verb: "failed", Target: "a", Message: evil})
	l.hear(time.Minute, &lifeboatv1.Event{Noun: "alert", Verb: "dead", Target: "a", Message: evil, Attributes: map[string]string{
		"receiver": evil, "alertname": evil, "alerts": "1", "to": evil,
	}})
	l.decided("a", "snapshot", &lifeboatv1.ScheduleState{Pause: &lifeboatv1.Pause{By: evil, Reason: evil}, Missed: []*lifeboatv1.MissedTicks{{Reason: evil}}})
	l.f.dead = deadLetters{total: 1, newest: []letter{{id: evil, subject: ops.Clean(evil), reason: ops.Clean(evil), at: threeAM()}}}
	l.f.jobs = []ops.Job{{ID: evil, Work: config.Work(evil), Target: evil, Worker: evil, State: "running", Attempt: 3, StoredAt: threeAM()}}
	l.f.troubles["what waits and runs"] = evil
	l.f.away, l.f.awaySince = evil, threeAM()
	for _, lang := range languages() {
		text := l.page(request{lang: lang, page: 1, find: `"><script>`})
		text += l.page(request{lang: lang, page: 1})
		assert.NotContains(t, text, "<script>")
		assert.NotContains(t, text, "<img")
		assert.NotContains(t, text, `" onmouseover`)
		assert.NotContains(t, text, `href="javascript:`)
		assert.Contains(t, text, "&lt;script&gt;")
	}
	r, err := newRenderer()
	require.NoError(t, err)
	parts, err := r.parts(l.view(), request{lang: english, page: 1})
	require.NoError(t, err)
	for name, part := range parts.parts {
		var b bytes.Buffer
		message(&b, "part", name+"\n"+part)
		for line := range strings.Lines(strings.TrimSuffix(b.String(), "\n\n")) {
			assert.Regexp(t, `^(event: part|data: )`, line)
		}
		assert.NotContains(t, b.String(), "\nevent:")
	}
}

// Every command on the page is one that there is, with flags that it has.
func TestCommandsOnThePageParse(t *testing.T) {
	root := &cobra.Command{Use: "lifeboat"}
	named := func(name string, c *cobra.Command) *cobra.Command { c.Use = name; return c }
	root.AddCommand(ops.WhyCommand(), ops.DeadCommand(), service.Group(&cobra.Command{Use: "notify"}, ops.NotifyCommands()...),
		named("scheduler", scheduler.Command()), named("backup", backup.Command()), named("notifier", notifier.Command()), Command())
	l := everything(t)
	l.f.troubles["workers"] = "denied"
	all := map[string]bool{}
	for _, file := range []string{"/etc/life boat/it's.yaml", "lifeboat.yaml"} {
		s := (&renderer{words: map[string]*words{english: inEnglish()}}).screen(l.f.build(l.cfg, file, threeAM()), request{lang: english})
		for _, it := range s.Problems() {
			for _, c := range it.Commands {
				all[c] = true
			}
		}
		for _, r := range s.Rows() {
			for _, c := range r.Commands {
				all[c] = true
			}
		}
		l.f.crew = ops.NewCrew(nil, nil)
	}
	assert.Contains(t, all, `lifeboat why etcd-prod -c '/etc/life boat/it'\''s.yaml'`)
	assert.Contains(t, all, "lifeboat why etcd-prod")
	for c := range all {
		line := strings.ReplaceAll(c, `'/etc/life boat/it'\''s.yaml'`, "x.yaml")
		args := strings.Fields(line)
		switch args[0] {
		case "nats":
			assert.Equal(t, "nats stream ls", c)
			continue
		case "lifeboat-backup":
			args = append([]string{"lifeboat", "backup"}, args[1:]...)
		}
		require.Equal(t, "lifeboat", args[0], c)
		cmd, rest, err := root.Find(args[1:])
		require.NoError(t, err, c)
		cmd.SetOut(io.Discard)
		require.NoError(t, cmd.ParseFlags(rest), c)
		require.NoError(t, cmd.ValidateArgs(cmd.Flags().Args()), c)
		require.True(t, cmd.Runnable(), c)
	}
}

// The page's runbooks are named as the notifier names them.
func TestNamesOfRunbooks(t *testing.T) {
	for name, want := range map[string]string{
		"LifeboatRPOExceeded": "lifeboat-rpo-exceeded", "LifeboatSnapshotFailed": "lifeboat-snapshot-failed", "LifeboatCanaryLate": "lifeboat-canary-late",
	} {
		assert.Equal(t, want, kebab(name))
	}
}

// 5,000 targets: the worst stand first, the rest is counted and on further pages, and a page stays small.
func TestManyTargets(t *testing.T) {
	const many = 5000
	l := manyTargets(t, many)
	began := time.Now()
	l.view()
	first := time.Since(began)
	began = time.Now()
	v := l.view()
	built := time.Since(began)
	began = time.Now()
	text := l.page(request{lang: english, page: 1})
	t.Logf("%d targets: first view %s, view %s, page %s of %d bytes", many, first, built, time.Since(began), len(text))
	assert.Less(t, len(text), 200<<10)
	assert.Equal(t, maxTargets, strings.Count(text, "<li id=\"t-"))
	assert.Contains(t, text, "1 to 50 of 5000, the worst first")
	assert.Contains(t, text, "and 42 more, below")
	assert.Equal(t, 50, v.counts[red])
	last := l.page(request{lang: english, page: 1 << 20})
	assert.Contains(t, last, "4951 to 5000 of 5000")
	found := l.page(request{lang: chinese, page: 1, find: "target-0042"})
	assert.Equal(t, 1, strings.Count(found, "<li id=\"t-"))
	assert.Contains(t, found, `value="target-0042"`)
	assert.Contains(t, l.page(request{lang: chinese, page: 3, find: "nosuch"}), "没有名称含“nosuch”的目标")
}

func manyTargets(t *testing.T, many int) *told {
	t.Helper()
	var b strings.Builder
	for i := range many {
		fmt.Fprintf(&b, "  - {name: target-%04d, etcd: {endpoints: [\"http://127.0.0.1:1\"]}, schedule: \"%d * * * *\", rpo: 2h, drill: {schedule: \"@daily\"}}\n", i, i%60)
	}
	l := newTold(t, b.String())
	for i := range many {
		name, age := fmt.Sprintf("target-%04d", i), time.Duration(i%60)*time.Minute
		if i%100 == 7 {
			age = 3 * time.Hour
		}
		l.committed(name, age)
		l.proven(name, 12*time.Hour)
	}
	return l
}

func TestMetricsAreThere(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	newMetrics(reg, newFleet(), threeAM)
	all, err := reg.Gather()
	require.NoError(t, err)
	for _, m := range all {
		assert.Regexp(t, "^lifeboat_page_", m.GetName())
	}
	assert.Len(t, all, 5)
}
