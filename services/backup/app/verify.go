package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	agecrypt "filippo.io/age"
	"github.com/spf13/cobra"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/console"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/pipeline"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/worker"
)

// identities are age private keys.
type identities = []agecrypt.Identity

// identityFlag is --identity-file.
type identityFlag struct{ file string }

func (f *identityFlag) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.file, "identity-file", "", "age identity `file`, in place of encryption.identity_file")
}

// read gives the flag's identities, or the configuration's; none when neither names a file.
func (f *identityFlag) read(enc config.Encryption) (identities, error) {
	flag := f.file != ""
	if flag {
		enc.IdentityFile = config.SecretFile(f.file)
	}
	ids, err := worker.Identities(enc)
	switch {
	case err == nil:
		return ids, nil
	case flag:
		return nil, console.Usagef("--identity-file: %s", strings.TrimPrefix(err.Error(), "encryption.identity_file: "))
	}
	return nil, console.Usagef("%w", err)
}

// verification is how one snapshot's data was found.
type verification struct {
	Target   string `json:"target"`
	Snapshot string `json:"snapshot_id"`
	// Result is "ok", "damaged", or "not checked" when the data could not be reached.
	Result string `json:"result"`
	Method string `json:"method,omitempty"`
	Bytes  int64  `json:"stored_bytes"`
	Error  string `json:"error,omitempty"`
}

const (
	resultOK         = "ok"
	resultDamaged    = "damaged"
	resultNotChecked = "not checked"
)

func verifyCommand() *cobra.Command {
	var r reader
	var id identityFlag
	cmd := &cobra.Command{
		Use: "verify target [all|latest|oldest|id]", Short: "Read stored snapshots whole and compare them with their manifests",
		Long: "verify reads every stored object to its end. With the age identity, or when nothing is encrypted, it decodes what it\n" +
			"reads and compares it with what the source sent; otherwise it compares the stored bytes. It writes nothing.\n" +
			"Exit code 1 says that a snapshot is damaged or could not be read.",
		Example: "  lifeboat snapshot verify etcd-prod\n" +
			"  lifeboat snapshot verify etcd-prod latest --identity-file ~/lifeboat.key --output json",
		Args:              cobra.RangeArgs(1, 2),
		ValidArgsFunction: nil,
		RunE: func(cmd *cobra.Command, args []string) error {
			return r.verify(cmd, id, args[0], argument(args, "all"))
		},
	}
	r.add(cmd)
	id.add(cmd)
	cmd.ValidArgsFunction = r.completeSnapshot("all", "latest", "oldest")
	return cmd
}

// argument is the one after the target, or its default.
func argument(args []string, otherwise string) string {
	if len(args) > 1 {
		return args[1]
	}
	return otherwise
}

func (r *reader) verify(cmd *cobra.Command, id identityFlag, target, selector string) error {
	ctx := cmd.Context()
	b, err := r.openOne(ctx, target)
	if err != nil {
		return err
	}
	ids, err := id.read(b.config.Encryption)
	if err != nil {
		return err
	}
	manifests, err := b.selected(ctx, target, selector)
	if err != nil {
		return err
	}
	results, err := verifyAll(ctx, b, manifests, ids, cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	if err := r.printVerifications(cmd.OutOrStdout(), results); err != nil {
		return err
	}
	return judge(results)
}

// selected are the manifests of all snapshots, or of the one that the selector names.
func (b *bucket) selected(ctx context.Context, target, selector string) ([]*lifeboatv1.Manifest, error) {
	if selector != "all" {
		m, err := b.catalog.Find(ctx, target, selector)
		if err != nil {
			return nil, err
		}
		return []*lifeboatv1.Manifest{m}, nil
	}
	all, err := b.catalog.List(ctx, target)
	manifests := make([]*lifeboatv1.Manifest, len(all))
	for i, s := range all {
		manifests[i] = s.Manifest
	}
	return manifests, err
}

// verifyAll compares each snapshot. Snapshots of an unchanged source share their data, which is read once.
func verifyAll(
	ctx context.Context, b *bucket, manifests []*lifeboatv1.Manifest, ids identities, stderr io.Writer,
) ([]verification, error) {
	var total int64
	known := map[string]*verification{}
	for _, m := range manifests {
		if _, ok := known[dataOf(m)]; !ok {
			known[dataOf(m)] = nil
			total += storedBytes(m)
		}
	}
	bar := newProgress(stderr, "reading", total)
	defer bar.end()
	results := make([]verification, 0, len(manifests))
	for i, m := range manifests {
		v := verification{Target: m.GetTarget(), Snapshot: m.GetId(), Bytes: storedBytes(m), Result: resultOK}
		if same := known[dataOf(m)]; same != nil {
			v.Result, v.Method, v.Error = same.Result, same.Method, same.Error
			results = append(results, v)
			continue
		}
		bar.describe(fmt.Sprintf("reading %s (%d of %d)", m.GetId(), i+1, len(manifests)))
		var err error
		v.Method, err = worker.VerifySnapshot(ctx, b.objects, m, ids, bar.add)
		switch {
		case ctx.Err() != nil:
			return nil, fmt.Errorf("interrupted after %d of %d snapshots", i, len(manifests))
		case errors.Is(err, pipeline.ErrDamaged) || errors.Is(err, store.ErrNotFound):
			v.Result, v.Error = resultDamaged, err.Error()
		case err != nil:
			v.Result, v.Error = resultNotChecked, err.Error()
		}
		known[dataOf(m)] = &v
		results = append(results, v)
	}
	return results, nil
}

// dataOf names the objects of a snapshot and what they must be.
func dataOf(m *lifeboatv1.Manifest) string {
	var b strings.Builder
	for _, d := range allData(m) {
		fmt.Fprintln(&b, d.GetKey(), d.GetStored().GetSha256(), d.GetRaw().GetSha256())
	}
	return b.String()
}

// allData are the main data and the further parts.
func allData(m *lifeboatv1.Manifest) []*lifeboatv1.Data {
	return append([]*lifeboatv1.Data{m.GetData()}, m.GetParts()...)
}

func storedBytes(m *lifeboatv1.Manifest) int64 {
	var n int64
	for _, d := range allData(m) {
		n += d.GetStored().GetBytes()
	}
	return n
}

func (r *reader) printVerifications(out io.Writer, results []verification) error {
	if r.output == console.OutputJSON {
		return console.WriteJSON(out, results)
	}
	t := console.NewTable(out, "SNAPSHOT", "RESULT", "METHOD", "STORED", "WHAT IS WRONG")
	for _, v := range results {
		result := v.Result
		if result != resultOK {
			result = console.Red(out, strings.ToUpper(result))
		}
		t.Row(v.Snapshot, result, console.OrDash(v.Method), size(v.Bytes), console.OrDash(console.FirstLine(v.Error)))
	}
	return t.Flush("no snapshots yet, so there is nothing to verify")
}

// judge makes the exit code say what the table says.
func judge(results []verification) error {
	var damaged, unchecked int
	for _, v := range results {
		switch v.Result {
		case resultDamaged:
			damaged++
		case resultNotChecked:
			unchecked++
		}
	}
	switch {
	case damaged > 0:
		return fmt.Errorf("%d of %d snapshots are damaged; see docs/runbooks/lifeboat-verify-failed.md", damaged, len(results))
	case unchecked > 0:
		return fmt.Errorf("%d of %d snapshots could not be read; nothing is known about them", unchecked, len(results))
	}
	return nil
}
