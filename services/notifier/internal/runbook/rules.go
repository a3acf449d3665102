package runbook

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
)

const (
	// maxRuleFile and maxRules bound what is read: a few lines with aliases can stand for very many rules.
	maxRuleFile = 16 << 20
	maxRules    = 100_000
)

// Rule is an alerting rule of Prometheus: https://prometheus.io/docs/prometheus/latest/configuration/alerting_rules/.
type Rule struct {
	File string
	// Line of its alert key, from 1.
	Line  int
	Alert string
	// Labels are its own over its group's. Labels and Annotations may be templates.
	Labels, Annotations map[string]string
}

// RuleFiles are the files that arguments name: files, patterns, and folders with everything below that ends in .yml or .yaml. named are
// those that must be rule files; what is only found in a folder may be something else.
func RuleFiles(arguments []string) (files []string, named map[string]bool, err error) {
	named = map[string]bool{}
	var errs []error
	for _, arg := range arguments {
		matches := []string{arg}
		if _, bad := os.Stat(arg); bad != nil {
			matches, bad = filepath.Glob(arg)
			if bad != nil || len(matches) == 0 {
				errs = append(errs, fmt.Errorf("%s: there is no such file, and no file fits it as a pattern", arg))
				continue
			}
		}
		for _, m := range matches {
			found, isDir, bad := ruleFilesAt(m)
			switch {
			case bad != nil:
				errs = append(errs, bad)
			case isDir && len(found) == 0:
				errs = append(errs, fmt.Errorf("%s: no .yml or .yaml file is in this folder", m))
			case !isDir:
				named[m] = true
			}
			files = append(files, found...)
		}
	}
	slices.Sort(files)
	return slices.Compact(files), named, errors.Join(errs...)
}

func ruleFilesAt(path string) (found []string, isDir bool, err error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, false, fmt.Errorf("looking for rule files: %w", err)
	}
	if !info.IsDir() {
		return []string{path}, false, nil
	}
	err = filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case p != path && strings.HasPrefix(d.Name(), "."):
			if d.IsDir() {
				return fs.SkipDir
			}
		case !d.IsDir() && slices.Contains([]string{".yml", ".yaml"}, filepath.Ext(p)):
			found = append(found, p)
		}
		return nil
	})
	if err != nil {
		return nil, true, fmt.Errorf("looking for rule files: %w", err)
	}
	return found, true, nil
}

// ErrNoRules is a YAML file without groups of rules.
var ErrNoRules = errors.New("it has no groups of rules")

// ReadRules reads the alerting rules of a file.
func ReadRules(path string) ([]Rule, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("reading rules: %w", err)
	}
	defer f.Close()
	src, err := io.ReadAll(io.LimitReader(f, maxRuleFile+1))
	if err != nil {
		return nil, fmt.Errorf("reading rules: %w", err)
	}
	if len(src) > maxRuleFile {
		return nil, fmt.Errorf("%s:1:1: the file is larger than %d bytes", path, maxRuleFile)
	}
	return ParseRules(path, src)
}

// ParseRules is ReadRules for bytes already read; path only names them. Rules may stand in a rule file, or in manifests of kind
// PrometheusRule. What is wrong is a *config.Error with its line; an error that is ErrNoRules says that it is another kind of file.
//
// It is less strict than Prometheus: keys that it does not know are none of its business.
func ParseRules(path string, src []byte) ([]Rule, error) {
	src = normal(src) // the library counts some lines twice that end with a carriage return
	file, err := parser.ParseBytes(src, 0)
	if err != nil {
		return nil, yamlError(path, src, err)
	}
	r := &ruleReader{tree: newTree(file), path: path, src: src}
	groups := 0
	for _, doc := range file.Docs {
		list := r.field(doc.Body, "groups")
		if kind, _ := r.text(r.field(doc.Body, "kind")); kind == "PrometheusRule" {
			list = r.field(r.field(doc.Body, "spec"), "groups")
		}
		if list == nil {
			continue
		}
		groups++
		if err := r.groups(list); err != nil {
			return nil, err
		}
	}
	if groups == 0 {
		return nil, fmt.Errorf("%s:1:1: %w", path, ErrNoRules)
	}
	return r.rules, nil
}

func yamlError(path string, src []byte, err error) error {
	var ye yaml.Error
	if !errors.As(err, &ye) || ye.GetToken() == nil {
		return &config.Error{File: path, Line: 1, Column: 1, Message: err.Error()}
	}
	pos := ye.GetToken().Position
	return &config.Error{File: path, Line: pos.Line, Column: pos.Column, Message: ye.GetMessage(), Source: lineOf(src, pos.Line)}
}

// lineOf is the text of a line, from 1.
func lineOf(src []byte, n int) string {
	lines := strings.SplitN(string(src), "\n", n+1)
	if n < 1 || n > len(lines) {
		return ""
	}
	return strings.TrimRight(lines[n-1], "\r")
}

// ruleReader gathers the rules of a file.
type ruleReader struct {
	*tree
	path  string
	src   []byte
	rules []Rule
}

func (r *ruleReader) errorAt(n ast.Node, format string, args ...any) error {
	line, column := position(n)
	return &config.Error{File: r.path, Line: line, Column: column, Message: fmt.Sprintf(format, args...), Source: lineOf(r.src, line)}
}

func (r *ruleReader) groups(list ast.Node) error {
	groups, ok := r.items(list)
	if !ok {
		return r.errorAt(list, "groups is not a list")
	}
	for _, g := range groups {
		if _, ok := r.pairs(g); !ok {
			return r.errorAt(g, "a group is a mapping with name and rules")
		}
		labels, err := r.texts(g, "labels")
		if err != nil {
			return err
		}
		list := r.field(g, "rules")
		rules, ok := r.items(list)
		if !ok {
			return r.errorAt(list, "rules is not a list")
		}
		for _, rule := range rules {
			if len(r.rules) >= maxRules {
				return r.errorAt(rule, "there are more than %d rules", maxRules)
			}
			if err := r.rule(rule, labels); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *ruleReader) rule(n ast.Node, groupLabels map[string]string) error {
	if _, ok := r.pairs(n); !ok {
		return r.errorAt(n, "a rule is a mapping with alert or record, and expr")
	}
	alertNode, expr := r.field(n, "alert"), r.field(n, "expr")
	alert, isText := r.text(alertNode)
	record, _ := r.text(r.field(n, "record"))
	switch expr, _ := r.text(expr); {
	case !isText || alert != "" && record != "":
		return r.errorAt(n, "a rule has either alert or record")
	case alert == "" && record == "":
		return r.errorAt(n, "a rule needs alert or record")
	case expr == "":
		return r.errorAt(n, "the rule %s has no expr", alert+record)
	case record != "":
		return nil
	}
	labels, err := r.texts(n, "labels")
	if err != nil {
		return err
	}
	for name, value := range groupLabels {
		if _, own := labels[name]; !own {
			labels[name] = value
		}
	}
	annotations, err := r.texts(n, "annotations")
	if err != nil {
		return err
	}
	line, _ := position(alertNode)
	r.rules = append(r.rules, Rule{File: r.path, Line: line, Alert: alert, Labels: labels, Annotations: annotations})
	return nil
}

// texts is a mapping of strings; empty when the key is missing.
func (r *ruleReader) texts(n ast.Node, key string) (map[string]string, error) {
	all := map[string]string{}
	value := r.field(n, key)
	pairs, ok := r.pairs(value)
	if !ok && value != nil {
		return nil, r.errorAt(value, "%s is not a mapping", key)
	}
	for _, p := range pairs {
		if all[p.key], ok = r.text(p.value); !ok {
			return nil, r.errorAt(p.value, "%s.%s is not a string", key, p.key)
		}
	}
	return all, nil
}
