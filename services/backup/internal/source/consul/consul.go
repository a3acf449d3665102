// Package consul reads a Consul datacenter: the keys of its KV store (New), as the JSON that `consul kv import` takes, and the
// raft snapshot of all it holds (NewRaft), as `consul snapshot restore` takes it.
//
// # Prefixes
//
// One answer to ?recurse is one read transaction of the server, and two answers are two. So several prefixes are read as one:
// everything that begins with what they have in common, of which the rest is left out while it passes. A transaction of
// several get-tree operations would be atomic, too, but its answer has no raft index and no header that tells of keys that
// were left out.
//
// # Rights
//
// Consul leaves out the keys that a token may not read, and answers 200, or 404 when none is left. It tells so in the header
// X-Consul-Results-Filtered-By-ACLs, since 1.11, and never to a request without a token. What this package makes of it:
//
//   - The header is there: the read is refused, and the error says which rule is missing. That is so as well when the keys
//     that were left out are under none of the configured prefixes, but under what they have in common: with that token no
//     single read can give all prefixes, and Consul does not tell which keys it left out. The rule for the common prefix
//     helps, or a target for each prefix.
//   - No token is set and ACLs are on: refused, unless the default policy is "allow" and the anonymous token has no rights of
//     its own, which could only take some away.
//   - The token is unknown, has expired, or may not list (403): refused.
//   - No key exists under the common prefix: an empty snapshot. A token without any right sees that as well, and its first
//     key fails the read.
//   - Consul is older than 1.11 and its ACLs are on: a worry in SourceInfo, unless the token is a management token.
//
// Accessor and policies of the token go into SourceInfo, so that a later snapshot that holds less can be told from a token
// that may read less.
package consul

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
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
	c, err := s.client(s.opts.Idle)
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

// Open asks for every key under the prefixes at once. One answer is one read transaction of the server, so it is consistent
// at its index; consistent= makes the leader prove first that it still is one.
func (s *Source) Open(ctx context.Context) (source.Stream, error) {
	c, err := s.client(s.opts.Idle)
	if err != nil {
		return nil, err
	}
	readCtx, stop, idle := source.WatchIdle(ctx, s.opts.Idle)
	st := &Stream{reading: reading{ctx: readCtx, stop: stop, client: c, doing: "listing keys"}, prefixes: s.cfg.Prefixes}
	if err := s.list(st, idle); err != nil {
		_ = st.Close() // the first error tells more
		return nil, err
	}
	return st, nil
}

// list begins a read.
func (s *Source) list(st *Stream, idle *source.Idle) (err error) {
	prefix := commonPrefix(s.cfg.Prefixes)
	st.token = st.client.whoami(st.ctx)
	path := "/v1/kv/" + (&url.URL{Path: prefix}).EscapedPath() + "?recurse=true&consistent="
	idle.Begin()
	st.resp, err = st.client.get(st.ctx, path) //nolint:bodyclose // the stream closes it
	idle.End()
	if err != nil {
		return st.failed(source.Unreachable, err)
	}
	switch st.resp.StatusCode {
	case http.StatusOK, http.StatusNotFound:
	case http.StatusForbidden:
		return st.failed(source.Denied, forbidden(source.NewStatusError(st.resp), prefix))
	default:
		return st.client.refused(st.ctx, st.resp, st.doing)
	}
	if err := st.token.check(st.resp.Header, prefix, s.cfg.Prefixes); err != nil {
		return st.failed(source.Denied, err)
	}
	if st.resp.StatusCode == http.StatusNotFound {
		return st.beginEmpty(idle)
	}
	return st.begin(idle)
}

// client is what one read needs; it is made anew each time, so that certificates and the token may rotate.
type client struct {
	base  string
	shown string
	token string
	http  *http.Client
}

// client makes one whose answers begin within header; source.DefaultIdle when zero.
func (s *Source) client(header time.Duration) (*client, error) {
	shown := source.Endpoint(s.cfg.Address)
	bad := func(doing string, err error) error {
		return &source.Error{Reason: source.Misconfigured, Endpoint: shown, Doing: doing, Err: err}
	}
	if _, err := url.Parse(s.cfg.Address); err != nil {
		return nil, bad("reading the address", errors.New("it is no URL"))
	}
	c := &client{shown: shown}
	var err error
	if s.cfg.TokenFile != "" {
		if c.token, err = s.cfg.TokenFile.Read(); err != nil {
			return nil, bad("reading the token", err)
		}
	}
	if c.http, c.base, err = source.NewHTTPClient(s.cfg.Address, s.cfg.TLS, header); err != nil {
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
