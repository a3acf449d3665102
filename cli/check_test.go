package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/service"
)

// checked runs `lifeboat check-config`, with FILE in the output for the file's name.
func checked(t *testing.T, text string) (output string, code int) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "lifeboat.yaml")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return run(t, path)
}

func run(t *testing.T, path string) (output string, code int) {
	t.Helper()
	var out bytes.Buffer
	cmd := root()
	cmd.SetArgs([]string{"check-config", "-c", path})
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	code = service.Main(cmd)
	return strings.ReplaceAll(out.String(), path, "FILE"), code
}

const receivers = `notifier:
  receivers:
    - {name: ops, slack: {webhook_url_file: a}}
    - name: db
      slack: {webhook_url_file: b}
`

func TestCheckConfigNamesFileLineAndKey(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		want []string
		code int
	}{
		"a good file": {receivers + "  route: {receiver: ops, routes: [{receiver: db, matchers: [a=b]}]}\n", []string{"FILE is good: 0 targets, 2 receivers\n"}, 0},
		"a receiver that nothing names": {receivers + "  route: {receiver: ops}\n", []string{
			"FILE:4:13: notifier.receivers[1].name: warning: \"db\" gets no alerts", "   4 |     - name: db\n", "FILE is good",
		}, 0},
		"an unreachable route": {receivers + "  route:\n    receiver: ops\n    routes:\n      - {receiver: db}\n      - matchers: [a=b]\n", []string{
			"Error: FILE:10:9: notifier.route.routes[1]: no alert gets here: before it notifier.route.routes[0] {} takes all that it matches",
			"  10 |       - matchers: [a=b]\n",
		}, 2},
		"an unknown receiver": {receivers + "  route: {receiver: nobody}\n", []string{"FILE:6:21: notifier.route.receiver: no receiver is named \"nobody\""}, 2},
		"a template": {receivers + "      title: '{{ .Status'\n  route: {receiver: ops, routes: [{receiver: db, matchers: [a=b]}]}\n", []string{
			"FILE:6:14: notifier.receivers[1].title: ", "unclosed action",
		}, 2},
		"all at once": {receivers + "      text: '{{ nosuch }}'\n  route: {receiver: ops, routes: [{}, {matchers: [a=b]}]}\n", []string{
			"receivers[1].name: warning", "receivers[1].text: ", "route.routes[1]: no alert",
		}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			out, code := checked(t, c.text)
			assert.Equal(t, c.code, code, out)
			for _, want := range c.want {
				assert.Contains(t, out, want)
			}
			assert.Equal(t, c.code == 0, strings.Contains(out, "is good"), out)
		})
	}
	out, code := run(t, filepath.Join(t.TempDir(), "gone.yaml"))
	assert.Equal(t, 2, code)
	assert.Contains(t, out, "reading configuration")
}

// The example is good, though the files that it names are not there.
func TestCheckConfigOfTheExample(t *testing.T) {
	out, code := run(t, filepath.Join("..", "docs", "lifeboat.example.yaml"))
	assert.Equal(t, 0, code, out)
	assert.Contains(t, out, "is good")
}
