package app_test

import (
	"context"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/certtest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/natstest"
	"github.com/lifeboat-fleet/lifeboat/services/scheduler/app"
)

func TestHealthAndMetricsOverTLS(t *testing.T) {
	ca := certtest.New(t, "ca")
	ctx, cancel := context.WithCancel(t.Context())
	started, done := make(chan string, 1), make(chan error, 1)
	config := writeConfig(t, natstest.New(t).URL(), 1, "@hourly")
	web := ca.WebConfig(t)
	go func() {
		done <- app.Run(ctx, app.Options{
			ConfigPath: config, HTTPAddr: "127.0.0.1:0", WebConfigFile: web, Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
			Started: func(addr string) { started <- addr },
		})
	}()
	defer func() {
		cancel()
		assert.NoError(t, <-done)
	}()
	certtest.TryListener(t, ca, <-started, "/metrics")
}
