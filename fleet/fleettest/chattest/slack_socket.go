package chattest

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/websocket"
)

// pingEvery is how often a connection is pinged; apps take one without pings for dead.
const pingEvery = 5 * time.Second

// socket is one Socket Mode connection (https://docs.slack.dev/apis/events-api/using-socket-mode).
type socket struct {
	conn *websocket.Conn
	mu   sync.Mutex // one writer at a time
}

func (k *socket) send(v any) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.conn.WriteJSON(v)
}

// open is apps.connections.open: an address that may be used once.
func (s *Server) open(call) outcome {
	ticket := rand.Text()
	s.slackApp.mu.Lock()
	s.slackApp.tickets[ticket] = true
	s.slackApp.mu.Unlock()
	return outcome{holds: map[string]any{"url": "ws://" + s.addr + "/link/?ticket=" + ticket + "&app_id=A0LIFEBOAT"}}
}

func (s *Server) serveSocket(w http.ResponseWriter, r *http.Request) {
	ticket := r.URL.Query().Get("ticket")
	s.slackApp.mu.Lock()
	good := s.slackApp.tickets[ticket]
	delete(s.slackApp.tickets, ticket)
	s.slackApp.mu.Unlock()
	if !good {
		answer(w, http.StatusNotFound, "")
		return
	}
	s.slackApp.running.Add(1)
	defer s.slackApp.running.Done()
	// An app's client names Slack's own site as its origin.
	upgrader := websocket.Upgrader{CheckOrigin: func(*http.Request) bool { return true }}
	conn, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return // the upgrader has answered
	}
	k := &socket{conn: conn}
	defer func() {
		s.forget(k)
		_ = conn.Close() // it is over either way
	}()
	ctx, cancel := context.WithCancel(r.Context())
	var wg sync.WaitGroup
	wg.Go(func() { k.ping(ctx) })
	defer wg.Wait()
	defer cancel()
	s.slackApp.mu.Lock()
	s.slackApp.sockets = append(s.slackApp.sockets, k)
	open := len(s.slackApp.sockets)
	s.slackApp.mu.Unlock()
	hello := map[string]any{
		"type": "hello", "num_connections": open, "connection_info": map[string]any{"app_id": "A0LIFEBOAT"},
		"debug_info": map[string]any{"host": "applink-1", "approximate_connection_time": 18060},
	}
	if k.send(hello) != nil {
		return
	}
	s.mu.Lock()
	s.notify()
	s.mu.Unlock()
	s.readAcks(k)
}

// ping until the connection ends, or end it with the server.
func (k *socket) ping(ctx context.Context) {
	ticker := time.NewTicker(pingEvery)
	defer ticker.Stop()
	for {
		deadline := time.Now().Add(time.Second)
		if k.conn.WriteControl(websocket.PingMessage, []byte("Ping from applink-1"), deadline) != nil {
			return
		}
		select {
		case <-ctx.Done():
			_ = k.conn.Close() // wakes the reader
			return
		case <-ticker.C:
		}
	}
}

func (s *Server) readAcks(k *socket) {
	for {
		var ack struct {
			EnvelopeID string          `json:"envelope_id"`
			Payload    json.RawMessage `json:"payload"`
		}
		if k.conn.ReadJSON(&ack) != nil {
			return
		}
		s.slackApp.mu.Lock()
		if waiting := s.slackApp.waiting[ack.EnvelopeID]; waiting != nil {
			close(waiting)
			delete(s.slackApp.waiting, ack.EnvelopeID)
		}
		s.slackApp.mu.Unlock()
	}
}

func (s *Server) forget(k *socket) {
	s.slackApp.mu.Lock()
	s.slackApp.sockets = slices.DeleteFunc(s.slackApp.sockets, func(o *socket) bool { return o == k })
	s.slackApp.mu.Unlock()
	s.mu.Lock()
	s.notify()
	s.mu.Unlock()
}

// sendSocket sends an interaction over one connection and waits until it is acknowledged. sent is false when none is open.
func (s *Server) sendSocket(ctx context.Context, payload []byte) (sent bool, err error) {
	id := strings.ToLower(rand.Text())
	acked := make(chan struct{})
	s.slackApp.mu.Lock()
	if len(s.slackApp.sockets) == 0 {
		s.slackApp.mu.Unlock()
		return false, nil
	}
	// Slack may choose any connection of an app; the next press takes the next one.
	k := s.slackApp.sockets[0]
	s.slackApp.sockets = append(s.slackApp.sockets[1:], k)
	s.slackApp.waiting[id] = acked
	s.slackApp.mu.Unlock()
	defer func() {
		s.slackApp.mu.Lock()
		defer s.slackApp.mu.Unlock()
		delete(s.slackApp.waiting, id)
	}()
	envelope := map[string]any{
		"type": "interactive", "envelope_id": id, "accepts_response_payload": false, "payload": json.RawMessage(payload),
	}
	if err := k.send(envelope); err != nil {
		return true, fmt.Errorf("sending over the Socket Mode connection: %w", err)
	}
	select {
	case <-acked:
		return true, nil
	case <-ctx.Done():
		return true, errors.New("the app did not acknowledge within 3s")
	}
}

// WaitSockets returns when so many Socket Mode connections are open.
func (s *Server) WaitSockets(ctx context.Context, n int) error {
	return s.wait(ctx, func() bool {
		s.slackApp.mu.Lock()
		defer s.slackApp.mu.Unlock()
		return len(s.slackApp.sockets) >= n
	})
}

// DropSockets tells every connection to go elsewhere and ends it, as Slack does every few hours.
func (s *Server) DropSockets() {
	for _, k := range s.allSockets() {
		// An error means that it has gone already.
		_ = k.send(map[string]any{"type": "disconnect", "reason": "refresh_requested", "debug_info": map[string]any{"host": "applink-1"}})
		s.forget(k)
	}
}

func (s *Server) allSockets() []*socket {
	s.slackApp.mu.Lock()
	defer s.slackApp.mu.Unlock()
	return slices.Clone(s.slackApp.sockets)
}
