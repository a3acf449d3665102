package config

import (
	"cmp"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/alertmanager/matcher/compat"
	"github.com/prometheus/alertmanager/pkg/labels"
)

// names are those of a list's items, each with its index.
type names map[string]int

// take notes a name and says when it is there already.
func (c *checker) take(all names, list string, i int, name string) {
	if first, dup := all[name]; dup {
		c.add(fmt.Sprintf("notifier.%s[%d].name", list, i), "%q is already the name of %s[%d]", name, list, first)
		return
	}
	all[name] = i
}

func (c *checker) notifier(n Notifier, alertmanagers []string) {
	c.listen("notifier.listen", n.Listen)
	c.notNegative("notifier.give_up_after", n.GiveUpAfter)
	receivers, intervals := names{}, names{}
	for i, r := range n.Receivers {
		if !ValidName(r.Name) {
			c.add(fmt.Sprintf("notifier.receivers[%d].name", i), "%q: a name is lower-case letters, digits and dashes", r.Name)
		}
		c.take(receivers, "receivers", i, r.Name)
	}
	for i, r := range n.Receivers {
		key := fmt.Sprintf("notifier.receivers[%d]", i)
		c.receiver(key, r, receivers)
		if after := cmp.Or(r.FallbackAfter, defaultFallbackAfter); r.Fallback != "" && after >= cmp.Or(n.GiveUpAfter, defaultGiveUpAfter) {
			c.add(key+".fallback_after", "must be less than notifier.give_up_after, or the fallback never gets anything")
		}
	}
	c.fallbacks(n.Receivers)
	for i, t := range n.TimeIntervals {
		key := fmt.Sprintf("notifier.time_intervals[%d]", i)
		if t.Name == "" {
			c.add(key+".name", "is missing")
		}
		if len(t.TimeIntervals) == 0 {
			c.add(key, "holds no time_intervals; a route that is active in it would never deliver")
		}
		c.take(intervals, "time_intervals", i, t.Name)
	}
	for i, pattern := range n.TemplateFiles {
		if _, err := filepath.Match(pattern, "x"); err != nil {
			c.add(fmt.Sprintf("notifier.template_files[%d]", i), "%q is not a pattern: %v", pattern, err)
		}
	}
	for i, e := range n.Events {
		if !eventPattern.MatchString(e) || strings.HasPrefix(e, "alert.") || strings.HasPrefix(e, "*") {
			c.add(fmt.Sprintf("notifier.events[%d]", i), "%q is not noun.verb, as drill.passed or snapshot.*; events about alerts cannot be routed", e)
		}
	}
	c.runbooks(n.Runbooks)
	c.flapping(n.Flapping)
	c.interactions(n.Interactions, alertmanagers)
	if l := n.Interactions.Listen; l != "" && l == cmp.Or(n.Listen, defaultListen) && !strings.HasSuffix(l, ":0") {
		c.add("notifier.interactions.listen", "is notifier.listen; people and Alertmanager need an address each")
	}
	c.reconcile(n.Reconcile)
	if len(n.Receivers) == 0 && n.Route.Receiver == "" && len(n.Route.Routes) == 0 {
		return
	}
	if n.Route.Receiver == "" {
		c.add("notifier.route.receiver", "the top route needs a receiver, so that no alert goes nowhere")
	}
	if len(n.Route.Matchers) > 0 {
		c.add("notifier.route.matchers", "the top route takes everything and has no matchers")
	}
	if n.Route.Continue {
		c.add("notifier.route.continue", "means nothing in the top route, which has nothing beside it")
	}
	if len(n.Route.MuteTimeIntervals)+len(n.Route.ActiveTimeIntervals) > 0 {
		c.add("notifier.route", "the top route must not be muted by time intervals; put them into a route below it")
	}
	c.route("notifier.route", n.Route, receivers, intervals)
}

var eventPattern = regexp.MustCompile(`^[a-z-]+\.([a-z-]+|\*)$`)

func (c *checker) listen(key, address string) {
	if address == "" {
		return
	}
	if _, _, err := net.SplitHostPort(address); err != nil {
		c.add(key, "%q is not host:port: %v", address, err)
	}
}

func (c *checker) notNegative(key string, d time.Duration) {
	if d < 0 {
		c.add(key, "must not be negative")
	}
}

func (c *checker) receiver(key string, r Receiver, receivers names) {
	switch {
	case (r.Slack == nil) == (r.DingTalk == nil):
		c.add(key, "needs exactly one of slack and dingtalk")
	case r.Slack != nil:
		c.slack(key+".slack", *r.Slack)
	case r.DingTalk.WebhookURLFile == "":
		c.add(key+".dingtalk.webhook_url_file", "is missing")
	case !slices.Contains([]string{"", "markdown", "action_card"}, r.DingTalk.Style):
		c.add(key+".dingtalk.style", "%q is not markdown or action_card", r.DingTalk.Style)
	}
	c.tls(key+".tls", r.TLS)
	if r.Slack != nil {
		c.encrypted(key+".slack.api_url", r.Slack.APIURL, key+".tls", r.TLS)
	}
	if _, err := time.LoadLocation(r.TimeZone); err != nil || strings.EqualFold(r.TimeZone, "local") {
		c.add(key+".time_zone", "%q is not an IANA time zone, as Asia/Shanghai", r.TimeZone)
	}
	if !slices.Contains([]string{"", "en", "zh"}, r.Language) {
		c.add(key+".language", "%q is not en or zh", r.Language)
	}
	c.limit(key+".limit", r)
	if r.Fallback != "" {
		if _, ok := receivers[r.Fallback]; !ok {
			c.add(key+".fallback", "no receiver is named %q", r.Fallback)
		}
	}
	c.notNegative(key+".fallback_after", r.FallbackAfter)
	if r.FallbackAfter != 0 && r.Fallback == "" {
		c.add(key+".fallback_after", "means nothing without fallback")
	}
	if r.Canary.Schedule != "" {
		if _, err := ParseSchedule(r.Canary.Schedule, r.TimeZone); err != nil {
			c.add(key+".canary.schedule", "%v", err)
		}
	}
}

func (c *checker) slack(key string, s Slack) {
	switch {
	case (s.WebhookURLFile == "") == (s.BotTokenFile == ""):
		c.add(key, "needs exactly one of webhook_url_file and bot_token_file")
	case s.BotTokenFile != "" && s.Channel == "":
		c.add(key+".channel", "is missing; a bot posts into a channel, by its id (C0123456789)")
	case s.BotTokenFile == "" && s.Channel != "":
		c.add(key+".channel", "means nothing for a webhook, which posts into its own channel")
	}
	if s.APIURL != "" {
		c.url(key+".api_url", s.APIURL, "https", "http")
	}
}

func (c *checker) limit(key string, r Receiver) {
	l := r.Limit
	if l.Messages < -1 || l.Messages > 1000 {
		c.add(key+".messages", "must be from 1 to 1000, or -1 for no limit")
	}
	c.notNegative(key+".per", l.Per)
	messages, _ := r.usualLimit()
	if l.Messages != 0 {
		messages = l.Messages
	}
	if l.Reserve < -1 || messages > 0 && l.Reserve >= messages {
		c.add(key+".reserve", "must be less than messages, so that something is left for the others, or -1 for none")
	}
}

// fallbacks finds those that lead back to where they began.
func (c *checker) fallbacks(all []Receiver) {
	next := map[string]string{}
	for _, r := range all {
		next[r.Name] = r.Fallback
	}
	for i, r := range all {
		at := r.Fallback
		for range all {
			if at == r.Name {
				c.add(fmt.Sprintf("notifier.receivers[%d].fallback", i), "leads back to %q itself", r.Name)
				break
			}
			at = next[at]
		}
	}
}

func (c *checker) runbooks(r Runbooks) {
	if r.BaseURL != "" {
		c.url("notifier.runbooks.base_url", r.BaseURL, "http", "https")
	}
	c.tls("notifier.runbooks.tls", r.TLS)
	if r.BaseURL == "" && r.TLS != (TLS{}) {
		c.add("notifier.runbooks.tls", "means nothing without base_url; it is for links at that host")
	}
	c.encrypted("notifier.runbooks.base_url", r.BaseURL, "notifier.runbooks.tls", r.TLS)
	for _, severity := range slices.Sorted(maps.Keys(r.Policy)) {
		if grade := r.Policy[severity]; !slices.Contains([]string{"error", "warning", "ignore"}, grade) {
			c.add("notifier.runbooks.policy."+keyed(severity), "%q is not error, warning or ignore", grade)
		}
	}
}

func (c *checker) flapping(f Flapping) {
	if f.Changes < -1 || f.Changes == 1 || f.Changes > 100 {
		c.add("notifier.flapping.changes", "must be from 2 to 100, or -1 to switch it off")
	}
	c.notNegative("notifier.flapping.window", f.Window)
}

func (c *checker) interactions(i Interactions, alertmanagers []string) {
	const key = "notifier.interactions"
	c.listen(key+".listen", i.Listen)
	if i.ExternalURL != "" {
		c.url(key+".external_url", i.ExternalURL, "https", "http")
	}
	if i.SlackAPIURL != "" {
		c.url(key+".slack_api_url", i.SlackAPIURL, "https", "http")
	}
	c.tls(key+".slack_tls", i.SlackTLS)
	c.encrypted(key+".slack_api_url", i.SlackAPIURL, key+".slack_tls", i.SlackTLS)
	c.notNegative(key+".link_ttl", i.LinkTTL)
	c.notNegative(key+".acknowledge_for", i.AcknowledgeFor)
	switch {
	case i.LinkSecretFile != "" && i.ExternalURL == "":
		c.add(key+".external_url", "is missing; links are made with it")
	case (i.LinkSecretFile != "" || i.SlackSigningSecretFile != "") && i.Listen == "":
		c.add(key+".listen", "is missing; somebody has to answer")
	case i.Listen != "" && i.LinkSecretFile == "" && i.SlackSigningSecretFile == "":
		c.add(key+".listen", "serves nothing without link_secret_file or slack_signing_secret_file")
	}
	if (i.Listen != "" || i.SlackAppTokenFile != "") && len(alertmanagers) == 0 {
		c.add("alertmanager.urls", "is missing; that is where notifier.interactions creates silences")
	}
}

func (c *checker) reconcile(r Reconcile) {
	c.notNegative("notifier.reconcile.after", r.After)
}

func (c *checker) route(key string, r Route, receivers, intervals names) {
	if r.Receiver != "" {
		if _, ok := receivers[r.Receiver]; !ok {
			c.add(key+".receiver", "no receiver is named %q", r.Receiver)
		}
	}
	for i, m := range r.Matchers {
		if _, err := ParseMatchers(m); err != nil {
			c.add(fmt.Sprintf("%s.matchers[%d]", key, i), "%v", err)
		}
	}
	c.intervals(key+".mute_time_intervals", r.MuteTimeIntervals, intervals)
	c.intervals(key+".active_time_intervals", r.ActiveTimeIntervals, intervals)
	c.notNegative(key+".repeat_interval", r.RepeatInterval)
	for _, severity := range slices.Sorted(maps.Keys(r.Mentions)) {
		for _, who := range r.Mentions[severity] {
			if !mention.MatchString(who) {
				c.add(key+".mentions."+keyed(severity), "%q is nobody: here, channel, everyone, all, U..., S..., a mobile number or user:<id>", who)
			}
		}
	}
	for i, child := range r.Routes {
		c.route(fmt.Sprintf("%s.routes[%d]", key, i), child, receivers, intervals)
	}
}

func (c *checker) intervals(key string, used []string, known names) {
	for i, name := range used {
		if _, ok := known[name]; !ok {
			c.add(fmt.Sprintf("%s[%d]", key, i), "no time interval is named %q", name)
		}
	}
}

// keyed is a key that people chose, as a part of a path: in single quotes where it would mean something else there.
func keyed(name string) string {
	if plainKey.MatchString(name) {
		return name
	}
	return "'" + name + "'"
}

var plainKey = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

// mention is what Slack and DingTalk can be told to mention.
var mention = regexp.MustCompile(`^(here|channel|everyone|all|[UWS][A-Z0-9]{5,}|\+?[0-9][0-9-]{6,19}|user:[A-Za-z0-9_.$-]{1,64})$`)

// ParseMatchers parses one entry of a matchers list with Alertmanager's own parser: UTF-8 syntax, falling back to the
// classic one, as Alertmanager does. The error is that of the UTF-8 parser, which says where it stumbled.
func ParseMatchers(s string) (labels.Matchers, error) {
	quiet := slog.New(slog.DiscardHandler)
	ms, err := compat.FallbackMatchersParser(quiet)(s, "lifeboat.yaml")
	if err == nil {
		return ms, nil
	}
	if _, why := compat.UTF8MatchersParser(quiet)(s, "lifeboat.yaml"); why != nil {
		err = why
	}
	return nil, err
}
