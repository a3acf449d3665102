package silence

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"
	"github.com/slack-go/slack"
	"github.com/slack-go/slack/socketmode"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
)

const (
	// firstPause and maxPause are between two connections that did not come about.
	firstPause, maxPause = time.Second, time.Minute
	// lived is how long a connection must last for the next pause to be the first one again.
	lived = 10 * time.Second
	// maxFrame is more than Slack sends: the whole message comes with a press.
	maxFrame = 1 << 20
	// handshakeTimeout is for a connection to come about.
	handshakeTimeout = 30 * time.Second
	// ackTimeout is Slack's 3 seconds and a little less.
	ackTimeout = 2 * time.Second
)

// errOneConnection ends a client of slack-go that wants to connect again. We make a new one, with the token and the address as
// they are by then.
var errOneConnection = errors.New("the connection has ended")

// RunSocketMode takes presses over connections that we open to Slack, until the context ends and what was begun is done. It connects
// again when a connection ends. It is an error when no token is configured; a token that cannot be read, or that Slack refuses, is
// logged and tried again.
func (s *Silencer) RunSocketMode(ctx context.Context) error {
	if s.o.Config().Notifier.Interactions.SlackAppTokenFile == "" {
		return errors.New("notifier.interactions.slack_app_token_file is not configured; Socket Mode needs an app-level token (xapp-...)")
	}
	defer func() { _ = s.jobs.wait(context.WithoutCancel(ctx)) }() // each has a timeout of its own
	s.metrics.connected.WithLabelValues().Set(0)
	pause := firstPause
	for ctx.Err() == nil {
		begin := time.Now()
		connected, err := s.connection(ctx)
		if ctx.Err() != nil {
			break
		}
		if connected && time.Since(begin) >= lived {
			pause = firstPause
		}
		wait := pause + rand.N(pause/2) //nolint:gosec // a pause is no secret
		if limited, ok := errors.AsType[*slack.RateLimitedError](err); ok {
			wait = max(wait, limited.RetryAfter)
		}
		switch {
		case err != nil:
			s.o.Logger.WarnContext(ctx, "no connection to Slack's Socket Mode; buttons do not work until there is one",
				slog.Any("err", err), slog.Duration("again_in", wait))
			pause = min(2*pause, maxPause)
		case connected && time.Since(begin) >= lived:
			wait = 0 // Slack ends connections every few hours and wants a new one at once
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
	return nil
}

// connection opens one connection and serves it until it ends. An error says why there was none.
func (s *Silencer) connection(ctx context.Context) (connected bool, err error) {
	cfg := s.o.Config().Notifier.Interactions
	token, err := cfg.SlackAppTokenFile.Read()
	if err != nil {
		return false, err
	}
	api := slack.New("", slack.OptionAppLevelToken(token), slack.OptionAPIURL(strings.TrimSuffix(cfg.SlackAPIURL, "/")+"/"),
		slack.OptionHTTPClient(&once{client: s.http}), slack.OptionLog(silent{}))
	dialer, err := dialer(cfg.SlackTLS)
	if err != nil {
		return false, err
	}
	client := socketmode.New(api, socketmode.OptionReadLimit(maxFrame), socketmode.OptionLog(silent{}), socketmode.OptionDialer(dialer))
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer s.metrics.connected.WithLabelValues().Set(0)
	ended := make(chan error, 1)
	go func() { ended <- client.RunContext(ctx) }()
	for {
		select {
		case e := <-client.Events:
			connected = connected || e.Type == socketmode.EventTypeConnected
			if over, why := s.event(ctx, client, e); over {
				cancel()
				if last := <-ended; why == nil {
					why = last
				}
				s.rest(ctx, client)
				return connected, failure(why, token)
			}
		case why := <-ended:
			s.rest(ctx, client)
			return connected, failure(why, token)
		}
	}
}

// dialer opens the connection, to whomever the API named. That may be Slack itself behind a slack_api_url of somebody's own, so the
// system's CAs are believed too.
func dialer(files config.TLS) (*websocket.Dialer, error) {
	cfg, err := files.Client()
	if err != nil {
		return nil, fmt.Errorf("notifier.interactions.slack_tls: %w", err)
	}
	if files.CAFile != "" {
		pem, err := os.ReadFile(files.CAFile)
		if err != nil {
			return nil, fmt.Errorf("notifier.interactions.slack_tls: reading CA file: %w", err)
		}
		if roots, err := x509.SystemCertPool(); err == nil {
			roots.AppendCertsFromPEM(pem)
			cfg.RootCAs = roots
		}
	}
	return &websocket.Dialer{Proxy: http.ProxyFromEnvironment, HandshakeTimeout: handshakeTimeout, TLSClientConfig: cfg}, nil
}

// rest takes what was read before a connection ended.
func (s *Silencer) rest(ctx context.Context, client *socketmode.Client) {
	for {
		select {
		case e := <-client.Events:
			if e.Type == socketmode.EventTypeInteractive {
				_, _ = s.event(ctx, client, e)
			}
		default:
			return
		}
	}
}

// event takes one event of the client. It says when the connection is over, and why unless that was to be expected.
func (s *Silencer) event(ctx context.Context, client *socketmode.Client, e socketmode.Event) (over bool, why error) {
	switch e.Type {
	case socketmode.EventTypeConnected:
		s.metrics.connected.WithLabelValues().Set(1)
		s.o.Logger.InfoContext(ctx, "connected to Slack's Socket Mode")
	case socketmode.EventTypeConnectionError:
		if failed, ok := e.Data.(*slack.ConnectionErrorEvent); ok {
			return true, failed.ErrorObj
		}
		return true, errors.New("no reason given")
	case socketmode.EventTypeErrorBadMessage, socketmode.EventTypeErrorWriteFailed:
		s.o.Logger.WarnContext(ctx, "a message of Slack's Socket Mode was lost", slog.String("event", string(e.Type)))
	case socketmode.EventTypeInteractive, socketmode.EventTypeEventsAPI, socketmode.EventTypeSlashCommand:
		if e.Request == nil {
			return false, nil
		}
		callback, ok := e.Data.(slack.InteractionCallback)
		if ok && !s.accept(ctx, "envelope "+e.Request.EnvelopeID, pressed(callback, waySocket)) {
			return false, nil // Slack tells the person that nothing happened
		}
		ack, cancel := context.WithTimeout(ctx, ackTimeout)
		defer cancel()
		if ackErr := client.AckCtx(ack, e.Request.EnvelopeID, nil); ackErr != nil && ctx.Err() == nil {
			s.o.Logger.WarnContext(ctx, "could not acknowledge a press to Slack", slog.Any("err", ackErr))
		}
	}
	return false, nil
}

// failure is why there is no connection, without the token and without the address, which is a ticket. Nil when a connection just
// came to its end.
func failure(err error, token string) error {
	if err == nil || errors.Is(err, errOneConnection) || errors.Is(err, context.Canceled) {
		return nil
	}
	if limited, ok := errors.AsType[*slack.RateLimitedError](err); ok {
		return fmt.Errorf("connecting to Slack: %w", limited)
	}
	text := strings.ReplaceAll(bare(err).Error(), token, "[token]")
	if refused, ok := errors.AsType[slack.SlackErrorResponse](err); ok {
		text = refused.Err + " (check the token of notifier.interactions.slack_app_token_file: xapp-..., scope connections:write)"
	}
	return fmt.Errorf("connecting to Slack: %s", text)
}

// once lets a client ask for one connection.
type once struct {
	client *http.Client
	used   atomic.Bool
}

func (o *once) Do(r *http.Request) (*http.Response, error) {
	if o.used.Swap(true) {
		return nil, errOneConnection
	}
	ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
	resp, err := o.client.Do(r.WithContext(ctx))
	if err != nil {
		cancel()
		return nil, err
	}
	resp.Body = &body{resp.Body, cancel}
	return resp, nil
}

// body ends its request's context when it is closed.
type body struct {
	io.ReadCloser
	cancel context.CancelFunc
}

func (b *body) Close() error {
	defer b.cancel()
	return b.ReadCloser.Close()
}

// silent drops what slack-go logs: we log what matters, and its lines may hold what people wrote.
type silent struct{}

func (silent) Output(int, string) error { return nil }
