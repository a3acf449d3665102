package consul

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/consulkv"
)

// ahead is how much is converted at once: small entries would otherwise be handed on one by one.
const ahead = 64 << 10

// Stream turns the answer, entry by entry, into what `consul kv import` takes. It implements source.Stream.
type Stream struct {
	reading  // its err is told once out is empty
	scan     *consulkv.Scanner
	prefixes []string
	out      bytes.Buffer // what was converted and not read yet: 64 KiB or one entry
	index    int64
	keys     int64
	bytes    int64
	odd      int64 // keys whose name may not be what it was
	unclean  int64 // keys that the stock tool cannot write
}

// Index is the raft index that the answer belongs to, X-Consul-Index, from the start of the read on; Info gives it as the
// revision. Two reads of the same index, by one configuration from one datacenter, most likely hold the same, so it is a hint
// and no proof:
//
//   - After a raft snapshot was restored the index goes on from that snapshot's, and comes again with other content.
//   - With a common prefix, Consul gives the highest index of the keys under it and of their tombstones. Tombstones go after 15
//     minutes; then a deletion leaves no trace, and the index falls back to that of the newest key still there. When there is
//     no key under the prefix and no tombstone, the index is that of the whole store. A read of everything gives the whole
//     store's, which every write and every deletion moves.
//   - It moves without a change, too: a lock that is taken or released, a key that is written and deleted again.
func (s *Stream) Index() int64 { return s.index }

// begin reads the head of a list.
func (s *Stream) begin(idle *source.Idle) (err error) {
	if s.index, err = index(s.resp.Header); err != nil {
		return s.failed(source.Damaged, err)
	}
	s.scan = consulkv.NewScanner(body{r: s.resp.Body, idle: idle}, consulkv.API())
	if err := s.scan.Begin(); err != nil {
		return s.broken(err)
	}
	s.out.WriteString("[")
	return nil
}

// beginEmpty makes an empty list of a 404, which is how Consul says that no key matched. A page that somebody else sent
// in its place has a body or lacks the index.
func (s *Stream) beginEmpty(idle *source.Idle) (err error) {
	first, err := io.ReadAll(io.LimitReader(body{r: s.resp.Body, idle: idle}, 1))
	if err != nil {
		return s.failed(source.Unreachable, err)
	}
	if s.index, err = index(s.resp.Header); err != nil || len(first) > 0 {
		return s.failed(source.Damaged, errors.New("it answered 404, and not in Consul's way"))
	}
	s.out.WriteString("[]\n")
	s.err = io.EOF
	return nil
}

// Read implements source.Stream.
func (s *Stream) Read(p []byte) (int, error) {
	if s.out.Len() == 0 {
		s.out.Reset()
		for s.err == nil && s.out.Len() < ahead {
			s.err = s.next()
		}
	}
	if s.out.Len() == 0 || len(p) == 0 {
		return 0, s.err
	}
	// A cancellation is told even while there is something left to give, be it the last.
	if s.ctx.Err() != nil {
		s.out.Reset()
		s.err = s.failed(source.Canceled, s.ctx.Err())
		return 0, s.err
	}
	n, _ := s.out.Read(p) // only an empty buffer fails
	return n, nil
}

// next converts one entry, or the end.
func (s *Stream) next() error {
	if s.ctx.Err() != nil {
		return s.failed(source.Canceled, s.ctx.Err())
	}
	f, err := s.scan.Next()
	if errors.Is(err, io.EOF) {
		s.out.WriteString("\n]\n")
		return io.EOF
	}
	if err != nil {
		return s.broken(err)
	}
	name := consulkv.NameOf(f.Key)
	if !consulkv.Wanted(s.prefixes, name) {
		return nil
	}
	if s.keys > 0 {
		s.out.WriteByte(',')
	}
	s.out.WriteString("\n{\"key\":")
	s.out.Write(f.Key)
	s.out.WriteString(",\"flags\":")
	s.out.Write(strconv.AppendUint(s.out.AvailableBuffer(), f.Flags, 10))
	s.out.WriteString(",\"value\":\"") // null would not be imported
	s.out.Write(f.Value)
	s.out.WriteString("\"}")
	s.keys++
	s.bytes += f.Size
	if strings.Contains(name, "\ufffd") {
		s.odd++
	}
	if !consulkv.Plain(name) {
		s.unclean++
	}
	return nil
}

// broken sorts an error of the scanner: what is no list of keys is one thing, a connection that ended another.
func (s *Stream) broken(err error) error {
	if errors.Is(err, consulkv.ErrDamaged) {
		return s.failed(source.Damaged, err)
	}
	return s.failed(source.Unreachable, err)
}

// Info implements source.Stream.
func (s *Stream) Info(ctx context.Context) (*lifeboatv1.SourceInfo, error) {
	switch {
	case s.info != nil:
		return s.info, nil
	case !errors.Is(s.err, io.EOF) || s.out.Len() > 0:
		return nil, source.ErrUnfinished
	case s.ended() != nil:
		return nil, s.ended()
	}
	info := &lifeboatv1.SourceInfo{
		Revision: s.index,
		Counts:   map[string]int64{"keys": s.keys, "bytes": s.bytes},
	}
	if err := describe(ctx, s.client, s.token, info); err != nil {
		return nil, err
	}
	if len(s.prefixes) > 0 {
		info.Identity["prefixes"] = strings.Join(s.prefixes, ",")
	}
	// Names stay out: a manifest is not encrypted.
	if s.odd > 0 {
		info.Worries = append(info.Worries, fmt.Sprintf("the names of %d keys hold U+FFFD, which Consul's JSON has in place of "+
			"bytes that are no UTF-8: if those keys were named so, they come back under another name", s.odd))
	}
	if s.unclean > 0 {
		info.Worries = append(info.Worries, fmt.Sprintf("the names of %d keys, as \"a//b\", are changed or refused by `consul kv "+
			"import`, which stops there; they can be written back in transactions", s.unclean))
	}
	s.info = info
	return info, nil
}
