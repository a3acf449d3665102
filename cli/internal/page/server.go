package page

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/lifeboat-fleet/lifeboat/cli/internal/ops"
)

const (
	// aliveEvery is how often an open page hears that the server is there; page.js waits for a little more than two of them.
	aliveEvery = 5 * time.Second
	// writeTimeout is how long a viewer may take to take what it is sent.
	writeTimeout = 10 * time.Second
	// answerTimeout is how long a whole answer may take; an open page has the one above for each piece.
	answerTimeout = 30 * time.Second
	maxFind       = 64
	// againAfter is when an open page comes again for which there was no place: as one without JavaScript does.
	againAfter = 15 * time.Second
)

// policy lets the page load its own style sheet, script and icon, and nothing else. There is nothing inline in it.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; " +
	"base-uri 'none'; frame-ancestors 'none'"

// server answers browsers.
type server struct {
	hub    *hub
	render *renderer
	log    *slog.Logger
	// assets are the addresses of files, which change with what is in them; content is by address.
	assets  map[string]string
	content map[string][]byte
	// again is againAfter; tests have less patience.
	again time.Duration
}

func newServer(h *hub, r *renderer, log *slog.Logger) (*server, error) {
	s := &server{hub: h, render: r, log: log, assets: map[string]string{}, content: map[string][]byte{}, again: againAfter}
	for _, name := range []string{"page.css", "page.js", "favicon.svg"} {
		b, err := files.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("reading a file of the page: %w", err)
		}
		sum := sha256.Sum256(b)
		ext := path.Ext(name)
		hashed := strings.TrimSuffix(name, ext) + "-" + hex.EncodeToString(sum[:6]) + ext
		// Relative, so that the page may stand below any path of a proxy.
		s.assets[name], s.content[hashed] = "assets/"+hashed, b
	}
	return s, nil
}

// handler takes GET and HEAD; whatever else is asked is answered with 405.
func (s *server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", s.page)
	mux.HandleFunc("GET /live", s.live)
	mux.HandleFunc("GET /assets/{name}", s.asset)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		mux.ServeHTTP(w, r)
	})
}

// httpServer serves until ctx ends: that ends what is open, which would not end by itself.
func httpServer(ctx context.Context, h http.Handler) *http.Server {
	return &http.Server{
		Handler: h, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: answerTimeout, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
}

// asked reads what a viewer wants to see.
func asked(r *http.Request) request {
	v := r.URL.Query()
	q := request{lang: speak(v.Get("lang"), r.Header.Get("Accept-Language")), find: strings.ToLower(strings.TrimSpace(ops.Clean(v.Get("q")))), page: 1}
	if len(q.find) > maxFind {
		q.find = ops.Cut(q.find, maxFind)
	}
	if n, err := strconv.Atoi(v.Get("page")); err == nil {
		q.page = min(max(n, 1), 1<<20)
	}
	return q
}

func (s *server) page(w http.ResponseWriter, r *http.Request) {
	s.hub.fresh()
	q := asked(r)
	parts, v, err := s.hub.parts(q)
	var body []byte
	if err == nil {
		body, err = s.render.page(v, q, parts, s.assets)
	}
	if err != nil {
		s.log.ErrorContext(r.Context(), "could not write the page", slog.Any("err", err))
		http.Error(w, "the page could not be written; the log says why", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Vary", "Accept-Language")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	_, _ = w.Write(body) // the viewer has gone; there is nobody to tell
}

func (s *server) asset(w http.ResponseWriter, r *http.Request) {
	b, ok := s.content[r.PathValue("name")]
	if !ok {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
	http.ServeContent(w, r, r.PathValue("name"), time.Time{}, bytes.NewReader(b))
}

// live sends the parts of a page as they change (server-sent events, https://html.spec.whatwg.org/multipage/server-sent-events.html):
// "part" is a section's name in its first line and the section behind it, "now" the time and the title, "build" which script the
// server has, "again" after how many milliseconds to come again, when there are too many for this one to stay.
func (s *server) live(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no") // for nginx, which else keeps it back
	if r.Method == http.MethodHead {
		return
	}
	v := &viewer{server: s, w: w, out: http.NewResponseController(w), q: asked(r)}
	var err error
	if c := s.hub.join(); c == nil {
		err = v.once()
	} else {
		defer s.hub.leave(c)
		err = v.stay(r.Context(), c)
	}
	if err != nil {
		s.log.DebugContext(r.Context(), "a viewer has gone", slog.Any("err", err))
	}
}

// viewer is an open page.
type viewer struct {
	*server
	w   http.ResponseWriter
	out *http.ResponseController
	q   request
	// last is what it was sent.
	last *rendered
}

// stay keeps the page up to date until its viewer goes.
func (v *viewer) stay(ctx context.Context, changed <-chan struct{}) error {
	alive := time.NewTicker(aliveEvery)
	defer alive.Stop()
	err := v.begin()
	for err == nil {
		err = v.send()
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-alive.C:
		}
	}
	return err
}

// once shows how it is now to somebody for whom there is no place, who comes again.
func (v *viewer) once() error {
	v.hub.fresh()
	if err := v.begin(); err != nil {
		return err
	}
	if err := v.send(); err != nil {
		return err
	}
	return v.write(func(b *bytes.Buffer) { message(b, "again", strconv.FormatInt(v.again.Milliseconds(), 10)) })
}

func (v *viewer) begin() error {
	return v.write(func(b *bytes.Buffer) { message(b, "build", path.Base(v.assets["page.js"])) })
}

// send sends what differs from what was sent last.
func (v *viewer) send() error {
	now, seen, err := v.hub.parts(v.q)
	if err != nil {
		v.log.Error("could not write the page", slog.Any("err", err))
		return err
	}
	moment := seen.now // what it shows is of then
	said, err := json.Marshal(map[string]string{
		"at": moment.In(seen.loc).Format("15:04:05"), "machine": moment.UTC().Format(time.RFC3339), "title": now.title,
	})
	if err != nil {
		return err
	}
	err = v.write(func(b *bytes.Buffer) {
		for _, name := range sections() {
			if v.last == nil || v.last.parts[name] != now.parts[name] {
				message(b, "part", name+"\n"+now.parts[name])
			}
		}
		message(b, "now", string(said))
	})
	v.last = now
	return err
}

func (v *viewer) write(fill func(*bytes.Buffer)) error {
	var b bytes.Buffer
	fill(&b)
	if err := v.out.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return fmt.Errorf("setting a deadline: %w", err)
	}
	if _, err := v.w.Write(b.Bytes()); err != nil {
		return fmt.Errorf("sending to a viewer: %w", err)
	}
	return v.out.Flush()
}

// message writes an event. Each line of its data stands in a line of its own; empty ones say nothing in HTML.
func message(b *bytes.Buffer, name, data string) {
	b.WriteString("event: " + name + "\n")
	for line := range strings.Lines(data) {
		if line = strings.Trim(line, " \r\n"); line != "" {
			b.WriteString("data: " + line + "\n")
		}
	}
	b.WriteByte('\n')
}
