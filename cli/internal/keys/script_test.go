package keys

import (
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"

	"github.com/lifeboat-fleet/lifeboat/fleet/service"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"lifeboat": func() { os.Exit(service.Main(root())) }, //nolint:forbidigo // a process of its own
	})
}

func root() *cobra.Command {
	cmd := &cobra.Command{Use: "lifeboat"}
	cmd.AddCommand(Command())
	return cmd
}

// TestCommand runs the scripts under testdata/script.
func TestCommand(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata/script", RequireExplicitExec: true, RequireUniqueNames: true})
}
