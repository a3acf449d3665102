package drill

import (
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// What a restored server can be asked for. Each kind has what there is of it.
type (
	// keyed has keys.
	keyed interface {
		// value is that of a key; known is false when there is none.
		value(ctx context.Context, key string) (v []byte, known bool, err error)
		// under counts the keys that begin with a prefix.
		under(ctx context.Context, prefix string) (int64, error)
	}
	// scheduled has jobs.
	scheduled interface {
		// hasJob says whether there is a job of that id.
		hasJob(ctx context.Context, namespace, id string) (bool, error)
	}
)

// checks asks the restored server for what the user knows about the data. What is not so is in the report; an error means that the
// server could not be asked.
func (r *run) checks(ctx context.Context, data any) error {
	if len(r.in.Target.Drill.Checks) == 0 {
		return nil
	}
	return r.phase(ctx, phaseCheck, func() error {
		for i, c := range r.in.Target.Drill.Checks {
			result, err := r.check(ctx, data, c)
			if err != nil {
				return fmt.Errorf("check %d of the target, %s: %w", i+1, result.GetWhat(), err)
			}
			result.Check = true
			r.note(result)
		}
		return nil
	})
}

// check looks at one thing. The result's name is there also with an error.
func (r *run) check(ctx context.Context, data any, c config.Check) (*lifeboatv1.Comparison, error) {
	keys, hasKeys := data.(keyed)
	jobs, hasJobs := data.(scheduled)
	switch {
	case c.Count != "":
		return r.checkCount(c), nil
	case c.Job != "" && hasJobs:
		ns := c.Namespace
		if ns == "" {
			ns = "default"
		}
		result := &lifeboatv1.Comparison{What: fmt.Sprintf("job %q in namespace %q", c.Job, ns)}
		found, err := jobs.hasJob(ctx, ns, c.Job)
		return there(result, found), err
	case c.Key != "" && hasKeys:
		return checkKey(ctx, keys, c)
	case c.Prefix != "" && hasKeys:
		result := &lifeboatv1.Comparison{What: fmt.Sprintf("the number of keys under %q", c.Prefix)}
		n, err := keys.under(ctx, c.Prefix)
		return atLeast(result, max(c.Min, 1), n), err
	}
	// The configuration was checked for that; it may have changed since it was read.
	return &lifeboatv1.Comparison{What: "a check", Want: "about a " + kindName(r.report.GetKind()), Got: "about something else"}, nil
}

func (r *run) checkCount(c config.Check) *lifeboatv1.Comparison {
	result := &lifeboatv1.Comparison{What: "the number of " + c.Count}
	r.mu.Lock()
	n, known := r.found[c.Count]
	names := slices.Sorted(maps.Keys(r.found))
	r.mu.Unlock()
	if !known {
		result.Want, result.Got = atLeastText(c.Min), "not known (what is counted is: "+strings.Join(names, ", ")+")"
		return result
	}
	return atLeast(result, c.Min, n)
}

func checkKey(ctx context.Context, keys keyed, c config.Check) (*lifeboatv1.Comparison, error) {
	result := &lifeboatv1.Comparison{What: fmt.Sprintf("key %q", c.Key)}
	v, known, err := keys.value(ctx, c.Key)
	if err != nil || !known {
		return there(result, known), err
	}
	const other = "there with another value"
	switch {
	case c.Value != nil:
		result.Want, result.Ok = "there with the value that the check names", string(v) == *c.Value
	case c.ValueFile != "":
		want, ferr := c.ValueFile.Read()
		if ferr != nil {
			return result, ferr
		}
		// The file's surrounding white space is no part of the secret, and so it need not be of the value's.
		result.Want, result.Ok = "there with the value in the check's file", strings.TrimSpace(string(v)) == want
	case c.Matches != "":
		re, rerr := regexp.Compile(c.Matches)
		if rerr != nil {
			return result, rerr
		}
		result.Want, result.Ok = "there with a value that matches the check", re.Match(v)
	default:
		return there(result, true), nil
	}
	if result.Got = other; result.GetOk() {
		result.Got = result.GetWant()
	}
	return result, nil
}

// there is a check for existence.
func there(result *lifeboatv1.Comparison, found bool) *lifeboatv1.Comparison {
	result.Want, result.Got, result.Ok = "there", "missing", found
	if found {
		result.Got = result.GetWant()
	}
	return result
}

func atLeast(result *lifeboatv1.Comparison, want, got int64) *lifeboatv1.Comparison {
	result.Want, result.Got, result.Ok = atLeastText(want), strconv.FormatInt(got, 10), got >= want
	return result
}

func atLeastText(n int64) string { return "at least " + strconv.FormatInt(n, 10) }
