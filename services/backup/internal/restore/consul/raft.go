package consul

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/consulkv"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/raftsnap"
)

// restoreWait is how long the servers may take for a raft snapshot once they have all of it.
const restoreWait = 10 * time.Minute

const doingRaft = "restoring the raft snapshot"

// RestoreRaft replaces all that dest's datacenter holds, its ACL tokens included, by a raft snapshot, as `consul snapshot restore`
// does. It needs a management token of the datacenter as it is; afterwards the snapshot's tokens hold.
//
// Sessions come back with it, and end soon: Consul removes the nodes that are not its own within a minute or so. A key that such a
// session holds goes with it where the session's behavior is "delete".
//
// The snapshot is read twice, as in Restore: dest is not contacted before the first read proved it whole. It is sent once, and
// nothing is repeated. The servers restore it only once all of it came. An error may mean that it was restored nevertheless, when
// all was sent and no answer came, or one that the servers were in trouble; it says so then.
func RestoreRaft(ctx context.Context, dest config.Consul, open restore.Open) error {
	p := newPieces()
	if err := provenRaft(ctx, open, &p); err != nil {
		return err
	}
	c, err := consulkv.NewClient(dest, restoreWait)
	if err != nil {
		return err
	}
	defer c.Close()
	sendCtx, stop, idle := source.WatchIdle(ctx, 0)
	defer stop()
	data, err := open(sendCtx)
	if err != nil {
		return fmt.Errorf("opening the raft snapshot again: %w", err)
	}
	defer data.Close()
	body := restore.NewSending(p.compare(data), idle)
	err = sendRaft(sendCtx, c, body)
	if broke := body.End(); broke != nil && sendCtx.Err() == nil {
		return fmt.Errorf("reading the raft snapshot: %w", broke)
	}
	return err
}

func sendRaft(ctx context.Context, c *consulkv.Client, body *restore.Sending) error {
	resp, err := c.Do(ctx, http.MethodPut, "/v1/snapshot", body)
	if err != nil {
		return unknownIf(body.All(), c.Failed(ctx, source.Unreachable, doingRaft, err))
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		return nil
	}
	status := source.NewStatusError(resp)
	err = status
	if strings.HasPrefix(status.Body, denied) {
		err = fmt.Errorf(`%w; it needs a management token, or one with: acl = "write"`, status)
	}
	err = c.Failed(ctx, source.ReasonOfStatus(status.Status), doingRaft, err)
	// Consul restores before the last things that may fail, and a proxy may answer in its place.
	return unknownIf(body.All() && status.Status >= http.StatusInternalServerError, err)
}

// unknownIf says of an error that comes after the whole snapshot was sent that it does not tell what has become of that.
func unknownIf(sent bool, err error) error {
	if !sent {
		return err
	}
	return fmt.Errorf("%w; whether it was restored is not known: look at the datacenter, with the old tokens and the new", err)
}

// provenRaft reads a raft snapshot to its end and keeps its sums.
func provenRaft(ctx context.Context, open restore.Open, p *pieces) error {
	data, err := open(ctx)
	if err != nil {
		return fmt.Errorf("opening the raft snapshot: %w", err)
	}
	defer data.Close()
	// What the archive says of itself comes last: the reader's own error tells more.
	whole := p.record(data)
	if _, err := io.Copy(io.Discard, raftsnap.NewReader(whole)); err != nil {
		return fmt.Errorf("reading the raft snapshot: %w", err)
	}
	return nil
}
