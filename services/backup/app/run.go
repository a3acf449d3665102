package app

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/service"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// runCommand is `lifeboat snapshot run` and `lifeboat drill run`: they publish a job, as anybody may with `nats pub`.
func runCommand(work config.Work, short string) *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use: "run target", Short: short,
		Example: fmt.Sprintf("  lifeboat %[1]s run etcd-prod\n  nats pub lifeboat.job.%[1]s.etcd-prod ''    # the same", work),
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			cfg, err := config.Load(path)
			if err != nil {
				return &service.UsageError{Err: err}
			}
			if _, ok := cfg.Target(args[0]); !ok {
				return &service.UsageError{Err: fmt.Errorf("no target is named %q in %s", args[0], path)}
			}
			b, err := bus.Connect(bus.Options{
				Config: cfg.NATS, Actor: service.Instance("lifeboat-cli"), Logger: slog.New(slog.DiscardHandler),
				Registerer: prometheus.NewRegistry(),
			})
			if err != nil {
				return &service.UsageError{Err: err}
			}
			defer func() { err = errors.Join(err, b.Close()) }()
			subject := bus.JobSubject(work, args[0])
			_, err = b.Publish(cmd.Context(), bus.Outgoing{Subject: subject, Message: &lifeboatv1.Job{RequestedBy: "cli"}})
			if err != nil {
				return err
			}
			cmd.Printf("published %s; see what becomes of it with: lifeboat %s list %s\n", subject, work, args[0])
			return nil
		},
	}
	cmd.Flags().StringVarP(&path, "config", "c", "lifeboat.yaml", "configuration `file`")
	return cmd
}
