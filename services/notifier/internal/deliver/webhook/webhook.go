// Package webhook posts JSON to an address that is itself a secret: it never appears in an error, and is not sent
// anywhere in clear.
package webhook

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/web"
)

const (
	// timeout of one attempt.
	timeout = 15 * time.Second
	// maxAnswer is more than any chat answers.
	maxAnswer = 64 << 10
	// idlePerHost is how many connections to one chat stay open: as many receivers as may send at the same time.
	idlePerHost = 32
	// idleTimeout is less than after what usual servers and middle boxes forget a connection.
	idleTimeout = 55 * time.Second
)

// Client posts. It is safe for concurrent use.
type Client struct{ http *http.Client }

// New makes a client with its own connections, which uses the files for TLS. They are read again for each request.
func New(files config.TLS) *Client {
	base := &http.Transport{
		Proxy: http.ProxyFromEnvironment, TLSHandshakeTimeout: 10 * time.Second, ForceAttemptHTTP2: true,
		// All robots of a kind live on one host. A message that finds an open connection saves two round trips across the world.
		MaxIdleConns: 4 * idlePerHost, MaxIdleConnsPerHost: idlePerHost, IdleConnTimeout: idleTimeout,
		DialContext: (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
	}
	return &Client{http: &http.Client{
		Transport: web.NewTransport(base, func() config.TLS { return files }), Timeout: timeout,
		// A redirect would carry the message, and on some answers the secret, to somebody else.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Clients are one for each set of files, so that all receivers without any share their connections.
type Clients struct {
	mu  sync.Mutex
	all map[config.TLS]*Client
}

// For is the client that uses some files.
func (c *Clients) For(files config.TLS) *Client {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all[files] == nil {
		if c.all == nil {
			c.all = map[config.TLS]*Client{}
		}
		c.all[files] = New(files)
	}
	return c.all[files]
}

// Close closes idle connections.
func (c *Clients) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, client := range c.all {
		client.Close()
	}
}

// HTTP is the client below, for who asks a chat's API with more than a body. It follows no redirects.
func (c *Client) HTTP() *http.Client { return c.http }

// Close closes idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Post sends a JSON body and returns the answer, whatever its status. The address must be https, or http on a loopback
// host. An error is one of settings or network, and worth another attempt: the address is read anew for each.
func (c *Client) Post(ctx context.Context, address string, body []byte) (status int, header http.Header, answer []byte, err error) {
	u, err := url.Parse(address)
	if err != nil {
		return 0, nil, nil, errors.New("the webhook's URL cannot be parsed")
	}
	if u.Host == "" || u.Scheme != "https" && (u.Scheme != "http" || !loopback(u.Hostname())) {
		return 0, nil, nil, errors.New("the webhook's URL must be https, or http to a loopback host")
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, address, bytes.NewReader(body))
	if err != nil {
		return 0, nil, nil, errors.New("the webhook's URL cannot be used")
	}
	req.Header.Set("Content-Type", "application/json; charset=utf-8")
	req.Header.Set("User-Agent", "lifeboat-notifier")
	resp, err := c.http.Do(req)
	if err != nil {
		return 0, nil, nil, fmt.Errorf("posting to the webhook: %w", without(u, bare(err)))
	}
	defer resp.Body.Close()
	answer, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return 0, nil, nil, fmt.Errorf("reading the webhook's answer: %w", without(u, bare(err)))
	}
	return resp.StatusCode, resp.Header, answer, nil
}

// bare takes the URL off an HTTP client's error.
func bare(err error) error {
	var ue *url.Error
	for errors.As(err, &ue) {
		err = ue.Err
	}
	return err
}

// without is an error that does not repeat the address's secret parts, should the server have sent them back in an answer that is not
// HTTP: the library quotes such an answer.
func without(u *url.URL, err error) error {
	text := err.Error()
	secrets := strings.Split(u.EscapedPath(), "/")
	for _, values := range u.Query() {
		for _, v := range values {
			secrets = append(secrets, v, url.QueryEscape(v))
		}
	}
	for _, s := range append(secrets, u.RawQuery) {
		if len(s) > 4 && strings.Contains(text, s) {
			return errors.New("the server's answer is not HTTP, and repeats what it was sent")
		}
	}
	return err
}

func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
