package web

import (
	"cmp"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"net/http"
	"strings"
)

// Bearer lets requests pass that carry one of the tokens ("Authorization: Bearer ...", RFC 6750). The tokens are what read returns, one
// a line, anew for each request: a rotation is a file with the old one and the new one. Without one it answers 401; while read
// fails, or there are no tokens, 503, so that an Alertmanager comes again. The server's log says both, and never a token.
func Bearer(read func() (string, error), next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		content, err := read()
		tokens := strings.Fields(content)
		if err != nil || len(tokens) == 0 {
			say(r, "the bearer tokens cannot be read, and nothing is taken until they can: %v", cmp.Or(err, errNoTokens))
			http.Error(w, "the bearer tokens cannot be read now; come again", http.StatusServiceUnavailable)
			return
		}
		scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		if !strings.EqualFold(scheme, "Bearer") {
			say(r, "refused a request from %s, which carries no bearer token", r.RemoteAddr)
			w.Header().Set("WWW-Authenticate", `Bearer realm="lifeboat"`)
			http.Error(w, "a bearer token is needed", http.StatusUnauthorized)
			return
		}
		if !oneOf(tokens, strings.TrimSpace(token)) {
			say(r, "refused a request from %s, whose bearer token is not one of those that are taken here", r.RemoteAddr)
			w.Header().Set("WWW-Authenticate", `Bearer realm="lifeboat", error="invalid_token"`)
			http.Error(w, "the bearer token is not one of those that are taken here", http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

var errNoTokens = errors.New("there are none")

// say writes into the log of the server that serves a request.
func say(r *http.Request, format string, args ...any) {
	if srv, served := r.Context().Value(http.ServerContextKey).(*http.Server); served && srv.ErrorLog != nil {
		srv.ErrorLog.Printf(format, args...) //nolint:forbidigo // it is the injected logger: Serve makes the one of the other
	}
}

// oneOf takes the same time whatever differs, also the length, and whichever token it is.
func oneOf(tokens []string, token string) bool {
	got, found := sha256.Sum256([]byte(token)), 0
	for _, t := range tokens {
		want := sha256.Sum256([]byte(t))
		found |= subtle.ConstantTimeCompare(got[:], want[:])
	}
	return found == 1
}
