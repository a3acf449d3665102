package bus

import (
	"context"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/certtest"
)

// A monitoring address is asked with the certificates of nats.tls.
func TestTheMonitoringAddressOverTLS(t *testing.T) {
	s, err := bintest.StartNATS(t.Context(), t.TempDir())
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, s.Kill()) })
	certtest.TryClient(t, strings.TrimPrefix(s.Monitor, "http://"), func(_ *testing.T, addr string, files config.TLS) func(context.Context) error {
		url := "https://" + addr
		m := newMonitor(config.NATS{TLS: files, MonitorURLs: []string{url}})
		return func(ctx context.Context) error {
			_, err := m.ask(ctx, url)
			return err
		}
	})
}
