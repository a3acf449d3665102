package nomad

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source"
)

const (
	// workers is how many things of one kind are on their way at once.
	workers = 8
	perPage = 500
	// firstWait doubles until lastWait: some thirteen seconds in all, in which a server that was killed is back or another leads.
	firstWait = 100 * time.Millisecond
	lastWait  = 6400 * time.Millisecond
	// maxWords is how much of what Nomad says is passed on.
	maxWords = 400

	statusNotFound = http.StatusNotFound
	statusConflict = http.StatusConflict
)

// errChanged means that somebody else was quicker: it must be read again.
var errChanged = errors.New("somebody else changed it meanwhile")

// refusedError is Nomad's answer that it did not do it.
type refusedError struct {
	status int
	text   string
}

// Error is the status and what Nomad said.
func (e *refusedError) Error() string {
	if e.text == "" {
		return fmt.Sprintf("Nomad answered %d %s", e.status, http.StatusText(e.status))
	}
	return fmt.Sprintf("Nomad answered %d: %s", e.status, e.text)
}

// masking takes the values of a variable out of what Nomad said.
func (e *refusedError) masking(items json.RawMessage) error {
	const shortest = 4 // what is shorter is found in any sentence
	var values map[string]string
	if json.Unmarshal(items, &values) != nil {
		return &refusedError{status: e.status}
	}
	text := e.text
	for _, v := range values {
		if len(v) >= shortest {
			text = strings.ReplaceAll(text, v, "***")
		}
	}
	return &refusedError{e.status, text}
}

// unreachableError means that there was no answer, so that nobody knows whether it was done.
type unreachableError struct{ err error }

// Error says why there was none.
func (e *unreachableError) Error() string { return "no answer: " + e.err.Error() }

// Unwrap gives the cause.
func (e *unreachableError) Unwrap() error { return e.err }

// statusOf is the status of an answer; 0 when it is none or all went well.
func statusOf(err error) int {
	if refused, ok := errors.AsType[*refusedError](err); ok {
		return refused.status
	}
	return 0
}

// refusal says whether Nomad answered in certain words.
func refusal(err error, words ...string) bool {
	refused, ok := errors.AsType[*refusedError](err)
	return ok && slices.ContainsFunc(words, func(w string) bool { return strings.Contains(refused.text, w) })
}

// transient says whether the same request may be answered otherwise in a moment.
func transient(err error) bool {
	if _, ok := errors.AsType[*unreachableError](err); ok {
		return true
	}
	return statusOf(err) == http.StatusTooManyRequests || statusOf(err) >= http.StatusInternalServerError && refusal(err,
		"No cluster leader", "Not ready to serve consistent reads", "leadership lost", "node is not the leader",
		"rpc error: EOF", "rpc error: failed to get conn", "session shutdown", "raft is already shutdown",
		"timed out enqueuing operation", "scheduler config not initialized yet", "keyring has not been initialized",
		"keyring is not ready")
}

// destination is the region that is restored into.
type destination struct {
	api   *api.Client
	http  *http.Client
	shown string
	// seesAll: nothing is left out of lists, because the token is a management token or there are no ACLs.
	seesAll bool
	// known: Nomad knew the token when the restore began.
	known bool
}

// dial reads certificates and the token. Nothing is contacted.
func dial(cfg config.Nomad) (*destination, error) { return dialPatiently(cfg, 0) }

// dialPatiently is dial for requests whose answers may take longer than usual to begin; wait is how long.
func dialPatiently(cfg config.Nomad, wait time.Duration) (*destination, error) {
	d := &destination{shown: source.Endpoint(cfg.Address)}
	if _, err := url.Parse(cfg.Address); err != nil || cfg.Address == "" {
		return nil, errors.New("restoring into Nomad: its address is no URL")
	}
	hc, address, err := source.NewHTTPClient(cfg.Address, cfg.TLS, wait)
	if err != nil {
		return nil, fmt.Errorf("connecting to Nomad at %s: %w", d.shown, err)
	}
	if t, ok := hc.Transport.(*http.Transport); ok {
		t.MaxIdleConnsPerHost = workers // with fewer, most requests would dial
	}
	d.http = hc
	// With an address and a client given, nothing is taken from NOMAD_* variables.
	conf := &api.Config{Address: address, HttpClient: hc}
	if cfg.TokenFile != "" {
		if conf.SecretID, err = cfg.TokenFile.Read(); err != nil {
			return nil, fmt.Errorf("reading the token for Nomad at %s: %w", d.shown, err)
		}
	}
	if d.api, err = api.NewClient(conf); err != nil {
		return nil, fmt.Errorf("connecting to Nomad at %s: %w", d.shown, err)
	}
	return d, nil
}

func (d *destination) close() { d.http.CloseIdleConnections() }

// get asks for a path. out may be nil.
func (d *destination) get(ctx context.Context, path, namespace string, out any) error {
	_, err := d.query(ctx, path, &api.QueryOptions{Namespace: namespace}, out)
	return err
}

func (d *destination) query(ctx context.Context, path string, q *api.QueryOptions, out any) (*api.QueryMeta, error) {
	if out == nil {
		out = new(json.RawMessage)
	}
	meta, err := d.api.Raw().Query(path, out, q.WithContext(ctx))
	return meta, answered(err)
}

// put writes. out may be nil.
func (d *destination) put(ctx context.Context, path, namespace string, in, out any) error {
	_, err := d.api.Raw().Write(path, in, out, (&api.WriteOptions{Namespace: namespace}).WithContext(ctx))
	return answered(err)
}

// answered sorts an error.
func answered(err error) error {
	if err == nil {
		return nil
	}
	if bad, ok := errors.AsType[api.UnexpectedResponseError](err); ok && bad.HasStatusCode() {
		return &refusedError{bad.StatusCode(), oneLine(bad.Body())}
	}
	_, syntax := errors.AsType[*json.SyntaxError](err)
	_, kind := errors.AsType[*json.UnmarshalTypeError](err)
	if syntax || kind {
		return errStrange // the decoder's words may hold a piece of what it read
	}
	return &unreachableError{err}
}

// errStrange is permanent: a server of something else would answer so again.
var errStrange = errors.New("it answered, and not in Nomad's way: is that the address of a Nomad server?")

// oneLine is what Nomad says, in a length that fits a plan.
func oneLine(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > maxWords {
		s = strings.ToValidUTF8(s[:maxWords], "") + "..."
	}
	return s
}

func decimal(n uint64) string { return strconv.FormatUint(n, 10) }

// patiently tries again while there is no answer or no leader.
func (d *destination) patiently(ctx context.Context, try func() error) error {
	for wait := firstWait; ; wait *= 2 {
		err := d.sure(ctx, try)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case !transient(err):
			return err
		case wait > lastWait:
			return fmt.Errorf("%w: %w", errGone, err)
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
		}
	}
}

// sure tries again when the answer is that the token may not. A server that has just been started says that of every token, until
// it has read its log: it decides who asks before it waits for a leader.
func (d *destination) sure(ctx context.Context, try func() error) error {
	err := try()
	if statusOf(err) != http.StatusForbidden || !d.known {
		return err
	}
	if _, werr := d.whoami(ctx); werr != nil {
		return &unreachableError{err}
	}
	return try()
}

// whoami asks whether Nomad knows the token, and whether it is a management token.
func (d *destination) whoami(ctx context.Context) (management bool, err error) {
	var self struct{ Type string }
	err = d.get(ctx, "/v1/acl/token/self", "", &self)
	return self.Type == "management", err
}

// errGone means that nothing more can be done at the destination.
var errGone = errors.New("it has not answered for a while")

// failed says that a request about all of the destination failed.
func (d *destination) failed(doing string, err error) error {
	return fmt.Errorf("%s at Nomad %s: %w", doing, d.shown, err)
}

// leads asks whether there is a leader.
func (d *destination) leads(ctx context.Context) error {
	var leader string
	if err := d.get(ctx, "/v1/status/leader", "", &leader); err != nil || leader != "" {
		return err
	}
	return &unreachableError{errors.New("it knows no leader")}
}

// ready waits for a leader.
func (d *destination) ready(ctx context.Context) error {
	err := d.patiently(ctx, func() error { return d.leads(ctx) })
	if err != nil {
		return d.failed("asking for the leader", err)
	}
	err = d.patiently(ctx, func() (err error) {
		d.seesAll, err = d.whoami(ctx)
		return err
	})
	d.known = err == nil
	if !d.seesAll && (err == nil || statusOf(err) != 0 && !errors.Is(err, errGone)) {
		// Without ACLs there is a token of no rights, or none. Only then is this no question.
		err = d.patiently(ctx, func() error { return d.get(ctx, "/v1/acl/policies", "", nil) })
		d.seesAll = statusOf(err) == http.StatusBadRequest
	}
	if err != nil && (statusOf(err) == 0 || errors.Is(err, errGone)) {
		return d.failed("asking what the token may do", err)
	}
	return nil // what a token may not do, if it is none, will be seen
}

// pages asks for a list, page by page.
func (d *destination) pages(ctx context.Context, path string, params map[string]string, each func(object) error) error {
	q := &api.QueryOptions{Namespace: api.AllNamespacesNamespace, Params: params, PerPage: perPage}
	for {
		var page []object
		var meta *api.QueryMeta
		err := d.patiently(ctx, func() (err error) {
			page = nil
			meta, err = d.query(ctx, path, q, &page)
			return err
		})
		if err != nil {
			return err
		}
		for _, o := range page {
			if err := each(o); err != nil {
				return err
			}
		}
		if meta.NextToken == "" {
			return nil
		}
		q.NextToken = meta.NextToken
	}
}

// read gets one thing; nil when there is none.
func (d *destination) read(ctx context.Context, k *kind, n name) (object, error) {
	var o object
	err := d.get(ctx, k.path(n), n.space, &o)
	switch {
	case statusOf(err) == statusNotFound:
		return nil, nil
	case err != nil:
		return nil, err
	case k.inside != "":
		var in object
		if err := json.Unmarshal(o[k.inside], &in); err != nil || in == nil {
			return nil, fmt.Errorf("its answer holds no %s", k.inside)
		}
		return in, nil
	}
	return o, nil
}
