package console

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/service"
)

// The values of --output.
const (
	OutputTable = "table"
	OutputJSON  = "json"
)

// AddConfig declares --config.
func AddConfig(cmd *cobra.Command, file *string) {
	cmd.Flags().StringVarP(file, "config", "c", "lifeboat.yaml", "configuration `file`")
}

// AddOutput declares --output.
func AddOutput(cmd *cobra.Command, output *string) {
	cmd.Flags().StringVarP(output, "output", "o", OutputTable, "table or json")
	CompleteFlag(cmd, "output", OutputTable, OutputJSON)
}

// CheckOutput is a usage error for an --output that is neither.
func CheckOutput(output string) error {
	if output != OutputTable && output != OutputJSON {
		return Usagef("--output: %q is not table or json", output)
	}
	return nil
}

// Usagef is an error that exits with 2: wrong usage or configuration.
func Usagef(format string, args ...any) error {
	return &service.UsageError{Err: fmt.Errorf(format, args...)}
}

// FindTarget is a usage error that lists the targets there are when none has the name. file is the configuration's.
func FindTarget(cfg *config.Config, file, name string) (config.Target, error) {
	t, ok := cfg.Target(name)
	if !ok {
		known := make([]string, 0, len(cfg.Targets))
		for _, t := range cfg.Targets {
			known = append(known, t.Name)
		}
		return t, Usagef("no target is named %q in %s; it has %s", name, file, OrDash(strings.Join(known, ", ")))
	}
	return t, nil
}

// CompleteFlag offers the values of a flag.
func CompleteFlag(cmd *cobra.Command, flag string, values ...string) {
	// The only error is a flag that does not exist, and the caller has just declared it.
	_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
}

// CompleteTargets offers the configuration's targets for every argument.
func CompleteTargets(file *string) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		return TargetNames(*file, args), cobra.ShellCompDirectiveNoFileComp
	}
}

// CompleteTarget offers one target and nothing after it.
func CompleteTarget(file *string) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return TargetNames(*file, nil), cobra.ShellCompDirectiveNoFileComp
	}
}

// TargetNames are those of a configuration but some; none of a file that cannot be used.
func TargetNames(file string, but []string) []string {
	cfg, err := config.Load(file)
	if err != nil {
		return nil // a shell has no place for errors
	}
	var names []string
	for _, t := range cfg.Targets {
		if !slices.Contains(but, t.Name) {
			names = append(names, t.Name)
		}
	}
	return names
}
