package app

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/console"
	"github.com/lifeboat-fleet/lifeboat/fleet/service"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/route"
)

// routeFlags are those of `lifeboat notify route`.
type routeFlags struct {
	config    string
	output    string
	at        string
	receivers bool
	expect    string
}

// routeCommand is `lifeboat notify route`.
func routeCommand() *cobra.Command {
	var f routeFlags
	cmd := &cobra.Command{
		Use: "route [key=value...]", Short: "Which receivers an alert with these labels goes to, and why",
		Long: "route goes down the tree of routes with the labels of an alert and shows every route it looks at: which matcher failed on\n" +
			"which value, which route takes the alert, who is mentioned, and whether a time interval holds it back. It asks nobody and\n" +
			"sends nothing.\n\n" +
			"Labels are read, and receivers are found, as `amtool config routes test` does. A value with spaces or quotes stands in double\n" +
			"quotes: 'summary=\"disk full\"'. With --expect it exits with 1 when the receivers are others, to test routes before they are used.",
		Example: "  lifeboat notify route severity=critical team=db\n" +
			"  lifeboat notify route severity=warning --at 2026-11-22T03:00:00+08:00\n" +
			"  lifeboat notify route severity=critical team=db --expect ops-slack,db-dingtalk\n" +
			"  lifeboat notify route severity=critical --receivers",
		RunE: func(cmd *cobra.Command, args []string) error { return f.run(cmd, args) },
	}
	console.AddConfig(cmd, &f.config)
	console.AddOutput(cmd, &f.output)
	cmd.Flags().StringVar(&f.at, "at", "", "the `time` to look at, as 2026-11-22T03:00:00+08:00; now when empty")
	cmd.Flags().BoolVar(&f.receivers, "receivers", false, "print only the receivers, \"a,b\", as amtool does: one for each route")
	cmd.Flags().StringVar(&f.expect, "expect", "", "the `receivers` that it should be, \"a,b\"; exit code 1 says that it is not")
	console.CompleteFlag(cmd, "at")
	cmd.ValidArgsFunction = completeLabels(&f.config)
	return cmd
}

// routed is what `lifeboat notify route` shows.
type routed struct {
	Labels map[string]string `json:"labels"`
	At     time.Time         `json:"at"`
	Routes []routeStep       `json:"routes"`
	// Receivers are the routes that take the alert. A receiver is told once, by the one that tells.
	Receivers []routeHit `json:"receivers"`
}

// routeStep is one route on the way.
type routeStep struct {
	Key      string `json:"key"`
	Line     int    `json:"line"`
	Matchers string `json:"matchers"`
	Looked   bool   `json:"looked_at"`
	Matched  bool   `json:"matched"`
	Takes    bool   `json:"takes"`
	Continue bool   `json:"continue"`
	// Why says in words what became of the alert here.
	Why   string `json:"why"`
	depth int
}

// routeHit is a route that takes the alert.
type routeHit struct {
	Receiver string `json:"receiver"`
	Route    string `json:"route"`
	Key      string `json:"key"`
	// Mentions are who is mentioned when an alert of this severity begins to fire.
	Mentions      []string `json:"mentions"`
	RepeatSeconds float64  `json:"repeat_seconds"`
	Muted         bool     `json:"muted"`
	MutedBy       string   `json:"muted_by,omitempty"`
	// Until is when the route delivers again; absent when that is not known.
	Until *time.Time `json:"until,omitempty"`
	// Tells says that the receiver is told by this route.
	Tells bool   `json:"tells"`
	Note  string `json:"note"`
}

func (f *routeFlags) run(cmd *cobra.Command, args []string) error {
	if err := console.CheckOutput(f.output); err != nil {
		return err
	}
	if f.receivers && cmd.Flags().Changed("output") {
		return console.Usagef("--receivers prints one line and goes without --output; the JSON holds the receivers too")
	}
	at := time.Now()
	if f.at != "" {
		var err error
		if at, err = time.Parse(time.RFC3339, f.at); err != nil {
			return console.Usagef("--at: %q is not a time such as 2026-11-22T03:00:00+08:00", f.at)
		}
	}
	lbls, err := route.ParseLabels(args)
	if err != nil {
		return &service.UsageError{Err: err}
	}
	cfg, err := config.Load(f.config)
	if err != nil {
		return &service.UsageError{Err: err}
	}
	tree, err := route.Compile(cfg.Notifier)
	if err != nil {
		return &service.UsageError{Err: err}
	}
	hits := tree.Match(lbls)
	if len(hits) == 0 {
		return console.Usagef("%s has no notifier.route, so no alert goes anywhere", f.config)
	}
	names := make([]string, 0, len(hits))
	for _, h := range hits {
		names = append(names, h.Receiver)
	}
	if err := f.show(cmd.OutOrStdout(), cfg, tree, lbls, at, strings.Join(names, ",")); err != nil {
		return err
	}
	if got := strings.Join(names, ","); f.expect != "" && f.expect != got {
		return fmt.Errorf("the receivers are %s, and not %s", got, f.expect)
	}
	return nil
}

func (f *routeFlags) show(out io.Writer, cfg *config.Config, tree *route.Tree, lbls map[string]string, at time.Time, names string) error {
	if f.receivers {
		_, err := fmt.Fprintln(out, names)
		return err
	}
	r := &routed{Labels: lbls, At: at, Routes: steps(tree, lbls), Receivers: hitsOf(cfg, tree, lbls, at)}
	f.lines(r.Routes)
	if f.output == console.OutputJSON {
		return console.WriteJSON(out, r)
	}
	return r.table(out)
}

// lines finds where the routes stand in the file; 1 for what is not found.
func (f *routeFlags) lines(all []routeStep) {
	src, err := os.ReadFile(f.config)
	if err != nil { // it was there a moment ago; the keys are shown all the same
		return
	}
	found := make([]config.Finding, 0, len(all))
	for _, s := range all {
		found = append(found, config.Finding{Key: s.Key})
	}
	for i, place := range config.Place(f.config, src, found) {
		all[i].Line = place.Line
	}
}

func steps(tree *route.Tree, lbls map[string]string) []routeStep {
	explained := tree.Explain(lbls)
	all := make([]routeStep, 0, len(explained))
	for _, s := range explained {
		all = append(all, routeStep{
			Key: s.Key, Matchers: s.Matchers, Looked: s.Behind == "", Matched: s.Matched, Takes: s.Hit != nil, Continue: s.Continue,
			Why: why(s), depth: s.Depth,
		})
	}
	return all
}

// why says in words what became of the alert at a route.
func why(s route.Step) string {
	switch {
	case s.Behind != "":
		return fmt.Sprintf("not looked at: %s took the alert, without continue", s.Behind)
	case s.Hit != nil && s.Continue:
		return "takes it for " + s.Receiver + "; continue: the next ones are looked at too"
	case s.Hit != nil:
		return "takes it for " + s.Receiver
	case s.Matched:
		return "matches; see below"
	}
	var failed []string
	for _, m := range s.Tested {
		switch {
		case m.Matched:
		case !m.Present:
			failed = append(failed, fmt.Sprintf("%s, but there is no %s", m.Matcher, m.Label))
		default:
			failed = append(failed, fmt.Sprintf("%s, but %s is %q", m.Matcher, m.Label, m.Value))
		}
	}
	return "no: " + strings.Join(failed, "; ")
}

func hitsOf(cfg *config.Config, tree *route.Tree, lbls map[string]string, at time.Time) []routeHit {
	hits := tree.Match(lbls)
	telling := map[string]string{}
	for _, h := range route.Pick(tree, hits, at) {
		telling[h.Receiver] = h.Key
	}
	all := make([]routeHit, 0, len(hits))
	for _, h := range hits {
		shown := routeHit{
			Receiver: h.Receiver, Route: h.Route, Key: h.Key, Mentions: h.MentionsFor(lbls["severity"]), RepeatSeconds: h.Repeat.Seconds(),
			Tells: telling[h.Receiver] == h.Key, Note: "delivers",
		}
		if shown.Mentions == nil {
			shown.Mentions = []string{}
		}
		if shown.MutedBy, shown.Muted = tree.Muted(at, h.Mute, h.Active); shown.Muted {
			shown.Note = "muted by time interval " + shown.MutedBy
			if !slices.Contains(h.Mute, shown.MutedBy) {
				shown.Note = "muted: outside its active time intervals, " + shown.MutedBy + ","
			}
			if end, ok := tree.Until(at, h.Mute, h.Active); ok {
				shown.Until = &end
				shown.Note += " until " + local(end, cfg, h.Receiver)
			}
		}
		if !shown.Tells {
			shown.Note = fmt.Sprintf("%s is told by %s", h.Receiver, telling[h.Receiver])
		}
		all = append(all, shown)
	}
	return all
}

// local is a moment on the clock of a receiver.
func local(at time.Time, cfg *config.Config, receiver string) string {
	loc := time.UTC
	for _, r := range cfg.Notifier.Receivers {
		if r.Name != receiver {
			continue
		}
		if l, err := time.LoadLocation(r.TimeZone); err == nil { // the configuration was checked
			loc = l
		}
	}
	return at.In(loc).Format("2006-01-02 15:04 MST")
}

func (r *routed) table(out io.Writer) error {
	t := console.NewTable(out, "LINE", "ROUTE", "RESULT")
	for _, s := range r.Routes {
		name := s.Key[strings.LastIndexByte(s.Key, '.')+1:]
		result := console.FirstLine(s.Why)
		if s.Takes {
			result = console.Green(out, result)
		}
		t.Row(fmt.Sprint(s.Line), strings.Repeat("  ", s.depth)+name+" "+console.FirstLine(s.Matchers), result)
	}
	if err := t.Flush(""); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(out); err != nil {
		return err
	}
	t = console.NewTable(out, "RECEIVER", "MENTIONS", "REPEAT", "AT "+r.At.Format("2006-01-02 15:04 MST"))
	for _, h := range r.Receivers {
		t.Row(h.Receiver, console.OrDash(strings.Join(h.Mentions, ", ")), console.Duration(time.Duration(h.RepeatSeconds*float64(time.Second))), h.Note)
	}
	return t.Flush("")
}

// completeLabels offers the labels that the routes name.
func completeLabels(file *string) cobra.CompletionFunc {
	return func(_ *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		cfg, err := config.Load(*file)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		tree, err := route.Compile(cfg.Notifier)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return tree.Labels(), cobra.ShellCompDirectiveNoFileComp
	}
}
