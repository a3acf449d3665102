package runbook

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
)

// What a Finding is about.
const (
	FindingNoRunbook    = "no-runbook"
	FindingBadURL       = "bad-runbook-url"
	FindingMissingPage  = "missing-page"
	FindingNoFirstSteps = "no-first-steps"
	FindingTwoRunbooks  = "two-runbooks"
	FindingUnusedPage   = "unused-page"
	FindingDeadLink     = "dead-link"
	FindingNotAsked     = "link-not-asked"
)

// Finding is something to mend in a rule or a page.
type Finding struct {
	File string `json:"file"`
	Line int    `json:"line"`
	// Level is GradeError or GradeWarning.
	Level string `json:"level"`
	// Code is one of the constants above.
	Code string `json:"code"`
	// Alert, Severity and Team are the rule's; empty for a page.
	Alert    string `json:"alert,omitempty"`
	Severity string `json:"severity,omitempty"`
	Team     string `json:"team,omitempty"`
	// Message says what is wrong and what to do.
	Message string `json:"message"`
}

// Team is how a team's alerts stand; a team without a name is empty.
type Team struct {
	Team   string `json:"team"`
	Alerts int    `json:"alerts"`
	// WithRunbook of the alerts.
	WithRunbook int `json:"with_runbook"`
	// Ignored are alerts without a runbook that the policy ignores.
	Ignored  int `json:"ignored"`
	Errors   int `json:"errors"`
	Warnings int `json:"warnings"`
}

// Report is what Lint found.
type Report struct {
	Alerts   int       `json:"alerts"`
	Errors   int       `json:"errors"`
	Warnings int       `json:"warnings"`
	Findings []Finding `json:"findings"`
	Teams    []Team    `json:"teams"`
}

// LintOptions of Lint.
type LintOptions struct {
	// Config says where pages are. With CheckLinks each link is asked for.
	Config config.Runbooks
	// Unused finds pages of the folder that no rule uses.
	Unused bool
	Now    func() time.Time
}

// Lint says which rules have no runbook, and what is wrong with those that others have. The grade of a rule without one is the
// policy's for its severity; a severity that is missing or a template counts as every other one. The only error is a folder of pages
// that cannot be read.
func Lint(ctx context.Context, o LintOptions, rules []Rule) (*Report, error) {
	l := &linter{o: o, teams: map[string]*Team{}, names: map[string]named{}, pages: map[pageFile]bool{}, links: map[string]*linkUse{}}
	if o.Config.PagesDir != "" {
		names, err := listPages(o.Config.PagesDir)
		if err != nil {
			return nil, err
		}
		l.files = names
	}
	for _, r := range rules {
		l.rule(r)
	}
	if o.Unused {
		l.unused()
	}
	if o.Config.CheckLinks {
		l.ask(ctx)
	}
	return l.report(), nil
}

type linter struct {
	o LintOptions
	// files are the pages of the folder.
	files    []string
	findings []Finding
	teams    map[string]*Team
	// names are alerts by name, with the runbook of the first one.
	names map[string]named
	// pages are those of the folder that were looked at.
	pages map[pageFile]bool
	links map[string]*linkUse
}

type named struct {
	rule    Rule
	runbook string
}

// linkUse are the rules with a link.
type linkUse struct {
	first Rule
	more  int
}

func (l *linter) add(r Rule, level, code, format string, args ...any) {
	t := l.team(r)
	switch level {
	case GradeError:
		t.Errors++
	case GradeWarning:
		t.Warnings++
	default:
		return
	}
	l.findings = append(l.findings, Finding{
		File: r.File, Line: r.Line, Level: level, Code: code, Alert: r.Alert, Severity: r.Labels["severity"],
		Team: r.Labels[l.label()], Message: fmt.Sprintf(format, args...),
	})
}

func (l *linter) label() string { return cmp.Or(l.o.Config.TeamLabel, "team") }

func (l *linter) team(r Rule) *Team {
	name := r.Labels[l.label()]
	t := l.teams[name]
	if t == nil {
		t = &Team{Team: name}
		l.teams[name] = t
	}
	return t
}

func (l *linter) grade(r Rule) string {
	severity := r.Labels["severity"]
	if strings.Contains(severity, "{{") {
		severity = ""
	}
	return Grade(l.o.Config, severity)
}

// rule looks at one alert.
func (l *linter) rule(r Rule) {
	t := l.team(r)
	t.Alerts++
	raw := strings.TrimSpace(r.Annotations[Annotation])
	template := strings.Contains(raw, "{{")
	problem := formProblem(raw)
	given := raw != "" && problem == ""
	w := where(l.o.Config, r.Alert, r.Annotations)
	if template { // where it will lead is not known
		w = where(l.o.Config, r.Alert, nil)
	}
	page := l.page(r, w, given && !template)
	byName := page != nil || l.o.Config.PagesDir == "" && w.ruled != ""
	switch {
	case !given && !byName:
		grade := l.grade(r)
		if grade == GradeIgnore {
			t.Ignored++
		}
		l.add(r, grade, FindingNoRunbook, "%s", l.whatToDo(r, problem))
		return
	case problem != "":
		l.add(r, GradeWarning, FindingBadURL, "%s, and is not used", problem)
	}
	t.WithRunbook++
	address := w.ruled
	if given {
		address = raw
	}
	l.same(r, address)
	l.linked(r, template, cmp.Or(w.given, w.ruled))
}

// linked notes a link that can be asked for.
func (l *linter) linked(r Rule, template bool, link string) {
	if link == "" || template {
		return
	}
	if known := l.links[link]; known != nil {
		known.more++
		return
	}
	l.links[link] = &linkUse{first: r}
}

// whatToDo says that a rule has no runbook, and the shortest way to one.
func (l *linter) whatToDo(r Rule, problem string) string {
	if problem != "" {
		return "no runbook: " + problem
	}
	for _, other := range []string{"runbook", "runbookURL", "runbookUrl", "runbook_link", "runbook-url"} {
		if r.Annotations[other] != "" {
			return fmt.Sprintf("no runbook: its annotation %s must be named %s", other, Annotation)
		}
	}
	if slug := Kebab(r.Alert); l.o.Config.PagesDir != "" && slug != "" {
		return fmt.Sprintf("no runbook: write %s, or add the annotation %s", filepath.Join(l.o.Config.PagesDir, slug+pageExt), Annotation)
	}
	return fmt.Sprintf("no runbook: add the annotation %s", Annotation)
}

// same finds alerts of one name that lead to different pages.
func (l *linter) same(r Rule, runbook string) {
	first, known := l.names[r.Alert]
	switch {
	case !known:
		l.names[r.Alert] = named{r, runbook}
	case first.runbook != runbook:
		l.add(r, GradeWarning, FindingTwoRunbooks, "another runbook than the alert of the same name at %s:%d has", first.rule.File, first.rule.Line)
	}
}

// formProblem says what is wrong with an annotation, without repeating it: there may be a password in it.
func formProblem(raw string) string {
	filled, rest := "", raw
	for {
		before, after, ok := strings.Cut(rest, "{{")
		filled += before
		if !ok {
			break
		}
		_, rest, ok = strings.Cut(after, "}}")
		if !ok {
			return Annotation + " has a template that is not closed"
		}
		if filled == "" { // it begins with a template, which may hold the address
			return ""
		}
		filled += "x"
	}
	switch {
	case filled == "" || safe(filled) != "":
		return ""
	case strings.Contains(filled, "@"):
		return Annotation + " is not an http or https address without a user and password"
	}
	return Annotation + " is not an http or https address"
}

func (l *linter) report() *Report {
	out := &Report{Findings: l.findings, Teams: make([]Team, 0, len(l.teams))}
	if out.Findings == nil {
		out.Findings = []Finding{}
	}
	slices.SortStableFunc(out.Findings, func(a, b Finding) int { return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line)) })
	for _, f := range out.Findings {
		if f.Level == GradeError {
			out.Errors++
		} else {
			out.Warnings++
		}
	}
	for _, t := range l.teams {
		out.Alerts += t.Alerts
		out.Teams = append(out.Teams, *t)
	}
	slices.SortFunc(out.Teams, func(a, b Team) int { return cmp.Compare(a.Team, b.Team) })
	return out
}

// Failed is an error that sums up why the rules cannot stay as they are; nil when they can. Strict counts warnings as well.
func (r *Report) Failed(strict bool) error {
	if r.Errors == 0 && (!strict || r.Warnings == 0) {
		return nil
	}
	return errors.New(strings.TrimSuffix(fmt.Sprintf("%s, %s", count(r.Errors, "error"), count(r.Warnings, "warning")), ", 0 warnings"))
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
