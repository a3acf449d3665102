package app

import (
	"fmt"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/throwaway"
)

const confineName = "confine"

// confineCommand is what a drill starts its throwaway servers through: this program again, which shuts itself off from the
// network and then becomes the server. Nothing else may run in that process.
func confineCommand() *cobra.Command {
	return &cobra.Command{
		Use: confineName, Short: "Run a drill's throwaway server without a network", Hidden: true, DisableFlagParsing: true,
		Run: func(_ *cobra.Command, args []string) {
			os.Exit(throwaway.Confined(args)) //nolint:forbidigo // the process exists for nothing else
		},
	}
}

// Confine is the command line of that command. words are those that come before it in this program: "backup" in lifeboat.
func Confine(words ...string) ([]string, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("finding this program's file, which drills need: %w", err)
	}
	return slices.Concat([]string{self}, words, []string{confineName}), nil
}
