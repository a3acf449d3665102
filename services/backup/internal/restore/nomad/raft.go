package nomad

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/raftsnap"
)

const (
	// restoreWait is how long the servers may take for an operator snapshot once they have all of it.
	restoreWait = 10 * time.Minute

	doingRaft = "restoring the operator snapshot"
)

// RestoreRaft replaces all that dest's region holds, its ACL tokens and its keyring included, by an operator snapshot, as
// `nomad operator snapshot restore` does. Where ACLs are on it needs a management token of the region as it is; afterwards the
// snapshot's tokens hold.
//
// The snapshot is read twice: dest is not contacted before the first read proved it whole. It is sent once, and nothing is repeated.
// Nomad restores it only once all of it came and its sums are right. An error may mean that it was restored nevertheless, when no
// answer came, and says so then.
func RestoreRaft(ctx context.Context, dest config.Nomad, open restore.Open) error {
	if err := provenRaft(ctx, open); err != nil {
		return err
	}
	d, err := dialPatiently(dest, restoreWait)
	if err != nil {
		return err
	}
	defer d.close()
	if err = d.ready(ctx); err != nil {
		return err
	}
	if !d.seesAll {
		return d.failed(doingRaft, errors.New("the token needs "+needManagement+" of the region as it is now; nothing was written"))
	}
	return d.sendRaft(ctx, open)
}

func (d *destination) sendRaft(ctx context.Context, open restore.Open) error {
	sendCtx, stop, idle := source.WatchIdle(ctx, 0)
	defer stop()
	data, err := open(sendCtx)
	if err != nil {
		return fmt.Errorf("opening the operator snapshot again: %w", err)
	}
	defer data.Close()
	body := restore.NewSending(raftsnap.NewReader(data), idle)
	_, err = d.api.Operator().SnapshotRestore(body, (&api.WriteOptions{}).WithContext(sendCtx))
	broke := body.End()
	err = answered(err)
	switch {
	case err == nil:
		return nil
	case broke != nil && sendCtx.Err() == nil:
		return fmt.Errorf("reading the operator snapshot: %w", broke)
	case statusOf(err) != 0 && statusOf(err) < http.StatusInternalServerError:
		return d.failed(doingRaft, err)
	case sendCtx.Err() != nil:
		err = context.Cause(sendCtx)
	}
	if !body.All() { // without its end nothing is restored
		return d.failed(doingRaft, err)
	}
	return d.failed(doingRaft, fmt.Errorf("%w; whether it was restored is not known: look at the region, with the old tokens and the new", err))
}

// provenRaft reads an operator snapshot to its end.
func provenRaft(ctx context.Context, open restore.Open) error {
	data, err := open(ctx)
	if err != nil {
		return fmt.Errorf("opening the operator snapshot: %w", err)
	}
	_, err = io.Copy(io.Discard, raftsnap.NewReader(data))
	if err = errors.Join(err, data.Close()); err != nil {
		return fmt.Errorf("reading the operator snapshot: %w", err)
	}
	return nil
}
