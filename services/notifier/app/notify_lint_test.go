package app_test

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"

	"github.com/lifeboat-fleet/lifeboat/fleet/service"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/app"
)

// TestLintRules runs the scripts under testdata/lint, each with a web server at $SITE that has the page /good and no other, and the
// fleet's own runbooks in $RUNBOOKS. Besides testscript's own words they have these:
//
//	exits CODE lifeboat ARGUMENT...  runs the command in this process and expects exactly this exit code
//	envsubst FILE                    puts the environment's variables into a file
func TestLintRules(t *testing.T) {
	own, err := filepath.Abs(filepath.Join("..", "..", "..", "docs", "runbooks"))
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir: filepath.Join("testdata", "lint"), RequireExplicitExec: true, RequireUniqueNames: true,
		Setup: func(e *testscript.Env) error {
			site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/good" {
					http.NotFound(w, r)
				}
			}))
			e.Defer(site.Close)
			e.Setenv("SITE", site.URL)
			e.Setenv("RUNBOOKS", own)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": func(ts *testscript.TestScript, _ bool, args []string) {
				want, err := strconv.Atoi(args[0])
				ts.Check(err)
				cmd := &cobra.Command{Use: "lifeboat"}
				cmd.AddCommand(app.NotifyCommand())
				for i, a := range args { // the command itself would look into this process's folder
					if i > 3 && len(a) > 0 && a[0] == '@' {
						args[i] = ts.MkAbs(a[1:])
					}
				}
				cmd.SetArgs(args[2:])
				cmd.SetOut(ts.Stdout())
				cmd.SetErr(ts.Stderr())
				if got := service.Main(cmd); got != want {
					ts.Fatalf("exit code %d, want %d", got, want)
				}
			},
			"envsubst": func(ts *testscript.TestScript, _ bool, args []string) {
				path := ts.MkAbs(args[0])
				ts.Check(os.WriteFile(path, []byte(os.Expand(ts.ReadFile(path), ts.Getenv)), 0o600))
			},
		},
	})
}
