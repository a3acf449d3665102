package budget_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/natstest"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/budget"
)

// How a child process of the test is told what to do.
const (
	childNATS = "LIFEBOAT_BUDGET_TEST_NATS"
	childSink = "LIFEBOAT_BUDGET_TEST_SINK"
)

// fleetRule is what the children share.
func fleetRule() budget.Rule { return budget.Rule{Messages: 20, Per: time.Second, Reserve: 8} }

// child sends as much as it may, until it is killed.
func child(natsURL, sink string) {
	b, err := bus.Connect(bus.Options{
		Config: config.NATS{URL: natsURL}, Actor: "lifeboat-notifier@child", Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	budgets := budget.New(budget.Options{Store: b, Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry()})
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			for {
				childSend(budgets, sink, false)
			}
		})
	}
	wg.Go(func() {
		for { // two processes send 4 within a Per: less than the reserve
			childSend(budgets, sink, true)
			<-time.After(500 * time.Millisecond)
		}
	})
	wg.Wait()
}

func childSend(budgets *budget.Budgets, sink string, critical bool) {
	var waited time.Duration // for room, and not for NATS
	for {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		begun := time.Now()
		wait, err := budgets.Take(ctx, "robot", fleetRule(), critical)
		cancel()
		if err != nil {
			wait = 20 * time.Millisecond // NATS is away
		} else if wait == 0 {
			q := url.Values{}
			q.Set("begun", strconv.FormatInt(begun.UnixNano(), 10))
			q.Set("ended", strconv.FormatInt(time.Now().UnixNano(), 10))
			q.Set("waited", strconv.FormatInt(int64(waited), 10))
			q.Set("critical", strconv.FormatBool(critical))
			resp, err := http.Post(sink+"?"+q.Encode(), "text/plain", nil)
			if err == nil {
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
			}
			return
		} else {
			waited += wait
		}
		<-time.After(wait)
	}
}

// sink records what arrives.
type sink struct {
	mu   sync.Mutex
	sent []message
}

type message struct {
	// It was counted between begun and ended, by the child's clock, and arrived.
	begun, ended, arrived time.Time
	waited                time.Duration
	critical              bool
}

func (s *sink) ServeHTTP(_ http.ResponseWriter, r *http.Request) {
	number := func(name string) int64 {
		n, _ := strconv.ParseInt(r.FormValue(name), 10, 64)
		return n
	}
	m := message{
		begun: time.Unix(0, number("begun")), ended: time.Unix(0, number("ended")), arrived: time.Now(),
		waited: time.Duration(number("waited")), critical: r.FormValue("critical") == "true",
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sent = append(s.sent, m)
}

func (s *sink) all() []message {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.sent)
}

func start(t *testing.T, natsURL, sinkURL string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), childNATS+"="+natsURL, childSink+"="+sinkURL)
	cmd.Stderr = os.Stderr
	require.NoError(t, cmd.Start())
	return cmd
}

func kill(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	require.NoError(t, cmd.Process.Kill()) // SIGKILL, of a process of ours
	_ = cmd.Wait()
}

// crowded returns an instant at which more than so many had been sent within per; false when there is none.
func crowded(begun, ended []time.Time, messages int, per time.Duration) (time.Time, bool) {
	slices.SortFunc(begun, time.Time.Compare)
	slices.SortFunc(ended, time.Time.Compare)
	for i := messages; i < len(ended); i++ {
		if ended[i].Sub(begun[i-messages]) < per {
			return ended[i], true
		}
	}
	return time.Time{}, false
}

func TestCrowded(t *testing.T) {
	now := time.Now()
	all := []time.Time{now.Add(time.Second), now, now.Add(2 * time.Second)}
	_, found := crowded(slices.Clone(all), slices.Clone(all), 2, 3*time.Second)
	assert.True(t, found)
	_, found = crowded(slices.Clone(all), slices.Clone(all), 2, 2*time.Second)
	assert.False(t, found)
}

// Two processes with several senders each, killed and started again, and a NATS server that restarts: never more than the rule.
func TestTheFleetKeepsTheRule(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	nats := natstest.New(t)
	connect(t, nats.URL())
	s := &sink{}
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	children := [2]*exec.Cmd{start(t, nats.URL(), server.URL), start(t, nats.URL(), server.URL)}
	defer func() {
		for _, c := range children {
			kill(t, c)
		}
	}()
	begun := time.Now()
	for round := range 6 {
		arrived, patience := len(s.all()), 8+random.IntN(12)
		require.Eventually(t, func() bool { return len(s.all()) >= arrived+patience }, time.Minute, 5*time.Millisecond, "round %d", round)
		if round == 3 {
			require.NoError(t, nats.Restart())
			continue
		}
		i := random.IntN(2)
		kill(t, children[i])
		children[i] = start(t, nats.URL(), server.URL)
	}
	settled := len(s.all())
	require.Eventually(t, func() bool { return len(s.all()) >= settled+40 }, time.Minute, 5*time.Millisecond)
	checkFleet(t, s.all(), time.Since(begun))
}

func checkFleet(t *testing.T, all []message, took time.Duration) {
	t.Helper()
	rule := fleetRule()
	var begun, ended, arrived, open []time.Time
	critical, worst := 0, time.Duration(0)
	for _, m := range all {
		begun, ended, arrived = append(begun, m.begun), append(ended, m.ended), append(arrived, m.arrived)
		if m.critical {
			critical++
			worst = max(worst, m.waited)
		} else {
			open = append(open, m.arrived)
		}
	}
	at, found := crowded(begun, ended, rule.Messages, rule.Per)
	assert.False(t, found, "more than %d were counted within %s before %s", rule.Messages, rule.Per, at)
	// The way to the sink takes longer for some than for others.
	at, found = crowded(arrived, slices.Clone(arrived), rule.Messages, rule.Per/2)
	assert.False(t, found, "more than %d arrived within %s before %s", rule.Messages, rule.Per/2, at)
	_, found = crowded(open, slices.Clone(open), rule.Messages-rule.Reserve, rule.Per/2)
	assert.False(t, found, "others took the reserve")
	t.Logf("%d messages in %s, %d of them critical, which waited %s at most", len(all), took, critical, worst)
	assert.Positive(t, critical)
	assert.Less(t, worst, rule.Per/2, "critical ones find the reserve")
}

func TestManyGoroutinesOfTwoProcesses(t *testing.T) {
	nats := natstest.New(t)
	rule := budget.Rule{Messages: 40, Per: time.Hour, Reserve: 10}
	var mu sync.Mutex
	sent := map[bool]int{}
	var wg sync.WaitGroup
	for range 2 {
		p := newProcess(t, connect(t, nats.URL()), time.Now)
		for i := range 60 {
			critical := i >= 50
			wg.Go(func() {
				wait, err := p.Take(t.Context(), "robot", rule, critical)
				for err == nil && wait > 0 && wait < time.Second {
					<-time.After(wait)
					wait, err = p.Take(t.Context(), "robot", rule, critical)
				}
				if assert.NoError(t, err) && wait == 0 {
					mu.Lock()
					defer mu.Unlock()
					sent[critical]++
				}
			})
		}
	}
	wg.Wait()
	assert.Equal(t, 40, sent[true]+sent[false])
	assert.GreaterOrEqual(t, sent[true], 10)
}

// BenchmarkTake is one that has room, without anybody else.
func BenchmarkTake(b *testing.B) {
	s, err := natstest.Start(b.TempDir(), -1)
	require.NoError(b, err)
	b.Cleanup(s.Stop)
	p := newProcess(b, connect(b, s.URL()), time.Now)
	rule := budget.Rule{Messages: 18, Per: 3 * time.Millisecond}
	var took []time.Duration
	for b.Loop() {
		begun := time.Now()
		wait, err := p.Take(b.Context(), "robot", rule, true)
		if err != nil {
			b.Fatal(err)
		}
		if wait == 0 {
			took = append(took, time.Since(begun))
		}
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
}
