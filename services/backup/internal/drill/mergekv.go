package drill

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// kv is an entry of what `consul kv export` writes.
type kv struct {
	Key   string `json:"key"`
	Flags uint64 `json:"flags"`
	Value []byte `json:"value"`
}

// kvReader reads a list of entries one by one.
type kvReader struct {
	dec   *json.Decoder
	entry kv
	ended bool
}

func newKVReader(r io.Reader) (*kvReader, error) {
	k := &kvReader{dec: json.NewDecoder(r)}
	tok, err := k.dec.Token()
	if err != nil {
		return nil, err
	}
	if tok != json.Delim('[') {
		return nil, errors.New("it is no list of keys")
	}
	return k, k.next()
}

func (k *kvReader) next() error {
	if !k.dec.More() {
		k.ended = true
		_, err := k.dec.Token()
		return err
	}
	k.entry = kv{}
	return k.dec.Decode(&k.entry)
}

// mergeKV compares two lists that are in the order of their keys, and tells each difference with its values masked.
func mergeKV(snapshot, restored io.Reader, differ func(key, want, got string)) error {
	a, err := newKVReader(snapshot)
	if err != nil {
		return fmt.Errorf("reading the snapshot: %w", err)
	}
	b, err := newKVReader(restored)
	if err != nil {
		return fmt.Errorf("reading what was restored: %w", err)
	}
	for !a.ended || !b.ended {
		left, right := !a.ended, !b.ended
		switch {
		case left && (!right || a.entry.Key < b.entry.Key):
			differ(a.entry.Key, "there", "missing")
			right = false
		case right && (!left || b.entry.Key < a.entry.Key):
			differ(b.entry.Key, "missing", "there")
			left = false
		default:
			compareKV(a.entry, b.entry, differ)
		}
		if left {
			if err := a.next(); err != nil {
				return fmt.Errorf("reading the snapshot: %w", err)
			}
		}
		if right {
			if err := b.next(); err != nil {
				return fmt.Errorf("reading what was restored: %w", err)
			}
		}
	}
	return nil
}

func compareKV(a, b kv, differ func(key, want, got string)) {
	same := bytes.Equal(a.Value, b.Value)
	if same && a.Flags == b.Flags {
		return
	}
	other := "the same value"
	if !same {
		other = fmt.Sprintf("another value of %d B", len(b.Value))
	}
	differ(a.Key, fmt.Sprintf("a value of %d B with flags %d", len(a.Value), a.Flags), fmt.Sprintf("%s with flags %d", other, b.Flags))
}
