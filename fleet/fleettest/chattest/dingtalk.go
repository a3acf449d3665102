package chattest

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// DingTalk's limits (open.dingtalk.com, custom robots).
const (
	dingTalkMaxBytes = 20_000
	dingTalkMaxSkew  = time.Hour
)

type dingTalkPayload struct {
	MsgType string `json:"msgtype"`
	Text    struct {
		Content string `json:"content"`
	} `json:"text"`
	Markdown struct {
		Title string `json:"title"`
		Text  string `json:"text"`
	} `json:"markdown"`
	ActionCard struct {
		Title string `json:"title"`
		Text  string `json:"text"`
		Btns  []struct {
			Title     string `json:"title"`
			ActionURL string `json:"actionURL"`
		} `json:"btns"`
	} `json:"actionCard"`
}

// serveDingTalk answers as the robot does: always with 200, and the error in the body.
func (s *Server) serveDingTalk(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	fault := s.arrive(DingTalk)
	if fault != nil && !fault.Accept {
		s.fail(w, r, fault)
		return
	}
	refuse := func(code int, msg string) { answer(w, http.StatusOK, dingTalkBody(code, msg)) }
	q := r.URL.Query()
	switch {
	case r.Method != http.MethodPost:
		refuse(43002, "require POST method")
		return
	case q.Get("access_token") != s.dingTalkToken:
		refuse(300005, "token is not exist")
		return
	case !s.signed(q):
		refuse(310000, "sign not match")
		return
	}
	s.mu.Lock()
	pass := s.dingTalk.take(s.opts.Now(), s.opts.DingTalkPerMinute, s.opts.DingTalkBlock)
	s.mu.Unlock()
	if !pass {
		refuse(130101, "send too fast, exceed 20 times per minute")
		return
	}
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
	m, code := parseDingTalk(raw)
	if err != nil {
		code = codeTooLong
	}
	if code != 0 {
		refuse(code, map[int]string{codeTooLong: "message too long, exceed 20000 bytes", codeBadParams: "invalid parameters"}[code])
		return
	}
	s.accept(m)
	if fault != nil {
		s.fail(w, r, fault)
		return
	}
	refuse(0, "ok")
}

func (s *Server) signed(q url.Values) bool {
	stamp, err := strconv.ParseInt(q.Get("timestamp"), 10, 64)
	if err != nil {
		return false
	}
	if skew := s.opts.Now().Sub(time.UnixMilli(stamp)).Abs(); skew > dingTalkMaxSkew {
		return false
	}
	mac := hmac.New(sha256.New, []byte(s.dingTalkSecret))
	mac.Write([]byte(q.Get("timestamp") + "\n" + s.dingTalkSecret))
	want := base64.StdEncoding.EncodeToString(mac.Sum(nil))
	return hmac.Equal([]byte(want), []byte(q.Get("sign")))
}

// Error codes of a message's body.
const (
	codeTooLong   = 460101
	codeBadParams = 40035
)

// CheckDingTalk returns the robot's errcode for a message's body, 0 for a good one. It is for tests of an encoder.
func CheckDingTalk(raw []byte) int {
	_, code := parseDingTalk(raw)
	return code
}

func parseDingTalk(raw []byte) (m Message, code int) {
	if len(raw) > dingTalkMaxBytes {
		return m, codeTooLong
	}
	var p dingTalkPayload
	if err := json.Unmarshal(raw, &p); err != nil {
		return m, codeBadParams
	}
	m = Message{Kind: DingTalk, Raw: raw}
	switch p.MsgType {
	case "text":
		m.Title, _, _ = strings.Cut(p.Text.Content, "\n")
		m.Text = p.Text.Content
	case "markdown":
		m.Title, m.Text = p.Markdown.Title, p.Markdown.Text
	case "actionCard":
		m.Title, m.Text = p.ActionCard.Title, p.ActionCard.Text
		for _, b := range p.ActionCard.Btns {
			m.Text += "\n\n[" + b.Title + "](" + b.ActionURL + ")"
		}
	}
	if m.Title == "" || m.Text == "" {
		return m, codeBadParams
	}
	return m, 0
}
