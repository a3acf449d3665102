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
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/consulkv"
)

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
	c, err := consulkv.NewClient(s.cfg, s.opts.Idle)
	if err != nil {
		return err
	}
	defer c.Close()
	var leader string
	if err := c.GetJSON(ctx, "/v1/status/leader", "asking for the leader", &leader); err != nil {
		return err
	}
	if leader == "" {
		return c.Failed(ctx, source.Stale, "asking for the leader", errors.New("it knows none"))
	}
	return nil
}

// Open asks for every key under the prefixes at once. One answer is one read transaction of the server, so it is consistent
// at its index; consistent= makes the leader prove first that it still is one.
func (s *Source) Open(ctx context.Context) (source.Stream, error) {
	c, err := consulkv.NewClient(s.cfg, s.opts.Idle)
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
	prefix := consulkv.CommonPrefix(s.cfg.Prefixes)
	st.token = st.client.WhoAmI(st.ctx)
	path := "/v1/kv/" + (&url.URL{Path: prefix}).EscapedPath() + "?recurse=true&consistent="
	idle.Begin()
	st.resp, err = st.client.Get(st.ctx, path) //nolint:bodyclose // the stream closes it
	idle.End()
	if err != nil {
		return st.failed(source.Unreachable, err)
	}
	switch st.resp.StatusCode {
	case http.StatusOK, http.StatusNotFound:
	case http.StatusForbidden:
		return st.failed(source.Denied, consulkv.Forbidden(source.NewStatusError(st.resp), prefix))
	default:
		return st.client.Refused(st.ctx, st.resp, st.doing)
	}
	if err := st.token.Check(st.resp.Header, prefix, s.cfg.Prefixes); err != nil {
		return st.failed(source.Denied, err)
	}
	if st.resp.StatusCode == http.StatusNotFound {
		return st.beginEmpty(idle)
	}
	return st.begin(idle)
}

// index reads the raft index that an answer belongs to.
func index(h http.Header) (int64, error) {
	n, err := strconv.ParseInt(h.Get("X-Consul-Index"), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("reading X-Consul-Index: %w", err)
	}
	return n, nil
}
