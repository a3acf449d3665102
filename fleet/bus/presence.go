package bus

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// ErrNoWorker means that no worker is there that could answer.
var ErrNoWorker = errors.New("no worker answers")

const (
	// workerService is the name under which workers announce themselves.
	workerService = "lifeboat-backup"
	// presenceWait is how long answers of workers are collected.
	presenceWait = 500 * time.Millisecond
	// askTimeout is how long a worker may take to read what the bucket knows of a target.
	askTimeout = 30 * time.Second
	// endpointsAtOnce is how many questions a process answers at the same time.
	endpointsAtOnce = 4
)

// Codes of an answer that is an error, in the header of the services protocol (NATS ADR-32).
const (
	codeNoWorker = "503"
	codeFailed   = "500"
)

// Service is what a process says of itself on NATS, by the services protocol (NATS ADR-32), so that `nats micro` shows it too.
type Service struct {
	Name, Version string
	Metadata      map[string]string
	// Endpoints answer requests, by subject, which may have a wildcard. Of all processes that have a subject one is asked. An
	// error that is ErrNoWorker says that this one cannot answer.
	Endpoints map[string]func(ctx context.Context, subject string, data []byte) (proto.Message, error)
}

// The services protocol wants a version of this form (https://semver.org), and names of endpoints without dots.
var (
	semver   = regexp.MustCompile(`^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?(\+[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?$`)
	notAName = regexp.MustCompile(`[^A-Za-z0-9_-]+`)
)

// Announce makes the process known until the context ends, and answers its endpoints. While NATS is away it waits. It returns an
// ErrDenied when this user may not listen to the subjects.
func (b *Bus) Announce(ctx context.Context, s Service) error {
	cfg := micro.Config{Name: s.Name, Version: strings.TrimPrefix(s.Version, "v"), Metadata: maps.Clone(s.Metadata)}
	if cfg.Metadata == nil {
		cfg.Metadata = map[string]string{}
	}
	cfg.Metadata["version"] = s.Version
	if !semver.MatchString(cfg.Version) {
		cfg.Version = "0.0.0"
	}
	subjects := append(slices.Sorted(maps.Keys(s.Endpoints)), micro.APIPrefix+".>")
	err := b.guarded(ctx, func(ctx context.Context) error {
		// Whoever answers has a place. The end takes all of them: what is still asked then finds none.
		room := make(chan struct{}, endpointsAtOnce)
		defer func() {
			for range endpointsAtOnce {
				room <- struct{}{}
			}
		}()
		service, err := micro.AddService(b.nc, cfg)
		if err != nil {
			return err
		}
		defer service.Stop() //nolint:errcheck // its subscriptions are gone with the connection at the latest
		for subject, answer := range s.Endpoints {
			handler := micro.HandlerFunc(func(r micro.Request) {
				select {
				case room <- struct{}{}:
				case <-ctx.Done():
					_ = r.Error(codeNoWorker, "it is stopping", nil) // or else whoever asks waits for long
					return
				}
				go func() {
					defer func() { <-room }()
					b.answer(ctx, r, answer)
				}()
			})
			name := strings.Trim(notAName.ReplaceAllString(subject, "-"), "-")
			if err := service.AddEndpoint(name, handler, micro.WithEndpointSubject(subject)); err != nil {
				return err
			}
		}
		<-ctx.Done()
		return context.Cause(ctx)
	}, subjects...)
	if ctx.Err() != nil {
		return nil //nolint:nilerr // a stop is how this ends
	}
	return fmt.Errorf("announcing %s: %w", s.Name, err)
}

func (b *Bus) answer(
	ctx context.Context, r micro.Request, answer func(ctx context.Context, subject string, data []byte) (proto.Message, error),
) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	m, err := answer(ctx, r.Subject(), r.Data())
	var data []byte
	if err == nil {
		data, err = protojson.Marshal(m)
	}
	switch {
	case errors.Is(err, ErrNoWorker):
		err = r.Error(codeNoWorker, headerText(err), nil)
	case err != nil:
		err = r.Error(codeFailed, headerText(err), nil)
	default:
		err = r.Respond(data)
	}
	if err != nil {
		b.log.WarnContext(ctx, "could not answer a question", "subject", r.Subject(), "err", err)
	}
}

// headerText fits into one line of a header.
func headerText(err error) string { return strings.Join(strings.Fields(validUTF8(err.Error())), " ") }

// WorkerInfo is what a worker says of itself.
type WorkerInfo struct {
	// ID is new with every start of the process.
	ID, Version, Actor, Zone string
	Roles                    []string
	// Concurrency is how many jobs of each kind it does at once; 0 when it does not say.
	Concurrency int
	// Draining takes no more jobs, and has no roles any more; what it has at hand goes on.
	Draining bool
}

// Workers asks who is there, and returns who has answered within half a second, sorted by actor.
func (b *Bus) Workers(ctx context.Context) ([]WorkerInfo, error) {
	subject, err := micro.ControlSubject(micro.InfoVerb, workerService, "")
	if err != nil {
		return nil, err
	}
	var all []WorkerInfo
	err = b.guarded(ctx, func(ctx context.Context) (err error) {
		all, err = b.collect(ctx, subject)
		return err
	}, subject)
	if err != nil {
		return nil, fmt.Errorf("asking which workers are there: %w", err)
	}
	slices.SortFunc(all, func(x, y WorkerInfo) int { return cmp.Or(cmp.Compare(x.Actor, y.Actor), cmp.Compare(x.ID, y.ID)) })
	return all, nil
}

func (b *Bus) collect(ctx context.Context, subject string) (all []WorkerInfo, err error) {
	if err = b.Connected(); err != nil {
		return nil, err
	}
	sub, err := b.nc.SubscribeSync(b.nc.NewInbox())
	if err != nil {
		return nil, err
	}
	defer sub.Unsubscribe() //nolint:errcheck // it is gone with the connection at the latest
	if err := b.nc.PublishRequest(subject, sub.Subject, nil); err != nil {
		return nil, err
	}
	waiting, cancel := context.WithTimeout(ctx, presenceWait)
	defer cancel()
	for {
		m, err := sub.NextMsgWithContext(waiting)
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case errors.Is(err, nats.ErrNoResponders), errors.Is(err, context.DeadlineExceeded):
			return all, nil
		case err != nil:
			return nil, err
		}
		var info micro.Info
		if err := json.Unmarshal(m.Data, &info); err != nil {
			return nil, fmt.Errorf("reading an answer: %w", err)
		}
		w := WorkerInfo{
			ID: info.ID, Version: cmp.Or(info.Metadata["version"], info.Version), Actor: info.Metadata["actor"], Zone: info.Metadata["zone"],
		}
		if roles := info.Metadata["roles"]; roles != "" {
			w.Roles = strings.Split(roles, ",")
		}
		w.Concurrency, _ = strconv.Atoi(info.Metadata["concurrency"])
		w.Draining = info.Metadata["draining"] == "true"
		all = append(all, w)
	}
}

// AskHistory asks a worker what the bucket knows of a target. It returns ErrNoWorker when none is there that could tell.
func (b *Bus) AskHistory(ctx context.Context, target string) (*lifeboatv1.History, error) {
	return b.AskHistoryBefore(ctx, target, time.Time{})
}

// AskHistoryBefore is AskHistory of what is for ticks before a moment, and of snapshots that were begun before it. The zero time is no
// limit. The request's payload is the moment as RFC 3339 in UTC with nanoseconds, or nothing.
func (b *Bus) AskHistoryBefore(ctx context.Context, target string, before time.Time) (*lifeboatv1.History, error) {
	subject := HistorySubject(target)
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var request []byte
	if !before.IsZero() {
		request = before.UTC().AppendFormat(nil, time.RFC3339Nano)
	}
	var m *nats.Msg
	err := b.guarded(ctx, func(ctx context.Context) (err error) {
		m, err = b.nc.RequestWithContext(ctx, subject, request)
		return err
	}, subject)
	if errors.Is(err, nats.ErrNoResponders) {
		err = fmt.Errorf("%w: %w", ErrNoWorker, err)
	}
	if err != nil {
		return nil, fmt.Errorf("asking for the history of %s: %w", target, err)
	}
	switch code, text := m.Header.Get(micro.ErrorCodeHeader), m.Header.Get(micro.ErrorHeader); code {
	case "":
	case codeNoWorker:
		return nil, fmt.Errorf("asking for the history of %s: %w: %s", target, ErrNoWorker, text)
	default:
		return nil, fmt.Errorf("asking for the history of %s: the worker says: %s", target, text)
	}
	h := &lifeboatv1.History{}
	if err := Decode(m.Data, h); err != nil {
		return nil, fmt.Errorf("decoding the history of %s: %w", target, err)
	}
	return h, nil
}
