// Package chattest runs local stand-ins for Slack (an incoming webhook, the Web API of a bot, buttons, Socket Mode) and a
// DingTalk custom robot, on one loopback port. They enforce the real services' rules (sizes, signatures, throttling, error
// codes), so that what they accept the real ones accept too, and show what they accepted on a page. They can be told to fail.
package chattest

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Kind of chat.
type Kind string

// The chats.
const (
	Slack    Kind = "slack"
	DingTalk Kind = "dingtalk"
)

// One method of Slack's API each, where a test wants to be exact. Requests of the chat methods count for Slack too, and meet
// a fault of Slack when there is none of their own.
const (
	// SlackPost is chat.postMessage into a channel, SlackThread the same into a thread.
	SlackPost   Kind = "slack chat.postMessage"
	SlackThread Kind = "slack chat.postMessage in a thread"
	SlackUpdate Kind = "slack chat.update"
	SlackAuth   Kind = "slack auth.test"
	SlackOpen   Kind = "slack apps.connections.open"
)

// unlimited is a limit that is never met.
const unlimited = math.MaxInt32

// Options of a Server. The zero value has the real services' limits.
type Options struct {
	// Addr to listen on; a free loopback port when empty.
	Addr string
	// NoLimits takes away how many requests a chat accepts in a time, for sinks of a benchmark.
	NoLimits bool
	// Keep is how many messages are remembered; 10,000 when zero.
	Keep int
	// OnMessage is told of every message that was accepted, and of every edit; by several goroutines at once.
	OnMessage func(Message)
	// SlackPerSecond and SlackBurst limit each channel; 1 message a second and bursts of 4 when zero.
	SlackPerSecond float64
	SlackBurst     int
	// SlackUpdatesPerMinute limits chat.update; 50 when zero.
	SlackUpdatesPerMinute int
	// Channels are more of Slack's channels that the bot is in, by id.
	Channels []string
	// EditWindow is for how long a message of Slack may be edited; for ever when zero.
	EditWindow time.Duration
	// InteractionsURL is Slack's request URL: what a person presses is posted there when no Socket Mode connection is open.
	InteractionsURL string
	// DingTalkPerMinute limits the robot; 20 when zero. Above it the robot is blocked for DingTalkBlock; 10m when zero.
	DingTalkPerMinute int
	DingTalkBlock     time.Duration
	// Now is the clock; time.Now when nil.
	Now func() time.Time
}

func (o Options) withDefaults() Options {
	if o.Addr == "" {
		o.Addr = "127.0.0.1:0"
	}
	if o.Keep == 0 {
		o.Keep = 10_000
	}
	if o.NoLimits {
		o.SlackPerSecond, o.SlackBurst, o.SlackUpdatesPerMinute, o.DingTalkPerMinute = unlimited, unlimited, unlimited, unlimited
	}
	if o.SlackUpdatesPerMinute == 0 {
		o.SlackUpdatesPerMinute = 50
	}
	if o.SlackPerSecond == 0 {
		o.SlackPerSecond = 1
	}
	if o.SlackBurst == 0 {
		o.SlackBurst = 4
	}
	if o.DingTalkPerMinute == 0 {
		o.DingTalkPerMinute = 20
	}
	if o.DingTalkBlock == 0 {
		o.DingTalkBlock = 10 * time.Minute
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return o
}

// Message is one that was accepted.
type Message struct {
	Kind  Kind
	Time  time.Time
	Title string
	// Text is what the message says, in the chat's own markup.
	Text string
	// Raw is the request's body; of a form of Slack's API, its fields as JSON.
	Raw []byte

	// Channel of Slack, and where the message stands in it. ThreadTS is set in a thread, and Broadcast when it is shown in the
	// channel as well.
	Channel, TS, ThreadTS string
	Broadcast             bool
	// Edited counts edits; the rest of the message is as after the last one.
	Edited int
	// Colour of Slack's first attachment.
	Colour string
	// User who alone sees the message; empty for one that everybody sees.
	User string
}

// Fault is an answer given instead of the real one. The message is not accepted.
type Fault struct {
	// Status of the answer; 200 when zero.
	Status int
	// Header is added to the answer.
	Header http.Header
	// Body of the answer. When it is empty, Word makes one as Slack has it, or else ErrCode and ErrMsg as DingTalk has it.
	Body string
	// Word is Slack's for an error: {"ok":false,"error":"..."} from the API, the bare word from the webhook.
	Word    string
	ErrCode int
	ErrMsg  string
	// Hang holds the request until the client gives up or the server stops.
	Hang bool
	// Accept takes the message first and then answers with the fault: the answer got lost.
	Accept bool
}

// Server is a running pair of chats. It is safe for concurrent use.
type Server struct {
	opts  Options
	addr  string
	srv   *http.Server
	stop  context.CancelFunc
	ended chan error

	slackPath, slackToken         string
	dingTalkToken, dingTalkSecret string
	slackApp                      *slackApp

	mu       sync.Mutex
	changed  chan struct{} // closed and replaced at each change
	messages []*Message
	requests map[Kind]int
	faults   map[Kind][]Fault
	always   map[Kind]*Fault
	slack    slackState
	dingTalk window
}

// Start runs a server until Stop. Its tokens and secret are made anew.
func Start(o Options) (*Server, error) {
	o = o.withDefaults()
	ln, err := net.Listen("tcp", o.Addr) //nolint:noctx // the server outlives any context of its start
	if err != nil {
		return nil, fmt.Errorf("listening for chats: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &Server{
		opts: o, addr: ln.Addr().String(), stop: cancel, ended: make(chan error, 1),
		slackPath: "/services/T" + rand.Text()[:8] + "/B" + rand.Text()[:8], slackToken: rand.Text(),
		dingTalkToken: strings.ToLower(rand.Text() + rand.Text()), dingTalkSecret: "SEC" + strings.ToLower(rand.Text()+rand.Text()),
		slackApp: newSlackApp(), slack: newSlackState(o),
		changed: make(chan struct{}), requests: map[Kind]int{}, faults: map[Kind][]Fault{}, always: map[Kind]*Fault{},
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/services/", s.serveSlack)
	s.addSlackAPI(mux)
	mux.HandleFunc("/robot/send", s.serveDingTalk)
	s.addPage(mux)
	s.srv = &http.Server{
		Handler: mux, ReadHeaderTimeout: 5 * time.Second,
		// Requests that hang, and the page's event streams, end with the server.
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	go func() { s.ended <- s.srv.Serve(ln) }()
	return s, nil
}

// New runs a server with the real limits for one test.
func New(t *testing.T) *Server {
	t.Helper()
	return NewWith(t, Options{})
}

// NewWith runs a server for one test.
func NewWith(t *testing.T, o Options) *Server {
	t.Helper()
	s, err := Start(o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Stop()) })
	return s
}

// Addr is where it listens, as host:port.
func (s *Server) Addr() string { return s.addr }

// Stop ends the server and waits until it is gone. It may be called twice.
func (s *Server) Stop() error {
	s.stop()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := s.srv.Shutdown(ctx); err != nil {
		return errors.Join(fmt.Errorf("stopping the chats: %w", err), s.srv.Close())
	}
	s.slackApp.running.Wait()
	err := <-s.ended
	s.ended <- err
	if err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving the chats: %w", err)
	}
	return nil
}

// SlackURL is the incoming webhook. It holds the token.
func (s *Server) SlackURL() string { return "http://" + s.addr + s.slackPath + "/" + s.slackToken }

// SlackToken is the secret part of SlackURL, to look for where it must not be.
func (s *Server) SlackToken() string { return s.slackToken }

// DingTalkURL is the robot's address. It holds the token.
func (s *Server) DingTalkURL() string {
	return "http://" + s.addr + "/robot/send?access_token=" + s.dingTalkToken
}

// DingTalkToken is the secret part of DingTalkURL.
func (s *Server) DingTalkToken() string { return s.dingTalkToken }

// DingTalkSecret signs requests to the robot.
func (s *Server) DingTalkSecret() string { return s.dingTalkSecret }

// PageURL shows the messages to a person.
func (s *Server) PageURL() string { return "http://" + s.addr + "/" }

// FailNext answers the next n requests of one chat with a fault.
func (s *Server) FailNext(k Kind, n int, f Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for range n {
		s.faults[k] = append(s.faults[k], f)
	}
}

// FailAll answers every request of one chat with a fault until Heal.
func (s *Server) FailAll(k Kind, f Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.always[k] = &f
}

// Heal takes all faults of one chat back.
func (s *Server) Heal(k Kind) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.faults, k)
	delete(s.always, k)
}

// Messages are the accepted ones that everybody sees, oldest first, each as after its last edit.
func (s *Server) Messages() []Message {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Message, 0, len(s.messages))
	for _, m := range s.messages {
		out = append(out, *m)
	}
	return out
}

// Requests counts what one chat was asked, refused requests and faults included.
func (s *Server) Requests(k Kind) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.requests[k]
}

// Wait returns when done says so of the accepted messages; it is asked at the start and after each change.
func (s *Server) Wait(ctx context.Context, done func([]Message) bool) error {
	return s.wait(ctx, func() bool { return done(s.Messages()) })
}

// WaitRequests returns when one chat has been asked n times.
func (s *Server) WaitRequests(ctx context.Context, k Kind, n int) error {
	return s.wait(ctx, func() bool { return s.Requests(k) >= n })
}

func (s *Server) wait(ctx context.Context, done func() bool) error {
	for {
		s.mu.Lock()
		changed := s.changed
		s.mu.Unlock()
		if done() {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("waiting for chat messages, %d so far: %w", len(s.Messages()), ctx.Err())
		}
	}
}

// notify wakes everybody who waits. The caller holds the lock.
func (s *Server) notify() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// arrive counts a request and takes the fault that it shall meet, if any. The first kind is the most exact one, and its faults
// go before the others'.
func (s *Server) arrive(kinds ...Kind) *Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range kinds {
		s.requests[k]++
	}
	s.notify()
	for _, k := range kinds {
		if q := s.faults[k]; len(q) > 0 {
			s.faults[k] = q[1:]
			return &q[0]
		}
		if f := s.always[k]; f != nil {
			return f
		}
	}
	return nil
}

// accept remembers a message. Where Slack has it is filled in here, so that no two have the same ts.
func (s *Server) accept(m Message) Message {
	s.mu.Lock()
	m.Time = s.opts.Now()
	if m.Kind == Slack {
		m.TS = s.slack.stamp(m.Time)
	}
	if len(s.messages) >= s.opts.Keep {
		delete(s.slack.byTS, s.messages[0].TS)
		s.messages = s.messages[1:]
	}
	kept := m
	s.messages = append(s.messages, &kept)
	if m.Kind == Slack {
		s.slack.byTS[m.TS] = &kept
	}
	s.notify()
	s.mu.Unlock()
	if s.opts.OnMessage != nil {
		s.opts.OnMessage(m)
	}
	return m
}

// fail gives a fault's answer.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, f *Fault) {
	if f.Hang {
		<-r.Context().Done()
		return
	}
	maps.Copy(w.Header(), f.Header)
	body := f.Body
	switch {
	case body != "":
	case f.Word != "" && strings.HasPrefix(r.URL.Path, "/api/"):
		body = slackRefusal(f.Word)
	case f.Word != "":
		body = f.Word
	default:
		body = dingTalkBody(f.ErrCode, f.ErrMsg)
	}
	status := f.Status
	if status == 0 {
		status = http.StatusOK
	}
	answer(w, status, body)
}

func answer(w http.ResponseWriter, status int, body string) {
	w.WriteHeader(status)
	_, _ = w.Write([]byte(body)) // an error means that the client has gone; there is nobody to tell
}

func dingTalkBody(code int, msg string) string {
	b, err := json.Marshal(map[string]any{"errcode": code, "errmsg": msg})
	if err != nil {
		return `{"errcode":-1,"errmsg":"system busy"}`
	}
	return string(b)
}

// bucket is a token bucket: so many a second, and a burst.
type bucket struct {
	tokens float64
	last   time.Time
}

// take returns zero when a request may pass, else how long until one may.
func (b *bucket) take(now time.Time, perSecond float64, burst int) time.Duration {
	if b.last.IsZero() {
		b.tokens = float64(burst)
	} else {
		b.tokens = min(float64(burst), b.tokens+now.Sub(b.last).Seconds()*perSecond)
	}
	b.last = now
	if b.tokens < 1 {
		return time.Duration((1 - b.tokens) / perSecond * float64(time.Second))
	}
	b.tokens--
	return 0
}

// window counts what passed in the last minute, and blocks for a while when it was too much.
type window struct {
	passed  []time.Time
	blocked time.Time
}

func (w *window) take(now time.Time, perMinute int, block time.Duration) bool {
	if perMinute == unlimited {
		return true
	}
	if now.Before(w.blocked) {
		return false
	}
	w.passed = slices.DeleteFunc(w.passed, func(t time.Time) bool { return now.Sub(t) >= time.Minute })
	if len(w.passed) >= perMinute {
		w.blocked = now.Add(block)
		return false
	}
	w.passed = append(w.passed, now)
	return true
}
