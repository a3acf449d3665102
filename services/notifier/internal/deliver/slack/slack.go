// Package slack delivers notices to Slack, by an incoming webhook or as a bot.
//
// A webhook can only post. A bot (scope chat:write) keeps one message for each group of alerts: it is posted when the group begins,
// and edited as the group changes, so that the channel shows what is red now; the thread below it says what changed when, with
// everything that is known. An edit notifies nobody, so what begins to fire in a group that has a message, or is repeated, is shown in
// the channel as well, by a reply that is broadcast. Where a channel takes no replies it is posted as the group's new message, and the
// one before says that it goes on there.
package slack

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
)

// Poster sends a JSON body to an address that is a secret. Its errors are worth another attempt and do not hold the
// address.
type Poster interface {
	Post(ctx context.Context, address string, body []byte) (status int, header http.Header, answer []byte, err error)
}

// Options of a Sender. Either WebhookURL with Poster is set, or BotToken with Channel.
type Options struct {
	// Receiver is the receiver's name. A button's value holds it, so that who presses it can be traced back.
	Receiver string
	// WebhookURL and BotToken are asked before each attempt, so that the secret may be changed.
	WebhookURL func() (string, error)
	BotToken   func() (string, error)
	// Channel that the bot posts into, by id.
	Channel string
	// APIURL is where the Web API is; https://slack.com/api/ when empty.
	APIURL string
	Poster Poster
	// HTTP is the bot's client; one that keeps no connections when nil. Redirects are not followed.
	HTTP *http.Client
	// Now is the clock; time.Now when nil.
	Now func() time.Time
}

// Sender delivers to one webhook or channel. It is safe for concurrent use.
type Sender struct {
	o    Options
	http *http.Client
}

// New makes a sender.
func New(o Options) *Sender {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.APIURL == "" {
		o.APIURL = defaultAPI
	}
	return &Sender{o: o, http: guarded(o.HTTP)}
}

// Key implements deliver.Sender. What Slack limits is the channel; a webhook stands for its own.
func (s *Sender) Key() (string, error) {
	secret, where, err := s.secret()
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256([]byte(secret))
	if where != "" {
		sum = sha256.Sum256([]byte(hex.EncodeToString(sum[:]) + "\n" + where))
	}
	return "slack-" + hex.EncodeToString(sum[:8]), nil
}

// secret is the webhook's URL, or the bot's token and where it posts.
func (s *Sender) secret() (secret, where string, err error) {
	switch {
	case s.o.WebhookURL != nil:
		if secret, err = s.o.WebhookURL(); err != nil {
			return "", "", fmt.Errorf("reading the webhook's URL: %w", err)
		}
		return secret, "", nil
	case s.o.BotToken != nil:
		if secret, err = s.o.BotToken(); err != nil {
			return "", "", fmt.Errorf("reading the bot's token: %w", err)
		}
		return secret, s.o.Channel, nil
	}
	return "", "", errors.New("the receiver has neither a webhook nor a bot")
}

// Send implements deliver.Sender.
func (s *Sender) Send(ctx context.Context, n notice.Notice, before notice.Ref, take notice.Take) (notice.Ref, error) {
	if s.o.BotToken != nil && s.o.WebhookURL == nil {
		return s.sendBot(ctx, n, before, take)
	}
	if n.Quiet { // what a webhook has posted cannot be changed: the group's message is of the bot that this receiver was
		return before, nil
	}
	return notice.Ref{}, s.sendWebhook(ctx, n, take)
}

// sendWebhook posts a notice. When Slack does not take its form, it posts a plain one of the same.
func (s *Sender) sendWebhook(ctx context.Context, n notice.Notice, take notice.Take) error {
	err := s.post(ctx, compose(n, s.o.Receiver), take)
	if !errors.Is(err, errForm) {
		return err
	}
	if again := s.post(ctx, plainForm(n), take); again != nil {
		return fmt.Errorf("%w (first, in its full form: %w)", again, err)
	}
	return nil
}

func (s *Sender) post(ctx context.Context, m message, take notice.Take) error {
	if err := take(ctx, notice.Post); err != nil {
		return err
	}
	body, err := m.encode()
	if err != nil {
		return bus.Terminal("slack_encode", err)
	}
	address, _, err := s.secret()
	if err != nil {
		return err
	}
	status, header, answer, err := s.o.Poster.Post(ctx, address, body)
	if err != nil {
		return fmt.Errorf("sending to Slack: %w", err)
	}
	return classify(status, header, answer)
}
