package app

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"regexp"
	"slices"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/web"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/render"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/route"
)

// Check looks for what the configuration's own check cannot see: routes that no alert reaches, receivers that nothing names, a lost
// alert that is said only to the receiver that lost it, templates that cannot be parsed, web configurations that would not serve, and files that are missing. It reads files, but no
// secrets. What may be right on the notifier's own host, and what may be meant, is a warning; the rest is a mistake, though the
// services run with it.
func Check(cfg *config.Config) []config.Finding {
	n := cfg.Notifier
	found := route.Check(n)
	found = append(found, templates(n)...)
	found = append(found, unheard(n)...)
	found = append(found, served("notifier.web_config_file", checkWebhooks(n.WebConfigFile, n.BearerTokensFile != ""))...)
	found = append(found, served("notifier.interactions.web_config_file", web.Check(n.Interactions.WebConfigFile))...)
	found = append(found, passwordsInClear(cfg.Alertmanager)...)
	return append(found, pagesDir(n.Runbooks.PagesDir)...)
}

// checkWebhooks is web.Check for an address that takes alerts, with bearer tokens or without. It refuses besides what would lose alerts:
// basic authentication together with bearer tokens, because a request has one Authorization header and could never satisfy both; and a
// rate limit, because its 429 makes Alertmanager drop what it sent.
func checkWebhooks(webConfigFile string, bearer bool) error {
	if err := web.Check(webConfigFile); err != nil {
		return err
	}
	o, err := web.Read(webConfigFile)
	switch {
	case err != nil:
		return err
	case bearer && len(o.Users) > 0:
		return fmt.Errorf("web configuration file %s has basic_auth_users, and notifier.bearer_tokens_file is set: "+
			"a request has one Authorization header; remove one of the two", webConfigFile)
	case o.Limit.Interval != nil:
		return fmt.Errorf("web configuration file %s has a rate_limit: "+
			"it answers 429, and Alertmanager drops the alerts after that; remove it", webConfigFile)
	}
	return nil
}

// passwordsInClear warns when Alertmanager's password can be read on its way.
func passwordsInClear(a config.Alertmanager) []config.Finding {
	var found []config.Finding
	for i, address := range a.URLs {
		u, err := url.Parse(address)
		if a.Username == "" || err != nil || u.Scheme == "https" || loopback(u.Hostname()) {
			continue
		}
		found = append(found, config.Finding{
			Key: fmt.Sprintf("alertmanager.urls[%d]", i), Warning: true, Message: "begins with http://: the password goes over the network in clear",
		})
	}
	return found
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// unheard warns when what says that an alert was lost goes only to a receiver that loses alerts itself: while its chat takes nothing, that
// message is lost the same way.
func unheard(n config.Notifier) []config.Finding {
	tree, err := route.Compile(n)
	if err != nil { // the configuration's own check has said so
		return nil
	}
	dead := receiversOf(tree, "LifeboatAlertDead")
	i := slices.IndexFunc(n.Receivers, func(r config.Receiver) bool { return len(dead) == 1 && r.Name == dead[0] })
	if i < 0 || n.Receivers[i].Fallback != "" {
		return nil
	}
	name := n.Receivers[i].Name
	others := routesTo(n.Route, name) > 1 || n.Route.Receiver == name || slices.Contains(receiversOf(tree, "LifeboatSnapshotFailed"), name) ||
		slices.ContainsFunc(n.Receivers, func(r config.Receiver) bool { return r.Fallback == name })
	if !others {
		return nil
	}
	return []config.Finding{{
		Key: fmt.Sprintf("notifier.receivers[%d].name", i), Warning: true,
		Message: fmt.Sprintf("LifeboatAlertDead, which says that an alert was lost, comes to %q alone, which loses alerts itself while its chat takes "+
			"nothing; give it a fallback, or send this alert to another receiver too", name),
	}}
}

// receiversOf are those of one of the fleet's own critical alerts, each once.
func receiversOf(tree *route.Tree, alertname string) []string {
	var all []string
	for _, h := range tree.Match(map[string]string{"alertname": alertname, "severity": "critical", "service": "lifeboat", "target": "any"}) {
		if !slices.Contains(all, h.Receiver) {
			all = append(all, h.Receiver)
		}
	}
	return all
}

// routesTo counts the routes that name a receiver.
func routesTo(r config.Route, receiver string) int {
	n := 0
	if r.Receiver == receiver {
		n++
	}
	for _, c := range r.Routes {
		n += routesTo(c, receiver)
	}
	return n
}

// templates that cannot be parsed. The renderer's errors begin with the key that they are about.
func templates(n config.Notifier) []config.Finding {
	_, err := render.New(n)
	var found []config.Finding
	for _, e := range joined(err) {
		f := config.Finding{Key: "notifier.receivers", Message: e.Error()}
		if key := keyInFront.FindStringSubmatch(f.Message); key != nil {
			f.Key, f.Message = key[1], key[2]
		}
		found = append(found, f)
	}
	return found
}

var keyInFront = regexp.MustCompile(`(?s)^(notifier[a-z_.\[\]0-9]+):? (.*)$`)

// joined are the errors that were joined.
func joined(err error) []error {
	tree, ok := err.(interface{ Unwrap() []error })
	if !ok {
		if err == nil {
			return nil
		}
		return []error{err}
	}
	var all []error
	for _, e := range tree.Unwrap() {
		all = append(all, joined(e)...)
	}
	return all
}

// served is what is wrong with a web configuration.
func served(key string, err error) []config.Finding {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return []config.Finding{{Key: key, Warning: true, Message: fmt.Sprintf("%v; is it on the notifier's host only?", err)}}
	}
	return []config.Finding{{Key: key, Message: err.Error()}}
}

// pagesDir is a warning when the folder of runbooks is missing.
func pagesDir(dir string) []config.Finding {
	if dir == "" {
		return nil
	}
	var why string
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		why = fmt.Sprintf("there is no folder %s here; without it no message has the first steps of a runbook", dir)
	case err != nil:
		why = fmt.Sprintf("cannot be read here: %v", err)
	case !info.IsDir():
		why = dir + " is not a folder"
	default:
		return nil
	}
	return []config.Finding{{Key: "notifier.runbooks.pages_dir", Warning: true, Message: why}}
}
