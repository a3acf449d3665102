package page

import (
	"bytes"
	"embed"
	"fmt"
	"html/template"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
)

//go:embed page.html.tmpl page.css page.js favicon.svg
var files embed.FS

// What a page has room for.
const (
	maxProblems = 8
	maxTargets  = 50
	maxJobs     = 8
	maxListed   = 6
)

// sections are the parts of a page that are sent anew when they change, in the order in which they stand there.
func sections() []string { return []string{"head", "targets", "jobs", "deliveries", "letters"} }

// renderer writes pages. It is safe for concurrent use.
type renderer struct {
	template *template.Template
	words    map[string]*words
}

func newRenderer() (*renderer, error) {
	t, err := template.ParseFS(files, "page.html.tmpl")
	if err != nil {
		return nil, fmt.Errorf("reading the page's template: %w", err)
	}
	r := &renderer{template: t, words: map[string]*words{}}
	for _, l := range languages() {
		r.words[l] = wordsOf(l)
	}
	return r, nil
}

// request is what a viewer asked for.
type request struct {
	lang string
	// find is a part of the names of the targets that are listed; page counts from 1.
	find string
	page int
}

// rendered is a page and its parts, by the sections' names.
type rendered struct {
	title string
	parts map[string]string
}

// parts writes the parts of a page.
func (r *renderer) parts(v *view, q request) (*rendered, error) {
	s := r.screen(v, q)
	out := &rendered{title: s.PageTitle(), parts: map[string]string{}}
	for _, name := range sections() {
		var b bytes.Buffer
		if err := r.template.ExecuteTemplate(&b, name, s); err != nil {
			return nil, fmt.Errorf("writing the page's part %s: %w", name, err)
		}
		out.parts[name] = tidy(b.String())
	}
	return out, nil
}

// tidy leaves out what is only space between lines, so that a part is the same in a page and in its updates.
func tidy(text string) string {
	var b strings.Builder
	b.Grow(len(text))
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" {
			if b.Len() > 0 {
				b.WriteByte('\n')
			}
			b.WriteString(line)
		}
	}
	return b.String()
}

// shell is a whole page around its parts.
type shell struct {
	*screen
	Parts     map[string]template.HTML
	CSS, JS   string
	Icon      string
	Live      string
	SwitchURL string
}

// page writes a whole page around its parts.
func (r *renderer) page(v *view, q request, all *rendered, assets map[string]string) ([]byte, error) {
	s := r.screen(v, q)
	other := q
	other.lang = s.W.Other
	sh := shell{
		screen: s, Parts: map[string]template.HTML{}, CSS: assets["page.css"], JS: assets["page.js"], Icon: assets["favicon.svg"], Live: "live" + q.query(), SwitchURL: other.query(),
	}
	for name, text := range all.parts {
		sh.Parts[name] = template.HTML(text) //nolint:gosec // the same template escaped it
	}
	var b bytes.Buffer
	if err := r.template.ExecuteTemplate(&b, "page", sh); err != nil {
		return nil, fmt.Errorf("writing the page: %w", err)
	}
	return b.Bytes(), nil
}

// screen is what the templates write.
type screen struct {
	v *view
	q request
	W *words
	// shown are the targets of this page, of those that were found.
	shown              []*targetView
	found, from, pages int
}

func (r *renderer) screen(v *view, q request) *screen {
	s := &screen{v: v, q: q, W: r.words[q.lang]}
	all := v.targets
	if q.find != "" {
		all = nil
		for _, t := range v.targets {
			if strings.Contains(t.name, q.find) {
				all = append(all, t)
			}
		}
	}
	s.found = len(all)
	s.pages = max((s.found+maxTargets-1)/maxTargets, 1)
	s.q.page = min(max(q.page, 1), s.pages)
	s.from = (s.q.page - 1) * maxTargets
	s.shown = all[s.from:min(s.from+maxTargets, s.found)]
	return s
}

// Title is what the fleet is called.
func (s *screen) Title() string { return s.v.title }

// PageTitle is that of the browser's window: what is red comes first there too.
func (s *screen) PageTitle() string {
	mark := map[level]string{red: "✖ ", amber: "▲ ", good: "✔ ", unknown: "? "}[s.level()]
	return mark + s.Verdict() + " – " + s.v.title
}

// level of the whole fleet.
func (s *screen) level() level {
	switch {
	case s.v.away, len(s.v.problems) > 0:
		return red
	case s.v.starting, len(s.v.targets) == 0:
		return unknown
	case s.v.counts[unknown] > 0: // nobody can say that these need no look
		return unknown
	case s.v.counts[amber] > 0:
		return amber
	}
	return good
}

// Level is the fleet's, for the style sheet.
func (s *screen) Level() string { return s.level().String() }

// Mark is a level as a sign.
func (s *screen) Mark(l string) string {
	return map[string]string{"red": "✖", "amber": "▲", "good": "✔", "unknown": "?"}[l]
}

// Verdict is the whole page in some words.
func (s *screen) Verdict() string {
	n := len(s.Problems())
	if s.v.away {
		n++
	}
	switch {
	case n == 1:
		return s.W.RedOne
	case n > 1:
		return fmt.Sprintf(s.W.RedMany, n)
	case s.v.starting:
		return s.W.Starting
	case len(s.v.targets) == 0:
		return s.W.NoneWatched
	case s.v.counts[unknown] > 0:
		return fmt.Sprintf(s.W.SomeUnknown, s.v.counts[unknown])
	case s.v.counts[amber] > 0:
		return fmt.Sprintf(s.W.AmberOnly, s.v.counts[amber])
	}
	return s.W.AllWell
}

// Summary counts targets.
func (s *screen) Summary() string {
	c := s.v.counts
	return fmt.Sprintf(s.W.Summary, c[red], c[amber], c[unknown], c[good])
}

// Away says that NATS does not answer; AwayText in words.
func (s *screen) Away() bool { return s.v.away }

// AwayText says since when what is shown is not known to be true.
func (s *screen) AwayText() string {
	if s.v.asOf.IsZero() {
		return s.W.Blind
	}
	return fmt.Sprintf(s.W.Away, s.moment(s.v.awaySince))
}

// AwayWhy is the connection's error.
func (s *screen) AwayWhy() string { return s.v.awayWhy }

// item is an entry of what is red: all of it that is about one target, or about the fleet.
type item struct {
	Target   string
	Lines    []line
	Commands []string
}

// line is one sentence of it.
type line struct {
	Text, Detail, Runbook string
	Since                 *stamp
}

// Problems are the entries, the fleet's first.
func (s *screen) Problems() []item {
	var all []item
	for i := range s.v.problems {
		p := &s.v.problems[i]
		if p.target == "" || len(all) == 0 || all[len(all)-1].Target != p.target {
			all = append(all, item{Target: p.target})
		}
		it := &all[len(all)-1]
		it.Lines = append(it.Lines, s.line(p))
		if c := s.command(p); len(it.Commands) == 0 || it.Commands[len(it.Commands)-1] != c {
			it.Commands = append(it.Commands, c)
		}
	}
	return all
}

// Shown are those that there is room for.
func (s *screen) Shown() []item {
	all := s.Problems()
	return all[:min(len(all), maxProblems)]
}

// MoreProblems counts the others in a sentence; empty when there are none.
func (s *screen) MoreProblems() string { return more(s.W.More, len(s.Problems())-maxProblems) }

func more(form string, n int) string {
	if n <= 0 {
		return ""
	}
	return fmt.Sprintf(form, n)
}

func (s *screen) line(p *problem) line {
	args := make([]any, len(p.arg))
	for i, a := range p.arg {
		args[i] = a
		if name, ok := a.(string); ok && i > 0 {
			args[i] = s.W.work(name)
		}
	}
	l := line{Text: fmt.Sprintf(p.title(s.W), args...), Detail: p.detail, Since: s.stamp(p.since)}
	if p.alert != "" {
		l.Runbook = s.v.runbook(p.alert)
	}
	return l
}

// command is what helps to find out more, ready to paste.
func (s *screen) command(p *problem) string {
	if p.command != "" {
		return p.command
	}
	work := ""
	if p.work != "" && p.work != config.WorkSnapshot {
		work = " --work " + string(p.work)
	}
	return "lifeboat why " + p.target + work + s.v.flag
}

// configFlag names the page's configuration to a command; nothing when commands find it by themselves.
func configFlag(file string) string {
	if file == "lifeboat.yaml" {
		return ""
	}
	return " -c " + quote(file)
}

// quote makes one word of a file's name for a shell.
func quote(s string) string {
	if !strings.ContainsFunc(s, func(r rune) bool {
		return !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune("/._-+:@", r)
	}) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// stamp is a moment: how long ago or ahead, and when.
type stamp struct{ Relative, Absolute, Machine string }

func (s *screen) stamp(t time.Time) *stamp {
	if t.IsZero() {
		return nil
	}
	st := &stamp{Absolute: s.moment(t), Machine: t.UTC().Format(time.RFC3339)}
	if d := s.v.now.Sub(t); d >= 0 && d < 5*time.Second {
		st.Relative = s.W.Now
	} else if d >= 0 {
		st.Relative = fmt.Sprintf(s.W.Ago, s.W.age(d))
	} else {
		st.Relative = fmt.Sprintf(s.W.In, s.W.age(-d))
	}
	return st
}

// moment is a time in the page's zone; the day only when it is another one.
func (s *screen) moment(t time.Time) string {
	t, now := t.In(s.v.loc), s.v.now.In(s.v.loc)
	if t.YearDay() == now.YearDay() && t.Year() == now.Year() {
		return t.Format("15:04")
	}
	return t.Format("2006-01-02 15:04")
}

// Now is when the page was written.
func (s *screen) Now() *stamp {
	return &stamp{Absolute: s.v.now.In(s.v.loc).Format("15:04:05"), Machine: s.v.now.UTC().Format(time.RFC3339)}
}

// TimesAre names the zone.
func (s *screen) TimesAre() string { return fmt.Sprintf(s.W.TimesAre, s.v.loc) }

// Bar is the width of the used part of a bar, of 100.
func bar(used float64) string { return strconv.Itoa(int(math.Round(100 * min(max(used, 0), 1)))) }

// query is a request as the query of an address.
func (q request) query() string {
	var b strings.Builder
	b.WriteString("?lang=" + q.lang)
	if q.find != "" {
		b.WriteString("&q=" + template.URLQueryEscaper(q.find))
	}
	if q.page > 1 {
		b.WriteString("&page=" + strconv.Itoa(q.page))
	}
	return b.String()
}

// Find is what is looked for.
func (s *screen) Find() string { return s.q.find }

// runbooks finds the page of an alert, as the notifier does.
func runbooks(c config.Runbooks) func(string) string {
	return func(alert string) string {
		if c.BaseURL == "" {
			return ""
		}
		return strings.TrimSuffix(c.BaseURL, "/") + "/" + kebab(alert) + c.Suffix
	}
}

// kebab is a name of the fleet's own alerts as a page's: LifeboatRPOExceeded is lifeboat-rpo-exceeded.
func kebab(name string) string {
	var b strings.Builder
	runes := []rune(name)
	for i, r := range runes {
		begins := i > 0 && unicode.IsUpper(r) && (unicode.IsLower(runes[i-1]) || (i+1 < len(runes) && unicode.IsLower(runes[i+1])))
		if begins {
			b.WriteByte('-')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}
