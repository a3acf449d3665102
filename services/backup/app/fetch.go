package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lifeboat-fleet/lifeboat/fleet/console"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/pipeline"
)

// fetchFlags are those of `lifeboat snapshot fetch`.
type fetchFlags struct {
	reader
	identity identityFlag
	file     string
	part     string
	stored   bool
	force    bool
}

func fetchCommand() *cobra.Command {
	var f fetchFlags
	cmd := &cobra.Command{
		Use: "fetch target [latest|oldest|id]", Short: "Download a snapshot, decode it and check it; the same command resumes",
		Long: "fetch downloads the stored object beside FILE, goes on by itself when the connection breaks, decodes it and compares\n" +
			"it with the manifest. FILE appears only when every byte is right. After an interruption the same command goes on\n" +
			"where it was. It needs only the bucket and, for an encrypted snapshot, the age identity.",
		Example: "  lifeboat snapshot fetch etcd-prod\n" +
			"  lifeboat snapshot fetch etcd-prod oldest -o /var/tmp/etcd.db --identity-file ~/lifeboat.key\n" +
			"  lifeboat snapshot fetch consul-kv --part snap          # the raft snapshot beside the data\n" +
			"  lifeboat snapshot fetch etcd-prod --stored             # as it is stored, for another machine to decrypt\n" +
			"  lifeboat snapshot fetch consul-kv -o - | jq length",
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.run(cmd, args[0], argument(args, "latest"))
		},
	}
	f.addStore(cmd)
	f.identity.add(cmd)
	cmd.Flags().StringVarP(&f.file, "file", "o", "", "`file` to write, - for standard output (default <target>-<id>.<format>)")
	cmd.Flags().StringVar(&f.part, "part", "", "`format` of a further part to fetch, as snap, instead of the data")
	cmd.Flags().BoolVar(&f.stored, "stored", false, "keep the object as it is stored; needs no identity")
	cmd.Flags().BoolVar(&f.force, "force", false, "replace the file if it exists")
	console.CompleteFlag(cmd, "part", "snap")
	cmd.ValidArgsFunction = f.completeSnapshot("latest", "oldest")
	return cmd
}

func (f *fetchFlags) run(cmd *cobra.Command, target, selector string) error {
	ctx := cmd.Context()
	b, err := f.openOne(ctx, target)
	if err != nil {
		return err
	}
	m, err := b.catalog.Find(ctx, target, selector)
	if err != nil {
		return fmt.Errorf("%w; see what there is with: lifeboat snapshot list %s", err, target)
	}
	data, err := partOf(m, f.part)
	if err != nil {
		return err
	}
	ids, err := f.needed(b, data)
	if err != nil {
		return err
	}
	d := &download{
		objects: b.objects, data: data, ids: ids, stored: f.stored, force: f.force, file: f.file,
		out: cmd.ErrOrStderr(),
	}
	if d.file == "" {
		d.file = defaultFile(m, data, f.stored)
	}
	if d.file == "-" {
		return d.toStdout(ctx, cmd.OutOrStdout())
	}
	if err := d.toFile(ctx); err != nil {
		return d.explain(ctx, err, m, f.store)
	}
	return d.next(cmd.OutOrStdout(), m)
}

// partOf is the data to fetch: the main one, or the further part of a format.
func partOf(m *lifeboatv1.Manifest, format string) (*lifeboatv1.Data, error) {
	if format == "" || format == m.GetData().GetFormat() {
		return m.GetData(), nil
	}
	has := []string{m.GetData().GetFormat()}
	for _, p := range m.GetParts() {
		if p.GetFormat() == format {
			return p, nil
		}
		has = append(has, p.GetFormat())
	}
	return nil, console.Usagef("--part: %s of %s has no part %q; it has %s", m.GetId(), m.GetTarget(), format, strings.Join(has, ", "))
}

// needed are the identities to decode with. That one is missing is said before anything is downloaded.
func (f *fetchFlags) needed(b *bucket, data *lifeboatv1.Data) (identities, error) {
	if f.stored || len(data.GetRecipients()) == 0 {
		return nil, nil
	}
	ids, err := f.identity.read(b.config.Encryption)
	if err == nil && len(ids) == 0 {
		return nil, console.Usagef("the snapshot is encrypted to %s: name the file of one of their identities with --identity-file, "+
			"or take it as it is with --stored and decrypt it where an identity is", strings.Join(data.GetRecipients(), ", "))
	}
	return ids, err
}

func defaultFile(m *lifeboatv1.Manifest, data *lifeboatv1.Data, stored bool) string {
	if stored {
		return path.Base(data.GetKey())
	}
	return fmt.Sprintf("%s-%s.%s", m.GetTarget(), m.GetId(), data.GetFormat())
}

// explain adds to an error what to do next.
func (d *download) explain(ctx context.Context, err error, m *lifeboatv1.Manifest, from string) error {
	if ctx.Err() != nil {
		err = errors.New("interrupted")
	}
	switch {
	case isUsage(err):
		return err
	case errors.Is(err, pipeline.ErrNoIdentity):
		return fmt.Errorf("%w; the object is whole in %s: run the same command with another --identity-file, which downloads nothing again",
			err, d.partial())
	case isDamage(err):
		elsewhere := ", or the second bucket with --store copy"
		if from == storeCopy {
			elsewhere = ", or the first bucket with --store primary"
		}
		return fmt.Errorf("%w\n%s was not written; try another snapshot (lifeboat snapshot list %s)%s",
			err, d.file, m.GetTarget(), elsewhere)
	}
	if n := d.have(); n > 0 {
		return fmt.Errorf("%w\n%s of %s are kept in %s; run the same command to resume", err, size(n),
			size(d.data.GetStored().GetBytes()), d.partial())
	}
	return err
}

// next says what is there now and what a person types after it.
func (d *download) next(out io.Writer, m *lifeboatv1.Manifest) error {
	want := d.data.GetRaw()
	if d.stored {
		want = d.data.GetStored()
	}
	var text strings.Builder
	fmt.Fprintf(&text, "wrote %s: %s, sha256 %s as its manifest says\n", d.file, size(want.GetBytes()), want.GetSha256())
	commands := nextCommands(m, d.data, d.file, d.stored)
	if len(commands) > 0 {
		text.WriteString("\nTo restore it:\n")
	}
	for _, c := range commands {
		text.WriteString("  " + console.Printable(c) + "\n")
	}
	_, err := io.WriteString(out, text.String())
	return err
}

// nextCommands are the manifest's own commands for this data that come after those already done: after the download when
// the stored form is kept, otherwise after the decoding, with the file's real name.
func nextCommands(m *lifeboatv1.Manifest, data *lifeboatv1.Data, file string, stored bool) []string {
	object := path.Base(data.GetKey())
	var after []string
	decoded := ""
	found := false
	for _, c := range m.GetRestoreCommands() {
		switch {
		case strings.HasPrefix(c, "#"):
			continue
		case strings.Contains(c, " s3 cp "):
			found = strings.HasSuffix(c, " "+object)
			decoded = ""
			continue
		case !found:
			continue
		case strings.Contains(c, "zstd -d") && !stored:
			_, decoded, _ = strings.Cut(c, "-o ")
			continue
		case strings.Contains(c, "sha256sum -c") && !stored:
			continue // what was fetched has been compared
		case stored:
			c = strings.ReplaceAll(c, object, quote(file))
		case decoded == "":
			continue
		default:
			c = strings.ReplaceAll(c, decoded, quote(file))
		}
		after = append(after, c)
	}
	return after
}

// quote makes a file's name one word of a shell.
func quote(file string) string {
	if word := quoteWord(file); word != file {
		return word
	}
	return filepath.Clean(file)
}

// quoteWord makes a text one word of a shell.
func quoteWord(text string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._-/+:,=@%", r)
	}
	if text == "" || strings.ContainsFunc(text, func(r rune) bool { return !plain(r) }) {
		return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
	}
	return text
}

// toStdout writes the data as it comes. What was written is right only if no error is returned.
func (d *download) toStdout(ctx context.Context, out io.Writer) error {
	if console.IsTerminal(out) {
		return console.Usagef("a snapshot is not for a terminal: pipe it on, or name a file with -o")
	}
	bar := newProgress(d.out, "fetching", d.data.GetStored().GetBytes())
	defer bar.end()
	r, _, err := d.objects.GetRange(ctx, d.data.GetKey(), 0, -1, "")
	if err != nil {
		return err
	}
	defer r.Close()
	counted := io.TeeReader(r, bar)
	if d.stored {
		err = pipeline.Check(io.TeeReader(counted, out), d.data.GetStored())
	} else {
		err = decodeTo(out, counted, d.data, d.ids)
	}
	if err != nil {
		return fmt.Errorf("%w; what was written to standard output is not whole: do not use it", err)
	}
	return nil
}

// decodeTo writes what the source sent. It returns nil only if all of it is as the manifest says.
func decodeTo(w io.Writer, stored io.Reader, data *lifeboatv1.Data, ids identities) error {
	decoded, err := pipeline.Decode(stored, data, ids)
	if err != nil {
		return err
	}
	_, err = io.Copy(w, decoded)
	return errors.Join(err, decoded.Close())
}
