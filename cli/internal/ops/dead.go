package ops

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/console"
	"github.com/lifeboat-fleet/lifeboat/fleet/service"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// DeadCommand is `lifeboat dead`.
func DeadCommand() *cobra.Command {
	return service.Group(&cobra.Command{
		Use: "dead", Short: "List, show and replay dead letters: what could not be processed, and why",
		Long: "A job that failed for good, an alert that could not be delivered and a webhook that was refused become a dead letter with\n" +
			"the reason, and their subject is free again. Letters are kept for 180 days.",
	}, deadListCommand(), deadShowCommand(), deadReplayCommand())
}

// letter is a dead letter and its place in the stream. One that was stored twice, by a service that died in between, has several.
type letter struct {
	*lifeboatv1.DeadLetter
	seqs []uint64
	// size of the payload in bytes, also when it is not kept.
	size int
}

// The subject of a letter whose payload never was a message: a webhook's body.
const subjectWebhook = "webhook"

// letters are the dead letters whose original subject matches a filter and that were made at since or later, newest last. Without
// payloads they need no memory to speak of; payloads says whose to keep.
func (f *fleet) letters(ctx context.Context, filter string, since time.Time, payloads func(*lifeboatv1.DeadLetter) bool) ([]*letter, error) {
	var all []*letter
	byID := map[string]*letter{}
	err := f.bus.Scan(ctx, bus.StreamDead, deadFilter(filter),
		func(m *bus.Message) error {
			d := &lifeboatv1.DeadLetter{}
			if err := bus.Decode(m.Data, d); err != nil {
				d.Id, d.Subject = "undecodable-"+m.ID(), m.Subject
				d.Reason, d.Payload = "this letter cannot be decoded: "+err.Error(), m.Data
			}
			if d.GetId() == "" {
				d.Id = "unnamed-" + m.ID() // two without a name are not one
			}
			if d.GetTime() == nil { // somebody else made it
				d.Time = timestamppb.New(m.Stored)
			}
			if d.GetTime().AsTime().Before(since) {
				return nil
			}
			size := len(d.GetPayload())
			if !payloads(d) {
				d.Payload = nil
			}
			if twice := byID[d.GetId()]; twice != nil {
				twice.seqs = append(twice.seqs, m.Seq)
				return nil
			}
			byID[d.GetId()] = &letter{DeadLetter: d, seqs: []uint64{m.Seq}, size: size}
			all = append(all, byID[d.GetId()])
			return nil
		})
	if err != nil {
		return nil, fmt.Errorf("listing the dead letters: %w", explain(err))
	}
	slices.SortStableFunc(all, func(a, b *letter) int { return a.GetTime().AsTime().Compare(b.GetTime().AsTime()) })
	return all, nil
}

// deadFilter matches the letters of what matches a subject.
func deadFilter(subject string) string {
	return "lifeboat.dead." + strings.TrimPrefix(strings.TrimPrefix(subject, "lifeboat."), "dead.")
}

func noPayloads(*lifeboatv1.DeadLetter) bool { return false }

// validFilter says whether a subject, or what matches several, can be asked for.
func validFilter(s string) bool {
	tokens := strings.Split(s, ".")
	for i, t := range tokens {
		if t == "" || strings.ContainsFunc(t, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }) ||
			(strings.Contains(t, ">") && (t != ">" || i < len(tokens)-1)) || (strings.Contains(t, "*") && t != "*") {
			return false
		}
	}
	return true
}

// find is the letter with an id.
func (f *fleet) find(ctx context.Context, id string) (*letter, error) {
	all, err := f.letters(ctx, ">", time.Time{}, func(d *lifeboatv1.DeadLetter) bool { return d.GetId() == id })
	if err != nil {
		return nil, err
	}
	if i := slices.IndexFunc(all, func(l *letter) bool { return l.GetId() == id }); i >= 0 {
		return all[i], nil
	}
	return nil, fmt.Errorf("no dead letter is named %q; see which there are: lifeboat dead list -c %s", clean(id), f.file)
}

func deadListCommand() *cobra.Command {
	var f flags
	var subject, since string
	cmd := &cobra.Command{
		Use: "list", Short: "List dead letters, newest last",
		Example: "  lifeboat dead list\n  lifeboat dead list --since 7d\n  lifeboat dead list --subject 'lifeboat.job.snapshot.*'\n" +
			"  lifeboat dead list --subject webhook --output json",
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			from, err := parseSince(since, time.Now())
			if err != nil {
				return err
			}
			if !validFilter(subject) {
				return console.Usagef("--subject: %q is no subject; name one such as lifeboat.job.snapshot.etcd-prod or 'lifeboat.job.>'", clean(subject))
			}
			fl, err := f.open(cmd.Context())
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, fl.close()) }()
			all, err := fl.letters(cmd.Context(), subject, from, func(*lifeboatv1.DeadLetter) bool { return f.output == console.OutputJSON })
			if err != nil {
				return err
			}
			return printLetters(cmd.OutOrStdout(), f.output, all)
		},
	}
	f.add(cmd)
	cmd.Flags().StringVar(&subject, "subject", ">", "only what came from this `subject`; * and > stand for any token and the rest")
	cmd.Flags().StringVar(&since, "since", "", "only what is younger than this `age`, as 36h or 7d")
	console.CompleteFlag(cmd, "subject", "lifeboat.job.>", "lifeboat.alert.>", subjectWebhook)
	console.CompleteFlag(cmd, "since", "24h", "7d", "30d")
	return cmd
}

// parseSince is the moment that an age means; the zero one when it is empty.
func parseSince(age string, now time.Time) (time.Time, error) {
	if age == "" {
		return time.Time{}, nil
	}
	var p config.Period
	if err := p.UnmarshalText([]byte(age)); err != nil {
		return time.Time{}, console.Usagef("--since: %v", err)
	}
	return now.Add(-time.Duration(p)), nil
}

// The most of a reason that a line has room for.
const maxReason = 100

func printLetters(out io.Writer, output string, all []*letter) error {
	if output == console.OutputJSON {
		messages := make([]proto.Message, 0, len(all))
		for _, l := range all {
			messages = append(messages, l.DeadLetter)
		}
		return console.PrintJSON(out, messages)
	}
	t := console.NewTable(out, "ID", "AGE", "SUBJECT", "ATTEMPTS", "REASON")
	for _, l := range all {
		t.Row(clean(l.GetId()), console.Age(l.GetTime().AsTime()), clean(l.GetSubject()), fmt.Sprint(l.GetAttempts()),
			cut(console.FirstLine(l.GetReason()), maxReason))
	}
	return t.Flush("no dead letters")
}

func deadShowCommand() *cobra.Command {
	var f flags
	var payload bool
	cmd := &cobra.Command{
		Use: "show id", Short: "Show one dead letter: where it came from, why it is dead, and what it says",
		Example: "  lifeboat dead show dead-lifeboat.job.snapshot.etcd-prod-20261121T040000.123Z-42\n" +
			"  lifeboat dead show 01KAJ2ZJ5Q1J5V7K4E7X --output json | jq -r .payload | base64 -d\n" +
			"  lifeboat dead show 01KAJ2ZJ5Q1J5V7K4E7X --payload > body.json",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeLetters(&f.config, 1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			fl, err := f.open(cmd.Context())
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, fl.close()) }()
			l, err := fl.find(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			switch {
			case payload && console.IsTerminal(out):
				_, err = fmt.Fprintln(out, console.Printable(string(l.GetPayload())))
			case payload:
				_, err = out.Write(l.GetPayload())
			case f.output == console.OutputJSON:
				err = printLetterJSON(out, l)
			default:
				err = fl.printLetter(out, l)
			}
			return err
		},
	}
	f.add(cmd)
	cmd.Flags().BoolVar(&payload, "payload", false, "write the payload alone, whole and as it is")
	return cmd
}

func printLetterJSON(out io.Writer, l *letter) error {
	b, err := protojson.Marshal(l.DeadLetter)
	if err != nil {
		return fmt.Errorf("encoding: %w", err)
	}
	return console.WriteJSON(out, json.RawMessage(b))
}

func (f *fleet) printLetter(out io.Writer, l *letter) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	row := func(name, value string) { fmt.Fprintf(w, "%s\t%s\n", name, value) }
	row("ID", clean(l.GetId()))
	row("TIME", l.GetTime().AsTime().Format(time.RFC3339)+" ("+console.Age(l.GetTime().AsTime())+" ago)")
	row("SUBJECT", clean(l.GetSubject()))
	row("ATTEMPTS", fmt.Sprint(l.GetAttempts()))
	row("BY", console.OrDash(clean(l.GetActor())))
	lines := strings.Split(console.Printable(l.GetReason()), "\n")
	row("REASON", strings.Join(lines, "\n\t"))
	keys := make([]string, 0, len(l.GetHeaders()))
	for k := range l.GetHeaders() {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		row("HEADER", clean(k)+": "+clean(l.GetHeaders()[k]))
	}
	row("PAYLOAD", strings.ReplaceAll(readable(l.DeadLetter), "\n", "\n\t"))
	row("NEXT", f.remedy(l.DeadLetter))
	return w.Flush()
}

// The most of a payload that is shown.
const maxShown = 4 << 10

// readable is a payload for a person.
func readable(d *lifeboatv1.DeadLetter) string {
	b := d.GetPayload()
	note := ""
	if d.GetTruncated() {
		note = "\n(only the beginning was kept)"
	}
	switch {
	case len(b) == 0:
		return "empty: a job with defaults" + note
	case !utf8.Valid(b) && !d.GetTruncated():
		return fmt.Sprintf("%d bytes that are no text; write them out with --payload", len(b)) + note
	case len(b) > maxShown:
		note = fmt.Sprintf("\n(%d of %d bytes; all of it with --payload)", maxShown, len(b)) + note
		b = b[:maxShown]
	}
	return console.Printable(strings.ToValidUTF8(string(b), "")) + note
}

// remedy is what can be done with a letter.
func (f *fleet) remedy(d *lifeboatv1.DeadLetter) string {
	if err := f.replayable(d); err != nil {
		return err.Error()
	}
	return fmt.Sprintf("when the cause is mended: lifeboat dead replay %s -c %s", clean(d.GetId()), f.file)
}

// completionTimeout is the longest that pressing Tab may take.
const completionTimeout = 2 * time.Second

// completeLetters offers the ids of letters, newest first, up to a number of arguments; 0 is any.
func completeLetters(file *string, most int) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		const directive = cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
		if most > 0 && len(args) >= most {
			return nil, directive
		}
		cfg, err := config.Load(*file)
		if err != nil {
			return nil, directive
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), completionTimeout)
		defer cancel()
		fl, err := connect(ctx, cfg, *file, completionTimeout)
		if err != nil {
			return nil, directive
		}
		defer func() { _ = fl.close() }() // a shell has no place for errors
		all, err := fl.letters(ctx, ">", time.Time{}, noPayloads)
		if err != nil {
			return nil, directive
		}
		var ids []string
		for _, l := range slices.Backward(all) {
			if !slices.Contains(args, l.GetId()) {
				ids = append(ids, clean(l.GetId()))
			}
		}
		return ids, directive
	}
}
