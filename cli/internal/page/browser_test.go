package page

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// browser is a headless Chromium. A missing one fails the test.
func browser(t *testing.T) context.Context {
	t.Helper()
	path := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome", "chrome"} {
		if found, err := exec.LookPath(name); err == nil {
			path = found
			break
		}
	}
	require.NotEmpty(t, path, "Chromium is missing: apt-get install -y chromium fonts-dejavu-core fonts-droid-fallback")
	opts := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.UserDataDir(t.TempDir()),
		chromedp.NoSandbox, // root has none
		chromedp.Flag("disable-dev-shm-usage", true), chromedp.WindowSize(1280, 800))
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 90*time.Second)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewExecAllocator(ctx, opts...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx, chromedp.WithErrorf(t.Logf))
	t.Cleanup(cancel)
	return ctx
}

// folder is where screenshots are kept: that of the environment, or the test's artifacts.
func folder(t *testing.T) string {
	t.Helper()
	if dir := os.Getenv("LIFEBOAT_SCREENSHOTS"); dir != "" {
		require.NoError(t, os.MkdirAll(dir, 0o750))
		return dir
	}
	return t.ArtifactDir()
}

// photograph keeps a picture of the whole page.
func photograph(ctx context.Context, t *testing.T, name string) {
	t.Helper()
	png, err := chromedp.Run(ctx, chromedp.FullScreenshot(100))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(folder(t), name+".png"), png, 0o600))
}

// scheme is what the browser's user prefers: light or dark.
func scheme(name string) chromedp.Action[chromedp.Void] {
	return chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		_, err := cdp.Call(ctx, t, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
			Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: name}},
		})
		return err
	})
}

// open shows a page.
func open(ctx context.Context, t *testing.T, url string, before ...chromedp.Action[chromedp.Void]) {
	t.Helper()
	require.NoError(t, chromedp.Do(ctx, append(before, chromedp.Navigate(url), chromedp.WaitVisible("#part-letters"))...))
}

func TestTheScreenInAllItsForms(t *testing.T) {
	l := newLab(t)
	sample(l)
	l.serve()
	l.shows(l.url(), "the channel is gone", "CheckoutLatencyHigh", "etcd-us-west")
	ctx := browser(t)
	for _, c := range []struct{ name, scheme, lang string }{
		{"light-en", "light", "en"}, {"dark-en", "dark", "en"}, {"light-zh", "light", "zh"}, {"dark-zh", "dark", "zh"},
	} {
		open(ctx, t, l.url()+"?lang="+c.lang, scheme(c.scheme))
		photograph(ctx, t, c.name)
	}
}

// scripts switches JavaScript on or off.
func scripts(on bool) chromedp.Action[chromedp.Void] {
	return chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		_, err := cdp.Call(ctx, t, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: !on})
		return err
	})
}

// eval is what an expression is in the page.
func eval[T any](ctx context.Context, t *testing.T, expression string) T {
	t.Helper()
	v, err := chromedp.Run(ctx, chromedp.Evaluate[T](expression))
	require.NoError(t, err, expression)
	return v
}

// sees waits until an expression is true in the page.
func sees(ctx context.Context, t *testing.T, expression string) {
	t.Helper()
	require.Eventually(t, func() bool { return eval[bool](ctx, t, expression) }, patience, 10*time.Millisecond, expression)
}

func press(ctx context.Context, t *testing.T, keys string) {
	t.Helper()
	require.NoError(t, chromedp.Do(ctx, chromedp.KeyEvent(keys)))
}

// focused is what has the focus, as an address of the page's own.
func focused(ctx context.Context, t *testing.T) string {
	t.Helper()
	return eval[string](ctx, t, `(() => { const e = document.activeElement; return e.nodeName + "#" + (e.id || e.parentElement.id || "") + "." + e.className })()`)
}

// Without JavaScript everything is there, and the page loads itself anew.
func TestWithoutJavaScript(t *testing.T) {
	l := newLab(t)
	sample(l)
	l.serve()
	l.shows(l.url(), "the channel is gone")
	ctx := browser(t)
	require.NoError(t, chromedp.Do(ctx, chromedp.Navigate("about:blank")))
	open(ctx, t, l.url()+"?lang=en", scheme("light"), scripts(false))
	photograph(ctx, t, "no-javascript")
	require.NoError(t, chromedp.Do(ctx, scripts(true))) // or else the test cannot look either; what was loaded without stays as it is
	assert.Equal(t, "15", eval[string](ctx, t, `document.querySelector("noscript meta[http-equiv=refresh]").content`),
		"a noscript that is in force has elements; one that is not has only text")
	assert.Equal(t, 5, eval[int](ctx, t, `document.querySelectorAll(".targets > li").length`))
	assert.Contains(t, eval[string](ctx, t, `document.querySelector("h1").innerText`), "3 things are red")
	// A target unfolds all the same, and the language is a link.
	require.NoError(t, chromedp.Do(ctx, chromedp.Click("#d-etcd-prod summary")))
	assert.True(t, eval[bool](ctx, t, `document.getElementById("d-etcd-prod").open`))
	require.NoError(t, chromedp.Do(ctx, chromedp.Click("header a"), chromedp.WaitVisible("html[lang=zh-Hans]")))
}

// By keyboard alone: the skip link, a target that unfolds, and both stay as they are when the page changes under them.
func TestByKeyboard(t *testing.T) {
	l := newLab(t)
	sample(l)
	l.serve()
	l.shows(l.url(), "the channel is gone", "etcd-us-west")
	ctx := browser(t)
	open(ctx, t, l.url()+"?lang=en", scheme("dark"))
	press(ctx, t, kb.Tab)
	assert.Equal(t, "A#.skip", focused(ctx, t))
	assert.GreaterOrEqual(t, eval[float64](ctx, t, `document.activeElement.getBoundingClientRect().left`), 0.0, "it can be seen when it has the focus")
	press(ctx, t, kb.Enter)
	sees(ctx, t, `location.hash === "#targets"`)
	press(ctx, t, kb.Tab)
	require.Equal(t, "SUMMARY#d-etcd-prod.", focused(ctx, t))
	assert.NotEqual(t, "none", eval[string](ctx, t, `getComputedStyle(document.activeElement).outlineStyle`))
	press(ctx, t, kb.Enter)
	assert.True(t, eval[bool](ctx, t, `document.getElementById("d-etcd-prod").open`))
	photograph(ctx, t, "keyboard-unfolded")

	// Another target becomes worse, so that the rows change their order; and this one's text changes.
	l.fail("snapshot", "etcd-prod", "and once more", 0)
	l.fail("snapshot", "nomad-jobs", "for the first time", 0)
	sees(ctx, t, `document.getElementById("d-etcd-prod").innerText.includes("and once more") && document.getElementById("t-nomad-jobs").className === "red"`)
	assert.Equal(t, "SUMMARY#d-etcd-prod.", focused(ctx, t))
	assert.True(t, eval[bool](ctx, t, `document.getElementById("d-etcd-prod").open`))
	press(ctx, t, " ")
	assert.False(t, eval[bool](ctx, t, `document.getElementById("d-etcd-prod").open`))
}

// A snapshot stands in an open page at once: the log says after how long. When NATS, or the page's server, is away, the page says so by itself.
func TestAnOpenPageInABrowser(t *testing.T) {
	l := newLab(t)
	l.configure(one)
	l.worker("")
	l.committed("etcd-prod", 3*time.Hour)
	l.proven("etcd-prod", time.Hour)
	stop := l.serve()
	l.shows(l.url(), "within its RPO")
	ctx := browser(t)
	open(ctx, t, l.url()+"?lang=en", scheme("light"))
	sees(ctx, t, `document.title.startsWith("✖ 1 thing is red")`)
	l.shows("http://"+l.Health+"/metrics", "lifeboat_page_viewers 1")
	began := time.Now()
	l.committed("etcd-prod", 45*time.Second)
	sees(ctx, t, `document.querySelector("#d-etcd-prod .words").innerText.includes("% used") && document.querySelector("h1").classList.contains("good")`)
	t.Logf("after %s", time.Since(began))
	sees(ctx, t, `document.title.startsWith("✔ ")`)
	photograph(ctx, t, "all-well")

	l.nats.Stop()
	sees(ctx, t, `document.querySelector(".away") !== null && document.title.startsWith("✖ ")`)
	photograph(ctx, t, "nats-away")
	require.NoError(t, l.nats.Restart())
	sees(ctx, t, `document.querySelector(".away") === null`)

	stop()
	sees(ctx, t, `!document.getElementById("offline").hidden && document.title.startsWith("✖ Out of date")`)
	photograph(ctx, t, "page-away")
	// It comes back at the same address, and the open page finds it.
	text, err := os.ReadFile(l.config())
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(l.config(), bytes.Replace(text, []byte(`"127.0.0.1:0"`), []byte(`"`+l.Page+`"`), 1), 0o600))
	l.serve()
	sees(ctx, t, `document.getElementById("offline").hidden`)
}

// audit is an accessibility check of what a machine can see: names, roles, order of headings, and the contrast of every text with what
// is behind it (WCAG 2.2: 1.1.1, 1.3.1, 1.4.3, 2.4.1, 2.4.2, 3.1.1, 4.1.2).
const audit = `(() => {
  const found = [];
  const say = (what, e) => found.push(what + ": " + (e ? e.outerHTML.slice(0, 120) : ""));
  const all = (s) => [...document.querySelectorAll(s)];
  if (!document.documentElement.lang) say("no language");
  if (!document.title) say("no title");
  if (all("main").length !== 1 || all("h1").length !== 1) say("not one main and one h1");
  const ids = all("[id]").map((e) => e.id);
  if (new Set(ids).size !== ids.length) say("an id twice");
  let last = 0;
  for (const h of all("h1,h2,h3")) { const n = +h.nodeName[1]; if (n > last + 1) say("a heading is left out", h); last = n; }
  for (const e of all("a,button,summary")) if (!e.textContent.trim()) say("no name", e);
  for (const e of all("a:not([href])")) say("a link to nowhere", e);
  for (const e of all("input:not([type=hidden])")) if (!e.labels || !e.labels.length) say("no label", e);
  for (const e of all("svg,img")) if (e.getAttribute("aria-hidden") !== "true" && !e.getAttribute("aria-label") && !e.alt) say("a picture without a text", e);
  for (const e of all("th")) if (!e.scope) say("a header of nothing", e);
  for (const e of all("section,nav")) if (!e.getAttribute("aria-labelledby") && !e.getAttribute("aria-label")) say("a region without a name", e);
  for (const e of all("[aria-labelledby]")) if (!document.getElementById(e.getAttribute("aria-labelledby"))) say("a name that is not there", e);
  for (const e of all("[tabindex]")) if (+e.tabIndex > 0) say("another order of focus", e);
  for (const e of all("ul > *")) if (e.nodeName !== "LI") say("not an item of its list", e);
  for (const e of all(".badge")) if (!e.innerText.replace(/[✖▲✔?]/g, "").trim()) say("a level by colour and sign alone", e);
  const rgb = (s) => { const m = s.match(/[\d.]+/g).map(Number); return { r: m[0], g: m[1], b: m[2], a: m.length > 3 ? m[3] : 1 }; };
  const part = (c) => { c /= 255; return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; };
  const light = (c) => 0.2126 * part(c.r) + 0.7152 * part(c.g) + 0.0722 * part(c.b);
  const ground = (e) => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if (c.a === 1) return c; } return { r: 255, g: 255, b: 255 }; };
  let texts = 0, worst = 21;
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement;
    if (!walk.currentNode.nodeValue.trim() || !e.checkVisibility() || e.closest("noscript,script")) continue;
    const a = light(rgb(getComputedStyle(e).color)), b = light(ground(e));
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    texts++;
    worst = Math.min(worst, contrast);
    if (contrast < 4.5) say("contrast " + contrast.toFixed(2), e);
  }
  for (const e of all(".bar .used")) {
    const a = light(rgb(getComputedStyle(e).fill)), b = light(rgb(getComputedStyle(e.previousElementSibling).fill));
    if ((Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) < 3) say("a bar that cannot be told from its ground", e);
  }
  if (document.documentElement.scrollWidth > innerWidth) say("it is wider than the screen: " + document.documentElement.scrollWidth);
  return { found, texts, worst };
})()`

func TestAccessibility(t *testing.T) {
	l := newLab(t)
	sample(l)
	l.serve()
	l.shows(l.url(), "the channel is gone", "etcd-us-west")
	ctx := browser(t)
	type result struct {
		Found []string `json:"found"`
		Texts int      `json:"texts"`
		Worst float64  `json:"worst"`
	}
	check := func(name string) {
		r := eval[result](ctx, t, audit)
		t.Logf("%s: %d texts, the lowest contrast is %.2f", name, r.Texts, r.Worst)
		assert.Empty(t, r.Found, name)
		assert.Greater(t, r.Texts, 100, name)
	}
	for _, width := range []int64{1280, 800, 360} {
		for _, s := range []string{"light", "dark"} {
			for _, lang := range languages() {
				open(ctx, t, l.url()+"?lang="+lang, scheme(s), chromedp.EmulateViewport(width, 800))
				eval[bool](ctx, t, `document.querySelectorAll("details").forEach((d) => { d.open = true }), true`)
				check(fmt.Sprintf("%d %s %s", width, s, lang))
			}
		}
		photograph(ctx, t, fmt.Sprint("width-", width))
	}
	// The check can fail.
	eval[bool](ctx, t, `document.querySelector(".summary").style.color = "#555", document.querySelector("h1").innerHTML = "<button></button>", true`)
	assert.Len(t, eval[result](ctx, t, audit).Found, 2)
	l.nats.Stop()
	open(ctx, t, l.url()+"?lang=en", scheme("dark"))
	sees(ctx, t, `document.querySelector(".away") !== null`)
	check("NATS is away")
}

// What somebody has unfolded stays so from the first update on, which comes right after the page.
func TestTheFirstUpdateChangesNothing(t *testing.T) {
	l := newLab(t)
	sample(l)
	l.serve()
	l.shows(l.url(), "the channel is gone", "etcd-us-west")
	ctx := browser(t)
	open(ctx, t, l.url()+"?lang=en", scripts(false))
	require.NoError(t, chromedp.Do(ctx, scripts(true)))
	eval[bool](ctx, t, `(() => {
	  document.querySelectorAll("details").forEach((d) => { d.open = true });
	  const s = document.createElement("script");
	  s.src = document.querySelector("script").src;
	  window.before = document.getElementById("d-etcd-prod");
	  document.head.append(s);
	  return true;
	})()`)
	l.fail("drill", "etcd-prod", "told after it was unfolded", 0)
	sees(ctx, t, `document.body.innerText.includes("told after it was unfolded")`)
	assert.True(t, eval[bool](ctx, t, `window.before === document.getElementById("d-etcd-prod") && window.before.open`), "it is the same element")
}

// What others wrote does not run, and the policy stops what would be inline.
func TestHostileStringsInABrowser(t *testing.T) {
	l := newLab(t)
	l.configure(one)
	l.fail("snapshot", "etcd-prod", `<img src=x onerror="document.title='broken'"><script>document.title="broken"</script>`, time.Minute)
	l.serve()
	l.shows(l.url(), "onerror")
	ctx := browser(t)
	open(ctx, t, l.url()+"?lang=en&q="+`%22%3E%3Cscript%3Edocument.title=%22broken%22%3C/script%3E`)
	open(ctx, t, l.url()+"?lang=en")
	l.fail("snapshot", "etcd-prod", `<svg onload="document.title='broken'"><b>live</b>`, 0)
	sees(ctx, t, `document.body.innerText.includes("<b>live</b>")`)
	assert.Zero(t, eval[int](ctx, t, `document.querySelectorAll("main img, main script, main svg[onload]").length`))
	assert.False(t, eval[bool](ctx, t, `document.title.includes("broken")`))
	// Even if something came through, it would not run.
	eval[bool](ctx, t, `document.querySelector("main").insertAdjacentHTML("beforeend", "<img src=x onerror=\"document.title='broken'\">"), true`)
	sees(ctx, t, `document.querySelector("main > img").complete`)
	assert.False(t, eval[bool](ctx, t, `document.title.includes("broken")`))
}
