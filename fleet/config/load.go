package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"time"

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
func Parse(path string, src []byte) (*Config, error) {
	doc := &document{path: path, lines: strings.Split(string(src), "\n")}
	file, err := parser.ParseBytes(src, 0)
	if err != nil {
		return nil, doc.decodeError(err)
	}
	if len(file.Docs) > 1 {
		return nil, &Error{File: path, Line: 1, Column: 1, Message: "the file holds more than one YAML document"}
	}
	cfg := &Config{}
	if len(file.Docs) == 1 && file.Docs[0].Body != nil {
		doc.body = file.Docs[0].Body
		if err := doc.checkDurations(durationKeys(reflect.TypeFor[Config](), map[string]func(string) error{})); err != nil {
			return nil, err
		}
		dec := yaml.NewDecoder(strings.NewReader(string(src)), yaml.Strict())
		if err := dec.DecodeFromNode(doc.body, cfg); err != nil {
			return nil, doc.decodeError(err)
		}
	}
	if problems := cfg.check(); len(problems) > 0 {
		return nil, doc.problems(problems)
	}
	cfg.setDefaults()
	resolveFiles(reflect.ValueOf(cfg), filepath.Dir(path))
	return cfg, nil
}

// document finds places in a file for error messages.
type document struct {
	path  string
	lines []string
	body  ast.Node
}

func (d *document) line(n int) string {
	if n < 1 || n > len(d.lines) {
		return ""
	}
	return strings.TrimRight(d.lines[n-1], "\r")
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

// checkDurations finds values that are no durations before the decoder does, which would not say where they stand.
func (d *document) checkDurations(keys map[string]func(string) error) error {
	var found error
	ast.Walk(visitor(func(n ast.Node) {
		entry, ok := n.(*ast.MappingValueNode)
		if !ok || found != nil {
			return
		}
		check, ok := keys[entry.Key.String()]
		if !ok {
			return
		}
		value, ok := entry.Value.(ast.ScalarNode)
		if !ok {
			return // the decoder says what a mapping or list is doing here
		}
		if err := check(fmt.Sprint(value.GetValue())); err != nil {
			pos := value.GetToken().Position
			found = &Error{
				File: d.path, Line: pos.Line, Column: pos.Column, Key: strings.TrimPrefix(value.GetPath(), "$."),
				Message: err.Error(), Source: d.line(pos.Line),
			}
		}
	}), d.body)
	return found
}

// durationKeys are the names of all keys that hold a duration or a period, and how each is checked.
func durationKeys(t reflect.Type, keys map[string]func(string) error) map[string]func(string) error {
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice:
		durationKeys(t.Elem(), keys)
	case reflect.Struct:
		for f := range t.Fields() {
			switch f.Type {
			case reflect.TypeFor[time.Duration]():
				keys[f.Tag.Get("yaml")] = checkDuration
			case reflect.TypeFor[Period]():
				keys[f.Tag.Get("yaml")] = func(s string) error { return new(Period).UnmarshalText([]byte(s)) }
			case reflect.TypeFor[[]Route](): // routes nest in themselves, and hold none
			default:
				durationKeys(f.Type, keys)
			}
		}
	}
	return keys
}

func checkDuration(s string) error {
	if _, err := time.ParseDuration(s); err != nil {
		return fmt.Errorf("%q is not a duration such as 90s, 15m or 12h", s)
	}
	return nil
}

type visitor func(ast.Node)

func (v visitor) Visit(n ast.Node) ast.Visitor {
	v(n)
	return v
}

// problems places each failed check at the nearest node of its path that exists.
func (d *document) problems(ps []problem) error {
	errs := make([]error, 0, len(ps))
	for _, p := range ps {
		line, column := d.position(p.key)
		errs = append(errs, &Error{
			File: d.path, Line: line, Column: column, Key: p.key, Message: p.message, Source: d.line(line),
		})
	}
	return errors.Join(errs...)
}

func (d *document) position(key string) (line, column int) {
	for d.body != nil && key != "" {
		p, err := yaml.PathString("$." + key)
		if err == nil {
			if n, err := p.FilterNode(d.body); err == nil && n != nil && n.GetToken() != nil {
				pos := n.GetToken().Position
				return pos.Line, pos.Column
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

// resolveFiles makes relative file names relative to the folder of the configuration, wherever the service was started.
func resolveFiles(v reflect.Value, dir string) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			resolveFiles(v.Elem(), dir)
		}
	case reflect.Slice:
		for i := range v.Len() {
			resolveFiles(v.Index(i), dir)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			f := v.Field(i)
			isFile := strings.HasSuffix(v.Type().Field(i).Tag.Get("yaml"), "_file")
			if isFile && f.Kind() == reflect.String && f.String() != "" && !filepath.IsAbs(f.String()) {
				f.SetString(filepath.Join(dir, f.String()))
				continue
			}
			resolveFiles(f, dir)
		}
	}
}
