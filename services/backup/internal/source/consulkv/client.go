// Package consulkv speaks of Consul's keys with an agent: which names its API takes as they are written, what a token may read, and
// lists of keys as the agent and the stock tool write them. Reading and restoring share it.
package consulkv

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source"
)

// infoTimeout bounds each short question to the agent.
const infoTimeout = 10 * time.Second

// Client is what one read or restore needs; it is made anew each time, so that certificates and the token may rotate.
type Client struct {
	// HTTP has connections of its own.
	HTTP *http.Client

	base  string
	shown string
	token string
}

// NewClient makes one whose answers begin within header; source.DefaultIdle when zero. Nothing is contacted.
func NewClient(cfg config.Consul, header time.Duration) (*Client, error) {
	shown := source.Endpoint(cfg.Address)
	bad := func(doing string, err error) error {
		return &source.Error{Reason: source.Misconfigured, Endpoint: shown, Doing: doing, Err: err}
	}
	if _, err := url.Parse(cfg.Address); err != nil {
		return nil, bad("reading the address", errors.New("it is no URL"))
	}
	c := &Client{shown: shown}
	var err error
	if cfg.TokenFile != "" {
		if c.token, err = cfg.TokenFile.Read(); err != nil {
			return nil, bad("reading the token", err)
		}
	}
	if c.HTTP, c.base, err = source.NewHTTPClient(cfg.Address, cfg.TLS, header); err != nil {
		return nil, bad("connecting", err)
	}
	return c, nil
}

// Endpoint is the address as it may be shown.
func (c *Client) Endpoint() string { return c.shown }

// Close gives the connections back that no answer uses.
func (c *Client) Close() { c.HTTP.CloseIdleConnections() }

// Get asks. The answer may have any status, and its body is the caller's to close.
func (c *Client) Get(ctx context.Context, path string) (*http.Response, error) {
	return c.Do(ctx, http.MethodGet, path, nil)
}

// Do sends a request, as http.NewRequestWithContext makes it, with the token.
func (c *Client) Do(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return nil, fmt.Errorf("making the request: %w", err)
	}
	if c.token != "" {
		req.Header.Set("X-Consul-Token", c.token)
	}
	return c.HTTP.Do(req)
}

// GetJSON asks a short question.
func (c *Client) GetJSON(ctx context.Context, path, doing string, out any) error {
	askCtx, cancel := context.WithTimeout(ctx, infoTimeout)
	defer cancel()
	resp, err := c.Get(askCtx, path)
	if err != nil {
		return c.Failed(ctx, source.Unreachable, doing, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return c.Refused(ctx, resp, doing)
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return c.Failed(ctx, source.Damaged, doing, err)
	}
	return nil
}

// Failed makes an error of this agent's.
func (c *Client) Failed(ctx context.Context, reason source.Reason, doing string, err error) error {
	return source.Classify(ctx, reason, c.shown, doing, err)
}

// Refused makes an error of an answer with another status than 200.
func (c *Client) Refused(ctx context.Context, resp *http.Response, doing string) error {
	return c.Failed(ctx, source.ReasonOfStatus(resp.StatusCode), doing, source.NewStatusError(resp))
}
