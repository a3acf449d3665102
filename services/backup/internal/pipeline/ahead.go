package pipeline

import (
	"io"
	"sync"
)

const (
	// A buffer is large enough that handing it over costs nothing, and few of them bound the memory.
	aheadBuffer  = 256 << 10
	aheadBuffers = 6
)

// ahead reads a source into buffers in the background.
type ahead struct {
	full  chan []byte
	empty chan []byte
	quit  chan struct{}
	err   error // why the source gave no more; valid once full is closed
}

// readAhead starts reading src; hashed, if not nil, is given everything on the way.
func readAhead(src io.Reader, hashed io.Writer) *ahead {
	a := &ahead{
		full: make(chan []byte, aheadBuffers), empty: make(chan []byte, aheadBuffers), quit: make(chan struct{}),
	}
	for range aheadBuffers {
		a.empty <- make([]byte, aheadBuffer)
	}
	go func() {
		defer close(a.full)
		for a.err == nil {
			select {
			case b := <-a.empty:
				var n int
				n, a.err = fill(src, b[:aheadBuffer])
				if hashed != nil {
					_, _ = hashed.Write(b[:n]) // a hash never fails
				}
				a.full <- b[:n] // never blocks: there are as many places as buffers
			case <-a.quit:
				a.err = io.ErrClosedPipe
			}
		}
	}()
	return a
}

// fill reads until b is full or the source gives an error. io.ReadFull would turn the end into an error of its own, which a
// source that was cut gives too.
func fill(src io.Reader, b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		var m int
		m, err = src.Read(b[n:])
		n += m
	}
	return n, err
}

// next gives the next bytes, and after the last ones the source's error. They are to be given back with free.
func (a *ahead) next() ([]byte, error) {
	b, ok := <-a.full
	if !ok {
		return nil, a.err
	}
	return b, nil
}

func (a *ahead) free(b []byte) { a.empty <- b }

// stop waits until the source is no longer read. A source that is waited for must be unblocked by its own context.
func (a *ahead) stop() {
	close(a.quit)
	for range a.full { // only its end matters
	}
}

// Ahead reads r in the background, a few buffers ahead of whoever reads from it, so that both work at the same time. Close waits until r
// is no longer read: a reader that waits must be unblocked by its own context. r's error comes after its last bytes.
func Ahead(r io.Reader) io.ReadCloser { return &aheadReader{ahead: readAhead(r, nil)} }

type aheadReader struct {
	ahead *ahead
	whole []byte // the buffer that is being read
	rest  []byte // of it
	err   error
	once  sync.Once
}

// Read implements io.Reader.
func (r *aheadReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 && r.err == nil {
		if r.whole != nil {
			r.ahead.free(r.whole)
			r.whole = nil
		}
		b, err := r.ahead.next()
		if err != nil {
			r.err = err
			break
		}
		r.whole, r.rest = b, b
	}
	if len(r.rest) == 0 {
		return 0, r.err
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// Close implements io.Closer.
func (r *aheadReader) Close() error {
	r.once.Do(r.ahead.stop)
	return nil
}
