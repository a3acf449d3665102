package config

import (
	"path/filepath"
	"reflect"
	"slices"
	"strings"
)

// resolver makes relative file names relative to the folder of the configuration, wherever the service was started.
type resolver struct {
	dir string
	// fields are those of a struct that are files or may hold some.
	fields map[reflect.Type][]int
}

func newResolver(dir string) *resolver { return &resolver{dir, map[reflect.Type][]int{}} }

func (r *resolver) resolve(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			r.resolve(v.Elem())
		}
	case reflect.Slice:
		for i := range v.Len() {
			r.resolve(v.Index(i))
		}
	case reflect.Struct:
		t := v.Type()
		fields, known := r.fields[t]
		if !known {
			for i := range t.NumField() {
				if leadsToFile(t.Field(i), nil) {
					fields = append(fields, i)
				}
			}
			r.fields[t] = fields
		}
		for _, i := range fields {
			f := v.Field(i)
			switch {
			case f.Kind() == reflect.String:
				r.absolute(f)
			case f.Kind() == reflect.Slice && f.Type().Elem().Kind() == reflect.String:
				for j := range f.Len() {
					r.absolute(f.Index(j))
				}
			default:
				r.resolve(f)
			}
		}
	}
}

func (r *resolver) absolute(f reflect.Value) {
	if f.String() != "" && !filepath.IsAbs(f.String()) {
		f.SetString(filepath.Join(r.dir, f.String()))
	}
}

// leadsToFile says whether a field is the name of a file, or has one somewhere below.
func leadsToFile(f reflect.StructField, above []reflect.Type) bool {
	t := f.Type
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	switch {
	case !f.IsExported():
		return false
	case t.Kind() == reflect.String:
		key := f.Tag.Get("yaml")
		if t != f.Type {
			return strings.HasSuffix(key, "_files")
		}
		return strings.HasSuffix(key, "_file") || strings.HasSuffix(key, "_dir")
	case t.Kind() != reflect.Struct || slices.Contains(above, t):
		return false // routes nest in themselves
	}
	for below := range t.Fields() {
		if leadsToFile(below, append(above, t)) {
			return true
		}
	}
	return false
}
