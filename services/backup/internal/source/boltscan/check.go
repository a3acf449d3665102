package boltscan

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"syscall"
)

// CheckFile is Check of a file. It maps the file into memory, which is several times as fast as to read page by page.
func CheckFile(path string) (err error) {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size() < pageHeaderSize+metaSize {
		return errNoMeta
	}
	mapped, err := syscall.Mmap(int(f.Fd()), 0, int(info.Size()), syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		return os.NewSyscallError("mmap", err)
	}
	defer func() { err = errors.Join(err, syscall.Munmap(mapped)) }()
	// A page that the disk cannot read is a fault and not an error, which would end the process.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("reading the file: %v", p)
		}
	}()
	return Check(memory(mapped))
}

// memory is a file that is mapped.
type memory []byte

// ReadAt implements io.ReaderAt.
func (m memory) ReadAt(p []byte, off int64) (int, error) {
	b, err := m.view(off, len(p))
	return copy(p, b), err
}

func (m memory) view(off int64, n int) ([]byte, error) {
	if off < 0 || off > int64(len(m)) || int64(len(m))-off < int64(n) {
		return nil, io.ErrUnexpectedEOF
	}
	return m[off : off+int64(n) : off+int64(n)], nil
}

// Check walks every bucket of a database file and says whether its tree is sound: each page is what it is referred to
// as, none is referred to twice, and all keys are in order. It is what bbolt relies on when it opens a file, and where
// bbolt panics in a goroutine of its own, which nobody can recover from. It looks at no value.
func Check(f io.ReaderAt) error {
	first := make([]byte, pageHeaderSize+metaSize)
	if _, err := f.ReadAt(first, 0); err != nil {
		return fmt.Errorf("reading the first page: %w", err)
	}
	meta, err := parseMeta(first)
	if err != nil {
		return err
	}
	second := make([]byte, len(first))
	if _, err := f.ReadAt(second, int64(meta.pageSize)); err != nil {
		return fmt.Errorf("reading the second page: %w", err)
	}
	if m, err := parseMeta(second); err == nil && m.pageSize == meta.pageSize && m.txid > meta.txid {
		meta = m
	}
	if meta.pages >= maxSlots {
		return errors.New("it has more pages than can be counted")
	}
	c := &checker{f: f, meta: meta, seen: make(map[uint64]uint64)}
	return c.tree(meta.root, 0)
}

type checker struct {
	f    io.ReaderAt
	meta metaPage
	seen map[uint64]uint64 // bit sets of 64 page slots
}

// bounds are the keys that a page may hold: from lo, and below hi. nil is no bound.
type bounds struct{ lo, hi []byte }

// tree checks a bucket. level is how many buckets it is nested in.
func (c *checker) tree(root uint64, level int) error { return c.page(root, bounds{}, level, 0) }

func (c *checker) page(id uint64, in bounds, level, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("page %d lies too deep", id)
	}
	off := int64(id) * int64(c.meta.pageSize) //nolint:gosec // checked by claim, and a wrong one is outside the file
	if id >= c.meta.pages {
		return fmt.Errorf("page %d is referred to and lies beyond the end", id)
	}
	b, err := c.read(off, int(c.meta.pageSize))
	if err != nil {
		return fmt.Errorf("reading page %d: %w", id, err)
	}
	img := pageImage{b: b, size: (1 + uint64(binary.LittleEndian.Uint32(b[12:]))) * uint64(c.meta.pageSize)}
	if binary.LittleEndian.Uint64(b) != id || !img.holdsElements() {
		return fmt.Errorf("page %d is referred to and is no page", id)
	}
	if err := c.claim(id, img.size/uint64(c.meta.pageSize)); err != nil {
		return err
	}
	keys := &ordered{page: id, in: in}
	switch img.flags() {
	case flagBranch:
		return c.branch(img, off, keys, level, depth)
	case flagLeaf:
		return c.leaf(img, off, keys, level)
	}
	return fmt.Errorf("page %d is referred to and is neither leaf nor branch", id)
}

// read gives bytes that stay as they are.
func (c *checker) read(off int64, n int) ([]byte, error) {
	if m, ok := c.f.(memory); ok {
		return m.view(off, n)
	}
	b := make([]byte, n)
	_, err := c.f.ReadAt(b, off)
	return b, err
}

// claim marks the slots of a page as taken.
func (c *checker) claim(id, slots uint64) error {
	if slots > c.meta.pages-id {
		return fmt.Errorf("page %d goes beyond the end", id)
	}
	for s := id; s < id+slots; s++ {
		if c.seen[s/64]&(1<<(s%64)) != 0 {
			return fmt.Errorf("page %d is referred to twice", s)
		}
		c.seen[s/64] |= 1 << (s % 64)
	}
	return nil
}

func (c *checker) branch(img pageImage, off int64, keys *ordered, level, depth int) error {
	n := img.count()
	if n == 0 {
		return fmt.Errorf("branch page %d is empty", keys.page)
	}
	kids := make([]uint64, n)
	mins := make([][]byte, n+1)
	mins[n] = keys.in.hi
	for i := range n {
		id, key, ok := img.branch(i)
		if !ok {
			return fmt.Errorf("entry %d of page %d lies outside", i, keys.page)
		}
		var err error
		if mins[i], err = c.bytes(img, off, key); err != nil {
			return err
		}
		if err := keys.next(mins[i]); err != nil {
			return err
		}
		kids[i] = id
	}
	for i, id := range kids {
		if err := c.page(id, bounds{mins[i], mins[i+1]}, level, depth+1); err != nil {
			return err
		}
	}
	return nil
}

func (c *checker) leaf(img pageImage, off int64, keys *ordered, level int) error {
	for i := range img.count() {
		flags, key, value, ok := img.leaf(i)
		if !ok {
			return fmt.Errorf("entry %d of page %d lies outside", i, keys.page)
		}
		k, err := c.bytes(img, off, key)
		if err != nil {
			return err
		}
		if err = keys.next(k); err != nil {
			return err
		}
		if flags&flagBucket == 0 {
			continue
		}
		if level > 0 || value.len < bucketHeader || value.len > uint64(c.meta.pageSize) {
			return fmt.Errorf("entry %d of page %d is no bucket that etcd makes", i, keys.page)
		}
		v, err := c.bytes(img, off, value)
		if err != nil {
			return err
		}
		if err = c.bucket(v, keys.page, level); err != nil {
			return fmt.Errorf("bucket %q: %w", k, err)
		}
	}
	return nil
}

// bucket checks a bucket within a leaf page's entry.
func (c *checker) bucket(value []byte, page uint64, level int) error {
	if root := binary.LittleEndian.Uint64(value); root != 0 {
		return c.tree(root, level+1)
	}
	keys := &ordered{page: page}
	var bad error
	if !eachInline(value[bucketHeader:], func(k, _ []byte) bool {
		bad = keys.next(k)
		return bad == nil
	}) {
		return errors.Join(errors.New("its entries are not in order"), bad)
	}
	return nil
}

// bytes gives a span of a page, also where that lies in the slots that the page overflows into.
func (c *checker) bytes(img pageImage, off int64, sp span) ([]byte, error) {
	if end := sp.off + sp.len; end <= uint64(len(img.b)) {
		return img.b[sp.off:end], nil
	}
	if sp.len > maxKey {
		return nil, fmt.Errorf("a key of %d bytes is longer than any", sp.len)
	}
	b, err := c.read(off+int64(sp.off), int(sp.len)) //nolint:gosec // within the page's size
	if err != nil {
		return nil, fmt.Errorf("reading a key: %w", err)
	}
	return b, nil
}

// maxKey is the longest key that bbolt takes, and more than a bucket's header or inline page.
const maxKey = 1 << 20

// ordered sees the keys of one page one by one.
type ordered struct {
	page uint64
	in   bounds
	last []byte
}

func (o *ordered) next(k []byte) error {
	if o.last != nil && bytes.Compare(k, o.last) <= 0 || o.in.lo != nil && bytes.Compare(k, o.in.lo) < 0 ||
		o.in.hi != nil && bytes.Compare(k, o.in.hi) >= 0 {
		return fmt.Errorf("a key of page %d is not in order", o.page)
	}
	o.last = k
	return nil
}
