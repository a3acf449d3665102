package main

import (
	"bytes"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/yuin/goldmark"
	"github.com/yuin/goldmark/ast"
	"github.com/yuin/goldmark/text"
	"mvdan.cc/sh/v3/syntax"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	notifier "github.com/lifeboat-fleet/lifeboat/services/notifier/app"
)

const (
	runbooks = "../docs/runbooks"
	rules    = "../deploy/prometheus"
	base     = "https://runbooks.example.com/"
)

// runbook is what a runbook holds that can be wrong.
type runbook struct {
	name     string
	headings []string
	links    []string
	// blocks of code are by language, "" is for a shell; spans are the code within sentences.
	blocks map[string][]string
	spans  []string
}

func readPages(t *testing.T) map[string]runbook {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(runbooks, "*.md"))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	all := map[string]runbook{}
	for _, f := range files {
		src, err := os.ReadFile(f)
		require.NoError(t, err)
		name := strings.TrimSuffix(filepath.Base(f), ".md")
		all[name] = parsePage(t, name, src)
	}
	return all
}

func parsePage(t *testing.T, name string, src []byte) runbook {
	t.Helper()
	p := runbook{name: name, blocks: map[string][]string{}}
	doc := goldmark.New().Parser().Parse(text.NewReader(src))
	err := ast.Walk(doc, func(n ast.Node, entering bool) (ast.WalkStatus, error) {
		if !entering {
			return ast.WalkContinue, nil
		}
		switch n := n.(type) {
		case *ast.Heading:
			p.headings = append(p.headings, string(n.Lines().Value(src)))
		case *ast.Link:
			p.links = append(p.links, string(n.Destination))
		case *ast.CodeSpan:
			var b strings.Builder
			for c := n.FirstChild(); c != nil; c = c.NextSibling() {
				if s, ok := c.(*ast.Text); ok {
					b.Write(s.Value(src))
				}
			}
			p.spans = append(p.spans, strings.ReplaceAll(b.String(), "\n", " "))
		case *ast.CodeBlock:
			p.blocks[""] = append(p.blocks[""], string(n.Lines().Value(src)))
		case *ast.FencedCodeBlock:
			language := string(n.Language(src))
			p.blocks[language] = append(p.blocks[language], string(n.Lines().Value(src)))
		}
		return ast.WalkContinue, nil
	})
	require.NoError(t, err)
	return p
}

// ruleAlerts are Prometheus' alerts with the address of their runbook.
func ruleAlerts(t *testing.T) map[string]string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(rules, "*.yml"))
	require.NoError(t, err)
	all := map[string]string{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		require.NoError(t, err)
		var file struct {
			Groups []struct {
				Rules []struct {
					Alert       string            `yaml:"alert"`
					Annotations map[string]string `yaml:"annotations"`
				} `yaml:"rules"`
			} `yaml:"groups"`
		}
		require.NoError(t, yaml.Unmarshal(b, &file), f)
		for _, g := range file.Groups {
			for _, r := range g.Rules {
				if r.Alert != "" {
					all[r.Alert] = r.Annotations["runbook_url"]
				}
			}
		}
	}
	require.NotEmpty(t, all)
	return all
}

// slug is the name of an alert's page, as notifier.runbooks has it.
func slug(alert string) string {
	var b strings.Builder
	all := []rune(alert)
	for i, r := range all {
		if i > 0 && unicode.IsUpper(r) && (unicode.IsLower(all[i-1]) || (i+1 < len(all) && unicode.IsLower(all[i+1]))) {
			b.WriteByte('-')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}

func TestEveryAlertHasARunbookAndEveryRunbookAnAlert(t *testing.T) {
	t.Parallel()
	pages := readPages(t)
	own, prometheus := notifier.FleetAlerts(), ruleAlerts(t)
	require.NotEmpty(t, own)
	known := map[string]string{}
	for _, a := range own {
		assert.NotContains(t, prometheus, a, "two senders of one alert would resolve each other")
		known[slug(a)] = a
	}
	for a, link := range prometheus {
		assert.Equal(t, base+slug(a)+".md", link, a)
		known[slug(a)] = a
	}
	for name, alert := range known {
		p, ok := pages[name]
		if !assert.True(t, ok, "%s has no page: write docs/runbooks/%s.md", alert, name) {
			continue
		}
		assert.Equal(t, alert, p.headings[0], name)
		assert.Contains(t, p.headings, "Mitigation", name)
		assert.Equal(t, "Mitigation", p.headings[1], "%s: what to do comes first", name)
		if _, ours := prometheus[alert]; ours {
			assert.Equal(t, []string{"If that does not help", "Known cases"}, p.headings[2:], name)
		}
		assert.NotEmpty(t, p.blocks[""], "%s has no command to copy", name)
	}
	for name := range pages {
		if !strings.HasPrefix(name, "disaster-") {
			assert.Contains(t, known, name, "no alert has this page")
		}
	}
}

func TestEveryLinkInARunbookLeadsSomewhere(t *testing.T) {
	t.Parallel()
	pages := readPages(t)
	for name, p := range pages {
		for _, link := range p.links {
			u, err := url.Parse(link)
			require.NoError(t, err, "%s: %s", name, link)
			if u.Scheme != "" {
				assert.Equal(t, "https", u.Scheme, "%s: %s", name, link)
				continue
			}
			to := p
			if u.Path != "" {
				if to = pages[strings.TrimSuffix(u.Path, ".md")]; to.name == "" {
					_, err = os.Stat(filepath.Join(runbooks, u.Path))
					require.NoError(t, err, "%s: %s", name, link)
					continue
				}
			}
			anchors := []string{""}
			for _, h := range to.headings {
				anchors = append(anchors, strings.ReplaceAll(strings.ToLower(h), " ", "-"))
			}
			assert.Contains(t, anchors, u.Fragment, "%s: %s", name, link)
		}
	}
}

// Every command is one that a shell takes, of a program that is meant, and with the flags and arguments that it has.
func TestEveryCommandInARunbookParses(t *testing.T) {
	t.Parallel()
	ours := 0
	for name, p := range readPages(t) {
		// What one block defines the next ones may call.
		whole := strings.Join(p.blocks[""], "\n")
		ours += checkShell(t, name, whole)
		for _, span := range p.spans {
			if strings.HasPrefix(span, "lifeboat ") {
				ours++
				require.NoError(t, mentions(strings.Fields(span)[1:]), "%s: %s", name, span)
			}
		}
		for _, block := range p.blocks["yaml"] {
			require.NoError(t, yaml.Unmarshal([]byte(block), &map[string]any{}), "%s: %s", name, block)
		}
		for language := range p.blocks {
			assert.Contains(t, []string{"", "promql", "yaml"}, language, "%s: nobody checks such a block", name)
		}
	}
	assert.Greater(t, ours, 50)
}

// programs are those that runbooks may call besides lifeboat.
var programs = []string{
	"lifeboat", "nats", "etcd", "etcdctl", "etcdutl", "consul", "nomad", "amtool", "promtool", "curl", "jq", "aws", "age", "age-keygen", "zstd", "sha256sum",
	"docker", "systemctl", "journalctl", "grep", "export", "test", "echo", "mv", "cp", "rm", "mkdir", "cat", "sed", "tee", "wc", "tr", "head", "tail",
	"sh", "[", "base64", "printf", "tar", "gzip", "gunzip", "sort", "cut", "xargs",
}

// checkShell says how many commands of ours are in a block.
func checkShell(t *testing.T, name, block string) (ours int) {
	t.Helper()
	file, err := syntax.NewParser(syntax.Variant(syntax.LangPOSIX)).Parse(strings.NewReader(block), name)
	require.NoError(t, err, "%s: %s", name, block)
	known := slices.Clone(programs)
	syntax.Walk(file, func(n syntax.Node) bool {
		if f, ok := n.(*syntax.FuncDecl); ok {
			known = append(known, f.Name.Value)
		}
		call, ok := n.(*syntax.CallExpr)
		if !ok || len(call.Args) == 0 {
			return true
		}
		var args []string
		for _, w := range call.Args {
			args = append(args, plain(w.Parts))
		}
		assert.Contains(t, known, args[0], "%s: %s", name, strings.Join(args, " "))
		switch args[0] {
		case "lifeboat":
			ours++
			require.NoError(t, parses(args[1:]), "%s: %s", name, strings.Join(args, " "))
		case "nats":
			checkSubjects(t, name, args)
		}
		return true
	})
	return ours
}

// plain is a word as a shell would pass it on, with the name of a variable instead of its value.
func plain(parts []syntax.WordPart) string {
	var b strings.Builder
	for _, p := range parts {
		switch p := p.(type) {
		case *syntax.Lit:
			b.WriteString(strings.ReplaceAll(p.Value, "\\\n", ""))
		case *syntax.SglQuoted:
			b.WriteString(p.Value)
		case *syntax.DblQuoted:
			b.WriteString(plain(p.Parts))
		case *syntax.ParamExp:
			b.WriteString(p.Param.Value)
		default:
			b.WriteString("x")
		}
	}
	return b.String()
}

// mentions is for a command within a sentence, whose arguments may be left out.
func mentions(args []string) error {
	_, err := parsed(args)
	return err
}

func parsed(args []string) (*cobra.Command, error) {
	cmd, rest, err := root().Find(args)
	if err != nil {
		return nil, err
	}
	if !cmd.Runnable() || cmd.HasSubCommands() && cmd.GroupID != "run" { // a service has commands, and runs without one
		return nil, fmt.Errorf("%s is no command that can be run", cmd.CommandPath())
	}
	return cmd, cmd.ParseFlags(rest)
}

// parses takes a command as cobra would, up to where it would run.
func parses(args []string) error {
	cmd, err := parsed(args)
	if err != nil {
		return err
	}
	if err = cmd.ValidateArgs(cmd.Flags().Args()); err != nil {
		return err
	}
	if err = cmd.ValidateRequiredFlags(); err != nil {
		return err
	}
	return cmd.ValidateFlagGroups()
}

var event = regexp.MustCompile(`^lifeboat\.event\.[a-z-]+\.[a-z-]+\.[A-Z*>]+$`)

// checkSubjects looks at what a nats command asks for of ours.
func checkSubjects(t *testing.T, name string, args []string) {
	t.Helper()
	for i, a := range args {
		switch {
		case strings.HasPrefix(a, "LIFEBOAT_"):
			assert.Equal(t, bus.StreamEvents, a, name)
		case strings.HasPrefix(a, "lifeboat.event."):
			assert.Regexp(t, event, a, name)
			token := strings.Split(a, ".")
			assert.Equal(t, bus.EventSubject(token[2], token[3], token[4]), a, name)
		case strings.HasPrefix(a, "--last-for") && i+1 == len(args):
			assert.Fail(t, "a subject is missing", "%s: %v", name, args)
		}
	}
}

// What a runbook may not do is found: the test above would be worth nothing if it took everything.
func TestACommandThatDoesNotParseIsFound(t *testing.T) {
	t.Parallel()
	for _, wrong := range []string{
		"lifeboat snapshots list", "lifeboat snapshot list a b c --nope", "lifeboat why", "lifeboat snapshot lists TARGET", "lifeboat status --output", "lifeboat notify test --receiver",
		"lifeboat schedule next --days many", "lifeboat snapshot",
	} {
		require.Error(t, parses(strings.Fields(wrong)[1:]), wrong)
	}
	require.NoError(t, parses(strings.Fields("snapshot run TARGET -c lifeboat.yaml --wait")))
}

// The rules of Prometheus pass the lint that is meant for everybody's rules, with these pages.
func TestOurOwnRulesPassLintRules(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob(filepath.Join(rules, "*.yml"))
	require.NoError(t, err)
	cmd := root()
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetArgs(slices.Concat([]string{"notify", "lint-rules", "--strict", "--pages-dir", runbooks, "--base-url", base[:len(base)-1]}, files))
	require.NoError(t, cmd.ExecuteContext(t.Context()), out.String())
}

// Who works down a page at night deletes nothing unseen, and makes no new keys to look at the old ones.
func TestNoRunbookDeletesUnseen(t *testing.T) {
	t.Parallel()
	for name, p := range readPages(t) {
		seen := false
		for line := range strings.Lines(strings.Join(p.blocks[""], "\n") + "\n" + strings.Join(p.spans, "\n")) {
			line = strings.TrimSpace(line)
			assert.NotRegexp(t, `^lifeboat keys\b`, line, name)
			if !strings.HasPrefix(line, "lifeboat prune ") {
				continue
			}
			seen = seen || strings.Contains(line, "--dry-run")
			assert.True(t, seen, "%s: %s comes before --dry-run", name, line)
		}
	}
}
