package drill

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/consulkv"
)

// consulData asks a restored Consul.
type consulData struct{ at config.Consul }

// value reads a key in a transaction: a name with an empty or a dotted part cannot stand in a path.
func (d consulData) value(ctx context.Context, key string) (v []byte, known bool, err error) {
	type kv struct{ Verb, Key string }
	ask, err := json.Marshal([]struct{ KV kv }{{kv{"get", key}}})
	if err != nil {
		return nil, false, fmt.Errorf("encoding the question: %w", err)
	}
	err = d.ask(ctx, http.MethodPut, "/v1/txn", ask, func(resp *http.Response) error {
		var answer struct {
			Results []struct{ KV struct{ Value []byte } }
		}
		switch resp.StatusCode {
		case http.StatusConflict: // so it says that there is no such key
			return nil
		case http.StatusOK:
			if derr := json.NewDecoder(resp.Body).Decode(&answer); derr != nil {
				return derr
			}
			if known = len(answer.Results) == 1; known {
				v = answer.Results[0].KV.Value
			}
			return nil
		}
		return source.NewStatusError(resp)
	})
	return v, known, err
}

func (d consulData) under(ctx context.Context, prefix string) (n int64, err error) {
	// Consul cleans what stands in a path as if it were a file's, so that only a part of the prefix may be asked for.
	asked := consulkv.CommonPrefix([]string{prefix})
	path := "/v1/kv/" + (&url.URL{Path: asked}).EscapedPath() + "?keys&consistent"
	err = d.ask(ctx, http.MethodGet, path, nil, func(resp *http.Response) error {
		switch resp.StatusCode {
		case http.StatusNotFound: // so it says that there is none
			return nil
		case http.StatusOK:
			n, err = countTexts(resp.Body, prefix)
			return err
		}
		return source.NewStatusError(resp)
	})
	return n, err
}

// countTexts counts the elements of a list of texts that begin with a prefix.
func countTexts(r io.Reader, prefix string) (n int64, err error) {
	dec := json.NewDecoder(r)
	if _, err = dec.Token(); err != nil {
		return 0, err
	}
	for dec.More() {
		t, terr := dec.Token()
		if terr != nil {
			return 0, terr
		}
		if key, ok := t.(string); ok && strings.HasPrefix(key, prefix) {
			n++
		}
	}
	_, err = dec.Token()
	return n, err
}

// ask sends a question and has its answer read.
func (d consulData) ask(ctx context.Context, method, path string, body []byte, read func(*http.Response) error) error {
	client, err := consulkv.NewClient(d.at, 0)
	if err != nil {
		return err
	}
	defer client.Close()
	resp, err := client.Do(ctx, method, path, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("asking the restored server: %w", err)
	}
	defer resp.Body.Close()
	if err := read(resp); err != nil {
		return fmt.Errorf("asking the restored server: %w", err)
	}
	return nil
}
