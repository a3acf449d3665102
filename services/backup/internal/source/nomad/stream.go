package nomad

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"

	"github.com/hashicorp/nomad/api"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source"
)

// stream is the end of the pipe that a reader writes the tar into. It implements source.Stream.
type stream struct {
	ctx    context.Context //nolint:containedctx // an io.Reader is given none; this one ends the read
	stop   context.CancelFunc
	unhook func() bool
	client *client
	reader *reader // its counts are complete once the pipe has given io.EOF
	pipe   *io.PipeReader
	done   chan struct{}
	err    error // sticky

	closing sync.Once
	info    *lifeboatv1.SourceInfo
}

// Read implements source.Stream.
func (s *stream) Read(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	n, err := s.pipe.Read(p)
	if errors.Is(err, io.ErrClosedPipe) {
		err = source.ErrClosed
	}
	s.err = err
	return n, err
}

// Close implements source.Stream.
func (s *stream) Close() error {
	s.closing.Do(func() {
		s.unhook()
		s.stop()
		_ = s.pipe.Close() // it cannot fail
		<-s.done
		s.client.close()
	})
	return nil
}

// ended is why nothing more can be asked; nil while it can.
func (s *stream) ended() error {
	if s.ctx.Err() == nil {
		return nil
	}
	return fmt.Errorf("asking about the region: %w", context.Cause(s.ctx))
}

// Info implements source.Stream.
func (s *stream) Info(ctx context.Context) (*lifeboatv1.SourceInfo, error) {
	switch {
	case s.info != nil:
		return s.info, nil
	case !errors.Is(s.err, io.EOF):
		return nil, source.ErrUnfinished
	case s.ended() != nil:
		return nil, s.ended()
	}
	info := &lifeboatv1.SourceInfo{
		Identity: map[string]string{"endpoint": s.client.shown},
		Revision: s.reader.index,
		Counts:   maps.Clone(s.reader.counts),
		Missing:  slices.Clone(s.reader.missing),
	}
	var self struct {
		Config struct {
			Region  string
			Version struct{ Version string }
		} `json:"config"`
		Member struct{ Name string } `json:"member"`
	}
	askCtx, cancel := context.WithTimeout(ctx, infoTimeout)
	defer cancel()
	_, err := s.client.query(askCtx, "/v1/agent/self", &api.QueryOptions{}, &self)
	switch {
	case ctx.Err() != nil:
		return nil, s.client.failed(ctx, "asking the agent who it is", ctx.Err())
	case err != nil:
		// The jobs are whole without it: agent:read is a right of its own.
		info.Missing = append(info.Missing, "version, region, server: "+
			s.client.failed(ctx, "asking the agent who it is", err).Error())
	default:
		info.Version = self.Config.Version.Version
		info.Identity["region"] = self.Config.Region
		info.Identity["server"] = self.Member.Name
	}
	s.info = info
	return info, nil
}
