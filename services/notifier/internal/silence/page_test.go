package silence

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
)

// serve runs the handler as a proxy under external_url would reach it.
func (b *bench) serve() string {
	b.t.Helper()
	srv := httptest.NewServer(b.Handler())
	b.t.Cleanup(srv.Close)
	b.set(func(c *config.Config) { c.Notifier.Interactions.ExternalURL = srv.URL })
	return srv.URL
}

// links are made as a message has them; their tokens are secrets.
func (b *bench) links(w notice.Words, matchers map[string]string, comment string) []notice.Link {
	b.t.Helper()
	out := b.Links(b.o.Config().Notifier.Interactions, w, matchers, comment)
	for _, l := range out {
		_, signed, _ := strings.Cut(l.URL, "?t=")
		b.secrets = append(b.secrets, signed)
	}
	return out
}

func form(name string) (body string, header http.Header) {
	return url.Values{"name": {name}}.Encode(), http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}
}

func TestLinksSayWhatTheyDo(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	labels := func(all []notice.Link) (out []string) {
		for _, l := range all {
			out = append(out, l.Label)
			require.True(t, strings.HasPrefix(l.URL, "https://lifeboat.example.com/silence?t="), l.URL)
			assert.LessOrEqual(t, len(l.URL), maxURL)
			assert.Equal(t, l.URL, strings.ToValidUTF8(l.URL, ""))
		}
		return out
	}
	assert.Equal(t, []string{"Silence 1h", "Silence 4h", "Acknowledge"}, labels(b.links(notice.English(), disk(), "DiskFull")))
	assert.Equal(t, []string{"静默 1h", "静默 4h", "确认"}, labels(b.links(notice.Chinese(), disk(), "磁盘已满")))

	var seconds []int64
	for _, l := range b.links(notice.English(), disk(), strings.Repeat("长", 500)) {
		_, signed, _ := strings.Cut(l.URL, "?t=")
		got, err := verify([][]byte{[]byte(linkSecret)}, signed, time.Now())
		require.NoError(t, err)
		assert.Equal(t, disk(), got.Matchers)
		assert.Len(t, []rune(got.Comment), maxTitle)
		seconds = append(seconds, got.Seconds)
	}
	assert.Equal(t, []int64{3600, 4 * 3600, 2 * 3600}, seconds)
}

func TestThereAreNoLinksThatWouldNotWork(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	good := b.o.Config().Notifier.Interactions
	none := func(why string, matchers map[string]string, change func(*config.Interactions)) {
		cfg := good
		change(&cfg)
		assert.Empty(t, b.Links(cfg, notice.English(), matchers, "c"), why)
	}
	require.Len(t, b.links(notice.English(), disk(), "c"), 3)
	same := func(*config.Interactions) {}
	none("no secret", disk(), func(i *config.Interactions) { i.LinkSecretFile = "" })
	none("nobody listens", disk(), func(i *config.Interactions) { i.Listen = "" })
	none("no address", disk(), func(i *config.Interactions) { i.ExternalURL = "" })
	none("everything", nil, same)
	none("everything", map[string]string{"a": ""}, same)
	none("too long", map[string]string{"alertname": strings.Repeat("x", 1400)}, same)

	shortFile := b.file("short", "too-short-a-secret")
	for range 3 {
		none("a short secret", disk(), func(i *config.Interactions) { i.LinkSecretFile = shortFile })
	}
	assert.Equal(t, 1, strings.Count(b.log.String(), "at least 32 are needed"), "said once, not for each alert: %s", b.log.String())
	none("a missing secret", disk(), func(i *config.Interactions) { i.LinkSecretFile = "/nowhere/secret" })
	assert.Contains(t, b.log.String(), "/nowhere/secret")
}

func TestSecretsAreChecked(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	require.NoError(t, Check(b.o.Config().Notifier.Interactions))
	require.NoError(t, Check(config.Interactions{}))
	err := Check(config.Interactions{
		LinkSecretFile: b.file("two", linkSecret+"\n\nshort-one"), SlackSigningSecretFile: "/nowhere/signing", SlackAppTokenFile: b.file("empty", ""),
	})
	require.Error(t, err)
	for _, part := range []string{"link_secret_file", "secret 2 has 9 characters; at least 32", "slack_signing_secret_file", "slack_app_token_file", "is empty"} {
		assert.Contains(t, err.Error(), part)
	}
	assert.NotContains(t, err.Error(), "short-one")
	_, err = secrets(b.file("many", strings.Repeat(linkSecret+"\n", 9)))
	require.ErrorContains(t, err, "at most 8")
}

func TestOnlyALinkOfOursIsGood(t *testing.T) {
	t.Parallel()
	key := []byte(linkSecret)
	now := time.Now()
	good := token{Matchers: disk(), Comment: "c", Seconds: 3600, Expiry: now.Add(time.Hour).Unix(), ID: "1"}
	signed, err := sign(key, good)
	require.NoError(t, err)
	got, err := verify([][]byte{key}, signed, now)
	require.NoError(t, err)
	assert.Equal(t, good, got)

	refused := func(text string) {
		t.Helper()
		_, wrong := verify([][]byte{key}, text, now)
		require.ErrorIs(t, wrong, errForged, text)
	}
	for i := range signed {
		refused(signed[:i])
		other := byte('A')
		if signed[i] == other {
			other = 'B'
		}
		refused(signed[:i] + string(other) + signed[i+1:])
	}
	refused(signed + "A")
	refused(signed + "=")
	refused(signed + "." + signed)
	refused(strings.Repeat("A", 1<<20))
	body, _, _ := strings.Cut(signed, ".")
	refused(body)
	refused(body + ".")

	// A signature of something else with the same secret, and of this with another.
	other, err := sign([]byte(strings.ToUpper(linkSecret)), good)
	require.NoError(t, err)
	refused(other)
	_, err = verify(nil, signed, now)
	require.ErrorIs(t, err, errForged, "no secret at all")

	// Whatever else is signed with the secret is no link.
	plain := hmac.New(sha256.New, key)
	plain.Write([]byte(body))
	refused(body + "." + base64.RawURLEncoding.EncodeToString(plain.Sum(nil)))

	_, err = verify([][]byte{key}, signed, now.Add(time.Hour))
	require.ErrorIs(t, err, errExpired)
	_, err = verify([][]byte{key}, signed, now.Add(59*time.Minute))
	require.NoError(t, err)
}

func TestASecretIsRotatedWithoutBreakingLinks(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	site := b.serve()
	link := b.links(notice.English(), disk(), "c")[0].URL
	get := func() int {
		code, _, _ := do(t, http.MethodGet, site+"/silence?"+strings.SplitN(link, "?", 2)[1], "", nil)
		return code
	}
	newer := "the-new-secret-0123456789-abcdefghijkl"
	b.file("link", newer+"\n"+linkSecret)
	assert.Equal(t, http.StatusOK, get(), "the old secret still verifies")
	signed := strings.SplitN(b.links(notice.English(), disk(), "c")[0].URL, "?t=", 2)[1]
	_, err := verify([][]byte{[]byte(newer)}, signed, time.Now())
	require.NoError(t, err, "the first signs")
	b.file("link", newer)
	assert.Equal(t, http.StatusForbidden, get(), "and is gone when it is taken away")
	require.NoError(t, os.Remove(string(b.o.Config().Notifier.Interactions.LinkSecretFile)))
	assert.Equal(t, http.StatusServiceUnavailable, get())
}

func TestAPreviewCreatesNothingAndTheButtonDoes(t *testing.T) {
	t.Parallel()
	am := alertmanager(t)
	b := newBench(t, am.URL)
	b.o.AlertmanagerURL = func() string { return "https://alerts.example.com/am/" }
	b.serve()
	matchers := map[string]string{"alertname": "DiskFull", "target": "etcd-prod", "path": `<script>alert(1)</script>`}
	link := b.links(notice.English(), matchers, `[FIRING:1] <b>DiskFull</b>`)[0].URL

	code, page, header := do(t, http.MethodGet, link, "", nil)
	require.Equal(t, http.StatusOK, code, page)
	for _, part := range []string{
		"Silence this alert?", "Nothing has been silenced yet.", `alertname=&#34;DiskFull&#34;`, "Silence for 1h", `name="name" required`, `lang="en"`,
		"viewport", "&lt;script&gt;", "&lt;b&gt;DiskFull",
	} {
		assert.Contains(t, strings.ReplaceAll(page, `="DiskFull"`, `=&#34;DiskFull&#34;`), part)
	}
	assert.NotContains(t, page, "<script")
	assert.NotContains(t, page, "http://", "nothing from elsewhere")
	csp := header.Get("Content-Security-Policy")
	for _, part := range []string{"default-src 'none'", "form-action 'self'", "frame-ancestors 'none'", "style-src 'nonce-"} {
		assert.Contains(t, csp, part)
	}
	assert.Equal(t, "no-store", header.Get("Cache-Control"))
	assert.Equal(t, "nosniff", header.Get("X-Content-Type-Options"))
	assert.Equal(t, "same-origin", header.Get("Referrer-Policy"))

	code, page, _ = do(t, http.MethodHead, link, "", nil)
	assert.Equal(t, http.StatusOK, code)
	assert.Empty(t, page)
	_, page, _ = do(t, http.MethodGet, link, "", http.Header{"Accept-Language": {"zh-CN,zh;q=0.9,en;q=0.8"}})
	assert.Contains(t, page, "静默此告警？")
	assert.Empty(t, silences(t, am.URL), "chats fetch links for previews")

	body, h := form(" Ann\tLee ")
	code, page, header = do(t, http.MethodPost, link, body, h)
	require.Equal(t, http.StatusOK, code, page)
	all := silences(t, am.URL)
	require.Len(t, all, 1)
	assert.Equal(t, "via link: Ann Lee", all[0].CreatedBy)
	assert.Equal(t, "[FIRING:1] <b>DiskFull</b>", all[0].Comment)
	assert.Len(t, all[0].Matchers, 3)
	assert.WithinDuration(t, time.Now().Add(time.Hour), all[0].EndsAt, time.Minute)
	assert.Contains(t, page, all[0].ID)
	assert.Contains(t, page, "<h1>Silenced</h1>")
	assert.Contains(t, page, `href="https://alerts.example.com/am/#/silences/`+all[0].ID+`"`)
	assert.Equal(t, "no-store", header.Get("Cache-Control"))

	code, page, _ = do(t, http.MethodPost, link, body, h)
	require.Equal(t, http.StatusOK, code)
	assert.Contains(t, page, "Already silenced")
	assert.Len(t, silences(t, am.URL), 1, "a page that is loaded again makes no other one")
	require.Len(t, b.recorded(), 1)
	assert.Equal(t, wayLink, b.recorded()[0].GetAttributes()["way"])
	assert.Equal(t, 1, b.counted(wayLink, "created"))

	b.set(func(c *config.Config) { c.Alertmanager.URLs = []string{"http://127.0.0.1:1"} })
	body, h = form("Bob")
	code, page, _ = do(t, http.MethodPost, link, body, h)
	assert.Equal(t, http.StatusBadGateway, code)
	assert.Contains(t, page, "Not silenced")
	assert.Contains(t, page, "connection refused")
}

func TestThePageCreatesNothingForAForger(t *testing.T) {
	t.Parallel()
	am := alertmanager(t)
	b := newBench(t, am.URL)
	site := b.serve()
	link := b.links(notice.English(), disk(), "c")[0].URL
	body, h := form("Eve")
	with := func(name, value string) http.Header {
		out := h.Clone()
		out.Set(name, value)
		return out
	}
	expired, err := sign([]byte(linkSecret), token{Matchers: disk(), Seconds: 3600, Expiry: time.Now().Add(-time.Second).Unix()})
	require.NoError(t, err)
	everything, err := sign([]byte(linkSecret), token{Seconds: 3600, Expiry: time.Now().Add(time.Hour).Unix()})
	require.NoError(t, err)
	b.secrets = append(b.secrets, expired, everything)
	for name, c := range map[string]struct {
		method, address, body string
		header                http.Header
		code                  int
		says                  string
	}{
		"expired":             {"POST", site + "/silence?t=" + expired, body, h, 403, "This link has expired"},
		"expired, looked at":  {"GET", site + "/silence?t=" + expired, "", nil, 403, "This link has expired"},
		"forged":              {"POST", link[:len(link)-3] + "AAA", body, h, 403, "This link is not valid"},
		"truncated":           {"POST", link[:len(link)-9], body, h, 403, "This link is not valid"},
		"none":                {"POST", site + "/silence", body, h, 403, "This link is not valid"},
		"none, looked at":     {"HEAD", site + "/silence", "", nil, 403, ""},
		"everything":          {"POST", site + "/silence?t=" + everything, body, h, 502, "would match every alert"},
		"another field":       {"POST", link, body + "&seconds=999999", h, 403, "This form was changed"},
		"two tokens":          {"POST", link + "&t=" + expired, body, h, 403, "This form was changed"},
		"two names":           {"POST", link, body + "&name=Ann", h, 403, "This form was changed"},
		"names and more":      {"POST", link, body + "&name=Ann&seconds=1", h, 403, "This form was changed"},
		"no name":             {"POST", link, "name=+%00+", h, 400, "Please say who you are"},
		"no form":             {"POST", link, "", h, 400, "Please say who you are"},
		"a long name":         {"POST", link, "name=" + strings.Repeat("x", 81), h, 400, "Please say who you are"},
		"a broken form":       {"POST", link, "name=%zz", h, 400, "This form was changed"},
		"a huge body":         {"POST", link, "name=" + strings.Repeat("x", 1<<20), h, 413, "That was too much"},
		"from another site":   {"POST", link, body, with("Sec-Fetch-Site", "cross-site"), 403, "from another site"},
		"from a sister site":  {"POST", link, body, with("Sec-Fetch-Site", "same-site"), 403, "from another site"},
		"from another origin": {"POST", link, body, with("Origin", "https://evil.example.com"), 403, "from another site"},
		"deleted":             {"DELETE", link, "", nil, 405, ""},
		"put":                 {"PUT", link, body, h, 405, ""},
		"elsewhere":           {"GET", site + "/", "", nil, 404, ""},
	} {
		code, page, _ := do(t, c.method, c.address, c.body, c.header)
		assert.Equal(t, c.code, code, "%s: %s", name, page)
		assert.Contains(t, page, c.says, name)
	}
	assert.Empty(t, silences(t, am.URL))
	assert.Empty(t, b.recorded())
	assert.Positive(t, b.counted(wayLink, "refused"))

	// What a browser sends for our own form, also behind a proxy that changes the host.
	link += "&seconds=999999&dd_source=chat" // a chat's own parameters change nothing
	for i, header := range []http.Header{with("Sec-Fetch-Site", "same-origin"), with("Origin", site), with("Origin", "https://lifeboat.example.com")} {
		if i == 2 {
			b.set(func(c *config.Config) { c.Notifier.Interactions.ExternalURL = "https://lifeboat.example.com/alerts/" })
			link = strings.Replace(link, "/silence?", "/alerts/silence?", 1)
		}
		code, page, _ := do(t, "POST", link, body, header)
		assert.Equal(t, http.StatusOK, code, page)
	}
	all := silences(t, am.URL)
	require.Len(t, all, 1)
	assert.WithinDuration(t, time.Now().Add(time.Hour), all[0].EndsAt, time.Minute)

	b.set(func(c *config.Config) { c.Notifier.Interactions.LinkSecretFile = "" })
	code, _, _ := do(t, "GET", link, "", nil)
	assert.Equal(t, http.StatusNotFound, code)
}

func TestNobodyGuesses(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.at(time.Now())
	site := b.serve()
	link := b.links(notice.English(), disk(), "c")[0].URL
	for range burst {
		code, _, _ := do(t, http.MethodGet, site+"/silence?t=guess", "", nil)
		require.Equal(t, http.StatusForbidden, code)
	}
	code, page, header := do(t, http.MethodGet, link, "", nil)
	assert.Equal(t, http.StatusTooManyRequests, code)
	assert.Contains(t, page, "Too many requests")
	assert.NotEmpty(t, header.Get("Retry-After"))
	b.at(time.Now().Add(time.Minute))
	code, _, _ = do(t, http.MethodGet, link, "", nil)
	assert.Equal(t, http.StatusOK, code)
}

func TestTheLimitIsPerAddressAndBounded(t *testing.T) {
	t.Parallel()
	l, now := newLimiter(), time.Now()
	for range burst {
		require.True(t, l.allow("192.0.2.1:1", now))
	}
	assert.False(t, l.allow("192.0.2.1:2", now), "another port is the same address")
	assert.False(t, l.allow("[::ffff:192.0.2.1]:2", now), "and so is its IPv6 form")
	assert.True(t, l.allow("192.0.2.2:1", now))
	for range burst {
		require.True(t, l.allow("[2001:db8::1]:1", now))
	}
	assert.False(t, l.allow("[2001:db8::2]:1", now), "one client has a whole /64")
	assert.True(t, l.allow("[2001:db8:0:1::1]:1", now))
	assert.True(t, l.allow("nonsense", now))
	for i := range 3 * maxAddresses {
		l.allow(addr(i), now)
	}
	assert.LessOrEqual(t, len(l.all), maxAddresses)
	assert.False(t, l.allow(addr(1<<20), now), "those that nobody can be told from share a limit")
	assert.True(t, l.allow(addr(1<<20), now.Add(time.Minute)), "which comes back")
}

func addr(i int) string { return fmt.Sprintf("10.%d.%d.%d:1", i>>16, i>>8&255, i&255) }
