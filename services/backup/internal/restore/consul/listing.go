package consul

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/consulkv"
)

// listing is the destination's keys of one region, in their order, as one read transaction or, when it breaks, several.
type listing struct {
	dest    *destination
	regions *regions
	region  *region
	odd     map[string]state // where odd names go

	ctx   context.Context //nolint:containedctx // of the answer that is being read; it ends when that stalls
	resp  *http.Response
	scan  *consulkv.Scanner
	stop  context.CancelFunc
	found *found // what peek gives
	last  string // what was taken before it
	seen  string // what the list at hand gave before it
	ended bool
}

// found is a key at the destination. The value is base64, and valid until take.
type found struct {
	name string
	state
	value []byte
}

// newListing makes one. Nothing is asked until peek.
func newListing(d *destination, rs *regions, r *region, odd map[string]state) *listing {
	return &listing{dest: d, regions: rs, region: r, odd: odd}
}

// peek gives the next key; nil at the end. A list that breaks is asked for again, and read up to where it was.
func (l *listing) peek(ctx context.Context) (*found, error) {
	if l.found != nil || l.ended {
		return l.found, nil
	}
	f, err := l.next(ctx)
	if err != nil && !l.dest.final(ctx, err) {
		f, err = retry(ctx, l.dest, doingList, func() (*found, error) {
			l.close()
			return l.next(ctx)
		})
	}
	if err != nil {
		return nil, err
	}
	l.found, l.ended = f, f == nil
	return f, nil
}

// take goes past what peek gave.
func (l *listing) take() { l.last, l.found = l.found.name, nil }

func (l *listing) close() {
	if l.stop != nil {
		l.stop()
	}
	if l.resp != nil {
		_ = l.resp.Body.Close() // what was read was checked
	}
	l.resp, l.scan, l.stop = nil, nil, nil
}

const doingList = "listing the destination's keys"

func (l *listing) next(ctx context.Context) (*found, error) {
	if l.resp == nil {
		if empty, err := l.begin(ctx); empty || err != nil {
			return nil, err
		}
	}
	for {
		e, err := l.scan.Next()
		if errors.Is(err, io.EOF) {
			return nil, nil
		}
		if err != nil {
			return nil, l.broken(err)
		}
		name := consulkv.NameOf(e.Key)
		s := state{index: e.ModifyIndex, flags: e.Flags, size: e.Size}
		switch {
		case !strings.HasPrefix(name, l.region.to) || l.regions.at(name) != l.region:
			continue
		case odd(name):
			l.odd[name] = s
			continue
		case name <= l.seen && l.seen != "":
			return nil, l.broken(fmt.Errorf("%w: it is not in order", consulkv.ErrDamaged))
		}
		if l.seen = name; name > l.last {
			return &found{name, s, e.Value}, nil
		}
	}
}

func (l *listing) broken(err error) error {
	if errors.Is(err, consulkv.ErrDamaged) {
		return l.dest.Failed(l.ctx, source.Damaged, doingList, err)
	}
	return l.dest.Failed(l.ctx, source.Unreachable, doingList, err)
}

// begin asks for the list.
func (l *listing) begin(ctx context.Context) (empty bool, err error) {
	prefix := consulkv.CommonPrefix([]string{l.region.to})
	ctx, stop, idle := source.WatchIdle(ctx, l.dest.set.idle)
	l.ctx, l.stop, l.seen = ctx, stop, ""
	path := "/v1/kv/" + (&url.URL{Path: prefix}).EscapedPath() + "?recurse=true&consistent="
	idle.Begin()
	l.resp, err = l.dest.do(ctx, http.MethodGet, path, nil) //nolint:bodyclose // close does
	idle.End()
	if err != nil {
		l.resp = nil
		return false, l.dest.Failed(ctx, source.Unreachable, doingList, err)
	}
	switch l.resp.StatusCode {
	case http.StatusOK, http.StatusNotFound:
	case http.StatusForbidden:
		return false, l.dest.Failed(ctx, source.Denied, doingList, consulkv.Forbidden(source.NewStatusError(l.resp), prefix))
	default:
		return false, l.dest.refused(ctx, doingList, source.NewStatusError(l.resp))
	}
	if err = l.dest.token.Check(l.resp.Header, prefix, nil); err != nil {
		return false, l.dest.Failed(ctx, source.Denied, doingList, err)
	}
	l.scan = consulkv.NewScanner(watched{l.resp.Body, idle}, consulkv.API())
	if l.resp.StatusCode == http.StatusOK {
		if err = l.scan.Begin(); err != nil {
			return false, l.broken(err)
		}
		return false, nil
	}
	// Consul says so when there is no key. A page that somebody else sent has a body, or lacks the index.
	first, err := io.ReadAll(io.LimitReader(watched{l.resp.Body, idle}, 1))
	if err != nil {
		return false, l.broken(err)
	}
	if l.resp.Header.Get("X-Consul-Index") == "" || len(first) > 0 {
		return false, l.dest.Failed(ctx, source.Damaged, doingList, errors.New("it answered 404, and not in Consul's way"))
	}
	return true, nil
}

// watched is an answer that is read from under a watch for silence.
type watched struct {
	r    io.Reader
	idle *source.Idle
}

func (w watched) Read(p []byte) (int, error) {
	w.idle.Begin()
	defer w.idle.End()
	return w.r.Read(p)
}
