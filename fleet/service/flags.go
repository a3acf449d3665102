package service

import (
	"context"
	"errors"
	"io"
	"log/slog"

	"github.com/spf13/cobra"
)

// Flags are those that every service's command has.
type Flags struct {
	Config   string
	HTTPAddr string
	LogLevel string
	// WebConfigFile is for HTTPAddr: TLS, client certificates and basic authentication.
	WebConfigFile string
}

// Add declares the flags on a command, and `healthcheck` below it. addr is the default address of health and metrics.
func (f *Flags) Add(cmd *cobra.Command, addr string) {
	cmd.Flags().StringVarP(&f.Config, "config", "c", "lifeboat.yaml", "configuration `file`")
	cmd.Flags().StringVar(&f.HTTPAddr, "http-addr", addr, "`address` of /healthz, /readyz and /metrics")
	cmd.Flags().StringVar(&f.WebConfigFile, "web-config-file", "",
		"`file` with TLS, client certificates and basic authentication for --http-addr, in the form of Prometheus' exporter-toolkit")
	cmd.Flags().StringVar(&f.LogLevel, "log-level", "info", "debug, info, warn or error")
	cmd.AddCommand(HealthcheckCommand(addr))
	// A service's --help is enough for it: no `completion` and no `help` beside `healthcheck`.
	cmd.CompletionOptions.DisableDefaultCmd = true
	cmd.SetHelpCommand(&cobra.Command{Use: "no-help", Hidden: true})
}

// Logger makes the logger that the flags ask for.
func (f *Flags) Logger(out io.Writer) (*slog.Logger, error) {
	log, err := NewLogger(out, f.LogLevel)
	if err != nil {
		return nil, &UsageError{err}
	}
	return log, nil
}

// Group is a command that only holds others: alone it prints its help, and what it does not know is wrong usage.
func Group(cmd *cobra.Command, commands ...*cobra.Command) *cobra.Command {
	cmd.Args = cobra.NoArgs
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	cmd.AddCommand(commands...)
	return cmd
}

// Main runs a command until it ends or a signal comes, prints its error and returns the exit code.
func Main(cmd *cobra.Command) int {
	ctx, stop := SignalContext(context.Background())
	defer stop()
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	began := false
	cmd.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		// Cobra looks at these only after this.
		if err := errors.Join(cmd.ValidateRequiredFlags(), cmd.ValidateFlagGroups()); err != nil {
			return err
		}
		began = true
		return nil
	}
	err := cmd.ExecuteContext(ctx)
	if err != nil {
		cmd.PrintErrln("Error:", err)
		if !began { // an unknown command, flag or argument, or a missing one
			err = &UsageError{err}
		}
	}
	return ExitCode(err)
}
