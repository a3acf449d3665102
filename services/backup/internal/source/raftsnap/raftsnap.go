// Package raftsnap checks the archive that Consul and Nomad make of their raft state, while its bytes pass.
//
// The archive is a gzip of a tar of meta.json, state.bin and SHA256SUMS, as both programs' snapshot packages write and read
// it. A cut archive decompresses without an error until its last bytes, so only a read to the end of the gzip proves one.
package raftsnap

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// ErrDamaged is in every error that tells that the archive is not what its maker wrote.
var ErrDamaged = errors.New("the raft snapshot is damaged")

const (
	// maxSmall is how large the two files besides the state may be. They are below 2 KiB.
	maxSmall = 1 << 20
	// chunk is how much of an archive is decompressed at once.
	chunk = 32 << 10

	metaFile  = "meta.json"
	stateFile = "state.bin"
	sumsFile  = "SHA256SUMS"
)

// Meta is what an archive says about itself.
type Meta struct {
	// Index and Term are raft's, of the last log entry that is in the state.
	Index, Term int64
	// StateBytes is the length of the state, decompressed.
	StateBytes int64
}

// Reader passes an archive's bytes on as they are and checks them on the way. It returns io.EOF only if the archive is
// whole, holds exactly the three files, their sums are right, and nothing follows. What it found wrong is an ErrDamaged;
// an error of the source is returned as it came. Errors are sticky. Memory is below 300 KiB, whatever the archive's size.
// It starts no goroutine and closes nothing.
type Reader struct {
	src  sniffer
	gz   *gzip.Reader
	tar  *tar.Reader
	in   *bufio.Reader
	buf  []byte
	name string // the file that is being read; empty between two

	small bytes.Buffer // of that file, unless it is the state
	state int64
	sums  map[string]string // sha256 by file, as computed
	said  map[string]string // as SHA256SUMS says
	sum   interface {
		io.Writer
		Sum(b []byte) []byte
	}
	meta Meta
	size int64 // of the state, as meta.json says
	err  error
}

// NewReader makes a Reader. Nothing is read until Read.
func NewReader(src io.Reader) *Reader {
	r := &Reader{src: sniffer{r: src}, buf: make([]byte, chunk), sums: make(map[string]string)}
	r.in = bufio.NewReaderSize(&r.src, chunk)
	return r
}

// sniffer keeps what passes until it was handed on, and the error that ended it.
type sniffer struct {
	r    io.Reader
	kept bytes.Buffer
	err  error
}

func (s *sniffer) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.kept.Write(p[:n])
	if err != nil {
		s.err = err
	}
	return n, err
}

// Read implements io.Reader.
func (r *Reader) Read(p []byte) (int, error) {
	for r.src.kept.Len() == 0 && r.err == nil {
		r.advance()
	}
	if r.src.kept.Len() > 0 {
		n, _ := r.src.kept.Read(p) // only an empty buffer fails
		return n, nil
	}
	return 0, r.err
}

// Meta is valid after Read returned io.EOF.
func (r *Reader) Meta() Meta { return r.meta }

// advance decompresses one piece and sets err when that was the last one.
func (r *Reader) advance() {
	err := r.step()
	switch {
	case err == nil:
	case r.src.err != nil && !errors.Is(r.src.err, io.EOF):
		// The connection broke. Whatever the decompressor made of that tells less.
		r.err = r.src.err
	case errors.Is(err, io.EOF):
		r.err = io.EOF
	default:
		r.err = fmt.Errorf("%w: %w", ErrDamaged, err)
	}
}

// step returns io.EOF, and nothing that wraps it, at the end of an archive that is whole.
func (r *Reader) step() (err error) {
	switch {
	case r.gz == nil:
		if r.gz, err = gzip.NewReader(r.in); err != nil {
			return early("reading the gzip header", err)
		}
		r.gz.Multistream(false)
		r.tar = tar.NewReader(r.gz)
		return nil
	case r.name == "":
		return r.next()
	}
	n, err := r.tar.Read(r.buf)
	if werr := r.keep(r.buf[:n]); werr != nil {
		return werr
	}
	if errors.Is(err, io.EOF) {
		return r.fileEnd()
	}
	return early("reading "+r.name, err)
}

// early makes an end that came too early an error that is not io.EOF.
func early(doing string, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// next goes to the next file.
func (r *Reader) next() error {
	h, err := r.tar.Next()
	if errors.Is(err, io.EOF) {
		return r.end()
	}
	if err != nil {
		return early("reading the tar", err)
	}
	switch h.Name {
	case metaFile, stateFile, sumsFile:
	default:
		return fmt.Errorf("it holds the unknown file %q", h.Name)
	}
	if _, twice := r.sums[h.Name]; twice {
		return fmt.Errorf("it holds %s twice", h.Name)
	}
	r.name = h.Name
	r.sum = sha256.New()
	r.small.Reset()
	return nil
}

func (r *Reader) keep(b []byte) error {
	_, _ = r.sum.Write(b) // a hash never fails
	if r.name == stateFile {
		r.state += int64(len(b))
		return nil
	}
	if r.small.Len()+len(b) > maxSmall {
		return fmt.Errorf("%s is larger than %d bytes", r.name, maxSmall)
	}
	r.small.Write(b)
	return nil
}

// fileEnd notes what the file that ended says.
func (r *Reader) fileEnd() error {
	name := r.name
	r.name = ""
	r.sums[name] = hex.EncodeToString(r.sum.Sum(nil))
	switch name {
	case metaFile:
		// Raft's numbers are unsigned, and far from where that matters.
		var meta struct{ Index, Term, Size int64 }
		if err := json.Unmarshal(r.small.Bytes(), &meta); err != nil {
			return fmt.Errorf("decoding %s: %w", name, err)
		}
		r.meta = Meta{Index: meta.Index, Term: meta.Term}
		r.size = meta.Size
	case sumsFile:
		r.said = make(map[string]string)
		for line := range strings.Lines(r.small.String()) {
			sum, file, ok := strings.Cut(strings.TrimSpace(line), "  ")
			if !ok {
				return fmt.Errorf("%s has a line that is no sum", name)
			}
			r.said[file] = sum
		}
	}
	return nil
}

// end compares everything and returns io.EOF when all is right.
func (r *Reader) end() error {
	n, err := r.gz.Read(r.buf)
	if n > 0 {
		return errors.New("something follows the tar")
	}
	if !errors.Is(err, io.EOF) {
		return early("reading the end of the gzip", err)
	}
	if _, err = r.in.ReadByte(); err == nil {
		return errors.New("something follows the gzip")
	}
	for _, name := range []string{metaFile, stateFile} {
		switch sum, ok := r.sums[name]; {
		case !ok:
			return fmt.Errorf("it holds no %s", name)
		case r.said[name] != sum:
			return fmt.Errorf("the sum of %s is not the one in %s", name, sumsFile)
		}
	}
	if len(r.said) != len(r.sums)-1 {
		return fmt.Errorf("%s lists other files than there are", sumsFile)
	}
	if r.state != r.size {
		return fmt.Errorf("%s has %d bytes, and %s says %d", stateFile, r.state, metaFile, r.size)
	}
	r.meta.StateBytes = r.state
	return io.EOF
}
