package etcd

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source"
)

const (
	// requestTimeout is how long one request may take. Then it is asked again, or looked at what it has done.
	requestTimeout = 30 * time.Second
	// firstWait and longestWait are between two attempts.
	firstWait   = 50 * time.Millisecond
	longestWait = 2 * time.Second
	// namesOnly is how many keys are listed at once where their values do not matter.
	namesOnly = 2000
)

// destination is the cluster that is restored into.
type destination struct {
	client *clientv3.Client
	// patience is how long requests may fail one after the other before the restore gives up.
	patience time.Duration

	granting sync.Mutex
	granted  map[int64]bool
}

// at says where, for an error.
func (d *destination) at() string {
	var all []string
	for _, e := range d.client.Endpoints() {
		all = append(all, source.Endpoint(e))
	}
	return strings.Join(all, ", ")
}

// fatal is why a restore cannot go on at all; nil when it can.
func (d *destination) fatal(doing string, err error) error {
	advice := ""
	switch {
	case errors.Is(err, rpctypes.ErrNoSpace):
		advice = "; make room there (compact and defragment, or raise --quota-backend-bytes), `etcdctl alarm disarm`, and run the " +
			"restore again: what is written stays"
	case errors.Is(err, rpctypes.ErrUserEmpty), errors.Is(err, rpctypes.ErrAuthFailed), errors.Is(err, rpctypes.ErrInvalidAuthToken):
		advice = "; check the user name and the password of the destination"
	case status.Code(err) == codes.DataLoss:
	default:
		return nil
	}
	return fmt.Errorf("%s at %s: %w%s", doing, d.at(), err, advice)
}

// passing says whether an error may be gone at the next attempt. Then nobody knows what a write has done.
func passing(err error) bool {
	if errors.Is(err, rpctypes.ErrTooManyRequests) || errors.Is(err, context.DeadlineExceeded) ||
		errors.Is(err, rpctypes.ErrNotLeader) {
		return true
	}
	switch code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Aborted, codes.Internal, codes.Canceled:
		return true
	}
	return false
}

// code is the status of an answer, however the client has wrapped it.
func code(err error) codes.Code {
	if e, ok := errors.AsType[rpctypes.EtcdError](err); ok {
		return e.Code()
	}
	return status.Code(err)
}

// tooLarge says whether a request is more than the cluster takes at once. gRPC has a limit of its own behind that of etcd.
func tooLarge(err error) bool {
	return errors.Is(err, rpctypes.ErrRequestTooLarge) || errors.Is(err, rpctypes.ErrTooManyOps) ||
		code(err) == codes.ResourceExhausted && !errors.Is(err, rpctypes.ErrNoSpace) && !errors.Is(err, rpctypes.ErrTooManyRequests)
}

// try makes a request, and again as long as its failure may pass. again says that an earlier attempt may have been carried out.
func (d *destination) try(ctx context.Context, doing string, ask func(ctx context.Context) error) (again bool, err error) {
	var since time.Time
	for wait := firstWait; ; wait = min(2*wait, longestWait) {
		asked, cancel := context.WithTimeout(ctx, requestTimeout)
		err = ask(asked)
		cancel()
		if err == nil {
			return again, nil
		}
		if ctx.Err() != nil {
			return again, context.Cause(ctx)
		}
		if f := d.fatal(doing, err); f != nil {
			return again, &stop{f}
		}
		if !passing(err) {
			return again, err
		}
		again = true
		if since.IsZero() {
			since = time.Now()
		}
		if time.Since(since) > d.patience {
			return again, &stop{fmt.Errorf("%s: %s did not answer for %s: %w; run the restore again once it does, which goes on from here",
				doing, d.at(), d.patience, err)}
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return again, context.Cause(ctx)
		}
	}
}

// stop is an error that ends the restore, and not only the attempt to write one key.
type stop struct{ err error }

// Error implements error.
func (s *stop) Error() string { return s.err.Error() }

// Unwrap gives what it is about.
func (s *stop) Unwrap() error { return s.err }

// list reads a part of the destination in the order of keys, page by page, all at one revision.
type list struct {
	dest *destination
	rev  int64 // 0 until the first answer
	rest span
	page []*mvccpb.KeyValue
	end  bool
	// limit and names say how much is asked for.
	limit int64
	names bool
}

// within begins to list another span. A list goes only upwards.
func (l *list) within(sp span, limit int64, names bool) {
	l.rest, l.page, l.end, l.limit, l.names = sp, nil, sp.hi != "" && sp.lo >= sp.hi, limit, names
}

// head is the next key; nil at the end of the span.
func (l *list) head(ctx context.Context) (*mvccpb.KeyValue, error) {
	for len(l.page) == 0 {
		if l.end {
			return nil, nil //nolint:nilnil // the end
		}
		if err := l.fetch(ctx); err != nil {
			return nil, err
		}
	}
	return l.page[0], nil
}

func (l *list) fetch(ctx context.Context) error {
	hi := l.rest.hi
	if hi == "" {
		hi = "\x00" // etcd's way to say that there is no bound
	}
	opts := []clientv3.OpOption{clientv3.WithRange(hi), clientv3.WithLimit(l.limit)}
	if l.names {
		opts = append(opts, clientv3.WithKeysOnly())
	}
	var resp *clientv3.GetResponse
	_, err := l.dest.try(ctx, "listing the keys", func(ctx context.Context) (gerr error) {
		if l.rev > 0 {
			// Any member may answer about a revision that it has; none need be asked whether it is the newest.
			resp, gerr = l.dest.client.Get(ctx, l.rest.lo, append(opts, clientv3.WithRev(l.rev), clientv3.WithSerializable())...)
			if !errors.Is(gerr, rpctypes.ErrCompacted) && !errors.Is(gerr, rpctypes.ErrFutureRev) {
				return gerr
			}
			// The cluster forgot that revision, or this member is behind. Every write is conditional, so that a newer one does as well.
			l.rev = 0
		}
		resp, gerr = l.dest.client.Get(ctx, l.rest.lo, opts...)
		return gerr
	})
	if err != nil {
		if _, ok := errors.AsType[*stop](err); ok || ctx.Err() != nil {
			return err
		}
		return fmt.Errorf("listing the keys of %s from %s on: %w", l.dest.at(), printable(l.rest.lo), err)
	}
	if l.rev == 0 {
		l.rev = resp.Header.GetRevision()
	}
	l.page, l.end = resp.Kvs, !resp.More || len(resp.Kvs) == 0
	if n := len(resp.Kvs); n > 0 {
		l.rest.lo = string(resp.Kvs[n-1].GetKey()) + "\x00"
	}
	return nil
}

// get reads one key as it is now; nil when it is not there.
func (d *destination) get(ctx context.Context, key string) (*mvccpb.KeyValue, error) {
	var resp *clientv3.GetResponse
	_, err := d.try(ctx, "reading a key", func(ctx context.Context) (gerr error) {
		resp, gerr = d.client.Get(ctx, key)
		return gerr
	})
	if err != nil || len(resp.Kvs) == 0 {
		return nil, err
	}
	return resp.Kvs[0], nil
}

// grant makes a lease with the id and the time that it had; one that is there already serves as well.
func (d *destination) grant(ctx context.Context, id, ttl int64, anew bool) error {
	d.granting.Lock()
	defer d.granting.Unlock()
	if d.granted[id] && !anew {
		return nil
	}
	_, err := d.try(ctx, "granting a lease", func(ctx context.Context) error {
		// The client's own Grant lets the cluster choose the id.
		_, gerr := clientv3.RetryLeaseClient(d.client).LeaseGrant(ctx, &etcdserverpb.LeaseGrantRequest{ID: id, TTL: ttl})
		return clientv3.ContextError(ctx, gerr)
	})
	if err != nil && !errors.Is(err, rpctypes.ErrLeaseExist) {
		return fmt.Errorf("granting a lease: %w", err)
	}
	d.granted[id] = true
	return nil
}
