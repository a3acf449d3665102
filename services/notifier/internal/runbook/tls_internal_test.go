package runbook

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/certtest"
)

// A wiki that asks for a certificate gets it, and its pages' steps are read; a link to another host gets none.
func TestPagesOverTLS(t *testing.T) {
	t.Parallel()
	wiki := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/markdown")
		_, _ = w.Write([]byte("# DiskFull\n\n## TL;DR\n\n1. Make room.\n"))
	}))
	t.Cleanup(wiki.Close)
	behind := strings.TrimPrefix(wiki.URL, "http://")
	certtest.TryClient(t, behind, func(_ *testing.T, addr string, files config.TLS) func(context.Context) error {
		l := newLinks(time.Now, nil)
		base := "https://" + addr
		l.trust(config.Runbooks{BaseURL: base, TLS: files})
		return func(ctx context.Context) error {
			if a := l.ask(ctx, question{link: base + "/disk-full", base: base, private: true}); len(a.steps) == 0 {
				return errors.New("the page was not read")
			}
			return nil
		}
	})

	ca := certtest.New(t, "ca")
	mine := ca.Client(t, "lifeboat")
	other := certtest.NewFront(t, behind, ca.Mutual(t, ca.Server(t)))
	l := newLinks(time.Now, nil)
	l.trust(config.Runbooks{
		BaseURL: "https://wiki.example.com", TLS: config.TLS{CAFile: ca.File, CertFile: mine.Cert, KeyFile: config.SecretFile(mine.Key)},
	})
	a := l.ask(t.Context(), question{link: "https://" + other.Addr + "/disk-full", private: true})
	assert.Empty(t, a.dead, "somebody answers")
	assert.Zero(t, other.Passed())
}
