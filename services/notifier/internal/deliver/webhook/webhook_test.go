package webhook_test

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/deliver/webhook"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestErrorsDoNotHoldTheAddress(t *testing.T) {
	t.Parallel()
	c := webhook.New(config.TLS{})
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
	c := webhook.New(config.TLS{})
	t.Cleanup(c.Close)
	status, _, _, err := c.Post(t.Context(), srv.URL, []byte("{}"))
	require.NoError(t, err)
	assert.Equal(t, http.StatusTemporaryRedirect, status)
	assert.False(t, followed)
}

func TestAnEchoOfTheAddressIsNotRepeated(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var wg sync.WaitGroup
	t.Cleanup(func() { assert.NoError(t, ln.Close()); wg.Wait() })
	wg.Go(func() {
		for {
			conn, closed := ln.Accept()
			if closed != nil {
				return
			}
			line, _ := bufio.NewReader(conn).ReadString('\n')
			_, _ = fmt.Fprintf(conn, "what do you mean by %s", line)
			_ = conn.Close()
		}
	})
	c := webhook.New(config.TLS{})
	t.Cleanup(c.Close)
	for _, path := range []string{"/robot/send?access_token=s3cret-token", "/services/T123/s3cret-token"} {
		_, _, _, err = c.Post(t.Context(), "http://"+ln.Addr().String()+path, []byte("{}"))
		require.ErrorContains(t, err, "posting to the webhook")
		assert.NotContains(t, err.Error(), "s3cret")
	}
}

func TestConnectionsAreKept(t *testing.T) {
	t.Parallel()
	var opened atomic.Int64
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok")) }))
	srv.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			opened.Add(1)
		}
	}
	srv.Start()
	t.Cleanup(srv.Close)
	c := webhook.New(config.TLS{})
	t.Cleanup(c.Close)
	for range 20 {
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				status, _, answer, err := c.Post(t.Context(), srv.URL, []byte("{}"))
				assert.Equal(t, fmt.Sprint(http.StatusOK, " ok ", nil), fmt.Sprint(status, " ", string(answer), " ", err))
			})
		}
		wg.Wait()
	}
	assert.LessOrEqual(t, opened.Load(), int64(24), "160 messages of 8 at a time")
}
