package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
)

const (
	eventsMaxAge = 90 * 24 * time.Hour
	deadMaxAge   = 180 * 24 * time.Hour
	// A message id is remembered this long. It covers a redelivery after a crash.
	dedupWindow = 30 * time.Minute
	// Shorter for alerts: it covers an Alertmanager that sends the same webhook again after a lost answer, and lets pass
	// what its repeat_interval sends on purpose, which few set below five minutes.
	alertsWindow = 4 * time.Minute
)

// streamConfigs are the streams as the design has them. Whoever starts first creates them.
func streamConfigs(replicas int) []jetstream.StreamConfig {
	jobs := []string{"lifeboat.state.schedule.*.*", "lifeboat.state.claim.*.*"}
	for _, w := range config.Works() {
		jobs = append(jobs, AllJobs(w))
	}
	return []jetstream.StreamConfig{
		{
			Name: StreamJobs, Subjects: jobs,
			Description: "Jobs waiting or running, one per subject, and the schedules' last decisions",
			// One message per subject and refusal of a second one is what makes "skip while one waits or runs" a
			// decision of the server, inside the same transaction as the tick.
			Retention: jetstream.WorkQueuePolicy, Discard: jetstream.DiscardNew, DiscardNewPerSubject: true,
			MaxMsgsPerSubject: 1, AllowAtomicPublish: true, AllowRollup: true, AllowDirect: true,
			Storage: jetstream.FileStorage, Replicas: replicas, Duplicates: dedupWindow,
		},
		{
			Name: StreamEvents, Subjects: []string{SubjectAllEvents},
			Description: "What happened: the audit log", Retention: jetstream.LimitsPolicy, MaxAge: eventsMaxAge,
			AllowDirect: true, Storage: jetstream.FileStorage, Replicas: replicas, Duplicates: dedupWindow,
		},
		{
			Name: StreamAlerts, Subjects: []string{"lifeboat.alert.>"},
			Description: "Alerts received and deliveries per receiver, until delivered",
			Retention:   jetstream.WorkQueuePolicy, AllowDirect: true,
			Storage: jetstream.FileStorage, Replicas: replicas, Duplicates: alertsWindow,
		},
		{
			Name: StreamDead, Subjects: []string{"lifeboat.dead.>"},
			Description: "What could not be processed, with the reason and the attempts",
			Retention:   jetstream.LimitsPolicy, MaxAge: deadMaxAge, AllowDirect: true,
			Storage: jetstream.FileStorage, Replicas: replicas, Duplicates: dedupWindow,
		},
	}
}

// EnsureStreams creates the streams that are missing and updates in place the settings that can be updated. It never
// deletes one: a stream that differs in what cannot change is an error that says what differs.
func (b *Bus) EnsureStreams(ctx context.Context) error {
	for _, want := range streamConfigs(b.replicas) {
		s, err := b.js.Stream(ctx, want.Name)
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			// Two services may create it at once: the same settings are no conflict for the server.
			if s, err = b.js.CreateStream(ctx, want); err != nil {
				return fmt.Errorf("creating stream %s: %w", want.Name, err)
			}
			if err = taken(s, want); err != nil {
				return err
			}
			b.log.InfoContext(ctx, "created stream", slog.String("stream", want.Name))
			continue
		}
		if err != nil {
			return fmt.Errorf("looking up stream %s: %w", want.Name, err)
		}
		have := s.CachedInfo().Config
		fixed, updatable := streamDiff(have, want)
		if len(fixed) > 0 {
			return fmt.Errorf("stream %s exists with settings that cannot be changed in place: %v; "+
				"move its messages away and delete it, or point nats.url elsewhere", want.Name, fixed)
		}
		if len(updatable) == 0 {
			continue
		}
		b.log.WarnContext(ctx, "updating stream in place", slog.String("stream", want.Name), slog.Any("differs", updatable))
		if s, err = b.js.UpdateStream(ctx, applyStream(have, want)); err != nil {
			return fmt.Errorf("updating stream %s (%v): %w", want.Name, updatable, err)
		}
		if err := taken(s, want); err != nil {
			return err
		}
	}
	return nil
}

// taken says whether the server took all settings. An older one ignores those that it does not know, and would store the
// parts of a batch one by one.
func taken(s jetstream.Stream, want jetstream.StreamConfig) error {
	if fixed, updatable := streamDiff(s.CachedInfo().Config, want); len(fixed)+len(updatable) > 0 {
		return fmt.Errorf("the server did not take all settings of stream %s: %v; NATS server 2.12 or later is needed",
			want.Name, append(fixed, updatable...))
	}
	return nil
}

// streamDiff lists what differs as "setting: have X, want Y".
func streamDiff(have, want jetstream.StreamConfig) (fixed, updatable []string) {
	note := func(list *[]string, name string, h, w any) {
		if fmt.Sprint(h) != fmt.Sprint(w) {
			*list = append(*list, fmt.Sprintf("%s: have %v, want %v", name, h, w))
		}
	}
	note(&fixed, "retention", have.Retention, want.Retention)
	note(&fixed, "storage", have.Storage, want.Storage)
	for _, s := range want.Subjects {
		if !slices.Contains(have.Subjects, s) {
			updatable = append(updatable, "subjects: missing "+s)
		}
	}
	note(&updatable, "discard", have.Discard, want.Discard)
	note(&updatable, "discard_new_per_subject", have.DiscardNewPerSubject, want.DiscardNewPerSubject)
	if want.MaxMsgsPerSubject > 0 {
		note(&updatable, "max_msgs_per_subject", have.MaxMsgsPerSubject, want.MaxMsgsPerSubject)
	}
	note(&updatable, "max_age", have.MaxAge, want.MaxAge)
	note(&updatable, "num_replicas", have.Replicas, want.Replicas)
	note(&updatable, "duplicate_window", have.Duplicates, want.Duplicates)
	note(&updatable, "allow_atomic", have.AllowAtomicPublish, want.AllowAtomicPublish)
	note(&updatable, "allow_rollup_hdrs", have.AllowRollup, want.AllowRollup)
	note(&updatable, "allow_direct", have.AllowDirect, want.AllowDirect)
	return fixed, updatable
}

// applyStream puts our settings over an existing stream and leaves what an operator set besides (limits, placement).
func applyStream(have, want jetstream.StreamConfig) jetstream.StreamConfig {
	for _, s := range want.Subjects {
		if !slices.Contains(have.Subjects, s) {
			have.Subjects = append(have.Subjects, s)
		}
	}
	have.Discard, have.DiscardNewPerSubject = want.Discard, want.DiscardNewPerSubject
	if want.MaxMsgsPerSubject > 0 {
		have.MaxMsgsPerSubject = want.MaxMsgsPerSubject
	}
	have.MaxAge, have.Replicas, have.Duplicates = want.MaxAge, want.Replicas, want.Duplicates
	have.AllowAtomicPublish, have.AllowRollup, have.AllowDirect = want.AllowAtomicPublish, want.AllowRollup, want.AllowDirect
	return have
}
