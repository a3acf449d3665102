// Package dingtalk delivers notices to a DingTalk custom robot (钉钉自定义机器人).
package dingtalk

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
)

const (
	// blocked is how long DingTalk silences a robot that was too fast.
	blocked = 10 * time.Minute
	// parked is how long a delivery waits whose robot only a person can mend: the token, secret, keyword or group is
	// wrong. The URL and secret are read anew each time, so that mending them is enough.
	parked = 5 * time.Minute
)

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
}

// Sender delivers to one robot.
type Sender struct{ o Options }

// New makes a sender.
func New(o Options) *Sender { return &Sender{o} }

// errTooLong: the robot refuses the size, though it is within the documented limit.
var errTooLong = errors.New("DingTalk says that the message is too long")

// Key implements deliver.Sender.
func (s *Sender) Key() (string, error) {
	address, err := s.o.Address()
	if err != nil {
		return "", fmt.Errorf("reading the webhook's URL: %w", err)
	}
	sum := sha256.Sum256([]byte(address))
	return "dingtalk-" + hex.EncodeToString(sum[:8]), nil
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

// post delivers a notice. An error is bus.Terminal when no further attempt can help, bus.RetryAfter when the robot must
// be left alone for a while, and else worth another attempt soon.
func (s *Sender) post(ctx context.Context, n notice.Notice) error {
	var err error
	for _, most := range []int{maxBytes, maxBytes / 4} {
		if err = s.send(ctx, n, most); !errors.Is(err, errTooLong) {
			return err
		}
	}
	return bus.Terminal("dingtalk_too_long", err)
}

func (s *Sender) send(ctx context.Context, n notice.Notice, most int) error {
	body, err := Encode(n, most)
	if err != nil {
		return bus.Terminal("dingtalk_encode", err)
	}
	address, err := s.signed()
	if err != nil {
		return err
	}
	status, _, answer, err := s.o.Poster.Post(ctx, address.String(), body)
	if err != nil {
		return fmt.Errorf("sending to DingTalk: %w", err)
	}
	return classify(status, answer, address.Query())
}

// signed is the robot's address for one attempt (open.dingtalk.com, "customize robot security settings"): the signature
// is HMAC-SHA256 over the time in milliseconds, a newline and the secret, with the secret as the key.
func (s *Sender) signed() (*url.URL, error) {
	raw, err := s.o.Address()
	if err != nil {
		return nil, fmt.Errorf("reading the robot's URL: %w", err)
	}
	u, err := url.Parse(raw)
	if err != nil {
		return nil, errors.New("the robot's URL cannot be parsed")
	}
	if s.o.Secret == nil {
		return u, nil
	}
	secret, err := s.o.Secret()
	if err != nil {
		return nil, fmt.Errorf("reading the robot's secret: %w", err)
	}
	stamp := strconv.FormatInt(s.o.Now().UnixMilli(), 10)
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(stamp + "\n" + secret))
	q := u.Query()
	q.Set("timestamp", stamp)
	q.Set("sign", base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	u.RawQuery = q.Encode()
	return u, nil
}

// classify says what an answer means. Errors come with HTTP 200 and an errcode.
func classify(status int, answer []byte, secrets url.Values) error {
	var a struct {
		ErrCode *int   `json:"errcode"`
		ErrMsg  string `json:"errmsg"`
		// Throttling by DingTalk's gateway looks different.
		Status int    `json:"status"`
		Punish string `json:"punish"`
	}
	err := json.Unmarshal(answer, &a)
	switch {
	case status >= http.StatusInternalServerError, status == http.StatusRequestTimeout:
		return fmt.Errorf("DingTalk answered HTTP %d", status)
	case status == http.StatusTooManyRequests, a.Status == 1111, a.Punish != "":
		return bus.RetryAfter(blocked, fmt.Errorf("DingTalk throttles the robot (HTTP %d, status %d)", status, a.Status))
	case status != http.StatusOK:
		return bus.Terminal("dingtalk_http_"+strconv.Itoa(status), fmt.Errorf("DingTalk answered HTTP %d", status))
	case err != nil || a.ErrCode == nil:
		return errors.New("DingTalk answered something that is not its JSON")
	}
	return classifyCode(*a.ErrCode, redact(a.ErrMsg, secrets))
}

func classifyCode(code int, msg string) error {
	err := fmt.Errorf("DingTalk answered errcode %d: %s", code, msg)
	switch code {
	case 0:
		return nil
	case -1: // the system is busy
		return err
	case 130101, 410100: // too fast
		return bus.RetryAfter(blocked, err)
	case 460101, 101002: // too long
		return fmt.Errorf("%w: %w", errTooLong, err)
	case 310000, // keyword, signature, address or time
		300005, 400101, // no such token
		400102, 400013, 400106, // robot stopped, group gone, robot absent
		90030: // quota
		return bus.RetryAfter(parked, fmt.Errorf("the robot's settings need a person: %w", err))
	}
	return bus.Terminal("dingtalk_"+strconv.Itoa(code), err)
}

// redact keeps what the robot says short, and free of what we sent in the address, should it repeat that.
func redact(msg string, secrets url.Values) string {
	for _, values := range secrets {
		for _, v := range values {
			if len(v) > 4 {
				msg = strings.ReplaceAll(msg, v, "...")
			}
		}
	}
	return cut(line(msg), 200)
}
