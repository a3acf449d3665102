package bus_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// restricted is the configuration of a server whose user may do everything but what is named, and whose admin may do all.
func restricted(publish, subscribe []string) string {
	quoted := func(all []string) string {
		var q []string
		for _, s := range all {
			q = append(q, fmt.Sprintf("%q", s))
		}
		return strings.Join(q, ", ")
	}
	return fmt.Sprintf(`accounts { A { jetstream: enabled, users: [
  {user: admin, password: x}
  {user: user, password: x, permissions: {publish: {deny: [%s]}, subscribe: {deny: [%s]}}}
] } }`, quoted(publish), quoted(subscribe))
}

// denying starts a server with the streams, and connects the user that is denied something.
func denying(t *testing.T, publish, subscribe []string) (*bintest.NATS, *bus.Bus) {
	t.Helper()
	s := server(t, restricted(publish, subscribe))
	admin, _ := dial(t, config.NATS{URL: s.URL, Username: "admin", PasswordFile: config.SecretFile(file(t, "x"))})
	require.NoError(t, admin.EnsureStreams(t.Context()))
	b, _ := dial(t, config.NATS{URL: s.URL, Username: "user", PasswordFile: config.SecretFile(file(t, "x"))})
	return s, b
}

// soon runs something that must end long before its time-out does.
func soon(t *testing.T, do func() error) error {
	t.Helper()
	begin := time.Now()
	err := do()
	assert.Less(t, time.Since(begin), 4*time.Second, "no time-out is waited for")
	return err
}

func isDenied(t *testing.T, err error, operation, subject string) {
	t.Helper()
	require.ErrorIs(t, err, bus.ErrDenied)
	var denied *bus.DeniedError
	require.ErrorAs(t, err, &denied)
	assert.Equal(t, operation, denied.Operation)
	assert.Equal(t, subject, denied.Subject)
	assert.Contains(t, err.Error(), subject)
}

func TestADeniedSubjectIsNamed(t *testing.T) {
	state := bus.ScheduleSubject("etcd-prod", "snapshot")
	work := bus.JobSubject(config.WorkSnapshot, "etcd-prod")
	putWith := func(ctx context.Context, b *bus.Bus) error {
		_, err := b.PutStateWith(ctx, bus.State{Outgoing: bus.Outgoing{Subject: state, Message: &lifeboatv1.ScheduleState{}}}, job("etcd-prod"))
		return err
	}
	for name, c := range map[string]struct {
		subject string
		do      func(context.Context, *bus.Bus) error
	}{
		"publish": {work, func(ctx context.Context, b *bus.Bus) error {
			_, err := b.Publish(ctx, job("etcd-prod"))
			return err
		}},
		"one of several": {"lifeboat.alert.delivery.dingtalk", func(ctx context.Context, b *bus.Bus) error {
			return b.PublishAll(ctx, []bus.Outgoing{
				{Subject: "lifeboat.alert.delivery.slack", Message: &lifeboatv1.Delivery{}},
				{Subject: "lifeboat.alert.delivery.dingtalk", Message: &lifeboatv1.Delivery{}},
			})
		}},
		"the state of a batch": {state, putWith},
		"the job of a batch":   {work, putWith},
		"look a stream up": {"$JS.API.STREAM.INFO.LIFEBOAT_JOBS", func(ctx context.Context, b *bus.Bus) error {
			return b.Ready(ctx)
		}},
		"read": {"$JS.API.DIRECT.GET.LIFEBOAT_JOBS." + work, func(ctx context.Context, b *bus.Bus) error {
			_, _, err := b.Last(ctx, bus.StreamJobs, work, &lifeboatv1.Job{})
			return err
		}},
		"count subjects": {"$JS.API.STREAM.INFO.LIFEBOAT_ALERTS", func(ctx context.Context, b *bus.Bus) error {
			_, err := b.Subjects(ctx, bus.StreamAlerts, "lifeboat.alert.>")
			return err
		}},
		"durability": {"$JS.API.STREAM.INFO.LIFEBOAT_DEAD", func(ctx context.Context, b *bus.Bus) error {
			_, err := b.Durability(ctx)
			return err
		}},
		"scan": {"$JS.API.DIRECT.GET.LIFEBOAT_JOBS", func(ctx context.Context, b *bus.Bus) error {
			return b.Scan(ctx, bus.StreamJobs, bus.AllJobs(config.WorkSnapshot), func(*bus.Message) error { return nil })
		}},
		"delete": {"$JS.API.STREAM.MSG.DELETE.LIFEBOAT_JOBS", func(ctx context.Context, b *bus.Bus) error {
			return b.Delete(ctx, bus.StreamJobs, 1)
		}},
		"cancel": {bus.ClaimSubject("etcd-prod", config.WorkSnapshot), func(ctx context.Context, b *bus.Bus) error {
			if _, err := b.Publish(ctx, job("etcd-prod")); err != nil && !errors.Is(err, bus.ErrBusy) {
				return err
			}
			_, _, err := b.CancelJob(ctx, config.WorkSnapshot, "etcd-prod", "", "ada")
			return err
		}},
		"make a line for slots": {"$JS.API.CONSUMER.CREATE.LIFEBOAT_JOBS.slots-drill.lifeboat.state.slot.drill.*", func(ctx context.Context, b *bus.Bus) error {
			_, err := b.Slot(ctx, config.WorkDrill, 1)
			return err
		}},
		"stand in the line for slots": {"$JS.API.CONSUMER.MSG.NEXT.LIFEBOAT_JOBS.slots-drill", func(ctx context.Context, b *bus.Bus) error {
			_, err := b.Slot(ctx, config.WorkDrill, 1)
			return err
		}},
		"store a slot": {"lifeboat.state.slot.drill.0", func(ctx context.Context, b *bus.Bus) error {
			_, err := b.Slot(ctx, config.WorkDrill, 1)
			return err
		}},
		"who is there": {"$SRV.INFO.lifeboat-backup", func(ctx context.Context, b *bus.Bus) error {
			_, err := b.Workers(ctx)
			return err
		}},
		"ask": {"lifeboat.ask.history.etcd-prod", func(ctx context.Context, b *bus.Bus) error {
			_, err := b.AskHistory(ctx, "etcd-prod")
			return err
		}},
		"make a consumer": {"$JS.API.CONSUMER.CREATE.LIFEBOAT_JOBS.test.lifeboat.job.snapshot.*", func(ctx context.Context, b *bus.Bus) error {
			return b.Consume(ctx, jobs(nil))
		}},
		"ask for a message": {"$JS.API.CONSUMER.MSG.NEXT.LIFEBOAT_JOBS.test", func(ctx context.Context, b *bus.Bus) error {
			return b.Consume(ctx, jobs(nil))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			_, b := denying(t, []string{c.subject}, nil)
			isDenied(t, soon(t, func() error { return c.do(t.Context(), b) }), "publish", c.subject)
			// Again: it was not only the first one that was told.
			isDenied(t, soon(t, func() error { return c.do(t.Context(), b) }), "publish", c.subject)
		})
	}
}

// Without an inbox no answer ever comes. Everything says so, and goes on once the inbox is granted.
func TestADeniedInboxIsNamed(t *testing.T) {
	s, b := denying(t, nil, []string{"_INBOX.>"})
	for range 3 {
		err := soon(t, func() error { return b.Ready(t.Context()) })
		require.ErrorIs(t, err, bus.ErrDenied)
		require.ErrorContains(t, err, "subscribe to _INBOX.")
	}
	err := soon(t, func() error {
		return b.Follow(t.Context(), bus.Follower{Stream: bus.StreamEvents, Filters: []string{"lifeboat.event.>"}, Message: nil, CaughtUp: func() {}})
	})
	require.ErrorIs(t, err, bus.ErrDenied)
	require.NoError(t, s.Configure(restricted(nil, nil)))
	require.NoError(t, s.Reload())
	works(t, b)
}

// A permission that is taken away while a consumer works is waited for, and ends no work.
func TestAPermissionThatIsTakenAwayIsWaitedFor(t *testing.T) {
	next := "$JS.API.CONSUMER.MSG.NEXT.LIFEBOAT_JOBS.test"
	s, b := denying(t, nil, nil)
	handled, finish := make(chan string, 10), make(chan struct{})
	start(t, b, jobs(func(ctx context.Context, m *bus.Message) error {
		handled <- m.Subject
		select {
		case <-finish:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}))
	_, err := b.Publish(t.Context(), job("first"))
	require.NoError(t, err)
	receive(t, handled)
	require.NoError(t, s.Configure(restricted([]string{next, "$JS.API.CONSUMER.CREATE.>"}, nil)))
	require.NoError(t, s.Reload())
	require.Eventually(t, func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond) // before the server has reloaded it goes on
		defer cancel()
		return b.Consume(ctx, jobs(nil)) != nil
	}, time.Minute, 10*time.Millisecond, "the permission is gone")
	close(finish)
	_, err = b.Publish(t.Context(), job("second"))
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		_, err = b.Publish(t.Context(), job("first"))
		return err == nil
	}, time.Minute, 10*time.Millisecond, "the job under way was acknowledged: %v", &err)
	require.NoError(t, s.Configure(restricted(nil, nil)))
	require.NoError(t, s.Reload())
	receive(t, handled)
	receive(t, handled)
}

func TestWhoMayNotMakeStreamsFindsThem(t *testing.T) {
	s := server(t, restricted([]string{"$JS.API.STREAM.CREATE.>", "$JS.API.STREAM.UPDATE.>"}, nil))
	as := func(user string, replicas int) (*bus.Bus, *logBuffer) {
		return dial(t, config.NATS{URL: s.URL, Username: user, PasswordFile: config.SecretFile(file(t, "x")), Replicas: replicas})
	}
	worker, log := as("user", 1)
	err := soon(t, func() error { return worker.EnsureStreams(t.Context()) })
	isDenied(t, err, "publish", "$JS.API.STREAM.CREATE.LIFEBOAT_JOBS")
	require.ErrorContains(t, err, "start the scheduler first")
	admin, _ := as("admin", 1)
	require.NoError(t, admin.EnsureStreams(t.Context()))
	require.NoError(t, worker.EnsureStreams(t.Context()))

	// A stream that differs in what could be updated is taken as it is, and that is said once.
	nc, err := nats.Connect(s.URL, nats.UserInfo("admin", "x"))
	require.NoError(t, err)
	defer nc.Close()
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	st, err := js.Stream(t.Context(), bus.StreamEvents)
	require.NoError(t, err)
	cfg := st.CachedInfo().Config
	cfg.MaxAge = time.Hour
	_, err = js.UpdateStream(t.Context(), cfg)
	require.NoError(t, err)
	for range 3 {
		require.NoError(t, worker.EnsureStreams(t.Context()))
	}
	assert.Equal(t, 1, strings.Count(log.String(), "may not update the stream"))
	assert.Contains(t, log.String(), "max_age: have 1h0m0s, want 2160h0m0s")
	require.NoError(t, admin.EnsureStreams(t.Context()))
	st, err = js.Stream(t.Context(), bus.StreamEvents)
	require.NoError(t, err)
	assert.Equal(t, 90*24*time.Hour, st.CachedInfo().Config.MaxAge, "the scheduler may")
}

// Two roles have inboxes of their own though they read one file.
func TestAnInboxOfTheRole(t *testing.T) {
	s := server(t, restricted(nil, []string{"_INBOX_drill.>", "_INBOX_cli.>", "_INBOX.>"}))
	for _, c := range []struct {
		actor, role, want string
	}{
		{"lifeboat-backup@host", "drill", "_INBOX_drill."},
		{"lifeboat-cli@host", "", "_INBOX_cli."},
	} {
		b, err := bus.Connect(bus.Options{
			Config: config.NATS{URL: s.URL, Username: "user", PasswordFile: config.SecretFile(file(t, "x")), InboxPrefix: "_INBOX_{role}"},
			Actor:  c.actor, Role: c.role, Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
		})
		require.NoError(t, err)
		require.ErrorContains(t, b.Ready(t.Context()), "subscribe to "+c.want)
		require.NoError(t, b.Close())
	}
}
