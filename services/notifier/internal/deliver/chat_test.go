package deliver_test

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
)

// chat takes messages, or answers as it is told.
type chat struct {
	mu      sync.Mutex
	sent    []message
	answers []func(receiver string, n notice.Notice) error
	asked   int
	parts   int
	// hangs is the receiver whose requests are not answered before their deadline.
	hangs   string
	changed chan struct{}
}

func newChat() *chat { return &chat{changed: make(chan struct{}), parts: 1} }

// answer is asked for each request until it says nil-able; a rule returns nil to let it pass.
func (c *chat) rule(f func(receiver string, n notice.Notice) error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answers = nil
	if f != nil {
		c.answers = append(c.answers, f)
	}
}

func (c *chat) hang(receiver string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hangs = receiver
}

func (c *chat) messages() []message {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.sent)
}

func (c *chat) requests() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.asked
}

func (c *chat) titles() []string {
	var out []string
	for _, m := range c.messages() {
		out = append(out, m.receiver+": "+m.notice.Title)
	}
	return out
}

func (c *chat) news() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.changed
}

// sender is a receiver's way into the chat.
type sender struct {
	chat     *chat
	receiver string
	by       string
}

func (s *sender) Key() (string, error) { return "chat-" + s.receiver, nil }

func (s *sender) Split(n notice.Notice) []notice.Notice {
	s.chat.mu.Lock()
	defer s.chat.mu.Unlock()
	out := make([]notice.Notice, 0, s.chat.parts)
	for i := range s.chat.parts {
		part := n
		if s.chat.parts > 1 {
			part.Footer = fmt.Sprintf("part %d", i+1)
		}
		out = append(out, part)
	}
	return out
}

func (s *sender) Send(ctx context.Context, n notice.Notice, before notice.Ref, take notice.Take) (notice.Ref, error) {
	call := notice.Post
	if before.ID != "" {
		call = notice.Update
	}
	if err := take(ctx, call); err != nil {
		return notice.Ref{}, err
	}
	c := s.chat
	c.mu.Lock()
	rules := slices.Clone(c.answers)
	hangs := c.hangs == s.receiver
	c.asked++
	close(c.changed)
	c.changed = make(chan struct{})
	c.mu.Unlock()
	if hangs {
		<-ctx.Done()
		return notice.Ref{}, fmt.Errorf("the chat did not answer: %w", ctx.Err())
	}
	for _, rule := range rules {
		if err := rule(s.receiver, n); err != nil {
			return notice.Ref{}, err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	ref := before
	if ref.ID == "" {
		ref = notice.Ref{Channel: s.receiver, ID: strconv.Itoa(len(c.sent) + 1), Posted: time.Now()}
	}
	c.sent = append(c.sent, message{s.by, s.receiver, n, before, ref})
	close(c.changed)
	c.changed = make(chan struct{})
	return ref, nil
}
