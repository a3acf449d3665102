package ingest

import (
	"bytes"
	"encoding/json"
	"slices"

	"github.com/go-json-experiment/json/jsontext"
)

// texts is a JSON object whose values are texts, as it stands in a message: labels, annotations. It is nil when there is none.
type texts = jsontext.Value

// textsOf writes a map, sorted so that the same map is the same bytes.
func textsOf(m map[string]string) texts {
	if len(m) == 0 {
		return nil
	}
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	out := []byte{'{'}
	for i, k := range keys {
		if i > 0 {
			out = append(out, ',')
		}
		out = append(quote(out, k), ':')
		out = quote(out, m[k])
	}
	return append(out, '}')
}

// mapOf is the inverse of textsOf.
func mapOf(t texts) map[string]string {
	var m map[string]string
	_ = json.Unmarshal(t, &m) // it was written by textsOf, or found to be right by plain
	return m
}

// plain says whether a JSON value is an object of texts, or null. It was read as strict JSON, so that nothing else is to be checked.
func plain(t texts) bool {
	rest := trim(t)
	if len(rest) == 0 || rest[0] == 'n' {
		return true
	}
	if rest[0] != '{' {
		return false
	}
	for value := false; ; value = !value {
		// Behind a brace, a comma or a colon; only an empty object has something else there.
		rest = trim(rest[1:])
		if len(rest) == 0 || rest[0] != '"' {
			return !value && len(rest) > 0 && rest[0] == '}'
		}
		rest = trim(rest[stringEnd(rest):])
		if len(rest) == 0 {
			return false
		}
		if rest[0] == '}' {
			return value
		}
	}
}

// trim removes JSON's white space from the beginning.
func trim(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\n' || b[0] == '\t' || b[0] == '\r') {
		b = b[1:]
	}
	return b
}

// stringEnd is the length of the JSON string at the beginning of b.
func stringEnd(b []byte) int {
	for from := 1; ; {
		quote := bytes.IndexByte(b[from:], '"')
		if quote < 0 {
			return len(b)
		}
		escapes, at := 0, from+quote
		for b[at-1-escapes] == '\\' {
			escapes++
		}
		if from = at + 1; escapes%2 == 0 {
			return from
		}
	}
}

// quote appends a JSON string. Bytes that are not UTF-8 become U+FFFD; that is the only error, and it is mended.
func quote(b []byte, s string) []byte {
	b, _ = jsontext.AppendQuote(b, s)
	return b
}
