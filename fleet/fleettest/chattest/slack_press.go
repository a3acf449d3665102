package chattest

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// pressTimeout is how long Slack waits for an answer to an interaction.
const pressTimeout = 3 * time.Second

// reply is what a response_url may do.
type reply struct {
	channel, ts, user string
	expires           time.Time
	left              int
}

// SlackUserID is the id of a person who presses a button.
func SlackUserID(user string) string {
	sum := sha256.Sum256([]byte(user))
	return "U" + strings.ToUpper(hex.EncodeToString(sum[:5]))
}

// SetInteractionsURL sets the app's request URL.
func (s *Server) SetInteractionsURL(address string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.slack.url = address
}

// Press presses a button of a message as a person does, and returns when the app has answered: over a Socket Mode connection
// if one is open, else at the request URL. An app that does not answer well within 3 s is an error; a person would see that
// it did not work.
func (s *Server) Press(ctx context.Context, user, messageTS, actionID string) error {
	payload, err := s.Interaction(user, messageTS, actionID)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, pressTimeout)
	defer cancel()
	sent, err := s.sendSocket(ctx, payload)
	if sent || err != nil {
		return err
	}
	s.mu.Lock()
	address := s.slack.url
	s.mu.Unlock()
	if address == "" {
		return errors.New("the app has neither a Socket Mode connection nor a request URL")
	}
	body := []byte(url.Values{"payload": {string(payload)}}.Encode())
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, address, strings.NewReader(string(body)))
	if err != nil {
		return fmt.Errorf("asking the request URL: %w", err)
	}
	req.Header = s.SignSlack(body, time.Now())
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("asking the request URL: %w", err)
	}
	defer resp.Body.Close()
	answered, err := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
	if err != nil {
		return fmt.Errorf("reading the request URL's answer: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the request URL answered %s: %s", resp.Status, answered)
	}
	return nil
}

// SignSlack makes the header of a request with a form body to the request URL, as Slack signs it at a time
// (https://docs.slack.dev/authentication/verifying-requests-from-slack).
func (s *Server) SignSlack(body []byte, at time.Time) http.Header {
	stamp := strconv.FormatInt(at.Unix(), 10)
	mac := hmac.New(sha256.New, []byte(s.slackApp.signingSecret))
	mac.Write([]byte("v0:" + stamp + ":"))
	mac.Write(body)
	h := http.Header{}
	h.Set("Content-Type", "application/x-www-form-urlencoded")
	h.Set("X-Slack-Request-Timestamp", stamp)
	h.Set("X-Slack-Signature", "v0="+hex.EncodeToString(mac.Sum(nil)))
	return h
}

// Interaction is the block_actions payload of a press (https://docs.slack.dev/reference/interaction-payloads/block_actions-payload).
func (s *Server) Interaction(user, messageTS, actionID string) ([]byte, error) {
	s.mu.Lock()
	kept := s.slack.byTS[messageTS]
	var m Message
	if kept != nil {
		m = *kept
	}
	now := s.opts.Now()
	s.mu.Unlock()
	if kept == nil {
		return nil, fmt.Errorf("no message has the ts %q", messageTS)
	}
	button, blockID, err := findButton(m, actionID)
	if err != nil {
		return nil, err
	}
	id := rand.Text()
	s.slackApp.mu.Lock()
	s.slackApp.replies[id] = reply{channel: m.Channel, ts: m.TS, user: SlackUserID(user), expires: now.Add(30 * time.Minute), left: 5}
	s.slackApp.mu.Unlock()
	action := map[string]any{
		"type": "button", "action_id": button.ActionID, "block_id": blockID, "action_ts": fmt.Sprintf("%d.000001", now.Unix()),
		"text": map[string]any{"type": button.Text.Type, "text": button.Text.Text},
	}
	if button.Value != "" {
		action["value"] = button.Value
	}
	return json.Marshal(map[string]any{
		"type": "block_actions", "api_app_id": "A0LIFEBOAT", "token": "legacy-verification-token",
		"user": map[string]any{"id": SlackUserID(user), "username": user, "name": user, "team_id": "T0LIFEBOAT"},
		"team": map[string]any{"id": "T0LIFEBOAT", "domain": "lifeboat"}, "enterprise": nil, "is_enterprise_install": false,
		"channel": map[string]any{"id": m.Channel, "name": "alerts"},
		"container": map[string]any{
			"type": "message", "message_ts": m.TS, "channel_id": m.Channel, "is_ephemeral": false,
		},
		"message": messageJSON(m), "state": map[string]any{"values": map[string]any{}},
		"trigger_id":   strconv.FormatInt(now.UnixNano(), 10) + ".1." + strings.ToLower(rand.Text()),
		"response_url": "http://" + s.addr + "/response/" + id, "actions": []any{action},
	})
}

func findButton(m Message, actionID string) (button slackElement, blockID string, err error) {
	var p slackPayload
	if err := json.Unmarshal(m.Raw, &p); err != nil {
		return button, "", fmt.Errorf("reading message %s: %w", m.TS, err)
	}
	for _, b := range slackBlocks(p) {
		for _, e := range b.Elements {
			if e.Type == "button" && e.ActionID == actionID {
				return e, b.BlockID, nil
			}
		}
	}
	return button, "", fmt.Errorf("message %s has no button %q", m.TS, actionID)
}

// serveResponse is a response_url: five answers within half an hour, which replace the message or are seen by the person alone.
func (s *Server) serveResponse(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	s.slackApp.mu.Lock()
	to, known := s.slackApp.replies[id]
	usable := known && to.left > 0 && s.opts.Now().Before(to.expires)
	to.left--
	if usable {
		s.slackApp.replies[id] = to
	}
	s.slackApp.mu.Unlock()
	if !usable {
		answer(w, http.StatusNotFound, "used_url")
		return
	}
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
	p, problem := parseSlack(raw)
	var how struct {
		Type    string `json:"response_type"`
		Replace bool   `json:"replace_original"`
	}
	if err != nil || json.Unmarshal(raw, &how) != nil {
		problem = "invalid_payload"
	}
	if problem != "" {
		answer(w, http.StatusBadRequest, problem)
		return
	}
	m := slackMessage(p, raw, to.channel)
	switch {
	case how.Replace:
		m.Channel = "" // a response_url may replace what chat.update may not
		_, problem = s.edit(to.ts, m)
	case how.Type == "in_channel":
		s.accept(m)
	default:
		m.User = to.user
		s.whisper(m)
	}
	if problem != "" {
		answer(w, http.StatusNotFound, problem)
		return
	}
	answer(w, http.StatusOK, "ok")
}
