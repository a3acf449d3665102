// Package ingest takes Alertmanager's webhooks. It answers 200 only when every alert is on disk in JetStream.
//
// Alertmanager sends again after a 5xx or a broken connection and drops the alerts after any 4xx, 429 included. So
// whatever may pass is 503, and a 4xx leaves a copy in the dead letters first.
package ingest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// Path of the webhook.
const Path = "/api/v1/alertmanager"

const (
	// maxBody is 10,000 alerts of usual size and half as many again.
	maxBody = 16 << 20
	// storeTimeout bounds how long Alertmanager is kept waiting before it is told to come again.
	storeTimeout = 5 * time.Second
	// maxAtOnce bounds memory: so many bodies are held at a time, the others wait.
	maxAtOnce = 8
)

// Store keeps messages durably: when a method returns nil, a crash of any process loses nothing.
type Store interface {
	// PublishAll stores all or returns an error; a message whose ID is stored already is no error.
	PublishAll(ctx context.Context, all []bus.Outgoing) error
	DeadLetter(ctx context.Context, reason string, d *lifeboatv1.DeadLetter) error
}

// Options of a Handler.
type Options struct {
	Store      Store
	Logger     *slog.Logger
	Registerer prometheus.Registerer
	Now        func() time.Time
}

// Handler answers the webhook.
type Handler struct {
	o       Options
	slots   chan struct{}
	metrics *metrics
}

// New makes a handler.
func New(o Options) *Handler {
	return &Handler{o: o, slots: make(chan struct{}, maxAtOnce), metrics: newMetrics(o.Registerer)}
}

type metrics struct {
	requests *prometheus.CounterVec
	alerts   *prometheus.CounterVec
	seconds  prometheus.Histogram
}

func newMetrics(reg prometheus.Registerer) *metrics {
	f := promauto.With(reg)
	return &metrics{
		requests: f.NewCounterVec(prometheus.CounterOpts{
			Name: "lifeboat_webhook_requests_total", Help: "Webhooks answered, by status code.",
		}, []string{"code"}),
		alerts: f.NewCounterVec(prometheus.CounterOpts{
			Name: "lifeboat_webhook_alerts_total", Help: "Alerts stored, by status (firing, resolved).",
		}, []string{"status"}),
		seconds: f.NewHistogram(prometheus.HistogramOpts{
			Name: "lifeboat_webhook_seconds", Help: "Time from the webhook's headers to its answer.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 8),
		}),
	}
}

// refusal is an answer other than 200.
type refusal struct {
	code int
	err  error
}

// ServeHTTP takes one webhook.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	begin := h.o.Now()
	code := http.StatusOK
	if no := h.take(w, r); no != nil {
		code = no.code
		h.o.Logger.WarnContext(r.Context(), "webhook refused", slog.Int("code", code), slog.Any("err", no.err))
		if code == http.StatusMethodNotAllowed {
			w.Header().Set("Allow", http.MethodPost)
		}
		http.Error(w, no.err.Error(), code)
	}
	h.metrics.requests.WithLabelValues(strconv.Itoa(code)).Inc()
	h.metrics.seconds.Observe(h.o.Now().Sub(begin).Seconds())
}

func (h *Handler) take(w http.ResponseWriter, r *http.Request) *refusal {
	if r.Method != http.MethodPost {
		return &refusal{http.StatusMethodNotAllowed, errors.New("only POST is taken here")}
	}
	select {
	case h.slots <- struct{}{}:
		defer func() { <-h.slots }()
	case <-r.Context().Done():
		return &refusal{http.StatusServiceUnavailable, errors.New("the client went away while it waited its turn")}
	}
	received := h.o.Now()
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		err = fmt.Errorf("the body is larger than %d bytes; set max_alerts in the webhook_config", maxBody)
		return h.bury(r.Context(), "webhook_too_large", http.StatusRequestEntityTooLarge, data, err)
	case err != nil:
		// The connection broke; Alertmanager comes again.
		return &refusal{http.StatusServiceUnavailable, fmt.Errorf("reading the body: %w", err)}
	}
	n, err := parse(bytes.NewReader(data))
	if err != nil {
		return h.bury(r.Context(), "webhook_malformed", http.StatusBadRequest, data, err)
	}
	n.ReceivedAt = timestamppb.New(received)
	parts, err := split(n)
	if err != nil {
		return h.bury(r.Context(), "webhook_malformed", http.StatusBadRequest, data, err)
	}
	return h.store(r.Context(), parts)
}

func (h *Handler) store(ctx context.Context, parts []*lifeboatv1.Notification) *refusal {
	all := make([]bus.Outgoing, 0, len(parts))
	for _, p := range parts {
		all = append(all, bus.Outgoing{Subject: bus.SubjectReceived, Message: p, ID: p.GetId()})
	}
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	if err := h.o.Store.PublishAll(ctx, all); err != nil {
		return &refusal{http.StatusServiceUnavailable, fmt.Errorf("storing the alerts: %w", err)}
	}
	for _, p := range parts {
		for _, a := range p.GetAlerts() {
			h.metrics.alerts.WithLabelValues(a.GetStatus()).Inc()
		}
	}
	return nil
}

// bury keeps a copy of what is refused for good, and turns the refusal into "come again" when that fails.
func (h *Handler) bury(ctx context.Context, reason string, code int, data []byte, why error) *refusal {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	err := h.o.Store.DeadLetter(ctx, reason, &lifeboatv1.DeadLetter{
		Subject: "webhook", Payload: data, Reason: why.Error(), Attempts: 1,
	})
	if err != nil {
		return &refusal{http.StatusServiceUnavailable, fmt.Errorf("storing a dead letter (%w): %w", why, err)}
	}
	return &refusal{code, why}
}
