// Package consul reads the whole KV store of a Consul datacenter in one atomic answer, as the JSON that
// `consul kv import` takes.
package consul

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source"
)

// infoTimeout bounds each short question to the agent.
const infoTimeout = 10 * time.Second

// Source is the KV store of one Consul datacenter.
type Source struct {
	cfg  config.Consul
	opts Options
}

// Options are what a test may want otherwise.
type Options struct {
	// Idle is how long the agent may send nothing; source.DefaultIdle when zero.
	Idle time.Duration
}

// New makes a source. Nothing is contacted and no file is read until Open or Ping.
func New(cfg config.Consul, opts Options) *Source { return &Source{cfg: cfg, opts: opts} }

// Format is the extension of what Open gives.
func (s *Source) Format() string { return "json" }

// Ping says whether the agent answers and knows a leader.
func (s *Source) Ping(ctx context.Context) error {
	c, err := s.client()
	if err != nil {
		return err
	}
	defer c.close()
	var leader string
	if err := c.getJSON(ctx, "/v1/status/leader", "asking for the leader", &leader); err != nil {
		return err
	}
	if leader == "" {
		return c.failed(ctx, source.Stale, "asking for the leader", errors.New("it knows none"))
	}
	return nil
}

// Open asks for every key at once. One answer is one read transaction of the server, so it is consistent at its index;
// consistent= makes the leader prove first that it still is one.
func (s *Source) Open(ctx context.Context) (source.Stream, error) {
	c, err := s.client()
	if err != nil {
		return nil, err
	}
	readCtx, stop, idle := source.WatchIdle(ctx, s.opts.Idle)
	idle.Begin()
	resp, err := c.get(readCtx, "/v1/kv/?recurse=true&consistent=") //nolint:bodyclose // the stream closes it
	idle.End()
	st := &stream{ctx: readCtx, stop: stop, idle: idle, client: c, resp: resp}
	switch {
	case err != nil:
		err = c.failed(readCtx, source.Unreachable, "listing keys", err)
	case resp.Header.Get("X-Consul-Results-Filtered-By-ACLs") == "true":
		// A list without the keys that the token may not read looks whole, and would be kept as a good snapshot.
		err = c.failed(readCtx, source.Denied, "listing keys",
			errors.New(`the token may not read every key; give it: key_prefix "" { policy = "read" }`))
	case resp.StatusCode == http.StatusOK:
		err = st.begin()
	case resp.StatusCode == http.StatusNotFound:
		err = st.beginEmpty()
	default:
		err = c.refused(readCtx, resp, "listing keys")
	}
	if err != nil {
		_ = st.Close() // the first error tells more
		return nil, err
	}
	return st, nil
}

// client is what one read needs; it is made anew each time, so that certificates and the token may rotate.
type client struct {
	base  string
	shown string
	token string
	http  *http.Client
}

func (s *Source) client() (*client, error) {
	shown := source.Endpoint(s.cfg.Address)
	bad := func(doing string, err error) error {
		return &source.Error{Reason: source.Misconfigured, Endpoint: shown, Doing: doing, Err: err}
	}
	if _, err := url.Parse(s.cfg.Address); err != nil {
		return nil, bad("reading the address", errors.New("it is no URL"))
	}
	c := &client{base: strings.TrimSuffix(s.cfg.Address, "/"), shown: shown}
	var err error
	if s.cfg.TokenFile != "" {
		if c.token, err = s.cfg.TokenFile.Read(); err != nil {
			return nil, bad("reading the token", err)
		}
	}
	if c.http, err = source.NewHTTPClient(s.cfg.TLS, s.opts.Idle); err != nil {
		return nil, bad("connecting", err)
	}
	return c, nil
}

func (c *client) close() { c.http.CloseIdleConnections() }

func (c *client) get(ctx context.Context, path string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+path, nil)
	if err != nil {
		return nil, fmt.Errorf("making the request: %w", err)
	}
	if c.token != "" {
		req.Header.Set("X-Consul-Token", c.token)
	}
	return c.http.Do(req)
}

// getJSON asks a short question.
func (c *client) getJSON(ctx context.Context, path, doing string, out any) error {
	askCtx, cancel := context.WithTimeout(ctx, infoTimeout)
	defer cancel()
	resp, err := c.get(askCtx, path)
	if err != nil {
		return c.failed(ctx, source.Unreachable, doing, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return c.refused(ctx, resp, doing)
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return c.failed(ctx, source.Damaged, doing, err)
	}
	return nil
}

func (c *client) failed(ctx context.Context, reason source.Reason, doing string, err error) error {
	return source.Classify(ctx, reason, c.shown, doing, err)
}

func (c *client) refused(ctx context.Context, resp *http.Response, doing string) error {
	return c.failed(ctx, source.ReasonOfStatus(resp.StatusCode), doing, source.NewStatusError(resp))
}

// index reads the raft index that an answer belongs to.
func index(h http.Header) (int64, error) {
	n, err := strconv.ParseInt(h.Get("X-Consul-Index"), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("reading X-Consul-Index: %w", err)
	}
	return n, nil
}
