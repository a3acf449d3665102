// Package ingest takes alerts over HTTP: Alertmanager's webhooks, and a plainer form for scripts. It answers 200 only when every
// alert is on disk in JetStream.
//
// Alertmanager sends again after a 5xx or a broken connection and drops the alerts after any 4xx, 429 included. So
// whatever may pass is 503, and a 4xx leaves a copy in the dead letters first.
package ingest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/attribute"
	"golang.org/x/sync/semaphore"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/tracing"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

const (
	// Path of Alertmanager's webhook.
	Path = "/api/v1/alertmanager"
	// GenericPath is where scripts post alerts.
	GenericPath = "/api/v1/alerts"
	// HeaderEndpoint of a dead letter is the path that the refused body was posted to, for who posts it again.
	HeaderEndpoint = "endpoint"
)

// storeTimeout bounds how long a client is kept waiting before it is told to come again.
const storeTimeout = 5 * time.Second

// Store keeps messages durably: when a method returns nil, a crash of any process loses nothing.
type Store interface {
	// PublishTogether stores all or none; errors.Is(err, bus.ErrNotTogether) when it cannot do it like that.
	PublishTogether(ctx context.Context, all []bus.Outgoing) error
	// PublishAll stores all, or returns an error and has stored some; a message whose ID is stored already is no error.
	PublishAll(ctx context.Context, all []bus.Outgoing) error
	DeadLetter(ctx context.Context, reason string, d *lifeboatv1.DeadLetter) error
}

// Options of Handlers.
type Options struct {
	Store      Store
	Logger     *slog.Logger
	Registerer prometheus.Registerer
	Now        func() time.Time
}

// Handlers answer both endpoints. They share the memory for bodies.
type Handlers struct {
	o       Options
	memory  *semaphore.Weighted
	metrics *metrics
}

// New makes the handlers.
func New(o Options) *Handlers {
	return &Handlers{o: o, memory: semaphore.NewWeighted(maxMemory), metrics: newMetrics(o.Registerer)}
}

// Webhook takes Alertmanager's webhooks of version "4".
//
// It answers 200 when all alerts are stored; 503 when that cannot be done now or the body did not arrive; 400 for what is no such
// webhook, 413 for more than 16 MiB (also decompressed) and 415 for a Content-Encoding that is not gzip, each after a copy is in the
// dead letters; 405 for other methods than POST.
func (h *Handlers) Webhook() http.Handler {
	return h.endpoint("alertmanager", func(_ *http.Request, data []byte) ([]*note, error) {
		n, err := parse(data)
		return []*note{n}, err
	}, answerText)
}

// refusal is an answer other than 200. One with a reason leaves a dead letter, for which that is the metric's word.
type refusal struct {
	code   int
	reason string
	err    error
}

// parser makes notes of a body. An error means that no retry can help.
type parser func(r *http.Request, data []byte) ([]*note, error)

// answer writes the answer: the ids of what was stored, or a refusal.
type answer func(w http.ResponseWriter, alerts int, ids []string, no *refusal)

func (h *Handlers) endpoint(name string, parse parser, say answer) http.Handler {
	seconds := h.metrics.seconds.WithLabelValues(name)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if rec, ok := w.(*recorder); ok {
			rec.counted = true
		}
		begin := h.o.Now()
		ctx, span := traced(r.Context(), r, name)
		alerts, ids, no := h.take(r.WithContext(ctx), parse)
		code := http.StatusOK
		if no != nil {
			code = no.code
			h.o.Logger.WarnContext(ctx, "webhook refused", slog.String("endpoint", name), slog.Int("code", code), slog.Any("err", no.err))
			if code == http.StatusMethodNotAllowed {
				w.Header().Set("Allow", http.MethodPost)
			}
		}
		say(w, alerts, ids, no)
		if span.IsRecording() {
			span.SetAttributes(attribute.Int("http.response.status_code", code), attribute.Int("lifeboat.alerts", alerts))
		}
		var refused error
		if no != nil {
			refused = no.err
		}
		tracing.End(span, refused)
		h.metrics.requests.WithLabelValues(name, strconv.Itoa(code)).Inc()
		seconds.Observe(h.o.Now().Sub(begin).Seconds())
	})
}

// take stores what a request brings, or says why not.
func (h *Handlers) take(r *http.Request, parse parser) (alerts int, ids []string, no *refusal) {
	if r.Method != http.MethodPost {
		return 0, nil, &refusal{code: http.StatusMethodNotAllowed, err: errors.New("only POST is taken here")}
	}
	received := h.o.Now()
	body, no := h.read(r)
	defer body.release()
	if no != nil {
		return 0, nil, h.bury(r, body.data, no)
	}
	notes, err := parse(r, body.data)
	if err != nil {
		return 0, nil, h.bury(r, body.data, malformed(err))
	}
	body.data = nil // what was read of it is copied, and a large one may go
	counts := map[string]int{}
	all := make([]bus.Outgoing, 0, len(notes))
	for _, n := range notes {
		n.receivedAt = received
		alerts += len(n.alerts)
		for i := range n.alerts {
			counts[n.alerts[i].status]++
		}
		goesOn := n.trace(r.Context())
		for _, part := range split(n) {
			part.Trace = goesOn
			all = append(all, part)
		}
	}
	if no := h.store(r.Context(), all); no != nil {
		return 0, nil, no
	}
	for status, count := range counts {
		h.metrics.alerts.WithLabelValues(status).Add(float64(count))
	}
	ids = make([]string, 0, len(all))
	for _, o := range all {
		ids = append(ids, o.ID)
	}
	return alerts, ids, nil
}

func (h *Handlers) store(ctx context.Context, all []bus.Outgoing) *refusal {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	err := h.o.Store.PublishTogether(ctx, all)
	if errors.Is(err, bus.ErrNotTogether) { // some are stored already, with the sender's ids, or there are over a thousand
		err = h.o.Store.PublishAll(ctx, all)
	}
	if err != nil {
		return &refusal{code: http.StatusServiceUnavailable, err: fmt.Errorf("storing the alerts: %w", err)}
	}
	return nil
}

// bury keeps a copy of what is refused for good, and turns the refusal into "come again" when that fails.
func (h *Handlers) bury(r *http.Request, data []byte, no *refusal) *refusal {
	if no.reason == "" {
		return no
	}
	ctx, cancel := context.WithTimeout(r.Context(), storeTimeout)
	defer cancel()
	err := h.o.Store.DeadLetter(ctx, no.reason, &lifeboatv1.DeadLetter{
		Subject: "webhook", Payload: data, Truncated: no.code == http.StatusRequestEntityTooLarge, Reason: no.err.Error(), Attempts: 1,
		Headers: map[string]string{HeaderEndpoint: r.URL.Path},
	})
	if err != nil {
		return &refusal{code: http.StatusServiceUnavailable, err: fmt.Errorf("storing a dead letter (%w): %w", no.err, err)}
	}
	return no
}

// answerText says nothing more than the code when all is well.
func answerText(w http.ResponseWriter, _ int, _ []string, no *refusal) {
	if no != nil {
		http.Error(w, no.err.Error(), no.code)
	}
}
