package nomad

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"time"
)

// object is an answer of which only some fields matter here. The others pass as they are, those of later versions too.
type object map[string]json.RawMessage

// text is a field's string; empty when there is none.
func (o object) text(field string) string {
	var s string
	if json.Unmarshal(o[field], &s) != nil {
		return ""
	}
	return s
}

// without removes fields. Which of them remain decides whether an unchanged region gives the same bytes twice.
func (o object) without(fields ...string) object {
	for _, f := range fields {
		delete(o, f)
	}
	return o
}

// escape makes one path element of a name. What url.PathEscape leaves alone and a file system does not is escaped too.
func escape(name string) string {
	s := url.PathEscape(name)
	if s == "." || s == ".." {
		return strings.ReplaceAll(s, ".", "%2E")
	}
	return s
}

// canonical encodes v with the keys of every object in order. Nomad sends those of a map in a different order each time.
func canonical(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber() // a 64-bit integer is more than a float holds
	var tree any
	if err = dec.Decode(&tree); err != nil {
		return nil, err
	}
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	if err = enc.Encode(tree); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

func add(tw *tar.Writer, name string, v any) error {
	b, err := canonical(v)
	if err != nil {
		return fmt.Errorf("encoding %s: %w", name, err)
	}
	return addBytes(tw, name, b)
}

// addBytes adds a file. Its header says nothing of when and by whom, so that the same jobs give the same bytes.
func addBytes(tw *tar.Writer, name string, b []byte) error {
	err := tw.WriteHeader(&tar.Header{
		Typeflag: tar.TypeReg, Name: name, Mode: 0o600, Size: int64(len(b)), ModTime: time.Unix(0, 0),
		Format: tar.FormatPAX,
	})
	if err != nil {
		return fmt.Errorf("adding %s: %w", name, err)
	}
	if _, err := tw.Write(b); err != nil {
		return fmt.Errorf("adding %s: %w", name, err)
	}
	return nil
}
