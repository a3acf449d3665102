package config

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/prometheus/alertmanager/timeinterval"
)

// A valueCheck checks the value of a key before the decoder does, which would not say where it stands. It returns the node that is
// wrong, and why.
type valueCheck func(value ast.Node) (ast.Node, error)

// valueChecks are those of all keys that need one, by the key's name.
func valueChecks() map[string]valueCheck {
	checks := durationChecks(reflect.TypeFor[Config](), map[string]valueCheck{})
	checks["blackout"] = checkBlackouts
	checks["time_intervals"] = checkBlackouts // of the list of names too, whose items have no such keys
	return checks
}

// checkValues finds the first value that is wrong.
func (d *document) checkValues(checks map[string]valueCheck) error {
	var found error
	ast.Walk(visitor(func(n ast.Node) {
		if found != nil {
			return
		}
		if bad, err := checkEntry(n, checks); err != nil {
			pos := bad.GetToken().Position
			found = &Error{
				File: d.path, Line: pos.Line, Column: pos.Column, Key: strings.TrimPrefix(bad.GetPath(), "$."),
				Message: err.Error(), Source: d.line(pos.Line),
			}
		}
	}), d.body)
	return found
}

// checkEntry checks the value of a node that is an entry of a mapping.
func checkEntry(n ast.Node, checks map[string]valueCheck) (ast.Node, error) {
	entry, ok := n.(*ast.MappingValueNode)
	if !ok {
		return nil, nil //nolint:nilnil // nothing is wrong
	}
	check, ok := checks[entry.Key.String()]
	if !ok {
		return nil, nil //nolint:nilnil // nothing is wrong
	}
	return check(entry.Value)
}

// durationChecks are those of all keys that hold a duration or a period.
func durationChecks(t reflect.Type, checks map[string]valueCheck) map[string]valueCheck {
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice:
		durationChecks(t.Elem(), checks)
	case reflect.Struct:
		for f := range t.Fields() {
			switch f.Type {
			case reflect.TypeFor[time.Duration]():
				checks[f.Tag.Get("yaml")] = scalar(checkDuration)
			case reflect.TypeFor[Period]():
				checks[f.Tag.Get("yaml")] = scalar(func(s string) error { return new(Period).UnmarshalText([]byte(s)) })
			case reflect.TypeFor[[]Route](): // routes nest in themselves, and hold none
			default:
				if f.IsExported() {
					durationChecks(f.Type, checks)
				}
			}
		}
	}
	return checks
}

// scalar leaves it to the decoder to say what a mapping or list is doing there.
func scalar(check func(string) error) valueCheck {
	return func(value ast.Node) (ast.Node, error) {
		if s, ok := value.(ast.ScalarNode); ok {
			return value, check(fmt.Sprint(s.GetValue()))
		}
		return value, nil
	}
}

func checkDuration(s string) error {
	if _, err := time.ParseDuration(s); err != nil {
		return fmt.Errorf("%q is not a duration such as 90s, 15m or 12h", s)
	}
	return nil
}

// checkBlackouts decodes each part of Alertmanager's time intervals alone: their own errors do not say where they are. Whatever does
// not look like such intervals is left to the decoder.
func checkBlackouts(value ast.Node) (ast.Node, error) {
	intervals, ok := value.(*ast.SequenceNode)
	if !ok {
		return value, nil
	}
	for _, interval := range intervals.Values {
		mapping, ok := interval.(ast.MapNode)
		if !ok {
			continue
		}
		for entries := mapping.MapRange(); entries.Next(); {
			if bad, err := checkInterval(entries.Key().String(), entries.Value()); err != nil {
				return bad, err
			}
		}
	}
	return value, nil
}

// checkInterval checks one key of a time interval.
func checkInterval(key string, value ast.Node) (ast.Node, error) {
	parts := []ast.Node{value}
	if list, ok := value.(*ast.SequenceNode); ok && key != "location" {
		parts = list.Values
	}
	for _, part := range parts {
		var err error
		switch dec := newDecoder(); key {
		case "times":
			err = dec.DecodeFromNode(part, new(timeinterval.TimeRange))
		case "weekdays":
			err = dec.DecodeFromNode(part, new(timeinterval.WeekdayRange))
		case "days_of_month":
			err = dec.DecodeFromNode(part, new(timeinterval.DayOfMonthRange))
		case "months":
			err = dec.DecodeFromNode(part, new(timeinterval.MonthRange))
		case "years":
			err = dec.DecodeFromNode(part, new(timeinterval.YearRange))
		case "location":
			err = dec.DecodeFromNode(part, new(timeinterval.Location))
		}
		var placed yaml.Error
		if err != nil && !errors.As(err, &placed) { // the decoder finds those that have a place itself
			return part, err
		}
	}
	return value, nil
}

type visitor func(ast.Node)

func (v visitor) Visit(n ast.Node) ast.Visitor {
	v(n)
	return v
}
