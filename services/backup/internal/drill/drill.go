// Package drill rehearses a restore. It takes a snapshot that was already decrypted and decompressed, brings it back to
// life in a server of its own kind where that is possible, and compares what it finds with what the manifest says.
//
// A drill touches nothing but loopback and a scratch folder, which it removes. An etcd snapshot is restored and served.
// Consul and Nomad snapshots are decoded and counted; nothing is restored, and the report says so.
package drill

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/throwaway"
)

// Input is what a drill is about.
type Input struct {
	DrillID string
	JobID   string
	TraceID string
	// Version of Lifeboat, for the report.
	Version  string
	Manifest *lifeboatv1.Manifest
	// Open gives the snapshot as the source sent it. The reader returns io.EOF only if all of it came and matches the
	// manifest's digest. It is called at most once.
	Open func(ctx context.Context) (io.ReadCloser, error)
	// Dir is the folder in which a scratch folder is made and removed. It exists. Several drills may share it, also of
	// several processes.
	Dir string
	// Clock tells the time; time.Now when nil.
	Clock func() time.Time
}

// Run carries out one drill. It always returns a report: what goes wrong is in it, as failure with passed false. When
// ctx ends, the drill fails with its error as soon as the step at hand allows.
func Run(ctx context.Context, in Input) *lifeboatv1.DrillReport {
	if in.Clock == nil {
		in.Clock = time.Now
	}
	started := in.Clock()
	m := in.Manifest
	r := &run{in: in, report: &lifeboatv1.DrillReport{
		Format: 1, Id: in.DrillID, JobId: in.JobID, TraceId: in.TraceID, LifeboatVersion: in.Version,
		Target: m.GetTarget(), Kind: m.GetKind(), SnapshotId: m.GetId(),
		StartedAt: timestamppb.New(started),
	}}
	if at := m.GetStartedAt(); at != nil {
		r.report.DataAge = durationpb.New(started.Sub(at.AsTime()))
	}
	err := throwaway.Guard(func() error { return r.run(ctx) })
	r.report.FinishedAt = timestamppb.New(in.Clock())
	r.report.Passed = err == nil
	if err != nil {
		r.report.Failure = err.Error()
	}
	r.summarize()
	return r.report
}

// run is one drill under way.
type run struct {
	in     Input
	report *lifeboatv1.DrillReport
}

func (r *run) run(ctx context.Context) error {
	switch r.in.Manifest.GetKind() {
	case lifeboatv1.Kind_KIND_ETCD:
		return r.etcd(ctx)
	case lifeboatv1.Kind_KIND_CONSUL:
		return r.decoded(ctx, countKV)
	case lifeboatv1.Kind_KIND_NOMAD:
		return r.decoded(ctx, countJobs)
	default:
		return fmt.Errorf("prepare: no drill is known for a snapshot of kind %s", r.in.Manifest.GetKind())
	}
}

// phase times one step and names it in its error.
func (r *run) phase(ctx context.Context, name string, step func() error) error {
	start := r.in.Clock()
	err := ctx.Err()
	if err == nil {
		err = throwaway.Guard(step)
	}
	r.report.Phases = append(r.report.Phases, &lifeboatv1.Phase{
		Name: name, Took: durationpb.New(r.in.Clock().Sub(start)),
	})
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// compare notes one thing looked at. A manifest that does not have it makes it not comparable, with its own words.
func (r *run) compare(what string, want int64, known bool, got int64) {
	c := &lifeboatv1.Comparison{What: what, Got: strconv.FormatInt(got, 10)}
	if known {
		c.Want = strconv.FormatInt(want, 10)
		c.Ok = want == got
	} else {
		c.Ok = true
		c.NotComparable = "the manifest does not say" + r.missing(what)
	}
	r.report.Comparisons = append(r.report.Comparisons, c)
}

// compareCount is compare for one of the manifest's counts.
func (r *run) compareCount(name string, got int64) {
	want, known := r.in.Manifest.GetSource().GetCounts()[name]
	r.compare(name, want, known, got)
}

// missing is why the source could not tell something, if the manifest has that.
func (r *run) missing(what string) string {
	for _, m := range r.in.Manifest.GetSource().GetMissing() {
		if strings.HasPrefix(m, what+":") {
			return " (" + m + ")"
		}
	}
	return ""
}

// differences is the error of the comparisons: nil when all that could be compared is equal.
func (r *run) differences() error {
	var differ []string
	for _, c := range r.report.GetComparisons() {
		if !c.GetOk() {
			differ = append(differ, fmt.Sprintf("%s is %s and should be %s", c.GetWhat(), c.GetGot(), c.GetWant()))
		}
	}
	if len(differ) > 0 {
		return fmt.Errorf("the restored data differs: %s", strings.Join(differ, "; "))
	}
	return nil
}

// summarize says in a person's words what was done and what was not.
func (r *run) summarize() {
	rep := r.report
	var equal, skipped []string
	for _, c := range rep.GetComparisons() {
		switch {
		case c.GetNotComparable() != "":
			skipped = append(skipped, c.GetWhat())
		case c.GetOk():
			equal = append(equal, c.GetWhat())
		}
	}
	var s strings.Builder
	switch rep.GetLevel() {
	case lifeboatv1.DrillReport_LEVEL_RESTORED:
		fmt.Fprintf(&s, "Restored into an etcd server on loopback, which answered after %s.",
			rep.GetRto().AsDuration().Round(time.Millisecond))
	case lifeboatv1.DrillReport_LEVEL_DECODED:
		s.WriteString("Decoded and counted only; nothing was restored.")
	default:
		s.WriteString("Nothing was restored.")
	}
	if len(equal) > 0 {
		fmt.Fprintf(&s, " Equal to the manifest: %s.", strings.Join(equal, ", "))
	}
	if len(skipped) > 0 {
		fmt.Fprintf(&s, " Could not be compared: %s.", strings.Join(skipped, ", "))
	}
	if !rep.GetPassed() {
		s.WriteString(" The drill failed.")
	}
	rep.Summary = s.String()
}
