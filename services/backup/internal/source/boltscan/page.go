package boltscan

import (
	"encoding/binary"
	"errors"
	"hash/fnv"
)

// bbolt's file format, version 2 (go.etcd.io/bbolt/internal/common). All numbers are in the writer's byte order, which
// is little endian on every platform that etcd supports.
const (
	boltMagic   = 0xED0CDAED
	boltVersion = 2

	pageHeaderSize = 16
	elementSize    = 16
	metaSize       = 64
	bucketHeader   = 16

	flagBranch = 0x01
	flagLeaf   = 0x02
	flagBucket = 0x01
)

var errNoMeta = errors.New("it does not begin with a valid bbolt meta page")

// metaPage is what a meta page says. root is the page of the root bucket, pages the number of pages in use.
type metaPage struct {
	pageSize uint32
	root     uint64
	pages    uint64
	txid     uint64
}

// parseMeta reads a meta page, header included.
func parseMeta(page []byte) (metaPage, error) {
	if len(page) < pageHeaderSize+metaSize {
		return metaPage{}, errNoMeta
	}
	b := page[pageHeaderSize:]
	sum := fnv.New64a()
	_, _ = sum.Write(b[:metaSize-8]) // a hash takes everything
	m := metaPage{
		pageSize: binary.LittleEndian.Uint32(b[8:]),
		root:     binary.LittleEndian.Uint64(b[16:]),
		pages:    binary.LittleEndian.Uint64(b[40:]),
		txid:     binary.LittleEndian.Uint64(b[48:]),
	}
	switch {
	case binary.LittleEndian.Uint32(b) != boltMagic,
		binary.LittleEndian.Uint32(b[4:]) != boltVersion,
		binary.LittleEndian.Uint64(b[56:]) != sum.Sum64(),
		m.pageSize < 512 || m.pageSize > 1<<20 || m.pageSize&(m.pageSize-1) != 0:
		return metaPage{}, errNoMeta
	}
	return m, nil
}

// pageImage is a page as far as it has come: its first slot, or all of an inline page. size is how many bytes the page
// has in all, with the slots that it overflows into.
type pageImage struct {
	b    []byte
	size uint64
}

// span is a range of bytes relative to the start of a page. It may lie beyond the page's first slot.
type span struct{ off, len uint64 }

func (p pageImage) flags() uint16 { return binary.LittleEndian.Uint16(p.b[8:]) }
func (p pageImage) count() int    { return int(binary.LittleEndian.Uint16(p.b[10:])) }

// holdsElements says whether all element headers lie in the bytes that are here. bbolt splits nodes at the page's size,
// so on a real page they do.
func (p pageImage) holdsElements() bool { return pageHeaderSize+elementSize*p.count() <= len(p.b) }

// leaf gives the flags, key and value of element i of a leaf page; ok is false when they would lie outside the page.
func (p pageImage) leaf(i int) (flags uint32, key, value span, ok bool) {
	at := uint64(pageHeaderSize + elementSize*i) //nolint:gosec // i is a 16 bit count
	e := p.b[at:]
	key = span{at + uint64(binary.LittleEndian.Uint32(e[4:])), uint64(binary.LittleEndian.Uint32(e[8:]))}
	value = span{key.off + key.len, uint64(binary.LittleEndian.Uint32(e[12:]))}
	return binary.LittleEndian.Uint32(e), key, value, key.len > 0 && value.off+value.len <= p.size
}

// branch gives the page that element i of a branch page refers to, and the first key there; ok is false when the key
// would lie outside the page.
func (p pageImage) branch(i int) (id uint64, key span, ok bool) {
	at := uint64(pageHeaderSize + elementSize*i) //nolint:gosec // i is a 16 bit count
	e := p.b[at:]
	key = span{at + uint64(binary.LittleEndian.Uint32(e)), uint64(binary.LittleEndian.Uint32(e[4:]))}
	return binary.LittleEndian.Uint64(e[8:]), key, key.len > 0 && key.off+key.len <= p.size
}

// eachInline visits the entries of a bucket that lies within a leaf page of another, until visit returns false. It
// returns whether all was well.
func eachInline(page []byte, visit func(k, v []byte) bool) bool {
	img := pageImage{b: page, size: uint64(len(page))}
	if len(page) < pageHeaderSize || img.flags() != flagLeaf || !img.holdsElements() {
		return false
	}
	for i := range img.count() {
		flags, key, value, ok := img.leaf(i)
		if !ok || flags&flagBucket != 0 || !visit(page[key.off:key.off+key.len], page[value.off:value.off+value.len]) {
			return false
		}
	}
	return true
}
