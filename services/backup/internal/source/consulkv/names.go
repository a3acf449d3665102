package consulkv

import (
	"bytes"
	"encoding/json"
	"net/url"
	"path"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// CommonPrefix is the longest prefix that all keys of interest share and that Consul lists as it is written. Nothing when
// everything is of interest.
func CommonPrefix(prefixes []string) string {
	if len(prefixes) == 0 {
		return ""
	}
	low, high := slices.Min(prefixes), slices.Max(prefixes) // what these two share, all share
	n := 0
	for n < min(len(low), len(high)) && low[n] == high[n] {
		n++
	}
	p := low[:n]
	for !Listable(p) {
		p = p[:len(p)-1]
	}
	return p
}

// Listable says whether Consul takes a prefix for what it is.
func Listable(p string) bool {
	return p == "" || Plain(p) && utf8.ValidString(p) && !strings.Contains(p, "%")
}

// Plain says whether a name in a URL means the key of that name. Since 1.22 Consul cleans a name there as if it were a file's
// path ("a//b" becomes "a/b") and refuses others; HTTP servers redirect some, and the command line takes no leading slash.
// In a transaction any name goes.
func Plain(name string) bool {
	clean := path.Clean(name)
	if strings.HasSuffix(name, "/") && clean != "/" {
		clean += "/"
	}
	if clean != name || name[0] == '/' || strings.Trim(name, " ") != name ||
		strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return false
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == "." || part == ".." {
			return false
		}
	}
	decoded, err := url.PathUnescape(name)
	return err != nil || decoded == name || !strings.Contains(decoded, "..") && !strings.Contains(decoded, " ")
}

// NameOf is a key as it is, from JSON that was checked, with its quotes.
func NameOf(key []byte) string {
	if name := key[1 : len(key)-1]; bytes.IndexByte(name, '\\') < 0 {
		return string(name)
	}
	var name string
	if json.Unmarshal(key, &name) != nil {
		return string(key) // it was valid a moment ago
	}
	return name
}

// Wanted says whether a key begins with one of the prefixes; every one does when there are none.
func Wanted(prefixes []string, name string) bool {
	return len(prefixes) == 0 || slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(name, p) })
}
