package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
)

const (
	eventsMaxAge = 90 * 24 * time.Hour
	deadMaxAge   = 180 * 24 * time.Hour
	// A message id is remembered this long. It covers a redelivery after a crash.
	dedupWindow = 30 * time.Minute
	// Shorter for alerts: it covers a sender that gives its own ids and posts again after a lost answer, and lets pass what it
	// repeats on purpose.
	alertsWindow = 4 * time.Minute
)

// streamConfigs are the streams as the design has them. Whoever starts first creates them.
func streamConfigs(replicas int) []jetstream.StreamConfig {
	jobs := []string{"lifeboat.state.schedule.*.*", "lifeboat.state.claim.*.*", "lifeboat.state.slot.*.*"}
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
			// For the last values beside the queue: what a receiver was told of a group, and what a robot was sent.
			AllowRollup: true,
			// For a webhook that is too large for one message: it is taken whole, or refused whole.
			AllowAtomicPublish: true,
			Storage:            jetstream.FileStorage, Replicas: replicas, Duplicates: alertsWindow,
		},
		{
			Name: StreamDead, Subjects: []string{"lifeboat.dead.>"},
			Description: "What could not be processed, with the reason and the attempts",
			Retention:   jetstream.LimitsPolicy, MaxAge: deadMaxAge, AllowDirect: true,
			Storage: jetstream.FileStorage, Replicas: replicas, Duplicates: dedupWindow,
		},
	}
}

// streams are the names of all of them.
func streams() []string { return []string{StreamJobs, StreamEvents, StreamAlerts, StreamDead} }

// api is a subject of the JetStream API.
func api(call string, tokens ...string) string {
	return jetstream.DefaultAPIPrefix + strings.Join(append([]string{call}, tokens...), ".")
}

// stream looks a stream up.
func (b *Bus) stream(ctx context.Context, name string) (s jetstream.Stream, err error) {
	err = b.guarded(ctx, func(ctx context.Context) error {
		s, err = b.js.Stream(ctx, name)
		return err
	}, api("STREAM.INFO", name))
	if err != nil {
		return nil, fmt.Errorf("looking up stream %s: %w", name, err)
	}
	return s, nil
}

// EnsureStreams creates the streams that are missing and updates in place the settings that can be updated. It never
// deletes one: a stream that differs in what cannot change is an error that says what differs.
//
// A user who may not create streams finds them there, or is told with an ErrDenied who creates them. One who may not update
// them takes them as they are, and the log says what differs.
func (b *Bus) EnsureStreams(ctx context.Context) error {
	for _, want := range streamConfigs(b.replicas) {
		if err := b.ensureStream(ctx, want); err != nil {
			return err
		}
	}
	return nil
}

func (b *Bus) ensureStream(ctx context.Context, want jetstream.StreamConfig) error {
	s, err := b.stream(ctx, want.Name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return b.createStream(ctx, want)
	}
	if err != nil {
		return err
	}
	have := s.CachedInfo().Config
	fixed, updatable := streamDiff(have, want)
	if len(fixed) > 0 {
		return fmt.Errorf("stream %s exists with settings that cannot be changed in place: %v; "+
			"move its messages away and delete it, or point nats.url elsewhere", want.Name, fixed)
	}
	if len(updatable) == 0 || !b.mayUpdate(want.Name, updatable) {
		return nil
	}
	b.log.WarnContext(ctx, "updating stream in place", slog.String("stream", want.Name), slog.Any("differs", updatable))
	err = b.guarded(ctx, func(ctx context.Context) error {
		s, err = b.js.UpdateStream(ctx, applyStream(have, want))
		return err
	}, api("STREAM.UPDATE", want.Name))
	if errors.Is(err, ErrDenied) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.refused[want.Name] = fmt.Sprint(updatable)
		b.log.WarnContext(ctx, "this user may not update the stream, and takes it as it is; the scheduler updates it at its start",
			slog.String("stream", want.Name), slog.Any("differs", updatable), slog.Any("err", err))
		return nil
	}
	if err != nil {
		return fmt.Errorf("updating stream %s (%v): %w", want.Name, updatable, err)
	}
	return taken(s, want)
}

// mayUpdate is false for an update that was denied before, so that the server's log does not fill up with them.
func (b *Bus) mayUpdate(stream string, differs []string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.refused[stream] != fmt.Sprint(differs)
}

func (b *Bus) createStream(ctx context.Context, want jetstream.StreamConfig) (err error) {
	var s jetstream.Stream
	err = b.guarded(ctx, func(ctx context.Context) error {
		// Two services may create it at once: the same settings are no conflict for the server.
		s, err = b.js.CreateStream(ctx, want)
		return err
	}, api("STREAM.CREATE", want.Name))
	if errors.Is(err, ErrDenied) {
		return fmt.Errorf("stream %s does not exist yet, and this user may not create it: start the scheduler first, whose user may; %w",
			want.Name, err)
	}
	if err != nil {
		return fmt.Errorf("creating stream %s: %w", want.Name, err)
	}
	if err := taken(s, want); err != nil {
		return err
	}
	b.log.InfoContext(ctx, "created stream", slog.String("stream", want.Name))
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
