package ingest

import (
	"net/http"
	"strconv"
)

// Count counts what next answers before an endpoint does: to who lacks a token, and to what is posted to a path that is none of theirs. An
// Alertmanager drops its alerts after those answers too.
func (h *Handlers) Count(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rec := &recorder{ResponseWriter: w, code: http.StatusOK}
		next.ServeHTTP(rec, r)
		name := "other"
		switch r.URL.Path {
		case Path:
			name = "alertmanager"
		case GenericPath:
			name = "generic"
		default:
			rec.counted = rec.counted || r.Method != http.MethodPost // who only looks around wants to tell nobody anything
		}
		if !rec.counted {
			h.metrics.requests.WithLabelValues(name, strconv.Itoa(rec.code)).Inc()
		}
	})
}

// recorder notes the status code of an answer.
type recorder struct {
	http.ResponseWriter

	code int
	// counted: an endpoint answered, which counts by itself.
	counted bool
}

func (r *recorder) WriteHeader(code int) {
	r.code = code
	r.ResponseWriter.WriteHeader(code)
}

// Unwrap is for http.ResponseController.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }
