// Package dingtalk delivers notices to a DingTalk custom robot (钉钉自定义机器人).
//
// A message is markdown, or with the style action_card a card with buttons for the runbook and for silencing. A card cannot
// mention anybody, so a notice with mentions is always markdown, which shows the same as links: that it rings the right phone
// matters more than the buttons. A card without a button does not exist; such a notice is markdown too.
package dingtalk

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
)

// StyleActionCard is the style of a message with buttons; any other one is markdown.
const StyleActionCard = "action_card"

// Poster sends a JSON body to an address that is a secret. Its errors are worth another attempt and do not hold the
// address.
type Poster interface {
	Post(ctx context.Context, address string, body []byte) (status int, header http.Header, answer []byte, err error)
}

// Options of a Sender.
type Options struct {
	// Address and Secret are asked before each attempt. Secret is nil for a robot that does not sign.
	Address func() (string, error)
	Secret  func() (string, error)
	Poster  Poster
	Now     func() time.Time
	// Style is "markdown" (also when empty) or StyleActionCard.
	Style string
}

// Sender delivers to one robot.
type Sender struct{ o Options }

// New makes a sender.
func New(o Options) *Sender { return &Sender{o} }

// Key implements deliver.Sender. It is a hash of the access_token, which is the robot; of the whole address when that has none.
func (s *Sender) Key() (string, error) {
	u, err := s.address()
	if err != nil {
		return "", err
	}
	robot := u.Query().Get("access_token")
	if robot == "" {
		robot = u.String()
	}
	sum := sha256.Sum256([]byte(robot))
	return "dingtalk-" + hex.EncodeToString(sum[:8]), nil
}

// Split implements deliver.Sender: at most three messages of 20,000 bytes, and what does not fit is counted in the last one.
func (s *Sender) Split(n notice.Notice) []notice.Notice { return s.split(n, maxBytes) }

// Send implements deliver.Sender. A message that the robot finds too long, though it is within the limit, is halved once; a later
// attempt sends both halves again. There is no Ref: what a robot has sent cannot be changed.
func (s *Sender) Send(ctx context.Context, n notice.Notice, before notice.Ref, take notice.Take) (notice.Ref, error) {
	if n.Quiet { // it is of a Slack bot that this receiver was
		return before, nil
	}
	body, err := s.encode(n, maxBytes)
	if err != nil {
		return notice.Ref{}, bus.Terminal("dingtalk_encode", err)
	}
	err = s.post(ctx, body, take)
	if !errors.Is(err, errTooLong) {
		return notice.Ref{}, err
	}
	half := max(len(body)/2, leastBytes)
	for _, part := range s.split(n, half) {
		if body, err = s.encode(part, half); err != nil {
			return notice.Ref{}, bus.Terminal("dingtalk_encode", err)
		}
		if err = s.post(ctx, body, take); errors.Is(err, errTooLong) {
			return notice.Ref{}, bus.Terminal("dingtalk_too_long", err)
		} else if err != nil {
			return notice.Ref{}, err
		}
	}
	return notice.Ref{}, nil
}

func (s *Sender) post(ctx context.Context, body []byte, take notice.Take) error {
	if err := take(ctx, notice.Post); err != nil {
		return err
	}
	address, redact, err := s.signed()
	if err != nil {
		return err
	}
	status, _, answer, err := s.o.Poster.Post(ctx, address, body)
	if err != nil {
		return fmt.Errorf("sending to DingTalk: %w", err)
	}
	return classify(status, answer, redact)
}

// address is the robot's, without a signature.
func (s *Sender) address() (*url.URL, error) {
	raw, err := s.o.Address()
	if err != nil {
		return nil, fmt.Errorf("reading the robot's URL: %w", err)
	}
	u, err := url.Parse(raw)
	if err != nil {
		return nil, errors.New("the robot's URL cannot be parsed")
	}
	return u, nil
}

// signed is the robot's address for one attempt (open.dingtalk.com, "customize robot security settings"): the signature
// is HMAC-SHA256 over the time in milliseconds, a newline and the secret, with the secret as the key. redact takes all of that
// out of a text.
func (s *Sender) signed() (address string, redact func(string) string, err error) {
	u, err := s.address()
	if err != nil {
		return "", nil, err
	}
	q := u.Query()
	if s.o.Secret == nil {
		return u.String(), redactor(q, ""), nil
	}
	secret, err := s.o.Secret()
	if err != nil {
		return "", nil, fmt.Errorf("reading the robot's secret: %w", err)
	}
	stamp := strconv.FormatInt(s.o.Now().UnixMilli(), 10)
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(stamp + "\n" + secret))
	q.Set("timestamp", stamp)
	q.Set("sign", base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	u.RawQuery = q.Encode()
	return u.String(), redactor(q, secret), nil
}
