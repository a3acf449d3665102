package app

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/bcrypt"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/web"
)

func TestWhatWouldLoseAlertsIsRefused(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "web.yml")
	write := func(format string, args ...any) {
		require.NoError(t, os.WriteFile(file, fmt.Appendf(nil, format, args...), 0o600))
	}
	require.NoError(t, checkWebhooks("", true))
	hash, err := bcrypt.GenerateFromPassword([]byte("x"), bcrypt.MinCost)
	require.NoError(t, err)
	write("basic_auth_users: {alertmanager: %q}\n", hash)
	require.NoError(t, checkWebhooks(file, false))
	err = checkWebhooks(file, true)
	require.ErrorContains(t, err, file)
	require.ErrorContains(t, err, "one Authorization header")
	assert.NotContains(t, err.Error(), string(hash))
	write("http_server_config: {http2: false}\n")
	require.NoError(t, checkWebhooks(file, true))
	write("rate_limit: {interval: 1s, burst: 20}\n")
	require.NoError(t, web.Check(file))
	require.ErrorContains(t, checkWebhooks(file, false), "429")
	write("basic_auth_users: [")
	require.ErrorContains(t, checkWebhooks(file, false), file)
}

func TestAPasswordInClearIsAWarning(t *testing.T) {
	t.Parallel()
	found := Check(&config.Config{Alertmanager: config.Alertmanager{
		Username: "lifeboat", PasswordFile: "/run/password",
		URLs: []string{"https://alertmanager.example.com", "http://127.0.0.1:9093", "http://10.0.0.1:9093"},
	}})
	require.Len(t, found, 1)
	assert.True(t, found[0].Warning)
	assert.Equal(t, "alertmanager.urls[2]", found[0].Key)
	assert.Contains(t, found[0].Message, "clear")
}
