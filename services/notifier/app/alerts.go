package app

import "github.com/lifeboat-fleet/lifeboat/services/notifier/internal/fleetalert"

// FleetAlerts are the names of the alerts that the notifier raises about the fleet itself, for what must have a runbook for each.
func FleetAlerts() []string { return fleetalert.Names() }
