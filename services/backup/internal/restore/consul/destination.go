package consul

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/consulkv"
)

const (
	// What failed is tried again after firstPause, and then after twice as long each time, up to mostPause.
	firstPause = 100 * time.Millisecond
	mostPause  = 5 * time.Second
	// maxAnswer is the largest answer that is believed: one value, as base64. Consul's own limit is 512 KiB, and can be raised.
	maxAnswer = 1 << 30
)

// destination is the Consul that is written to.
type destination struct {
	*consulkv.Client
	token consulkv.Token
	set   settings
	// reached says that it has answered, in whatever way.
	reached atomic.Bool
}

func newDestination(ctx context.Context, cfg config.Consul, set settings) (*destination, error) {
	c, err := consulkv.NewClient(cfg, set.idle)
	if err != nil {
		return nil, err
	}
	if t, ok := c.HTTP.Transport.(*http.Transport); ok {
		t.MaxIdleConnsPerHost = set.inFlight + 2 // for each transaction, and the lists
	}
	return &destination{Client: c, token: c.WhoAmI(ctx), set: set}, nil
}

// do is Client.Do.
func (d *destination) do(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	resp, err := d.Do(ctx, method, path, body)
	if err == nil {
		d.reached.Store(true)
	}
	return resp, err
}

// retry does something until it succeeds, or fails in a way that doing it again would not change, or the patience is at its end.
func retry[T any](ctx context.Context, d *destination, doing string, do func() (T, error)) (T, error) {
	e := backoff.NewExponentialBackOff()
	e.InitialInterval, e.MaxInterval, e.Multiplier = firstPause, mostPause, 2
	var last error
	out, err := backoff.Retry(ctx, func() (T, error) {
		var out T
		out, last = do()
		if d.final(ctx, last) {
			return out, backoff.Permanent(last)
		}
		return out, last
	}, backoff.WithBackOff(e), backoff.WithMaxElapsedTime(d.set.patience))
	switch {
	case err == nil:
		return out, nil
	case ctx.Err() != nil:
		return out, d.Failed(ctx, source.Canceled, doing, err)
	case d.final(ctx, last):
		return out, last
	}
	return out, fmt.Errorf("giving up after %s: %w", d.set.patience, last)
}

// final says whether an error would come again. Of a destination that never let anybody connect that is taken for granted: most
// likely its address is mistyped. Patience is for one that goes away.
func (d *destination) final(ctx context.Context, err error) bool {
	if err == nil {
		return false
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" && !d.reached.Load() {
		return true
	}
	e, ok := errors.AsType[*source.Error](err)
	return ctx.Err() != nil || !ok || !e.Retryable() || e.Reason == source.Damaged
}

// refused is an answer that is none. A server in trouble says 5xx, and one that is asked for too much 429; the rest stays so.
func (d *destination) refused(ctx context.Context, doing string, err *source.StatusError) error {
	reason := source.Misconfigured
	switch {
	case err.Status == http.StatusTooManyRequests || err.Status >= http.StatusInternalServerError:
		reason = source.Unreachable
	case source.ReasonOfStatus(err.Status) == source.Denied:
		reason = source.Denied
	}
	return d.Failed(ctx, reason, doing, err)
}

// answer is what came back.
type answer struct {
	status int // 200 or a 4xx other than 429
	body   []byte
	lost   bool // an earlier attempt may have taken effect without an answer
}

// error is what an answer other than 200 says.
func (a answer) error() *source.StatusError {
	return source.NewStatusError(&http.Response{StatusCode: a.status, Body: io.NopCloser(strings.NewReader(string(a.body)))})
}

// ask sends a request until it is answered. body is called for each attempt.
func (d *destination) ask(ctx context.Context, doing, method, path string, body func() io.Reader) (answer, error) {
	var lost bool
	return retry(ctx, d, doing, func() (answer, error) {
		a := answer{lost: lost}
		resp, err := d.do(ctx, method, path, body())
		if err != nil {
			lost = true
			return a, d.Failed(ctx, source.Unreachable, doing, err)
		}
		defer resp.Body.Close()
		a.status = resp.StatusCode
		if a.status == http.StatusTooManyRequests || a.status >= http.StatusInternalServerError {
			lost = lost || a.status != http.StatusTooManyRequests
			return a, d.refused(ctx, doing, source.NewStatusError(resp))
		}
		if a.body, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer)); err != nil {
			lost = true
			return a, d.Failed(ctx, source.Unreachable, doing, err)
		}
		return a, nil
	})
}

// look reads one key, whatever its name, and gives its value as base64.
func (d *destination) look(ctx context.Context, name string) (state, []byte, error) {
	const doing = "reading a key"
	question, err := json.Marshal([]any{map[string]any{"KV": map[string]string{"Verb": "get", "Key": name}}})
	if err != nil {
		return state{}, nil, fmt.Errorf("making the request: %w", err)
	}
	body := func() io.Reader { return strings.NewReader(string(question)) }
	a, err := d.ask(ctx, doing, http.MethodPut, "/v1/txn?consistent=", body)
	if err != nil {
		return state{}, nil, err
	}
	var got struct {
		Results []struct {
			KV struct {
				Flags, ModifyIndex uint64
				Value              []byte
			}
		}
		Errors []opError
	}
	if a.status != http.StatusOK && a.status != http.StatusConflict {
		return state{}, nil, d.refused(ctx, doing, a.error())
	}
	if err := json.Unmarshal(a.body, &got); err != nil {
		return state{}, nil, d.Failed(ctx, source.Damaged, doing, errors.New("the answer is no transaction's"))
	}
	switch {
	case len(got.Errors) == 1 && strings.HasSuffix(got.Errors[0].What, "doesn't exist"):
		return state{}, nil, nil
	case len(got.Results) != 1:
		return state{}, nil, d.Failed(ctx, source.Denied, doing, fmt.Errorf("the token may not read %q", name))
	}
	kv := got.Results[0].KV
	there := state{index: kv.ModifyIndex, flags: kv.Flags, size: int64(len(kv.Value))}
	return there, base64.StdEncoding.AppendEncode(nil, kv.Value), nil
}
