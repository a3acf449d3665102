package silence

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-openapi/runtime"
	httptransport "github.com/go-openapi/runtime/client"
	"github.com/go-openapi/strfmt"
	"github.com/prometheus/alertmanager/api/v2/client"
	"github.com/prometheus/alertmanager/api/v2/client/silence"
	"github.com/prometheus/alertmanager/api/v2/models"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

const (
	// requestTimeout bounds one request, so that a hanging Alertmanager does not keep a person from the next one.
	requestTimeout = 5 * time.Second
	// samePress is how much later an end may be than that of a silence that is there already: a second press, a retry and a
	// replay (Slack's signatures are good for five minutes) ask for a slightly later end than the first.
	samePress = 5 * time.Minute
	// maxLasts keeps a mistyped duration from silencing an alert for good.
	maxLasts    = 31 * 24 * time.Hour
	maxMatchers = 64
	maxAuthor   = 200
	maxComment  = 1000
)

// request is what a person asks for.
type request struct {
	matchers map[string]string
	lasts    time.Duration
	author   string
	comment  string
	way      string
	// attributes are what else the audit log is told.
	attributes map[string]string
}

// made is a silence that is in force.
type made struct {
	id    string
	until time.Time
	// existing: it was there before.
	existing bool
}

// refusedError: the request asks for what must not be, and asking again does not help.
type refusedError struct{ why string }

func (e *refusedError) Error() string { return e.why }

// unreachableError: no Alertmanager took the silence; it has each one's reason.
type unreachableError []error

func (e unreachableError) Error() string {
	all := make([]string, len(e))
	for i, err := range e {
		all[i] = err.Error()
	}
	return "no Alertmanager of alertmanager.urls took the silence: " + strings.Join(all, "; ")
}

func (e unreachableError) Unwrap() []error { return e }

// Create silences the alerts whose labels have exactly these values, from now on, at the first Alertmanager of
// alertmanager.urls that takes it, and returns the silence's id. Alertmanagers of a cluster share silences. When the same author
// has a silence for the same labels that lasts as long, its id is returned and nothing is created.
//
// Labels that are empty, or absent altogether, are refused: such a silence would match everything.
func (s *Silencer) Create(ctx context.Context, matchers map[string]string, lasts time.Duration, author, comment string) (id string, err error) {
	m, err := s.create(ctx, request{matchers: matchers, lasts: lasts, author: author, comment: comment, way: wayAPI})
	return m.id, err
}

func (s *Silencer) create(ctx context.Context, r request) (made, error) {
	r.author, r.comment = clean(r.author, maxAuthor), clean(r.comment, maxComment)
	if r.comment == "" {
		r.comment = "silenced from chat"
	}
	if err := check(r); err != nil {
		s.metrics.count(r.way, "refused")
		return made{}, err
	}
	release, err := s.turns.take(ctx, r.author+"\n"+describe(r.matchers))
	if err != nil {
		s.metrics.count(r.way, "failed")
		return made{}, err
	}
	defer release()
	m, err := s.anywhere(ctx, r)
	switch {
	case err != nil:
		s.metrics.count(r.way, "failed")
		return made{}, err
	case m.existing:
		s.metrics.count(r.way, "existing")
		return m, nil
	}
	s.metrics.count(r.way, "created")
	s.o.Logger.InfoContext(ctx, "silence created", slog.String("silence_id", m.id), slog.String("author", r.author),
		slog.String("matchers", describe(r.matchers)), slog.Time("until", m.until), slog.String("way", r.way))
	s.record(ctx, r, m)
	return m, nil
}

func check(r request) error {
	switch {
	case len(r.matchers) == 0:
		return &refusedError{"a silence without labels would match every alert"}
	case len(r.matchers) > maxMatchers:
		return &refusedError{fmt.Sprintf("a silence of %d labels; at most %d are taken", len(r.matchers), maxMatchers)}
	case r.author == "":
		return &refusedError{"nobody is named as the silence's author"}
	case r.lasts < time.Second || r.lasts > maxLasts:
		return &refusedError{fmt.Sprintf("a silence lasts from a second to %d days, not %s", int(maxLasts.Hours()/24), r.lasts)}
	}
	narrow := false
	for name, value := range r.matchers {
		if name == "" || !utf8.ValidString(name) || !utf8.ValidString(value) {
			return &refusedError{fmt.Sprintf("%q is not a label", name)}
		}
		narrow = narrow || value != ""
	}
	if !narrow {
		return &refusedError{"a silence of empty labels only would match nearly every alert"}
	}
	return nil
}

// anywhere asks one Alertmanager after the other.
func (s *Silencer) anywhere(ctx context.Context, r request) (made, error) {
	addresses := s.o.Config().Alertmanager.URLs
	if len(addresses) == 0 {
		return made{}, errors.New("alertmanager.urls is empty, so there is nowhere to create a silence")
	}
	var failed unreachableError
	for _, address := range addresses {
		m, err := s.at(ctx, address, r)
		if err == nil {
			return m, nil
		}
		failed = append(failed, fmt.Errorf("%s: %w", address, err))
		if ctx.Err() != nil {
			break
		}
	}
	return made{}, failed
}

// at looks for the silence at one Alertmanager and creates it when it is not there.
func (s *Silencer) at(ctx context.Context, address string, r request) (made, error) {
	api, err := s.api(address)
	if err != nil {
		return made{}, err
	}
	list, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	yes, no := true, false
	known, err := api.GetSilences(silence.NewGetSilencesParamsWithContext(list).WithActive(&yes).WithPending(&yes).WithExpired(&no))
	if err != nil {
		return made{}, fmt.Errorf("listing silences: %w", reason(err))
	}
	now := s.o.Now()
	until := now.Add(r.lasts)
	if m, ok := find(known.GetPayload(), r, now, until); ok {
		return m, nil
	}
	post, cancelPost := context.WithTimeout(ctx, requestTimeout)
	defer cancelPost()
	starts, ends := strfmt.DateTime(now), strfmt.DateTime(until)
	created, err := api.PostSilences(silence.NewPostSilencesParamsWithContext(post).WithSilence(&models.PostableSilence{
		Silence: models.Silence{
			Matchers: exact(r.matchers), StartsAt: &starts, EndsAt: &ends, CreatedBy: &r.author, Comment: &r.comment,
		},
	}))
	if err != nil {
		return made{}, fmt.Errorf("creating the silence: %w", reason(err))
	}
	return made{id: created.GetPayload().SilenceID, until: until}, nil
}

func (s *Silencer) api(address string) (silence.ClientService, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, fmt.Errorf("parsing the Alertmanager's URL: %w", bare(err))
	}
	transport := httptransport.NewWithClient(u.Host, strings.TrimSuffix(u.Path, "/")+client.DefaultBasePath, []string{u.Scheme}, s.alertmanagers)
	return client.New(transport, strfmt.Default).Silence, nil
}

// reason is an error of the client in few words.
func reason(err error) error {
	if api, ok := errors.AsType[*runtime.APIError](err); ok {
		return fmt.Errorf("status %d (%s)", api.Code, http.StatusText(api.Code))
	}
	if bad, ok := errors.AsType[*silence.PostSilencesBadRequest](err); ok {
		return fmt.Errorf("refused: %s", clean(bad.Payload, maxComment))
	}
	return bare(err)
}

// bare takes the address off an HTTP client's error: it may be a secret, and where it is none the caller names it.
func bare(err error) error {
	for {
		u, ok := errors.AsType[*url.Error](err)
		if !ok {
			return err
		}
		err = u.Err
	}
}

func exact(matchers map[string]string) models.Matchers {
	out := make(models.Matchers, 0, len(matchers))
	yes, no := true, false
	for _, name := range slices.Sorted(maps.Keys(matchers)) {
		value := matchers[name]
		out = append(out, &models.Matcher{Name: &name, Value: &value, IsEqual: &yes, IsRegex: &no})
	}
	return out
}

// find looks for the silence of the same person that makes this one needless, and takes the one that lasts longest.
func find(known models.GettableSilences, r request, now, until time.Time) (made, bool) {
	var best made
	earliest := until.Add(-min(samePress, r.lasts/2))
	for _, g := range known {
		if g == nil || g.ID == nil || g.CreatedBy == nil || g.StartsAt == nil || g.EndsAt == nil {
			continue
		}
		ends := time.Time(*g.EndsAt)
		if *g.CreatedBy != r.author || time.Time(*g.StartsAt).After(now.Add(samePress)) || ends.Before(earliest) || !same(g.Matchers, r.matchers) {
			continue
		}
		if !best.existing || ends.After(best.until) {
			best = made{id: *g.ID, until: ends, existing: true}
		}
	}
	return best, best.existing
}

func same(theirs models.Matchers, ours map[string]string) bool {
	if len(theirs) != len(ours) {
		return false
	}
	for _, m := range theirs {
		if m == nil || m.Name == nil || m.Value == nil || m.IsRegex != nil && *m.IsRegex || m.IsEqual != nil && !*m.IsEqual {
			return false
		}
		if value, ok := ours[*m.Name]; !ok || value != *m.Value {
			return false
		}
	}
	return true
}

// record writes into the audit log. The silence is in force, so a log that cannot be written is only told.
func (s *Silencer) record(ctx context.Context, r request, m made) {
	attributes := map[string]string{
		"silence_id": m.id, "matchers": describe(r.matchers), "until": m.until.UTC().Format(time.RFC3339),
		"seconds": strconv.FormatInt(int64(r.lasts.Seconds()), 10), "comment": r.comment, "way": r.way,
	}
	maps.Copy(attributes, r.attributes)
	target := r.matchers["target"]
	if !config.ValidName(target) {
		target = ""
	}
	err := s.o.Emit(context.WithoutCancel(ctx), &lifeboatv1.Event{
		Id: "silence-created-" + m.id, Noun: "silence", Verb: "created", Target: target, RequestedBy: r.author,
		Message:    fmt.Sprintf("%s silenced %s for %s", r.author, describe(r.matchers), short(r.lasts)),
		Attributes: attributes,
	})
	if err != nil {
		s.o.Logger.WarnContext(ctx, "could not record a silence in the audit log", slog.String("silence_id", m.id), slog.Any("err", err))
	}
}

// describe writes labels as Alertmanager does: {alertname="DiskFull", target="etcd-prod"}.
func describe(matchers map[string]string) string {
	parts := make([]string, 0, len(matchers))
	for _, name := range slices.Sorted(maps.Keys(matchers)) {
		parts = append(parts, name+"="+strconv.Quote(matchers[name]))
	}
	return "{" + strings.Join(parts, ", ") + "}"
}

// short is a duration without the parts that are nothing: 1h, 1h30m, 45s.
func short(d time.Duration) string {
	s := d.Round(time.Second).String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// clean makes one line of a text that people typed, without what would change how the rest is read, and at most so many
// characters long.
func clean(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case unicode.IsControl(r), r == '\u2028', r == '\u2029':
			return ' '
		case r >= '\u202a' && r <= '\u202e', r >= '\u2066' && r <= '\u2069', r == utf8.RuneError:
			return -1
		}
		return r
	}, s)
	s = strings.Join(strings.Fields(s), " ")
	if runes := []rune(s); len(runes) > limit {
		return string(runes[:limit-1]) + "…"
	}
	return s
}
