package dingtalk

import (
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

// errTooLong: the robot refuses the size, though it is within the documented limit.
var errTooLong = errors.New("DingTalk says that the message is too long")

// classify says what an answer means. Errors come with HTTP 200 and an errcode (open.dingtalk.com, "custom robot access").
func classify(status int, answer []byte, redact func(string) string) error {
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
		return throttled(fmt.Errorf("DingTalk answered HTTP %d, status %d", status, a.Status))
	case status == http.StatusRequestEntityTooLarge:
		return fmt.Errorf("%w: it answered HTTP %d", errTooLong, status)
	case status >= http.StatusMultipleChoices && status != http.StatusBadRequest:
		return park(fmt.Errorf("DingTalk answered HTTP %d", status), "webhook_url_file holds an address that takes no messages")
	case status != http.StatusOK:
		return bus.Terminal("dingtalk_http_"+strconv.Itoa(status), fmt.Errorf("DingTalk answered HTTP %d", status))
	case err != nil || a.ErrCode == nil:
		return errors.New("DingTalk answered something that is not its JSON")
	}
	return classifyCode(*a.ErrCode, redact(a.ErrMsg))
}

func classifyCode(code int, msg string) error {
	err := fmt.Errorf("DingTalk answered errcode %d: %s", code, msg)
	switch code {
	case 0:
		return nil
	case -1: // the system is busy
		return err
	case 130101, 410100: // too fast
		return throttled(err)
	case 90030: // there is nothing to mend, and nothing to be gained by asking more often
		return bus.RetryAfter(blocked, fmt.Errorf("the quota of the robot is used up: %w", err))
	case 460101, 101002:
		return fmt.Errorf("%w: %w", errTooLong, err)
	case 310000:
		return park(err, security(msg))
	case 300005, 400101:
		return park(err, "the robot's access_token is not known to DingTalk (any more): put the robot's present address into webhook_url_file")
	case 400102:
		return park(err, "the robot was stopped: switch it on in the group's settings")
	case 400013:
		return park(err, "the robot's group is gone: make a robot in another one, and put its address into webhook_url_file")
	case 400106:
		return park(err, "the robot was taken out of its group: add it again, and put its address into webhook_url_file")
	}
	return bus.Terminal("dingtalk_"+strconv.Itoa(code), err)
}

// throttled leaves a robot alone that was too fast: whatever is sent meanwhile is refused, and may prolong it.
func throttled(err error) error {
	return bus.RetryAfter(blocked, fmt.Errorf("DingTalk throttles the robot: %w: %w", notice.ErrThrottled, err))
}

// park gives a delivery back until somebody has had the time to mend what todo says.
func park(err error, todo string) error {
	return bus.RetryAfter(parked, fmt.Errorf("the robot needs a person: %s: %w", todo, err))
}

// security tells errcode 310000 apart, which stands for all of a robot's security settings. Its text is "keywords not in
// content", "sign not match", "invalid timestamp", or in newer answers "description:机器人发送签名不匹配;solution:...", where the solution names
// other settings too.
func security(msg string) string {
	if _, rest, ok := strings.Cut(msg, "description:"); ok {
		msg, _, _ = strings.Cut(rest, ";solution:")
	}
	msg = strings.ToLower(msg)
	has := func(words ...string) bool {
		for _, w := range words {
			if strings.Contains(msg, w) {
				return true
			}
		}
		return false
	}
	switch {
	case has("keyword", "关键词", "关键字"):
		return "it takes only messages with its keyword: let it sign instead (加签), and put the secret into secret_file"
	case has("timestamp", "时间戳"):
		return "it finds the signature's time wrong: set this machine's clock, which may be off by an hour at most"
	case has("sign", "签名", "加签"):
		return "the signature does not match: secret_file does not hold this robot's secret (SEC...)"
	case has("ip", "白名单"):
		return "it takes messages only from listed addresses: add the notifiers' ones to its list, or let it sign instead (加签)"
	}
	return "its security settings refuse the message: let it sign (加签), and put the secret into secret_file"
}

// redactor keeps what the robot says short, and free of what it was sent in the address, should it repeat that.
func redactor(sent url.Values, secret string) func(string) string {
	return func(msg string) string {
		hide := func(v string) {
			if len(v) > 4 {
				msg = strings.NewReplacer(v, "...", url.QueryEscape(v), "...").Replace(msg)
			}
		}
		hide(secret)
		for _, values := range sent {
			for _, v := range values {
				hide(v)
			}
		}
		return cut(line(msg), 300)
	}
}
