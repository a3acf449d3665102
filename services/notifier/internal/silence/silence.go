// Package silence creates silences in Alertmanager for people who press a button in Slack or follow a link.
//
// There are three ways in: Slack's request URL (signed by Slack), Slack's Socket Mode (a connection that we open), and a page
// behind a signed and expiring link, for chats without buttons. Whoever can press a button in the channel, or has the link, may
// silence what the message is about, and nothing else: what is silenced and for how long comes from the message. There is no
// list of people who may; the silence's author and the audit log say who did. In a channel that is shared with another
// organisation its people can press the buttons too.
//
// Nothing is kept here. Alertmanager is asked before each silence whether the same person has it already, so a second press, a
// retry or a replay changes nothing.
package silence

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/web"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/amclient"
)

// Ways in, as the metric names them.
const (
	wayAPI    = "api"
	waySlack  = "slack"
	waySocket = "socket_mode"
	wayLink   = "link"
)

// Options of a Silencer.
type Options struct {
	// Config is the configuration in force. It is asked for each request and each connection.
	Config func() *config.Config
	// Emit stores an event in the audit log.
	Emit       func(ctx context.Context, e *lifeboatv1.Event) error
	Logger     *slog.Logger
	Registerer prometheus.Registerer
	Now        func() time.Time
	// HTTP reaches Slack; the Silencer makes its own when nil.
	HTTP *http.Client
	// AllowedResponsePrefix is where answers to Slack may be posted besides https://hooks.slack.com/. It is for tests.
	AllowedResponsePrefix string
	// AlertmanagerURL is how people reach Alertmanager's own pages, as its webhook says (externalURL). It may be nil, and return an
	// empty string while it is not known.
	AlertmanagerURL func() string
}

// Silencer creates silences. It is safe for concurrent use.
type Silencer struct {
	o    Options
	own  bool
	http *http.Client
	// alertmanagers is a client of its own: it carries a password, which is no business of Slack's.
	alertmanagers *http.Client
	metrics       *metrics
	jobs          *jobs
	turns         *turns
	seen          *seen
	pages         *limiter
	presses       *limiter

	mu sync.Mutex
	// told is what was last logged about links that cannot be made, so that a storm of alerts does not say it ten thousand times.
	told string
}

// New makes a Silencer.
func New(o Options) *Silencer {
	s := &Silencer{
		o: o, own: o.HTTP == nil, metrics: newMetrics(o.Registerer), jobs: newJobs(), turns: newTurns(), seen: newSeen(),
		pages: newLimiter(), presses: newLimiter(),
	}
	client := http.Client{Transport: web.NewHostTransport(&http.Transport{
		Proxy: http.ProxyFromEnvironment, TLSHandshakeTimeout: requestTimeout, IdleConnTimeout: time.Minute, ForceAttemptHTTP2: true,
	}, s.slackHost, func() config.TLS { return o.Config().Notifier.Interactions.SlackTLS })}
	if o.HTTP != nil {
		client = *o.HTTP
	}
	// A redirect would carry what we send to somebody whom nobody named.
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	s.http = &client
	s.alertmanagers = amclient.New(func() config.Alertmanager { return o.Config().Alertmanager })
	return s
}

// slackHost is whom slack_tls is for.
func (s *Silencer) slackHost() string {
	u, err := url.Parse(s.o.Config().Notifier.Interactions.SlackAPIURL)
	if err != nil {
		return ""
	}
	return u.Host
}

// Close waits for the silences that people have been promised, and cuts them short when the context ends. Afterwards no press is
// accepted. It may be called twice.
func (s *Silencer) Close(ctx context.Context) error {
	err := s.jobs.close(ctx)
	s.alertmanagers.CloseIdleConnections()
	if s.own {
		s.http.CloseIdleConnections()
	}
	return err
}

type metrics struct {
	silences  *prometheus.CounterVec
	connected *prometheus.GaugeVec
}

func newMetrics(reg prometheus.Registerer) *metrics {
	f := promauto.With(reg)
	return &metrics{
		silences: f.NewCounterVec(prometheus.CounterOpts{
			Name: "lifeboat_silences_total",
			Help: "Silences that people asked for, by way (slack, socket_mode, link, api) and outcome (created, existing, refused, failed).",
		}, []string{"way", "outcome"}),
		connected: f.NewGaugeVec(prometheus.GaugeOpts{
			Name: "lifeboat_slack_socket_mode_connected", Help: "1 while there is a connection to Slack's Socket Mode, else 0. Absent where it is not used.",
		}, nil),
	}
}

func (m *metrics) count(way, outcome string) { m.silences.WithLabelValues(way, outcome).Inc() }

const (
	// maxJobs bounds what is done after its request was answered. Above it a press is refused, and Slack shows that.
	maxJobs = 64
	// jobTimeout is long enough for every Alertmanager of a cluster to be asked, and for the answer to Slack.
	jobTimeout = time.Minute
)

// jobs are what is done after a request was answered.
type jobs struct {
	mu      sync.Mutex
	running int
	closed  bool
	cut     bool
	// idle is closed while nothing runs, and stop when what runs shall end.
	idle, stop chan struct{}
}

func newJobs() *jobs {
	j := &jobs{idle: make(chan struct{}), stop: make(chan struct{})}
	close(j.idle)
	return j
}

// start runs work in the background and returns false when there is too much of it. The context's values are kept and its end is
// not: the request is answered long before the work is done.
func (j *jobs) start(ctx context.Context, work func(ctx context.Context)) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed || j.running >= maxJobs {
		return false
	}
	if j.running == 0 {
		j.idle = make(chan struct{})
	}
	j.running++
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), jobTimeout)
	go func() {
		defer j.end()
		defer cancel()
		done := make(chan struct{})
		go func() {
			defer close(done)
			select {
			case <-j.stop:
				cancel()
			case <-ctx.Done():
			}
		}()
		work(ctx)
		cancel()
		<-done
	}()
	return true
}

func (j *jobs) end() {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.running--; j.running == 0 {
		close(j.idle)
	}
}

// wait returns when nothing runs.
func (j *jobs) wait(ctx context.Context) error {
	j.mu.Lock()
	idle := j.idle
	j.mu.Unlock()
	select {
	case <-idle:
		return nil
	default:
	}
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for silences on their way: %w", ctx.Err())
	}
}

func (j *jobs) close(ctx context.Context) error {
	j.mu.Lock()
	j.closed = true
	j.mu.Unlock()
	err := j.wait(ctx)
	if err == nil {
		return nil
	}
	j.mu.Lock()
	if !j.cut {
		j.cut = true
		close(j.stop)
	}
	j.mu.Unlock()
	return errors.Join(err, j.wait(context.WithoutCancel(ctx)))
}

// turns lets one at a time ask for the same silence, so that the second sees what the first made.
type turns struct {
	mu    sync.Mutex
	taken map[string]chan struct{}
}

func newTurns() *turns { return &turns{taken: map[string]chan struct{}{}} }

func (t *turns) take(ctx context.Context, key string) (release func(), err error) {
	for {
		t.mu.Lock()
		busy, ok := t.taken[key]
		if !ok {
			mine := make(chan struct{})
			t.taken[key] = mine
			t.mu.Unlock()
			return func() {
				t.mu.Lock()
				defer t.mu.Unlock()
				delete(t.taken, key)
				close(mine)
			}, nil
		}
		t.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for the same silence to be created: %w", ctx.Err())
		}
	}
}
