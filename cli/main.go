// Command lifeboat holds the three services, the operator's commands, and a fleet to try it all on.
package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/lifeboat-fleet/lifeboat/cli/internal/demo"
	"github.com/lifeboat-fleet/lifeboat/cli/internal/keys"
	"github.com/lifeboat-fleet/lifeboat/cli/internal/ops"
	"github.com/lifeboat-fleet/lifeboat/cli/internal/page"
	"github.com/lifeboat-fleet/lifeboat/cli/internal/up"
	"github.com/lifeboat-fleet/lifeboat/fleet/service"
	backup "github.com/lifeboat-fleet/lifeboat/services/backup/app"
	notifier "github.com/lifeboat-fleet/lifeboat/services/notifier/app"
	scheduler "github.com/lifeboat-fleet/lifeboat/services/scheduler/app"
)

func main() { os.Exit(service.Main(root())) }

func root() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "lifeboat",
		Short: "Back up a control plane, prove by drills that it restores, and tell people with the runbook in the message",
		Example: "  lifeboat up                                 # everything, on embedded servers, with sample data\n" +
			"  lifeboat check-config -c lifeboat.yaml\n" +
			"  lifeboat status -c lifeboat.yaml\n" +
			"  lifeboat why etcd-prod -c lifeboat.yaml     # from the tick to the object, or why nothing ran",
		Version: service.VersionText(),
	}
	cmd.AddGroup(
		&cobra.Group{ID: "operate", Title: "For operators:"},
		&cobra.Group{ID: "deploy", Title: "To deploy it:"},
		&cobra.Group{ID: "run", Title: "Services:"},
		&cobra.Group{ID: "try", Title: "To try it:"},
	)
	add(cmd, "operate", backup.StatusCommand(ops.FleetStatus), ops.WhyCommand(), ops.JobsCommand(), ops.DeadCommand(), backup.SnapshotCommand(), backup.DrillCommand(), backup.RestoreCommand(),
		backup.PruneCommand(), checkConfig())
	notify := notifier.NotifyCommand()
	notify.AddCommand(ops.NotifyCommands()...)
	notify.Example += "\n  lifeboat notify deliveries --slow 1m\n  lifeboat notify replay --all --dry-run"
	add(cmd, "operate", scheduler.ScheduleCommand(), notify)
	add(cmd, "deploy", backup.StoreCommand(), keys.Command())
	add(cmd, "run", named("scheduler", scheduler.Command()), named("backup", backup.Command()), named("notifier", notifier.Command()), page.Command(),
		service.HealthcheckCommand(""))
	add(cmd, "try", up.Command(), demo.Command())
	return cmd
}

func add(parent *cobra.Command, group string, commands ...*cobra.Command) {
	for _, c := range commands {
		c.GroupID = group
		parent.AddCommand(c)
	}
}

// named mounts a service's command under a shorter name.
func named(name string, c *cobra.Command) *cobra.Command {
	c.Use = name
	return c
}
