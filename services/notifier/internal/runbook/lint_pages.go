package runbook

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
)

// listPages are the pages below the folder, by their paths with slashes. Indexes, and what begins with a dot or an underscore, is
// none.
func listPages(dir string) ([]string, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("looking for runbooks: %w", err)
	}
	defer root.Close()
	var all []string
	err = fs.WalkDir(root.FS(), ".", func(p string, d fs.DirEntry, err error) error {
		name := strings.ToLower(path.Base(p))
		switch {
		case err != nil:
			return err
		case p != "." && strings.HasPrefix(name, "."):
			if d.IsDir() {
				return fs.SkipDir
			}
		case d.IsDir() || !strings.HasSuffix(p, pageExt) || strings.HasPrefix(name, "_") || name == "readme.md" || name == "index.md":
		default:
			all = append(all, p)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("looking for runbooks in %s: %w", dir, err)
	}
	return all, nil
}

// page is the page of the folder that a rule's alert has, if it has one. It is looked at once.
func (l *linter) page(r Rule, w place, given bool) *pageFile {
	for i, file := range w.files {
		if !l.exists(file.path) {
			if given && i == 0 && len(w.files) > 1 && l.o.Config.PagesDir != "" {
				l.add(r, GradeWarning, FindingMissingPage, "%s leads to a page that is not in the folder of pages: %s",
					Annotation, filepath.Join(l.o.Config.PagesDir, file.path))
			}
			continue
		}
		if !l.pages[file] {
			l.pages[file] = true
			l.look(r, file)
		}
		return &file
	}
	return nil
}

// exists as the notifier looks for it: a link in the folder to another page of it is one, too.
func (l *linter) exists(name string) bool {
	if l.o.Config.PagesDir == "" {
		return false
	}
	if slices.Contains(l.files, name) {
		return true
	}
	root, err := os.OpenRoot(l.o.Config.PagesDir)
	if err != nil {
		return false
	}
	defer root.Close()
	info, err := root.Stat(name)
	return err == nil && info.Mode().IsRegular()
}

// look reads a page as the notifier would.
func (l *linter) look(r Rule, file pageFile) {
	problem := ""
	src, _, err := readFile(l.o.Config.PagesDir, file.path, nil)
	if err != nil {
		problem = err.Error()
	} else if first, found := steps(src, file.fragment, ""); !found {
		problem = "it has no heading TL;DR or Mitigation (处置, 缓解)"
	} else if len(first) == 0 {
		problem = "nothing stands under its TL;DR or Mitigation heading"
	}
	if problem == "" {
		return
	}
	l.add(Rule{File: filepath.Join(l.o.Config.PagesDir, file.path), Line: 1, Alert: r.Alert, Labels: r.Labels}, GradeWarning, FindingNoFirstSteps,
		"messages come without first steps: %s", problem)
}

// unused finds pages that no rule led to.
func (l *linter) unused() {
	used := map[string]bool{}
	for file := range l.pages {
		used[file.path] = true
	}
	for _, name := range l.files {
		if !used[name] {
			l.findings = append(l.findings, Finding{
				File: filepath.Join(l.o.Config.PagesDir, name), Line: 1, Level: GradeWarning, Code: FindingUnusedPage,
				Message: "no rule uses this page",
			})
		}
	}
}

// ask asks for each link once. A page that is not there is as bad as no page; a server in trouble is not the rule's fault.
func (l *linter) ask(ctx context.Context) {
	asked := newLinks(l.o.Now, nil)
	asked.trust(l.o.Config)
	all := slices.Sorted(maps.Keys(l.links))
	answers := make([]answer, len(all))
	var g errgroup.Group
	g.SetLimit(maxAsked)
	for i, link := range all {
		g.Go(func() error {
			within, cancel := context.WithTimeout(ctx, askWithin)
			defer cancel()
			answers[i] = asked.ask(within, question{link: link, private: l.o.Config.AllowPrivate})
			return nil
		})
	}
	_ = g.Wait() // the functions return nil
	for i, link := range all {
		a, from := answers[i], l.links[link]
		others := ""
		if from.more > 0 {
			others = fmt.Sprintf("; %s more with this link", count(from.more, "rule"))
		}
		switch {
		case a.gone:
			l.add(from.first, l.grade(from.first), FindingDeadLink, "its link is dead (%s): %s%s", a.dead, link, others)
		case a.dead != "":
			l.add(from.first, GradeWarning, FindingDeadLink, "its link is in trouble (%s): %s%s", a.dead, link, others)
		case a.unsure != "":
			l.add(from.first, GradeWarning, FindingNotAsked, "nothing is known of its link (%s): %s%s", a.unsure, link, others)
		}
	}
}
