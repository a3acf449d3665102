// Package runbook finds the page that says what to do about an alert.
package runbook

import (
	"net/url"
	"strings"
	"unicode"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
)

// Annotation is the one that Prometheus rules conventionally carry.
const Annotation = "runbook_url"

// Link is the address of an alert's runbook: its annotation, else the page that is named for the alert. It is empty when
// there is none; an annotation that is not a web address counts as none, because a chat would make a link of it.
func Link(c config.Runbooks, name string, annotations map[string]string) string {
	if link := safe(annotations[Annotation]); link != "" {
		return link
	}
	if c.BaseURL == "" || name == "" {
		return ""
	}
	page := Kebab(name)
	if page == "" {
		return ""
	}
	return safe(strings.TrimSuffix(c.BaseURL, "/") + "/" + url.PathEscape(page) + c.Suffix)
}

// safe returns a web address in its escaped form, and nothing for anything else.
func safe(raw string) string {
	raw = strings.TrimSpace(raw)
	if strings.ContainsFunc(raw, unicode.IsControl) {
		return ""
	}
	u, err := url.Parse(raw)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.User != nil {
		return ""
	}
	return u.String()
}

// Kebab turns an alert's name into a page's: KubePodCrashLooping is kube-pod-crash-looping, HTTPErrors is http-errors,
// and everything that is neither letter nor digit is a dash.
func Kebab(name string) string {
	var b strings.Builder
	runes := []rune(name)
	for i, r := range runes {
		if !unicode.IsLetter(r) && !unicode.IsDigit(r) {
			r = '-'
		}
		if unicode.IsUpper(r) && i > 0 {
			afterLower := unicode.IsLower(runes[i-1]) || unicode.IsDigit(runes[i-1])
			beforeLower := i+1 < len(runes) && unicode.IsLower(runes[i+1])
			if afterLower || (beforeLower && unicode.IsUpper(runes[i-1])) {
				b.WriteByte('-')
			}
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return strings.Join(strings.FieldsFunc(b.String(), func(r rune) bool { return r == '-' }), "-")
}
