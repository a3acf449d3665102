package silence

import (
	"bytes"
	"context"
	"crypto/rand"
	_ "embed" // the page
	"errors"
	"fmt"
	"html/template"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
)

const (
	// maxForm is a name, many times over.
	maxForm = 16 << 10
	maxName = 80
	// unproven stands before the name that somebody gave on the page: nobody has proved it.
	unproven = "via link: "
	// pageTimeout bounds how long a person waits for the page's answer.
	pageTimeout = 30 * time.Second
)

//go:embed page.html
var pageHTML string

// view is what page.html shows.
type view struct {
	Words               words
	Nonce, Title, Text  string
	Labels              []notice.Label
	Comment             string
	Lasts, Until, ID    string
	Form                bool
	Wrong, Button, Link string
}

// pages answers the page.
type pages struct {
	s    *Silencer
	html *template.Template
}

// Handler answers the page that links lead to (GET shows, POST creates) and Slack's request URL. Each answers 404 while it is not
// configured. Both are also found below the path of external_url, for proxies that do not take it off.
func (s *Silencer) Handler() http.Handler {
	p := &pages{s: s, html: template.Must(template.New("page").Parse(pageHTML))}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+PagePath, p.show) // HEAD too
	mux.HandleFunc("POST "+PagePath, p.create)
	mux.HandleFunc("POST "+SlackPath, s.interactions)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if u, err := url.Parse(s.o.Config().Notifier.Interactions.ExternalURL); err == nil {
			if below := strings.TrimSuffix(u.Path, "/"); below != "" && strings.HasPrefix(r.URL.Path, below+"/") {
				http.StripPrefix(below, mux).ServeHTTP(w, r)
				return
			}
		}
		mux.ServeHTTP(w, r)
	})
}

// show never creates anything: chats fetch links for their previews.
func (p *pages) show(w http.ResponseWriter, r *http.Request) {
	t, say, ok := p.enter(w, r)
	if !ok {
		return
	}
	v := p.ask(say, t)
	p.write(w, r, http.StatusOK, v)
}

// ask is the page before the button is pressed.
func (p *pages) ask(say words, t token) view {
	v := about(say, t, p.s.o.Now().Add(t.lasts()))
	v.Title, v.Text, v.Form, v.Button = say.Ask, say.AskText, true, fmt.Sprintf(say.Button, v.Lasts)
	return v
}

func (p *pages) create(w http.ResponseWriter, r *http.Request) {
	t, say, ok := p.enter(w, r)
	if !ok {
		return
	}
	if err := p.sameOrigin(r); err != nil {
		p.refuse(w, r, http.StatusForbidden, view{Words: say, Title: say.Elsewhere, Text: say.ElsewhereText})
		return
	}
	name, code, v := p.form(w, r, say, t)
	if code != 0 {
		p.refuse(w, r, code, v)
		return
	}
	// Whoever pressed the button and closed the page wants the silence all the same.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), pageTimeout)
	defer cancel()
	m, err := p.s.create(ctx, request{
		matchers: t.Matchers, lasts: t.lasts(), author: unproven + name, comment: t.Comment, way: wayLink,
		attributes: map[string]string{"link": t.ID},
	})
	if err != nil {
		p.s.o.Logger.WarnContext(ctx, "could not create a silence", slog.String("way", wayLink), slog.Any("err", err))
		p.write(w, r, http.StatusBadGateway, view{Words: say, Title: say.NotDone, Text: fmt.Sprintf(say.NotDoneText, err)})
		return
	}
	v = about(say, t, m.until)
	v.Title, v.ID, v.Link = say.Done, m.id, p.s.alertmanager(m.id)
	if m.existing {
		v.Title = say.Already
	}
	p.write(w, r, http.StatusOK, v)
}

// enter checks what every request of the page has to pass. It answers when it returns false.
func (p *pages) enter(w http.ResponseWriter, r *http.Request) (token, words, bool) {
	say := wordsFor(r)
	cfg := p.s.o.Config().Notifier.Interactions
	if cfg.LinkSecretFile == "" {
		p.write(w, r, http.StatusNotFound, view{Words: say, Title: say.Off, Text: say.OffText})
		return token{}, say, false
	}
	if !p.s.pages.allow(r.RemoteAddr, p.s.o.Now()) {
		w.Header().Set("Retry-After", "60")
		p.refuse(w, r, http.StatusTooManyRequests, view{Words: say, Title: say.TooOften, Text: say.TooOftenText})
		return token{}, say, false
	}
	all, err := secrets(cfg.LinkSecretFile)
	if err != nil {
		p.s.tell("links to silence cannot be checked", err)
		p.write(w, r, http.StatusServiceUnavailable, view{Words: say, Title: say.Broken})
		return token{}, say, false
	}
	t, err := verify(all, r.URL.Query().Get("t"), p.s.o.Now())
	switch {
	case errors.Is(err, errExpired):
		p.refuse(w, r, http.StatusForbidden, view{Words: say, Title: say.Expired, Text: say.ExpiredText})
	case err != nil:
		p.refuse(w, r, http.StatusForbidden, view{Words: say, Title: say.Forged, Text: say.ForgedText})
	}
	return t, say, err == nil
}

// sameOrigin refuses a form that another site sent. The link is the permission, and another site does not know it; this is for
// one that does.
func (p *pages) sameOrigin(r *http.Request) error {
	protection := http.NewCrossOriginProtection()
	if u, err := url.Parse(p.s.o.Config().Notifier.Interactions.ExternalURL); err == nil && u.Host != "" {
		// A proxy may have changed the Host.
		if err := protection.AddTrustedOrigin(u.Scheme + "://" + u.Host); err != nil {
			return fmt.Errorf("using external_url's origin: %w", err)
		}
	}
	return protection.Check(r)
}

// form reads the name. It returns a code and a page when the form cannot be taken.
func (p *pages) form(w http.ResponseWriter, r *http.Request, say words, t token) (name string, code int, v view) {
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	if err := r.ParseForm(); err != nil {
		if _, large := errors.AsType[*http.MaxBytesError](err); large {
			return "", http.StatusRequestEntityTooLarge, view{Words: say, Title: say.TooLarge}
		}
		return "", http.StatusBadRequest, view{Words: say, Title: say.Changed, Text: say.ChangedText}
	}
	// Chats add parameters of their own to an address; nothing but t is read of it.
	if len(r.URL.Query()["t"]) != 1 || len(r.PostForm) > 1 || len(r.PostForm["name"]) != len(r.PostForm) {
		return "", http.StatusForbidden, view{Words: say, Title: say.Changed, Text: say.ChangedText}
	}
	name = r.PostForm.Get("name")
	if cleaned := clean(name, maxName+1); cleaned == "" || utf8.RuneCountInString(cleaned) > maxName {
		v = p.ask(say, t)
		v.Wrong = say.NameMissing
		return "", http.StatusBadRequest, v
	}
	return name, 0, v
}

// refuse counts and shows a page that says why nothing was created.
func (p *pages) refuse(w http.ResponseWriter, r *http.Request, code int, v view) {
	p.s.metrics.count(wayLink, "refused")
	p.write(w, r, code, v)
}

func (p *pages) write(w http.ResponseWriter, r *http.Request, code int, v view) {
	v.Nonce = rand.Text()
	var page bytes.Buffer
	if err := p.html.Execute(&page, v); err != nil {
		p.s.o.Logger.ErrorContext(r.Context(), "could not write a page", slog.Any("err", err))
		http.Error(w, "the page could not be written", http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Language", v.Words.Code)
	h.Set("Vary", "Accept-Language")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	// The address is the permission and must not reach another site. "no-referrer" would take the Origin off our own form as well.
	h.Set("Referrer-Policy", "same-origin")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'nonce-"+v.Nonce+"'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
	w.WriteHeader(code)
	_, _ = w.Write(page.Bytes()) // an error means that the browser has gone; there is nobody to tell
}

// about is a page that shows what is silenced.
func about(say words, t token, until time.Time) view {
	v := view{
		Words: say, Comment: t.Comment, Lasts: short(t.lasts()),
		Until: fmt.Sprintf(say.Until, until.UTC().Format("2006-01-02 15:04 MST")),
	}
	for _, name := range slices.Sorted(maps.Keys(t.Matchers)) {
		v.Labels = append(v.Labels, notice.Label{Name: name, Value: t.Matchers[name]})
	}
	return v
}

// alertmanager is the address of a silence's page, if Alertmanager's own address is known.
func (s *Silencer) alertmanager(id string) string {
	if s.o.AlertmanagerURL == nil {
		return ""
	}
	u, err := url.Parse(s.o.AlertmanagerURL())
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return ""
	}
	u.User, u.RawQuery, u.Fragment = nil, "", ""
	return strings.TrimSuffix(u.String(), "/") + "/#/silences/" + url.PathEscape(id)
}

// receiver is the one of a name; the zero one, in English and UTC, when there is none any more.
func receiver(cfg *config.Config, name string) config.Receiver {
	for _, r := range cfg.Notifier.Receivers {
		if r.Name == name {
			return r
		}
	}
	return config.Receiver{}
}
