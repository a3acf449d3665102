package app

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
)

func TestDeliveriesGiveWayToARushButNotForLong(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var r rush
		gate := make(chan struct{})
		h := r.watch(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-gate }))
		took := func() time.Duration {
			begun := time.Now()
			r.giveWay(t.Context())
			return time.Since(begun)
		}
		come := func() {
			go h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(context.Background(), http.MethodPost, "/", http.NoBody))
			synctest.Wait()
		}
		for range rushBegins - 1 {
			come()
		}
		assert.Zero(t, took(), "some webhooks are no rush")
		come()
		assert.Equal(t, rushWait, took())
		go func() {
			time.Sleep(rushWait / 4) //nolint:forbidigo // the bubble's clock
			for range rushBegins - rushEnds {
				gate <- struct{}{}
			}
		}()
		assert.Equal(t, rushWait/4, took(), "it is over when nearly all of them are answered")
		for range rushBegins {
			come()
		}
		assert.Equal(t, rushWait, took())
		time.Sleep(rushLasts) //nolint:forbidigo // the bubble's clock
		assert.Zero(t, took(), "nobody waits for what does not end")
		close(gate)
		synctest.Wait()
	})
}
