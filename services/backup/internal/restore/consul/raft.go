package consul

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
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
// nothing is repeated: an error may mean that it was restored nevertheless, and only of a request that was refused says so.
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
	body := &sent{r: p.compare(data), idle: idle}
	err = sendRaft(sendCtx, c, body)
	if broke := body.end(); broke != nil && sendCtx.Err() == nil {
		return fmt.Errorf("reading the raft snapshot: %w", broke)
	}
	return err
}

func sendRaft(ctx context.Context, c *consulkv.Client, body io.Reader) error {
	resp, err := c.Do(ctx, http.MethodPut, "/v1/snapshot", body)
	if err != nil {
		return c.Failed(ctx, source.Unreachable, doingRaft, err)
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
	return c.Failed(ctx, source.ReasonOfStatus(status.Status), doingRaft, err)
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

// sent is a body on its way: the destination may not keep it waiting for long. The time that reading it takes is the reader's own
// business.
type sent struct {
	idle *source.Idle

	mu  sync.Mutex
	r   io.Reader // nil once it has to be let alone
	err error     // of reading it
}

// Read implements io.Reader for the transport, which may go on with it after it gave an answer.
func (s *sent) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.idle.End()
	if s.r == nil {
		return 0, source.ErrClosed
	}
	n, err := s.r.Read(p)
	switch {
	case err == nil:
		s.idle.Begin()
	case !errors.Is(err, io.EOF):
		s.err = err
	}
	return n, err
}

// end takes the reader away, and says what went wrong with it.
func (s *sent) end() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.idle.End()
	s.r = nil
	return s.err
}
