package config

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// inOne is more targets than any file here has.
const inOne = 1 << 30

// same reads a file in parts and as a whole, and says whether it was really read in parts.
func same(t require.TestingT, src []byte, items int) (inParts bool) {
	whole, wholeErr := parse("/etc/lifeboat.yaml", src, inOne)
	cfg, err := parse("/etc/lifeboat.yaml", src, items)
	for range 50 { // of several unknown keys of one mapping, the library names any
		if wholeErr == nil || err == nil || wholeErr.Error() == err.Error() {
			break
		}
		_, wholeErr = parse("/etc/lifeboat.yaml", src, inOne)
	}
	if wholeErr != nil {
		require.EqualError(t, err, wholeErr.Error(), "%s", src)
	} else {
		require.NoError(t, err, "%s", src)
		require.Equal(t, whole, cfg, "%s", src)
	}
	p, ok := split(src, items)
	if ok {
		_, _, ok = p.read(&document{path: "/etc/lifeboat.yaml", src: src})
	}
	return ok
}

// someFleet is a random file: good ones, and ones with things in them that are rare or that cannot be read in parts.
func someFleet(r *rand.Rand) []byte {
	var b strings.Builder
	pick := func(options ...string) string { return options[r.IntN(len(options))] }
	indent := pick("", "  ", "    ")
	b.WriteString(pick("", "# a fleet\n", "nats: {replicas: 3}\n", "\n\n"))
	b.WriteString("store:\n  bucket: backups\n  prefix: \"a\n    b\"\n"[:pickInt(r, 8+18, 8+18, 8+18, 43)])
	if !strings.HasSuffix(b.String(), "\n") {
		b.WriteString("\n")
	}
	b.WriteString(pick("targets:\n", "targets:\n", "targets:  \n", "targets:\n\n  # all of them\n", "targets: # all\n"))
	for i := range 1 + r.IntN(9) {
		fmt.Fprintf(&b, "%s-%sname: t%d\n", indent, pick(" ", " ", "   "), i)
		in := indent + "  "
		if strings.Contains(b.String()[b.Len()-14:], "-   name") {
			in += "  "
		}
		b.WriteString(in + pick(
			"etcd: {endpoints: ['http://10.0.0.1:2379']}\n", "consul: {address: http://10.0.0.1:8500, token_file: token}\n",
			"etcd:\n"+in+"  endpoints:\n"+in+"  - http://10.0.0.1:2379\n"+in+"  # one\n"+in+"  - \"http://10.0.0.2:2379\"\n",
			"nomad: {address: 'http://10.0.0.1:4646', namespaces: [a, b]}\n", "etcd: {endpoints: [http://a,\n"+in+"   http://b]}\n",
		))
		usual := []string{
			"", "\n", "# a comment\n", in + "# a comment\n", indent + "# - name: x\n", in + "rpo: 12h\n", in + "splay: 5m\n", in + "schedule: '0 */6 * * *'\n",
			in + "time_zone: Asia/Beirut\n", in + "drill:\n" + in + "  schedule: '@daily'\n" + in + "  checks: [{count: keys, min: 5}]\n",
			in + "blackout:\n" + in + "- weekdays: [saturday, 'sunday']\n" + in + "- {times: [{start_time: '09:00', end_time: '10:00'}], location: Asia/Tokyo}\n",
			in + "retention: {within: 30d, last: 7}\n", in + "prune:\n", in + "read_back: {}\n", in + "verify: {schedule: >-\n" + in + "  @daily}\n",
			in + "zone: |-\n" + in + "  beijing\n", in + "paused: true\n", in + "overlap: \"que\\\n" + in + "  ue\"\n", in + "zone: 1e3\n", in + "\"timeout\": 3h\n", in + "catch_up: ~\n",
		}
		r.Shuffle(len(usual), func(i, j int) { usual[i], usual[j] = usual[j], usual[i] })
		b.WriteString(strings.Join(usual[:r.IntN(5)], ""))
		if r.IntN(12) == 0 {
			b.WriteString(pick(
				in+"schedule: \"@every 90s\"\n", in+"1: 2\n", in+"timeout: &long 2h\n", in+"timeout: *long\n", in+"<<: {rpo: 1h}\n", in+"zone: !!str a\n",
				in+"name: again\n", in+"catch_up_max: 5\n", in+"paused: yes\n", in+"rpoo: 1\n", in+"rpo: soon\n", in+"blackout: [{weekdays: [satuday]}]\n",
				in+"etcd: null\n", in+"min_kib_per_second: many\n", indent+"-\n", in+"zone: 'a\n"+indent+"- name: b'\n", in+"zone: [a\n", in+"? rpo\n"+in+": 4h\n",
				in+"drill: {checks: [{key: a, value: 5}]}\n", in+"min_kib_per_second: 0x1F\n", in+"zone:\n",
			))
		}
	}
	b.WriteString(pick("", "", "", "workers: {fleet_concurrency: {drill: 2}}\n", "workers: {fleet_concurrency: {drill: 2}}\n", "# end\n", "  # end\n", "alertmanager: {urls: [x]}\n", "nonsense: 1\n", "x: 'y\n", "targets: []\n", "---\n"))
	return []byte(b.String())
}

func pickInt(r *rand.Rand, options ...int) int { return options[r.IntN(len(options))] }

// What is accepted, what comes of it, and what is said otherwise, is the same for a file that is read in parts: random files, and then
// each with a random change.
func TestPartsAreReadAsTheWhole(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	parted, good := 0, 0
	for range 800 {
		src := someFleet(r)
		for range 2 {
			if same(t, src, 1+r.IntN(3)) {
				parted++
			}
			if _, err := parse("x", src, inOne); err == nil {
				good++
			}
			at := r.IntN(len(src))
			switch r.IntN(3) {
			case 0:
				src = bytes.Join([][]byte{src[:at], src[at+1:]}, nil)
			case 1:
				src = bytes.Join([][]byte{src[:at], {"- :'\"[{}]#\n*&!|x"[r.IntN(16)]}, src[at:]}, nil)
			default:
				lines := bytes.SplitAfter(src, []byte("\n"))
				i, j := r.IntN(len(lines)), r.IntN(len(lines))
				lines[i], lines[j] = lines[j], lines[i]
				src = bytes.Join(lines, nil)
			}
		}
	}
	t.Logf("%d read in parts, %d good", parted, good)
	assert.Greater(t, parted, 120, "the test reads hardly anything in parts")
	assert.Greater(t, good, 80)
}

func FuzzParts(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		f.Add(someFleet(r))
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		same(t, src, 1)
		same(t, src, 2)
	})
}

func TestOneMistakeInALargeFleet(t *testing.T) {
	var b strings.Builder
	b.WriteString("store: {bucket: backups}\ntargets:\n")
	for i := range 1000 {
		fmt.Fprintf(&b, "  - name: etcd-%04d\n    etcd: {endpoints: ['http://10.0.0.1:2379']}\n    schedule: '0 */6 * * *'\n    rpo: 12h\n", i)
	}
	b.WriteString("workers:\n  fleet_concurrency: {drill: 2}\n")
	src := b.String()
	require.True(t, same(t, []byte(src), batchItems), "read in parts")
	for name, c := range map[string]struct{ old, wrong, want string }{
		"an unknown key":       {"rpo: 12h", "rpoo: 12h", "x.yaml:2406:5: targets[600].rpoo: unknown field \"rpoo\"\n  2406 |     rpoo: 12h"},
		"no duration":          {"rpo: 12h", "rpo: soon", "x.yaml:2406:10: targets[600].rpo: \"soon\" is not a duration"},
		"left out":             {"rpo: 12h", "rpo:", "x.yaml:2406:9: targets[600].rpo: "},
		"negative":             {"rpo: 12h", "rpo: -12h", "x.yaml:2406:10: targets[600].rpo: must not be negative\n  2406 |     rpo: -12h"},
		"no mapping":           {"rpo: 12h", "rpo 12h", "x.yaml:2406:5: "},
		"a quote left open":    {"rpo: 12h", "rpo: \"12h", "x.yaml:2406:10: "},
		"a list left open":     {"rpo: 12h", "rpo: [12h", "x.yaml:2407:3: "},
		"the name of another":  {"name: etcd-0600", "name: etcd-0300", "x.yaml:2403:11: targets[600].name: \"etcd-0300\" is already the name of targets[300]"},
		"behind the targets":   {"drill: 2", "drill: -2", "x.yaml:4004:30: workers.fleet_concurrency.drill: is -2"},
		"an unknown key there": {"drill: 2", "dril: 2", "x.yaml:4004:23: workers.fleet_concurrency.dril: unknown field"},
	} {
		t.Run(name, func(t *testing.T) {
			at := max(0, strings.Index(src, "name: etcd-0600"))
			bad := src[:at] + strings.Replace(src[at:], c.old, c.wrong, 1)
			_, whole := parse("x.yaml", []byte(bad), inOne)
			_, err := parse("x.yaml", []byte(bad), batchItems)
			require.EqualError(t, err, whole.Error())
			require.ErrorContains(t, err, c.want)
		})
	}
}

func TestALoadedFleetSharesWhatIsEqual(t *testing.T) {
	cfg, err := Parse("x.yaml", []byte(`store: {bucket: backups}
targets:
  - {name: a, etcd: {endpoints: ['http://a']}, schedule: '0 4 * * *', time_zone: Asia/Tokyo}
  - {name: b, etcd: {endpoints: ['http://a']}, schedule: '0 4 * * *', time_zone: Asia/Tokyo, splay: 1h}
  - {name: c, etcd: {endpoints: ['http://a']}, schedule: '0 4 * * *', blackout: [{weekdays: [sunday], location: Asia/Tokyo}]}
`))
	require.NoError(t, err)
	timetable := func(t *testing.T, target Target) any {
		t.Helper()
		parsed, parseErr := target.Timetable(target.Schedules()[0])
		require.NoError(t, parseErr)
		return parsed
	}
	a, b, c := cfg.Targets[0], cfg.Targets[1], cfg.Targets[2]
	moved, ok := timetable(t, b).(shifted)
	require.True(t, ok)
	assert.Same(t, timetable(t, a), moved.nominal)
	assert.NotSame(t, timetable(t, a), timetable(t, c), "another zone")
	assert.Same(t, a.clock.loc, c.Blackout[0].Location.Location)
	assert.Less(t, testing.AllocsPerRun(100, func() { _, _ = a.Timetable(Schedule{Line: a.Schedule}) }), 1.0)

	a.TimeZone = "Europe/Berlin" // a copy may be changed
	s, err := a.Timetable(Schedule{Name: "drill", Line: "0 5 * * *"})
	require.NoError(t, err)
	assert.Equal(t, "2026-11-21T04:00:00Z", s.Next(time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC)).UTC().Format(time.RFC3339))
}

func TestATargetIsFoundByName(t *testing.T) {
	cfg, err := Parse("x.yaml", []byte("store: {bucket: backups}\ntargets:\n  - {name: a, etcd: {endpoints: ['http://a']}}\n  - {name: b, etcd: {endpoints: ['http://b']}}\n"))
	require.NoError(t, err)
	for _, c := range []*Config{cfg, {Targets: cfg.Targets}} {
		b, ok := c.Target("b")
		require.True(t, ok)
		assert.Equal(t, "http://b", b.Etcd.Endpoints[0])
		_, ok = c.Target("c")
		assert.False(t, ok)
	}
	cfg.Targets = append(cfg.Targets[1:], Target{Name: "c"})
	for _, name := range []string{"b", "c"} {
		found, ok := cfg.Target(name)
		assert.True(t, ok)
		assert.Equal(t, name, found.Name, "found in what it is now")
	}
	_, ok := cfg.Target("a")
	assert.False(t, ok)
}
