package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/console"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/catalog"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/pipeline"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore/consul"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore/etcd"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore/nomad"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/throwaway"
)

// restoration is one restore under way.
type restoration struct {
	flags    *restoreFlags
	target   config.Target
	bucket   *bucket
	manifest *lifeboatv1.Manifest
	// known is what was found out about the snapshot since it was taken, unless unknown says why that cannot be read.
	known   catalog.Snapshot
	unknown error
	data    *lifeboatv1.Data
	ids     identities
	out     io.Writer
	errs    io.Writer
	began   time.Time

	scratch *throwaway.Scratch
	// stored is the file with the object as it is stored, once it was downloaded and compared.
	stored string
}

// where is the destination, as a person knows it.
func (r *restoration) where() string {
	if r.flags.member.dir != "" {
		return r.flags.member.dir
	}
	return strings.Join(r.flags.destination.to, ",")
}

// run plans or restores, and prints what it did.
func (r *restoration) run(ctx context.Context) (restore.Summary, error) {
	view := newRestoreView(r)
	r.warn()
	if err := view.begin(); err != nil {
		return restore.Summary{}, err
	}
	summary, err := r.do(ctx, restore.Options{Apply: r.flags.apply, Force: r.flags.force, Item: view.item, Progress: view.progress})
	return summary, view.end(summary, r.explain(ctx, summary, err))
}

func (r *restoration) do(ctx context.Context, o restore.Options) (summary restore.Summary, err error) {
	if r.flags.member.dir != "" {
		return r.toDataDir(ctx, o)
	}
	if r.flags.part == formatRaft && !o.Apply {
		rec := &restore.Recorder{Options: o}
		rec.Item(r.raftItem())
		return rec.Summary(), nil
	}
	parent, err := workFolder(r.flags.workDir)
	if err != nil {
		return summary, err
	}
	if r.scratch, err = throwaway.NewScratch(parent); err != nil {
		return summary, fmt.Errorf("making a working folder: %w", err)
	}
	defer func() { err = errors.Join(err, r.scratch.Remove()) }()
	if err = r.download(ctx); err != nil {
		return summary, err
	}
	renames, err := parseRenames(r.flags.renames)
	if err != nil {
		return summary, err
	}
	f, d := r.flags, &r.flags.destination
	switch {
	case r.target.Etcd != nil:
		sel := etcd.Selection{Prefixes: f.prefixes, Rename: renames, Leases: f.leases}
		return etcd.ToCluster(ctx, d.etcd(r.target), r.open, r.scratch, r.data.GetRaw().GetBytes(), sel, o)
	case f.part == formatRaft:
		return r.restoreRaft(ctx, o)
	case r.target.Consul != nil:
		return consul.Restore(ctx, d.consul(r.target), r.open, consul.Selection{Prefixes: f.prefixes, Rename: renames}, o)
	}
	return nomad.Restore(ctx, d.nomad(r.target), r.open, nomad.Selection{Namespaces: f.namespaces, Jobs: f.jobs}, o)
}

// whole is what a raft snapshot replaces all of.
func whole(t config.Target) string {
	if t.Nomad != nil {
		return "region"
	}
	return "datacenter"
}

// raftItem says what the raft snapshot does: there is only all or nothing of it.
func (r *restoration) raftItem() restore.Item {
	what := "all keys, ACLs, sessions, services and configuration"
	if r.target.Nomad != nil {
		what = "all namespaces, jobs, allocations, variables, ACLs and configuration"
	}
	return restore.Item{
		Kind: whole(r.target), Name: r.where(), Action: restore.Change,
		Detail: fmt.Sprintf("%s become those of raft index %d, the tokens too; what came later is lost", what, r.data.GetSource().GetRevision()),
	}
}

// restoreRaft tells its item once it is done: until then nothing has changed.
func (r *restoration) restoreRaft(ctx context.Context, o restore.Options) (restore.Summary, error) {
	rec := &restore.Recorder{Options: o}
	var err error
	if d := &r.flags.destination; r.target.Nomad != nil {
		err = nomad.RestoreRaft(ctx, d.nomad(r.target), r.open)
	} else {
		err = consul.RestoreRaft(ctx, d.consul(r.target), r.open)
	}
	if err != nil {
		return rec.Summary(), err
	}
	rec.Bytes(r.data.GetRaw().GetBytes())
	rec.Item(r.raftItem())
	return rec.Summary(), nil
}

// download brings the stored object into the working folder and compares it with the manifest. Everything is read from there
// afterwards, so that what is planned and what is done are of the same bytes.
func (r *restoration) download(ctx context.Context) error {
	need := r.data.GetStored().GetBytes()
	if r.target.Etcd != nil {
		need += etcd.RoomConsumed(r.data.GetRaw().GetBytes())
	}
	if err := r.scratch.CheckRoom(need); err != nil {
		return fmt.Errorf("%w; name a folder with more room with --work-dir", err)
	}
	r.stored = filepath.Join(r.scratch.Dir(), "stored")
	d := &download{objects: r.bucket.objects, data: r.data, stored: true, file: r.stored, out: r.errs}
	return d.toFile(ctx)
}

// open implements restore.Open.
func (r *restoration) open(ctx context.Context) (io.ReadCloser, error) {
	file, err := os.Open(r.stored)
	if err != nil {
		return nil, fmt.Errorf("opening the downloaded snapshot: %w", err)
	}
	d, err := pipeline.Decode(&cancelled{ctx, file}, r.data, r.ids)
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return &decodedFile{d, file}, nil
}

// decodedFile closes the file with the decoder.
type decodedFile struct {
	*pipeline.Decoder
	file io.Closer
}

func (d *decodedFile) Close() error { return errors.Join(d.Decoder.Close(), d.file.Close()) }

// headerRoom is enough for what stands before the data in an age file with thousands of recipients.
const headerRoom = 1 << 20

// canDecrypt tries the identities on the beginning of the stored object.
func canDecrypt(ctx context.Context, o objects, data *lifeboatv1.Data, ids identities) error {
	r, _, err := o.GetRange(ctx, data.GetKey(), 0, min(headerRoom, data.GetStored().GetBytes()), "")
	if err != nil {
		return err
	}
	d, err := pipeline.Decode(r, data, ids)
	if err == nil {
		err = d.Close()
	}
	return errors.Join(err, r.Close())
}

// workFolder is where the downloaded snapshot lies: nobody else may read it.
func workFolder(named string) (string, error) {
	if named != "" {
		if err := os.MkdirAll(named, 0o700); err != nil {
			return "", console.Usagef("--work-dir: %w", err)
		}
		return named, nil
	}
	dir := filepath.Join(os.TempDir(), fmt.Sprintf("lifeboat-restore-%d", os.Getuid()))
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return "", fmt.Errorf("making a working folder: %w; name another one with --work-dir", err)
	}
	// Anybody can make a folder of this name in the temporary one.
	info, err := os.Lstat(dir)
	if err != nil {
		return "", fmt.Errorf("looking at the working folder: %w", err)
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !info.IsDir() || info.Mode().Perm()&0o077 != 0 || !ok || int(stat.Uid) != os.Getuid() {
		return "", fmt.Errorf("%s is not a folder that only you can read; name another one with --work-dir", dir)
	}
	return dir, nil
}

// explain adds to an error what to do next, and makes one of what was not restored.
func (r *restoration) explain(ctx context.Context, s restore.Summary, err error) error {
	switch {
	case isUsage(err):
		return err
	case err != nil && ctx.Err() != nil:
		if !r.flags.apply {
			return errors.New("interrupted; nothing was written")
		}
		if r.flags.part == formatRaft {
			return fmt.Errorf("interrupted: %w\nit is restored as a whole or not at all: look at %s, and run the same command again if it was not", err, r.where())
		}
		return fmt.Errorf("interrupted; %s; run the same command again to go on", done(s))
	case errors.Is(err, restore.ErrNotEmpty):
		return r.refused(s, err)
	case errors.Is(err, pipeline.ErrNoIdentity), isDamage(err) && s.Created+s.Changed == 0:
		return r.unreadable(err)
	case errors.Is(err, restore.ErrNothingSelected):
		return fmt.Errorf("nothing was restored: %w (snapshot %s)\nsee what keys it has with a plan of all of it: --all, without --prefix and --rename",
			err, r.manifest.GetId())
	case err != nil && r.flags.apply && s.Created+s.Changed > 0:
		return fmt.Errorf("%w\n%s; run the same command again to go on", err, done(s))
	case err != nil:
		return fmt.Errorf("restoring %s into %s: %w", r.target.Name, r.where(), err)
	case r.flags.apply:
		return r.notRestored(s)
	case s.Failed > 0:
		return wouldFail(s)
	}
	return nil
}

// unreadable says what else there is when a snapshot cannot be decoded.
func (r *restoration) unreadable(err error) error {
	if errors.Is(err, pipeline.ErrNoIdentity) {
		return console.Usagef("%w: name the file of one of their identities with --identity-file", err)
	}
	if !isDamage(err) {
		return err
	}
	elsewhere := "the second bucket with --store copy"
	if r.flags.store == storeCopy {
		elsewhere = "the first bucket with --store primary"
	}
	return fmt.Errorf("%w\nnothing was written; try another snapshot (lifeboat snapshot list %s), or %s", err, r.target.Name, elsewhere)
}

// refused says what a whole restore would overwrite.
func (r *restoration) refused(s restore.Summary, err error) error {
	if dir := r.flags.member.dir; dir != "" {
		return fmt.Errorf("%w: %s\nnothing was written; name another folder, or have what is there moved aside with --force", err, dir)
	}
	part := "--prefix"
	if r.target.Nomad != nil {
		part = "--namespace or --job"
	}
	return fmt.Errorf("%w\nnothing was written. See all of it with --plan --all. With --force what is missing is created, the %d that differ are "+
		"replaced, and the %d that are only there left. Or restore a part: %s", err, s.Differs, s.Extra, part)
}

// done says what was written so far.
func done(s restore.Summary) string {
	return fmt.Sprintf("%d created and %d changed so far", s.Created, s.Changed)
}

// wouldFail is the error of a plan with something that no --apply can restore as it is.
func wouldFail(s restore.Summary) error {
	err := fmt.Errorf("%d would fail for the reasons above: mend those first", s.Failed)
	if s.Created+s.Changed > 0 {
		err = fmt.Errorf("%w; --apply does the rest", err)
	}
	return err
}

// notRestored is the error of a restore that left something out.
func (r *restoration) notRestored(s restore.Summary) error {
	var why []string
	if s.Differs > 0 {
		why = append(why, fmt.Sprintf("%d differ at the destination and may be newer there: compare with --plan, replace them with --force", s.Differs))
	}
	if s.Failed > 0 {
		why = append(why, fmt.Sprintf("%d failed for the reasons above: mend those and run the same command again", s.Failed))
	}
	if s.Skipped > 0 {
		out := fmt.Sprintf("%d were left out on purpose, and each says above what to do about it", s.Skipped)
		if s.Differs+s.Failed == 0 {
			out += "; all that can be restored from this snapshot is there"
		}
		if r.target.Etcd != nil && !r.flags.leases {
			out += "; keys of leases come with --leases"
		}
		why = append(why, out)
	}
	if len(why) == 0 {
		return nil
	}
	return fmt.Errorf("not everything was restored:\n  %s", strings.Join(why, "\n  "))
}
