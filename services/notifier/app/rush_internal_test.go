package app

import (
	"context"
	"net/http"
	"net/http/httptest"
	"sync"
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
		}
		arrive := func() {
			come()
			synctest.Wait()
		}
		for range rushBegins - 1 {
			arrive()
		}
		assert.Zero(t, took(), "some webhooks are no rush")
		arrive()
		assert.Equal(t, rushEnds, took(), "none came after it")
		stop := make(chan struct{})
		var letting sync.WaitGroup
		letting.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(rushEnds / 2):
					gate <- struct{}{}
					come()
				}
			}
		})
		time.Sleep(rushEnds) //nolint:forbidigo // the bubble's clock
		assert.Equal(t, rushWait, took(), "one after the other goes on")
		time.Sleep(rushLasts) //nolint:forbidigo // the bubble's clock
		assert.Zero(t, took(), "nobody waits for what does not end")
		close(stop)
		letting.Wait()
		close(gate)
		synctest.Wait()
		assert.Zero(t, took())
	})
}
