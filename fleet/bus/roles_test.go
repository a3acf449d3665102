package bus_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/rolestest"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// The roles of deploy/nats.
const (
	scheduler = "scheduler"
	snapshot  = "snapshot"
	verify    = "verify"
	drill     = "drill"
	prune     = "prune"
	notifier  = "notifier"
	cli       = "cli"
	page      = "page"

	deployFolder = "../../deploy/nats"
)

// deployed is a server with the files of deploy/nats, in which only the keys were filled in.
type deployed struct {
	*bintest.NATS
	seeds map[string]string
}

func deploy(t *testing.T, conf string) *deployed {
	t.Helper()
	dir := t.TempDir()
	d := &deployed{seeds: rolestest.Deploy(t, deployFolder, dir)}
	var err error
	d.NATS, err = bintest.StartNATSWith(t.Context(), dir, bintest.NATSOptions{Conf: conf + "\ninclude ./lifeboat.conf"})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, d.Kill()) })
	return d
}

// as connects as a process of a role does.
func (d *deployed) as(t *testing.T, role string) *bus.Bus {
	t.Helper()
	cfg := config.NATS{URL: d.URL, NkeyFile: config.SecretFile(d.seeds[role]), InboxPrefix: "_INBOX_{role}"}
	b, err := bus.Connect(bus.Options{
		Config: cfg, Actor: "lifeboat-backup@test", Role: role, Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
		Registerer: prometheus.NewRegistry(),
	})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, b.Close()) })
	return b
}

// raw is a connection of a role past the bus.
func (d *deployed) raw(t *testing.T, role string) *nats.Conn {
	t.Helper()
	key, err := nats.NkeyOptionFromSeed(d.seeds[role])
	require.NoError(t, err)
	nc, err := nats.Connect(d.URL, key, nats.CustomInboxPrefix("_INBOX_"+role),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	return nc
}

// violations are the lines of the server's log about what was denied.
func (d *deployed) violations(t *testing.T) []string {
	t.Helper()
	b, err := os.ReadFile(d.Log())
	require.NoError(t, err)
	var all []string
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, "Violation") {
			all = append(all, line)
		}
	}
	return all
}

func (d *deployed) streams(t *testing.T) *bus.Bus {
	t.Helper()
	b := d.as(t, scheduler)
	require.NoError(t, b.EnsureStreams(t.Context()))
	return b
}

// tick emits a job as the scheduler does.
func tick(t *testing.T, b *bus.Bus, work config.Work, target string) {
	t.Helper()
	subject := bus.ScheduleSubject(target, string(work))
	var err error
	require.Eventually(t, func() bool {
		var seq uint64
		if seq, _, err = b.Last(t.Context(), bus.StreamJobs, subject, &lifeboatv1.ScheduleState{}); err != nil {
			return false
		}
		_, err = b.PutStateWith(t.Context(), bus.State{
			Outgoing: bus.Outgoing{Subject: subject, Message: &lifeboatv1.ScheduleState{}}, Expect: seq,
		}, bus.Outgoing{Subject: bus.JobSubject(work, target), Message: &lifeboatv1.Job{}})
		return err == nil
	}, time.Minute, 10*time.Millisecond, "%v", &err)
}

func emit(t *testing.T, b *bus.Bus, noun, verb string) {
	t.Helper()
	require.NoError(t, b.Emit(t.Context(), &lifeboatv1.Event{Noun: noun, Verb: verb, Target: "etcd-prod"}), "%s.%s", noun, verb)
}

// TestEveryRoleMayDoItsWork does what each service does with the bus, with that role's permissions, also with the server's
// other format of acknowledgements, and looks for anything denied.
func TestEveryRoleMayDoItsWork(t *testing.T) {
	for name, conf := range map[string]string{
		"as it is": "", "with acknowledgements of version 2": "feature_flags { js_ack_fc_v2: true }",
	} {
		t.Run(name, func(t *testing.T) {
			d := deploy(t, conf)
			sched := d.streams(t)
			_, err := sched.PutState(t.Context(), bus.State{Outgoing: bus.Outgoing{
				Subject: bus.ScheduleSubject("consul-kv", "escrow"), Message: &lifeboatv1.ScheduleState{},
			}})
			require.NoError(t, err)
			for _, subject := range []string{"snapshot.committed", "target.added", "rpo.exceeded"} {
				noun, verb, _ := strings.Cut(subject, ".")
				_, _, err := sched.Last(t.Context(), bus.StreamEvents, bus.EventSubject(noun, verb, "etcd-prod"), &lifeboatv1.Event{})
				require.NoError(t, err)
			}
			for _, e := range []string{"tick.missed", "rpo.exceeded", "rpo.met", "target.added", "config.reloaded", "config.refused"} {
				noun, verb, _ := strings.Cut(e, ".")
				emit(t, sched, noun, verb)
			}
			readsAll(t, sched)
			works := map[config.Work]func(context.Context, *bus.Bus, *bus.Message) error{
				config.WorkSnapshot: claimed(config.WorkSnapshot, "snapshot.started", "snapshot.interrupted", "snapshot.committed", "source.well",
					"source.worrying", "copy.passed", "copy.failed", "verify.failed", "snapshot.failed"),
				config.WorkVerify: claimed(config.WorkVerify, "verify.started", "verify.passed", "verify.failed", "verify.checked"),
				config.WorkDrill: claimed(config.WorkDrill, "drill.started", "drill.passed", "drill.failed", "drill.escrow-passed",
					"drill.escrow-failed"),
				config.WorkPrune: func(ctx context.Context, b *bus.Bus, m *bus.Message) error {
					for _, e := range []string{"prune.started", "prune.copy-started", "snapshot.deleted", "copy.deleted"} {
						noun, verb, _ := strings.Cut(e, ".")
						if _, _, err := b.Last(ctx, bus.StreamEvents, bus.EventSubject(noun, verb, "etcd-prod"), &lifeboatv1.Event{}); err != nil {
							return err
						}
					}
					_, _, err := b.Last(ctx, bus.StreamJobs, bus.ClaimSubject("etcd-prod", config.WorkSnapshot), &lifeboatv1.ClaimState{})
					if err != nil {
						return err
					}
					return claimed(config.WorkPrune, "prune.started", "prune.copy-started", "prune.passed", "prune.held", "prune.failed",
						"snapshot.deleted", "copy.deleted", "orphan.deleted")(ctx, b, m)
				},
			}
			for work, do := range works {
				t.Run(string(work), func(t *testing.T) { doWork(t, d, sched, work, do) })
			}
			t.Run(notifier, func(t *testing.T) { notify(t, d) })
			t.Run(cli, func(t *testing.T) { operate(t, d, sched) })
			t.Run(page, func(t *testing.T) { look(t, d) })
			assert.Empty(t, d.violations(t))
		})
	}
}

// told does work that only tells.
func told(events ...string) func(context.Context, *bus.Bus, *bus.Message) error {
	return func(ctx context.Context, b *bus.Bus, _ *bus.Message) error {
		for _, e := range append(events, "config.reloaded", "job.handed-back", "job.stopped", "job.rejected") {
			noun, verb, _ := strings.Cut(e, ".")
			if err := b.Emit(ctx, &lifeboatv1.Event{Noun: noun, Verb: verb, Target: "etcd-prod"}); err != nil {
				return err
			}
		}
		return nil
	}
}

// claimed does work under a claim.
func claimed(work config.Work, events ...string) func(context.Context, *bus.Bus, *bus.Message) error {
	return func(ctx context.Context, b *bus.Bus, m *bus.Message) error {
		slot, err := b.Slot(ctx, work, 2)
		if err != nil {
			return err
		}
		c, err := b.Claim(ctx, work, "etcd-prod", m)
		if err != nil {
			return errors.Join(err, slot.Free(ctx))
		}
		held, stop := c.Hold(ctx, 5*time.Millisecond)
		defer stop()
		if err = c.Confirm(ctx); err != nil {
			return err
		}
		_, done, err := c.Commit(ctx)
		if err != nil {
			return err
		}
		defer done()
		more, err := b.Slot(ctx, work, 2) // and again, with another number: a surplus token is taken away
		if err != nil {
			return err
		}
		fewer, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		defer cancel()
		if _, err = b.Slot(fewer, work, 1); !errors.Is(err, context.DeadlineExceeded) {
			return fmt.Errorf("a slot that is not there: %w", err)
		}
		return errors.Join(told(events...)(ctx, b, m), held.Err(), c.Release(ctx), slot.Free(ctx), more.Free(ctx))
	}
}

// doWork takes jobs of one kind: one that works after a retry and with heartbeats, and one that becomes a dead letter.
func doWork(t *testing.T, d *deployed, sched *bus.Bus, work config.Work, do func(context.Context, *bus.Bus, *bus.Message) error) {
	t.Helper()
	b := d.as(t, string(work))
	require.NoError(t, b.EnsureStreams(t.Context()))
	require.NoError(t, b.Ready(t.Context()))
	there := announced(t, b, "", endpoints{})
	if work == config.WorkSnapshot || work == config.WorkVerify {
		there()
		there = announced(t, b, "", endpoints{
			bus.HistorySubject("*"): func(context.Context, string, []byte) (proto.Message, error) {
				return &lifeboatv1.History{SnapshotId: string(work)}, nil
			},
		})
	}
	defer there()
	person := d.as(t, cli)
	workers(t, person, 1)
	if work == config.WorkSnapshot || work == config.WorkVerify {
		h, err := sched.AskHistory(t.Context(), "etcd-prod")
		require.NoError(t, err)
		assert.Equal(t, string(work), h.GetSnapshotId())
	}
	handled, dead := make(chan int64, 10), make(chan error, 10)
	start(t, b, bus.Consumer{
		Stream: bus.StreamJobs, Durable: "backup-" + string(work), Filter: bus.AllJobs(work), AckWait: 600 * time.Millisecond,
		Backoff: func(int64) time.Duration { return 10 * time.Millisecond },
		Handle: func(ctx context.Context, m *bus.Message) error {
			if strings.HasSuffix(m.Subject, ".nope") {
				return bus.Terminal("unknown_target", errors.New("no such target"))
			}
			if m.Delivery == 1 {
				return errors.New("once more")
			}
			select {
			case <-time.After(time.Second): // longer than AckWait: only heartbeats keep the job here
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			err := do(ctx, b, m)
			assert.NoError(t, err)
			handled <- m.Delivery
			return err
		},
		OnDead: func(ctx context.Context, _ *bus.Message, err error) error {
			dead <- err
			return b.Emit(ctx, &lifeboatv1.Event{Noun: "job", Verb: "rejected"})
		},
	})
	tick(t, sched, work, "etcd-prod")
	assert.Equal(t, int64(2), receive(t, handled))
	tick(t, sched, work, "nope")
	require.ErrorContains(t, receive(t, dead), "no such target")
	tick(t, sched, work, "nope") // both subjects are free again: acknowledged, and terminated
	tick(t, sched, work, "etcd-prod")
	assert.Equal(t, int64(2), receive(t, handled))
}

// notify does what the notifier does.
func notify(t *testing.T, d *deployed) {
	t.Helper()
	b := d.as(t, notifier)
	require.NoError(t, b.EnsureStreams(t.Context()))
	delivered := make(chan string, 10)
	start(t, b, bus.Consumer{
		Stream: bus.StreamAlerts, Durable: "notifier-route", Filter: bus.SubjectReceived, AckWait: 5 * time.Second,
		Handle: func(ctx context.Context, _ *bus.Message) error {
			return b.PublishAll(ctx, []bus.Outgoing{
				{Subject: bus.DeliverySubject("slack"), Message: &lifeboatv1.Delivery{}, ID: "1"},
				{Subject: bus.CriticalSubject("dingtalk"), Message: &lifeboatv1.Delivery{}, ID: "2"},
			})
		},
	})
	for _, receiver := range []string{"slack", "dingtalk"} {
		start(t, b, bus.Consumer{
			Stream: bus.StreamAlerts, Durable: "deliver-" + receiver, Filter: bus.DeliverySubject(receiver),
			Also: []string{bus.CriticalSubject(receiver)}, AckWait: 5 * time.Second, Ordered: true,
			Handle: func(context.Context, *bus.Message) error {
				return bus.Terminal("channel_not_found", errors.New("the channel is gone"))
			},
			OnDead: func(ctx context.Context, m *bus.Message, _ error) error {
				delivered <- m.Subject
				return b.Emit(ctx, &lifeboatv1.Event{Noun: "alert", Verb: "dead"})
			},
		})
	}
	require.NoError(t, b.PublishAll(t.Context(), []bus.Outgoing{
		{Subject: bus.SubjectReceived, Message: &lifeboatv1.Notification{}, ID: "a"},
	}))
	assert.ElementsMatch(t, []string{"lifeboat.alert.delivery.slack", "lifeboat.alert.delivery.dingtalk.critical"},
		[]string{receive(t, delivered), receive(t, delivered)})
	_, err := b.Subjects(t.Context(), bus.StreamAlerts, bus.DeliverySubject("*"))
	require.NoError(t, err)
	keeps(t, b)
	emit(t, b, "alert", "delivered")
	emit(t, b, "canary", "late")
	emit(t, b, "silence", "created")
	routed := make(chan string, 1)
	start(t, b, bus.Consumer{
		Stream: bus.StreamEvents, Durable: "notifier-events", Filter: "lifeboat.event.silence.*.*", Also: []string{"lifeboat.event.canary.*.*"},
		AckWait: 5 * time.Second, Handle: func(_ context.Context, m *bus.Message) error { routed <- m.Subject; return nil },
	})
	assert.ElementsMatch(t, []string{"lifeboat.event.canary.late.etcd-prod", "lifeboat.event.silence.created.etcd-prod"},
		[]string{receive(t, routed), receive(t, routed)})
	require.NoError(t, b.DeadLetter(t.Context(), "webhook_malformed", &lifeboatv1.DeadLetter{Subject: "webhook"}))
	follows(t, b, bus.StreamEvents, "lifeboat.event.snapshot.failed.*", "lifeboat.event.snapshot.committed.*")
}

// keeps writes, reads and removes what the notifier keeps beside its queue.
func keeps(t *testing.T, b *bus.Bus) {
	t.Helper()
	subject := bus.GroupSubject("slack", "0f")
	seq := uint64(0)
	for range 2 {
		var err error
		seq, err = b.PutState(t.Context(), bus.State{Outgoing: bus.Outgoing{Subject: subject, Message: &lifeboatv1.Group{}}, Expect: seq})
		require.NoError(t, err)
	}
	last, _, err := b.Last(t.Context(), bus.StreamAlerts, subject, &lifeboatv1.Group{})
	require.NoError(t, err)
	assert.Equal(t, seq, last)
	first, err := b.First(t.Context(), bus.StreamAlerts, bus.GroupSubject("*", "*"))
	require.NoError(t, err)
	assert.Equal(t, seq, first.Seq)
	require.NoError(t, b.Delete(t.Context(), bus.StreamAlerts, seq))
	require.NoError(t, b.ScanFrom(t.Context(), bus.StreamAlerts, bus.GroupSubject("*", "*"), 1, func(m *bus.Message) error {
		return fmt.Errorf("%s is still there", m.Subject)
	}))
}

// follows watches subjects until it has seen what is there.
func follows(t *testing.T, b *bus.Bus, stream string, filters ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	caughtUp := false
	require.NoError(t, b.Follow(ctx, bus.Follower{
		Stream: stream, Filters: filters, Message: func(context.Context, *bus.Message) {},
		CaughtUp: func() { caughtUp = true; cancel() },
	}))
	require.True(t, caughtUp, "followed nothing of %s", stream)
}

// readsAll does what the scheduler does at its start, and to watch the RPO.
func readsAll(t *testing.T, b *bus.Bus) {
	t.Helper()
	seen := 0
	count := func(*bus.Message) error { seen++; return nil }
	require.NoError(t, b.Scan(t.Context(), bus.StreamJobs, bus.ScheduleSubject("*", "*"), count))
	assert.Positive(t, seen)
	seen = 0
	filters := []string{"lifeboat.event.rpo.*.*", "lifeboat.event.tick.*.*"}
	require.NoError(t, b.History(t.Context(), bus.StreamEvents, filters, time.Time{}, count))
	assert.Equal(t, 3, seen)
	follows(t, b, bus.StreamEvents, filters...)
	_, err := b.AskHistory(t.Context(), "etcd-prod")
	require.ErrorIs(t, err, bus.ErrNoWorker)
	_, err = b.Workers(t.Context())
	require.NoError(t, err)
}

// operate does what a person does with the command.
func operate(t *testing.T, d *deployed, sched *bus.Bus) {
	t.Helper()
	b := d.as(t, cli)
	tick(t, sched, config.WorkSnapshot, "waiting")
	_, err := b.Publish(t.Context(), job("waiting"))
	require.ErrorIs(t, err, bus.ErrBusy)
	for _, work := range config.Works() {
		_, err = b.Publish(t.Context(), bus.Outgoing{Subject: bus.JobSubject(work, "by-hand"), Message: &lifeboatv1.Job{}})
		require.NoError(t, err)
	}
	seq, _, err := b.Last(t.Context(), bus.StreamJobs, bus.JobSubject(config.WorkSnapshot, "waiting"), &lifeboatv1.Job{})
	require.NoError(t, err)
	require.NotZero(t, seq)
	follows(t, b, bus.StreamEvents, "lifeboat.event.snapshot.*.etcd-prod", "lifeboat.event.job.rejected.etcd-prod")
	follows(t, b, bus.StreamEvents, "lifeboat.event.snapshot.*.etcd-prod")
	follows(t, b, bus.StreamDead, "lifeboat.dead.>")
	emit(t, b, "restore", "applied")
	_, err = b.Subjects(t.Context(), bus.StreamJobs, bus.AllJobs(config.WorkSnapshot))
	require.NoError(t, err)
	_, err = b.Durability(t.Context())
	require.NoError(t, err)

	// Pause, cancel and replay.
	state := bus.ScheduleSubject("etcd-prod", "snapshot")
	last, _, err := b.Last(t.Context(), bus.StreamJobs, state, &lifeboatv1.ScheduleState{})
	require.NoError(t, err)
	_, err = b.PutState(t.Context(), bus.State{Outgoing: bus.Outgoing{Subject: state, Message: &lifeboatv1.ScheduleState{}}, Expect: last})
	require.NoError(t, err)
	js, err := jetstream.New(d.raw(t, cli))
	require.NoError(t, err)
	s, err := js.Stream(t.Context(), bus.StreamJobs)
	require.NoError(t, err)
	id, _, err := b.CancelJob(t.Context(), config.WorkSnapshot, "waiting", "", "cli")
	require.NoError(t, err)
	assert.Contains(t, id, fmt.Sprintf("-%d", seq))
	require.NoError(t, b.Scan(t.Context(), bus.StreamJobs, "lifeboat.>", func(*bus.Message) error { return nil }))
	for _, e := range []string{"job.cancelled", "dead.replayed", "schedule.paused", "schedule.resumed"} {
		noun, verb, _ := strings.Cut(e, ".")
		emit(t, b, noun, verb)
	}
	_, err = b.Workers(t.Context())
	require.NoError(t, err)
	_, err = s.Consumer(t.Context(), "backup-snapshot")
	require.NoError(t, err)
	for name := range s.ConsumerNames(t.Context()).Name() {
		assert.Regexp(t, "^(backup|slots)-", name)
	}
	s, err = js.Stream(t.Context(), bus.StreamDead)
	require.NoError(t, err)
	letter, err := s.GetLastMsgForSubject(t.Context(), "lifeboat.dead.job.snapshot.nope")
	require.NoError(t, err)
	_, err = s.GetMsg(t.Context(), letter.Sequence)
	require.NoError(t, err)
	require.NoError(t, s.DeleteMsg(t.Context(), letter.Sequence))
	_, err = b.Publish(t.Context(), bus.Outgoing{Subject: bus.SubjectReceived, Message: &lifeboatv1.Notification{}})
	require.NoError(t, err)
}

// look does what the status page does.
func look(t *testing.T, d *deployed) {
	t.Helper()
	b := d.as(t, page)
	require.NoError(t, b.Ready(t.Context()))
	follows(t, b, bus.StreamEvents, "lifeboat.event.snapshot.*.*", "lifeboat.event.rpo.*.*")
	follows(t, b, bus.StreamEvents, bus.SubjectAllEvents)
	seen := 0
	count := func(*bus.Message) error { seen++; return nil }
	for _, filter := range []string{"lifeboat.job.>", "lifeboat.state.schedule.>", "lifeboat.state.claim.>"} {
		require.NoError(t, b.Scan(t.Context(), bus.StreamJobs, filter, count))
	}
	require.NoError(t, b.Scan(t.Context(), bus.StreamDead, "lifeboat.dead.>", count))
	require.NoError(t, b.History(t.Context(), bus.StreamEvents, []string{"lifeboat.event.alert.*.*"}, time.Time{}, count))
	assert.Positive(t, seen)
	_, err := b.Subjects(t.Context(), bus.StreamDead, "lifeboat.dead.>")
	require.NoError(t, err)
	_, err = b.Subjects(t.Context(), bus.StreamAlerts, bus.DeliverySubject(">"))
	require.NoError(t, err)
	_, err = b.Workers(t.Context())
	require.NoError(t, err)
}
