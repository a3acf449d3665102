package nomad

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"

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

// Index is the raft index of the list of jobs, from Open on. It is a hint: it moves when a job or its summary changes, and
// not when only a variable does.
func (s *stream) Index() int64 { return s.reader.index }

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
		Revision: s.reader.index,
		Counts:   maps.Clone(s.reader.counts),
		Missing:  s.reader.absent(),
		Worries:  slices.Clone(s.reader.worries),
	}
	if err := s.client.describe(ctx, &s.reader.token, info); err != nil {
		return nil, err
	}
	s.info = info
	return info, nil
}
