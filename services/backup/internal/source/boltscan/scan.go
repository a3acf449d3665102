// Package boltscan reads etcd's database file while it streams past, and learns from it what a server that is started on
// it would be at. It uses no bbolt: that needs a whole file, and ends the process when the file is damaged.
package boltscan

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// Scanner reads an etcd database as it passes by, to learn its revision and how many revisions it holds: the answer
// to a snapshot request does not say, and a read before or after it would tell of another moment.
//
// A database is a tree of pages whose order in the file says nothing, so Scanner remembers for every page slot the few
// numbers that it will need, and walks the tree at the end. Free pages hold what was once there, and the slots that a
// large value overflows into can look like anything; neither is ever reached from the root, so what was remembered of
// them is never looked at. Nothing that is read is trusted: bad data gives an error, never a panic, and bounded memory.
type Scanner struct {
	meta  metaPage
	buf   []byte // an incomplete page
	slots slotTable
	wants wantHeap

	branches map[uint32][]uint32
	children int
	buckets  map[uint32]*bucketRefs
	compacts map[uint32]int64
	enabled  map[uint32]bool

	err error
}

// Result is what a whole database told.
type Result struct {
	// Revision is what a server that is started on this database will be at.
	Revision int64
	// Revisions is the number of entries in the key bucket.
	Revisions int64
	// CompactRevision is up to where history was, or was about to be, removed; 0 when it never was.
	CompactRevision int64
	// Leases, Users and Roles are how many of them there are.
	Leases, Users, Roles int64
	// AuthEnabled says whether requests need a user.
	AuthEnabled bool
}

const (
	// maxSlots bounds page numbers to 32 bits: 16 TiB of 4 KiB pages.
	maxSlots = math.MaxUint32
	// maxDepth of the tree. Ten levels of the smallest pages would be more than maxSlots.
	maxDepth = 32
	// maxChildren is how many references the branch pages may hold for each slot. In use it is one; what free pages add
	// is far less than this.
	maxChildren = 16
	// maxBuckets is how many buckets a page may name. etcd has eleven in all.
	maxBuckets = 64
	// maxRoots is how many leaf pages may look like the root bucket's, stale ones included.
	maxRoots = 1 << 14
)

// New makes a Scanner. Write the database to it, without the checksum that follows it in a snapshot.
func New() *Scanner {
	return &Scanner{
		branches: make(map[uint32][]uint32), buckets: make(map[uint32]*bucketRefs), compacts: make(map[uint32]int64),
		enabled: make(map[uint32]bool),
	}
}

// Write takes the next bytes of the database. It never fails: what is wrong is told by Result, so that a stream may go
// on to its checksum, which tells more.
func (s *Scanner) Write(p []byte) (int, error) {
	n := len(p)
	for s.err == nil && len(p) > 0 {
		want := int(s.meta.pageSize)
		if want == 0 {
			want = pageHeaderSize + metaSize
		}
		if len(s.buf) == 0 && len(p) >= want && s.meta.pageSize != 0 {
			s.page(p[:want])
			p = p[want:]
			continue
		}
		k := min(want-len(s.buf), len(p))
		s.buf = append(s.buf, p[:k]...)
		p = p[k:]
		if len(s.buf) < want {
			continue
		}
		if s.meta.pageSize == 0 {
			// The writer puts two fresh meta pages in front of every snapshot, so there is no need to look further when
			// the first is not valid.
			s.meta, s.err = parseMeta(s.buf)
			continue
		}
		s.page(s.buf)
		s.buf = s.buf[:0]
	}
	return n, nil
}

// page takes one whole page slot.
func (s *Scanner) page(b []byte) {
	slot := s.slots.n
	if slot >= maxSlots {
		s.err = errors.New("it has more pages than can be counted")
		return
	}
	s.slots.grow()
	off := slot * uint64(s.meta.pageSize)
	s.wants.serve(off, b)
	if slot < 2 {
		if m, err := parseMeta(b); err == nil && m.pageSize == s.meta.pageSize && m.txid > s.meta.txid {
			s.meta = m
		}
		return
	}
	if binary.LittleEndian.Uint64(b) != slot {
		return // not the start of a page, or stale
	}
	img := pageImage{b: b, size: (1 + uint64(binary.LittleEndian.Uint32(b[12:]))) * uint64(s.meta.pageSize)}
	if !img.holdsElements() {
		return
	}
	switch img.flags() {
	case flagLeaf:
		s.leaf(uint32(slot), off, img)
	case flagBranch:
		s.branch(uint32(slot), img)
	}
}

func (s *Scanner) branch(slot uint32, img pageImage) {
	kids := make([]uint32, img.count())
	for i := range kids {
		id, _, ok := img.branch(i)
		if !ok || id < 2 || id >= maxSlots {
			return
		}
		kids[i] = uint32(id)
	}
	s.children += len(kids)
	if uint64(s.children) > maxChildren*(s.slots.n+1024) { //nolint:gosec // a sum of lengths
		s.err = errors.New("its branch pages hold more references than there can be pages")
		return
	}
	s.branches[slot] = kids
	s.slots.set(slot, kindBranch, len(kids))
}

func (s *Scanner) leaf(slot uint32, off uint64, img pageImage) {
	n := img.count()
	s.slots.set(slot, kindLeaf, n)
	if n == 0 {
		return
	}
	_, key, _, ok := img.leaf(n - 1)
	if !ok {
		s.slots.set(slot, kindNone, 0)
		return
	}
	if key.len == revisionKey || key.len == tombstoneKey {
		s.fetch(off, img, key, func(b []byte) {
			if rev, ok := mainRevision(b); ok {
				s.slots.setRevision(slot, rev)
			}
		})
	}
	// Only pages of other buckets can matter below, and those are few; their last key can be of any length.
	for i := range n {
		flags, key, value, ok := img.leaf(i)
		both := span{key.off, key.len + value.len}
		switch {
		case !ok:
			s.slots.set(slot, kindNone, 0)
			return
		case flags&flagBucket != 0:
			if value.len < bucketHeader || both.len > uint64(s.meta.pageSize) {
				s.slots.set(slot, kindNone, 0)
				return
			}
			s.fetch(off, img, both, func(b []byte) { s.bucket(slot, string(b[:key.len]), b[key.len:]) })
		case value.len == revisionKey && isCompactName(key.len):
			s.fetch(off, img, both, func(b []byte) { s.compacted(slot, string(b[:key.len]), b[key.len:]) })
		case value.len == 1 && key.len == uint64(len(authEnabled)):
			s.fetch(off, img, both, func(b []byte) {
				if isEnabled(b[:key.len], b[key.len:]) && len(s.enabled) < maxRoots {
					s.enabled[slot] = true
				}
			})
		}
	}
}

// fetch gives the bytes of a span of a page to done: now if they are here, otherwise when they come.
func (s *Scanner) fetch(off uint64, img pageImage, sp span, done func([]byte)) {
	if end := sp.off + sp.len; end <= uint64(len(img.b)) {
		done(img.b[sp.off:end])
		return
	}
	w := &want{off: off + sp.off, left: sp.len, done: done}
	if have := uint64(len(img.b)); sp.off < have {
		w.take(img.b[sp.off:])
	}
	s.wants.add(w)
}

// Result walks the tree. Call it once everything was written.
func (s *Scanner) Result() (Result, error) {
	switch {
	case s.err != nil:
		return Result{}, s.err
	case s.meta.pageSize == 0:
		return Result{}, errNoMeta
	case len(s.buf) != 0:
		return Result{}, errors.New("its last page is not whole")
	case s.slots.n < s.meta.pages:
		return Result{}, fmt.Errorf("it has %d pages and should have %d", s.slots.n, s.meta.pages)
	}
	refs, err := s.root()
	if err != nil {
		return Result{}, err
	}
	res := Result{Revision: refs.key.revision, Revisions: refs.key.revisions}
	if refs.key.root != 0 {
		if res, err = s.keys(refs.key.root); err != nil {
			return Result{}, err
		}
	}
	compacted, err := s.compactRevision(refs.meta)
	if err != nil {
		return Result{}, err
	}
	for _, b := range refs.others {
		if err := s.other(b, &res); err != nil {
			return Result{}, fmt.Errorf("walking a bucket: %w", err)
		}
	}
	// As in etcd's mvcc.store.restore: an empty store is at 1, and a compaction may have removed the newest entries.
	res.Revision, res.CompactRevision = max(res.Revision, compacted, 1), compacted
	return res, nil
}

// root finds all buckets. The key bucket is there.
func (s *Scanner) root() (bucketRefs, error) {
	var refs bucketRefs
	err := s.walk(s.meta.root, func(slot uint32) error {
		if r := s.buckets[slot]; r != nil {
			refs.key = cmp.Or(r.key, refs.key)
			refs.meta = cmp.Or(r.meta, refs.meta)
			refs.others = append(refs.others, r.others...)
		}
		return nil
	})
	if err != nil {
		return bucketRefs{}, fmt.Errorf("walking the root bucket: %w", err)
	}
	if refs.key == nil {
		return bucketRefs{}, errors.New("it has no key bucket")
	}
	return refs, nil
}

// flat refuses a page that holds buckets: etcd nests none.
func (s *Scanner) flat(slot uint32) error {
	if s.buckets[slot] != nil {
		return fmt.Errorf("page %d holds a bucket within a bucket", slot)
	}
	return nil
}

func (s *Scanner) keys(root uint64) (Result, error) {
	var res Result
	err := s.walk(root, func(slot uint32) error {
		n := s.slots.count(slot)
		if n == 0 {
			return nil
		}
		if err := s.flat(slot); err != nil {
			return err
		}
		rev := s.slots.revision(slot)
		if rev == 0 || rev < res.Revision {
			return fmt.Errorf("the last key of page %d is not a revision that follows %d", slot, res.Revision)
		}
		res.Revision = rev
		res.Revisions += int64(n)
		return nil
	})
	if err != nil {
		return Result{}, fmt.Errorf("walking the key bucket: %w", err)
	}
	return res, nil
}

func (s *Scanner) compactRevision(ref *bucketRef) (int64, error) {
	if ref == nil {
		return 0, nil // never compacted: etcd before 3.4 had no more to say
	}
	if ref.root == 0 {
		return ref.revision, nil
	}
	var rev int64
	err := s.walk(ref.root, func(slot uint32) error {
		rev = max(rev, s.compacts[slot])
		return s.flat(slot)
	})
	if err != nil {
		return 0, fmt.Errorf("walking the meta bucket: %w", err)
	}
	return rev, nil
}

// walk visits the leaf pages under a page in key order.
func (s *Scanner) walk(root uint64, visit func(slot uint32) error) error {
	budget := s.slots.n
	var down func(id uint64, depth int) error
	down = func(id uint64, depth int) error {
		// A page has one parent; whoever visits more pages than there are goes in circles.
		if budget == 0 || depth > maxDepth {
			return errors.New("its pages refer to each other in circles")
		}
		budget--
		if id >= s.slots.n {
			return fmt.Errorf("page %d is referred to and lies beyond the end", id)
		}
		slot := uint32(id) //nolint:gosec // below slots.n, which is below maxSlots
		switch s.slots.kind(slot) {
		case kindLeaf:
			return visit(slot)
		case kindBranch:
			for _, kid := range s.branches[slot] {
				if err := down(uint64(kid), depth+1); err != nil {
					return err
				}
			}
			return nil
		default:
			return fmt.Errorf("page %d is referred to and is neither leaf nor branch", id)
		}
	}
	return down(root, 0)
}
