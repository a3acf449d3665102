package silence

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
)

const (
	// PagePath is where links lead, below external_url.
	PagePath = "/silence"
	// domain keeps a signature of ours from being good for anything else that is signed with the same secret.
	domain = "lifeboat/silence-link/v1\x00"
	// minSecret is the shortest secret in characters, maxSecrets how many are tried.
	minSecret, maxSecrets = 32, 8
	// maxURL is the longest link. Chats and proxies take 2,000 characters and little more, and three of them must leave room in a
	// message of DingTalk's 20,000 bytes.
	maxURL = 2000
	// maxTitle is how much of the comment a link carries, in characters.
	maxTitle = 120
)

var (
	errForged  = errors.New("the link is not valid")
	errExpired = errors.New("the link has expired")
)

// token is what a link carries.
type token struct {
	Matchers map[string]string `json:"matchers"`
	Comment  string            `json:"comment"`
	Seconds  int64             `json:"seconds"`
	// Expiry in seconds since 1970.
	Expiry int64 `json:"expiry"`
	// ID tells one link from another in the audit log.
	ID string `json:"id"`
}

func (t token) lasts() time.Duration { return time.Duration(t.Seconds) * time.Second }

// Links are the signed addresses of the pages that silence these labels: for an hour, for four, and for as long as an
// acknowledgement lasts. There are none when links are not configured, when the labels would match everything, or when they are
// too long for an address.
func (s *Silencer) Links(cfg config.Interactions, w notice.Words, matchers map[string]string, comment string) []notice.Link {
	if cfg.Listen == "" || cfg.ExternalURL == "" || cfg.LinkSecretFile == "" {
		return nil
	}
	all, err := secrets(cfg.LinkSecretFile)
	if err != nil {
		s.tell("links to silence cannot be made", err)
		return nil
	}
	s.tell("", nil)
	base := strings.TrimSuffix(cfg.ExternalURL, "/") + PagePath + "?t="
	comment = clean(comment, maxTitle)
	expiry := s.o.Now().Add(cfg.LinkTTL).Unix()
	kinds := []struct {
		label string
		lasts time.Duration
	}{
		{fmt.Sprintf(w.Silence, "1h"), time.Hour},
		{fmt.Sprintf(w.Silence, "4h"), 4 * time.Hour},
		{w.Acknowledge, cfg.AcknowledgeFor},
	}
	out := make([]notice.Link, 0, len(kinds))
	for _, k := range kinds {
		if check(request{matchers: matchers, lasts: k.lasts, author: "somebody"}) != nil {
			return nil
		}
		signed, err := sign(all[0], token{
			Matchers: matchers, Comment: comment, Seconds: int64(k.lasts / time.Second), Expiry: expiry, ID: rand.Text()[:10],
		})
		if err != nil || len(base)+len(signed) > maxURL {
			return nil
		}
		out = append(out, notice.Link{Label: k.label, URL: base + signed})
	}
	return out
}

// tell logs a trouble once, until it is another one or none.
func (s *Silencer) tell(what string, err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	s.mu.Lock()
	news := s.told != text
	s.told = text
	s.mu.Unlock()
	if news && err != nil {
		s.o.Logger.Warn("interactions do not work", slog.String("what", what), slog.Any("err", err))
	}
}

// Check reads the secret files of the configuration and says what is wrong with them.
func Check(cfg config.Interactions) error {
	var errs []error
	if cfg.LinkSecretFile != "" {
		if _, err := secrets(cfg.LinkSecretFile); err != nil {
			errs = append(errs, fmt.Errorf("notifier.interactions.link_secret_file: %w", err))
		}
	}
	for key, file := range map[string]config.SecretFile{
		"slack_signing_secret_file": cfg.SlackSigningSecretFile, "slack_app_token_file": cfg.SlackAppTokenFile,
	} {
		if file == "" {
			continue
		}
		if _, err := file.Read(); err != nil {
			errs = append(errs, fmt.Errorf("notifier.interactions.%s: %w", key, err))
		}
	}
	return errors.Join(errs...)
}

// secrets reads the secrets of links, one a line: the first signs and all verify, so that a new one can be put before the old,
// and the old one taken away when its links have expired.
func secrets(file config.SecretFile) ([][]byte, error) {
	all, err := lines(file)
	if err != nil {
		return nil, err
	}
	for i, secret := range all {
		if len(secret) < minSecret {
			return nil, fmt.Errorf("secret file %s: secret %d has %d characters; at least %d are needed (make one with: openssl rand -hex 32)",
				file, i+1, len(secret), minSecret)
		}
	}
	return all, nil
}

// lines reads a file of secrets, one a line.
func lines(file config.SecretFile) ([][]byte, error) {
	text, err := file.Read()
	if err != nil {
		return nil, err
	}
	var out [][]byte
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" {
			out = append(out, []byte(line))
		}
	}
	if len(out) > maxSecrets {
		return nil, fmt.Errorf("secret file %s has %d secrets; at most %d are tried, so take the oldest away", file, len(out), maxSecrets)
	}
	return out, nil
}

// sign writes base64url(JSON) "." base64url(HMAC-SHA256).
func sign(secret []byte, t token) (string, error) {
	b, err := json.Marshal(t)
	if err != nil {
		return "", fmt.Errorf("writing a link's content: %w", err)
	}
	body := base64.RawURLEncoding.EncodeToString(b)
	return body + "." + base64.RawURLEncoding.EncodeToString(mac(secret, body)), nil
}

func mac(secret []byte, body string) []byte {
	h := hmac.New(sha256.New, secret)
	h.Write([]byte(domain + body))
	return h.Sum(nil)
}

// verify reads a signed token. Nothing of it is parsed before its signature is known to be ours.
func verify(all [][]byte, signed string, now time.Time) (token, error) {
	body, sum, ok := strings.Cut(signed, ".")
	if !ok || len(signed) > maxURL {
		return token{}, errForged
	}
	theirs, err := base64.RawURLEncoding.Strict().DecodeString(sum)
	if err != nil {
		return token{}, errForged
	}
	good := false
	for _, secret := range all {
		good = hmac.Equal(mac(secret, body), theirs) || good
	}
	if !good {
		return token{}, errForged
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(body)
	if err != nil {
		return token{}, errForged
	}
	var t token
	if err := json.Unmarshal(b, &t); err != nil {
		return token{}, errForged
	}
	if now.Unix() >= t.Expiry {
		return token{}, errExpired
	}
	return t, nil
}
