package consul

import (
	"context"
	"time"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore"
)

// RestoreWith is Restore with less patience, or more at once.
func RestoreWith(
	ctx context.Context, inFlight int, patience, idle time.Duration, dest config.Consul, open restore.Open, sel Selection, o restore.Options,
) (restore.Summary, error) {
	set := defaults()
	if inFlight > 0 {
		set.inFlight = inFlight
	}
	if patience > 0 {
		set.patience = patience
	}
	if idle > 0 {
		set.idle = idle
	}
	return restoreWith(ctx, set, dest, open, sel, o)
}
