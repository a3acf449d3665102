package web

import (
	"crypto/sha256"
	"crypto/subtle"
	"net/http"
	"strings"
)

// Bearer lets requests pass that carry one of the tokens ("Authorization: Bearer ...", RFC 6750). The tokens are what read returns, one
// a line, anew for each request: a rotation is a file with the old one and the new one. Without one it answers 401; while read
// fails, or there are no tokens, 503, so that an Alertmanager comes again. Read's error goes nowhere from here: read logs it.
func Bearer(read func() (string, error), next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		content, err := read()
		tokens := strings.Fields(content)
		if err != nil || len(tokens) == 0 {
			http.Error(w, "the bearer tokens cannot be read now; come again", http.StatusServiceUnavailable)
			return
		}
		scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		if !strings.EqualFold(scheme, "Bearer") {
			w.Header().Set("WWW-Authenticate", `Bearer realm="lifeboat"`)
			http.Error(w, "a bearer token is needed", http.StatusUnauthorized)
			return
		}
		if !oneOf(tokens, strings.TrimSpace(token)) {
			w.Header().Set("WWW-Authenticate", `Bearer realm="lifeboat", error="invalid_token"`)
			http.Error(w, "the bearer token is not one of those that are taken here", http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
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
