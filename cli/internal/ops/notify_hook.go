package ops

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/console"
	"github.com/lifeboat-fleet/lifeboat/fleet/service"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

const (
	// postTimeout is longer than the notifier takes to say that it cannot store it now.
	postTimeout = 30 * time.Second
	// maxReply is more than the notifier answers.
	maxReply = 4 << 10
)

// hook posts webhooks to a notifier.
type hook struct {
	base   *url.URL
	tokens config.SecretFile
	client *http.Client
	// newest is the place of the newest letter when the ones to send were chosen.
	newest uint64
}

// newHook is for the notifier at an address; at notifier.listen when that is empty. files are whom to believe and what to show.
func newHook(cfg config.Notifier, address string, files config.TLS) (*hook, error) {
	secure, roots, err := listenerTLS(cfg.WebConfigFile)
	if err != nil {
		return nil, &service.UsageError{Err: err}
	}
	settings, err := files.Client()
	if err != nil {
		return nil, &service.UsageError{Err: err}
	}
	if settings == nil {
		settings = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	if settings.RootCAs == nil {
		settings.RootCAs = roots
	}
	if address == "" {
		address = "http://" + reachable(cfg.Listen)
		if secure {
			address = "https://" + reachable(cfg.Listen)
		}
	}
	base, err := url.Parse(address)
	if err != nil || base.Host == "" || (base.Scheme != "http" && base.Scheme != "https") {
		return nil, console.Usagef("--url: it is not an address such as https://notifier.example.com:9095")
	}
	if base.User != nil {
		return nil, console.Usagef("--url: an address is no place for a password; post the body with curl: lifeboat dead show ID --payload")
	}
	return &hook{
		base: base, tokens: cfg.BearerTokensFile,
		client: &http.Client{
			Timeout:   postTimeout,
			Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: settings},
			// A redirect would carry the token to somebody else.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}, nil
}

// listenerTLS says whether the web configuration file makes the notifier speak TLS, and whom to believe then: who the system believes,
// and the certificate itself.
func listenerTLS(file string) (secure bool, roots *x509.CertPool, err error) {
	if file == "" {
		return false, nil, nil
	}
	text, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) { // this is another machine, and --url says the rest
		return true, nil, nil
	}
	if err != nil {
		return false, nil, fmt.Errorf("notifier.web_config_file: %w", err)
	}
	var web struct {
		TLS *struct {
			Cert     string `yaml:"cert"`
			CertFile string `yaml:"cert_file"`
		} `yaml:"tls_server_config"`
	}
	if err = yaml.Unmarshal(text, &web); err != nil {
		return false, nil, fmt.Errorf("notifier.web_config_file %s: %w", file, err)
	}
	if web.TLS == nil {
		return false, nil, nil
	}
	if roots, err = x509.SystemCertPool(); err != nil {
		roots = x509.NewCertPool()
	}
	pem := []byte(web.TLS.Cert)
	if name := web.TLS.CertFile; name != "" {
		if !filepath.IsAbs(name) { // as exporter-toolkit does
			name = filepath.Join(filepath.Dir(file), name)
		}
		if pem, err = os.ReadFile(name); err != nil {
			return false, nil, fmt.Errorf("notifier.web_config_file %s: cert_file: %w", file, err)
		}
	}
	roots.AppendCertsFromPEM(pem)
	return true, roots, nil
}

// address is where a letter's body is posted. It holds no secret.
func (h *hook) address(d *lifeboatv1.DeadLetter) string { return h.base.JoinPath(endpoint(d)).String() }

// request is a letter's body with a token.
func (h *hook) request(ctx context.Context, where string, body []byte) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, where, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	if h.tokens == "" {
		return req, nil
	}
	all, err := h.tokens.Read()
	if err != nil {
		return nil, fmt.Errorf("notifier.bearer_tokens_file: %w", err)
	}
	if tokens := strings.Fields(all); len(tokens) > 0 {
		req.Header.Set("Authorization", "Bearer "+tokens[0])
	}
	return req, nil
}

// post sends a refused webhook once more. Its letter stays when that fails.
func (h *hook) post(ctx context.Context, f *fleet, l *letter) error {
	where := h.address(l.DeadLetter)
	req, err := h.request(ctx, where, l.GetPayload())
	if err != nil {
		return fmt.Errorf("%w; the letter stays", err)
	}
	resp, err := h.client.Do(req)
	if err != nil {
		return fmt.Errorf("%w; the letter stays. Is a notifier there? From another machine, name it with --url", err)
	}
	defer func() { _ = resp.Body.Close() }() // it was only read
	said, err := io.ReadAll(io.LimitReader(resp.Body, maxReply))
	if resp.StatusCode == http.StatusOK {
		return nil
	}
	text := fmt.Sprintf("%s answered %d %s", where, resp.StatusCode, clean(string(said)))
	switch {
	case resp.StatusCode == http.StatusServiceUnavailable:
		return fmt.Errorf("%s; the letter stays. Try again when it can store alerts", text)
	case resp.StatusCode == http.StatusUnauthorized:
		return fmt.Errorf("%s; the letter stays. For basic authentication post the body with curl: lifeboat dead show %s --payload -c %s", text,
			clean(l.GetId()), f.file)
	case resp.StatusCode < 400 || resp.StatusCode >= 500:
		return errors.Join(fmt.Errorf("%s; the letter stays", text), err)
	}
	return errors.Join(fmt.Errorf("%s; the letter stays", text), h.forgetCopies(ctx, f, l))
}

// forgetCopies removes the letter that the notifier made when it refused a webhook again, for the first one is kept: who tries twice
// does not have three. Only what came after the choice can be such a copy.
func (h *hook) forgetCopies(ctx context.Context, f *fleet, l *letter) error {
	same := map[string]bool{}
	all, err := f.letters(ctx, subjectWebhook, time.Time{}, func(d *lifeboatv1.DeadLetter) bool {
		same[d.GetId()] = bytes.Equal(d.GetPayload(), l.GetPayload())
		return false
	})
	if err != nil {
		return err
	}
	for _, c := range all {
		if !same[c.GetId()] || c.seqs[0] <= h.newest {
			continue
		}
		for _, seq := range c.seqs {
			if err := f.bus.Delete(ctx, bus.StreamDead, seq); err != nil && !errors.Is(err, bus.ErrNoMessage) {
				return fmt.Errorf("removing the copy that the notifier made of it: %w", err)
			}
		}
	}
	return nil
}
