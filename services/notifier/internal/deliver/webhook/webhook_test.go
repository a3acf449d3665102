package webhook_test

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/deliver/webhook"
)

func TestErrorsDoNotHoldTheAddress(t *testing.T) {
	t.Parallel()
	c := webhook.New()
	t.Cleanup(c.Close)
	for _, address := range []string{
		"http://127.0.0.1:1/s3cret", "https://127.0.0.1:1/s3cret", "http://hooks.example.com/s3cret", "s3cret",
		"ftp://localhost/s3cret", "http://\x7f/s3cret", "https:///s3cret", "https://s3cret:x y@h/",
	} {
		_, _, _, err := c.Post(t.Context(), address, []byte("{}"))
		require.Error(t, err, "%q", address)
		assert.NotContains(t, err.Error(), "s3cret")
	}
}

func TestRedirectsAreNotFollowed(t *testing.T) {
	t.Parallel()
	followed := false
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { followed = true }))
	t.Cleanup(other.Close)
	srv := httptest.NewServer(http.RedirectHandler(other.URL, http.StatusTemporaryRedirect))
	t.Cleanup(srv.Close)
	c := webhook.New()
	t.Cleanup(c.Close)
	status, _, _, err := c.Post(t.Context(), srv.URL, []byte("{}"))
	require.NoError(t, err)
	assert.Equal(t, http.StatusTemporaryRedirect, status)
	assert.False(t, followed)
}
