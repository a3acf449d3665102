// Package runbook finds the page that says what to do about an alert, reads the first steps out of it, asks whether its link still
// leads somewhere, and lints rule files for alerts that have none.
package runbook

import (
	"cmp"
	"io/fs"
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
	return ruled(c, name)
}

// ruled is the address that base_url gives to an alert's page; empty when there is none.
func ruled(c config.Runbooks, name string) string {
	page := Kebab(name)
	if c.BaseURL == "" || page == "" {
		return ""
	}
	return safe(strings.TrimSuffix(c.BaseURL, "/") + "/" + url.PathEscape(page) + c.Suffix)
}

// below is the path of a link below base_url, and whether it is there at all. A longer name that only begins alike is not, nor is
// a path that leads out again.
func below(base, link string) (rest, fragment string, ok bool) {
	b, err := url.Parse(base)
	l, bad := url.Parse(link)
	if err != nil || bad != nil || base == "" || !strings.EqualFold(b.Scheme, l.Scheme) || !strings.EqualFold(b.Host, l.Host) {
		return "", "", false
	}
	rest, ok = strings.CutPrefix(l.Path, strings.TrimSuffix(b.Path, "/")+"/")
	rest = strings.TrimSuffix(rest, "/")
	if !ok || rest == "." || !fs.ValidPath(rest) || strings.Contains(rest, `\`) {
		return "", "", false
	}
	return rest, l.Fragment, true
}

// The grades of an alert without a runbook.
const (
	GradeError   = "error"
	GradeWarning = "warning"
	GradeIgnore  = "ignore"
)

// otherSeverity is the policy's key for every severity that it does not name.
const otherSeverity = "*"

// Grade is what an alert of a severity without a runbook is, by notifier.runbooks.policy: error, warning or ignore. Without a
// policy it is an error for critical and page, and else a warning. A severity that is not known is empty.
func Grade(c config.Runbooks, severity string) string {
	usual := GradeWarning
	if severity == "critical" || severity == "page" {
		usual = GradeError
	}
	return cmp.Or(c.Policy[severity], c.Policy[otherSeverity], usual)
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
