package restore

import (
	"errors"
	"io"
	"sync"

	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source"
)

// Sending is the body of a request that takes as long as it is large: the destination may not keep it waiting for long. The time
// that reading it takes is the reader's own business.
type Sending struct {
	idle *source.Idle

	mu  sync.Mutex
	r   io.Reader // nil once it has to be let alone
	all bool      // it was read to its end
	err error     // of reading it
}

// NewSending makes a body of r. idle is of the context that the request is made with.
func NewSending(r io.Reader, idle *source.Idle) *Sending { return &Sending{r: r, idle: idle} }

// Read implements io.Reader for the transport, which may go on with it after it gave an answer.
func (s *Sending) Read(p []byte) (int, error) {
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
	case errors.Is(err, io.EOF):
		s.all = true
	default:
		s.err = err
	}
	return n, err
}

// All says whether the transport took all of it, so that the destination may have it whole. Before that, it lacks the end.
func (s *Sending) All() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all
}

// End takes the reader away, and says what went wrong with it.
func (s *Sending) End() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.idle.End()
	s.r = nil
	return s.err
}
