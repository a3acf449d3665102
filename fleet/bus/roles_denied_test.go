package bus_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/rolestest"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// publishable lists, for subjects of every kind that matter, the roles that may publish there. All others may not.
func publishable() map[string][]string {
	may := map[string][]string{
		// Jobs, schedules and claims.
		"lifeboat.state.schedule.etcd-prod.snapshot": {scheduler, cli},
		"lifeboat.state.schedule.etcd-prod":          {scheduler, cli},
		// Alerts, and what they become.
		"lifeboat.alert.received":       {notifier, cli},
		"lifeboat.alert.delivery.slack": {notifier, cli},
		"lifeboat.alert.group.slack.0f": {notifier, cli},
		"lifeboat.alert.budget.slack-0": {notifier, cli},
		// Events: each role tells of its own work, and of nothing else.
		"lifeboat.event.tick.missed.etcd-prod":        {scheduler},
		"lifeboat.event.rpo.met.etcd-prod":            {scheduler},
		"lifeboat.event.snapshot.committed.etcd-prod": {snapshot},
		"lifeboat.event.snapshot.deleted.etcd-prod":   {prune},
		"lifeboat.event.copy.passed.etcd-prod":        {snapshot},
		"lifeboat.event.copy.deleted.etcd-prod":       {prune},
		"lifeboat.event.source.well.etcd-prod":        {snapshot},
		"lifeboat.event.verify.passed.etcd-prod":      {verify},
		"lifeboat.event.verify.failed.etcd-prod":      {verify, snapshot},
		"lifeboat.event.drill.passed.etcd-prod":       {drill},
		"lifeboat.event.prune.passed.etcd-prod":       {prune},
		"lifeboat.event.orphan.deleted.etcd-prod":     {prune},
		"lifeboat.event.alert.delivered.fleet":        {notifier},
		"lifeboat.event.canary.late.slack":            {notifier},
		"lifeboat.event.silence.created.fleet":        {notifier},
		"lifeboat.event.restore.applied.etcd-prod":    {cli},
		// Dead letters.
		"lifeboat.dead.job.snapshot.etcd-prod": {snapshot},
		"lifeboat.dead.job.verify.etcd-prod":   {verify},
		"lifeboat.dead.job.drill.etcd-prod":    {drill},
		"lifeboat.dead.job.prune.etcd-prod":    {prune},
		"lifeboat.dead.alert.delivery.slack":   {notifier},
		"lifeboat.dead.webhook":                {notifier},
		"lifeboat.dead.event.drill.passed.x":   {notifier},
		// Answers to others, the system, and everything else.
		"_INBOX_scheduler.x": {}, "_INBOX_cli.x": {}, "_INBOX.x": {}, "$SYS.REQ.SERVER.PING": {}, "$KV.x.y": {}, "elsewhere": {},
	}
	for _, w := range config.Works() {
		may[bus.JobSubject(w, "etcd-prod")] = []string{scheduler, cli}
		may[bus.ClaimSubject("etcd-prod", w)] = []string{string(w), cli}
		may["$JS.API.DIRECT.GET.LIFEBOAT_JOBS."+bus.ClaimSubject("etcd-prod", w)] = []string{string(w), cli}
		may[bus.SlotSubject(w, 0)] = []string{string(w)}
		slots := "slots-" + string(w)
		may["$JS.API.CONSUMER.CREATE.LIFEBOAT_JOBS."+slots+".lifeboat.state.slot."+string(w)+".*"] = []string{string(w)}
		may["$JS.API.CONSUMER.CREATE.LIFEBOAT_JOBS."+slots+".lifeboat.state.>"] = nil
		may["$JS.API.CONSUMER.CREATE.LIFEBOAT_JOBS."+slots+"."+bus.AllJobs(w)] = nil
		may["$JS.API.CONSUMER.CREATE.LIFEBOAT_JOBS."+slots] = nil
		may["$JS.API.CONSUMER.DELETE.LIFEBOAT_JOBS."+slots] = nil
		may["$JS.API.CONSUMER.INFO.LIFEBOAT_JOBS."+slots] = []string{string(w), cli}
		may["$JS.API.CONSUMER.MSG.NEXT.LIFEBOAT_JOBS."+slots] = []string{string(w)}
		may["$JS.ACK.LIFEBOAT_JOBS."+slots+".1.1.1.1.0"] = []string{string(w)}
		may["$JS.ACK._.abc.LIFEBOAT_JOBS."+slots+".1.1.1.1.0"] = []string{string(w)}
		consumer := "backup-" + string(w)
		for _, call := range []string{"CONSUMER.INFO", "CONSUMER.MSG.NEXT", "CONSUMER.CREATE", "CONSUMER.DURABLE.CREATE", "CONSUMER.DELETE"} {
			may["$JS.API."+call+".LIFEBOAT_JOBS."+consumer] = nil
		}
		may["$JS.API.CONSUMER.INFO.LIFEBOAT_JOBS."+consumer] = []string{string(w), cli}
		may["$JS.API.CONSUMER.MSG.NEXT.LIFEBOAT_JOBS."+consumer] = []string{string(w)}
		may["$JS.API.CONSUMER.CREATE.LIFEBOAT_JOBS."+consumer+"."+bus.AllJobs(w)] = []string{string(w)}
		// Under its own name, another one's jobs.
		may["$JS.API.CONSUMER.CREATE.LIFEBOAT_JOBS."+consumer+".lifeboat.job.>"] = nil
		may["$JS.API.CONSUMER.CREATE.LIFEBOAT_JOBS."+consumer+".lifeboat.state.>"] = nil
		may["$JS.API.CONSUMER.CREATE.LIFEBOAT_JOBS.spy."+bus.AllJobs(w)] = nil
		may["$JS.ACK.LIFEBOAT_JOBS."+consumer+".1.1.1.1.0"] = []string{string(w)}
		may["$JS.ACK._.abc.LIFEBOAT_JOBS."+consumer+".1.1.1.1.0"] = []string{string(w)}
	}
	for _, stream := range []string{bus.StreamJobs, bus.StreamEvents, bus.StreamAlerts, bus.StreamDead} {
		may["$JS.API.STREAM.INFO."+stream] = rolestest.Roles()
		may["$JS.API.STREAM.CREATE."+stream] = []string{scheduler}
		may["$JS.API.STREAM.UPDATE."+stream] = []string{scheduler}
		for _, call := range []string{"DELETE", "PURGE", "SNAPSHOT", "RESTORE", "LEADER.STEPDOWN", "PEER.REMOVE", "MSG.GET"} {
			may["$JS.API.STREAM."+call+"."+stream] = nil
		}
	}
	may["$JS.API.STREAM.MSG.GET."+bus.StreamEvents] = []string{cli} // what it may read by DIRECT.GET as well
	may["$JS.API.STREAM.NAMES"] = []string{cli}
	may["$JS.API.STREAM.LIST"] = []string{cli}
	may["$JS.API.STREAM.CREATE.ANOTHER"] = nil
	may["$JS.API.STREAM.MSG.DELETE.LIFEBOAT_JOBS"] = []string{cli}
	may["$JS.API.STREAM.MSG.DELETE.LIFEBOAT_DEAD"] = []string{cli}
	may["$JS.API.STREAM.MSG.DELETE.LIFEBOAT_EVENTS"] = nil // the audit log stays as it was written
	may["$JS.API.STREAM.MSG.DELETE.LIFEBOAT_ALERTS"] = []string{notifier}
	// Reading.
	may["$JS.API.DIRECT.GET.LIFEBOAT_JOBS"] = []string{scheduler, cli, page}
	may["$JS.API.DIRECT.GET.LIFEBOAT_JOBS.lifeboat.job.drill.etcd-prod"] = []string{scheduler, cli}
	may["$JS.API.DIRECT.GET.LIFEBOAT_JOBS.lifeboat.state.schedule.etcd-prod.drill"] = []string{scheduler, cli}
	may["$JS.API.DIRECT.GET.LIFEBOAT_JOBS.lifeboat.state.claim.etcd-prod.snapshot"] = []string{snapshot, prune, cli}
	may["$JS.API.DIRECT.GET.LIFEBOAT_JOBS.lifeboat.state.slot.snapshot.0"] = []string{cli}
	may["$JS.API.DIRECT.GET.LIFEBOAT_EVENTS"] = []string{scheduler, cli}
	may["$JS.API.DIRECT.GET.LIFEBOAT_EVENTS.lifeboat.event.snapshot.committed.etcd-prod"] = []string{scheduler, cli}
	may["$JS.API.DIRECT.GET.LIFEBOAT_EVENTS.lifeboat.event.snapshot.deleted.etcd-prod"] = []string{scheduler, prune, cli}
	may["$JS.API.DIRECT.GET.LIFEBOAT_DEAD.lifeboat.dead.webhook"] = []string{cli}
	may["$JS.API.DIRECT.GET.LIFEBOAT_DEAD"] = []string{cli, page}
	may["$JS.API.DIRECT.GET.LIFEBOAT_ALERTS"] = []string{notifier}
	may["$JS.API.DIRECT.GET.LIFEBOAT_ALERTS.lifeboat.alert.group.slack.0f"] = []string{notifier}
	may["$JS.API.CONSUMER.CREATE.LIFEBOAT_EVENTS.spy"] = []string{scheduler, notifier, cli, page}
	may["$JS.API.CONSUMER.CREATE.LIFEBOAT_EVENTS.spy.lifeboat.event.>"] = []string{scheduler, notifier, cli, page}
	may["$JS.API.CONSUMER.MSG.NEXT.LIFEBOAT_EVENTS.spy"] = []string{scheduler, notifier, cli, page}
	may["$JS.API.CONSUMER.DELETE.LIFEBOAT_EVENTS.spy"] = []string{scheduler, notifier, cli, page}
	may["$JS.API.CONSUMER.CREATE.LIFEBOAT_DEAD.spy"] = []string{cli}
	may["$JS.API.CONSUMER.CREATE.LIFEBOAT_ALERTS.spy.lifeboat.alert.>"] = []string{notifier}
	may["$JS.API.CONSUMER.CREATE.LIFEBOAT_ALERTS.deliver-slack"] = []string{notifier}
	may["$JS.ACK.LIFEBOAT_EVENTS.notifier-events.1.1.1.1.0"] = []string{notifier}
	may["$JS.ACK.LIFEBOAT_EVENTS.spy.1.1.1.1.0"] = nil
	may["$JS.API.CONSUMER.MSG.NEXT.LIFEBOAT_ALERTS.notifier-route"] = []string{notifier}
	may["$JS.ACK.LIFEBOAT_ALERTS.notifier-route.1.1.1.1.0"] = []string{notifier}
	// Questions.
	may["lifeboat.ask.history.etcd-prod"] = []string{scheduler}
	may["lifeboat.ask.secrets.etcd-prod"] = nil
	may["$SRV.INFO"] = []string{cli}
	may["$SRV.INFO.lifeboat-backup"] = []string{cli, page, scheduler}
	may["$SRV.PING.lifeboat-backup.abc"] = []string{cli}
	may["$SRV.INFO.another"] = nil
	return may
}

// listenable lists what roles may listen to, besides their inboxes. All others may not, and nobody may listen to the rest.
func listenable() map[string][]string {
	backup := []string{snapshot, verify, drill, prune}
	return map[string][]string{
		">": nil, "lifeboat.>": nil, "lifeboat.job.snapshot.etcd-prod": nil, "lifeboat.alert.>": nil, "lifeboat.state.>": nil,
		"$JS.>": nil, "$JS.ACK.>": nil, "$SYS.>": nil, "_INBOX.>": nil, "_INBOX_*.>": nil,
		"$SRV.INFO": backup, "$SRV.PING.lifeboat-backup": backup, "$SRV.STATS.lifeboat-backup.abc": backup,
		"$SRV.INFO.another": nil, "$SRV.>": nil,
		"lifeboat.ask.history.*": {snapshot, verify}, "lifeboat.ask.>": nil,
	}
}

// denied says whether the server refuses something, by what it has said before it answers a ping.
func denied(t *testing.T, nc *nats.Conn, do func() error) bool {
	t.Helper()
	before := nc.LastError()
	require.NoError(t, do())
	require.NoError(t, nc.FlushTimeout(10*time.Second))
	return nc.LastError() != before //nolint:errorlint // the same value, not kind
}

// TestEveryRoleIsDeniedTheWorkOfTheOthers publishes on each subject and listens on the ones that carry something, as each role.
func TestEveryRoleIsDeniedTheWorkOfTheOthers(t *testing.T) {
	d := deploy(t, "")
	d.streams(t)
	may := publishable()
	for _, role := range rolestest.Roles() {
		nc := d.raw(t, role)
		for subject, roles := range may {
			no := denied(t, nc, func() error { return nc.Publish(subject, nil) })
			assert.Equal(t, !slices.Contains(roles, role), no, "%s publishes to %s", role, subject)
		}
		for subject, roles := range listenable() {
			no := denied(t, nc, func() error {
				_, err := nc.SubscribeSync(subject)
				return err
			})
			assert.Equal(t, !slices.Contains(roles, role), no, "%s listens on %s", role, subject)
		}
		for _, other := range rolestest.Roles() {
			no := denied(t, nc, func() error {
				_, err := nc.SubscribeSync("_INBOX_" + other + ".x")
				return err
			})
			assert.Equal(t, role != other, no, "%s listens on the inbox of %s", role, other)
		}
	}
	assert.NotEmpty(t, d.violations(t), "which the test of what is allowed looks for")
}

// What a denied role gets from the bus is an error that names the subject, at once.
func TestADeniedRoleIsToldWhat(t *testing.T) {
	d := deploy(t, "")
	d.streams(t)
	event := &lifeboatv1.Event{Noun: "snapshot", Verb: "committed", Target: "etcd-prod"}
	consume := func(durable string, stream, filter string) func(context.Context, *bus.Bus) error {
		return func(ctx context.Context, b *bus.Bus) error {
			return b.Consume(ctx, bus.Consumer{
				Stream: stream, Durable: durable, Filter: filter, AckWait: time.Second, Concurrency: 2,
				Handle: func(context.Context, *bus.Message) error { return nil },
			})
		}
	}
	follow := func(stream string, filters ...string) func(context.Context, *bus.Bus) error {
		return func(ctx context.Context, b *bus.Bus) error {
			return b.Follow(ctx, bus.Follower{Stream: stream, Filters: filters, Message: func(context.Context, *bus.Message) {}, CaughtUp: func() {}})
		}
	}
	for name, c := range map[string]struct {
		role    string
		do      func(context.Context, *bus.Bus) error
		subject string
	}{
		"a snapshot worker asks for a drill": {snapshot, func(ctx context.Context, b *bus.Bus) error {
			_, err := b.Publish(ctx, bus.Outgoing{Subject: "lifeboat.job.drill.etcd-prod", Message: &lifeboatv1.Job{}})
			return err
		}, "publish to lifeboat.job.drill.etcd-prod"},
		"a snapshot worker takes a drill": {
			snapshot, consume("backup-drill", bus.StreamJobs, "lifeboat.job.drill.*"),
			"publish to $JS.API.CONSUMER.CREATE.LIFEBOAT_JOBS.backup-drill.lifeboat.job.drill.*",
		},
		"a snapshot worker reads alerts": {
			snapshot, follow(bus.StreamAlerts, "lifeboat.alert.received"), "publish to $JS.API.CONSUMER.CREATE.LIFEBOAT_ALERTS.",
		},
		"a verifier tells of a snapshot": {
			verify, func(ctx context.Context, b *bus.Bus) error { return b.Emit(ctx, event) },
			"publish to lifeboat.event.snapshot.committed.etcd-prod",
		},
		"a drill reads dead letters": {drill, func(ctx context.Context, b *bus.Bus) error {
			_, _, err := b.Last(ctx, bus.StreamDead, "lifeboat.dead.webhook", &lifeboatv1.DeadLetter{})
			return err
		}, "publish to $JS.API.DIRECT.GET.LIFEBOAT_DEAD.lifeboat.dead.webhook"},
		"prune claims a snapshot": {prune, func(ctx context.Context, b *bus.Bus) error {
			_, err := b.Claim(ctx, config.WorkSnapshot, "etcd-prod", &bus.Message{Subject: "x"})
			return err
		}, "publish to lifeboat.state.claim.etcd-prod.snapshot"},
		"the notifier moves a schedule": {notifier, func(ctx context.Context, b *bus.Bus) error {
			_, err := b.PutStateWith(ctx, bus.State{Outgoing: bus.Outgoing{
				Subject: bus.ScheduleSubject("etcd-prod", "snapshot"), Message: &lifeboatv1.ScheduleState{},
			}}, job("etcd-prod"))
			return err
		}, "publish to lifeboat."},
		"the notifier follows jobs": {
			notifier, follow(bus.StreamJobs, "lifeboat.job.snapshot.*", "lifeboat.job.drill.*"),
			"publish to $JS.API.CONSUMER.CREATE.LIFEBOAT_JOBS.",
		},
		"the scheduler takes an alert": {
			scheduler, consume("notifier-route", bus.StreamAlerts, bus.SubjectReceived), "publish to $JS.API.CONSUMER.CREATE.LIFEBOAT_ALERTS.notifier-route",
		},
		"the notifier reads all schedules": {notifier, func(ctx context.Context, b *bus.Bus) error {
			return b.Scan(ctx, bus.StreamJobs, bus.ScheduleSubject("*", "*"), func(*bus.Message) error { return nil })
		}, "publish to $JS.API.DIRECT.GET.LIFEBOAT_JOBS"},
		"a drill reads the audit log": {drill, func(ctx context.Context, b *bus.Bus) error {
			return b.History(ctx, bus.StreamEvents, []string{"lifeboat.event.>"}, time.Time{}, func(*bus.Message) error { return nil })
		}, "publish to $JS.API.CONSUMER.CREATE.LIFEBOAT_EVENTS."},
		"a snapshot worker removes a job": {snapshot, func(ctx context.Context, b *bus.Bus) error {
			return b.Delete(ctx, bus.StreamJobs, 1)
		}, "publish to $JS.API.STREAM.MSG.DELETE.LIFEBOAT_JOBS"},
		"a verifier takes a place of drills": {verify, func(ctx context.Context, b *bus.Bus) error {
			_, err := b.Slot(ctx, config.WorkDrill, 1)
			return err
		}, "publish to $JS.API.CONSUMER.CREATE.LIFEBOAT_JOBS.slots-drill.lifeboat.state.slot.drill."},
		"the notifier says that it is a worker": {notifier, func(ctx context.Context, b *bus.Bus) error {
			return b.Announce(ctx, bus.Service{Name: "lifeboat-backup", Version: "1.0.0"})
		}, "subscribe to $SRV."},
		"a drill looks who is there": {drill, func(ctx context.Context, b *bus.Bus) error {
			_, err := b.Workers(ctx)
			return err
		}, "publish to $SRV.INFO.lifeboat-backup"},
		"the notifier asks for a history": {notifier, func(ctx context.Context, b *bus.Bus) error {
			_, err := b.AskHistory(ctx, "etcd-prod")
			return err
		}, "publish to lifeboat.ask.history.etcd-prod"},
		"the page asks for a snapshot": {page, func(ctx context.Context, b *bus.Bus) error {
			_, err := b.Publish(ctx, job("etcd-prod"))
			return err
		}, "publish to lifeboat.job.snapshot.etcd-prod"},
		"the page removes a dead letter": {page, func(ctx context.Context, b *bus.Bus) error {
			return b.Delete(ctx, bus.StreamDead, 1)
		}, "publish to $JS.API.STREAM.MSG.DELETE.LIFEBOAT_DEAD"},
		"the page tells of something": {
			page, func(ctx context.Context, b *bus.Bus) error { return b.Emit(ctx, event) },
			"publish to lifeboat.event.snapshot.committed.etcd-prod",
		},
		"a person takes jobs": {
			cli, consume("backup-snapshot", bus.StreamJobs, "lifeboat.job.snapshot.*"),
			"publish to $JS.API.CONSUMER.CREATE.LIFEBOAT_JOBS.backup-snapshot",
		},
	} {
		t.Run(name, func(t *testing.T) {
			begin := time.Now()
			err := c.do(t.Context(), d.as(t, c.role))
			require.ErrorIs(t, err, bus.ErrDenied)
			require.ErrorContains(t, err, c.subject)
			var refusal *bus.DeniedError
			require.ErrorAs(t, err, &refusal)
			assert.Contains(t, c.subject, refusal.Operation)
			assert.Less(t, time.Since(begin), 4*time.Second, "no time-out is waited for")
			assert.NotContains(t, strings.ToLower(err.Error()), "deadline")
		})
	}
}
