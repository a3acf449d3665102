package config

import (
	"bytes"
	"errors"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// batchItems is how many targets are parsed at once. A parsed target takes some 20 KiB until it is decoded.
const batchItems = 100

// parts is a file whose list of targets was cut out of it.
type parts struct {
	// rest is the file with an empty list in place of its targets and empty lines in place of theirs.
	rest []byte
	// line is that of the key "targets", from 1.
	line    int
	batches []batch
	items   int

	// body is the batch that was last parsed to find a place.
	body   ast.Node
	parsed int
}

// batch is some targets that follow each other.
type batch struct {
	text []byte
	// first is the index of its first target, of items; start is the offset of text, and line how many lines stand before it.
	first, items, start, line int
}

// split cuts the targets out of a file and into batches when they are a list in block style, below a key "targets" at the
// beginning of a line, that fills more than one batch. Whether that is really what these lines are shows when the parts are
// read: what stands in quotes over several lines, say, cannot be read in parts.
func split(src []byte, items int) (*parts, bool) {
	start, line, ok := findTargets(src)
	if !ok {
		return nil, false
	}
	p := &parts{line: line}
	from := start + bytes.IndexByte(src[start:], '\n') + 1
	at, indent := from, -1
lines:
	for l := range bytes.Lines(src[from:]) {
		content := bytes.Trim(l, " \n")
		depth := bytes.IndexFunc(l, func(r rune) bool { return r != ' ' })
		switch {
		case len(content) == 0 || content[0] == '#':
		case (indent < 0 || depth == indent) && isItem(content):
			indent = depth
			p.add(at, line, items)
		case indent < 0, depth == indent && content[0] == '-':
			return nil, false
		case depth > indent: // more of the item
		case depth == 0:
			break lines
		default:
			return nil, false
		}
		at += len(l)
		line++
	}
	if len(p.batches) < 2 {
		return nil, false
	}
	p.cut(src, start, from, at)
	return p, true
}

// findTargets finds the only line that is "targets:": its offset, and its number from 1. Characters that are rare, or separate
// documents, mean that the file is not of the usual form.
func findTargets(src []byte) (start, number int, ok bool) {
	if bytes.ContainsAny(src, "\t\r\uFEFF\x00") {
		return 0, 0, false
	}
	at, line := 0, 0
	for l := range bytes.Lines(src) {
		line++
		switch {
		case bytes.HasPrefix(l, []byte("---")), bytes.HasPrefix(l, []byte("...")), bytes.HasPrefix(l, []byte("%")):
			return 0, 0, false
		case bytes.HasPrefix(l, []byte("targets:")):
			if ok || string(bytes.TrimRight(l, " \n")) != "targets:" {
				return 0, 0, false
			}
			start, number, ok = at, line, true
		}
		at += len(l)
	}
	return start, number, ok
}

// isItem says whether a line begins an item. One that is empty so far is not of the usual form: what the library puts into it depends
// on what follows.
func isItem(content []byte) bool {
	begun, ok := bytes.CutPrefix(content, []byte("- "))
	begun = bytes.TrimLeft(begun, " ")
	return ok && len(begun) > 0 && begun[0] != '#'
}

// add begins a target at an offset, which so many lines stand before.
func (p *parts) add(at, lines, items int) {
	if p.items%items == 0 {
		p.batches = append(p.batches, batch{first: p.items, line: lines, start: at})
	}
	p.batches[len(p.batches)-1].items++
	p.items++
}

// cut takes the targets, from their key at start and their lines between from and to, out of the file.
func (p *parts) cut(src []byte, start, from, to int) {
	for i := range p.batches {
		end := to
		if i+1 < len(p.batches) {
			end = p.batches[i+1].start
		}
		p.batches[i].text = src[p.batches[i].start:end]
	}
	p.rest = slices.Concat(src[:start], []byte("targets: []\n"), emptyLines(src[from:to]), src[to:])
}

// outcome is what reading a batch came to.
type outcome int

const (
	fine outcome = iota
	// badSyntax is not YAML.
	badSyntax
	// badValue is refused by a valueCheck.
	badValue
	// badField is refused by the decoder.
	badField
	// odd may depend on other parts of the file, or is not what it looked like.
	odd
)

// read reads the parts. Not ok means that the file must be read as a whole, because it is not what it looks like, or because something
// is wrong and only the whole shows what.
func (p *parts) read(doc *document) (*Config, error, bool) {
	rest := &document{path: doc.path, src: doc.src}
	cfg, err := rest.read(p.rest)
	if err != nil || !p.isCutFrom(rest.body) {
		return nil, nil, false //nolint:nilerr // reading the whole says what is wrong
	}
	cfg.Targets = make([]Target, p.items)
	checks, targets := valueChecks(), newFields(reflect.TypeFor[Target]())
	outcomes := inParts(len(p.batches), 1, func(i, _ int) []outcome {
		b := p.batches[i]
		return []outcome{b.decode(cfg.Targets[b.first:b.first+b.items], checks, targets)}
	})
	if slices.Max(outcomes) > fine {
		cfg.Targets = nil
		err, ok := p.why(doc, outcomes)
		return nil, err, ok
	}
	doc.body = rest.body
	return cfg, nil, true
}

// why is what reading the whole file would say is wrong, which takes only the part that is wrong: the decoder stops at the first
// problem. Where that one may not be the first, or may depend on what follows, it is not ok.
func (p *parts) why(doc *document, outcomes []outcome) (error, bool) {
	worst := badField
	for _, o := range []outcome{odd, badSyntax, badValue, badField} {
		if slices.Contains(outcomes, o) {
			worst = o
			break
		}
	}
	first := slices.Index(outcomes, worst)
	again := func(to int, tail string) *Error {
		_, err := (&document{path: doc.path, src: doc.src}).read(p.only(doc.src, first, to, tail))
		placed, _ := errors.AsType[*Error](err)
		return placed
	}
	found := again(first+2, "") // where a value that is left out is placed depends on what follows
	switch {
	case worst == odd, found == nil:
		return nil, false
	case worst == badSyntax:
		alone := !slices.Contains(outcomes[first+1:], badSyntax) && found.Key == "" && isClosed(p.batches[first].text)
		for _, tail := range []string{"", "# '", "# \""} { // is a quote left open?
			closed := again(first+1, tail)
			alone = alone && closed != nil && *closed == *found
		}
		return found, alone
	}
	if _, local, ok := strings.Cut(found.Key, "targets["); ok {
		number, below, _ := strings.Cut(local, "]")
		i, err := strconv.Atoi(number)
		found.Key = indexed("targets", i+p.batches[first].first) + below
		return found, err == nil
	}
	return nil, false
}

// isClosed says whether every list and mapping in flow style ends in the text that it begins in.
func isClosed(text []byte) bool {
	open := 0
	for _, tk := range lexer.Tokenize(string(text)) {
		switch tk.Type {
		case token.SequenceStartType, token.MappingStartType:
			open++
		case token.SequenceEndType, token.MappingEndType:
			open--
		}
	}
	return open == 0
}

// only is the file with empty lines in place of all targets but those of the batches from, up to to. A tail stands in the line behind
// them, unless other things follow there.
func (p *parts) only(src []byte, from, to int, tail string) []byte {
	last := p.batches[len(p.batches)-1]
	text := slices.Clone(src[:p.batches[0].start])
	for i, b := range p.batches {
		if i >= from && i < to {
			text = append(text, b.text...)
			continue
		}
		if i == to {
			text = append(text, tail...)
		}
		text = append(text, emptyLines(b.text)...)
	}
	return append(text, src[last.start+len(last.text):]...)
}

// emptyLines are as many as there are lines in a text.
func emptyLines(text []byte) []byte {
	return bytes.Repeat([]byte("\n"), bytes.Count(text, []byte("\n")))
}

// isCutFrom says whether the key of the targets is really a key of the file, and not some text in it.
func (p *parts) isCutFrom(body ast.Node) bool {
	mapping, ok := body.(*ast.MappingNode)
	return ok && slices.ContainsFunc(mapping.Values, func(v *ast.MappingValueNode) bool {
		list, ok := v.Value.(*ast.SequenceNode)
		return ok && len(list.Values) == 0 && v.Key.String() == "targets" && v.Key.GetToken().Position.Line == p.line &&
			list.GetToken().Position.Line == p.line
	})
}

// decode decodes the targets of a batch, as the decoder would in the whole file.
func (b *batch) decode(into []Target, checks map[string]valueCheck, f fields) outcome {
	list, ok := parseOne(b.text).(*ast.SequenceNode)
	if !ok {
		return badSyntax
	}
	if len(list.Values) != len(into) {
		return odd
	}
	result := fine
	ast.Walk(visitor(func(n ast.Node) {
		switch n := n.(type) {
		case *ast.AnchorNode, *ast.AliasNode, *ast.TagNode, *ast.MergeKeyNode, *ast.DirectiveNode:
			result = odd
		case *ast.LiteralNode:
			if n.Value.Value == "" { // the library may refuse what follows
				result = odd
			}
		}
		if result == fine {
			if _, err := checkEntry(n, checks); err != nil {
				result = badValue
			}
		}
	}), list)
	if result != fine {
		return result
	}
	dec := newDecoder()
	for i, item := range list.Values {
		if !f.decode(dec, item, reflect.ValueOf(&into[i]).Elem()) {
			return badField
		}
	}
	return fine
}

// parseOne is nil for what is not one document.
func parseOne(text []byte) ast.Node {
	file, err := parser.ParseBytes(text, 0)
	if err != nil || len(file.Docs) != 1 {
		return nil
	}
	return file.Docs[0].Body
}

// find is the part in which the target of a key stands, parsed, with how many lines stand before it and the key in it.
func (p *parts) find(src []byte, key string) (body ast.Node, line int, local string, ok bool) {
	after, isTarget := strings.CutPrefix(key, "targets[")
	number, below, _ := strings.Cut(after, "]")
	i, err := strconv.Atoi(number)
	if !isTarget || err != nil {
		return nil, 0, "", false
	}
	at, exact := slices.BinarySearchFunc(p.batches, i, func(b batch, i int) int { return b.first - i })
	if !exact {
		at--
	}
	b := p.batches[at]
	if p.body == nil || p.parsed != at { // problems come in order
		p.parsed, p.body = at, p.parseForPlaces(src, at)
	}
	local = "[" + strconv.Itoa(i-b.first) + "]" + below
	if at+1 == len(p.batches) {
		return p.body, 0, "targets" + local, true
	}
	return p.body, b.line, local, true
}

// parseForPlaces parses a batch with what follows it, which is where the library places a value that is left out.
func (p *parts) parseForPlaces(src []byte, at int) ast.Node {
	if at+1 == len(p.batches) {
		return parseOne(p.only(src, at, at+1, ""))
	}
	return parseOne(slices.Concat(p.batches[at].text, p.batches[at+1].text))
}

// inParts does something with numbers below n, some that follow each other at a time and on all processors, and returns the results in
// order.
func inParts[T any](n, size int, do func(from, to int) []T) []T {
	results := make([][]T, (n+size-1)/size)
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), len(results)) {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < len(results); i = int(next.Add(1)) - 1 {
				results[i] = do(i*size, min(n, (i+1)*size))
			}
		})
	}
	wg.Wait()
	return slices.Concat(results...)
}

// checkedItems is how many targets are checked or completed at a time.
const checkedItems = 1000

// indexed is the key of an item of a list.
func indexed(list string, i int) string { return list + "[" + strconv.Itoa(i) + "]" }
