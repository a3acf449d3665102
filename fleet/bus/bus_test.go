package bus_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/natstest"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

func TestMain(m *testing.M) {
	if url := os.Getenv(workerEnv); url != "" {
		os.Exit(worker(url)) //nolint:forbidigo // this process is no test
	}
	goleak.VerifyTestMain(m)
}

// raw is JetStream past the bus.
func raw(t *testing.T, url string) jetstream.JetStream {
	t.Helper()
	nc, err := nats.Connect(url)
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	return js
}

func connect(t *testing.T, url, actor string) *bus.Bus {
	t.Helper()
	b, err := bus.Connect(bus.Options{
		Config: config.NATS{URL: url}, Actor: actor, Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
		Registerer: prometheus.NewRegistry(),
	})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, b.Close()) })
	return b
}

func fleet(t *testing.T) (*natstest.Server, *bus.Bus) {
	t.Helper()
	s := natstest.New(t)
	b := connect(t, s.URL(), "test")
	require.NoError(t, b.EnsureStreams(t.Context()))
	return s, b
}

// start runs a consumer until the test ends or stop is called.
func start(t *testing.T, b *bus.Bus, c bus.Consumer) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.Consume(ctx, c) }()
	stop = sync.OnceFunc(func() {
		cancel()
		assert.NoError(t, <-done)
	})
	t.Cleanup(stop)
	return stop
}

func receive[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(time.Minute):
		require.Fail(t, "nothing came within a minute")
		panic("unreachable")
	}
}

func job(target string) bus.Outgoing {
	return bus.Outgoing{Subject: bus.JobSubject(config.WorkSnapshot, target), Message: &lifeboatv1.Job{}}
}

func jobs(handle bus.Handler) bus.Consumer {
	return bus.Consumer{
		Stream: bus.StreamJobs, Durable: "test", Filter: bus.AllJobs(config.WorkSnapshot), AckWait: 2 * time.Second,
		Handle: handle, Backoff: func(int64) time.Duration { return 10 * time.Millisecond },
	}
}

// last waits for a dead letter of a subject. The stream is asked, because the letter is stored before the message goes.
func dead(t *testing.T, url, subject string) *lifeboatv1.DeadLetter {
	t.Helper()
	nc, err := nats.Connect(url)
	require.NoError(t, err)
	defer nc.Close()
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	cons, err := js.OrderedConsumer(t.Context(), bus.StreamDead, jetstream.OrderedConsumerConfig{FilterSubjects: []string{subject}})
	require.NoError(t, err)
	m, err := cons.Next(jetstream.FetchMaxWait(10 * time.Second))
	require.NoError(t, err)
	d := &lifeboatv1.DeadLetter{}
	require.NoError(t, bus.Decode(m.Data(), d))
	return d
}

func TestASecondJobIsRefusedWhileOneWaitsOrRuns(t *testing.T) {
	_, b := fleet(t)
	_, err := b.Publish(t.Context(), job("etcd-prod"))
	require.NoError(t, err)
	_, err = b.Publish(t.Context(), job("etcd-prod"))
	require.ErrorIs(t, err, bus.ErrBusy, "one waits")
	_, err = b.Publish(t.Context(), job("consul-kv"))
	require.NoError(t, err, "another target is another subject")

	running, finish := make(chan struct{}, 2), make(chan struct{})
	start(t, b, jobs(func(ctx context.Context, _ *bus.Message) error {
		running <- struct{}{}
		select {
		case <-finish:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}))
	receive(t, running)
	_, err = b.Publish(t.Context(), job("etcd-prod"))
	require.ErrorIs(t, err, bus.ErrBusy, "one runs")
	close(finish)
	require.Eventually(t, func() bool {
		_, err = b.Publish(t.Context(), job("etcd-prod"))
		return err == nil
	}, time.Minute, 10*time.Millisecond, "the subject is free after the job: %v", err)
}

func TestAnIDIsTheSameOnEveryDelivery(t *testing.T) {
	_, b := fleet(t)
	ids := make(chan string, 3)
	start(t, b, jobs(func(_ context.Context, m *bus.Message) error {
		ids <- fmt.Sprintf("%d %s", m.Attempt, m.ID())
		if m.Attempt < 3 {
			return errors.New("once more")
		}
		return nil
	}))
	_, err := b.Publish(t.Context(), job("etcd-prod"))
	require.NoError(t, err)
	first, second, third := receive(t, ids), receive(t, ids), receive(t, ids)
	assert.Equal(t, "1 ", first[:2])
	assert.Equal(t, "2 "+first[2:], second)
	assert.Equal(t, "3 "+first[2:], third)
	assert.Regexp(t, `^\d{8}T\d{6}\.\d{3}Z-\d+$`, first[2:])
}

func TestATerminalErrorIsADeadLetterWithItsReason(t *testing.T) {
	s, b := fleet(t)
	told := make(chan error, 1)
	c := jobs(func(context.Context, *bus.Message) error {
		return bus.Terminal("unknown_target", errors.New("no target is named nope"))
	})
	c.OnDead = func(_ context.Context, _ *bus.Message, err error) error {
		told <- err
		return nil
	}
	start(t, b, c)
	_, err := b.Publish(t.Context(), job("nope"))
	require.NoError(t, err)
	require.ErrorContains(t, receive(t, told), "no target is named nope")
	d := dead(t, s.URL(), "lifeboat.dead.job.snapshot.nope")
	assert.Equal(t, "no target is named nope", d.GetReason())
	assert.Equal(t, int64(1), d.GetAttempts())
	assert.Equal(t, "lifeboat.job.snapshot.nope", d.GetSubject())
	require.Eventually(t, func() bool {
		_, err := b.Publish(t.Context(), job("nope"))
		return err == nil
	}, time.Minute, 10*time.Millisecond, "the subject is free again")
}

func TestWhatIsNotTextIsADeadLetterToo(t *testing.T) {
	s, b := fleet(t)
	c := jobs(func(_ context.Context, m *bus.Message) error {
		return bus.Terminal("bad_payload", fmt.Errorf("the payload is not a job: %s", m.Data))
	})
	start(t, b, c)
	nc, err := nats.Connect(s.URL())
	require.NoError(t, err)
	defer nc.Close()
	m := nats.NewMsg("lifeboat.job.snapshot.etcd-prod")
	m.Data = []byte("\xff\xfe{\x00}\x00") // a file with a byte order mark
	m.Header.Set("Editor", "n\xe4t")
	_, err = nc.RequestMsg(m, 5*time.Second)
	require.NoError(t, err)
	d := dead(t, s.URL(), "lifeboat.dead.>")
	assert.Equal(t, m.Data, d.GetPayload())
	assert.Contains(t, d.GetReason(), "the payload is not a job")
}

func TestADeadLetterIsRecordedBeforeItsMessageGoes(t *testing.T) {
	_, b := fleet(t)
	told := make(chan int, 5)
	times := 0
	c := jobs(func(context.Context, *bus.Message) error { return bus.Terminal("x", errors.New("no")) })
	c.OnDead = func(context.Context, *bus.Message, error) error {
		times++
		told <- times
		if times < 3 {
			return errors.New("the event could not be stored")
		}
		return nil
	}
	start(t, b, c)
	_, err := b.Publish(t.Context(), job("etcd-prod"))
	require.NoError(t, err)
	receive(t, told)
	receive(t, told)
	assert.Equal(t, 3, receive(t, told))
}

// A delivery that lost its claim must not settle the message: the server would take that for the delivery which has it.
func TestALostClaimLeavesTheMessageToWhoHasIt(t *testing.T) {
	_, b := fleet(t)
	attempts := make(chan int64, 3)
	c := jobs(func(_ context.Context, m *bus.Message) error {
		attempts <- m.Attempt
		if m.Attempt == 1 {
			return fmt.Errorf("announcing the commit: %w", bus.ErrClaimLost)
		}
		return nil
	})
	c.MaxAttempts = 1
	start(t, b, c)
	_, err := b.Publish(t.Context(), job("etcd-prod"))
	require.NoError(t, err)
	assert.Equal(t, int64(1), receive(t, attempts))
	assert.Equal(t, int64(2), receive(t, attempts), "redelivered by the server, and not dead after the last attempt")
}

func TestTheLastAttemptIsADeadLetter(t *testing.T) {
	s, b := fleet(t)
	var tries atomic.Int64
	c := jobs(func(context.Context, *bus.Message) error {
		tries.Add(1)
		return errors.New("S3 is on fire")
	})
	c.MaxAttempts = 3
	start(t, b, c)
	_, err := b.Publish(t.Context(), job("etcd-prod"))
	require.NoError(t, err)
	d := dead(t, s.URL(), "lifeboat.dead.>")
	assert.Equal(t, int64(3), d.GetAttempts())
	assert.Equal(t, "S3 is on fire", d.GetReason())
	assert.Equal(t, int64(3), tries.Load())
}

func TestHeartbeatsKeepALongJob(t *testing.T) {
	_, b := fleet(t)
	var deliveries atomic.Int64
	done := make(chan struct{})
	c := jobs(func(ctx context.Context, _ *bus.Message) error {
		deliveries.Add(1)
		defer close(done)
		select {
		case <-time.After(4 * time.Second): // twice AckWait: the work itself
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	c.Concurrency = 2
	start(t, b, c)
	_, err := b.Publish(t.Context(), job("etcd-prod"))
	require.NoError(t, err)
	receive(t, done)
	assert.Equal(t, int64(1), deliveries.Load())
}

func TestAWorkerThatCannotReachNATSIsTold(t *testing.T) {
	s, b := fleet(t)
	begun, ended := make(chan struct{}), make(chan error, 1)
	var once sync.Once
	start(t, b, jobs(func(ctx context.Context, m *bus.Message) error {
		if m.Attempt > 1 {
			return nil
		}
		once.Do(func() { close(begun) })
		<-ctx.Done()
		ended <- context.Cause(ctx)
		return ctx.Err()
	}))
	_, err := b.Publish(t.Context(), job("etcd-prod"))
	require.NoError(t, err)
	receive(t, begun)
	s.Stop()
	require.ErrorIs(t, receive(t, ended), bus.ErrLostMessage)
	require.NoError(t, s.Restart())
}

func TestAHandedBackJobGoesOnAtOnce(t *testing.T) {
	s, b := fleet(t)
	begun := make(chan struct{}, 1)
	c := jobs(func(ctx context.Context, _ *bus.Message) error {
		begun <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	})
	c.AckWait = time.Minute
	c.MaxAttempts = 1 // a stop is not a failed attempt
	stop := start(t, b, c)
	_, err := b.Publish(t.Context(), job("etcd-prod"))
	require.NoError(t, err)
	receive(t, begun)
	stop()

	again := make(chan int64, 1)
	c.Handle = func(_ context.Context, m *bus.Message) error {
		again <- m.Attempt
		return nil
	}
	start(t, connect(t, s.URL(), "other"), c)
	// Well before AckWait. The one that stops may be handed it once more before NATS hears that it stops, and gives it back at once.
	assert.Contains(t, []int64{2, 3}, receive(t, again))
}

func TestAStateIsWrittenByOneOnly(t *testing.T) {
	_, b := fleet(t)
	subject := bus.ScheduleSubject("etcd-prod", string(config.WorkSnapshot))
	state := func(expect uint64) bus.State {
		return bus.State{Outgoing: bus.Outgoing{Subject: subject, Message: &lifeboatv1.ScheduleState{Schedule: fmt.Sprint(expect)}}, Expect: expect}
	}
	first, err := b.PutState(t.Context(), state(0))
	require.NoError(t, err)
	_, err = b.PutState(t.Context(), state(0))
	require.ErrorIs(t, err, bus.ErrConflict)
	second, err := b.PutState(t.Context(), state(first))
	require.NoError(t, err)
	got := &lifeboatv1.ScheduleState{}
	seq, _, err := b.Last(t.Context(), bus.StreamJobs, subject, got)
	require.NoError(t, err)
	assert.Equal(t, second, seq)
	assert.Equal(t, fmt.Sprint(first), got.GetSchedule())
}

func TestABatchIsStoredWholeOrNotAtAll(t *testing.T) {
	_, b := fleet(t)
	subject := bus.ScheduleSubject("etcd-prod", string(config.WorkSnapshot))
	state := bus.State{Outgoing: bus.Outgoing{Subject: subject, Message: &lifeboatv1.ScheduleState{}}}
	var err error
	state.Expect, err = b.PutStateWith(t.Context(), state, job("etcd-prod"))
	require.NoError(t, err)
	seq, _, err := b.Last(t.Context(), bus.StreamJobs, subject, &lifeboatv1.ScheduleState{})
	require.NoError(t, err)
	assert.Equal(t, state.Expect, seq, "the returned sequence is the state's")

	_, err = b.PutStateWith(t.Context(), state, job("etcd-prod"))
	require.ErrorIs(t, err, bus.ErrBusy)
	seq, _, err = b.Last(t.Context(), bus.StreamJobs, subject, &lifeboatv1.ScheduleState{})
	require.NoError(t, err)
	assert.Equal(t, state.Expect, seq, "a refused job leaves the state as it was")

	stale := state
	stale.Expect--
	_, err = b.PutStateWith(t.Context(), stale, job("consul-kv"))
	require.ErrorIs(t, err, bus.ErrConflict)
	seq, _, err = b.Last(t.Context(), bus.StreamJobs, bus.JobSubject(config.WorkSnapshot, "consul-kv"), &lifeboatv1.Job{})
	require.NoError(t, err)
	assert.Zero(t, seq, "a lost race stores no job")
}

// What is stored together is all there or not at all: a message that is too large, a stream that is full, and one of it that is there
// already. That last one can be stored in another way, as can what an older stream does not take.
func TestMessagesAreStoredTogetherOrNotAtAll(t *testing.T) {
	s, b := fleet(t)
	js := raw(t, s.URL())
	part := func(id string, size int) bus.Outgoing {
		return bus.Outgoing{Subject: bus.SubjectReceived, Data: fmt.Appendf(nil, `{"x":%q}`, strings.Repeat("x", size)), ID: id}
	}
	stored := func() uint64 {
		t.Helper()
		st, err := js.Stream(t.Context(), bus.StreamAlerts)
		require.NoError(t, err)
		return st.CachedInfo().State.Msgs
	}
	require.NoError(t, b.PublishTogether(t.Context(), []bus.Outgoing{part("1", 10), part("2", 10), part("3", 10)}))
	assert.EqualValues(t, 3, stored())
	require.ErrorIs(t, b.PublishTogether(t.Context(), []bus.Outgoing{part("3", 10), part("4", 10)}), bus.ErrNotTogether)
	require.NoError(t, b.PublishTogether(t.Context(), []bus.Outgoing{part("1", 10)}), "one that is there already")
	require.ErrorIs(t, b.PublishTogether(t.Context(), []bus.Outgoing{part("5", 10), part("6", 2<<20)}), nats.ErrMaxPayload)
	assert.EqualValues(t, 3, stored())

	st, err := js.Stream(t.Context(), bus.StreamAlerts)
	require.NoError(t, err)
	full := st.CachedInfo().Config
	full.Discard, full.MaxBytes = jetstream.DiscardNew, 1<<20
	_, err = js.UpdateStream(t.Context(), full)
	require.NoError(t, err)
	large := []bus.Outgoing{part("7", 400<<10), part("8", 400<<10), part("9", 400<<10)}
	err = b.PublishTogether(t.Context(), large)
	require.ErrorContains(t, err, "maximum bytes exceeded")
	require.NotErrorIs(t, err, bus.ErrNotTogether)
	assert.EqualValues(t, 3, stored())

	full.MaxBytes, full.AllowAtomicPublish = -1, false
	_, err = js.UpdateStream(t.Context(), full)
	require.NoError(t, err)
	require.ErrorIs(t, b.PublishTogether(t.Context(), large), bus.ErrNotTogether)
	assert.EqualValues(t, 3, stored())
	require.NoError(t, b.PublishAll(t.Context(), large))
	assert.EqualValues(t, 6, stored())
}

// Guarantee 2: a worker that lost its job cannot commit.
func TestGuarantee2AWorkerThatLostItsJobCannotCommit(t *testing.T) {
	_, b := fleet(t)
	m := &bus.Message{Subject: "lifeboat.job.snapshot.etcd-prod", Seq: 7, Stored: time.Now(), Attempt: 1}
	paused, err := b.Claim(t.Context(), config.WorkSnapshot, "etcd-prod", m)
	require.NoError(t, err)
	m.Attempt = 2
	second, err := b.Claim(t.Context(), config.WorkSnapshot, "etcd-prod", m)
	require.NoError(t, err)

	_, _, err = paused.Commit(t.Context())
	require.ErrorIs(t, err, bus.ErrClaimLost)
	require.NoError(t, paused.Release(t.Context()), "giving up what is lost is no error")

	window, done, err := second.Commit(t.Context())
	require.NoError(t, err)
	defer done()
	deadline, ok := window.Deadline()
	require.True(t, ok)
	assert.Less(t, time.Until(deadline), 20*time.Second, "a commit ends before anybody else may begin")
	require.NoError(t, second.Release(t.Context()))
}

// Guarantee 2: while a commit is under way, the next delivery waits for it.
func TestGuarantee2NobodyClaimsDuringACommit(t *testing.T) {
	_, b := fleet(t)
	m := &bus.Message{Subject: "lifeboat.job.snapshot.etcd-prod", Seq: 7, Stored: time.Now(), Attempt: 1}
	first, err := b.Claim(t.Context(), config.WorkSnapshot, "etcd-prod", m)
	require.NoError(t, err)
	_, done, err := first.Commit(t.Context())
	require.NoError(t, err)
	defer done()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	m.Attempt = 2
	_, err = b.Claim(ctx, config.WorkSnapshot, "etcd-prod", m)
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

func TestAStreamWithOtherSettingsIsUpdatedOrNamed(t *testing.T) {
	s := natstest.New(t)
	nc, err := nats.Connect(s.URL())
	require.NoError(t, err)
	defer nc.Close()
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	_, err = js.CreateStream(t.Context(), jetstream.StreamConfig{
		Name: bus.StreamEvents, Subjects: []string{"lifeboat.event.>"}, MaxAge: time.Hour, MaxBytes: 1 << 30,
	})
	require.NoError(t, err)
	b := connect(t, s.URL(), "test")
	require.NoError(t, b.EnsureStreams(t.Context()))
	st, err := js.Stream(t.Context(), bus.StreamEvents)
	require.NoError(t, err)
	assert.Equal(t, 90*24*time.Hour, st.CachedInfo().Config.MaxAge, "updated in place")
	assert.Equal(t, int64(1<<30), st.CachedInfo().Config.MaxBytes, "an operator's limit stays")

	require.NoError(t, js.DeleteStream(t.Context(), bus.StreamJobs))
	_, err = js.CreateStream(t.Context(), jetstream.StreamConfig{
		Name: bus.StreamJobs, Subjects: []string{"lifeboat.job.>"}, Storage: jetstream.MemoryStorage,
	})
	require.NoError(t, err)
	err = b.EnsureStreams(t.Context())
	require.ErrorContains(t, err, "LIFEBOAT_JOBS")
	require.ErrorContains(t, err, "retention: have Limits, want WorkQueue")
	require.ErrorContains(t, err, "storage: have Memory, want File")
	st, err = js.Stream(t.Context(), bus.StreamJobs)
	require.NoError(t, err)
	assert.Equal(t, jetstream.MemoryStorage, st.CachedInfo().Config.Storage, "never deleted")
}

func TestAnAbsentServerIsWaitedFor(t *testing.T) {
	s := natstest.New(t)
	s.Stop()
	b := connect(t, s.URL(), "test")
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	require.ErrorContains(t, b.Ready(ctx), s.URL(), "says which")
	require.NoError(t, s.Restart())
	require.Eventually(t, func() bool { return b.EnsureStreams(t.Context()) == nil }, time.Minute, 50*time.Millisecond)
	require.NoError(t, b.Ready(t.Context()))
}
