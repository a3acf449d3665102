// Package slack delivers notices to a Slack incoming webhook.
package slack

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
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
)

// Poster sends a JSON body to an address that is a secret. Its errors are worth another attempt and do not hold the
// address.
type Poster interface {
	Post(ctx context.Context, address string, body []byte) (status int, header http.Header, answer []byte, err error)
}

// Sender delivers to one webhook.
type Sender struct {
	address func() (string, error)
	poster  Poster
}

// New makes a sender. address is asked before each attempt, so that the webhook may be changed.
func New(address func() (string, error), poster Poster) *Sender {
	return &Sender{address: address, poster: poster}
}

// Key implements deliver.Sender.
func (s *Sender) Key() (string, error) {
	address, err := s.address()
	if err != nil {
		return "", fmt.Errorf("reading the webhook's URL: %w", err)
	}
	sum := sha256.Sum256([]byte(address))
	return "slack-" + hex.EncodeToString(sum[:8]), nil
}

// Split implements deliver.Sender.
func (s *Sender) Split(n notice.Notice) []notice.Notice { return []notice.Notice{n} }

// Send implements deliver.Sender.
func (s *Sender) Send(ctx context.Context, n notice.Notice, _ notice.Ref, take notice.Take) (notice.Ref, error) {
	if err := take(ctx, notice.Post); err != nil {
		return notice.Ref{}, err
	}
	return notice.Ref{}, s.post(ctx, n)
}

// post delivers a notice. An error is bus.Terminal when no further attempt can help, bus.RetryAfter when Slack said how
// long to wait, and else worth another attempt soon.
func (s *Sender) post(ctx context.Context, n notice.Notice) error {
	body, err := Encode(n)
	if err != nil {
		return bus.Terminal("slack_encode", err)
	}
	address, err := s.address()
	if err != nil {
		return fmt.Errorf("reading the webhook's URL: %w", err)
	}
	status, header, answer, err := s.poster.Post(ctx, address, body)
	if err != nil {
		return fmt.Errorf("sending to Slack: %w", err)
	}
	return classify(status, header, answer)
}

// classify says what an answer means (docs.slack.dev, "Sending messages using incoming webhooks").
func classify(status int, header http.Header, answer []byte) error {
	word := errorWord(answer)
	if status == http.StatusOK && word == "" {
		return nil
	}
	err := fmt.Errorf("slack answered %d %s", status, word)
	switch {
	case status == http.StatusTooManyRequests, word == "ratelimited", word == "rate_limited":
		return bus.RetryAfter(pause(header), err)
	case status >= http.StatusInternalServerError, status == http.StatusRequestTimeout,
		word == "internal_error", word == "fatal_error":
		return err
	}
	return bus.Terminal("slack_"+strconv.Itoa(status), err)
}

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
	if !regexp.MustCompile(`^[a-z][a-z0-9_]{0,60}$`).MatchString(word) {
		return "with no known error word"
	}
	return word
}

func pause(header http.Header) time.Duration {
	s, err := strconv.Atoi(header.Get("Retry-After"))
	if err != nil || s < 0 {
		return defaultPause
	}
	return min(max(time.Duration(s)*time.Second, time.Second), maxPause)
}
