package nomad

import (
	"archive/tar"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source"
)

// reader writes what a region holds into a tar: one job in memory at a time, and the names of all.
type reader struct {
	client  *client
	idle    *source.Idle
	perPage int32

	jobs    []jobName
	index   int64
	counts  map[string]int64
	missing []string
}

type jobName struct{ namespace, id string }

func (j jobName) String() string { return j.namespace + "/" + j.id }

// compare orders jobs as their paths in the archive are ordered, so that the same jobs give the same bytes.
func (j jobName) compare(other jobName) int {
	return cmp.Or(cmp.Compare(j.namespace, other.namespace), cmp.Compare(j.id, other.id))
}

// runtimeFields are what Nomad adds to a job specification. With them, the job could not be registered again.
func runtimeFields() []string {
	return []string{
		"Status", "StatusDescription", "Stable", "Version", "SubmitTime", "CreateIndex", "ModifyIndex",
		"JobModifyIndex", "NomadTokenID", "VersionTag",
	}
}

// get asks for path and counts the wait.
func (r *reader) get(ctx context.Context, path string, q *api.QueryOptions, out any) (*api.QueryMeta, error) {
	r.idle.Begin()
	defer r.idle.End()
	return r.client.query(ctx, path, q, out)
}

// list reads the names of all jobs. What a job list does not hold cannot be missed later, so no error is forgiven here.
func (r *reader) list(ctx context.Context) error {
	r.counts = map[string]int64{"jobs": 0, "namespaces": 0, "submissions": 0}
	q := &api.QueryOptions{Namespace: api.AllNamespacesNamespace, PerPage: r.perPage}
	for {
		var stubs []struct{ ID, Namespace, ParentID string }
		meta, err := r.get(ctx, "/v1/jobs", q, &stubs)
		if err != nil {
			return r.client.failed(ctx, "listing jobs", err)
		}
		if r.index == 0 {
			r.index = int64(meta.LastIndex) //nolint:gosec // a raft index
		}
		for _, s := range stubs {
			if s.ParentID == "" {
				r.jobs = append(r.jobs, jobName{s.Namespace, s.ID})
			}
		}
		if meta.NextToken == "" {
			break
		}
		q.NextToken = meta.NextToken
	}
	slices.SortFunc(r.jobs, jobName.compare)
	r.jobs = slices.Compact(r.jobs)
	return nil
}

// write is the whole archive, in order.
func (r *reader) write(ctx context.Context, w io.Writer) error {
	tw := tar.NewWriter(w)
	for _, name := range r.jobs {
		if err := r.job(ctx, tw, name); err != nil {
			return err
		}
	}
	if err := r.namespaces(ctx, tw); err != nil {
		return err
	}
	if err := tw.Close(); err != nil {
		return fmt.Errorf("ending the archive: %w", err)
	}
	return nil
}

// job writes one job and its submission.
func (r *reader) job(ctx context.Context, tw *tar.Writer, name jobName) error {
	var job map[string]json.RawMessage
	path := "/v1/job/" + url.PathEscape(name.id)
	q := &api.QueryOptions{Namespace: name.namespace}
	_, err := r.get(ctx, path, q, &job)
	switch {
	case statusOf(err) == http.StatusForbidden:
		r.miss("job", name, err)
		return nil
	case statusOf(err) == http.StatusNotFound:
		return r.gone(ctx, name, err)
	case statusOf(err)/100 == 3:
		// Nomad accepts ".." as an id and then cleans the path that asks for it. No client can read such a job.
		r.miss("job", name, err)
		return nil
	case err != nil:
		return r.client.failed(ctx, "reading job "+name.String(), err)
	}
	var version uint64
	if err := json.Unmarshal(job["Version"], &version); err != nil {
		return source.Classify(ctx, source.Damaged, r.client.shown, "reading the version of job "+name.String(), err)
	}
	for _, field := range runtimeFields() {
		delete(job, field)
	}
	dir := "jobs/" + escape(name.namespace) + "/" + escape(name.id) + "/"
	if err := add(tw, dir+"job.json", map[string]any{"Job": job}); err != nil {
		return err
	}
	r.counts["jobs"]++
	return r.submission(ctx, tw, dir, path, name, version)
}

// submission writes what was submitted. A job that came by the API has none.
func (r *reader) submission(
	ctx context.Context, tw *tar.Writer, dir, path string, name jobName, version uint64,
) error {
	q := &api.QueryOptions{
		Namespace: name.namespace, Params: map[string]string{"version": strconv.FormatUint(version, 10)},
	}
	var raw json.RawMessage
	_, err := r.get(ctx, path+"/submission", q, &raw)
	switch {
	case statusOf(err) == http.StatusNotFound:
		return nil
	case statusOf(err) == http.StatusForbidden:
		r.miss("submission of job", name, err)
		return nil
	case err != nil:
		return r.client.failed(ctx, "reading the submission of job "+name.String(), err)
	}
	var sub struct{ Source, Format string }
	if err := json.Unmarshal(raw, &sub); err != nil {
		return source.Classify(ctx, source.Damaged, r.client.shown, "reading the submission of job "+name.String(), err)
	}
	if sub.Source != "" {
		file := "job.nomad.hcl"
		if sub.Format == "json" {
			file = "job.nomad.json"
		}
		if err := addBytes(tw, dir+file, []byte(sub.Source)); err != nil {
			return err
		}
	}
	if err := addBytes(tw, dir+"submission.json", raw); err != nil {
		return err
	}
	r.counts["submissions"]++
	return nil
}

// gone decides what a 404 for a listed job is: one that was purged meanwhile, or a server that contradicts itself.
func (r *reader) gone(ctx context.Context, name jobName, notFound error) error {
	var stubs []struct{ ID, Namespace string }
	q := &api.QueryOptions{Namespace: name.namespace, Prefix: name.id}
	if _, err := r.get(ctx, "/v1/jobs", q, &stubs); err != nil {
		return r.client.failed(ctx, "listing job "+name.String()+" again", err)
	}
	for _, s := range stubs {
		if s.ID == name.id && s.Namespace == name.namespace {
			return source.Classify(ctx, source.Damaged, r.client.shown, "reading job "+name.String(),
				fmt.Errorf("it is listed and cannot be read: %w", notFound))
		}
	}
	r.missing = append(r.missing, "job "+name.String()+": purged while the jobs were read")
	return nil
}

// namespaces writes every namespace that the token may see.
func (r *reader) namespaces(ctx context.Context, tw *tar.Writer) error {
	var all []map[string]json.RawMessage
	_, err := r.get(ctx, "/v1/namespaces", &api.QueryOptions{}, &all)
	switch {
	case statusOf(err) == http.StatusForbidden:
		r.missing = append(r.missing, "namespaces: "+err.Error())
		return nil
	case err != nil:
		return r.client.failed(ctx, "listing namespaces", err)
	}
	names := make([]string, len(all))
	byName := make(map[string]map[string]json.RawMessage, len(all))
	for i, ns := range all {
		if err := json.Unmarshal(ns["Name"], &names[i]); err != nil || names[i] == "" {
			return source.Classify(ctx, source.Damaged, r.client.shown, "listing namespaces",
				errors.Join(errors.New("one has no name"), err))
		}
		for _, field := range []string{"CreateIndex", "ModifyIndex", "Hash"} {
			delete(ns, field)
		}
		byName[names[i]] = ns
	}
	slices.Sort(names)
	for _, name := range names {
		if err := add(tw, "namespaces/"+escape(name)+".json", byName[name]); err != nil {
			return err
		}
		r.counts["namespaces"]++
	}
	return nil
}

func (r *reader) miss(what string, name jobName, err error) {
	r.missing = append(r.missing, what+" "+name.String()+": "+err.Error())
}

// escape makes one path element of a name. What url.PathEscape leaves alone and a file system does not is escaped too.
func escape(name string) string {
	s := url.PathEscape(name)
	if s == "." || s == ".." {
		return strings.ReplaceAll(s, ".", "%2E")
	}
	return s
}

func add(tw *tar.Writer, name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encoding %s: %w", name, err)
	}
	return addBytes(tw, name, append(b, '\n'))
}

// addBytes adds a file. Its header says nothing of when and by whom, so that the same jobs give the same bytes.
func addBytes(tw *tar.Writer, name string, b []byte) error {
	err := tw.WriteHeader(&tar.Header{
		Typeflag: tar.TypeReg, Name: name, Mode: 0o600, Size: int64(len(b)), ModTime: time.Unix(0, 0),
		Format: tar.FormatPAX,
	})
	if err != nil {
		return fmt.Errorf("adding %s: %w", name, err)
	}
	if _, err := tw.Write(b); err != nil {
		return fmt.Errorf("adding %s: %w", name, err)
	}
	return nil
}
