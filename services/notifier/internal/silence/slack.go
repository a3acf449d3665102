package silence

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/slack-go/slack"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
)

const (
	// SlackPath is Slack's request URL, below external_url.
	SlackPath = "/slack/interactions"
	// silenceAction begins the action ids of the buttons that silence, ackAction is that of the acknowledgement.
	silenceAction, ackAction = "lifeboat_silence_", "lifeboat_ack"
	// maxInteraction is more than Slack sends: the whole message comes with it.
	maxInteraction = 512 << 10
	// responseHost is where Slack takes answers: https://docs.slack.dev/interactivity/handling-user-interaction/#message_responses.
	responseHost = "hooks.slack.com"
	// replies is how often an answer is tried, replyPause the first pause between two.
	replies    = 3
	replyPause = 500 * time.Millisecond
)

// button is the value of a button.
type button struct {
	Receiver string            `json:"r"`
	Matchers map[string]string `json:"m"`
	Comment  string            `json:"c"`
	Seconds  int64             `json:"d"`
}

// press is a button that somebody pressed.
type press struct {
	button
	ack           bool
	user, name    string
	response, way string
	// message is where the button stands.
	message string
	// broken says why the button's value cannot be used.
	broken error
}

// interactions answers Slack's request URL. Slack shows an error when it is not answered within 3 seconds, so the silence is
// created afterwards.
func (s *Silencer) interactions(w http.ResponseWriter, r *http.Request) {
	cfg := s.o.Config().Notifier.Interactions
	if cfg.SlackSigningSecretFile == "" {
		http.Error(w, "Slack's buttons are not configured (notifier.interactions.slack_signing_secret_file)", http.StatusNotFound)
		return
	}
	if !s.presses.allow(r.RemoteAddr, s.o.Now()) {
		s.metrics.count(waySlack, "refused") // and no line in the log, which others could fill
		w.Header().Set("Retry-After", "60")
		http.Error(w, "too many requests", http.StatusTooManyRequests)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxInteraction))
	if err != nil {
		code := http.StatusBadRequest
		if _, large := errors.AsType[*http.MaxBytesError](err); large {
			code = http.StatusRequestEntityTooLarge
		}
		s.refuse(w, r, code, errors.New("the body cannot be read"))
		return
	}
	signing, err := lines(cfg.SlackSigningSecretFile)
	if err != nil {
		s.tell("Slack's signatures cannot be checked", err)
		http.Error(w, "signatures cannot be checked now", http.StatusServiceUnavailable)
		return
	}
	if err = signed(r.Header, body, signing); err != nil {
		s.refuse(w, r, http.StatusUnauthorized, err)
		return
	}
	presses, err := parse(body)
	if err != nil {
		s.refuse(w, r, http.StatusBadRequest, err)
		return
	}
	sum := sha256.Sum256([]byte(r.Header.Get("X-Slack-Request-Timestamp") + ":" + string(body)))
	if !s.accept(r.Context(), hex.EncodeToString(sum[:]), presses) {
		http.Error(w, "too much to do; press again", http.StatusServiceUnavailable)
		return
	}
	w.WriteHeader(http.StatusOK)
}

func (s *Silencer) refuse(w http.ResponseWriter, r *http.Request, code int, err error) {
	s.metrics.count(waySlack, "refused")
	s.o.Logger.WarnContext(r.Context(), "refused a request to Slack's request URL", slog.Int("code", code), slog.Any("err", err),
		slog.String("remote", r.RemoteAddr))
	http.Error(w, err.Error(), code)
}

// signed verifies a request by any of the signing secrets, and that it is not older than five minutes.
func signed(h http.Header, body []byte, signing [][]byte) error {
	var err error
	for _, secret := range signing {
		var verifier slack.SecretsVerifier
		verifier, err = slack.NewSecretsVerifier(h, string(secret))
		if err != nil {
			break
		}
		if _, err = verifier.Write(body); err != nil {
			break
		}
		if err = verifier.Ensure(); err == nil {
			return nil
		}
	}
	if errors.Is(err, slack.ErrExpiredTimestamp) {
		return errors.New("the request is older than five minutes, or the clocks differ")
	}
	// The verifier's error may hold what was sent.
	return errors.New("the request is not signed by Slack with slack_signing_secret_file")
}

func parse(body []byte) ([]press, error) {
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return nil, errors.New("the body is not a form")
	}
	var callback slack.InteractionCallback
	if err := json.Unmarshal([]byte(form.Get("payload")), &callback); err != nil {
		return nil, errors.New("the payload is not Slack's")
	}
	return pressed(callback, waySlack), nil
}

// pressed are the buttons of ours in an interaction. Everything else is somebody else's.
func pressed(c slack.InteractionCallback, way string) []press {
	if c.Type != slack.InteractionTypeBlockActions {
		return nil
	}
	var out []press
	for _, a := range c.ActionCallback.BlockActions {
		if a == nil || a.ActionID != ackAction && !strings.HasPrefix(a.ActionID, silenceAction) {
			continue
		}
		p := press{
			ack: a.ActionID == ackAction, user: c.User.ID, name: c.User.RealName, response: c.ResponseURL, way: way,
			message: c.Container.MessageTs,
		}
		if p.name == "" {
			p.name = c.User.Name
		}
		if err := json.Unmarshal([]byte(a.Value), &p.button); err != nil {
			p.broken = &refusedError{"the button cannot be read; silence in Alertmanager"}
		}
		out = append(out, p)
	}
	return out
}

// accept begins what the buttons ask for. It returns false when there is too much to do; a request that came before is accepted,
// and nothing is done.
func (s *Silencer) accept(ctx context.Context, key string, presses []press) bool {
	if len(presses) == 0 || !s.seen.first(key, s.o.Now()) {
		return true
	}
	started := s.jobs.start(ctx, func(ctx context.Context) {
		for _, p := range presses {
			s.do(ctx, p)
		}
	})
	if !started {
		s.seen.forget(key)
		s.metrics.count(presses[0].way, "refused")
		s.o.Logger.WarnContext(ctx, "too many silences on their way; a press was refused", slog.Int("limit", maxJobs))
	}
	return started
}

// do creates the silence of one press and tells the person.
func (s *Silencer) do(ctx context.Context, p press) {
	cfg := s.o.Config()
	lasts := time.Duration(p.Seconds) * time.Second
	if p.Seconds > int64(maxLasts/time.Second) {
		lasts = maxLasts + time.Second // refused, and does not overflow
	}
	if p.ack {
		lasts = cfg.Notifier.Interactions.AcknowledgeFor
	}
	r := request{
		matchers: p.Matchers, lasts: lasts, author: author(p.name, p.user), comment: p.Comment, way: p.way,
		attributes: map[string]string{"receiver": p.Receiver, "user": p.user},
	}
	m, err := made{}, p.broken
	if err == nil {
		m, err = s.create(ctx, r)
	} else {
		s.metrics.count(p.way, "refused")
	}
	if err != nil {
		s.o.Logger.WarnContext(ctx, "could not create a silence", slog.String("way", p.way), slog.String("author", r.author), slog.Any("err", err))
	}
	if err = s.reply(ctx, p, s.answer(receiver(cfg, p.Receiver), p, r, m, err)); err != nil {
		s.o.Logger.WarnContext(ctx, "could not tell a person in Slack what became of a silence", slog.String("author", r.author), slog.Any("err", err))
	}
}

// author is "Name (U0123)": the id is who it was, and the name is what that person chose.
func author(name, id string) string {
	name = clean(name, maxAuthor/2)
	if id == "" {
		return "" // refused
	}
	if name == "" {
		return id
	}
	return fmt.Sprintf("%s (%s)", name, id)
}

// answer is what is told in Slack: to everybody in the message's thread when it is silent now, for others want to know that
// somebody is at it, and else to the person alone.
func (s *Silencer) answer(to config.Receiver, p press, r request, m made, err error) *slack.WebhookMessage {
	w := wordsIn(to.Language)
	if err != nil {
		return &slack.WebhookMessage{ResponseType: slack.ResponseTypeEphemeral, Text: escape(fmt.Sprintf(w.Refused, err))}
	}
	zone, zoneErr := time.LoadLocation(to.TimeZone)
	if zoneErr != nil {
		zone = time.UTC
	}
	format := "15:04 MST"
	if now, until := s.o.Now().In(zone), m.until.In(zone); now.YearDay() != until.YearDay() || now.Year() != until.Year() {
		format = "2006-01-02 15:04 MST"
	}
	id := escape(m.id)
	if page := s.alertmanager(m.id); page != "" {
		id = "<" + escape(page) + "|" + id + ">"
	}
	text, kind := w.Silenced, slack.ResponseTypeInChannel
	switch {
	case m.existing:
		text, kind = w.AlreadySilenced, slack.ResponseTypeEphemeral
	case p.ack:
		text = w.Acknowledged
	}
	out := &slack.WebhookMessage{
		ResponseType: kind, Text: fmt.Sprintf(text, short(r.lasts), escape(r.author), m.until.In(zone).Format(format), id),
	}
	if kind == slack.ResponseTypeInChannel {
		out.ThreadTimestamp = p.message
	}
	return out
}

// escape makes plain text of what may look like Slack's markup: https://docs.slack.dev/messaging/formatting-message-text/#escaping.
func escape(s string) string {
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;").Replace(s)
}

// reply posts an answer where Slack said. The address is a secret and comes from outside, so it is only used when it is Slack's.
func (s *Silencer) reply(ctx context.Context, p press, m *slack.WebhookMessage) error {
	if p.response == "" {
		return nil
	}
	if !s.mayAnswer(p.response) {
		return errors.New("the response_url is not below https://" + responseHost + "/")
	}
	var err error
	for i := range replies {
		if i > 0 {
			pause := time.NewTimer(replyPause << (i - 1))
			select {
			case <-pause.C:
			case <-ctx.Done():
				pause.Stop()
				return fmt.Errorf("answering: %w", ctx.Err())
			}
		}
		attempt, cancel := context.WithTimeout(ctx, requestTimeout)
		err = slack.PostWebhookCustomHTTPContext(attempt, p.response, s.http, m)
		cancel()
		if err == nil {
			return nil
		}
		status, ok := errors.AsType[slack.StatusCodeError](err)
		if ok && status.Code < http.StatusInternalServerError && status.Code != http.StatusTooManyRequests {
			break
		}
	}
	return fmt.Errorf("answering: %w", bare(err))
}

func (s *Silencer) mayAnswer(address string) bool {
	u, err := url.Parse(address)
	if err != nil || u.User != nil {
		return false
	}
	if u.Scheme == "https" && u.Host == responseHost {
		return true
	}
	return s.o.AllowedResponsePrefix != "" && strings.HasPrefix(address, s.o.AllowedResponsePrefix)
}
