package drill

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
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
		for _, name := range slices.Sorted(maps.Keys(found)) {
			// An archive from before a kind was kept has none of it, and its manifest does not say so.
			if _, known := r.in.Manifest.GetSource().GetCounts()[name]; known || found[name] != 0 {
				r.compareCount(name, found[name])
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

// countJobs reads a tar of what is configured in a Nomad region.
func countJobs(src io.Reader) (map[string]int64, error) {
	// All of them, so that what the archive holds none of is compared too.
	counts := map[string]int64{
		"jobs": 0, "submissions": 0, "versions": 0, "version_submissions": 0, "namespaces": 0, "node_pools": 0, "quotas": 0,
		"acl_policies": 0, "acl_roles": 0, "acl_auth_methods": 0, "acl_binding_rules": 0, "acl_tokens": 0, "variables": 0,
		"csi_volumes": 0, "host_volumes": 0,
	}
	tr := tar.NewReader(src)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return counts, nil
		}
		if err != nil {
			return nil, fmt.Errorf("reading the archive: %w", err)
		}
		count, field := kindOf(h.Name)
		if field == "" {
			continue // a job's source, a policy's rules; what was added by a later version
		}
		var file map[string]json.RawMessage
		if err := json.NewDecoder(tr).Decode(&file); err != nil {
			return nil, fmt.Errorf("decoding %s: %w", h.Name, err)
		}
		if _, ok := file[field]; !ok {
			return nil, fmt.Errorf("%s holds no %s", h.Name, strings.ToLower(field))
		}
		if count != "" {
			counts[count]++
		}
	}
}

// kindOf says under which name a file of the tar is counted, and a field that it must have. The field is empty for a file
// that is not JSON or not known, the name for one that is not counted.
func kindOf(name string) (count, field string) {
	name, ok := strings.CutSuffix(name, ".json")
	if !ok {
		return "", ""
	}
	parts := strings.Split(name, "/")
	if parts[0] == "jobs" {
		return kindOfJob(parts[1:])
	}
	switch strings.Join(parts[:len(parts)-1], "/") {
	case "":
		if name == "scheduler_configuration" {
			return "", "SchedulerAlgorithm"
		}
		return "", ""
	case "namespaces", "node_pools", "quotas":
		return parts[0], "Name"
	case "acl/policies", "acl/roles", "acl/auth_methods":
		return "acl_" + parts[1], "Name"
	case "acl/binding_rules":
		return "acl_binding_rules", "BindType"
	case "acl/tokens":
		return "acl_tokens", "AccessorID"
	}
	switch {
	case parts[0] == "variables" && len(parts) == 3:
		return "variables", "Items"
	case len(parts) == 4 && parts[0] == "volumes" && parts[1] == "csi":
		return "csi_volumes", "Volumes"
	case len(parts) == 4 && parts[0] == "volumes" && parts[1] == "host":
		return "host_volumes", "Volume"
	}
	return "", ""
}

// kindOfJob is kindOf for what follows jobs/: a namespace, an id, and the file without its ending, which a source that
// was JSON has too.
func kindOfJob(parts []string) (count, field string) {
	switch file := strings.Join(parts[min(2, len(parts)):], "/"); {
	case file == "job":
		return "jobs", "Job"
	case file == "submission":
		return "submissions", "Source"
	case !strings.HasPrefix(file, "versions/") || strings.HasSuffix(file, ".nomad"):
		return "", ""
	case strings.HasSuffix(file, ".submission"):
		return "version_submissions", "Source"
	}
	return "versions", "Job"
}
