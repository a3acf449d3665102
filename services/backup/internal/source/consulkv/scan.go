package consulkv

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
)

const (
	// firstBuffer is how much of an answer is asked for at once.
	firstBuffer = 64 << 10
	// maxEntry is the largest entry that is believed. Consul's own limit is 512 KiB of value, and can be raised.
	maxEntry = 512 << 20
	// valueChunk is how much of a value's text is decoded at once to check it; a multiple of four.
	valueChunk = 16 << 10
)

// ErrDamaged is in every error that tells that a text is not what Consul writes.
var ErrDamaged = errors.New("this is not a list of keys")

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrDamaged, fmt.Errorf(format, args...))
}

// Names are those of the fields of a list's entries, with their quotes.
type Names struct{ key, flags, value string }

// API is how an agent's answer to ?recurse names the fields, and Export how `consul kv export` does. A list with other names is
// ErrDamaged.
func API() Names { return Names{`"Key"`, `"Flags"`, `"Value"`} }

// Export is described with API.
func Export() Names { return Names{`"key"`, `"flags"`, `"value"`} }

// Entry is one key of a list. Sessions and most indexes belong to the cluster that was and are not restored. The texts are valid
// until the next entry is read.
type Entry struct {
	Key   []byte // as JSON, with its quotes
	Flags uint64
	Value []byte // as base64, without quotes
	Size  int64  // of the value
	// ModifyIndex is what a check-and-set has to name; zero in an export.
	ModifyIndex uint64
}

// Scanner takes the list apart. A general decoder would hold each value three times and go over its text as often; here the
// text passes as it is, once it is known to be base64.
type Scanner struct {
	names   Names
	src     io.Reader
	buf     []byte // buf[at:end] was read and not used
	at, end int
	started bool // an entry was read
	scratch [valueChunk / 4 * 3]byte
}

// NewScanner makes one. Nothing is read until Begin.
func NewScanner(src io.Reader, names Names) *Scanner {
	return &Scanner{names: names, src: src, buf: make([]byte, firstBuffer)}
}

// Begin reads up to the first entry.
func (s *Scanner) Begin() error {
	c, err := s.peek()
	if err != nil {
		return err
	}
	if c != '[' {
		return damaged("it begins with %q", c)
	}
	s.at++
	return nil
}

// Next gives one entry. It returns io.EOF only when the list ended and the answer with it.
func (s *Scanner) Next() (Entry, error) {
	c, err := s.peek()
	switch {
	case err != nil:
		return Entry{}, err
	case c == ']':
		s.at++
		return Entry{}, s.finish()
	case s.started && c != ',':
		return Entry{}, damaged("%q between two entries", c)
	case s.started:
		s.at++
		if c, err = s.peek(); err != nil {
			return Entry{}, err
		}
	}
	if c != '{' {
		return Entry{}, damaged("%q where an entry should begin", c)
	}
	s.started = true
	text, err := s.object()
	if err != nil {
		return Entry{}, err
	}
	return s.parse(text)
}

func (s *Scanner) finish() error {
	switch c, err := s.peek(); {
	case s.src == nil && s.at == s.end:
		return io.EOF
	case err != nil:
		return err
	default:
		return damaged("%q follows the list", c)
	}
}

// peek gives the next byte that is no white space.
func (s *Scanner) peek() (byte, error) {
	for {
		for ; s.at < s.end; s.at++ {
			if c := s.buf[s.at]; !blank(c) {
				return c, nil
			}
		}
		if err := s.fill(); err != nil {
			return 0, err
		}
	}
}

func blank(c byte) bool { return c == ' ' || c == '\n' || c == '\r' || c == '\t' }

// fill reads more behind what there is. The source's end is an io.ErrUnexpectedEOF; src is nil from then on.
func (s *Scanner) fill() error {
	if s.src == nil {
		return io.ErrUnexpectedEOF
	}
	if s.at > 0 {
		s.end = copy(s.buf, s.buf[s.at:s.end])
		s.at = 0
	}
	if s.end == len(s.buf) {
		if len(s.buf) >= maxEntry {
			return damaged("an entry is larger than %d bytes", maxEntry)
		}
		s.buf = append(s.buf, make([]byte, len(s.buf))...)
	}
	n, err := s.src.Read(s.buf[s.end:])
	s.end += n
	switch {
	case n > 0:
		return nil // an error comes again with the next read
	case errors.Is(err, io.EOF):
		s.src = nil
		return io.ErrUnexpectedEOF
	}
	return err
}

// object gives the text of the object that begins here, however large, in one piece. Only its brackets and quotes are looked
// at.
func (s *Scanner) object() ([]byte, error) {
	var n nesting
	for i := 0; ; {
		b := s.buf[s.at:s.end]
		if i = n.skip(b, i); n.done {
			s.at += i
			return b[:i], nil
		}
		if err := s.fill(); err != nil {
			return nil, err
		}
	}
}

// nesting finds the end of a JSON value that may come in pieces.
type nesting struct {
	depth  int
	quoted bool
	done   bool
}

// skip goes on at i and returns where to go on when there is more, which may be behind the end, or, once done, the end of
// the value.
func (n *nesting) skip(b []byte, i int) int {
	for i < len(b) {
		if n.quoted {
			rest := b[i:]
			quote := bytes.IndexByte(rest, '"')
			if quote >= 0 {
				rest = rest[:quote]
			}
			escape := bytes.IndexByte(rest, '\\')
			switch {
			case escape >= 0:
				i += escape + 2
			case quote >= 0:
				i += quote + 1
				n.quoted = false
			default:
				i = len(b)
			}
		} else {
			switch b[i] {
			case '"':
				n.quoted = true
			case '{', '[':
				n.depth++
			case '}', ']':
				n.depth--
			}
			i++
		}
		if n.depth == 0 && !n.quoted {
			n.done = true
			return i
		}
	}
	return i
}

// parse reads the fields of an object.
func (s *Scanner) parse(text []byte) (f Entry, err error) {
	if text[len(text)-1] != '}' {
		return f, damaged("an entry ends with %q", text[len(text)-1])
	}
	rest := trim(text[1 : len(text)-1])
	for first := true; len(rest) > 0; first = false {
		if !first {
			if rest[0] != ',' {
				return f, damaged("%q between two fields", rest[0])
			}
			rest = trim(rest[1:])
		}
		var name, value []byte
		if name, rest, err = cutValue(rest); err != nil {
			return f, err
		}
		if name[0] != '"' {
			return f, damaged("%.40q where a field should begin", name)
		}
		if len(rest) == 0 || rest[0] != ':' {
			return f, damaged("the field %.40q has no value", name)
		}
		if value, rest, err = cutValue(trim(rest[1:])); err != nil {
			return f, err
		}
		if err = s.field(&f, string(name), value); err != nil {
			return f, err
		}
	}
	if f.Key == nil {
		return f, damaged("an entry has no %s", s.names.key)
	}
	return f, nil
}

// cutValue splits text behind its first JSON value and the white space that follows.
func cutValue(text []byte) (value, rest []byte, err error) {
	if len(text) == 0 {
		return nil, nil, damaged("an entry ends early")
	}
	var end int
	switch text[0] {
	case '"', '{', '[':
		var n nesting
		if end = n.skip(text, 0); !n.done {
			return nil, nil, damaged("an entry ends early")
		}
	default:
		for end < len(text) && !blank(text[end]) && text[end] != ',' && text[end] != ':' {
			end++
		}
		if end == 0 {
			return nil, nil, damaged("%q in an entry", text[0])
		}
	}
	return text[:end], trim(text[end:]), nil
}

func trim(b []byte) []byte {
	for len(b) > 0 && blank(b[0]) {
		b = b[1:]
	}
	return b
}

// field takes one field. What is passed on is checked, and the rest is, too: it is cheap, and a flipped bit is a flipped bit.
func (s *Scanner) field(f *Entry, name string, value []byte) (err error) {
	switch name {
	case `"LockIndex"`, `"CreateIndex"`:
		if _, err = strconv.ParseUint(string(value), 10, 64); err != nil {
			return damaged("%s: %w", name, err)
		}
	case `"ModifyIndex"`:
		if f.ModifyIndex, err = strconv.ParseUint(string(value), 10, 64); err != nil {
			return damaged("%s: %w", name, err)
		}
	case s.names.key:
		if value[0] != '"' || !json.Valid(value) {
			return damaged("Key is no text: %.40q", value)
		}
		f.Key = value
	case s.names.flags:
		if f.Flags, err = strconv.ParseUint(string(value), 10, 64); err != nil {
			return damaged("Flags: %w", err)
		}
	case s.names.value:
		return s.value(f, value)
	default:
		if !json.Valid([]byte(name)) || !json.Valid(value) {
			return damaged("the field %.40s holds %.40q", name, value)
		}
	}
	return nil
}

// value takes base64, or the null that an empty value is.
func (s *Scanner) value(f *Entry, text []byte) error {
	if string(text) == "null" {
		f.Value, f.Size = nil, 0
		return nil
	}
	if text[0] != '"' {
		return damaged("Value is no text: %.40q", text)
	}
	if bytes.IndexByte(text, '\\') >= 0 {
		// Allowed in JSON; Consul does not do it.
		var plain string
		if err := json.Unmarshal(text, &plain); err != nil {
			return damaged("Value: %w", err)
		}
		text = []byte(`"` + plain + `"`)
	}
	if bytes.IndexByte(text, '\n') >= 0 || bytes.IndexByte(text, '\r') >= 0 {
		return damaged("Value holds a line break") // which the decoder would pass over
	}
	f.Value, f.Size = text[1:len(text)-1], 0
	for rest := f.Value; len(rest) > 0; {
		chunk := rest[:min(len(rest), valueChunk)]
		rest = rest[len(chunk):]
		n, err := base64.StdEncoding.Strict().Decode(s.scratch[:], chunk)
		if err != nil {
			return damaged("Value: %w", err)
		}
		if len(rest) > 0 && n != len(s.scratch) {
			return damaged("Value has padding in its middle")
		}
		f.Size += int64(n)
	}
	return nil
}
