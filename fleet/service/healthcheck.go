package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
)

// How much of an answer that is not 200 is shown, in bytes: /readyz says in a few lines what is missing.
const maxUnhealthyBody = 4 << 10

// HealthcheckCommand is `healthcheck [URL]`, for images that have no shell and no curl: it exits 0 when the URL answers 200, and 1 when it
// does not. Without a URL it asks /readyz at addr, by https when it was given files for TLS. An empty addr makes the URL required.
func HealthcheckCommand(addr string) *cobra.Command {
	h := healthcheck{addr: addr}
	cmd := &cobra.Command{
		Use:   "healthcheck [URL]",
		Short: "Exit 0 when the service is ready, for images without a shell",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			body, err := h.run(cmd.Context(), strings.Join(args, ""))
			if err != nil {
				return err
			}
			_, err = io.WriteString(cmd.OutOrStdout(), body)
			return err
		},
	}
	if addr == "" {
		cmd.Use = "healthcheck URL"
		cmd.Example = "  lifeboat healthcheck http://127.0.0.1:9096/readyz\n" +
			"  lifeboat scheduler healthcheck    # the same, at the scheduler's default address"
	} else {
		cmd.Long = "healthcheck asks a URL, by default /readyz at " + addr + ", and exits 0 when the answer is 200."
		cmd.Example = "  healthcheck https://" + addr + "/readyz --ca-file tls/ca.pem    # of a service with --web-config-file"
	}
	cmd.ValidArgsFunction = cobra.NoFileCompletions
	f := cmd.Flags()
	f.StringVar(&h.tls.CAFile, "ca-file", "", "`file` of the authorities that may sign the server's certificate")
	f.StringVar(&h.tls.CertFile, "cert-file", "", "`file` of the client's certificate, where the server asks for one")
	f.StringVar((*string)(&h.tls.KeyFile), "key-file", "", "`file` of its key")
	f.StringVar(&h.username, "username", "", "user of basic authentication, where the server asks for one")
	f.StringVar((*string)(&h.password), "password-file", "", "`file` with the user's password")
	f.DurationVar(&h.timeout, "timeout", 10*time.Second, "how long to wait for the answer")
	return cmd
}

type healthcheck struct {
	addr     string
	tls      config.TLS
	username string
	password config.SecretFile
	timeout  time.Duration
}

// run returns what was answered. What cannot be asked is a UsageError.
func (h *healthcheck) run(ctx context.Context, target string) (string, error) {
	if (h.tls.CertFile == "") != (h.tls.KeyFile == "") {
		return "", &UsageError{errors.New("--cert-file and --key-file need each other")}
	}
	if (h.username == "") != (h.password == "") {
		return "", &UsageError{errors.New("--username and --password-file need each other")}
	}
	target, err := h.url(target)
	if err != nil {
		return "", &UsageError{err}
	}
	settings, err := h.tls.Client()
	if err != nil {
		return "", &UsageError{err}
	}
	ctx, cancel := context.WithTimeout(ctx, h.timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, http.NoBody)
	if err != nil {
		return "", &UsageError{err}
	}
	if h.username != "" {
		password, unread := h.password.Read()
		if unread != nil {
			return "", &UsageError{unread}
		}
		req.SetBasicAuth(h.username, password)
	}
	client := &http.Client{
		// The service itself, and no proxy of the environment nor another place that it names.
		Transport:     &http.Transport{TLSClientConfig: settings, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", fmt.Errorf("asking for health: %w", err)
	}
	defer func() { _ = resp.Body.Close() }() // it was read as far as it is wanted
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxUnhealthyBody))
	if err != nil {
		return "", fmt.Errorf("reading the answer of %s: %w", req.URL.Redacted(), err)
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s answers %s: %s", req.URL.Redacted(), resp.Status, strings.TrimSpace(string(body)))
	}
	return string(body), nil
}

// url is where to ask.
func (h *healthcheck) url(target string) (string, error) {
	if target == "" {
		if h.addr == "" {
			return "", errors.New("which service? Give its URL, such as http://127.0.0.1:9096/readyz, or say `lifeboat scheduler healthcheck`, " +
				"`lifeboat backup healthcheck` or `lifeboat notifier healthcheck` for its default address")
		}
		scheme := "http"
		if h.tls != (config.TLS{}) {
			scheme = "https"
		}
		return scheme + "://" + h.addr + "/readyz", nil
	}
	u, err := url.Parse(target)
	if err != nil {
		return "", fmt.Errorf("the URL of the health check: %w", err)
	}
	if (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return "", fmt.Errorf("the URL of the health check is %q and not like http://127.0.0.1:9096/readyz", u.Redacted())
	}
	return target, nil
}
