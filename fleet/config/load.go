package config

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// Error is one thing wrong with a configuration file. Several of them come joined.
type Error struct {
	File   string
	Line   int
	Column int
	// Key is the path of the key, as "targets[1].schedule"; empty when the file is not YAML at all.
	Key     string
	Message string
	// Source is the offending line as it stands in the file.
	Source string
}

// Error prints "file:line:column: key: message" and the line itself below.
func (e *Error) Error() string {
	if e.Source == "" {
		return e.place()
	}
	return fmt.Sprintf("%s\n  %4d | %s", e.place(), e.Line, e.Source)
}

func (e *Error) place() string {
	key := ""
	if e.Key != "" {
		key = e.Key + ": "
	}
	return fmt.Sprintf("%s:%d:%d: %s%s", e.File, e.Line, e.Column, key, e.Message)
}

// Places is an error of Load without the lines themselves, for logs and events: somebody may have written a secret where
// it does not belong.
func Places(err error) string {
	if e, ok := err.(*Error); ok { //nolint:errorlint // the tree of joined errors is walked here
		return e.place()
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return err.Error()
	}
	var all []string
	for _, e := range joined.Unwrap() {
		all = append(all, Places(e))
	}
	return strings.Join(all, "; ")
}

// Load reads, decodes and checks a configuration file. Everything that is wrong is reported at once, as *Error values
// joined; any of them means that the file is not used.
func Load(path string) (*Config, error) {
	src, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading configuration: %w", err)
	}
	return Parse(path, src)
}

// Parse is Load for bytes already read; path only names them and resolves relative file names.
//
// A large fleet in a file of the usual form is read in parts, which takes a fraction of the memory and, with several cores, of the
// time. What is accepted, and what is said otherwise, is the same.
func Parse(path string, src []byte) (*Config, error) {
	return parse(path, src, batchItems)
}

// parse reads targets in parts of at least so many, if there are two such parts.
func parse(path string, src []byte, items int) (*Config, error) {
	doc := &document{path: path, src: src}
	if parts, ok := split(src, items); ok {
		cfg, err, ok := parts.read(doc)
		switch {
		case ok && err == nil:
			doc.fleet = parts
			return doc.finish(cfg)
		case ok:
			return nil, err
		}
	}
	cfg, err := doc.read(src)
	if err != nil {
		return nil, err
	}
	return doc.finish(cfg)
}

// finish checks what was decoded and completes it.
func (d *document) finish(cfg *Config) (*Config, error) {
	clocks := newClocks()
	if problems := cfg.check(clocks); len(problems) > 0 {
		return nil, d.problems(problems)
	}
	cfg.setDefaults()
	dir := filepath.Dir(d.path)
	targets := cfg.Targets
	cfg.Targets = nil // they take most of the time, and are done in parts
	newResolver(dir).resolve(reflect.ValueOf(cfg).Elem())
	cfg.Targets = targets
	inParts(len(targets), checkedItems, func(from, to int) []struct{} {
		r := newResolver(dir)
		for i := from; i < to; i++ {
			targets[i].setDefaults()
			clocks.share(&targets[i])
			r.resolve(reflect.ValueOf(&targets[i]).Elem())
		}
		return nil
	})
	return cfg, nil
}

// document finds places in a file for error messages.
type document struct {
	path  string
	src   []byte
	lines [][]byte
	body  ast.Node
	// fleet is where the targets are when they are not in body.
	fleet *parts
}

// read parses and decodes a whole file.
func (d *document) read(src []byte) (*Config, error) {
	file, err := parser.ParseBytes(src, 0)
	if err != nil {
		return nil, d.decodeError(err)
	}
	if len(file.Docs) > 1 {
		return nil, &Error{File: d.path, Line: 1, Column: 1, Message: "the file holds more than one YAML document"}
	}
	cfg := &Config{}
	if len(file.Docs) == 0 || file.Docs[0].Body == nil {
		return cfg, nil
	}
	d.body = file.Docs[0].Body
	if err := d.checkValues(valueChecks()); err != nil {
		return nil, err
	}
	if err := newDecoder().DecodeFromNode(d.body, cfg); err != nil {
		return nil, d.decodeError(err)
	}
	return cfg, nil
}

// newDecoder decodes nodes. It gets nothing to read: it would parse that once more.
func newDecoder() *yaml.Decoder { return yaml.NewDecoder(strings.NewReader(""), yaml.Strict()) }

// line is the text of a line, from 1.
func (d *document) line(n int) string {
	if d.lines == nil { // only errors need them
		d.lines = slices.Collect(bytes.Lines(d.src))
	}
	if n < 1 || n > len(d.lines) {
		return ""
	}
	return strings.TrimRight(string(d.lines[n-1]), "\r\n")
}

// decodeError turns the library's error into one that names the key.
func (d *document) decodeError(err error) error {
	var ye yaml.Error
	if !errors.As(err, &ye) || ye.GetToken() == nil {
		return &Error{File: d.path, Line: 1, Column: 1, Message: err.Error()}
	}
	pos := ye.GetToken().Position
	return &Error{
		File: d.path, Line: pos.Line, Column: pos.Column,
		Key: d.keyAt(pos.Line, pos.Column), Message: ye.GetMessage(), Source: d.line(pos.Line),
	}
}

// Finding is something about a configuration that can be used all the same, and that its author should know.
type Finding struct {
	// Key is the path of the key, as "notifier.route.routes[1]".
	Key     string
	Message string
	// Warning says that it may well be meant.
	Warning bool
}

// Place finds the lines of findings in the file that they are about, in their order. path only names the file.
func Place(path string, src []byte, found []Finding) []*Error {
	doc := &document{path: path, src: src}
	// What cannot be parsed has no findings, but the file may have changed since it was read: then they stand at its beginning.
	if file, err := parser.ParseBytes(src, 0); err == nil && len(file.Docs) > 0 {
		doc.body = file.Docs[0].Body
	}
	placed := make([]*Error, 0, len(found))
	for _, f := range found {
		message := f.Message
		if f.Warning {
			message = "warning: " + message
		}
		placed = append(placed, doc.place(problem{f.Key, message}))
	}
	return placed
}

// keyAt is the path of the mapping entry whose key or value starts at a position.
func (d *document) keyAt(line, column int) string {
	if d.body == nil {
		return ""
	}
	found := ""
	ast.Walk(visitor(func(n ast.Node) {
		tk := n.GetToken()
		if tk == nil || tk.Position == nil || tk.Position.Line != line || tk.Position.Column != column {
			return
		}
		if p := strings.TrimPrefix(n.GetPath(), "$."); len(p) > len(found) {
			found = p
		}
	}), d.body)
	return found
}

// problems places each failed check at the nearest node of its path that exists.
func (d *document) problems(ps []problem) error {
	errs := make([]error, 0, len(ps))
	for _, p := range ps {
		errs = append(errs, d.place(p))
	}
	return errors.Join(errs...)
}

func (d *document) place(p problem) *Error {
	line, column := d.position(p.key)
	return &Error{File: d.path, Line: line, Column: column, Key: p.key, Message: p.message, Source: d.line(line)}
}

func (d *document) position(key string) (line, column int) {
	body, offset := d.body, 0
	if d.fleet != nil {
		if part, line, local, ok := d.fleet.find(d.src, key); ok {
			body, offset, key = part, line, local
		}
	}
	for body != nil && key != "" {
		path := "$." + key
		if key[0] == '[' {
			path = "$" + key
		}
		p, err := yaml.PathString(path)
		if err == nil {
			if n, err := p.FilterNode(body); err == nil && n != nil && begin(n).GetToken() != nil {
				pos := begin(n).GetToken().Position
				return pos.Line + offset, pos.Column
			}
		}
		cut := strings.LastIndexAny(key, ".[")
		if cut < 0 {
			break
		}
		key = key[:cut]
	}
	return 1, 1
}

// begin is the node that stands first: a mapping in block style begins with its first key, though the library says with its colon.
func begin(n ast.Node) ast.Node {
	switch m := n.(type) {
	case *ast.MappingNode:
		if !m.IsFlowStyle && len(m.Values) > 0 {
			return m.Values[0].Key
		}
	case *ast.MappingValueNode:
		return m.Key
	}
	return n
}
