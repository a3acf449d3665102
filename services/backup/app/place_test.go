package app

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/s3test"
)

// A store that ignores If-None-Match looks like one that has it until two workers meet. It is refused unless the
// configuration accepts it.
func TestAStoreThatLiesAboutConditionalWritesIsRefused(t *testing.T) {
	proxy := s3test.NewProxy(t, s3test.New(t))
	proxy.Handle(s3test.Always("", s3test.LoseConditions()))
	cfg := proxy.Config
	p, err := openPlace(t.Context(), cfg, newRetries(prometheus.NewRegistry()))
	require.NoError(t, err)
	_, err = p.capabilities(t.Context())
	require.ErrorContains(t, err, "not safe to keep snapshots in")
	require.ErrorContains(t, err, config.LacksConditionalWrites, "it says how to accept it")
	require.True(t, bus.IsTerminal(err), "no retry makes it better")
	require.Error(t, p.usable(t.Context()), "and the service is not ready")

	cfg.Accept = []string{config.LacksConditionalWrites}
	p, err = openPlace(t.Context(), cfg, newRetries(prometheus.NewRegistry()))
	require.NoError(t, err)
	caps, err := p.capabilities(t.Context())
	require.NoError(t, err)
	assert.False(t, caps.ConditionalWrites, "and each manifest records it")
}

// Object lock that is configured and that the bucket does not have would be a promise that nobody keeps.
func TestABucketWithoutTheLockThatIsConfiguredIsRefused(t *testing.T) {
	server := s3test.New(t)
	cfg := server.Config
	cfg.ObjectLock = config.ObjectLock{Mode: "COMPLIANCE", Days: 30}
	p, err := openPlace(t.Context(), cfg, newRetries(prometheus.NewRegistry()))
	require.NoError(t, err)
	_, err = p.capabilities(t.Context())
	require.ErrorContains(t, err, "lock")
}

// A store that is busy while it is probed has not said that it lacks anything.
func TestAProbeThatIsInterruptedIsNoAnswer(t *testing.T) {
	proxy := s3test.NewProxy(t, s3test.New(t))
	for _, op := range []string{"AbortMultipartUpload", "GetBucketVersioning", "GetObjectLockConfiguration"} {
		proxy.Handle(s3test.Always(op, s3test.ResetBefore()))
		p, err := openPlace(t.Context(), proxy.Config, newRetries(prometheus.NewRegistry()))
		require.NoError(t, err)
		require.ErrorIs(t, p.usable(t.Context()), errNotProbed)
		_, err = p.capabilities(t.Context())
		require.Error(t, err, op)
		require.False(t, bus.IsTerminal(err), "%s: another attempt is worth it", op)
		proxy.Handle(nil)
		require.NoError(t, p.prepare(t.Context()), op)
		require.NoError(t, p.usable(t.Context()))
	}
}
