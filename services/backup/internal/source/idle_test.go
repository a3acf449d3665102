package source_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source"
)

// TestIdle counts only the time that is spent waiting for the source, each wait for itself.
func TestIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop, idle := source.WatchIdle(t.Context(), time.Minute)
		defer stop()
		wait := func(d time.Duration) { <-time.After(d) }
		wait(time.Hour) // before the first wait
		for range 5 {
			idle.Begin()
			wait(50 * time.Second)
			idle.End()
			wait(time.Hour) // a slow reader
		}
		synctest.Wait()
		require.NoError(t, ctx.Err())
		idle.Begin()
		wait(time.Minute)
		synctest.Wait()
		require.ErrorIs(t, context.Cause(ctx), source.ErrStalled)
	})
}

// TestClassify has a cancellation outrank what it caused, and a stall both.
func TestClassify(t *testing.T) {
	const at = "http://host"
	broken := errors.New("broken pipe")
	ctx, cancel := context.WithCancel(t.Context())
	var typed *source.Error
	require.ErrorAs(t, source.Classify(ctx, source.Unreachable, at, "reading", broken), &typed)
	assert.Equal(t, source.Unreachable, typed.Reason)
	require.EqualError(t, typed, "reading at http://host: broken pipe")
	cancel()
	require.ErrorAs(t, source.Classify(ctx, source.Unreachable, at, "reading", broken), &typed)
	assert.Equal(t, source.Canceled, typed.Reason)
	require.ErrorIs(t, typed, context.Canceled)
	require.NoError(t, source.Classify(ctx, source.Unreachable, at, "reading", nil))
}

// TestEndpoint shows no password.
func TestEndpoint(t *testing.T) {
	assert.Equal(t, "https://user:xxxxx@host:1/", source.Endpoint("https://user:secret@host:1/"))
	assert.NotContains(t, source.Endpoint("https://user:sec\nret@host"), "ret")
}
