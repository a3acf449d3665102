// Package nomad reads the jobs of a Nomad region as a tar of job specifications.
//
//	jobs/<namespace>/<id>/job.json         what `nomad job run -json` takes
//	jobs/<namespace>/<id>/submission.json  what was submitted, with its variables, if Nomad still has it
//	jobs/<namespace>/<id>/job.nomad.hcl    the source in it (job.nomad.json when it was JSON)
//	namespaces/<name>.json
//
// An id is escaped as in a URL. Jobs that a periodic or parameterized job started are left out: their parent starts them.
// The jobs are those of the list at its raft index; each is then read on its own and may be newer.
package nomad

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source"
)

// infoTimeout bounds each short question to the agent.
const infoTimeout = 10 * time.Second

// Source is the jobs of one Nomad region.
type Source struct {
	cfg  config.Nomad
	opts Options
}

// Options are what a test may want otherwise.
type Options struct {
	// Idle is how long one answer may take; source.DefaultIdle when zero.
	Idle time.Duration
	// PerPage is how many jobs are listed at once; 500 when zero.
	PerPage int32
}

// New makes a source. Nothing is contacted and no file is read until Open or Ping.
func New(cfg config.Nomad, opts Options) *Source {
	if opts.PerPage == 0 {
		opts.PerPage = 500
	}
	return &Source{cfg: cfg, opts: opts}
}

// Format is the extension of what Open gives.
func (s *Source) Format() string { return "tar" }

// Ping says whether the agent answers and knows a leader.
func (s *Source) Ping(ctx context.Context) error {
	c, err := s.client()
	if err != nil {
		return err
	}
	defer c.close()
	ctx, cancel := context.WithTimeout(ctx, infoTimeout)
	defer cancel()
	var leader string
	if _, err := c.query(ctx, "/v1/status/leader", &api.QueryOptions{}, &leader); err != nil {
		return c.failed(ctx, "asking for the leader", err)
	}
	if leader == "" {
		return source.Classify(ctx, source.Stale, c.shown, "asking for the leader", errors.New("it knows none"))
	}
	return nil
}

// Open lists the jobs and starts to read them.
func (s *Source) Open(ctx context.Context) (source.Stream, error) {
	c, err := s.client()
	if err != nil {
		return nil, err
	}
	readCtx, stop, idle := source.WatchIdle(ctx, s.opts.Idle)
	r := &reader{client: c, idle: idle, perPage: s.opts.PerPage}
	if err := r.list(readCtx); err != nil {
		stop()
		c.close()
		return nil, err
	}
	st := &stream{ctx: readCtx, stop: stop, client: c, reader: r, done: make(chan struct{})}
	var pw *io.PipeWriter
	st.pipe, pw = io.Pipe()
	// Without this a reader would get the rest of a large job before it learns of the cancellation.
	st.unhook = context.AfterFunc(readCtx, func() {
		pw.CloseWithError(c.failed(readCtx, "reading jobs", readCtx.Err()))
	})
	go func() {
		defer close(st.done)
		pw.CloseWithError(r.write(readCtx, pw))
	}()
	return st, nil
}

// client is what one read needs; it is made anew each time, so that certificates and the token may rotate.
type client struct {
	api   *api.Client
	http  *http.Client
	shown string
}

func (s *Source) client() (*client, error) {
	c := &client{shown: source.Endpoint(s.cfg.Address)}
	bad := func(doing string, err error) error {
		return &source.Error{Reason: source.Misconfigured, Endpoint: c.shown, Doing: doing, Err: err}
	}
	if _, err := url.Parse(s.cfg.Address); err != nil || s.cfg.Address == "" {
		return nil, bad("reading the address", errors.New("it is no URL"))
	}
	var err error
	if c.http, err = source.NewHTTPClient(s.cfg.TLS, s.opts.Idle); err != nil {
		return nil, bad("connecting", err)
	}
	// With an address and a client given, nothing is taken from NOMAD_* variables.
	conf := &api.Config{Address: s.cfg.Address, HttpClient: c.http}
	if s.cfg.TokenFile != "" {
		if conf.SecretID, err = s.cfg.TokenFile.Read(); err != nil {
			return nil, bad("reading the token", err)
		}
	}
	if c.api, err = api.NewClient(conf); err != nil {
		return nil, bad("connecting", err)
	}
	return c, nil
}

func (c *client) close() { c.http.CloseIdleConnections() }

// query gets a path and keeps the answer's meta data.
func (c *client) query(ctx context.Context, path string, q *api.QueryOptions, out any) (*api.QueryMeta, error) {
	return c.api.Raw().Query(path, out, q.WithContext(ctx))
}

func (c *client) failed(ctx context.Context, doing string, err error) error {
	reason := source.Unreachable
	if code := statusOf(err); code != 0 {
		reason = source.ReasonOfStatus(code)
	}
	return source.Classify(ctx, reason, c.shown, doing, err)
}

// statusOf is the HTTP status that an error carries; 0 when there was no answer.
func statusOf(err error) int {
	if bad, ok := errors.AsType[api.UnexpectedResponseError](err); ok {
		return bad.StatusCode()
	}
	return 0
}
