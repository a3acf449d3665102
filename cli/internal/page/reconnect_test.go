package page

import (
	"context"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// crowd is a page's server of which every place is taken.
func crowd(t *testing.T, l *told) (*lab, *hub, *server) {
	t.Helper()
	h, s := hubOf(t, l, threeAM)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var wg sync.WaitGroup
	wg.Go(func() { assert.NoError(t, h.run(ctx)) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	for range maxViewers {
		require.NotNil(t, h.join())
	}
	return &lab{t: t, Addresses: Addresses{Page: serveOn(ctx, t, s.handler())}}, h, s
}

// Whoever comes when every place is taken is shown how it is now, and told when to come again.
func TestOneViewerTooMany(t *testing.T) {
	l := newTold(t, two)
	l.hear(time.Minute, &lifeboatv1.Event{Noun: "snapshot", Verb: "failed", Target: "a"})
	page, _, _ := crowd(t, l)
	resp, err := http.Get(page.url() + "live?lang=en")
	require.NoError(t, err)
	defer http.DefaultClient.CloseIdleConnections()
	defer func() { assert.NoError(t, resp.Body.Close()) }()
	body, err := io.ReadAll(resp.Body) // it ends
	require.NoError(t, err)
	assert.Equal(t, http.StatusOK, resp.StatusCode)
	assert.Equal(t, "text/event-stream", resp.Header.Get("Content-Type"))
	for _, text := range []string{"event: build", "The last snapshot of a failed", `"at":"03:00:00"`} {
		assert.Contains(t, string(body), text)
	}
	assert.True(t, strings.HasSuffix(string(body), "event: again\ndata: 15000\n\n"), string(body))
}

// It sees what happens a little later than others, and is not told that it sees nothing.
func TestOneViewerTooManyInABrowser(t *testing.T) {
	l := newTold(t, two)
	page, h, s := crowd(t, l)
	s.again = 50 * time.Millisecond
	ctx := browser(t)
	open(ctx, t, page.url()+"?lang=en")
	eval[bool](ctx, t, `(() => {
	  const offline = document.getElementById("offline");
	  window.alarms = 0;
	  new MutationObserver(() => { if (!offline.hidden) window.alarms++ }).observe(offline, { attributes: true });
	  return true;
	})()`)
	l.hear(0, &lifeboatv1.Event{Noun: "snapshot", Verb: "failed", Target: "a"})
	h.changed()
	sees(ctx, t, `document.body.innerText.includes("The last snapshot of a failed")`)
	l.committed("a", time.Minute)
	l.proven("a", time.Minute)
	h.changed()
	sees(ctx, t, `!document.body.innerText.includes("The last snapshot of a failed")`)
	assert.True(t, eval[bool](ctx, t, `document.getElementById("offline").hidden && window.alarms === 0`))
}

// Back and forward, as often as somebody likes: one connection, and one watch over it. One that was left over says after a while that
// the page is out of date, when it is not.
func TestBackAndForward(t *testing.T) {
	l := newTold(t, two)
	_, s := hubOf(t, l, time.Now)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	defer cancel()
	page := &lab{t: t, Addresses: Addresses{Page: serveOn(ctx, t, s.handler())}}
	tab := browser(t)
	open(tab, t, page.url()+"?lang=en", scripts(false))
	require.NoError(t, chromedp.Do(tab, scripts(true)))
	// The script's own timers and connections are counted.
	eval[bool](tab, t, `(() => {
	  const timers = new Set(), all = [];
	  const set = window.setTimeout, clear = window.clearTimeout, source = window.EventSource;
	  window.setTimeout = (f, ms) => { const id = set(() => { timers.delete(id); f(); }, ms); timers.add(id); return id; };
	  window.clearTimeout = (id) => { timers.delete(id); clear(id); };
	  window.EventSource = class extends source { constructor(...a) { super(...a); all.push(this); } };
	  window.running = () => timers.size;
	  window.connected = () => all.filter((s) => s.readyState !== source.CLOSED).length;
	  window.fail = () => all.at(-1).onerror();
	  window.goes = () => dispatchEvent(new PageTransitionEvent("pagehide", { persisted: true }));
	  window.comes = () => dispatchEvent(new PageTransitionEvent("pageshow", { persisted: true }));
	  const s = document.createElement("script");
	  s.src = document.querySelector("script").src;
	  document.head.append(s);
	  return true;
	})()`)
	sees(tab, t, `window.connected() === 1 && window.running() === 1`)
	assert.Equal(t, "0 0", eval[string](tab, t, `(goes(), connected() + " " + running())`), "nothing goes on while nobody looks")
	for range 3 {
		assert.Equal(t, "1 1", eval[string](tab, t, `(goes(), comes(), connected() + " " + running())`))
	}
	// It was away and about to try again.
	assert.Equal(t, "1 1", eval[string](tab, t, `(fail(), goes(), comes(), connected() + " " + running())`))
	sees(tab, t, `document.getElementById("offline").hidden`)
}
