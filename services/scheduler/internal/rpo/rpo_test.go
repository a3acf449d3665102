package rpo_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// Nothing ever ran: the alert comes the moment that the rpo ends, once, and a good snapshot resolves it at once.
func TestTheAlertComesTheMomentThatTheRPOEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLog()
		l.set(func(l *auditLog) {
			l.history = func(string) (*lifeboatv1.History, error) { return &lifeboatv1.History{}, nil }
		})
		begin := time.Now()
		start(t, l, fileOf(1, time.Hour), 0)
		after(59 * time.Minute)
		assert.Len(t, l.said("target", "added", "t-0"), 1)
		assert.Empty(t, l.said("rpo", "exceeded", "t-0"))
		after(61 * time.Minute)
		exceeded := l.said("rpo", "exceeded", "t-0")
		require.Len(t, exceeded, 1)
		assert.WithinDuration(t, begin.Add(time.Hour), exceeded[0], time.Millisecond)
		assert.Contains(t, l.last(t, "exceeded").GetMessage(), "since the target was first seen")
		assert.Empty(t, l.said("rpo", "met", "t-0"))

		now := time.Now()
		l.commit(t, "t-0", time.Minute)
		after(time.Millisecond)
		met := l.said("rpo", "met", "t-0")
		require.Len(t, met, 1)
		assert.WithinDuration(t, now, met[0], time.Millisecond)
		// And from when that data was read it counts again.
		after(59*time.Minute - time.Second)
		assert.Len(t, l.said("rpo", "exceeded", "t-0"), 1)
		after(2 * time.Second)
		assert.Len(t, l.said("rpo", "exceeded", "t-0"), 2)
		assert.Equal(t, "3600", l.last(t, "exceeded").GetAttributes()["age_seconds"])
	})
}

// Replicas whose clocks differ say the same once, and do not contradict each other.
func TestReplicasSayItOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLog()
		l.set(func(l *auditLog) {
			l.history = func(string) (*lifeboatv1.History, error) { return &lifeboatv1.History{}, nil }
		})
		for _, skew := range []time.Duration{0, 20 * time.Second, -20 * time.Second, 0} {
			start(t, l, fileOf(3, time.Hour), skew)
		}
		after(2 * time.Hour)
		for _, target := range []string{"t-0", "t-1", "t-2"} {
			assert.Len(t, l.said("target", "added", target), 1)
			assert.Len(t, l.said("rpo", "exceeded", target), 1)
			assert.Empty(t, l.said("rpo", "met", target))
		}
		l.commit(t, "t-1", 0)
		after(time.Minute)
		assert.Len(t, l.said("rpo", "met", "t-1"), 1)
		assert.Len(t, l.said("rpo", "exceeded", "t-1"), 1)
	})
}

// Nothing is judged before all that the audit log holds was heard.
func TestNothingIsJudgedBeforeTheLogWasHeard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLog()
		l.commit(t, "t-0", 0)
		held := make(chan struct{})
		l.set(func(l *auditLog) { l.held = held })
		r := start(t, l, fileOf(1, time.Hour), 0)
		after(30 * time.Minute)
		assert.Empty(t, ages(t, r), "an age that may be wrong is not shown")
		l.mu.Lock()
		assert.Len(t, l.events, 1)
		assert.Zero(t, l.asked)
		l.mu.Unlock()
		close(held)
		after(time.Second)
		l.mu.Lock()
		assert.Len(t, l.events, 1, "it knows of the snapshot: there is nothing to say")
		assert.Zero(t, l.asked)
		l.mu.Unlock()
		assert.InDelta(t, 1801, ages(t, r)["t-0"], 1)
	})
}

// The rpo is taken away while it is exceeded, and given back.
func TestARemovedRPOResolves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLog()
		r := start(t, l, fileOf(1, time.Hour), 0)
		after(2 * time.Hour)
		require.Len(t, l.said("rpo", "exceeded", "t-0"), 1)
		r.reload(fileOf(1, 0))
		after(time.Second)
		require.Len(t, l.said("rpo", "met", "t-0"), 1)
		assert.Equal(t, "the target has no rpo any more", l.last(t, "met").GetMessage())
		r.reload(fileOf(1, time.Hour))
		after(time.Second)
		assert.Len(t, l.said("rpo", "exceeded", "t-0"), 2)
		// Without being told of the change it is noticed all the same.
		r.config.Store(fileOf(1, 0))
		after(31 * time.Second)
		assert.Len(t, l.said("rpo", "met", "t-0"), 2)
	})
}

// A target that a reload takes out: its alert resolves and its age is shown no more. One that is added counts from then.
func TestAReloadTakesTargetsOutAndIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLog()
		r := start(t, l, fileOf(2, time.Hour), 0)
		after(2 * time.Hour)
		require.Len(t, l.said("rpo", "exceeded", "t-1"), 1)
		assert.Len(t, ages(t, r), 2)
		r.reload(fileOf(1, time.Hour))
		after(2 * time.Second)
		assert.Len(t, l.said("rpo", "met", "t-1"), 1)
		assert.Equal(t, map[string]float64{"t-0": 7202}, ages(t, r))
		after(2 * time.Hour)
		assert.Len(t, l.said("rpo", "exceeded", "t-1"), 1, "nobody watches it")

		r.reload(fileOf(3, time.Hour))
		after(2 * time.Second)
		assert.Len(t, l.said("rpo", "exceeded", "t-1"), 2, "it is back, and has no snapshot still")
		assert.Empty(t, l.said("rpo", "exceeded", "t-2"))
		after(time.Hour)
		assert.Len(t, l.said("rpo", "exceeded", "t-2"), 1)
	})
}

// A target that this process never had is another replica's: its alert stands.
func TestATargetOfAnotherFileIsLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLog()
		start(t, l, fileOf(2, time.Hour), 0)
		other := start(t, l, fileOf(1, time.Hour), 0)
		after(2 * time.Hour)
		other.reload(fileOf(1, 2*time.Hour))
		after(10 * time.Minute)
		other.stop()
		start(t, l, fileOf(1, time.Hour), 0)
		after(time.Hour)
		assert.Len(t, l.said("rpo", "exceeded", "t-1"), 1)
		assert.Empty(t, l.said("rpo", "met", "t-1"))
	})
}

// The wall clock is set forward, which the timer does not notice, and back.
func TestAClockThatIsSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLog()
		r := start(t, l, fileOf(1, 12*time.Hour), 0)
		l.commit(t, "t-0", 0)
		after(time.Minute)
		r.skew.Store(int64(24 * time.Hour))
		after(31 * time.Second)
		assert.Len(t, l.said("rpo", "exceeded", "t-0"), 1)
		r.skew.Store(0)
		after(31 * time.Second)
		assert.Len(t, l.said("rpo", "met", "t-0"), 1)
		after(11 * time.Hour)
		assert.Len(t, l.said("rpo", "exceeded", "t-0"), 1)
		after(time.Hour)
		assert.Len(t, l.said("rpo", "exceeded", "t-0"), 2)
	})
}

// A worker whose clock is ahead cannot make its snapshot younger than the event of it.
func TestASnapshotFromTheFuture(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLog()
		start(t, l, fileOf(1, time.Hour), 0)
		l.commit(t, "t-0", -24*time.Hour)
		after(time.Hour + time.Second)
		assert.Len(t, l.said("rpo", "exceeded", "t-0"), 1)
	})
}

// NATS lost its data, and a new process knows nothing. Until a worker is there the target counts from when it was first seen;
// then from the snapshot that the bucket has, and the alert is not late.
func TestTheBucketIsAskedWhenTheLogKnowsNoSnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLog()
		start(t, l, fileOf(1, 6*time.Hour), 0)
		start(t, l, fileOf(1, 6*time.Hour), 0)
		good := time.Now().Add(-5 * time.Hour)
		after(30 * time.Minute)
		l.mu.Lock()
		assert.Greater(t, l.asked, 100, "asked again and again while no worker is there")
		l.history = func(string) (*lifeboatv1.History, error) {
			return &lifeboatv1.History{SnapshotId: "s", SnapshotStartedAt: timestamppb.New(good)}, nil
		}
		l.mu.Unlock()
		after(time.Hour)
		exceeded := l.said("rpo", "exceeded", "t-0")
		require.Len(t, exceeded, 1)
		assert.WithinDuration(t, good.Add(6*time.Hour), exceeded[0], time.Millisecond)
		assert.Contains(t, l.last(t, "exceeded").GetMessage(), "the newest is of "+good.UTC().Format(time.RFC3339))
		l.mu.Lock()
		before := l.asked
		l.mu.Unlock()
		after(time.Hour)
		l.mu.Lock()
		defer l.mu.Unlock()
		assert.Equal(t, before, l.asked, "an answer is enough")
	})
}

// Many targets and no worker: a few are asked about at a time. When one is there all are, those first whose rpo ends first.
func TestAWorkerThatIsBackIsAskedAboutAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLog()
		cfg := fileOf(300, 240*time.Hour)
		cfg.Targets[299].RPO = 24 * time.Hour
		start(t, l, cfg, 0)
		after(time.Hour)
		var order []string
		refused := false
		l.mu.Lock()
		assert.LessOrEqual(t, l.asked, 361*20, "a few every ten seconds, and not all")
		assert.GreaterOrEqual(t, l.asked, 350*16)
		l.history = func(target string) (*lifeboatv1.History, error) {
			order = append(order, target)
			if target == "t-150" && !refused {
				refused = true
				return nil, bus.ErrNoWorker
			}
			return &lifeboatv1.History{SnapshotStartedAt: timestamppb.Now()}, nil
		}
		l.mu.Unlock()
		after(30 * time.Second)
		l.mu.Lock()
		defer l.mu.Unlock()
		require.Len(t, order, 301, "the one without an answer is asked about again, and the others are not")
		assert.Contains(t, order[:16+8+1], "t-299", "after those that found out that somebody is there")
		counts := map[string]int{}
		for _, target := range order {
			counts[target]++
		}
		assert.Len(t, counts, 300)
		assert.Equal(t, 2, counts["t-150"])
	})
}

// The answer comes when the rpo is over already: the alert comes at once. A replica that has no answer yet does not contradict.
func TestAnAnswerOfASnapshotThatIsTooOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLog()
		deaf := &deafLog{auditLog: l}
		start(t, deaf, fileOf(1, 6*time.Hour), 0)
		after(time.Minute)
		l.set(func(l *auditLog) {
			l.history = func(string) (*lifeboatv1.History, error) {
				return &lifeboatv1.History{SnapshotStartedAt: timestamppb.New(time.Now().Add(-100 * time.Hour))}, nil
			}
		})
		start(t, l, fileOf(1, 6*time.Hour), 0)
		now := time.Now()
		after(5 * time.Hour)
		exceeded := l.said("rpo", "exceeded", "t-0")
		require.Len(t, exceeded, 1)
		assert.WithinDuration(t, now, exceeded[0], time.Second)
		assert.Empty(t, l.said("rpo", "met", "t-0"))
	})
}

// The stream is made anew under a running scheduler: what is exceeded is said again into the new one, once by all replicas.
func TestAStreamThatWasMadeAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLog()
		start(t, l, fileOf(3, time.Hour), 0)
		start(t, l, fileOf(3, time.Hour), 0)
		for _, target := range []string{"t-0", "t-1", "t-2"} {
			l.commit(t, target, 0)
		}
		after(2 * time.Hour)
		l.commit(t, "t-1", 0)
		after(time.Minute)
		require.Len(t, l.said("rpo", "exceeded", "t-0"), 1)
		l.lose()
		require.Empty(t, l.events)
		after(time.Second)
		l.commit(t, "t-2", 0)
		after(time.Minute)
		assert.Len(t, l.said("rpo", "exceeded", "t-0"), 1)
		assert.Empty(t, l.said("rpo", "exceeded", "t-1"), "the snapshot is in the bucket still")
		assert.Empty(t, l.said("rpo", "exceeded", "t-2"), "the new stream is listened to before anything is said into it")
		after(time.Hour)
		assert.Len(t, l.said("rpo", "exceeded", "t-1"), 1)
		assert.Empty(t, l.said("rpo", "met", "t-0"))
	})
}

// A target that never had a snapshot is known by the audit log alone. When that is lost it does not begin anew to count, also not when a
// replica that knows nothing of before is the first to say that the target is there, and nobody contradicts.
func TestATargetWithoutASnapshotDoesNotBeginAnewWithTheStream(t *testing.T) {
	for _, fresh := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			l := newLog()
			l.set(func(l *auditLog) {
				l.history = func(string) (*lifeboatv1.History, error) { return &lifeboatv1.History{}, nil }
			})
			start(t, l, fileOf(1, time.Hour), 0)
			start(t, l, fileOf(1, time.Hour), 0)
			after(59 * time.Minute)
			l.lose()
			if fresh {
				start(t, l, fileOf(1, time.Hour), 0)
				after(time.Second)
				require.NotEmpty(t, l.said("target", "added", "t-0"))
			}
			after(59 * time.Second)
			require.Empty(t, l.said("rpo", "exceeded", "t-0"))
			after(2 * time.Second)
			require.Len(t, l.said("rpo", "exceeded", "t-0"), 1, "it counts from when it was first seen")
			l.lose()
			start(t, l, fileOf(1, time.Hour), 0)
			after(10 * time.Second)
			require.Len(t, l.said("rpo", "exceeded", "t-0"), 1, "and is told to the next stream, not an hour later")
			after(3 * time.Hour)
			assert.Len(t, l.said("rpo", "exceeded", "t-0"), 1)
			assert.Empty(t, l.said("rpo", "met", "t-0"))
			assert.LessOrEqual(t, len(l.said("target", "added", "t-0")), 2)
		})
	}
}

// A worker whose clock is ahead cannot make a snapshot of the bucket younger than its answer.
func TestAnAnswerFromTheFuture(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLog()
		ahead := timestamppb.New(time.Now().Add(24 * time.Hour))
		l.set(func(l *auditLog) {
			l.history = func(string) (*lifeboatv1.History, error) { return &lifeboatv1.History{SnapshotStartedAt: ahead}, nil }
		})
		start(t, l, fileOf(1, time.Hour), 0)
		after(time.Hour + time.Second)
		assert.Len(t, l.said("rpo", "exceeded", "t-0"), 1)
	})
}

// What could not be stored is said when NATS is back.
func TestAnAlertThatCouldNotBeStored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLog()
		start(t, l, fileOf(1, time.Hour), 0)
		after(70 * time.Second)
		l.set(func(l *auditLog) { l.broken = errNATS })
		after(2 * time.Hour)
		assert.Empty(t, l.said("rpo", "exceeded", "t-0"))
		l.set(func(l *auditLog) { l.broken = nil })
		after(2 * time.Second)
		assert.Len(t, l.said("rpo", "exceeded", "t-0"), 1)
	})
}

// Many at once, more than are stored at once.
func TestManyTargetsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLog()
		r := start(t, l, fileOf(600, time.Hour), 0)
		after(2 * time.Hour)
		assert.Len(t, l.said("target", "added", "t-599"), 1)
		l.mu.Lock()
		assert.Len(t, l.events, 1200)
		l.mu.Unlock()
		assert.Len(t, ages(t, r), 600)
		r.reload(&config.Config{})
		after(2 * time.Second)
		l.mu.Lock()
		assert.Len(t, l.events, 1800)
		l.mu.Unlock()
		assert.Empty(t, ages(t, r))
	})
}

// ages are the samples of lifeboat_snapshot_age_seconds, by target.
func ages(t *testing.T, r *replica) map[string]float64 {
	t.Helper()
	families, err := r.registry.Gather()
	require.NoError(t, err)
	all := map[string]float64{}
	for _, f := range families {
		if f.GetName() != "lifeboat_snapshot_age_seconds" {
			continue
		}
		for _, m := range f.GetMetric() {
			all[m.GetLabel()[0].GetValue()] = m.GetGauge().GetValue()
		}
	}
	return all
}
