package slack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	slackapi "github.com/slack-go/slack"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
)

const (
	defaultAPI = "https://slack.com/api/"
	// timeout of one request.
	timeout = 15 * time.Second
	// maxAnswer is more than Slack answers, which repeats the message.
	maxAnswer = 1 << 20
)

// bot is the API with one attempt's token.
type bot struct {
	api     *slackapi.Client
	channel string
	take    notice.Take
}

// sendBot posts or edits the message of a group, and says in its thread what changed. The message comes first and is what counts: with
// it the Ref holds, and the next attempt goes on from there.
func (s *Sender) sendBot(ctx context.Context, n notice.Notice, before notice.Ref, take notice.Take) (notice.Ref, error) {
	token, channel, err := s.secret()
	if err != nil {
		return before, err
	}
	if err = checkAPI(s.o.APIURL); err != nil {
		return before, bus.RetryAfter(parked, err)
	}
	b := bot{
		api:     slackapi.New(token, slackapi.OptionHTTPClient(s.http), slackapi.OptionAPIURL(strings.TrimSuffix(s.o.APIURL, "/")+"/")),
		channel: channel, take: take,
	}
	main := compose(n, s.o.Receiver)
	place := before
	place.Resumed = false
	if moved(before.Channel, channel) {
		place = notice.Ref{}
	}
	if place.ID != "" {
		err = b.edit(ctx, n, main, place.ID)
		switch {
		case err == nil:
		case lost(err):
			place = notice.Ref{}
		default:
			return before, err
		}
	}
	if n.Quiet {
		return place, nil
	}
	edited := place.ID != "" && (place.Thread != 0 || !before.Resumed)
	if place.ID == "" {
		if place, err = s.begin(ctx, b, n, main); err != nil {
			return before, err
		}
	}
	return s.detail(ctx, b, n, main, place, edited)
}

// begin posts a group's message.
func (s *Sender) begin(ctx context.Context, b bot, n notice.Notice, m message) (notice.Ref, error) {
	var place notice.Ref
	err := b.sayTo(ctx, &place, notice.Post, n, m)
	place.Posted = s.o.Now()
	return place, err
}

// detail says in the thread what is new: all of it below a message that was posted now, or by an attempt that got no further. A message
// that was edited, and cannot be replied to, is posted anew if there is something in it that people have to notice; without a thread,
// which would be refused again.
func (s *Sender) detail(ctx context.Context, b bot, n notice.Notice, main message, place notice.Ref, edited bool) (notice.Ref, error) {
	m, loud, ok := threadForm(n, main, edited)
	if !ok {
		return place, nil
	}
	options := []slackapi.MsgOption{slackapi.MsgOptionTS(place.ID)}
	if loud {
		options = append(options, slackapi.MsgOptionBroadcast())
	}
	err := b.say(ctx, notice.Post, n, m, options...)
	switch {
	case err == nil:
		place.Thread = max(place.Thread, 0) + 1
		return place, nil
	case bus.IsTerminal(err) && loud:
		place.Thread = missing
		again, failed := s.begin(ctx, b, n, main)
		if failed != nil {
			return place, failed
		}
		again.Thread = missing
		// It would be red for ever. That this may fail must not post the new one once more.
		_ = b.edit(ctx, n, followed(n), place.ID)
		return again, nil
	case bus.IsTerminal(err):
		// The message itself stands and says what fires. That the channel takes no threads must not make it a dead letter.
		if place.Thread == 0 {
			place.Thread = missing
		}
		return place, nil
	case loud && place.Thread == 0:
		place.Thread = missing
	}
	return place, err
}

// missing is the Thread of a message below which there is nothing of what only changed in it: a reply has to be loud.
const missing = -1

// edit changes a message.
func (b bot) edit(ctx context.Context, n notice.Notice, m message, id string) error {
	return b.say(ctx, notice.Update, n, m, slackapi.MsgOptionUpdate(id), slackapi.MsgOptionParse(false))
}

// followed is what is left of a group's message that a newer one follows: it is no longer red.
func followed(n notice.Notice) message {
	w := worded(n).Words
	text := fit("➡️ "+w.GoesOn+w.Colon+line(n.Title), maxHeader)
	return message{text: text, blocks: []slackapi.Block{section(plain(text))}}
}

// moved says whether the receiver's channel is another one than that of its message. One that is configured by name cannot be compared.
func moved(was, is string) bool {
	return was != "" && was != is && regexp.MustCompile(`^[CGD][A-Z0-9]{6,}$`).MatchString(is)
}

// lost says whether a message can be edited no more, though another one can be posted.
func lost(err error) bool {
	r, ok := errors.AsType[*refused](err)
	return ok && slices.Contains([]string{"message_not_found", "cant_update_message", "edit_window_closed"}, r.word)
}

func (b bot) say(ctx context.Context, call notice.Call, n notice.Notice, m message, options ...slackapi.MsgOption) error {
	return b.sayTo(ctx, &notice.Ref{}, call, n, m, options...)
}

// sayTo sends a message, and notes where it stands. What Slack refuses for its form is said plainly instead; what it refuses with a
// mention, which administrators may restrict, is said without.
func (b bot) sayTo(ctx context.Context, place *notice.Ref, call notice.Call, n notice.Notice, m message, options ...slackapi.MsgOption) error {
	err := b.once(ctx, place, call, m, options...)
	if r, ok := errors.AsType[*refused](err); ok && r.word == "restricted_action" && m.mentions {
		n.Mentions = nil
		return b.once(ctx, place, call, plainForm(n), options...)
	}
	if !errors.Is(err, errForm) {
		return err
	}
	if again := b.once(ctx, place, call, plainForm(n), options...); again != nil {
		return fmt.Errorf("%w (first, in its full form: %w)", again, err)
	}
	return nil
}

func (b bot) once(ctx context.Context, place *notice.Ref, call notice.Call, m message, options ...slackapi.MsgOption) error {
	if err := b.take(ctx, call); err != nil {
		return err
	}
	options = append(
		slices.Clone(options), slackapi.MsgOptionText(m.text, false), slackapi.MsgOptionBlocks(m.blocks...),
		slackapi.MsgOptionAttachments(m.attachments()...), slackapi.MsgOptionDisableLinkUnfurl(), slackapi.MsgOptionDisableMediaUnfurl(),
	)
	channel, ts, _, err := b.api.SendMessageContext(ctx, b.channel, options...)
	if err != nil {
		return apiError(ctx, call, err)
	}
	if ts == "" {
		return fmt.Errorf("%s: Slack answered something that is not its JSON", doing(call))
	}
	place.Channel, place.ID = channel, ts
	return nil
}

func doing(call notice.Call) string {
	if call == notice.Update {
		return "editing a message in Slack"
	}
	return "posting to Slack"
}

// apiError says what an error of the API's client means. Nothing of it is repeated but what is known to hold no secret: the client
// puts addresses, and parts of answers, into its errors.
func apiError(ctx context.Context, call notice.Call, err error) error {
	if limited, ok := errors.AsType[*slackapi.RateLimitedError](err); ok {
		return throttled(bounded(limited.RetryAfter), fmt.Errorf("%s: Slack answered 429", doing(call)))
	}
	if answer, ok := errors.AsType[slackapi.SlackErrorResponse](err); ok {
		word := known(answer.Err)
		said := fmt.Errorf("%s: Slack answered %s", doing(call), word)
		return &refused{word, judge(word, "slack_api", http.Header{}, said)}
	}
	if answer, ok := errors.AsType[slackapi.StatusCodeError](err); ok {
		said := fmt.Errorf("%s: Slack answered %d", doing(call), answer.Code)
		switch {
		case answer.Code == http.StatusTooManyRequests:
			return throttled(defaultPause, said)
		case answer.Code >= http.StatusInternalServerError, answer.Code == http.StatusRequestTimeout:
			return said
		}
		// The API answers errors with 200, so this is somebody in between, or another address.
		return bus.RetryAfter(parked, fmt.Errorf("it needs a person: look at api_url and at the proxy: %w", said))
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", doing(call), ctx.Err())
	}
	if ue, ok := errors.AsType[*url.Error](err); ok {
		for inner, ok := ue, true; ok; inner, ok = errors.AsType[*url.Error](inner.Err) {
			ue = inner
		}
		return fmt.Errorf("%s: %w", doing(call), ue.Err)
	}
	if _, ok := errors.AsType[*strconv.NumError](err); ok {
		return throttled(defaultPause, fmt.Errorf("%s: Slack answered 429", doing(call)))
	}
	return fmt.Errorf("%s: the answer could not be read", doing(call))
}

// checkAPI keeps the token from being sent in clear.
func checkAPI(address string) error {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.Scheme != "https" && (u.Scheme != "http" || !loopback(u.Hostname())) {
		return errors.New("it needs a person: api_url must be https, or http to a loopback host")
	}
	return nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// guarded makes a client that follows no redirects, which would carry the token to somebody else, and reads no endless answers.
func guarded(c *http.Client) *http.Client {
	var transport http.RoundTripper = &http.Transport{
		Proxy: http.ProxyFromEnvironment, TLSHandshakeTimeout: 10 * time.Second, DisableKeepAlives: true,
		DialContext: (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
	}
	wait := timeout
	if c != nil {
		if c.Transport != nil {
			transport = c.Transport
		}
		if c.Timeout > 0 {
			wait = c.Timeout
		}
	}
	return &http.Client{
		Transport: limited{transport}, Timeout: wait,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

type limited struct{ next http.RoundTripper }

func (l limited) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := l.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	resp.Body = struct {
		io.Reader
		io.Closer
	}{io.LimitReader(resp.Body, maxAnswer), resp.Body}
	return resp, nil
}
