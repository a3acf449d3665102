package amclient_test

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/crypto/bcrypt"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/certtest"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/amclient"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const amConfig = "route: {receiver: nobody}\nreceivers: [{name: nobody}]\n"

// status is what an Alertmanager answers to a question for its alerts.
func status(ctx context.Context, c *http.Client, url string) (int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/api/v2/alerts", http.NoBody)
	if err != nil {
		return 0, err
	}
	resp, err := c.Do(req)
	if err != nil {
		return 0, err
	}
	return resp.StatusCode, resp.Body.Close()
}

func client(t *testing.T, cfg config.Alertmanager) *http.Client {
	t.Helper()
	c := amclient.New(func() config.Alertmanager { return cfg })
	t.Cleanup(c.CloseIdleConnections)
	return c
}

// An Alertmanager whose web configuration asks for a certificate and a password gets both, and nobody else gets in.
func TestAnAlertmanagerWithAWebConfiguration(t *testing.T) {
	t.Parallel()
	ca, stranger := certtest.New(t, "ours"), certtest.New(t, "stranger")
	mine := ca.Client(t, "lifeboat")
	dir := t.TempDir()
	password := config.SecretFile(filepath.Join(dir, "password"))
	require.NoError(t, os.WriteFile(string(password), []byte("geheim-1\n"), 0o600))
	hash, err := bcrypt.GenerateFromPassword([]byte("geheim-1"), bcrypt.MinCost)
	require.NoError(t, err)
	web := ca.WebConfig(t)
	more, err := os.ReadFile(web)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(web, fmt.Appendf(more, "basic_auth_users: {lifeboat: %q}\n", hash), 0o600))

	cfg := config.Alertmanager{
		TLS:      config.TLS{CAFile: ca.File, CertFile: mine.Cert, KeyFile: config.SecretFile(mine.Key)},
		Username: "lifeboat", PasswordFile: password,
	}
	c := client(t, cfg)
	am, err := bintest.StartAlertmanagerTLS(t.Context(), filepath.Join(dir, "am"), amConfig, web, c)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, am.Kill()) })
	code, err := status(t.Context(), c, am.URL)
	require.NoError(t, err)
	assert.Equal(t, http.StatusOK, code)

	for name, change := range map[string]func(*config.TLS){
		"none":                func(f *config.TLS) { f.CertFile, f.KeyFile = "", "" },
		"a foreign CA's":      func(f *config.TLS) { present(f, stranger.Client(t, "lifeboat")) },
		"an expired one":      func(f *config.TLS) { present(f, ca.Client(t, "lifeboat", certtest.Expired())) },
		"a server of another": func(f *config.TLS) { f.CAFile = stranger.File },
	} {
		refused := cfg
		change(&refused.TLS)
		_, err = status(t.Context(), client(t, refused), am.URL)
		// Which of the alert and the end of the connection arrives first differs from time to time.
		require.Error(t, err, name)
	}
	// The password is read again, and is in no error.
	require.NoError(t, os.WriteFile(string(password), []byte("geheim-2\n"), 0o600))
	code, err = status(t.Context(), c, am.URL)
	require.NoError(t, err)
	assert.Equal(t, http.StatusUnauthorized, code)
	require.NoError(t, os.Remove(string(password)))
	_, err = status(t.Context(), c, am.URL)
	require.ErrorContains(t, err, "alertmanager.password_file")
	assert.NotContains(t, err.Error(), "geheim")
	require.NoError(t, os.WriteFile(string(password), []byte("geheim-1\n"), 0o600))
	code, err = status(t.Context(), c, am.URL)
	require.NoError(t, err)
	assert.Equal(t, http.StatusOK, code)
}

func present(f *config.TLS, p certtest.Pair) {
	f.CertFile, f.KeyFile = p.Cert, config.SecretFile(p.Key)
}

func TestTheClient(t *testing.T) {
	t.Parallel()
	am, err := bintest.StartAlertmanagerWith(t.Context(), t.TempDir(), amConfig)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, am.Kill()) })
	certtest.TryClient(t, strings.TrimPrefix(am.URL, "http://"), func(t *testing.T, addr string, files config.TLS) func(context.Context) error {
		t.Helper()
		c := client(t, config.Alertmanager{TLS: files})
		return func(ctx context.Context) error {
			_, err := status(ctx, c, "https://"+addr)
			return err
		}
	})
}
