package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lifeboat-fleet/lifeboat/fleet/console"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore/etcd"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/throwaway"
)

// etcdutl's own defaults.
const (
	defaultMemberName   = "default"
	defaultPeerURL      = "http://localhost:2380"
	defaultClusterToken = "etcd-cluster"
)

// memberFlags describe the etcd member whose data directory is made, as `etcdutl snapshot restore` has them.
type memberFlags struct {
	dir, name, cluster, token string
	peerURLs                  []string
	bump                      uint64
	compacted                 bool
}

func (m *memberFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&m.dir, "data-dir", "", "etcd: `folder` to make the data directory of a new member in")
	flags.StringVar(&m.name, "name", defaultMemberName, "etcd --data-dir: the member's name")
	flags.StringVar(&m.cluster, "initial-cluster", "", "etcd --data-dir: all members as `name=peer-url,...` (default: this one alone)")
	flags.StringVar(&m.token, "initial-cluster-token", defaultClusterToken, "etcd --data-dir: the new cluster's token, the same for all members")
	flags.StringSliceVar(&m.peerURLs, "initial-advertise-peer-urls", []string{defaultPeerURL}, "etcd --data-dir: the member's peer `URLs`")
	flags.Uint64Var(&m.bump, "bump-revision", 0, "etcd --data-dir: how far to move the revision on, for clients that cache what they watch")
	flags.BoolVar(&m.compacted, "mark-compacted", false, "etcd --data-dir: mark all before it as compacted; goes with --bump-revision")
	_ = cmd.MarkFlagDirname("data-dir") // the only error is a flag that does not exist
}

// check refuses what does not go together. A restore of etcd makes a data directory or writes key by key.
func (m *memberFlags) check(cmd *cobra.Command, f *restoreFlags) error {
	changed := cmd.Flags().Changed
	switch {
	case m.dir != "" && len(f.destination.to) > 0:
		return console.Usagef("--data-dir and --to exclude each other: the one makes a new member, the other writes into a running cluster")
	case m.dir != "":
		for _, name := range []string{
			"prefix", "rename", "leases", "username", "password-file", "ca-file", "cert-file", "key-file",
		} {
			if changed(name) {
				return console.Usagef("--%s belongs to --to; a data directory is made whole", name)
			}
		}
		if !strings.Contains(","+m.initialCluster(), ","+m.name+"=") {
			return console.Usagef("--initial-cluster: %q has no member named %q, which --name says that this is", m.cluster, m.name)
		}
	default:
		for _, name := range []string{
			"name", "initial-cluster", "initial-cluster-token", "initial-advertise-peer-urls", "bump-revision", "mark-compacted",
		} {
			if changed(name) {
				return console.Usagef("--%s belongs to --data-dir", name)
			}
		}
	}
	if (m.bump > 0) != m.compacted {
		return console.Usagef("--bump-revision and --mark-compacted go together, as etcdutl has it: clients must notice that what they saw is gone")
	}
	return nil
}

// initialCluster is this member alone when nothing else was said.
func (m *memberFlags) initialCluster() string {
	if m.cluster != "" {
		return m.cluster
	}
	all := make([]string, len(m.peerURLs))
	for i, u := range m.peerURLs {
		all[i] = m.name + "=" + u
	}
	return strings.Join(all, ",")
}

// startCommand is how the new member is started.
func (m *memberFlags) startCommand() string {
	return fmt.Sprintf("etcd --name %s --data-dir %s --initial-cluster %s --initial-cluster-token %s --initial-advertise-peer-urls %s",
		quote(m.name), quote(m.dir), quoteWord(m.initialCluster()), quoteWord(m.token), quoteWord(strings.Join(m.peerURLs, ",")))
}

// toDataDir makes a data directory. It gets its name as the last step, so that an interruption leaves no half one.
func (r *restoration) toDataDir(ctx context.Context, o restore.Options) (s restore.Summary, err error) {
	m := &r.flags.member
	rec := &restore.Recorder{Options: o}
	there, err := entriesOf(m.dir)
	if err != nil {
		return s, err
	}
	action := restore.Create
	if len(there) > 0 {
		if action = restore.Change; !r.flags.force {
			action = restore.Differs
		}
	}
	item := restore.Item{Kind: "member", Name: m.dir, Action: action, Detail: r.memberDetail(there)}
	if !o.Apply || action == restore.Differs {
		rec.Item(item)
		if o.Apply {
			err = restore.ErrNotEmpty
		}
		return rec.Summary(), err
	}
	if err = r.makeMember(ctx); err != nil {
		return rec.Summary(), err
	}
	rec.Bytes(r.data.GetRaw().GetBytes())
	rec.Item(item)
	return rec.Summary(), nil
}

func (r *restoration) memberDetail(there []string) string {
	m := &r.flags.member
	detail := fmt.Sprintf("%s of %s, %s at revision %d", m.name, m.initialCluster(), counted(r.manifest.GetKind(), r.manifest.GetSource()),
		r.manifest.GetSource().GetRevision())
	if m.bump > 0 {
		detail += fmt.Sprintf(" moved on by %d", m.bump)
	}
	if len(there) > 0 {
		detail += "; in place of what is there: " + strings.Join(there, ", ")
	}
	return detail
}

// entriesOf lists what a folder holds; nothing when there is none.
func entriesOf(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, console.Usagef("--data-dir: %w", err)
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, nil
}

// makeMember downloads, decodes and restores, beside the data directory: the database is then renamed and not copied.
func (r *restoration) makeMember(ctx context.Context) (err error) {
	m := &r.flags.member
	parent := r.flags.workDir
	if parent == "" {
		if parent, err = filepath.Abs(filepath.Dir(filepath.Clean(m.dir))); err != nil {
			return fmt.Errorf("finding the folder of %s: %w", m.dir, err)
		}
	}
	if err = os.MkdirAll(parent, 0o700); err != nil {
		return console.Usagef("making the folder to work in: %w", err)
	}
	if r.scratch, err = throwaway.NewScratch(parent); err != nil {
		return fmt.Errorf("making a folder to work in: %w", err)
	}
	defer func() { err = errors.Join(err, r.scratch.Remove()) }()
	if err = r.scratch.CheckRoom(r.data.GetStored().GetBytes() + etcd.RoomConsumed(r.data.GetRaw().GetBytes())); err != nil {
		return err
	}
	db := filepath.Join(r.scratch.Dir(), "snapshot.db")
	d := &download{objects: r.bucket.objects, data: r.data, ids: r.ids, file: db, out: r.errs}
	if err = d.toFile(ctx); err != nil {
		return err
	}
	return etcd.ToDataDir(ctx, etcd.DataDir{
		Snapshot: db, Consume: true, Dir: m.dir, Force: r.flags.force,
		Name: m.name, PeerURLs: m.peerURLs, InitialCluster: m.initialCluster(), Token: m.token,
		BumpRevision: m.bump, MarkCompacted: m.compacted,
		MovedAside: func(path string) {
			fmt.Fprintf(r.errs, "what was there is now %s: delete it when nobody needs it any more\n", path)
		},
	})
}

// nextMember says what a person does with a new data directory.
func (r *restoration) nextMember(out io.Writer) error {
	m := &r.flags.member
	_, err := fmt.Fprintf(out, "\nIts owner is that of what was there before, or you. Give it to the user that etcd runs as, and start it:\n  %s\n", m.startCommand())
	if err == nil && strings.Contains(m.initialCluster(), ",") {
		_, err = fmt.Fprintf(out, "Make the other members first, each with its --name and --initial-advertise-peer-urls, and all with --snapshot %s.\n",
			r.manifest.GetId())
	}
	return err
}
