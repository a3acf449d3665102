package chattest

import (
	"encoding/json"
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"
	"unicode/utf16"
)

// Slack's limits (docs.slack.dev, Block Kit reference), in UTF-16 code units, which is what a browser counts.
const (
	slackMaxHeader  = 150
	slackMaxSection = 3000
	slackMaxField   = 2000
	slackMaxFields  = 10
	slackMaxContext = 10
	slackMaxBlocks  = 50
	slackMaxText    = 40_000
	slackMaxAll     = 13_200
)

type slackPayload struct {
	Text   string       `json:"text"`
	Blocks []slackBlock `json:"blocks"`
}

type slackBlock struct {
	Type     string      `json:"type"`
	Text     *slackText  `json:"text"`
	Fields   []slackText `json:"fields"`
	Elements []slackText `json:"elements"`
}

type slackText struct {
	Type string `json:"type"`
	Text string `json:"text"`
}

func (s *Server) serveSlack(w http.ResponseWriter, r *http.Request) {
	fault := s.arrive(Slack)
	if fault != nil && !fault.Accept {
		s.fail(w, r, fault)
		return
	}
	token, known := strings.CutPrefix(r.URL.Path, s.slackPath+"/")
	switch {
	case r.Method != http.MethodPost:
		answer(w, http.StatusMethodNotAllowed, "method_not_allowed")
		return
	case !known:
		answer(w, http.StatusNotFound, "no_service")
		return
	case token != s.slackToken:
		answer(w, http.StatusForbidden, "invalid_token")
		return
	}
	s.mu.Lock()
	wait := s.slack.take(s.opts.Now(), s.opts.SlackPerSecond, s.opts.SlackBurst)
	s.mu.Unlock()
	if wait > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(wait.Seconds()))))
		answer(w, http.StatusTooManyRequests, "rate_limited")
		return
	}
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
	if err != nil {
		answer(w, http.StatusBadRequest, "invalid_payload")
		return
	}
	p, problem := parseSlack(raw)
	if problem != "" {
		answer(w, http.StatusBadRequest, problem)
		return
	}
	s.accept(Message{Kind: Slack, Title: slackTitle(p), Text: slackAll(p), Raw: raw})
	if fault != nil {
		s.fail(w, r, fault)
		return
	}
	answer(w, http.StatusOK, "ok")
}

// CheckSlack returns Slack's word for what is wrong with a message's body, or nothing. It is for tests of an encoder.
func CheckSlack(raw []byte) string {
	_, problem := parseSlack(raw)
	return problem
}

func parseSlack(raw []byte) (p slackPayload, problem string) {
	if err := json.Unmarshal(raw, &p); err != nil {
		return p, "invalid_payload"
	}
	return p, checkSlack(p)
}

func units(s string) int { return len(utf16.Encode([]rune(s))) }

// checkSlack returns Slack's word for what is wrong with a message, or nothing.
func checkSlack(p slackPayload) string {
	if p.Text == "" && len(p.Blocks) == 0 {
		return "no_text"
	}
	if len(p.Blocks) > slackMaxBlocks || units(p.Text) > slackMaxText {
		return "invalid_blocks"
	}
	all := 0
	for _, b := range p.Blocks {
		size, ok := checkBlock(b)
		if !ok {
			return "invalid_blocks"
		}
		all += size
	}
	if all > slackMaxAll {
		return "msg_blocks_too_long"
	}
	return ""
}

func checkBlock(b slackBlock) (size int, ok bool) {
	fits := func(t slackText, limit int, types ...string) bool {
		known := t.Type == "plain_text"
		for _, name := range types {
			known = known || t.Type == name
		}
		size += units(t.Text)
		return known && t.Text != "" && units(t.Text) <= limit
	}
	switch b.Type {
	case "divider":
		return 0, true
	case "header":
		ok = b.Text != nil && fits(*b.Text, slackMaxHeader)
		return size, ok
	case "section":
		if b.Text == nil && len(b.Fields) == 0 || len(b.Fields) > slackMaxFields {
			return size, false
		}
		ok = b.Text == nil || fits(*b.Text, slackMaxSection, "mrkdwn")
		for _, f := range b.Fields {
			ok = fits(f, slackMaxField, "mrkdwn") && ok
		}
		return size, ok
	case "context":
		ok = len(b.Elements) > 0 && len(b.Elements) <= slackMaxContext
		for _, e := range b.Elements {
			ok = fits(e, slackMaxSection, "mrkdwn") && ok
		}
		return size, ok
	}
	return size, false
}

func slackTitle(p slackPayload) string {
	for _, b := range p.Blocks {
		if b.Type == "header" && b.Text != nil {
			return unescapeSlack(b.Text.Text)
		}
	}
	line, _, _ := strings.Cut(p.Text, "\n")
	return unescapeSlack(line)
}

func slackAll(p slackPayload) string {
	var parts []string
	for _, b := range p.Blocks {
		if b.Text != nil {
			parts = append(parts, b.Text.Text)
		}
		for _, t := range append(b.Fields, b.Elements...) {
			parts = append(parts, t.Text)
		}
	}
	if len(parts) == 0 {
		return p.Text
	}
	return strings.Join(parts, "\n")
}

func unescapeSlack(s string) string {
	return strings.NewReplacer("&lt;", "<", "&gt;", ">", "&amp;", "&").Replace(s)
}
