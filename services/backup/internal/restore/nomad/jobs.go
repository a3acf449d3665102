package nomad

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/hashicorp/nomad/api"
)

// enforced begins Nomad's answer to a registration that was overtaken (RegisterEnforceIndexErrPrefix).
const enforced = "Enforcing job modify index"

// jobStrip is what Nomad sets in a job, and its region, which is the destination's.
func jobStrip() []string {
	return []string{
		"Status", "StatusDescription", "CreateIndex", "ModifyIndex", "JobModifyIndex", "NomadTokenID",
		"Stable", "Version", "SubmitTime", "VersionTag", "Region",
	}
}

func jobs() *kind {
	return named(kind{
		id: kindJob, dir: "jobs/", key: "ID", list: "/v1/jobs", spaced: true, guarded: true, parallel: true, wrapped: "Job",
		index: "JobModifyIndex", rights: `namespace "*" { capabilities = ["list-jobs", "read-job", "submit-job"] }`,
		strip:    jobStrip(),
		identity: func(n name, o object) bool { return o.text("ID") == n.id && o.text("Namespace") == n.space },
		// A job that another one started comes and goes with it.
		ignored: func(o object) bool { return o.text("ParentID") != "" },
		skip:    skipJob,
		needs: func(n name, o object) []need {
			all := inNamespace(n, o)
			if pool := o.text("NodePool"); pool != "" {
				all = append(all, need{kindPool, pool})
			}
			return all
		},
		differ: differJob,
		refuse: func(ctx context.Context, d *destination, w *writing, m mode) error {
			if m != modePlan {
				return nil // Nomad says so itself
			}
			_, err := d.plan(ctx, w.thing.name, w.want, false)
			return err
		},
		write: registerJob,
	}, "/v1/job/")
}

func skipJob(o object) string {
	var multi struct{ Regions []json.RawMessage }
	switch {
	case json.Unmarshal(o["Multiregion"], &multi) == nil && len(multi.Regions) > 0:
		return "it is a multiregion job, and to register it here is to register it in every region: run its source once, " +
			"nomad job run job.nomad.hcl"
	case o.text("ParentID") != "", o.flag("Dispatched"):
		return "another job started it"
	}
	return ""
}

// differJob asks for a plan when fields differ: it may be that only the versions of Nomad do.
func differJob(ctx context.Context, d *destination, w *writing) ([]string, error) {
	diff := differences(w.want, w.seen.without(jobStrip()...))
	if len(diff) == 0 {
		return nil, nil
	}
	plan, err := d.plan(ctx, w.thing.name, w.want, true)
	if statusOf(err) != 0 && !transient(err) { // whatever Nomad has against the job, it is not the one that is there
		return diff, nil
	}
	return changed(plan.Diff), err
}

func registerJob(ctx context.Context, d *destination, w *writing) error {
	body := map[string]any{"Job": w.want, "EnforceIndex": true, "JobModifyIndex": w.index()}
	if w.thing.submission != nil {
		body["Submission"] = json.RawMessage(w.thing.submission)
	}
	var answer struct{ Warnings string }
	err := d.put(ctx, "/v1/jobs", w.thing.name.space, body, &answer)
	if refused, ok := errors.AsType[*refusedError](err); ok && strings.Contains(refused.text, enforced) {
		return errChanged
	}
	if answer.Warnings != "" {
		w.warns = "Nomad warns: " + oneLine(answer.Warnings)
	}
	return err
}

// plan asks what a registration would change.
func (d *destination) plan(ctx context.Context, n name, job object, diff bool) (api.JobPlanResponse, error) {
	var answer api.JobPlanResponse
	err := d.put(ctx, "/v1/job/"+url.PathEscape(n.id)+"/plan", n.space, map[string]any{"Job": job, "Diff": diff}, &answer)
	return answer, err
}

// changed names the fields that a diff changes. What holds them may be called edited when nothing in it is: only the ends count,
// and what is added or deleted as a whole.
func changed(d *api.JobDiff) (all []string) {
	if d == nil || d.Type == diffNone {
		return nil
	}
	if d.Type != diffEdited {
		return []string{"the whole job: " + d.Type}
	}
	all = changedIn("", d.Fields, d.Objects)
	for _, g := range d.TaskGroups {
		at := "TaskGroups[" + g.Name + "]"
		if whole(g.Type) {
			all = append(all, at)
			continue
		}
		all = append(all, changedIn(at+".", g.Fields, g.Objects)...)
		for _, t := range g.Tasks {
			task := at + ".Tasks[" + t.Name + "]"
			if whole(t.Type) {
				all = append(all, task)
				continue
			}
			all = append(all, changedIn(task+".", t.Fields, t.Objects)...)
		}
	}
	return all
}

const (
	diffNone   = "None"
	diffEdited = "Edited"
)

// whole says whether a diff is of something that is only on one side.
func whole(diffType string) bool { return diffType != diffNone && diffType != diffEdited }

func changedIn(at string, fields []*api.FieldDiff, objects []*api.ObjectDiff) (all []string) {
	for _, f := range fields {
		if f.Type != diffNone {
			all = append(all, at+f.Name)
		}
	}
	for _, o := range objects {
		below := changedIn(at+o.Name+".", o.Fields, o.Objects)
		if whole(o.Type) && len(below) == 0 {
			below = []string{at + o.Name}
		}
		all = append(all, below...)
	}
	return all
}

// list is some names, in a length that a person reads.
func list(names []string) string {
	const most = 12
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
}
