package source

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// DefaultIdle is how long a source may send nothing before the read fails.
const DefaultIdle = 60 * time.Second

// ErrStalled is the cause of a context that an Idle watch canceled.
var ErrStalled = errors.New("the source stopped sending")

// Idle cancels a context when one single wait for the source takes too long. A deadline on the whole read cannot do
// that: it must allow for the largest source, and meanwhile a hung one is held open.
type Idle struct {
	limit time.Duration
	timer *time.Timer
}

// WatchIdle derives a context that is canceled, with ErrStalled as its cause, when a wait marked by Begin and End takes
// longer than limit; DefaultIdle when limit is zero.
func WatchIdle(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc, *Idle) {
	if limit == 0 {
		limit = DefaultIdle
	}
	ctx, cancel := context.WithCancelCause(ctx)
	i := &Idle{limit: limit}
	i.timer = time.AfterFunc(limit, func() {
		cancel(fmt.Errorf("%w for %s", ErrStalled, limit))
	})
	i.timer.Stop()
	return ctx, func() {
		i.timer.Stop()
		cancel(ErrClosed)
	}, i
}

// Begin marks the start of a wait for the source.
func (i *Idle) Begin() { i.timer.Reset(i.limit) }

// End marks its end.
func (i *Idle) End() { i.timer.Stop() }
