package throwaway

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source"
)

const (
	// pollEvery is how often a starting server is asked whether it is ready. Both take about two seconds to elect themselves.
	pollEvery = 20 * time.Millisecond
	maxAnswer = 1 << 20
)

// until asks again and again until ask has no error, the server ends, or ctx does.
func (s *Server) until(ctx context.Context, what string, ask func() error) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		err := ask()
		if err == nil {
			return nil
		}
		select {
		case <-s.process.done:
			return s.process.ended()
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w (last: %w)%s", what, context.Cause(ctx), err, quoteTail(s.process.log, 0, true))
		case <-tick.C:
		}
	}
}

// call sends a request and decodes the answer into out, if that is not nil. Any answer but 200 and the given ones is an error,
// which has no part of the request's body.
func (s *Server) call(ctx context.Context, method, path string, body, out any, accept ...int) (err error) {
	var content io.Reader
	if body != nil {
		b, merr := json.Marshal(body)
		if merr != nil {
			return merr
		}
		content = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, s.base+path, content)
	if err != nil {
		return err
	}
	if s.Token != "" {
		req.Header.Set("X-Nomad-Token", s.Token)
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	for _, status := range append(accept, http.StatusOK) {
		if resp.StatusCode != status {
			continue
		}
		if out == nil {
			return nil
		}
		if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(out); err != nil {
			return fmt.Errorf("decoding the answer of %s: %w", path, err)
		}
		return nil
	}
	return fmt.Errorf("%s %w", path, source.NewStatusError(resp))
}
