package route_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/alertmanager/pkg/labels"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/route"
)

// amtool is Alertmanager's own tool with a configuration that has our routes.
type amtool struct{ path, config string }

func newAmtool(t *testing.T, top config.Route) *amtool {
	t.Helper()
	path, err := bintest.Find("amtool")
	require.NoError(t, err)
	names := map[string]bool{}
	var convert func(config.Route) map[string]any
	convert = func(r config.Route) map[string]any {
		c := map[string]any{"continue": r.Continue}
		if r.Receiver != "" {
			names[r.Receiver] = true
			c["receiver"] = r.Receiver
		}
		if len(r.Matchers) > 0 {
			c["matchers"] = r.Matchers
		}
		children := []any{}
		for _, child := range r.Routes {
			children = append(children, convert(child))
		}
		c["routes"] = children
		return c
	}
	root, receivers := convert(top), []any{}
	for name := range names {
		receivers = append(receivers, map[string]any{"name": name})
	}
	text, err := json.Marshal(map[string]any{"route": root, "receivers": receivers}) // which is YAML too
	require.NoError(t, err)
	a := &amtool{path: path, config: filepath.Join(t.TempDir(), "alertmanager.yml")}
	require.NoError(t, os.WriteFile(a.config, text, 0o600))
	return a
}

// receivers are what amtool prints, "a,b"; failed says that it refuses the labels.
func (a *amtool) receivers(t *testing.T, args []string) (line string, failed bool) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), a.path, append([]string{"config", "routes", "test", "--config.file", a.config, "--"}, args...)...)
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir()) // it reads a configuration there
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		require.Contains(t, stderr.String(), "abels", "amtool fails for another reason")
	}
	lines := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n") // warnings about the syntax stand before it
	return lines[len(lines)-1], err != nil
}

// agree asks both.
func (a *amtool) agree(t *testing.T, tree *route.Tree, args []string) {
	t.Helper()
	want, refused := a.receivers(t, args)
	lbls, err := route.ParseLabels(args)
	if refused {
		assert.Error(t, err, "amtool refuses %q", args)
		return
	}
	require.NoError(t, err, "amtool takes %q", args)
	var got []string
	for _, h := range tree.Match(lbls) {
		got = append(got, h.Receiver)
	}
	assert.Equal(t, want, strings.Join(got, ","), "%q", args)
}

const picked = `
notifier:
  receivers: [{name: top, slack: &s {webhook_url_file: x}}, {name: a, slack: *s}, {name: b, slack: *s}, {name: c, slack: *s}, {name: d, slack: *s},
    {name: e, slack: *s}, {name: f, slack: *s}, {name: g, slack: *s}, {name: h, slack: *s}, {name: i, slack: *s}]
  route:
    receiver: top
    routes:
      - {receiver: a, matchers: ['team="db"', 'env!="dev"'], routes: [{receiver: b, matchers: ['severity=~"critical|page"'], continue: true}, {matchers: [severity=critical]}, {receiver: top, matchers: ['{severity="info",}']}]}
      - {receiver: c, matchers: ['"été"="oui"', '名前=~"平.+"'], continue: true}
      - {receiver: d, matchers: ['"été"="oui"']}
      - {receiver: e, matchers: ['owner=""', 'kind!~"a.*|b"', 'kind!=""'], continue: true}
      - {receiver: f, matchers: ['owner!~".+",kind=~".*z"']}
      - {receiver: g, matchers: ['quote="say \"hi\""'], routes: [{receiver: h, matchers: ['path=~"C:\\\\dir.*"']}]}
      - {receiver: i, matchers: ['"with space, and = sign"!=""'], continue: true, routes: [{receiver: h, continue: true}, {receiver: i}, {receiver: a}]}
`

func TestRoutesAsAlertmanagerDoes(t *testing.T) {
	t.Parallel()
	cfg, err := config.Parse("lifeboat.yaml", []byte(picked))
	require.NoError(t, err)
	tree, err := route.Compile(cfg.Notifier)
	require.NoError(t, err)
	tool := newAmtool(t, cfg.Notifier.Route)
	for name, args := range map[string][]string{
		"no labels":                {},
		"a parent itself":          {"team=db"},
		"continue in a child":      {"team=db", "severity=critical"},
		"page continues to none":   {"team=db", "severity=page"},
		"braces in a matcher":      {"team=db", "severity=info"},
		"anchored":                 {"team=db", "severity=criticalx"},
		"negative":                 {"team=db", "env=dev", "severity=critical"},
		"UTF-8, continue":          {"été=oui", "名前=平台"},
		"UTF-8, quoted":            {`"été"="oui"`, `"名前"="x"`},
		"empty and absent":         {`owner=""`, "kind=c"},
		"not by an expression":     {"kind=abc"},
		"b is not bz":              {"kind=bz"},
		"an owner":                 {"kind=z", "owner=me"},
		"quotes":                   {`quote="say \"hi\""`},
		"a backslash":              {`quote="say \"hi\""`, `path="C:\\dir\\x"`},
		"a line break":             {`kind="c\nz"`},
		"a name with signs":        {`"with space, and = sign"=x`},
		"the same receiver again":  {`"with space, and = sign"=x`, "team=net"},
		"no value":                 {"team="},
		"not a label":              {"team"},
		"a matcher":                {"team!=db"},
		"an expression":            {"team=~db"},
		"two in one":               {"team=db,env=dev"},
		"braces":                   {`{team="db"}`},
		"an unquoted space":        {"team=d b"},
		"an unfinished quote":      {`team="db`},
		"a colon and dots":         {"job:rate.5m=1"},
		"a bare backslash":         {`path=C:\dir`},
		"a name that is no legacy": {"0abc=x"},
		"the same twice":           {"team=db", "team=db"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tool.agree(t, tree, args)
		})
	}
}

func TestRandomRoutesAsAlertmanagerDoes(t *testing.T) {
	t.Parallel()
	r := newRandom(t)
	for range 8 {
		top := r.tree()
		tree, tool := compiled(t, top), newAmtool(t, top)
		for range 8 {
			var args []string
			for name, value := range r.labels() {
				m := labels.Matcher{Type: labels.MatchEqual, Name: name, Value: value}
				args = append(args, m.String())
			}
			tool.agree(t, tree, args)
			if t.Failed() {
				t.Fatal(shown(top, ""))
			}
		}
	}
}

// What amtool takes as the last of two is more likely a slip.
func TestALabelOfTwoValuesIsRefused(t *testing.T) {
	t.Parallel()
	_, err := route.ParseLabels([]string{"team=db", "team=net"})
	require.ErrorContains(t, err, `label team is given twice, as "db" and "net"`)
}

// Whatever stands in a matcher or an argument: no panic, and what is taken can be said again and means the same.
func FuzzLabels(f *testing.F) {
	for _, s := range []string{"a=b", `"é"="x"`, `a="b\\"`, "a=~b", "", "{a=b}", `a="\x"`, "a= b", `a="\n"`, "a=b}"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		lbls, err := route.ParseLabels([]string{s})
		if err != nil {
			return
		}
		for name, value := range lbls {
			m := labels.Matcher{Type: labels.MatchEqual, Name: name, Value: value}
			again, err := route.ParseLabels([]string{m.String()})
			require.NoError(t, err, "%s", m.String())
			assert.Equal(t, lbls, again)
		}
	})
}
