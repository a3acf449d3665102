package runbook

import (
	"github.com/goccy/go-yaml/ast"
)

const (
	// maxAliases bounds how far aliases are followed, because they may lead back.
	maxAliases = 10
	// maxMerges bounds how often merge keys are followed in a file: ten lines of them can stand for billions of entries.
	maxMerges = 1_000_000
)

// tree looks through a YAML file with the line of everything at hand, which a decoder does not give. It follows anchors, aliases and
// merge keys.
type tree struct {
	anchors map[string]ast.Node
	merges  int
}

func newTree(file *ast.File) *tree {
	t := &tree{anchors: map[string]ast.Node{}}
	for _, doc := range file.Docs {
		if doc.Body != nil {
			ast.Walk(anchorVisitor(t.anchors), doc.Body)
		}
	}
	return t
}

type anchorVisitor map[string]ast.Node

func (v anchorVisitor) Visit(n ast.Node) ast.Visitor {
	if a, ok := n.(*ast.AnchorNode); ok && a.Name != nil && a.Value != nil {
		v[a.Name.GetToken().Value] = a.Value
	}
	return v
}

// plain is the node that a tag, an anchor or an alias stands for; nil when that is nothing.
func (t *tree) plain(n ast.Node) ast.Node {
	for range maxAliases {
		switch node := n.(type) {
		case *ast.AnchorNode:
			n = node.Value
		case *ast.TagNode:
			n = node.Value
		case *ast.AliasNode:
			if node.Value == nil {
				return nil
			}
			n = t.anchors[node.Value.GetToken().Value]
		case *ast.NullNode:
			return nil
		default:
			return n
		}
	}
	return nil
}

type pair struct {
	key   string
	value ast.Node
}

// pairs are the entries of a mapping, those of its merge keys last; ok is false when it is none.
func (t *tree) pairs(n ast.Node) (all []pair, ok bool) { return t.merged(n, 0) }

func (t *tree) merged(n ast.Node, depth int) (all []pair, ok bool) {
	var entries []*ast.MappingValueNode
	switch node := t.plain(n).(type) {
	case *ast.MappingNode:
		entries = node.Values
	case *ast.MappingValueNode:
		entries = []*ast.MappingValueNode{node}
	default:
		return nil, false
	}
	var merge []ast.Node
	for _, e := range entries {
		if e.Key == nil || e.Key.GetToken() == nil {
			continue
		}
		if e.Key.IsMergeKey() {
			merge = append(merge, e.Value)
			continue
		}
		all = append(all, pair{e.Key.GetToken().Value, e.Value})
	}
	for i := 0; i < len(merge) && depth < maxAliases; i++ {
		sources, isList := t.items(merge[i])
		if !isList {
			sources = []ast.Node{merge[i]}
		}
		for _, s := range sources {
			if t.merges++; t.merges > maxMerges {
				return all, true
			}
			inherited, _ := t.merged(s, depth+1)
			for _, p := range inherited {
				if find(all, p.key) == nil {
					all = append(all, p)
				}
			}
		}
	}
	return all, true
}

func find(all []pair, key string) *pair {
	for i := range all {
		if all[i].key == key {
			return &all[i]
		}
	}
	return nil
}

// field is the value of a mapping's key; nil when it is missing or empty.
func (t *tree) field(n ast.Node, key string) ast.Node {
	all, _ := t.pairs(n)
	if p := find(all, key); p != nil && t.plain(p.value) != nil {
		return p.value
	}
	return nil
}

// items are those of a list. Nothing is a list without any.
func (t *tree) items(n ast.Node) (all []ast.Node, ok bool) {
	switch node := t.plain(n).(type) {
	case nil:
		return nil, true
	case *ast.SequenceNode:
		return node.Values, true
	}
	return nil, false
}

// text is a scalar as it is written; nothing is the empty string.
func (t *tree) text(n ast.Node) (s string, ok bool) {
	switch node := t.plain(n).(type) {
	case nil:
		return "", true
	case *ast.StringNode:
		return node.Value, true
	case *ast.LiteralNode:
		return node.Value.Value, true
	case ast.ScalarNode:
		return node.GetToken().Value, true
	}
	return "", false
}

// position is where a node begins, from 1; 1:1 when it is nowhere.
func position(n ast.Node) (line, column int) {
	if n == nil || n.GetToken() == nil || n.GetToken().Position == nil {
		return 1, 1
	}
	p := n.GetToken().Position
	return p.Line, p.Column
}
