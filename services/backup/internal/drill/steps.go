package drill

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path"
	"strings"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/throwaway"
)

// errInClear is why a drill with the escrow identity fails although the data may be right: it is there to prove a key.
var errInClear = errors.New("the snapshot is not encrypted, so that no key can be proven by it")

// run is the whole drill, in its order.
func (r *run) run(ctx context.Context) (err error) {
	if err = r.phase(ctx, phaseManifest, r.manifest); err != nil {
		return err
	}
	if r.in.Identity == IdentityEscrow && len(r.in.Manifest.GetData().GetRecipients()) == 0 {
		return &fault{phaseDecrypt, errInClear}
	}
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	s := &scratch{run: r, end: end}
	err = r.phase(ctx, phasePrepare, func() error { return s.prepare(ctx) })
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, r.phase(context.WithoutCancel(ctx), phaseStop, s.remove))
		// A quick drill may have been over its budget only when it was looked at for the last time.
		if over, ok := errors.AsType[*throwaway.BudgetError](s.over()); ok && err == nil {
			err = &fault{phaseStop, over}
		}
	}()
	switch r.in.Manifest.GetKind() {
	case lifeboatv1.Kind_KIND_ETCD:
		err = r.etcd(ctx, s)
	case lifeboatv1.Kind_KIND_CONSUL:
		err = r.consul(ctx, s)
	case lifeboatv1.Kind_KIND_NOMAD:
		err = r.nomad(ctx, s)
	case lifeboatv1.Kind_KIND_UNSPECIFIED: // refused by manifest
	}
	if err != nil {
		return err
	}
	return r.verdict()
}

// formats are those of each kind's data.
func formats() map[lifeboatv1.Kind]string {
	return map[lifeboatv1.Kind]string{
		lifeboatv1.Kind_KIND_ETCD: "db", lifeboatv1.Kind_KIND_CONSUL: "json", lifeboatv1.Kind_KIND_NOMAD: "tar",
	}
}

// manifest looks at whether it is what it is taken for. A manifest that was copied from elsewhere is whole, and about something else.
func (r *run) manifest() error {
	m, target := r.in.Manifest, r.in.Target
	kind := kindOf(target)
	switch {
	case m == nil:
		return r.in.Unreadable
	case m.GetTarget() != target.Name || m.GetId() != r.in.SnapshotID:
		return fmt.Errorf("the manifest of snapshot %s of %s says that it is that of %s of %s", r.in.SnapshotID, target.Name, m.GetId(),
			m.GetTarget())
	case m.GetKind() != kind:
		return fmt.Errorf("the manifest says that the snapshot is of kind %s, and %s is configured as %s", kindName(m.GetKind()), target.Name,
			target.Kind())
	case m.GetData().GetFormat() != formats()[kind]:
		return fmt.Errorf("the manifest names data of format %q, and a snapshot of kind %s has %q", m.GetData().GetFormat(), kindName(kind),
			formats()[kind])
	}
	for _, d := range append([]*lifeboatv1.Data{m.GetData()}, m.GetParts()...) {
		id := m.GetId()
		if d.GetUnchangedSince() != "" {
			id = d.GetUnchangedSince()
		}
		if own := target.Name + "/snapshots/" + id; !strings.HasSuffix("/"+path.Dir(d.GetKey()), "/"+own) {
			return fmt.Errorf("the manifest names the data %s, which is not under %s: it is another target's or another snapshot's",
				d.GetKey(), own)
		}
		if d.GetRaw() == nil || d.GetStored() == nil {
			return fmt.Errorf("the manifest does not say how long %s is and what its sha256 is", d.GetKey())
		}
	}
	return nil
}

func kindOf(t config.Target) lifeboatv1.Kind {
	switch {
	case t.Etcd != nil:
		return lifeboatv1.Kind_KIND_ETCD
	case t.Consul != nil:
		return lifeboatv1.Kind_KIND_CONSUL
	case t.Nomad != nil:
		return lifeboatv1.Kind_KIND_NOMAD
	}
	return lifeboatv1.Kind_KIND_UNSPECIFIED
}

// kindName is a kind as a person writes it.
func kindName(k lifeboatv1.Kind) string {
	return strings.ToLower(strings.TrimPrefix(k.String(), "KIND_"))
}

// scratch is the folder of one drill, watched.
type scratch struct {
	*throwaway.Scratch
	run *run
	// end ends the drill with a cause.
	end   context.CancelCauseFunc
	watch *throwaway.Watch
	// over is the cause with which the watch ended; nil while it has not.
	over func() error
}

// prepare makes the scratch folder, which removes what earlier drills left, and watches how much is used: whatever exceeds the
// budget ends the drill.
func (s *scratch) prepare(ctx context.Context) error {
	dir, err := throwaway.NewScratch(s.run.in.Dir)
	if err != nil {
		return err
	}
	if err := dir.CheckRoom(s.run.room()); err != nil {
		return errors.Join(fmt.Errorf("%w; free some, or set --scratch-dir to a larger disk", err), dir.Remove())
	}
	s.Scratch = dir
	allowed := s.run.report.GetUsage()
	watched, watch := dir.Watch(ctx, throwaway.Budget{DiskBytes: allowed.GetDiskBudget(), MemoryBytes: allowed.GetMemoryBudget()})
	s.watch, s.over = watch, func() error { return context.Cause(watched) }
	context.AfterFunc(watched, func() { s.end(s.over()) })
	return nil
}

// remove ends what still runs in the folder and removes it.
func (s *scratch) remove() error {
	s.watch.Stop()
	s.end(nil)
	s.run.report.Usage.DiskBytes, s.run.report.Usage.MemoryBytes = s.watch.Peak()
	return s.Remove()
}

// together runs steps at the same time. The first that fails ends the drill, and with it the others.
func (s *scratch) together(steps ...func() error) error {
	results := make(chan error, len(steps))
	for _, step := range steps {
		go func() {
			err := throwaway.Guard(step)
			if err != nil {
				s.end(err)
			}
			results <- err
		}()
	}
	var first error
	for range steps {
		first = cmp.Or(first, <-results)
	}
	return first
}
