package boltscan

import (
	"container/heap"
	"encoding/binary"
)

// Names and lengths in etcd's schema (go.etcd.io/etcd/server/v3/storage/schema, storage/mvcc/revision.go).
const (
	bucketKey   = "key"
	bucketMeta  = "meta"
	bucketLease = "lease"
	bucketAuth  = "auth"
	bucketUsers = "authUsers"
	bucketRoles = "authRoles"

	authEnabled = "authEnabled"

	finishedCompact  = "finishedCompactRev"
	scheduledCompact = "scheduledCompactRev"

	// revisionKey is the length of 8 bytes main, '_' and 8 bytes sub, big endian; a tombstone has a 't' more.
	revisionKey  = 17
	tombstoneKey = 18
)

func isCompactName(n uint64) bool {
	return n == uint64(len(finishedCompact)) || n == uint64(len(scheduledCompact))
}

func isCompact(name string) bool { return name == finishedCompact || name == scheduledCompact }

// isEnabled says whether an entry of the auth bucket is the one that says that authentication is on.
func isEnabled(k, v []byte) bool { return string(k) == authEnabled && len(v) == 1 && v[0] == 1 }

// mainRevision reads the main part of a revision in the form that keys and compaction marks have.
func mainRevision(b []byte) (int64, bool) {
	if len(b) != revisionKey && len(b) != tombstoneKey || b[8] != '_' {
		return 0, false
	}
	rev := int64(binary.BigEndian.Uint64(b)) //nolint:gosec // checked next
	return rev, rev > 0
}

type pageKind uint8

const (
	kindNone pageKind = iota
	kindLeaf
	kindBranch
)

const chunkSlots = 1 << 12

// slotChunk holds eleven bytes for each page slot.
type slotChunk struct {
	revisions [chunkSlots]int64 // of the last key, when it is a revision
	counts    [chunkSlots]uint16
	kinds     [chunkSlots]pageKind
}

// slotTable remembers page slots. It grows by chunks, so that growing never copies.
type slotTable struct {
	n      uint64
	chunks []*slotChunk
}

func (t *slotTable) grow() {
	if t.n%chunkSlots == 0 {
		t.chunks = append(t.chunks, &slotChunk{})
	}
	t.n++
}

func (t *slotTable) set(slot uint32, kind pageKind, count int) {
	c, i := t.chunks[slot/chunkSlots], slot%chunkSlots
	c.kinds[i], c.counts[i] = kind, uint16(count) //nolint:gosec // a page's own 16 bit count
}

func (t *slotTable) setRevision(slot uint32, rev int64) {
	t.chunks[slot/chunkSlots].revisions[slot%chunkSlots] = rev
}

func (t *slotTable) kind(slot uint32) pageKind {
	return t.chunks[slot/chunkSlots].kinds[slot%chunkSlots]
}

func (t *slotTable) count(slot uint32) int {
	return int(t.chunks[slot/chunkSlots].counts[slot%chunkSlots])
}

func (t *slotTable) revision(slot uint32) int64 {
	return t.chunks[slot/chunkSlots].revisions[slot%chunkSlots]
}

// want is a range of the stream that a page refers to and that had not come when the page did: keys behind a value that
// is larger than a page lie in the slots that the page overflows into.
type want struct {
	off  uint64 // where the rest begins in the stream
	left uint64
	got  []byte
	done func([]byte)
}

func (w *want) take(b []byte) {
	w.got = append(w.got, b...)
	w.off += uint64(len(b))
	w.left -= uint64(len(b))
}

// wantHeap gives the wants in the order of the stream.
type wantHeap struct{ items wantItems }

func (h *wantHeap) add(w *want) { heap.Push(&h.items, w) }

// serve gives the bytes at off to those that want them.
func (h *wantHeap) serve(off uint64, b []byte) {
	end := off + uint64(len(b))
	for len(h.items) > 0 && h.items[0].off < end {
		w := h.items[0]
		from := w.off - off // never negative: a want is added while an earlier page is read
		w.take(b[from:min(from+w.left, uint64(len(b)))])
		if w.left > 0 {
			heap.Fix(&h.items, 0)
			continue
		}
		heap.Pop(&h.items)
		w.done(w.got)
	}
}

// wantItems implements heap.Interface.
type wantItems []*want

func (s wantItems) Len() int           { return len(s) }
func (s wantItems) Less(i, j int) bool { return s[i].off < s[j].off }
func (s wantItems) Swap(i, j int)      { s[i], s[j] = s[j], s[i] }

// Push is for container/heap.
func (s *wantItems) Push(x any) {
	if w, ok := x.(*want); ok {
		*s = append(*s, w)
	}
}

// Pop is for container/heap.
func (s *wantItems) Pop() any {
	old := *s
	w := old[len(old)-1]
	*s = old[:len(old)-1]
	return w
}
