package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/console"
	"github.com/lifeboat-fleet/lifeboat/fleet/service"
	notifier "github.com/lifeboat-fleet/lifeboat/services/notifier/app"
)

func checkConfig() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use: "check-config", Short: "Check a configuration file; exit code 2 says that it is wrong",
		Long: "check-config reads a configuration file as the services do, and looks for what they would not refuse but nobody means: routes\n" +
			"that no alert can reach, templates that cannot be parsed, a broken web configuration. Each problem is printed as\n" +
			"file:line:column: key: what is wrong. What is only a warning does not change the exit code.",
		Example: "  lifeboat check-config -c /etc/lifeboat/lifeboat.yaml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := check(cmd, path)
			if err != nil {
				return &service.UsageError{Err: err}
			}
			cmd.Printf("%s is good: %d targets, %d receivers\n", path, len(cfg.Targets), len(cfg.Notifier.Receivers))
			return nil
		},
	}
	console.AddConfig(cmd, &path)
	return cmd
}

// check prints warnings and returns the mistakes, joined.
func check(cmd *cobra.Command, path string) (*config.Config, error) {
	src, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading configuration: %w", err)
	}
	cfg, err := config.Parse(path, src)
	if err != nil {
		return nil, err
	}
	found := notifier.Check(cfg)
	var mistakes []error
	for i, e := range config.Place(path, src, found) {
		if found[i].Warning {
			cmd.PrintErrln(e)
			continue
		}
		mistakes = append(mistakes, e)
	}
	return cfg, errors.Join(mistakes...)
}
