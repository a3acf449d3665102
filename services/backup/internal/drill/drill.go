// Package drill rehearses a restore: it fetches a snapshot, decrypts it, brings it back to life in a throwaway server of its own
// kind with the code that `lifeboat restore` restores with, and compares what it finds with what the manifest says and with what
// the user knows about the data.
//
// # Steps
//
//	manifest  it is about this target, and of one piece
//	prepare   a scratch folder, in which there is room
//	fetch     the stored object, until its last byte came
//	decrypt   age and zstd, until the last decoded byte came; data is decrypted while it is fetched
//	start     the throwaway server
//	restore   the data into it
//	compare   against the manifest, and the time that it took against drill.max_rto
//	check     drill.checks
//	stop      the server ends, and the folder goes
//
// # What is a verdict
//
// A report is a verdict on the snapshot. Run returns an error instead when there is none: the store could not be reached, or the
// caller's context ended. A stored object that is missing, cut or changed is a verdict, and so is a drill that exceeds its budget: a
// restore would exceed it, too.
//
// # What is left behind
//
// Nothing. Servers and folders of a drill whose process was killed are removed by the next drill in the same folder; see
// throwaway.NewScratch.
package drill

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"filippo.io/age"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/throwaway"
)

// The phases of a drill, as reports name them.
const (
	phaseManifest = "manifest"
	phasePrepare  = "prepare"
	phaseFetch    = "fetch"
	phaseDecrypt  = "decrypt"
	phaseRestore  = "restore"
	phaseStart    = "start"
	phaseCompare  = "compare"
	phaseCheck    = "check"
	phaseStop     = "stop"
)

// Which identity decrypts, as reports name it.
const (
	IdentityWorker = "worker"
	IdentityEscrow = "escrow"
)

// Input is what a drill is about.
type Input struct {
	DrillID, JobID, TraceID string
	// Tick is the scheduled time that the drill is for; nil when a person asked.
	Tick *timestamppb.Timestamp
	// RequestedBy is who asked for it.
	RequestedBy string
	// Version of Lifeboat, for the report.
	Version string
	// Target is its configuration: the kind of its snapshots, and what its drill section says.
	Target config.Target
	// SnapshotID is the snapshot that was chosen.
	SnapshotID string
	// Manifest is that snapshot's; nil when it cannot be read, and Unreadable then says why.
	Manifest   *lifeboatv1.Manifest
	Unreadable error
	// Fetch opens a stored object. An error that wraps store.ErrNotFound is a verdict on the snapshot. Any other, also of the reader,
	// is about reaching the store and none: Run returns it. It may be called several times.
	Fetch func(ctx context.Context, key string) (io.ReadCloser, error)
	// Owner says whose data is stored under a wrong key, by its digest; empty when nobody knows. It may be nil.
	Owner func(ctx context.Context, stored *lifeboatv1.Digest) string
	// Identity names the identities for the report: IdentityWorker or IdentityEscrow.
	Identity string
	// Identities decrypts; Locked says why there are none although they are configured.
	Identities []age.Identity
	Locked     error
	// Dir is the folder in which a scratch folder is made and removed. It exists. Several drills may share it, also of
	// several processes.
	Dir     string
	Servers Servers
	// Clock tells the time; time.Now when nil.
	Clock func() time.Time
	// Began is told each phase when it begins, some of them at the same time. It may be nil.
	Began func(phase string)
}

// Servers says how throwaway servers are run.
type Servers struct {
	// ConsulBinary and NomadBinary are paths; "consul" and "nomad" on PATH when empty.
	ConsulBinary, NomadBinary string
	// Confine is a command of this program that runs throwaway.Confined; empty: no namespace.
	Confine []string
	// RequireIsolation fails a drill whose consul or nomad has no network namespace of its own. An etcd, which is in this process and
	// has nobody to talk to, needs none.
	RequireIsolation bool
}

// Run carries out one drill. What goes wrong with the snapshot or its restore is in the report, as failure with passed false. An
// error means that nothing was found out, and that the drill is to be run again: the store failed (ErrStore), or ctx ended, whose
// cause it then is.
func Run(ctx context.Context, in Input) (*lifeboatv1.DrillReport, error) {
	if in.Clock == nil {
		in.Clock = time.Now
	}
	r := newRun(in)
	limit := in.Target.Drill.Timeout
	limited, cancel := ctx, context.CancelFunc(func() {})
	if limit > 0 {
		limited, cancel = context.WithTimeoutCause(ctx, limit, &timeoutError{limit})
	}
	defer cancel()
	err := throwaway.Guard(func() error { return r.run(limited) })
	if ctx.Err() != nil {
		// Interrupted, not failed.
		return nil, context.Cause(ctx)
	}
	if errors.Is(err, ErrStore) {
		return nil, err
	}
	r.end(err)
	return r.report, nil
}

// timeoutError is the cause with which a drill ends that took too long.
type timeoutError struct{ limit time.Duration }

func (e *timeoutError) Error() string {
	return fmt.Sprintf("the drill took longer than its budget of time, drill.timeout, which is %s", e.limit)
}

// run is one drill under way. Its phases may overlap.
type run struct {
	in      Input
	started time.Time

	mu     sync.Mutex
	report *lifeboatv1.DrillReport
	// fetching is when the first byte was asked for.
	fetching time.Time
	// found is what was counted in the restored data, by the manifest's names.
	found map[string]int64
	// accounted is how many of the source's own statements the restored data was compared with.
	accounted int
}

func newRun(in Input) *run {
	m := in.Manifest
	r := &run{in: in, started: in.Clock(), found: map[string]int64{}}
	drill := in.Target.Drill
	r.report = &lifeboatv1.DrillReport{
		Format: 1, Id: in.DrillID, JobId: in.JobID, TraceId: in.TraceID, LifeboatVersion: in.Version,
		RequestedBy: in.RequestedBy, Tick: in.Tick, Target: in.Target.Name, Kind: m.GetKind(), SnapshotId: in.SnapshotID,
		StartedAt: timestamppb.New(r.started),
		Usage:     &lifeboatv1.Usage{DiskBudget: drill.MaxDiskMiB << 20, MemoryBudget: drill.MaxMemoryMiB << 20},
	}
	if m == nil {
		r.report.Kind = kindOf(in.Target)
	}
	if len(m.GetData().GetRecipients()) > 0 || in.Identity == IdentityEscrow {
		r.report.Identity = in.Identity
	}
	if drill.MaxRTO > 0 {
		r.report.MaxRto = durationpb.New(drill.MaxRTO)
	}
	if at := m.GetStartedAt(); at != nil {
		r.report.DataAge = durationpb.New(r.started.Sub(at.AsTime()))
	}
	return r
}

// end completes the report.
func (r *run) end(err error) {
	rep := r.report
	slices.SortStableFunc(rep.Phases, func(a, b *lifeboatv1.Phase) int {
		return cmp.Compare(a.GetBegan().AsDuration(), b.GetBegan().AsDuration())
	})
	rep.Phases = oneStop(rep.GetPhases())
	rep.FinishedAt = timestamppb.New(r.in.Clock())
	rep.Passed = err == nil
	if err != nil {
		rep.Failure = bounded(err.Error())
		if f, ok := errors.AsType[*fault](err); ok {
			rep.FailedPhase = f.phase
		}
	}
	rep.Summary = summary(rep, err)
}

// oneStop makes one phase of all that was stopped: each server, and the folder. It ends when the last of them did.
func oneStop(all []*lifeboatv1.Phase) []*lifeboatv1.Phase {
	var took, ended time.Duration
	stopped := false
	rest := slices.DeleteFunc(all, func(p *lifeboatv1.Phase) bool {
		if p.GetName() != phaseStop {
			return false
		}
		stopped = true
		took += p.GetTook().AsDuration()
		ended = max(ended, p.GetBegan().AsDuration()+p.GetTook().AsDuration())
		return true
	})
	if !stopped {
		return rest
	}
	return append(rest, &lifeboatv1.Phase{
		Name: phaseStop, Took: durationpb.New(took), Began: durationpb.New(ended - took),
	})
}

// fault is what a drill fails with: the phase, and the cause.
type fault struct {
	phase string
	err   error
}

func (f *fault) Error() string { return f.phase + ": " + f.err.Error() }
func (f *fault) Unwrap() error { return f.err }

// failed names the phase that an error belongs to, unless one is named already.
func failed(phase string, err error) error {
	if _, ok := errors.AsType[*fault](err); ok || err == nil {
		return err
	}
	return &fault{phase, err}
}

// phase times one step and names it in its error. What fails because the context ended fails with the cause of that.
func (r *run) phase(ctx context.Context, name string, step func() error) error {
	done := r.begin(name)
	err := ctx.Err()
	if err == nil {
		err = throwaway.Guard(step)
	}
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	done()
	return failed(name, err)
}

// begin notes that a phase begins; what it returns notes that it ended, the first time that it is called.
func (r *run) begin(name string) (done func()) {
	if r.in.Began != nil {
		r.in.Began(name)
	}
	began := r.in.Clock()
	return sync.OnceFunc(func() { r.took(name, began, r.in.Clock()) })
}

func (r *run) took(name string, from, to time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.report.Phases = append(r.report.Phases, &lifeboatv1.Phase{
		Name: name, Took: durationpb.New(to.Sub(from)), Began: durationpb.New(from.Sub(r.started)),
	})
}

// answers notes that the server answers with all the data.
func (r *run) answers() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.report.Rto = durationpb.New(r.in.Clock().Sub(r.fetching))
	r.report.Level = lifeboatv1.DrillReport_LEVEL_RESTORED
}
