// Package nomad reads what is configured in a Nomad region as a tar of files that Nomad's own commands take.
//
//	jobs/<namespace>/<id>/job.json          what `nomad job run -json` takes
//	jobs/<namespace>/<id>/job.nomad.hcl     the source as it was submitted (job.nomad.json when it was JSON)
//	jobs/<namespace>/<id>/submission.json   that source with its variables, if Nomad still has it
//	jobs/<namespace>/<id>/versions/<n>.json each version that Nomad still has, with its number, tag and time; beside it
//	                                        <n>.nomad.hcl and <n>.submission.json, but for the current version
//	namespaces/<name>.json                  for `nomad namespace apply -json`
//	node_pools/<name>.json                  for `nomad node pool apply -json`; not the two that every region has
//	quotas/<name>.json                      Enterprise only
//	acl/policies/<name>.json                for PUT /v1/acl/policy/<name>; <name>.hcl for `nomad acl policy apply`
//	acl/roles/<name>.json                   for PUT /v1/acl/role
//	acl/auth_methods/<name>.json            for PUT /v1/acl/auth-method
//	acl/binding_rules/<id>.json             for PUT /v1/acl/binding-rule
//	acl/tokens/<accessor>.json              to know what there was: a secret id is only in the operator snapshot
//	variables/<namespace>/<path>.json       for `nomad var put @file`, with the values
//	volumes/csi/<namespace>/<id>.json       for PUT /v1/volume/csi/<id>/register
//	volumes/host/<namespace>/<id>.json      for PUT /v1/volume/host/register
//	scheduler_configuration.json            for PUT /v1/operator/scheduler/configuration
//
// Names are escaped as in a URL. Jobs that a periodic or parameterized job started are left out: their parent starts them.
// Tokens that expire are, too: a login makes them. Nomad gives a job that is registered again by the API, without a
// submission, that of the version which the request names, often 0: the source may be older than the job. What the token may not read is listed in SourceInfo.missing, also what
// Nomad leaves out of its lists without a word.
//
// The jobs are those of the list at its raft index; each, and everything else, is then read on its own and may be newer:
// Nomad's API has no view of several things at one index. Only the operator snapshot is one.
//
// What a region does by itself (states, claims, health, indexes) is in no file, so that the same content gives the same
// bytes.
package nomad

import (
	"cmp"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source"
)

// infoTimeout bounds each short question to the agent.
const infoTimeout = 10 * time.Second

// Source is the jobs of one Nomad region, and what else is configured there.
type Source struct {
	cfg  config.Nomad
	opts Options
}

// Options are what a test may want otherwise.
type Options struct {
	// Idle is how long one answer may take; source.DefaultIdle when zero.
	Idle time.Duration
	// PerPage is how many things are listed at once; 500 when zero.
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
	c, err := s.client(s.patience())
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
	c, err := s.client(s.patience())
	if err != nil {
		return nil, err
	}
	readCtx, stop, idle := source.WatchIdle(ctx, s.opts.Idle)
	r := &reader{client: c, idle: idle, perPage: s.opts.PerPage, wanted: wanted(s.cfg.Namespaces)}
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

// describe asks the agent who it is. What it would not tell is listed as missing.
func (c *client) describe(ctx context.Context, t *token, info *lifeboatv1.SourceInfo) error {
	info.Identity = map[string]string{"endpoint": c.shown}
	t.describe(info)
	var self struct {
		Config struct {
			Region  string
			Version struct{ Version string }
		} `json:"config"`
		Member struct{ Name string } `json:"member"`
	}
	const asking = "asking the agent who it is"
	askCtx, cancel := context.WithTimeout(ctx, infoTimeout)
	defer cancel()
	_, err := c.query(askCtx, "/v1/agent/self", &api.QueryOptions{}, &self)
	switch {
	case ctx.Err() != nil:
		return c.failed(ctx, asking, ctx.Err())
	case statusOf(err) == http.StatusForbidden:
		// The rest is whole without it: agent:read is a right of its own.
		info.Missing = append(info.Missing, (&denied{kind: "version, region, server", need: needAgent}).String())
	case err != nil:
		info.Missing = append(info.Missing, "version, region, server: "+c.failed(ctx, asking, err).Error())
	default:
		info.Version = self.Config.Version.Version
		info.Identity["region"] = self.Config.Region
		info.Identity["server"] = self.Member.Name
	}
	return nil
}

// client is what one read needs; it is made anew each time, so that certificates and the token may rotate.
type client struct {
	api     *api.Client
	http    *http.Client
	address string
	secret  string
	shown   string
}

// patience is the wait for the start of an answer. The watch over the stream comes first: it knows why it ended a read.
func (s *Source) patience() time.Duration { return 2 * cmp.Or(s.opts.Idle, source.DefaultIdle) }

// client bounds the wait for the start of an answer.
func (s *Source) client(wait time.Duration) (*client, error) {
	c := &client{shown: source.Endpoint(s.cfg.Address)}
	bad := func(doing string, err error) error {
		return &source.Error{Reason: source.Misconfigured, Endpoint: c.shown, Doing: doing, Err: err}
	}
	if _, err := url.Parse(s.cfg.Address); err != nil || s.cfg.Address == "" {
		return nil, bad("reading the address", errors.New("it is no URL"))
	}
	var err error
	if c.http, c.address, err = source.NewHTTPClient(s.cfg.Address, s.cfg.TLS, wait); err != nil {
		return nil, bad("connecting", err)
	}
	// With an address and a client given, nothing is taken from NOMAD_* variables.
	conf := &api.Config{Address: c.address, HttpClient: c.http}
	if s.cfg.TokenFile != "" {
		if c.secret, err = s.cfg.TokenFile.Read(); err != nil {
			return nil, bad("reading the token", err)
		}
		conf.SecretID = c.secret
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
