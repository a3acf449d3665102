package nomad

import (
	"archive/tar"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"

	"github.com/hashicorp/nomad/api"
)

// runtimeFields are what Nomad adds to a job and changes while it runs. With them, the job could not be registered again,
// and a region that nobody changed would never be the same twice.
func runtimeFields() []string {
	return []string{
		"Status", "StatusDescription", "CreateIndex", "ModifyIndex", "JobModifyIndex", "NomadTokenID",
	}
}

// historyFields are a version's history, which a new registration gives anew.
func historyFields() []string { return []string{"Stable", "Version", "SubmitTime", "VersionTag"} }

// job writes one job, its submission and its versions.
func (r *reader) job(ctx context.Context, tw *tar.Writer, name name) error {
	var job object
	path := "/v1/job/" + url.PathEscape(name.id)
	_, err := r.get(ctx, path, &api.QueryOptions{Namespace: name.namespace}, &job)
	switch {
	case statusOf(err) == http.StatusForbidden:
		r.deny("job", name.String(), needNamespace)
		return nil
	case statusOf(err) == http.StatusNotFound:
		return r.gone(ctx, name, err)
	case statusOf(err)/100 == 3:
		// Nomad accepts ".." as an id and then cleans the path that asks for it. No client can read such a job.
		r.miss("job "+name.String(), err.Error())
		return nil
	case err != nil:
		return r.client.failed(ctx, "reading job "+name.String(), err)
	}
	var version uint64
	if err := json.Unmarshal(job["Version"], &version); err != nil {
		return r.damaged(ctx, "reading the version of job "+name.String(), err)
	}
	job.without(runtimeFields()...).without(historyFields()...)
	dir := "jobs/" + escape(name.namespace) + "/" + escape(name.id) + "/"
	if err := add(tw, dir+"job.json", map[string]any{"Job": job}); err != nil {
		return err
	}
	r.counts["jobs"]++
	if err := r.submission(ctx, tw, submitted{name, version, dir + "job", dir + "submission.json", "submissions"}); err != nil {
		return err
	}
	return r.versions(ctx, tw, name, version, dir)
}

// submitted says of which version a submission is, and where it goes: the source to a name that is given its ending, and
// the whole to another.
type submitted struct {
	name          name
	version       uint64
	source, whole string
	count         string
}

// submission writes what was submitted. A job that came by the API has none, and Nomad keeps none above 1 MB.
func (r *reader) submission(ctx context.Context, tw *tar.Writer, s submitted) error {
	q := &api.QueryOptions{
		Namespace: s.name.namespace, Params: map[string]string{"version": strconv.FormatUint(s.version, 10)},
	}
	var raw object
	_, err := r.get(ctx, "/v1/job/"+url.PathEscape(s.name.id)+"/submission", q, &raw)
	switch {
	case statusOf(err) == http.StatusNotFound:
		return nil
	case statusOf(err) == http.StatusForbidden:
		r.deny("submission of job", s.name.String(), needNamespace)
		return nil
	case err != nil:
		return r.client.failed(ctx, "reading the submission of job "+s.name.String(), err)
	}
	if text := raw.text("Source"); text != "" {
		ending := ".nomad.hcl"
		if raw.text("Format") == "json" {
			ending = ".nomad.json"
		}
		if err := addBytes(tw, s.source+ending, []byte(text)); err != nil {
			return err
		}
	}
	if err := add(tw, s.whole, raw); err != nil {
		return err
	}
	r.counts[s.count]++
	return nil
}

// versions writes every version that Nomad still has, the current one too, with what makes it a version: its number, its
// tag, when it was submitted, and whether it was stable. The current version's submission is the job's.
func (r *reader) versions(ctx context.Context, tw *tar.Writer, name name, current uint64, dir string) error {
	var answer struct{ Versions []object }
	path := "/v1/job/" + url.PathEscape(name.id) + "/versions"
	_, err := r.get(ctx, path, &api.QueryOptions{Namespace: name.namespace}, &answer)
	switch {
	case statusOf(err) == http.StatusForbidden:
		r.deny("versions of job", name.String(), needNamespace)
		return nil
	case statusOf(err) == http.StatusNotFound:
		r.miss("versions of job "+name.String(), "purged while the jobs were read")
		return nil
	case err != nil:
		return r.client.failed(ctx, "reading the versions of job "+name.String(), err)
	}
	byNumber := make(map[uint64]object, len(answer.Versions))
	for _, v := range answer.Versions {
		var number uint64
		if err := json.Unmarshal(v["Version"], &number); err != nil {
			return r.damaged(ctx, "reading the versions of job "+name.String(), err)
		}
		byNumber[number] = v.without(runtimeFields()...)
	}
	for _, number := range slices.Sorted(maps.Keys(byNumber)) {
		file := dir + "versions/" + strconv.FormatUint(number, 10)
		if err := add(tw, file+".json", map[string]any{"Job": byNumber[number]}); err != nil {
			return err
		}
		r.counts["versions"]++
		if number == current {
			continue
		}
		s := submitted{name, number, file, file + ".submission.json", "version_submissions"}
		if err := r.submission(ctx, tw, s); err != nil {
			return err
		}
	}
	return nil
}

// gone decides what a 404 for a listed job is: one that was purged meanwhile, or a server that contradicts itself.
func (r *reader) gone(ctx context.Context, name name, notFound error) error {
	var stubs []struct{ ID, Namespace string }
	q := &api.QueryOptions{Namespace: name.namespace, Prefix: name.id}
	if _, err := r.get(ctx, "/v1/jobs", q, &stubs); err != nil {
		return r.client.failed(ctx, "listing job "+name.String()+" again", err)
	}
	for _, s := range stubs {
		if s.ID == name.id && s.Namespace == name.namespace {
			return r.damaged(ctx, "reading job "+name.String(), fmt.Errorf("it is listed and cannot be read: %w", notFound))
		}
	}
	r.miss("job "+name.String(), "purged while the jobs were read")
	return nil
}
