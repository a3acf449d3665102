package s3test

import (
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
)

// Fault is what a Proxy does to one request. The zero value passes it.
type Fault struct {
	kind    kind
	status  int
	code    string
	headers []string
}

type kind int

const (
	pass kind = iota
	answer
	resetBefore
	resetAfter
	hang
	hangAfter
	truncate
	stall
	flipRequest
	flipAnswer
	strip
)

// Pass forwards the request and its answer unchanged.
func Pass() Fault { return Fault{} }

// Answer reads the request and answers with a status and an S3 error code, without forwarding. A status below 300 gets an
// empty body. A 503 says Retry-After: 1.
func Answer(status int, code string) Fault { return Fault{kind: answer, status: status, code: code} }

// SlowDown is S3's 503.
func SlowDown() Fault { return Answer(http.StatusServiceUnavailable, "SlowDown") }

// ResetBefore resets the connection before anything is read or forwarded.
func ResetBefore() Fault { return Fault{kind: resetBefore} }

// ResetAfter forwards the request and resets the connection when the server has answered: the answer is lost.
func ResetAfter() Fault { return Fault{kind: resetAfter} }

// Hang reads and forwards nothing until Proxy.Release, and then passes.
func Hang() Fault { return Fault{kind: hang} }

// HangAfter forwards the request and holds the answer back until Proxy.Release.
func HangAfter() Fault { return Fault{kind: hangAfter} }

// Truncate sends half of the answer's body and resets the connection.
func Truncate() Fault { return Fault{kind: truncate} }

// Stall sends half of the answer's body, and the rest after Proxy.Release.
func Stall() Fault { return Fault{kind: stall} }

// FlipRequest changes a bit in the middle of the request's body. A signed body is then refused by the server.
func FlipRequest() Fault { return Fault{kind: flipRequest} }

// FlipAnswer changes a bit in the middle of the answer's body.
func FlipAnswer() Fault { return Fault{kind: flipAnswer} }

// Strip forwards the request without some headers, signed anew: a store that ignores them.
func Strip(headers ...string) Fault { return Fault{kind: strip, headers: headers} }

// LoseConditions is a store that ignores conditional writes.
func LoseConditions() Fault { return Strip("If-None-Match", "If-Match") }

// First gives a fault to the first n requests of an operation, and passes everything else. An empty op means any.
func First(n int, op string, f Fault) func(*http.Request) Fault {
	var seen atomic.Int64
	return func(r *http.Request) Fault {
		if (op == "" || Op(r) == op) && seen.Add(1) <= int64(n) {
			return f
		}
		return Pass()
	}
}

// Always gives a fault to every request of an operation; of any for "".
func Always(op string, f Fault) func(*http.Request) Fault {
	return func(r *http.Request) Fault {
		if op == "" || Op(r) == op {
			return f
		}
		return Pass()
	}
}

// Key is the object key that a request names; empty for a request to the bucket.
func Key(r *http.Request) string {
	path := strings.TrimPrefix(r.URL.Path, "/")
	if strings.HasPrefix(r.Host, Bucket+".") { // virtual-host style
		return path
	}
	_, key, _ := strings.Cut(path, "/")
	return key
}

// Op names the S3 operation of a request, as the S3 API reference does: PutObject, UploadPart, ListObjectsV2, ...
func Op(r *http.Request) string {
	q := r.URL.Query()
	if Key(r) == "" {
		return bucketOp(r.Method, q.Has)
	}
	switch r.Method {
	case http.MethodGet:
		switch {
		case q.Has("retention"):
			return "GetObjectRetention"
		case q.Has("legal-hold"):
			return "GetObjectLegalHold"
		case q.Has("uploadId"):
			return "ListParts"
		}
		return "GetObject"
	case http.MethodHead:
		return "HeadObject"
	case http.MethodPut:
		switch {
		case q.Has("partNumber"):
			return "UploadPart"
		case q.Has("retention"):
			return "PutObjectRetention"
		case q.Has("legal-hold"):
			return "PutObjectLegalHold"
		case r.Header.Get("X-Amz-Copy-Source") != "":
			return "CopyObject"
		}
		return "PutObject"
	case http.MethodPost:
		if q.Has("uploads") {
			return "CreateMultipartUpload"
		}
		if q.Has("uploadId") {
			return "CompleteMultipartUpload"
		}
	case http.MethodDelete:
		if q.Has("uploadId") {
			return "AbortMultipartUpload"
		}
		return "DeleteObject"
	}
	return r.Method
}

func bucketOp(method string, has func(string) bool) string {
	switch method {
	case http.MethodHead:
		return "HeadBucket"
	case http.MethodGet:
		switch {
		case has("versions"):
			return "ListObjectVersions"
		case has("uploads"):
			return "ListMultipartUploads"
		case has("versioning"):
			return "GetBucketVersioning"
		case has("object-lock"):
			return "GetObjectLockConfiguration"
		case has("list-type"):
			return "ListObjectsV2"
		}
	case http.MethodPost:
		if has("delete") {
			return "DeleteObjects"
		}
	}
	return method + " bucket"
}

func writeError(w http.ResponseWriter, f Fault) {
	if f.status < http.StatusMultipleChoices {
		w.WriteHeader(f.status)
		return
	}
	if f.status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "1")
	}
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(f.status)
	// A client that has gone is not to be told.
	_, _ = fmt.Fprintf(w, `<?xml version="1.0" encoding="UTF-8"?><Error><Code>%s</Code><Message>%s</Message></Error>`,
		f.code, "made by the test's proxy")
}
