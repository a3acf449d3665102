package consul

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source"
)

// stream turns the answer, entry by entry, into what `consul kv import` takes. It implements source.Stream.
type stream struct {
	ctx    context.Context //nolint:containedctx // an io.Reader is given none; this one ends the read
	stop   context.CancelFunc
	idle   *source.Idle
	client *client
	resp   *http.Response
	dec    *json.Decoder

	out   bytes.Buffer // what was converted and not read yet: one entry at most
	err   error        // sticky, and told once out is empty
	index int64
	keys  int64
	bytes int64

	closing sync.Once
	info    *lifeboatv1.SourceInfo
}

// found is an entry as the agent gives it. Sessions and indexes belong to the cluster that was and are not restored.
type found struct {
	Key   *string
	Flags uint64
	Value []byte
}

// entry is an entry as `consul kv import` takes it.
type entry struct {
	Key   string `json:"key"`
	Flags uint64 `json:"flags"`
	Value []byte `json:"value"`
}

var errNotAList = errors.New("the answer is not a list of keys")

// begin reads the head of a list.
func (s *stream) begin() (err error) {
	if s.index, err = index(s.resp.Header); err != nil {
		return s.failed(source.Damaged, err)
	}
	s.dec = json.NewDecoder(s.resp.Body)
	s.idle.Begin()
	tok, err := s.dec.Token()
	s.idle.End()
	if err != nil {
		return s.broken(err)
	}
	if tok != json.Delim('[') {
		return s.failed(source.Damaged, errNotAList)
	}
	s.out.WriteString("[")
	return nil
}

// beginEmpty makes an empty list of a 404, which is how Consul says that no key matched. A page that somebody else sent
// in its place has a body or lacks the index.
func (s *stream) beginEmpty() (err error) {
	s.idle.Begin()
	body, err := io.ReadAll(io.LimitReader(s.resp.Body, 1))
	s.idle.End()
	if err != nil {
		return s.failed(source.Unreachable, err)
	}
	if s.index, err = index(s.resp.Header); err != nil || len(body) > 0 {
		return s.failed(source.Damaged, errors.New("it answered 404, and not in Consul's way"))
	}
	s.out.WriteString("[]\n")
	s.err = io.EOF
	return nil
}

// Read implements source.Stream.
func (s *stream) Read(p []byte) (int, error) {
	if s.out.Len() == 0 && s.err == nil {
		s.out.Reset()
		s.idle.Begin()
		s.err = s.next()
		s.idle.End()
	}
	if s.out.Len() == 0 || len(p) == 0 {
		return 0, s.err
	}
	// A cancellation is told even while there is something left to give.
	if s.ctx.Err() != nil && !errors.Is(s.err, io.EOF) {
		s.out.Reset()
		s.err = s.failed(source.Canceled, s.ctx.Err())
		return 0, s.err
	}
	n, _ := s.out.Read(p) // only an empty buffer fails
	return n, nil
}

// next converts one entry, or the end.
func (s *stream) next() error {
	if s.ctx.Err() != nil {
		return s.failed(source.Canceled, s.ctx.Err())
	}
	if !s.dec.More() {
		return s.end()
	}
	var f found
	if err := s.dec.Decode(&f); err != nil {
		return s.broken(err)
	}
	if f.Key == nil {
		return s.failed(source.Damaged, errNotAList)
	}
	if f.Value == nil {
		f.Value = []byte{} // null would not be imported
	}
	if s.keys > 0 {
		s.out.WriteByte(',')
	}
	s.out.WriteString("\n")
	line, err := json.Marshal(entry{Key: *f.Key, Flags: f.Flags, Value: f.Value})
	if err != nil {
		return fmt.Errorf("encoding key %q: %w", *f.Key, err)
	}
	s.out.Write(line)
	s.keys++
	s.bytes += int64(len(f.Value))
	return nil
}

// end accepts the end of the list only when the answer ends there too.
func (s *stream) end() error {
	if _, err := s.dec.Token(); err != nil {
		return s.broken(err)
	}
	if _, err := s.dec.Token(); !errors.Is(err, io.EOF) {
		if err == nil {
			err = errors.New("something follows the list of keys")
		}
		return s.failed(source.Damaged, err)
	}
	s.out.WriteString("\n]\n")
	return io.EOF
}

// broken sorts an error of the decoder: what is no list of keys is one thing, a connection that ended another.
func (s *stream) broken(err error) error {
	var (
		syntax *json.SyntaxError
		shape  *json.UnmarshalTypeError
		value  base64.CorruptInputError
	)
	switch {
	case errors.As(err, &syntax), errors.As(err, &shape), errors.As(err, &value):
		return s.failed(source.Damaged, err)
	case errors.Is(err, io.EOF):
		err = io.ErrUnexpectedEOF
	}
	return s.failed(source.Unreachable, err)
}

func (s *stream) failed(reason source.Reason, err error) error {
	return s.client.failed(s.ctx, reason, "listing keys", err)
}

// Close implements source.Stream.
func (s *stream) Close() error {
	s.closing.Do(func() {
		s.stop()
		if s.resp != nil {
			_ = s.resp.Body.Close() // what was read was checked
		}
		s.client.close()
	})
	return nil
}

// ended is why nothing more can be asked; nil while it can.
func (s *stream) ended() error {
	if s.ctx.Err() == nil {
		return nil
	}
	return fmt.Errorf("asking about the datacenter: %w", context.Cause(s.ctx))
}

// Info implements source.Stream.
func (s *stream) Info(ctx context.Context) (*lifeboatv1.SourceInfo, error) {
	switch {
	case s.info != nil:
		return s.info, nil
	case !errors.Is(s.err, io.EOF) || s.out.Len() > 0:
		return nil, source.ErrUnfinished
	case s.ended() != nil:
		return nil, s.ended()
	}
	info := &lifeboatv1.SourceInfo{
		Identity: map[string]string{"endpoint": s.client.shown},
		Revision: s.index,
		Counts:   map[string]int64{"keys": s.keys, "bytes": s.bytes},
	}
	var self struct {
		Config struct{ Datacenter, NodeName, Version string }
	}
	switch err := s.client.getJSON(ctx, "/v1/agent/self", "asking the agent who it is", &self); {
	case ctx.Err() != nil:
		return nil, err
	case err != nil:
		// The keys are whole without it: agent:read is a right of its own.
		info.Missing = append(info.Missing, "version, datacenter, node: "+err.Error())
	default:
		info.Version = self.Config.Version
		info.Identity["datacenter"] = self.Config.Datacenter
		info.Identity["node"] = self.Config.NodeName
	}
	s.info = info
	return info, nil
}
