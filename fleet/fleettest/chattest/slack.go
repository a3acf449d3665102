package chattest

import (
	"fmt"
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// slackState is what Slack remembers. The server's lock guards it.
type slackState struct {
	byTS map[string]*Message
	// gone are deleted messages.
	gone       map[string]bool
	last       int64
	channels   map[string]string // id to the word that posts there are answered with, empty for a good one
	posts      map[string]*bucket
	updates    []time.Time
	ephemerals []Message
	url        string
}

func newSlackState(o Options) slackState {
	st := slackState{
		byTS: map[string]*Message{}, gone: map[string]bool{}, channels: map[string]string{}, posts: map[string]*bucket{},
		url: o.InteractionsURL,
	}
	for _, c := range o.Channels {
		st.channels[c] = ""
	}
	return st
}

// stamp makes a message's ts: its time in microseconds, and one more when another has that.
func (st *slackState) stamp(at time.Time) string {
	st.last = max(st.last+1, at.UnixMicro())
	return fmt.Sprintf("%d.%06d", st.last/1e6, st.last%1e6)
}

// throttle returns zero when a message may be posted into a channel, else how long until one may.
func (s *Server) throttle(channel string) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.opts.SlackPerSecond == unlimited {
		return 0
	}
	b := s.slack.posts[channel]
	if b == nil {
		b = &bucket{}
		s.slack.posts[channel] = b
	}
	return b.take(s.opts.Now(), s.opts.SlackPerSecond, s.opts.SlackBurst)
}

// webhookChannel is where the incoming webhook posts.
const webhookChannel = "C0WEBHOOK"

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
	if wait := s.throttle(webhookChannel); wait > 0 {
		retryAfter(w, wait)
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
	s.accept(slackMessage(p, raw, webhookChannel))
	if fault != nil {
		s.fail(w, r, fault)
		return
	}
	answer(w, http.StatusOK, "ok")
}

func retryAfter(w http.ResponseWriter, wait time.Duration) {
	w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(wait.Seconds()))))
}

func slackMessage(p slackPayload, raw []byte, channel string) Message {
	m := Message{Kind: Slack, Title: slackTitle(p), Text: slackAll(p), Raw: raw, Channel: channel}
	if len(p.Attachments) > 0 {
		m.Colour = p.Attachments[0].Color
	}
	return m
}
