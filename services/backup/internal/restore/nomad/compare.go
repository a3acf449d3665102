package nomad

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// same says whether two objects are, apart from fields that are empty in one and absent in the other.
func same(a, b any) bool { return len(differences(a, b)) == 0 }

// differences names the fields in which two objects differ, never their values.
func differences(want, got any) []string {
	var all []string
	walk("", value(want), value(got), &all)
	return all
}

// value is what a JSON document says.
func value(v any) any {
	b, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	t, err := tree(b)
	if err != nil {
		return err.Error()
	}
	return t
}

// generated are fields that Nomad makes anew with every registration, by what holds them.
func generated(holder, field string) bool {
	switch holder {
	case "Scaling", "ScalingPolicies":
		return field == "ID" || field == "CreateIndex" || field == "ModifyIndex"
	default:
		return false
	}
}

func walk(at string, a, b any, all *[]string) {
	if empty(a) && empty(b) {
		return
	}
	switch x := a.(type) {
	case map[string]any:
		if y, ok := b.(map[string]any); ok {
			walkFields(at, x, y, all)
			return
		}
	case []any:
		y, ok := b.([]any)
		if strings.HasSuffix(at, ".Constraints") {
			x, y = once(x), once(y)
		}
		if ok && len(x) == len(y) {
			for i := range x {
				walk(fmt.Sprintf("%s[%s]", at, element(x[i], i)), x[i], y[i], all)
			}
			return
		}
	default:
		if a == b { // both are strings, numbers in their own digits, truths, or nothing
			return
		}
	}
	*all = append(*all, strings.TrimPrefix(at, "."))
}

func walkFields(at string, a, b map[string]any, all *[]string) {
	keys := slices.Collect(maps.Keys(a))
	for k := range b {
		if _, ok := a[k]; !ok {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	holder := at[strings.LastIndexByte(at, '.')+1:]
	holder, _, _ = strings.Cut(holder, "[")
	for _, k := range keys {
		if !generated(holder, k) {
			walk(at+"."+k, a[k], b[k], all)
		}
	}
}

// once leaves out what is there twice. Nomad 1.11 gives a group that has a task with an identity a constraint each time that the job
// is registered, also when it has it already (jobImplicitIdentitiesHook).
func once(all []any) (kept []any) {
	for _, v := range all {
		if !slices.ContainsFunc(kept, func(k any) bool { return same(k, v) }) {
			kept = append(kept, v)
		}
	}
	return kept
}

// element is how one of several is told: by its name if it has one.
func element(v any, i int) string {
	if m, ok := v.(map[string]any); ok {
		if n, ok := m["Name"].(string); ok && n != "" {
			return n
		}
	}
	return fmt.Sprint(i)
}

// empty says whether a value is what a field is that was never set.
func empty(v any) bool {
	switch x := v.(type) {
	case nil:
		return true
	case string:
		return x == ""
	case bool:
		return !x
	case json.Number:
		return x == "0"
	case []any:
		return len(x) == 0
	case map[string]any:
		for _, y := range x {
			if !empty(y) {
				return false
			}
		}
		return true
	default:
		return false
	}
}
