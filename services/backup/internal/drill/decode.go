package drill

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// decoded is the drill of a kind that cannot be restored yet: all of the data is read as its tool would read it, and
// what is in it is counted.
func (r *run) decoded(ctx context.Context, count func(io.Reader) (map[string]int64, error)) error {
	var found map[string]int64
	err := r.phase(ctx, "decode", func() error {
		data, err := r.in.Open(ctx)
		if err != nil {
			return fmt.Errorf("opening the snapshot: %w", err)
		}
		defer data.Close() // it was read to its end, or there is a better error
		src := &ctxReader{ctx: ctx, r: data}
		if found, err = count(src); err != nil {
			return err
		}
		// What follows the data is nothing, but only the end says that the digest is right.
		if _, err := io.Copy(io.Discard, src); err != nil {
			return fmt.Errorf("reading the end of the snapshot: %w", err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	r.report.Level = lifeboatv1.DrillReport_LEVEL_DECODED
	return r.phase(ctx, "compare", func() error {
		for _, name := range []string{"keys", "bytes", "jobs", "namespaces", "submissions"} {
			if got, ok := found[name]; ok {
				r.compareCount(name, got)
			}
		}
		return r.differences()
	})
}

// ctxReader ends a read when the context does.
type ctxReader struct {
	ctx context.Context //nolint:containedctx // an io.Reader is given none
	r   io.Reader
}

// Read implements io.Reader.
func (r *ctxReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

// countKV reads what `consul kv import` takes.
func countKV(src io.Reader) (map[string]int64, error) {
	var keys, bytes int64
	dec := json.NewDecoder(src)
	if tok, err := dec.Token(); err != nil || tok != json.Delim('[') {
		return nil, fmt.Errorf("the data does not begin as a list of keys: %w", orElse(err, "it begins otherwise"))
	}
	for dec.More() {
		var e struct {
			Key   *string `json:"key"`
			Flags uint64  `json:"flags"`
			Value []byte  `json:"value"`
		}
		if err := dec.Decode(&e); err != nil {
			return nil, fmt.Errorf("decoding entry %d: %w", keys, err)
		}
		if e.Key == nil {
			return nil, fmt.Errorf("entry %d has no key", keys)
		}
		keys++
		bytes += int64(len(e.Value))
	}
	if _, err := dec.Token(); err != nil {
		return nil, fmt.Errorf("decoding after %d entries: %w", keys, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("decoding the end of the list: %w", orElse(err, "something follows it"))
	}
	return map[string]int64{"keys": keys, "bytes": bytes}, nil
}

func orElse(err error, text string) error {
	if err == nil {
		return errors.New(text)
	}
	return err
}

// countJobs reads a tar of job specifications.
func countJobs(src io.Reader) (map[string]int64, error) {
	counts := map[string]int64{"jobs": 0, "namespaces": 0, "submissions": 0}
	tr := tar.NewReader(src)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return counts, nil
		}
		if err != nil {
			return nil, fmt.Errorf("reading the archive: %w", err)
		}
		var kind string
		switch base := path.Base(h.Name); {
		case strings.HasPrefix(h.Name, "jobs/") && base == "job.json":
			kind = "jobs"
		case strings.HasPrefix(h.Name, "jobs/") && base == "submission.json":
			kind = "submissions"
		case strings.HasPrefix(h.Name, "namespaces/") && strings.HasSuffix(base, ".json"):
			kind = "namespaces"
		default:
			continue // a job's source; what was added by a later version
		}
		var file map[string]json.RawMessage
		if err := json.NewDecoder(tr).Decode(&file); err != nil {
			return nil, fmt.Errorf("decoding %s: %w", h.Name, err)
		}
		if _, ok := file["Job"]; kind == "jobs" && !ok {
			return nil, fmt.Errorf("%s holds no job", h.Name)
		}
		counts[kind]++
	}
}
