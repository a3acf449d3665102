package app

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/console"
	"github.com/lifeboat-fleet/lifeboat/fleet/service"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/runbook"
)

// lintRules is what `lifeboat notify lint-rules` was asked.
type lintRules struct {
	config, output, baseURL, pagesDir   string
	strict, unused, checkLinks, private bool
}

func lintRulesCommand() *cobra.Command {
	var l lintRules
	cmd := &cobra.Command{
		Use: "lint-rules FILES...", Short: "Find alerting rules without a runbook; exit code 1 says that there are some",
		Long: "lint-rules reads rule files of Prometheus, also as manifests of kind PrometheusRule, and finds alerts without a runbook:\n" +
			"without the annotation runbook_url, a page named for them in pages_dir, or a base_url that makes an address of their\n" +
			"name. The page of DiskFull is disk-full, that of HTTPErrors http-errors; what is neither letter nor digit is a dash.\n" +
			"How bad it is depends on the severity, by notifier.runbooks.policy of the configuration; without one it is an error\n" +
			"for critical and page, and else a warning. It also finds pages without a TL;DR or Mitigation heading, whose first\n" +
			"steps cannot be put into a message, and alerts of one name with different runbooks.\n\n" +
			"FILES are files, patterns, and folders. Exit codes: 0 good, 1 errors (with --strict also warnings), 2 a file that\n" +
			"cannot be read or is no rule file.",
		Example: "  lifeboat notify lint-rules rules/*.yml\n" +
			"  lifeboat notify lint-rules rules -c lifeboat.yaml --strict --unused\n" +
			"  lifeboat notify lint-rules rules --pages-dir docs/runbooks --base-url https://runbooks.example.com\n" +
			"  lifeboat notify lint-rules rules --check-links -o json",
		Args: cobra.MinimumNArgs(1),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return []string{"yml", "yaml"}, cobra.ShellCompDirectiveFilterFileExt
		},
		RunE: l.run,
	}
	f := cmd.Flags()
	f.StringVarP(&l.config, "config", "c", "", "configuration `file`, for its notifier.runbooks; none is needed")
	f.StringVar(&l.baseURL, "base-url", "", "`address` before an alert's name, instead of the configuration's")
	f.StringVar(&l.pagesDir, "pages-dir", "", "`folder` of pages, instead of the configuration's")
	f.BoolVar(&l.strict, "strict", false, "exit with 1 for warnings as well")
	f.BoolVar(&l.unused, "unused", false, "also find pages in the folder that no rule uses")
	f.BoolVar(&l.checkLinks, "check-links", false, "ask for each link, and find dead ones")
	f.BoolVar(&l.private, "allow-private", false, "let links lead to loopback and private addresses when they are asked for")
	console.AddOutput(cmd, &l.output)
	return cmd
}

// lintReport is the report for a script.
type lintReport struct {
	Files int `json:"files"`
	*runbook.Report
	// Invalid says which files could not be used, with file and line.
	Invalid []string `json:"invalid,omitempty"`
}

func (l *lintRules) run(cmd *cobra.Command, args []string) error {
	if err := console.CheckOutput(l.output); err != nil {
		return err
	}
	cfg, err := l.runbooks()
	if err != nil {
		return err
	}
	if l.unused && cfg.PagesDir == "" {
		return console.Usagef("--unused needs a folder of pages: --pages-dir, or notifier.runbooks.pages_dir")
	}
	rules, files, invalid := readRules(args)
	report, err := runbook.Lint(cmd.Context(), runbook.LintOptions{Config: cfg, Unused: l.unused, Now: time.Now}, rules)
	if err == nil {
		err = cmd.Context().Err() // a person has stopped it, and the rest was not asked for
	}
	if err != nil {
		return &service.UsageError{Err: errors.Join(append(invalid, err)...)}
	}
	if err = l.print(cmd.OutOrStdout(), lintReport{Files: files, Report: report, Invalid: texts(invalid)}); err != nil {
		return err
	}
	if len(invalid) > 0 {
		return &service.UsageError{Err: errors.Join(invalid...)}
	}
	return report.Failed(l.strict)
}

func texts(errs []error) []string {
	var all []string
	for _, err := range errs {
		all = append(all, config.Places(err))
	}
	return all
}

// runbooks is the configuration's part with what the flags say instead. Links are asked for only by the flag: a lint
// should not need the network because the notifier does.
func (l *lintRules) runbooks() (config.Runbooks, error) {
	var r config.Runbooks
	if l.config != "" {
		cfg, err := config.Load(l.config)
		if err != nil {
			return r, &service.UsageError{Err: err}
		}
		r = cfg.Notifier.Runbooks
	}
	if l.baseURL != "" {
		if runbook.Link(config.Runbooks{BaseURL: l.baseURL}, "X", nil) == "" {
			return r, console.Usagef("--base-url: %q is not an http or https address", l.baseURL)
		}
		r.BaseURL = l.baseURL
	}
	if l.pagesDir != "" {
		r.PagesDir = l.pagesDir
	}
	r.CheckLinks = l.checkLinks
	r.AllowPrivate = r.AllowPrivate || l.private
	return r, nil
}

// readRules reads all files that can be read, and says what is wrong with the others. A YAML file that only lies in a folder may be
// about something else.
func readRules(args []string) (rules []runbook.Rule, files int, invalid []error) {
	paths, named, err := runbook.RuleFiles(args)
	if err != nil {
		invalid = append(invalid, err)
	}
	for _, path := range paths {
		found, err := runbook.ReadRules(path)
		switch {
		case errors.Is(err, runbook.ErrNoRules) && !named[path]:
		case err != nil:
			invalid = append(invalid, err)
		default:
			files++
			rules = append(rules, found...)
		}
	}
	if files == 0 && len(invalid) == 0 {
		invalid = append(invalid, errors.New("there is no rule file in what was named"))
	}
	return slices.Clip(rules), files, invalid
}

func (l *lintRules) print(out io.Writer, report lintReport) error {
	if l.output == console.OutputJSON {
		return console.WriteJSON(out, report)
	}
	if len(report.Findings) > 0 {
		t := console.NewTable(out, "PLACE", "LEVEL", "ALERT", "SEVERITY", "FINDING")
		for _, f := range report.Findings {
			level := f.Level
			if level == runbook.GradeError {
				level = console.Red(out, level)
			}
			t.Row(fmt.Sprintf("%s:%d", f.File, f.Line), level, cell(f.Alert), cell(f.Severity), cell(f.Message))
		}
		if err := t.Flush(""); err != nil {
			return err
		}
		if _, err := fmt.Fprintln(out); err != nil {
			return err
		}
	}
	if report.Files == 0 {
		return nil // there is an error to be read
	}
	t := console.NewTable(out, "TEAM", "ALERTS", "WITH RUNBOOK", "IGNORED", "ERRORS", "WARNINGS")
	for _, team := range report.Teams {
		t.Row(cell(team.Team), strconv.Itoa(team.Alerts), strconv.Itoa(team.WithRunbook), strconv.Itoa(team.Ignored),
			strconv.Itoa(team.Errors), strconv.Itoa(team.Warnings))
	}
	return t.Flush("there is no alerting rule")
}

// cell is a text from a rule on one line.
func cell(s string) string { return console.OrDash(console.FirstLine(s)) }
