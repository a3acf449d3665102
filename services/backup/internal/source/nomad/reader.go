package nomad

import (
	"archive/tar"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"

	"github.com/hashicorp/nomad/api"

	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source"
)

// reader writes what a region holds into a tar: one job with its versions in memory at a time, and the names of all.
type reader struct {
	client  *client
	idle    *source.Idle
	perPage int32
	wanted  []string // namespaces, sorted; nil for all

	token   token
	roles   map[string]string // names of ACL roles by id
	jobs    []name
	index   int64
	counts  map[string]int64
	missing []string
	worries []string
	denied  []*denied
}

// name is that of something in a namespace.
type name struct{ namespace, id string }

func (n name) String() string { return n.namespace + "/" + n.id }

// compare orders names as their paths in the archive are ordered, so that the same jobs give the same bytes.
func (n name) compare(other name) int {
	return cmp.Or(cmp.Compare(n.namespace, other.namespace), cmp.Compare(n.id, other.id))
}

// wanted sorts the configured namespaces; nil means all.
func wanted(namespaces []string) []string {
	if slices.Contains(namespaces, everything) {
		return nil
	}
	return slices.Compact(slices.Sorted(slices.Values(namespaces)))
}

// spaces are the namespaces to ask for, one after the other.
func (r *reader) spaces() []string {
	if len(r.wanted) == 0 {
		return []string{api.AllNamespacesNamespace}
	}
	return r.wanted
}

// get asks for path and counts the wait.
func (r *reader) get(ctx context.Context, path string, q *api.QueryOptions, out any) (*api.QueryMeta, error) {
	r.idle.Begin()
	defer r.idle.End()
	return r.client.query(ctx, path, q, out)
}

// pages asks for a list, page by page, and returns the meta data of the first one.
func pages[T any](
	ctx context.Context, r *reader, path string, q api.QueryOptions, each func(T) error,
) (first *api.QueryMeta, err error) {
	q.PerPage = r.perPage
	for {
		var page []T
		meta, err := r.get(ctx, path, &q, &page)
		if err != nil {
			return nil, err
		}
		first = cmp.Or(first, meta)
		for _, item := range page {
			if err := each(item); err != nil {
				return nil, err
			}
		}
		if meta.NextToken == "" {
			return first, nil
		}
		q.NextToken = meta.NextToken
	}
}

// list reads who asks and the names of all jobs. What a job list does not hold cannot be missed later, so an error ends
// the read; only of several configured namespaces may some be denied.
func (r *reader) list(ctx context.Context) (err error) {
	r.counts, r.roles = counters(), make(map[string]string)
	if r.token, err = r.client.whoami(ctx, r.get); err != nil {
		return err
	}
	type stub struct{ ID, Namespace, ParentID string }
	var listed int
	for _, ns := range r.spaces() {
		meta, lerr := pages(ctx, r, "/v1/jobs", api.QueryOptions{Namespace: ns}, func(s stub) error {
			if s.ParentID == "" {
				r.jobs = append(r.jobs, name{s.Namespace, s.ID})
			}
			return nil
		})
		switch {
		case statusOf(lerr) == http.StatusForbidden:
			r.deny("jobs of namespace", ns, needNamespace)
			err = lerr
			continue
		case lerr != nil:
			return r.client.failed(ctx, "listing jobs", lerr)
		}
		listed++
		if r.index == 0 {
			r.index = int64(meta.LastIndex) //nolint:gosec // a raft index
		}
	}
	if listed == 0 {
		return r.client.failed(ctx, "listing jobs", fmt.Errorf("%w; the token needs %s", err, needNamespace))
	}
	slices.SortFunc(r.jobs, name.compare)
	r.jobs = slices.Compact(r.jobs)
	return nil
}

// counters are all that is counted, so that what there is none of is told as zero.
func counters() map[string]int64 {
	counts := make(map[string]int64)
	for _, what := range []string{"jobs", "submissions", "versions", "version_submissions", "variables", "csi_volumes", "host_volumes"} {
		counts[what] = 0
	}
	for _, k := range slices.Concat(lists(), details()) {
		counts[k.count] = 0
	}
	return counts
}

// write is the whole archive, in order.
func (r *reader) write(ctx context.Context, w io.Writer) error {
	tw := tar.NewWriter(w)
	for _, job := range r.jobs {
		if err := r.job(ctx, tw, job); err != nil {
			return err
		}
	}
	for _, k := range lists() {
		if err := r.listed(ctx, tw, k); err != nil {
			return err
		}
	}
	for _, k := range details() {
		if err := r.detailed(ctx, tw, k); err != nil {
			return err
		}
	}
	for _, section := range []func(context.Context, *tar.Writer) error{r.variables, r.volumes, r.scheduler} {
		if err := section(ctx, tw); err != nil {
			return err
		}
	}
	if err := tw.Close(); err != nil {
		return fmt.Errorf("ending the archive: %w", err)
	}
	return nil
}

// scheduler writes the scheduler's configuration in the form that its API takes.
func (r *reader) scheduler(ctx context.Context, tw *tar.Writer) error {
	var answer struct{ SchedulerConfig object }
	_, err := r.get(ctx, "/v1/operator/scheduler/configuration", &api.QueryOptions{}, &answer)
	switch {
	case statusOf(err) == http.StatusForbidden:
		r.deny("scheduler configuration", "", needOperator)
		return nil
	case err != nil:
		return r.client.failed(ctx, "reading the scheduler configuration", err)
	case answer.SchedulerConfig == nil:
		return r.damaged(ctx, "reading the scheduler configuration", errors.New("the answer holds none"))
	}
	return add(tw, "scheduler_configuration.json", answer.SchedulerConfig.without("CreateIndex", "ModifyIndex"))
}

func (r *reader) damaged(ctx context.Context, doing string, err error) error {
	return source.Classify(ctx, source.Damaged, r.client.shown, doing, err)
}

// broken makes err, unless it is one already, an error that says where and what.
func (r *reader) broken(ctx context.Context, doing string, err error) error {
	if _, ok := errors.AsType[*source.Error](err); ok || err == nil {
		return err
	}
	return r.client.failed(ctx, doing, err)
}

// miss notes that something could not be read.
func (r *reader) miss(what, why string) { r.missing = append(r.missing, what+": "+why) }

// sortedKeys are a map's keys in the order in which they are written.
func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
