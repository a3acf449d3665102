package config

import (
	"time"

	"github.com/prometheus/alertmanager/timeinterval"
)

// Notifier says who is told what.
type Notifier struct {
	// Listen is the address of the webhooks; 127.0.0.1:9095 when empty.
	Listen string `yaml:"listen"`
	// WebConfigFile is a web configuration file of Prometheus' exporter-toolkit, for TLS, client certificates and basic
	// authentication: https://github.com/prometheus/exporter-toolkit/blob/master/docs/web-configuration.md. It is read again
	// for each connection.
	WebConfigFile string `yaml:"web_config_file"`
	// BearerTokensFile holds the tokens of which a webhook has to carry one, one a line; empty asks for none.
	BearerTokensFile SecretFile `yaml:"bearer_tokens_file"`
	Receivers        []Receiver `yaml:"receivers"`
	Route            Route      `yaml:"route"`
	// TimeIntervals are named times that routes refer to.
	TimeIntervals []TimeInterval `yaml:"time_intervals"`
	// TemplateFiles are patterns of files with templates in Alertmanager's language, which receivers may use.
	TemplateFiles []string `yaml:"template_files"`
	// Events of the fleet's own audit log that are routed besides alerts, as noun.verb: "drill.passed", "snapshot.*". Each is an
	// alert for the routes with the labels alertname (LifeboatEvent), event, noun, verb, target, severity (info) and service (lifeboat).
	Events   []string `yaml:"events"`
	Runbooks Runbooks `yaml:"runbooks"`
	// GiveUpAfter is how long a delivery is retried before it becomes a dead letter; 24h when empty.
	GiveUpAfter  time.Duration `yaml:"give_up_after"`
	Flapping     Flapping      `yaml:"flapping"`
	Interactions Interactions  `yaml:"interactions"`
	Reconcile    Reconcile     `yaml:"reconcile"`
}

// Receiver is a chat to deliver to. Exactly one of Slack and DingTalk is set.
type Receiver struct {
	Name     string    `yaml:"name"`
	Slack    *Slack    `yaml:"slack"`
	DingTalk *DingTalk `yaml:"dingtalk"`
	// TimeZone of all times in its messages, an IANA name; UTC when empty.
	TimeZone string `yaml:"time_zone"`
	// Language of what Lifeboat itself says: "en" (also when empty) or "zh".
	Language string `yaml:"language"`
	// Title and Text replace the default message. They are templates in Alertmanager's language with Alertmanager's data, and may
	// call those of TemplateFiles. What they insert is escaped for the chat; the template's own text is the chat's markup.
	Title string `yaml:"title"`
	Text  string `yaml:"text"`
	Limit Limit  `yaml:"limit"`
	// TLS is for the address of the webhook, or the bot's api_url. The files are read again for each message.
	TLS TLS `yaml:"tls"`
	// Fallback is the receiver that takes over what waits here for longer than FallbackAfter; none when empty.
	Fallback string `yaml:"fallback"`
	// FallbackAfter is counted from when the delivery began to wait here, which is when the alert was received or, of what a time
	// interval held or another receiver handed on, when it came from there; 10m when empty.
	FallbackAfter time.Duration `yaml:"fallback_after"`
	Canary        Canary        `yaml:"canary"`
}

// Kind is "slack" or "dingtalk".
func (r Receiver) Kind() string {
	switch {
	case r.Slack != nil:
		return "slack"
	case r.DingTalk != nil:
		return "dingtalk"
	}
	return ""
}

// Slack is an incoming webhook, or a bot in a channel. The webhook's URL and the bot's token are credentials.
type Slack struct {
	WebhookURLFile SecretFile `yaml:"webhook_url_file"`
	// BotTokenFile holds a bot's token ("xoxb-...", scope chat:write). With it a group of alerts has one message, which is edited
	// as the group changes, and a thread.
	BotTokenFile SecretFile `yaml:"bot_token_file"`
	// Channel of the bot, by id ("C0123456789"): a name may be given to another channel.
	Channel string `yaml:"channel"`
	// APIURL is where Slack's Web API is; https://slack.com/api/ when empty.
	APIURL string `yaml:"api_url"`
}

// DingTalk is a custom robot (自定义机器人) with a signing secret.
type DingTalk struct {
	WebhookURLFile SecretFile `yaml:"webhook_url_file"`
	SecretFile     SecretFile `yaml:"secret_file"`
	// Style is "markdown" (also when empty) or "action_card", which has buttons for the runbook and for silencing.
	Style string `yaml:"style"`
}

// Limit is how many messages a robot or a channel is sent by the whole fleet, whichever receivers use it.
type Limit struct {
	// Messages in Per; for Slack 3 in 4s, for DingTalk 18 in 1m when empty. -1: no limit, for a chat that has none.
	Messages int           `yaml:"messages"`
	Per      time.Duration `yaml:"per"`
	// Reserve is how many of them are kept for critical alerts; a quarter when empty, -1 for none.
	Reserve int `yaml:"reserve"`
}

// Canary is a message that is sent on a schedule to prove that the receiver works.
type Canary struct {
	// Schedule is a cron line in the receiver's time zone; empty: no canary.
	Schedule string `yaml:"schedule"`
}

// TimeInterval is Alertmanager's of the same name: https://prometheus.io/docs/alerting/latest/configuration/#time_interval.
type TimeInterval struct {
	Name          string     `yaml:"name"`
	TimeIntervals []Blackout `yaml:"time_intervals"`
}

// Contains says whether one of the intervals contains a moment.
func (t TimeInterval) Contains(at time.Time) bool {
	for _, i := range t.TimeIntervals {
		if i.ContainsTime(in(at, i.TimeInterval)) {
			return true
		}
	}
	return false
}

// in is the moment in the interval's location; UTC when it names none, as in Alertmanager.
func in(at time.Time, i timeinterval.TimeInterval) time.Time {
	if i.Location != nil {
		return at.In(i.Location.Location)
	}
	return at.UTC()
}

// Route sends alerts whose labels match to a receiver, as Alertmanager's route does: the first child that matches takes
// the alert, and further ones only after a child with continue. Receiver, RepeatInterval and Mentions of a child that are
// empty are the parent's; time intervals are not inherited, as in Alertmanager.
type Route struct {
	Receiver string   `yaml:"receiver"`
	Matchers []string `yaml:"matchers"`
	Continue bool     `yaml:"continue"`
	Routes   []Route  `yaml:"routes"`
	// MuteTimeIntervals are when nothing is delivered by this route, and ActiveTimeIntervals when something is, if there are any.
	// What comes at another time waits, and is delivered afterwards if it still fires.
	MuteTimeIntervals   []string `yaml:"mute_time_intervals"`
	ActiveTimeIntervals []string `yaml:"active_time_intervals"`
	// RepeatInterval is how long an alert that has been told, and only fires on, is not told again; 1h when empty. Alertmanager
	// itself repeats after its own repeat_interval, so the longer one of the two counts.
	RepeatInterval time.Duration `yaml:"repeat_interval"`
	// Mentions are who is mentioned when an alert of a severity begins to fire: for Slack here, channel, everyone, a user's id
	// (U...) or a user group's (S...); for DingTalk all, a mobile number (+86-...), or user:<id>. The key "*" is for every other severity.
	Mentions map[string][]string `yaml:"mentions"`
}

// Runbooks says where the page of an alert is found, and what a rule without one is.
type Runbooks struct {
	// BaseURL is put before the alert's name in kebab case: LifeboatDrillFailed is BaseURL/lifeboat-drill-failed.
	BaseURL string `yaml:"base_url"`
	// Suffix is put after it: ".md" for pages in a repository.
	Suffix string `yaml:"suffix"`
	// PagesDir is a folder of markdown files with the same names: disk-full.md. The first steps of a page's TL;DR or Mitigation
	// are put into the message. An alert without a page there has none by the rule of BaseURL.
	PagesDir string `yaml:"pages_dir"`
	// CheckLinks asks for each link (once in a while), so that a dead one is said to be dead.
	CheckLinks bool `yaml:"check_links"`
	// AllowPrivate lets links lead to loopback and private addresses when they are asked for.
	AllowPrivate bool `yaml:"allow_private"`
	// TLS is for links at the host of BaseURL; other links are asked with the system's CAs and without a certificate.
	TLS TLS `yaml:"tls"`
	// Policy is what an alert without a runbook is, by severity: "error", "warning" or "ignore". The key "*" is for every other
	// severity; when that is missing too it is "error" for critical and page, else "warning".
	Policy map[string]string `yaml:"policy"`
	// TeamLabel is the label by which alerts without a runbook are counted; "team" when empty.
	TeamLabel string `yaml:"team_label"`
}

// Flapping folds an alert that changes too often into a message for each window.
type Flapping struct {
	// Changes between firing and resolved within Window; 4 when empty, -1 switches it off.
	Changes int `yaml:"changes"`
	// Window is 10m when empty.
	Window time.Duration `yaml:"window"`
}

// Interactions are what people do in a message: silence and acknowledge. They need alertmanager.urls.
type Interactions struct {
	// Listen is the address of the pages and of Slack's request URL; empty: there are none. It is not that of the webhooks, because
	// browsers and Slack have to reach it.
	Listen string `yaml:"listen"`
	// WebConfigFile is as notifier.web_config_file, for this address.
	WebConfigFile string `yaml:"web_config_file"`
	// ExternalURL is how people reach Listen; links are made with it.
	ExternalURL string `yaml:"external_url"`
	// LinkSecretFile signs links, at least 32 characters. All notifiers have the same.
	LinkSecretFile SecretFile `yaml:"link_secret_file"`
	// LinkTTL is how long a link may be used; 24h when empty.
	LinkTTL time.Duration `yaml:"link_ttl"`
	// SlackSigningSecretFile verifies what Slack posts to ExternalURL/slack/interactions.
	SlackSigningSecretFile SecretFile `yaml:"slack_signing_secret_file"`
	// SlackAppTokenFile is an app-level token ("xapp-...", connections:write) for Socket Mode, which needs no public address.
	SlackAppTokenFile SecretFile `yaml:"slack_app_token_file"`
	// SlackAPIURL is where Slack's Web API is; https://slack.com/api/ when empty.
	SlackAPIURL string `yaml:"slack_api_url"`
	// SlackTLS is for SlackAPIURL, and for what Slack names to answer to and to connect to.
	SlackTLS TLS `yaml:"slack_tls"`
	// AcknowledgeFor is how long an acknowledged group stays silent; 2h when empty.
	AcknowledgeFor time.Duration `yaml:"acknowledge_for"`
}

// Reconcile compares what Alertmanager says fires with what was delivered.
type Reconcile struct {
	// Interval is 5m when empty; a negative one (-1s) switches it off.
	Interval time.Duration `yaml:"interval"`
	// After is how long an alert must fire before it is missed; 10m when empty. It has to be longer than Alertmanager's group_wait
	// and group_interval together.
	After time.Duration `yaml:"after"`
	// Receivers are the names of Alertmanager's receivers that post to Lifeboat; empty: those that have posted.
	Receivers []string `yaml:"receivers"`
}

const (
	defaultListen         = "127.0.0.1:9095"
	defaultGiveUpAfter    = 24 * time.Hour
	defaultFallbackAfter  = 10 * time.Minute
	defaultFlaps          = 4
	defaultFlapWindow     = 10 * time.Minute
	defaultLinkTTL        = 24 * time.Hour
	defaultAcknowledge    = 2 * time.Hour
	defaultReconcile      = 5 * time.Minute
	defaultReconcileAfter = 10 * time.Minute
	defaultRepeat         = time.Hour
	defaultSlackAPI       = "https://slack.com/api/"
	defaultTeamLabel      = "team"
)

// usual sets a field that is empty to its default.
func usual[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

func (n *Notifier) setDefaults() {
	usual(&n.Listen, defaultListen)
	usual(&n.GiveUpAfter, defaultGiveUpAfter)
	usual(&n.Flapping.Changes, defaultFlaps)
	usual(&n.Flapping.Window, defaultFlapWindow)
	usual(&n.Interactions.LinkTTL, defaultLinkTTL)
	usual(&n.Interactions.AcknowledgeFor, defaultAcknowledge)
	usual(&n.Interactions.SlackAPIURL, defaultSlackAPI)
	usual(&n.Reconcile.Interval, defaultReconcile)
	usual(&n.Reconcile.After, defaultReconcileAfter)
	usual(&n.Route.RepeatInterval, defaultRepeat)
	usual(&n.Runbooks.TeamLabel, defaultTeamLabel)
	for i := range n.Receivers {
		n.Receivers[i].setDefaults()
	}
}

func (r *Receiver) setDefaults() {
	usual(&r.TimeZone, "UTC")
	usual(&r.Language, "en")
	usual(&r.FallbackAfter, defaultFallbackAfter)
	messages, per := r.usualLimit()
	if r.DingTalk != nil {
		usual(&r.DingTalk.Style, "markdown")
	}
	if r.Slack != nil {
		usual(&r.Slack.APIURL, defaultSlackAPI)
	}
	usual(&r.Limit.Messages, messages)
	usual(&r.Limit.Per, per)
	reserve := max(r.Limit.Messages/4, 1)
	if r.Limit.Messages <= 1 {
		reserve = -1 // of one nothing can be kept, and of no limit nothing needs to be
	}
	usual(&r.Limit.Reserve, reserve)
}

// usualLimit is a receiver's limit when it says none.
func (r *Receiver) usualLimit() (messages int, per time.Duration) {
	if r.DingTalk != nil {
		// 20 in any minute, and being blocked for ten minutes above that: what is on its way counts when it arrives.
		return 18, time.Minute
	}
	return 3, 4 * time.Second
}
