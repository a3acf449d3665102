package chattest

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// DingTalk's limits (open.dingtalk.com, custom robots).
const (
	dingTalkMaxBytes = 20_000
	dingTalkMaxSkew  = time.Hour
)

// dingTalkMaxButtons is ours: DingTalk names no limit, and its clients do not show many.
const dingTalkMaxButtons = 5

type dingTalkPayload struct {
	MsgType string `json:"msgtype"`
	Text    struct {
		Content string `json:"content"`
	} `json:"text"`
	Markdown struct {
		Title string `json:"title"`
		Text  string `json:"text"`
	} `json:"markdown"`
	ActionCard dingTalkCard `json:"actionCard"`
	At         dingTalkAt   `json:"at"`
}

type dingTalkCard struct {
	Title       string           `json:"title"`
	Text        string           `json:"text"`
	SingleTitle string           `json:"singleTitle"`
	SingleURL   string           `json:"singleURL"`
	Btns        []DingTalkButton `json:"btns"`
}

type dingTalkAt struct {
	Mobiles []string `json:"atMobiles"`
	Users   []string `json:"atUserIds"`
	All     bool     `json:"isAtAll"`
}

// DingTalkButton is one of an actionCard's.
type DingTalkButton struct {
	Title     string `json:"title"`
	ActionURL string `json:"actionURL"`
}

// Buttons of a message from DingTalk; none for one that is not an actionCard.
func (m Message) Buttons() []DingTalkButton {
	p := m.dingTalk()
	if p.MsgType != "actionCard" {
		return nil
	}
	return p.ActionCard.buttons()
}

// Mentioned are those whose telephones a message from DingTalk rings: "all", mobile numbers and users' ids. One who does not stand in
// the text as well is not mentioned, and an actionCard mentions nobody.
func (m Message) Mentioned() []string {
	p := m.dingTalk()
	var out []string
	if p.MsgType == "actionCard" {
		return nil
	}
	if p.At.All {
		out = append(out, "all")
	}
	for _, id := range append(slices.Clone(p.At.Mobiles), p.At.Users...) {
		if p.mentions(id) {
			out = append(out, id)
		}
	}
	return out
}

// Problems of a message that DingTalk accepted though it does not do what its sender meant: a mention that rings nobody.
func (m Message) Problems() []string {
	p := m.dingTalk()
	var out []string
	if p.MsgType == "actionCard" && (p.At.All || len(p.At.Mobiles)+len(p.At.Users) > 0) {
		return []string{"an actionCard mentions nobody"}
	}
	for _, id := range append(slices.Clone(p.At.Mobiles), p.At.Users...) {
		if !p.mentions(id) {
			out = append(out, "@"+id+" is in at but not in the text, so nobody is mentioned")
		}
	}
	return out
}

func (m Message) dingTalk() (p dingTalkPayload) {
	if m.Kind != DingTalk || json.Unmarshal(m.Raw, &p) != nil {
		return dingTalkPayload{}
	}
	return p
}

// mentions says whether the text has the name as a word.
func (p dingTalkPayload) mentions(id string) bool {
	word := regexp.MustCompile("@" + regexp.QuoteMeta(id) + `($|[^\pL\pN])`)
	return id != "" && word.MatchString(p.Text.Content+p.Markdown.Text)
}

func (c dingTalkCard) buttons() []DingTalkButton {
	if c.SingleTitle != "" || c.SingleURL != "" {
		return []DingTalkButton{{c.SingleTitle, c.SingleURL}}
	}
	return c.Btns
}

// ok says whether the card has buttons, and each of them a title and a page.
func (c dingTalkCard) ok() bool {
	all := c.buttons()
	for _, b := range all {
		u, err := url.Parse(b.ActionURL)
		if err != nil || b.Title == "" || !slices.Contains([]string{"http", "https", "dingtalk"}, u.Scheme) || u.Host == "" {
			return false
		}
	}
	return len(all) > 0 && len(all) <= dingTalkMaxButtons
}

// DingTalkError is the robot's answer with an errcode, in the words that it uses.
func DingTalkError(code int) Fault {
	msg := map[int]string{
		-1: "system busy", 130101: "send too fast, exceed 20 times per minute", 410100: "send too fast", 90030: "quota exceeded",
		310000: "sign not match", 300005: "token is not exist", 400101: "access_token not exist", 400102: "robot stopped",
		400013: "group disbanded", 400106: "robot not exist", 40035: "invalid parameters", 43004: "invalid HTTP content-type",
		400105: "unsupported msgtype", 400403: "illegal content", 460101: "message too long, exceed 20000 bytes", 101002: "message too long",
	}[code]
	return Fault{ErrCode: code, ErrMsg: msg}
}

// DingTalkThrottled is the answer of DingTalk's gateway, which has another form than the robot's.
func DingTalkThrottled() Fault { return Fault{Body: `{"punish":"deny","wait":600,"status":1111}`} }

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
	}
	if wrong := s.unsigned(q); wrong != "" {
		refuse(310000, wrong)
		return
	}
	if !s.pass() {
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

// pass counts a message against the robot's limit.
func (s *Server) pass() bool {
	if s.opts.DingTalkPerMinute >= unlimited {
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dingTalk.take(s.opts.Now(), s.opts.DingTalkPerMinute, s.opts.DingTalkBlock)
}

// unsigned is the robot's word for what is wrong with a signature, or nothing.
func (s *Server) unsigned(q url.Values) string {
	stamp, err := strconv.ParseInt(q.Get("timestamp"), 10, 64)
	if err != nil {
		return "sign not match"
	}
	if skew := s.opts.Now().Sub(time.UnixMilli(stamp)).Abs(); skew > dingTalkMaxSkew {
		return "invalid timestamp"
	}
	mac := hmac.New(sha256.New, []byte(s.dingTalkSecret))
	mac.Write([]byte(q.Get("timestamp") + "\n" + s.dingTalkSecret))
	want := base64.StdEncoding.EncodeToString(mac.Sum(nil))
	if !hmac.Equal([]byte(want), []byte(q.Get("sign"))) {
		return "sign not match"
	}
	return ""
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
		if m.Title, m.Text = p.ActionCard.Title, p.ActionCard.Text; !p.ActionCard.ok() || m.Text == "" {
			return m, codeBadParams
		}
		for _, b := range p.ActionCard.buttons() {
			m.Text += "\n\n[" + b.Title + "](" + b.ActionURL + ")"
		}
	}
	if m.Title == "" || m.Text == "" {
		return m, codeBadParams
	}
	return m, 0
}
