package worker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"log/slog"
	"math/rand/v2"

	"filippo.io/age"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/tracing"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/catalog"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/drill"
)

// DrillOptions is what drills need of the machine.
type DrillOptions struct {
	// ConsulBinary and NomadBinary are paths of the servers that snapshots are restored into; "consul" and "nomad" on PATH when
	// empty.
	ConsulBinary, NomadBinary string
	// Confine is a command of this program that runs throwaway.Confined, as [/path/lifeboat-backup confine]; empty: no namespace.
	Confine []string
	// RequireIsolation fails a drill whose consul or nomad could not be given a network namespace of its own. An etcd needs none.
	RequireIsolation bool
}

// drill restores a snapshot and compares. A drill that fails is a result, not an error: it is reported and not repeated. An error
// means that nothing was found out, and the job is delivered again.
func (w *Worker) drill(ctx context.Context, j job) error {
	return w.attempted(ctx, j, func() error { return w.drillSnapshot(ctx, j) })
}

func (w *Worker) drillSnapshot(ctx context.Context, j job) error {
	escrow, err := w.withEscrow(j)
	if err != nil {
		return err
	}
	id, err := w.choose(ctx, j)
	if err != nil {
		return terminalIf(err, catalog.ErrNoSnapshot, "no_snapshot")
	}
	m, err := w.Catalog.Manifest(ctx, j.target.Name, id)
	unreadable := err
	if err != nil && !errors.Is(err, catalog.ErrDamaged) {
		if id != j.GetSnapshot() {
			return err // it went after it was chosen, and another one will be chosen
		}
		return terminalIf(err, catalog.ErrNoSnapshot, "no_snapshot")
	}
	in := drill.Input{
		DrillID: j.id, JobID: j.id, TraceID: tracing.ID(ctx), Tick: j.GetTick(), RequestedBy: j.requestedBy(), Version: w.Version, Target: j.target,
		SnapshotID: id, Manifest: m, Unreadable: unreadable, Fetch: w.fetch, Owner: w.owner, Dir: w.ScratchDir, Clock: w.Clock,
		Servers: drill.Servers(w.Drill),
		Began: func(phase string) {
			w.Logger.DebugContext(ctx, "drill goes on", slog.String("target", j.target.Name), slog.String("drill_id", j.id),
				slog.String("phase", phase))
		},
	}
	in.Identity, in.Identities, in.Locked = w.drillIdentities(j, escrow)
	if j.target.Etcd != nil {
		defer w.collector.relax()()
	}
	report, err := drill.Run(ctx, in)
	if err != nil {
		return fmt.Errorf("drilling %s: %w", id, err)
	}
	if err := w.stillThere(ctx, report); err != nil {
		return fmt.Errorf("drilling %s: %w", id, err)
	}
	// A worker that was given up for dead must not tell of a drill that its successor runs now.
	if err := j.claim.Confirm(ctx); err != nil {
		return fmt.Errorf("before the report of the drill is written: %w", err)
	}
	if err := w.Catalog.AddDrill(ctx, report); err != nil {
		return err
	}
	return w.drilled(ctx, j, m, report, escrow)
}

// stillThere is an error when what a drill could not fetch is gone because the snapshot is: retention deletes the manifest first, and
// a snapshot that does not exist any more is none that fails to restore.
func (w *Worker) stillThere(ctx context.Context, report *lifeboatv1.DrillReport) error {
	if report.GetPassed() {
		return nil
	}
	if _, err := w.Catalog.Manifest(ctx, report.GetTarget(), report.GetSnapshotId()); errors.Is(err, catalog.ErrNoSnapshot) {
		return fmt.Errorf("it was deleted while it was drilled: %w", err)
	}
	return nil // what else is wrong with the manifest does not change what was found
}

// withEscrow says whether the job asks for the escrow identity.
func (w *Worker) withEscrow(j job) (bool, error) {
	switch j.GetIdentity() {
	case "":
		return false, nil
	case config.IdentityEscrow:
		return true, nil
	}
	return false, bus.Terminal(reasonBadPayload, &rejectedError{fmt.Errorf(
		"the job's identity is %q; use %q, or nothing for the worker's own", j.GetIdentity(), config.IdentityEscrow)})
}

// choose picks the snapshot that a job is about. A job that is delivered again has the same luck, so that it drills the same one.
func (w *Worker) choose(ctx context.Context, j job) (string, error) {
	selector := j.GetSnapshot()
	if selector == "" && j.GetTick() != nil {
		selector = j.target.Drill.Snapshot
	}
	h := fnv.New64a()
	_, _ = io.WriteString(h, j.id) // a hash never fails
	seed := h.Sum64()
	return w.Catalog.Choose(ctx, j.target.Name, selector, func(n int) int {
		chosen := rand.New(rand.NewPCG(seed, 0)).IntN(n) //nolint:gosec // nobody gains by guessing which one is drilled
		w.Logger.InfoContext(ctx, "drilling a random snapshot", slog.String("target", j.target.Name), slog.String("drill_id", j.id),
			slog.Uint64("seed", seed), slog.Int("chosen", chosen), slog.Int("snapshots", n))
		return chosen
	})
}

// drillIdentities reads what decrypts. That it cannot be read is the drill's result: a restore could not read it either.
func (w *Worker) drillIdentities(j job, escrow bool) (name string, ids []age.Identity, locked error) {
	if !escrow {
		ids, locked = w.identities()
		return drill.IdentityWorker, ids, locked
	}
	file := j.target.Drill.Escrow.IdentityFile
	if file == "" {
		return drill.IdentityEscrow, nil, fmt.Errorf("drill.escrow.identity_file of %s is not set", j.target.Name)
	}
	ids, locked = readIdentities("drill.escrow.identity_file", file)
	return drill.IdentityEscrow, ids, locked
}

// fetch opens a stored object.
func (w *Worker) fetch(ctx context.Context, key string) (io.ReadCloser, error) {
	r, _, err := w.Objects.Get(ctx, key)
	return r, err
}

// owner looks for the snapshot whose data is stored where another's should be. It is asked when something is wrong already, and what
// it cannot read it passes over.
func (w *Worker) owner(ctx context.Context, stored *lifeboatv1.Digest) string {
	for _, t := range w.Config().Targets {
		ids, err := w.Catalog.IDs(ctx, t.Name)
		if err != nil {
			continue
		}
		for _, id := range ids {
			m, err := w.Catalog.Manifest(ctx, t.Name, id)
			if err != nil {
				continue
			}
			for _, d := range parts(m) {
				if d.GetStored().GetSha256() == stored.GetSha256() {
					return fmt.Sprintf("snapshot %s of %s", id, t.Name)
				}
			}
		}
	}
	return ""
}

// Verbs of a drill's events. Those of a drill with the escrow identity are others, so that a good worker's key does not end the alert
// about a bad escrow key, nor the other way round.
func drillVerb(passed, escrow bool) string {
	verb := "failed"
	if passed {
		verb = "passed"
	}
	if escrow {
		return "escrow-" + verb
	}
	return verb
}

// maxToldComparisons is how many bytes of comparisons an event has room for. A message of NATS has at most 1 MiB, unless somebody
// says otherwise, and a target may have any number of checks.
const maxToldComparisons = 256 << 10

// forEvent is the report with as many comparisons as an event has room for, those that failed first. The stored report has all.
func forEvent(report *lifeboatv1.DrillReport) (*lifeboatv1.DrillReport, error) {
	all := report.GetComparisons()
	size := make([]int, len(all))
	room := maxToldComparisons
	for i, c := range all {
		b, err := protojson.Marshal(c)
		if err != nil {
			return nil, fmt.Errorf("encoding a comparison: %w", err)
		}
		size[i] = len(b)
		room -= len(b)
	}
	if room >= 0 {
		return report, nil
	}
	room = maxToldComparisons
	told := make([]bool, len(all))
	for _, ok := range []bool{false, true} {
		for i, c := range all {
			if c.GetOk() == ok && size[i] <= room {
				told[i] = true
				room -= size[i]
			}
		}
	}
	few := proto.CloneOf(report)
	few.Comparisons = nil
	for i, c := range all {
		if told[i] {
			few.Comparisons = append(few.Comparisons, c)
		}
	}
	few.Comparisons = append(few.Comparisons, &lifeboatv1.Comparison{
		What: "further comparisons", Got: fmt.Sprint(len(all) - len(few.GetComparisons())), Ok: true,
		NotComparable: "an event has no room for them; they are in the report beside the snapshot",
	})
	return few, nil
}

// drilled tells how a drill ended.
func (w *Worker) drilled(ctx context.Context, j job, m *lifeboatv1.Manifest, report *lifeboatv1.DrillReport, escrow bool) error {
	drillSpans(ctx, report)
	verb := drillVerb(report.GetPassed(), escrow)
	told, err := forEvent(report)
	if err != nil {
		return err
	}
	err = w.Bus.Emit(ctx, &lifeboatv1.Event{
		Id: "drill." + verb + "." + j.id, Noun: "drill", Verb: verb, Target: j.target.Name, JobId: j.id, DrillId: j.id,
		SnapshotId: report.GetSnapshotId(), RequestedBy: j.requestedBy(), Message: report.GetSummary(),
		Attributes: j.attributes(nil), Detail: &lifeboatv1.Event_Drill{Drill: told},
	})
	if err != nil {
		return err
	}
	w.Logger.InfoContext(ctx, "drill ended", slog.String("target", j.target.Name), slog.String("drill_id", j.id),
		slog.String("snapshot_id", report.GetSnapshotId()), slog.String("outcome", verb),
		slog.String("result", cmp.Or(report.GetFailure(), report.GetSummary())))
	w.metrics.drilled(report)
	if !report.GetPassed() {
		w.metrics.ended.WithLabelValues(string(j.work), j.target.Name, "failed").Inc()
		return nil
	}
	w.metrics.proven(j.target.Name, m.GetStartedAt().AsTime())
	w.passed(j, report.GetFinishedAt().AsTime().Sub(report.GetStartedAt().AsTime()))
	return nil
}

// terminalIf marks an error as beyond retry when it is of a kind.
func terminalIf(err, kind error, reason string) error {
	if errors.Is(err, kind) {
		return bus.Terminal(reason, err)
	}
	return err
}
