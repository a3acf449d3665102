package config

import (
	"encoding"
	"reflect"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
)

// fields decodes nodes into the structs of a configuration. The library's decoder looks at every field of a struct, and at its tag,
// for every value of it; for a hundred thousand targets of forty fields that is a third of all the time. Here the keys of each struct
// are found once, and only what is below them, everything but plain strings, is left to the library.
type fields map[reflect.Type]map[string]int

// newFields are those of a struct and of all structs in it whose keys are all plain.
func newFields(t reflect.Type) fields {
	f := fields{}
	f.learn(t)
	return f
}

func (f fields) learn(t reflect.Type) {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if _, known := f[t]; known || t.Kind() != reflect.Struct || decodesItself(t) {
		return
	}
	keys := map[string]int{}
	for i := range t.NumField() {
		field := t.Field(i)
		if !field.IsExported() {
			continue
		}
		key := field.Tag.Get("yaml")
		if field.Anonymous || key == "" || strings.ContainsAny(key, ",-") {
			return
		}
		keys[key] = i
	}
	f[t] = keys
	for field := range t.Fields() {
		f.learn(field.Type)
	}
}

func decodesItself(t reflect.Type) bool {
	return slices.ContainsFunc([]reflect.Type{
		reflect.TypeFor[yaml.InterfaceUnmarshaler](), reflect.TypeFor[yaml.BytesUnmarshaler](), reflect.TypeFor[yaml.NodeUnmarshaler](),
		reflect.TypeFor[encoding.TextUnmarshaler](),
	}, reflect.PointerTo(t).Implements)
}

// decode decodes a node that no anchor is in into a value, which is zero, as the library would. Not ok means that it may be wrong.
func (f fields) decode(dec *yaml.Decoder, node ast.Node, into reflect.Value) bool {
	if node.Type() == ast.NullType {
		return true
	}
	switch t := into.Type(); {
	case t.Kind() == reflect.Pointer:
		into.Set(reflect.New(t.Elem()))
		return f.decode(dec, node, into.Elem())
	case t == reflect.TypeFor[string]() || t == reflect.TypeFor[SecretFile]():
		if s, ok := node.(*ast.StringNode); ok {
			into.SetString(s.Value)
			return true
		}
	case t.Kind() == reflect.Slice && !decodesItself(t):
		if list, ok := node.(*ast.SequenceNode); ok {
			into.Set(reflect.MakeSlice(t, len(list.Values), len(list.Values)))
			for i, item := range list.Values {
				if !f.decode(dec, item, into.Index(i)) {
					return false
				}
			}
			return true
		}
	case f[t] != nil:
		if mapping, ok := node.(*ast.MappingNode); ok {
			return f.decodeStruct(dec, mapping, into)
		}
	}
	return dec.DecodeFromNode(node, into.Addr().Interface()) == nil
}

func (f fields) decodeStruct(dec *yaml.Decoder, mapping *ast.MappingNode, into reflect.Value) bool {
	keys := f[into.Type()]
	for i, entry := range mapping.Values {
		key, ok := entry.Key.(*ast.StringNode)
		if !ok {
			return false
		}
		field, known := keys[key.Value]
		if !known || slices.ContainsFunc(mapping.Values[:i], func(e *ast.MappingValueNode) bool { return e.Key.GetToken().Value == key.Value }) {
			return false
		}
		if !f.decode(dec, entry.Value, into.Field(field)) {
			return false
		}
	}
	return true
}
