package app

import (
	"github.com/spf13/cobra"

	"github.com/lifeboat-fleet/lifeboat/fleet/service"
)

// NotifyCommand is `lifeboat notify`: what the notifier would do, did, and could not do.
func NotifyCommand() *cobra.Command {
	return service.Group(&cobra.Command{
		Use: "notify", Short: "Explain routes, try receivers, lint rules for runbooks, see what was delivered",
		Example: "  lifeboat notify route severity=critical team=db\n  lifeboat notify test --receiver ops-slack --dry-run\n" +
			"  lifeboat notify lint-rules rules/*.yml",
	}, notifyCommands()...)
}

// notifyCommands are those below it.
func notifyCommands() []*cobra.Command {
	return []*cobra.Command{routeCommand(), testCommand(), lintRulesCommand()}
}
