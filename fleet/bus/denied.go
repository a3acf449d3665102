package bus

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// ErrDenied means that the server's permissions refuse something to this connection's user. Every such error is a
// *DeniedError. No further attempt helps until somebody grants the permission.
var ErrDenied = errors.New("denied by the permissions of this NATS user")

// DeniedError names what was denied.
type DeniedError struct {
	// Operation is "publish" or "subscribe".
	Operation string
	Subject   string
}

// Error says it in words for the person who gave the permissions.
func (e *DeniedError) Error() string {
	return fmt.Sprintf("the permissions of this NATS user do not let it %s to %s; deploy/nats has those that each role needs",
		e.Operation, e.Subject)
}

// Is makes it an ErrDenied.
func (e *DeniedError) Is(target error) bool { return target == ErrDenied }

// violation is the server's text (nats-server, server/client.go, pubPermissionViolation and subPermissionViolation).
var violation = regexp.MustCompile(`(?i)(Publish|Subscription) to "(\S+)"`)

func parseDenied(err error) (*DeniedError, bool) {
	if !errors.Is(err, nats.ErrPermissionViolation) {
		return nil, false
	}
	m := violation.FindStringSubmatch(err.Error())
	if m == nil {
		return nil, false
	}
	operation := "publish"
	if strings.EqualFold(m[1], "Subscription") {
		operation = "subscribe"
	}
	return &DeniedError{Operation: operation, Subject: m[2]}, true
}

const (
	// handlerDelay is how long the library's error handler, which runs beside the reader, may lag behind it.
	handlerDelay = 100 * time.Millisecond
	// inboxRetry is how often a connection is made anew whose inbox was denied. The library subscribes to it once.
	inboxRetry = 10 * time.Second
	// sayAgain is how often an error is logged that comes again and again.
	sayAgain = 10 * time.Second
)

// denials connects the server's refusals with the operations that they make time out. The server answers a denied message
// with an error of its own on the connection, and the operation gets no answer at all.
type denials struct {
	inboxPrefix string // with the dot behind it
	mu          sync.Mutex
	watched     map[*watched]struct{}
	// inbox is the refusal of the subscription on which all answers come, and since when; nil when there is none.
	inbox *DeniedError
	since time.Time
	// reason is why there is no connection, as far as that was told; the library forgets it between two attempts.
	reason error
	// said is what was logged last, and when.
	said   string
	saidAt time.Time
}

// watched is an operation under way. Its subjects are exact, or end in ".>".
type watched struct {
	subjects []string
	cancel   context.CancelCauseFunc
}

func newDenials(inboxPrefix string) *denials {
	if inboxPrefix == "" {
		return &denials{inboxPrefix: nats.InboxPrefix, watched: map[*watched]struct{}{}}
	}
	return &denials{inboxPrefix: inboxPrefix + ".", watched: map[*watched]struct{}{}}
}

// note takes what the library's error handler is told, and ends the operations that it is about. It returns whether that is
// worth a line in the log.
func (d *denials) note(err error) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	denied, ok := parseDenied(err)
	if !ok {
		d.reason = err
		return d.say(err)
	}
	if d.isInbox(denied) {
		d.inbox, d.since = denied, time.Now()
	}
	for w := range d.watched {
		if d.about(denied, w.subjects) {
			w.cancel(denied)
		}
	}
	return d.say(err)
}

// say keeps what repeats itself twice a second, for ever, from filling the log.
func (d *denials) say(err error) bool {
	if text := err.Error(); text != d.said || time.Since(d.saidAt) > sayAgain {
		d.said, d.saidAt = text, time.Now()
		return true
	}
	return false
}

// away takes why an attempt to connect failed.
func (d *denials) away(err error) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.reason = err
	return d.say(err)
}

func (d *denials) connected() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.reason = nil
}

func (d *denials) whyAway() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.reason
}

func (d *denials) isInbox(denied *DeniedError) bool {
	return denied.Operation == "subscribe" && strings.HasPrefix(denied.Subject, d.inboxPrefix)
}

// about says whether a refusal makes an operation on these subjects fail: every operation waits for an answer in the inbox.
func (d *denials) about(denied *DeniedError, subjects []string) bool {
	return d.isInbox(denied) || slices.ContainsFunc(subjects, func(s string) bool {
		beginning, wild := strings.CutSuffix(s, ">")
		return s == denied.Subject || (wild && strings.HasPrefix(denied.Subject, beginning))
	})
}

// disconnected forgets the inbox: it is subscribed to anew with the next connection.
func (d *denials) disconnected() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.inbox = nil
}

func (d *denials) watch(w *watched) (forget func(), deaf *DeniedError, since time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.watched[w] = struct{}{}
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.watched, w)
	}, d.inbox, d.since
}

// guarded runs an operation that sends to the given subjects and waits for an answer. When the server denies one of them, or
// the inbox, it ends at once with a *DeniedError; without a connection it ends with the reason for that beside its own.
func (b *Bus) guarded(ctx context.Context, do func(context.Context) error, subjects ...string) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	w := &watched{subjects: subjects, cancel: cancel}
	forget, deaf, since := b.denials.watch(w)
	defer forget()
	if deaf != nil {
		if time.Since(since) < inboxRetry {
			return deaf
		}
		b.denials.disconnected()
		if err := b.nc.ForceReconnect(); err != nil {
			return fmt.Errorf("connecting again to get another inbox: %w", err)
		}
	}
	before := b.nc.LastError()
	err := do(ctx)
	if err == nil {
		return nil
	}
	// The reader notes the refusal before it reads any later answer; the handler is told a moment later.
	if last := b.nc.LastError(); last != before && errors.Is(last, nats.ErrPermissionViolation) { //nolint:errorlint // the same value, not kind
		if denied, ok := parseDenied(last); ok && b.denials.about(denied, subjects) {
			return denied
		}
		wait(ctx, handlerDelay)
	}
	if denied, ok := errors.AsType[*DeniedError](context.Cause(ctx)); ok {
		return denied
	}
	if away := b.Connected(); away != nil && isTimeout(err) {
		return fmt.Errorf("%w: %w", err, away)
	}
	return err
}

func isTimeout(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, nats.ErrTimeout) || errors.Is(err, nats.ErrDisconnected) ||
		errors.Is(err, nats.ErrConnectionReconnecting)
}
