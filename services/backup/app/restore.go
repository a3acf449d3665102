package app

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/console"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore"
)

// The kinds of targets, as config.Target.Kind names them.
const (
	kindEtcd   = "etcd"
	kindConsul = "consul"
	kindNomad  = "nomad"
)

// formatRaft is the part that holds all of a server's raft state.
const formatRaft = "snap"

// restoreFlags are those of `lifeboat restore`.
type restoreFlags struct {
	reader
	identity identityFlag
	snapshot string
	part     string
	workDir  string

	plan, apply, force, all bool

	destination destinationFlags
	member      memberFlags

	prefixes, renames, namespaces, jobs []string
	leases                              bool
}

const restoreLong = `restore brings a snapshot, or a part of one, into a destination. It needs the bucket and, for what is encrypted, the age
identity: no NATS and no running service. Without --apply it only plans: it says what would be created, changed and left,
with every value masked.

What is absent at the destination is created. What is there and differs may be newer: it is left and named, and only --force
replaces it, as it was seen when it was compared. What is only at the destination is never touched. A whole restore (no
--prefix, --namespace or --job) into a destination that holds something else is refused before anything is written, unless
--force. An interrupted restore goes on with the same command.

  etcd     --data-dir makes the data directory of a new member or a whole new cluster; --to writes key by key into a
           running one. With --force an existing member is moved aside, not deleted.
  Consul   --to writes keys. --part snap restores the raft snapshot, which replaces all of the datacenter.
  Nomad    --to restores namespaces, node pools, quotas, ACL policies and roles, variables, volumes and jobs, in order. A
           Nomad cluster with clients starts the jobs. --part snap restores the operator snapshot, which replaces all of
           the region. Without it, what Nomad shows nobody is left out and named: of a region with ACLs at least the tokens.

Credentials of the destination are files: --token-file, --username with --password-file, --ca-file, --cert-file, --key-file.
When --to is the target's own address, those of the configuration are used where a flag is missing. CONSUL_HTTP_TOKEN,
NOMAD_TOKEN, ETCDCTL_* and the like are not used: they might be of another cluster.

The snapshot is downloaded once, as it is stored, into a folder that only you can read (--work-dir), compared with its
manifest, and removed at the end. It is decrypted in memory. Only etcd's database has to lie in clear on the disk for a
while: below --data-dir, or with --to in the working folder.

A --prefix that no key of the snapshot begins with, or a --rename of what no selected key begins with, is an error before
anything is written: it is most likely mistyped.

Exit code 1 says that something was not restored, or of a plan that something would fail; --apply names it on standard error.
With --apply the outcome is recorded in the audit log when NATS answers.`

// RestoreCommand is `lifeboat restore`.
func RestoreCommand() *cobra.Command {
	var f restoreFlags
	cmd := &cobra.Command{
		Use: "restore target", Short: "Restore a snapshot, or a part of it; plans unless --apply",
		Long: restoreLong,
		Example: "  lifeboat restore etcd-prod --data-dir /var/lib/etcd --apply\n" +
			"  lifeboat restore etcd-prod --data-dir /var/lib/etcd --name m1 --initial-advertise-peer-urls https://10.0.0.1:2380 \\\n" +
			"      --initial-cluster m1=https://10.0.0.1:2380,m2=https://10.0.0.2:2380 --initial-cluster-token new-1 \\\n" +
			"      --bump-revision 1000000000 --mark-compacted --apply    # the same on m2; for clients that cache what they watch\n" +
			"  lifeboat restore etcd-prod --to https://10.0.0.1:2379 --prefix /registry/secrets/payments/\n" +
			"  lifeboat restore consul-kv --to http://127.0.0.1:8500 --prefix config/payments/\n" +
			"  lifeboat restore consul-kv --to http://127.0.0.1:8500 --prefix config/ --rename config/=restored/ --apply\n" +
			"  lifeboat restore consul-kv --to http://127.0.0.1:8500 --part snap --apply --force   # all of the datacenter\n" +
			"  lifeboat restore nomad-jobs --to http://127.0.0.1:4646 --namespace platform --job loki --apply\n" +
			"  lifeboat restore nomad-jobs --to http://127.0.0.1:4646 --part snap --apply --force   # all of the region\n" +
			"  lifeboat restore nomad-jobs --to https://10.0.0.1:4646 --token-file ~/nomad.token --output json | jq .summary",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return f.run(cmd, args[0]) },
	}
	f.add(cmd)
	return cmd
}

func (f *restoreFlags) add(cmd *cobra.Command) {
	f.reader.add(cmd)
	f.identity.add(cmd)
	flags := cmd.Flags()
	flags.StringVar(&f.snapshot, "snapshot", "latest", "latest, oldest or an `id`")
	flags.StringVar(&f.part, "part", "", "`format` of a further part to restore instead of the data: snap, the raft snapshot of Consul or Nomad")
	flags.BoolVar(&f.plan, "plan", false, "say what would be done, and do nothing (also without this flag)")
	flags.BoolVar(&f.apply, "apply", false, "do it")
	flags.BoolVar(&f.force, "force", false, "replace what differs, and restore all into a destination that is not empty")
	flags.BoolVar(&f.all, "all", false, "list everything, also what is the same and what is only at the destination")
	flags.StringVar(&f.workDir, "work-dir", "", "`folder` for the downloaded snapshot (default: one of yours in the temporary folder)")
	flags.StringArrayVar(&f.prefixes, "prefix", nil, "etcd, Consul: only keys that begin with this; may be repeated")
	flags.StringArrayVar(&f.renames, "rename", nil, "etcd, Consul: `old=new`, another beginning for keys that begin with old; may be repeated")
	flags.BoolVar(&f.leases, "leases", false, "etcd --to: also keys of leases; they are gone again when nobody renews those")
	flags.StringArrayVar(&f.namespaces, "namespace", nil, "Nomad: only this namespace; may be repeated")
	flags.StringArrayVar(&f.jobs, "job", nil, "Nomad: only the job with this `id`; may be repeated")
	f.destination.add(cmd)
	f.member.add(cmd)
	console.CompleteFlag(cmd, "part", formatRaft)
	cmd.ValidArgsFunction = console.CompleteTarget(&f.config)
	// The only error is a flag that does not exist.
	_ = cmd.RegisterFlagCompletionFunc("snapshot", func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) == 0 {
			return []string{"latest", "oldest"}, cobra.ShellCompDirectiveNoFileComp
		}
		return slices.Concat([]string{"latest", "oldest"}, f.snapshotIDs(cmd.Context(), args[0])),
			cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
	})
}

// run is the whole of a restore, from top to bottom.
func (f *restoreFlags) run(cmd *cobra.Command, name string) (err error) {
	ctx := cmd.Context()
	b, err := f.openOne(ctx, name)
	if err != nil {
		return err
	}
	target, _ := b.config.Target(name)
	if err = f.check(cmd, target); err != nil {
		return err
	}
	r := &restoration{flags: f, target: target, bucket: b, out: cmd.OutOrStdout(), errs: cmd.ErrOrStderr(), began: time.Now()}
	if err = r.choose(ctx); err != nil {
		return err
	}
	summary, err := r.run(ctx)
	if f.apply {
		r.record(ctx, summary, err)
	}
	return err
}

// restoredBy says which kinds of targets a flag is for. One that is not here is for all.
func restoredBy() map[string][]string {
	return map[string][]string{
		"data-dir": {kindEtcd}, "name": {kindEtcd}, "initial-cluster": {kindEtcd}, "initial-cluster-token": {kindEtcd},
		"initial-advertise-peer-urls": {kindEtcd}, "bump-revision": {kindEtcd}, "mark-compacted": {kindEtcd},
		"leases": {kindEtcd}, "username": {kindEtcd}, "password-file": {kindEtcd},
		"prefix": {kindEtcd, kindConsul}, "rename": {kindEtcd, kindConsul}, "part": {kindConsul, kindNomad},
		"namespace": {kindNomad}, "job": {kindNomad}, "token-file": {kindConsul, kindNomad},
	}
}

// check refuses what makes no sense before anything is contacted.
func (f *restoreFlags) check(cmd *cobra.Command, t config.Target) error {
	if f.plan && f.apply {
		return console.Usagef("--plan and --apply exclude each other")
	}
	for _, name := range sortedKeys(restoredBy()) {
		kinds := restoredBy()[name]
		if cmd.Flags().Changed(name) && !slices.Contains(kinds, t.Kind()) {
			return console.Usagef("--%s is for targets of kind %s; %s is of kind %s", name, strings.Join(kinds, " and "), t.Name, t.Kind())
		}
	}
	if _, err := parseRenames(f.renames); err != nil {
		return err
	}
	if f.part != "" {
		if f.part != formatRaft {
			return console.Usagef("--part: %q is not %s", f.part, formatRaft)
		}
		if len(f.prefixes)+len(f.renames)+len(f.namespaces)+len(f.jobs) > 0 {
			return console.Usagef("--part %s is restored whole: --prefix, --rename, --namespace and --job do not go with it", f.part)
		}
		if f.apply && !f.force {
			return console.Usagef("--part %s replaces all that the %s holds, ACLs included: say so with --force, or look first with --plan",
				f.part, whole(t))
		}
	}
	if t.Etcd != nil {
		if err := f.member.check(cmd, f); err != nil {
			return err
		}
	}
	return f.destination.check(t, f.member.dir)
}

func parseRenames(texts []string) ([]restore.Rename, error) {
	var all []restore.Rename
	for _, t := range texts {
		from, to, ok := strings.Cut(t, "=")
		if !ok || from == "" {
			return nil, console.Usagef("--rename: %q is not old=new", t)
		}
		all = append(all, restore.Rename{Old: from, New: to})
	}
	return all, nil
}

// choose finds the snapshot and what decodes it.
func (r *restoration) choose(ctx context.Context) error {
	f := r.flags
	m, err := r.bucket.catalog.Find(ctx, r.target.Name, f.snapshot)
	if err != nil {
		return fmt.Errorf("%w; see what there is with: lifeboat snapshot list %s", err, r.target.Name)
	}
	if kindName(m.GetKind()) != r.target.Kind() {
		return fmt.Errorf("%s of %s is of kind %s, and the configuration says that the target is of kind %s",
			m.GetId(), m.GetTarget(), kindName(m.GetKind()), r.target.Kind())
	}
	r.manifest = m
	r.known, r.unknown = r.bucket.catalog.Snapshot(ctx, r.target.Name, m.GetId())
	if r.data, err = partOf(m, f.part); err != nil {
		return err
	}
	return r.identify(ctx)
}

// identify finds the identities and tries them, before anything large is downloaded.
func (r *restoration) identify(ctx context.Context) (err error) {
	if len(r.data.GetRecipients()) == 0 {
		return nil
	}
	if r.ids, err = r.flags.identity.read(r.bucket.config.Encryption); err != nil {
		return err
	}
	if len(r.ids) == 0 {
		return console.Usagef("the snapshot is encrypted to %s: name the file of one of their identities with --identity-file",
			strings.Join(r.data.GetRecipients(), ", "))
	}
	err = canDecrypt(ctx, r.bucket.objects, r.data, r.ids)
	if err != nil && !errors.Is(err, context.Canceled) {
		return r.unreadable(err)
	}
	return err
}

// selection says in words what of the snapshot is restored, for the record.
func (f *restoreFlags) selection() string {
	var words []string
	for flag, values := range map[string][]string{"prefix": f.prefixes, "rename": f.renames, "namespace": f.namespaces, "job": f.jobs} {
		for _, v := range values {
			words = append(words, "--"+flag+" "+v)
		}
	}
	if f.part != "" {
		words = append(words, "--part "+f.part)
	}
	if len(words) == 0 {
		return "everything"
	}
	slices.Sort(words)
	return strings.Join(words, " ")
}

// snapshotName is a snapshot with its age, and whether a drill has proven it, for a person.
func (r *restoration) snapshotName() string {
	text := fmt.Sprintf("%s of %s, taken %s ago", r.manifest.GetId(), r.manifest.GetTarget(), console.Age(r.manifest.GetStartedAt().AsTime()))
	if r.unknown != nil {
		return text
	}
	if d := r.known.Proven(); d != nil {
		return text + fmt.Sprintf(", proven by a drill %s ago", console.Age(d.GetFinishedAt().AsTime()))
	}
	return text + ", not proven by any drill"
}

// warn tells what is wrong with a snapshot before it is restored: a restore of all that it holds is not one of all that there was.
func (r *restoration) warn() {
	if r.unknown != nil {
		fmt.Fprintf(r.errs, "whether it was proven or found damaged cannot be read: %v\n", r.unknown)
	}
	if r.unknown == nil && r.known.Damaged() {
		m := r.known.Marks[lifeboatv1.Mark_KIND_VERIFIED]
		fmt.Fprintln(r.errs, console.Printable(fmt.Sprintf("a verification found it DAMAGED at %s: %s; take another one: lifeboat snapshot list %s",
			when(m.GetAt()), m.GetReason(), r.target.Name)))
	}
	if r.flags.part != "" { // what the data lacks, the whole state may have
		return
	}
	for _, what := range r.manifest.GetSource().GetMissing() {
		fmt.Fprintln(r.errs, console.Printable("the snapshot lacks "+what))
	}
}
