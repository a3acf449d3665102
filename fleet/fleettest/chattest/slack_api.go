package chattest

import (
	"crypto/rand"
	"encoding/json"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
)

// slackApp is the app whose bot the fleet is: its credentials and its Socket Mode connections.
type slackApp struct {
	appToken, signingSecret, channel string

	// running are the connections that have not ended.
	running sync.WaitGroup

	mu sync.Mutex
	// bot maps tokens to the word that they are answered with, empty for a good one.
	bot     map[string]string
	current string
	tickets map[string]bool
	sockets []*socket
	waiting map[string]chan struct{} // by envelope id
	replies map[string]reply         // by the secret part of the response_url
}

func newSlackApp() *slackApp {
	bot := newBotToken()
	return &slackApp{
		appToken: "xapp-1-A0LIFEBOAT-1-" + strings.ToLower(rand.Text()), signingSecret: strings.ToLower(rand.Text()),
		channel: "C0" + rand.Text()[:9], bot: map[string]string{bot: ""}, current: bot,
		tickets: map[string]bool{}, waiting: map[string]chan struct{}{}, replies: map[string]reply{},
	}
}

func newBotToken() string { return "xoxb-1-1-" + rand.Text() }

// SlackAPIURL is where the Web API is.
func (s *Server) SlackAPIURL() string { return "http://" + s.addr + "/api/" }

// SlackBotToken is the bot's token.
func (s *Server) SlackBotToken() string {
	s.slackApp.mu.Lock()
	defer s.slackApp.mu.Unlock()
	return s.slackApp.current
}

// SlackAppToken opens Socket Mode connections.
func (s *Server) SlackAppToken() string { return s.slackApp.appToken }

// SlackSigningSecret signs what is posted to the request URL.
func (s *Server) SlackSigningSecret() string { return s.slackApp.signingSecret }

// SlackChannel is the id of a channel that the bot is in.
func (s *Server) SlackChannel() string { return s.slackApp.channel }

// RevokeToken makes the bot's token useless: token_revoked.
func (s *Server) RevokeToken() {
	s.slackApp.mu.Lock()
	defer s.slackApp.mu.Unlock()
	s.slackApp.bot[s.slackApp.current] = "token_revoked"
}

// RenewToken gives the bot another token; those before stay as they are.
func (s *Server) RenewToken() string {
	s.slackApp.mu.Lock()
	defer s.slackApp.mu.Unlock()
	s.slackApp.current = newBotToken()
	s.slackApp.bot[s.slackApp.current] = ""
	return s.slackApp.current
}

// BreakChannel answers every request to a channel with a word ("is_archived", "not_in_channel"); none mends it.
func (s *Server) BreakChannel(channel, word string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.slack.channels[channel] = word
}

// Delete takes a message out of its channel, as a person does.
func (s *Server) Delete(ts string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.slack.byTS, ts)
	s.slack.gone[ts] = true
	s.messages = slices.DeleteFunc(s.messages, func(m *Message) bool { return m.Kind == Slack && m.TS == ts })
	s.notify()
}

// Ephemerals are messages that only one person saw, oldest first.
func (s *Server) Ephemerals() []Message {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.slack.ephemerals)
}

func (s *Server) addSlackAPI(mux *http.ServeMux) {
	mux.HandleFunc("/api/chat.postMessage", func(w http.ResponseWriter, r *http.Request) { s.serveMethod(w, r, SlackPost, s.post) })
	mux.HandleFunc("/api/chat.update", func(w http.ResponseWriter, r *http.Request) { s.serveMethod(w, r, SlackUpdate, s.update) })
	mux.HandleFunc("/api/chat.postEphemeral", func(w http.ResponseWriter, r *http.Request) { s.serveMethod(w, r, Slack, s.postEphemeral) })
	mux.HandleFunc("/api/auth.test", func(w http.ResponseWriter, r *http.Request) { s.serveMethod(w, r, SlackAuth, s.authTest) })
	mux.HandleFunc("/api/apps.connections.open", func(w http.ResponseWriter, r *http.Request) { s.serveMethod(w, r, SlackOpen, s.open) })
	mux.HandleFunc("/api/", func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, slackRefusal("unknown_method")) })
	mux.HandleFunc("GET /link/", s.serveSocket)
	mux.HandleFunc("POST /response/{id}", s.serveResponse)
}

// call is one request to the API.
type call struct {
	fields url.Values
	// payload and raw are the message's, as JSON; problem is Slack's word for what is wrong with it.
	payload slackPayload
	raw     []byte
	problem string
}

// outcome is an answer: a word and how long to wait for a refusal, else what the answer holds.
type outcome struct {
	word  string
	wait  time.Duration
	holds map[string]any
}

func refuse(word string) outcome { return outcome{word: word} }

func slackRefusal(word string) string {
	b, err := json.Marshal(map[string]any{"ok": false, "error": word})
	if err != nil {
		return `{"ok":false,"error":"fatal_error"}`
	}
	return string(b)
}

// serveMethod answers as the Web API does: with 200 and the error in the body, except for 429.
func (s *Server) serveMethod(w http.ResponseWriter, r *http.Request, k Kind, do func(call) outcome) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	c, err := readCall(w, r)
	kinds := []Kind{k, Slack}
	switch {
	case k == SlackAuth || k == SlackOpen || k == Slack:
		kinds = kinds[:1]
	case c.fields.Get("thread_ts") != "":
		kinds[0] = SlackThread
	}
	fault := s.arrive(kinds...)
	if fault != nil && !fault.Accept {
		s.fail(w, r, fault)
		return
	}
	word := s.authorize(r, c, k)
	if err != nil && word == "" {
		word = "invalid_form_data"
	}
	if word != "" {
		answer(w, http.StatusOK, slackRefusal(word))
		return
	}
	out := do(c)
	switch {
	case out.wait > 0:
		retryAfter(w, out.wait)
		answer(w, http.StatusTooManyRequests, slackRefusal("ratelimited"))
	case out.word != "":
		answer(w, http.StatusOK, slackRefusal(out.word))
	case fault != nil:
		s.fail(w, r, fault)
	default:
		out.holds["ok"] = true
		b, err := json.Marshal(out.holds)
		if err != nil {
			b = []byte(slackRefusal("fatal_error"))
		}
		answer(w, http.StatusOK, string(b))
	}
}

// authorize returns Slack's word for a request with the wrong token. The token is taken from the header or the form.
func (s *Server) authorize(r *http.Request, c call, k Kind) string {
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if token == "" {
		token = c.fields.Get("token")
	}
	s.slackApp.mu.Lock()
	defer s.slackApp.mu.Unlock()
	word, known := s.slackApp.bot[token]
	switch {
	case token == "":
		return "not_authed"
	case k == SlackOpen && known, k != SlackOpen && token == s.slackApp.appToken:
		return "not_allowed_token_type"
	case k == SlackOpen && token == s.slackApp.appToken:
		return ""
	case !known:
		return "invalid_auth"
	}
	return word
}

// readCall reads a form or a JSON object, the two that Slack takes.
func readCall(w http.ResponseWriter, r *http.Request) (c call, err error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
	if err != nil {
		return c, err
	}
	var message map[string]json.RawMessage
	if kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); kind == "application/json" {
		c.fields, message, err = readJSON(body)
	} else {
		c.fields, message, err = readForm(body)
	}
	if err != nil {
		return c, err
	}
	delete(message, "token")
	raw, notJSON := json.Marshal(message)
	if notJSON == nil {
		c.raw = raw
		c.payload, c.problem = parseSlack(raw)
	} else {
		c.problem = "invalid_blocks_format"
	}
	return c, nil
}

func readJSON(body []byte) (fields url.Values, message map[string]json.RawMessage, err error) {
	fields, message = url.Values{}, map[string]json.RawMessage{}
	if len(body) == 0 {
		return fields, message, nil
	}
	if err := json.Unmarshal(body, &message); err != nil {
		return nil, nil, err
	}
	for name, raw := range message {
		var text string
		if json.Unmarshal(raw, &text) != nil {
			text = string(raw)
		}
		fields.Set(name, text)
	}
	return fields, message, nil
}

func readForm(body []byte) (fields url.Values, message map[string]json.RawMessage, err error) {
	if fields, err = url.ParseQuery(string(body)); err != nil {
		return nil, nil, err
	}
	message = map[string]json.RawMessage{}
	for _, name := range []string{"blocks", "attachments"} {
		if v := fields.Get(name); v != "" {
			message[name] = json.RawMessage(v)
		}
	}
	message["text"], err = json.Marshal(fields.Get("text"))
	return fields, message, err
}
