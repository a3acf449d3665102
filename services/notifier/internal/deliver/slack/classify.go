package slack

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
)

const (
	// defaultPause is for a throttled request that does not say how long.
	defaultPause = 30 * time.Second
	// maxPause bounds what an answer can make us wait.
	maxPause = time.Hour
	// parked is how long a delivery waits that only a person can help. The secrets are read anew for each attempt, so that mending
	// them is enough; the fallback takes over meanwhile.
	parked = 5 * time.Minute
)

// errForm is in the error of a message whose form Slack does not take; the same may be said in a plainer one.
var errForm = errors.New("the form of the message was refused")

// refused is an answer that was no success: Slack's word for it, which is in the error. Callers ask for the word.
type refused struct {
	word string
	err  error
}

func (r *refused) Error() string { return r.err.Error() }
func (r *refused) Unwrap() error { return r.err }

// classify says what a webhook's answer means (docs.slack.dev, "Sending messages using incoming webhooks").
func classify(status int, header http.Header, answer []byte) error {
	word := errorWord(answer)
	if word == "" {
		if status >= http.StatusOK && status < http.StatusMultipleChoices {
			return nil
		}
		word = unknownWord // Slack says ok with 200 only
	}
	err := fmt.Errorf("Slack answered %d %s", status, word) //nolint:staticcheck // a name
	switch {
	case status == http.StatusTooManyRequests:
		return throttled(retryAfter(header), err)
	case status >= http.StatusInternalServerError, status == http.StatusRequestTimeout:
		if header.Get("Retry-After") != "" {
			return bus.RetryAfter(retryAfter(header), err)
		}
		return err
	case word == unknownWord && status == http.StatusRequestEntityTooLarge:
		return bus.Terminal("slack_413", fmt.Errorf("%w: %w", errForm, err)) // a proxy takes less than Slack does
	case word == unknownWord && status != http.StatusBadRequest:
		// Slack says a word, so this is somebody in between: a page to log in at, a proxy that refuses. It may be over soon. It may also
		// be about this message alone, as a filter's no is, and must not keep the others waiting: the chat is not left alone for it.
		return fmt.Errorf("this was not Slack: look at the proxy and at webhook_url_file: %w", err)
	}
	return judge(word, "slack_"+strconv.Itoa(status), header, err)
}

// judge says what Slack's word for an error means. What no word stands for is permanent, with the reason otherwise.
func judge(word, otherwise string, header http.Header, err error) error {
	switch {
	case slices.Contains([]string{"ratelimited", "rate_limited", "message_limit_exceeded"}, word):
		return throttled(retryAfter(header), err)
	// The first two may have half-succeeded: a message twice is better than none.
	case slices.Contains([]string{"internal_error", "fatal_error", "service_unavailable", "request_timeout", "rollup_error"}, word):
		return err
	case todo(word) != "":
		return bus.RetryAfter(parked, fmt.Errorf("it needs a person: %s: %w", todo(word), err))
	case isForm(word):
		return bus.Terminal("slack_"+word, fmt.Errorf("%w: %w", errForm, err))
	case word == unknownWord:
		return bus.Terminal(otherwise, err)
	}
	return bus.Terminal("slack_"+word, err)
}

func throttled(pause time.Duration, err error) error {
	return bus.RetryAfter(pause, fmt.Errorf("%w: %w", notice.ErrThrottled, err))
}

// isForm says whether a word means that the message's own form is wrong, or too large.
func isForm(word string) bool {
	return slices.Contains([]string{
		"msg_too_long", "msg_blocks_too_long", "invalid_blocks", "invalid_blocks_format", "invalid_attachments", "too_many_attachments",
		"invalid_payload", "invalid_arguments", "invalid_form_data", "no_text", "duplicate_block_ids",
		"missing_text_or_fallback_or_attachments", "markdown_text_conflict", "invalid_metadata_format",
	}, word)
}

// todo is what a person can do about an error, so that the same delivery succeeds afterwards; empty where that is nothing. A revoked
// webhook is one of these although Slack will never take that request: after the file was mended the next attempt is another
// request. A channel that was archived or is not there is not: Slack documents these as permanent, and nothing in a file mends them.
func todo(word string) string {
	switch word {
	case "invalid_token", "no_service", "no_active_hooks", "no_team", "no_service_id", "team_disabled":
		return "the webhook was revoked or switched off: put the URL of a new one into webhook_url_file"
	case "token_revoked", "token_expired", "invalid_auth", "account_inactive", "not_authed", "not_allowed_token_type":
		return "the bot's token is not good (any more): put the present one into bot_token_file"
	case "missing_scope", "no_permission", "access_denied", "team_access_not_granted":
		return "the bot lacks a permission: give the app the scope chat:write, and install it again"
	case "not_in_channel":
		return "the bot is not in the channel: invite it (/invite)"
	case "accesslimited", "ekm_access_denied", "enterprise_is_restricted", "org_login_required", "team_added_to_org",
		"two_factor_setup_required":
		return "the workspace does not let the bot in at present: ask its administrators"
	}
	return ""
}

// unknownWord stands for an answer that is not one of Slack's words.
const unknownWord = "with no known error word"

// errorWord is Slack's word for what is wrong; empty for success. Anything that is not such a word, as a proxy's page, is
// not repeated: it may hold the address.
func errorWord(answer []byte) string {
	var api struct {
		OK    *bool  `json:"ok"`
		Error string `json:"error"`
	}
	word := string(answer)
	if err := json.Unmarshal(answer, &api); err == nil && api.OK != nil {
		if *api.OK {
			return ""
		}
		word = api.Error
	}
	if word == "ok" {
		return ""
	}
	return known(word)
}

// known returns a word that Slack could have said, or that it is none.
func known(word string) string {
	if !regexp.MustCompile(`^[a-z][a-z0-9_]{0,60}$`).MatchString(word) {
		return unknownWord
	}
	return word
}

func retryAfter(header http.Header) time.Duration {
	s, err := strconv.Atoi(header.Get("Retry-After"))
	if err != nil || s < 0 {
		return defaultPause
	}
	return bounded(time.Duration(s) * time.Second)
}

func bounded(d time.Duration) time.Duration { return min(max(d, time.Second), maxPause) }
