package boltscan

import (
	"encoding/binary"
	"errors"
)

// bucketRefs are the buckets that one leaf page of the root bucket names.
type bucketRefs struct {
	key, meta *bucketRef
	// others are the other buckets, whose entries are only counted.
	others []otherBucket
}

// otherBucket is one whose entries are counted: at a page, or inline, in which case root is zero and it was read.
type otherBucket struct {
	name    string
	root    uint64
	entries int64
	enabled bool
}

// bucketRef says where a bucket is: at a page, or inline, in which case root is zero and what is needed of it was read.
type bucketRef struct {
	root      uint64
	revisions int64
	revision  int64
}

// bucket takes a bucket that a leaf page names.
func (s *Scanner) bucket(slot uint32, name string, value []byte) {
	refs := s.buckets[slot]
	if refs == nil {
		if len(s.buckets) >= maxRoots {
			s.err = errors.New("too many of its pages look like its root")
			return
		}
		refs = &bucketRefs{}
		s.buckets[slot] = refs
	}
	root := binary.LittleEndian.Uint64(value)
	switch {
	case name == bucketKey && root != 0:
		refs.key = &bucketRef{root: root}
	case name == bucketKey:
		refs.key = inlineKeys(value[bucketHeader:])
	case name == bucketMeta && root != 0:
		refs.meta = &bucketRef{root: root}
	case name == bucketMeta:
		refs.meta = inlineMeta(value[bucketHeader:])
	case len(refs.others) == maxBuckets:
		s.slots.set(slot, kindNone, 0)
	case root != 0:
		refs.others = append(refs.others, otherBucket{name: name, root: root})
	default:
		if other, ok := inlineOther(name, value[bucketHeader:]); ok {
			refs.others = append(refs.others, other)
		} else {
			s.slots.set(slot, kindNone, 0)
		}
	}
}

// inlineOther reads one of the other buckets that is small enough to have no page of its own.
func inlineOther(name string, page []byte) (otherBucket, bool) {
	b := otherBucket{name: name}
	ok := eachInline(page, func(k, v []byte) bool {
		b.entries++
		b.enabled = b.enabled || isEnabled(k, v)
		return true
	})
	return b, ok
}

// inlineKeys reads a key bucket that is small enough to have no page of its own; nil when it is not one.
func inlineKeys(page []byte) *bucketRef {
	ref := &bucketRef{}
	ok := eachInline(page, func(k, _ []byte) bool {
		rev, ok := mainRevision(k)
		ref.revision = rev
		ref.revisions++
		return ok
	})
	if !ok {
		return nil
	}
	return ref
}

// inlineMeta is the same for the meta bucket, and finds the latest mark of a compaction.
func inlineMeta(page []byte) *bucketRef {
	ref := &bucketRef{}
	ok := eachInline(page, func(k, v []byte) bool {
		if isCompact(string(k)) {
			rev, _ := mainRevision(v)
			ref.revision = max(ref.revision, rev)
		}
		return true
	})
	if !ok {
		return nil
	}
	return ref
}

// compacted takes an entry of the meta bucket when that is too large to be inline.
func (s *Scanner) compacted(slot uint32, name string, value []byte) {
	if rev, ok := mainRevision(value); ok && isCompact(name) && len(s.compacts) < maxRoots {
		s.compacts[slot] = max(s.compacts[slot], rev)
	}
}

// other counts what is in one of the other buckets, all of which must be whole.
func (s *Scanner) other(b otherBucket, res *Result) error {
	if b.root != 0 {
		err := s.walk(b.root, func(slot uint32) error {
			b.entries += int64(s.slots.count(slot))
			b.enabled = b.enabled || s.enabled[slot]
			return s.flat(slot)
		})
		if err != nil {
			return err
		}
	}
	switch b.name {
	case bucketLease:
		res.Leases = b.entries
	case bucketUsers:
		res.Users = b.entries
	case bucketRoles:
		res.Roles = b.entries
	case bucketAuth:
		res.AuthEnabled = b.enabled
	}
	return nil
}
