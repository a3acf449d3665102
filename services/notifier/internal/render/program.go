package render

import (
	"errors"
	"fmt"
	tmplhtml "html/template"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"text/template"
	"text/template/parse"
	"time"

	amtemplate "github.com/prometheus/alertmanager/template"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
)

// program is one receiver's templates.
type program struct {
	kind string
	// title and text are nil when the receiver has none.
	title, text *template.Template
	// broken says why there is no program after all.
	broken error

	// mu is held while one of them is executed: the functions see what it is executed for.
	mu     sync.Mutex
	now    time.Time
	zone   *time.Location
	labels map[string]string
	zones  map[string]*time.Location
}

// compile makes the programs of all receivers that have templates.
func (r *Renderer) compile(cfg config.Notifier) error {
	if len(cfg.TemplateFiles) == 0 && !slices.ContainsFunc(cfg.Receivers, func(x config.Receiver) bool { return x.Title+x.Text != "" }) {
		return nil
	}
	base, err := load(cfg.TemplateFiles)
	if base == nil {
		return err
	}
	errs := []error{err}
	p := preparer{}
	p.all(base)
	for i, receiver := range cfg.Receivers {
		if receiver.Title == "" && receiver.Text == "" {
			continue
		}
		made := &program{kind: receiver.Kind(), zones: map[string]*time.Location{}}
		part := func(key, source string) *template.Template {
			parsed, err := made.parse(base, p, key+" of "+receiver.Name, source, r.zone(receiver))
			if err != nil {
				err = fmt.Errorf("notifier.receivers[%d].%s (receiver %s): %w", i, key, receiver.Name, err)
				errs = append(errs, err)
				made.broken = errors.Join(made.broken, err)
			}
			return parsed
		}
		made.title, made.text = part("title", receiver.Title), part("text", receiver.Text)
		r.programs[receiver.Name] = made
	}
	return errors.Join(errs...)
}

// load reads Alertmanager's own templates and those of files. It returns what could be read also with an error.
func load(patterns []string) (*template.Template, error) {
	var base *template.Template
	_, err := amtemplate.FromGlobs(nil, func(text *template.Template, _ *tmplhtml.Template) { base = text })
	if err != nil {
		return nil, fmt.Errorf("loading Alertmanager's templates: %w", err)
	}
	var errs []error
	for i, pattern := range patterns {
		files, err := filepath.Glob(pattern)
		switch {
		case err != nil:
		case len(files) == 0 && !strings.ContainsAny(pattern, `*?[`):
			err = errors.New("there is no such file")
		case len(files) > 0:
			_, err = base.ParseFiles(files...)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("notifier.template_files[%d] (%s): %w", i, pattern, err))
		}
	}
	return base, errors.Join(errs...)
}

// parse makes one template in a copy of the base, so that what it defines is its own. An empty source makes none.
func (p *program) parse(base *template.Template, prepared preparer, name, source string, zone *time.Location) (*template.Template, error) {
	if source == "" {
		return nil, nil //nolint:nilnil // there is none, and that is no error
	}
	set, err := base.Clone()
	if err != nil {
		return nil, fmt.Errorf("copying the templates: %w", err)
	}
	out, err := set.Funcs(p.funcs()).New(name).Parse(source)
	if err != nil {
		return nil, err //nolint:wrapcheck // it names the template and the line
	}
	if err := (checker{set: set, zone: zone, seen: map[string]bool{}}).tree(out.Tree); err != nil {
		return nil, err
	}
	prepared.all(set)
	return out, nil
}

// funcs replace those of Alertmanager's functions that depend on what is rendered.
func (p *program) funcs() template.FuncMap {
	return template.FuncMap{
		valueFunc:     mark,
		"now":         func() time.Time { return p.now.In(p.zone) },
		"since":       func(t time.Time) time.Duration { return p.now.Sub(t) },
		"routeLabels": func(name string) string { return p.labels[name] },
		"tz": func(name string, t time.Time) (time.Time, error) {
			zone, ok := p.zones[name]
			if !ok {
				var err error
				if zone, err = time.LoadLocation(name); err != nil {
					return time.Time{}, fmt.Errorf("time zone: %w", err)
				}
				p.zones[name] = zone
			}
			return t.In(zone), nil
		},
	}
}

// template lets a receiver's own templates write the title and the body. What fails leaves the default, and the footer says it. Events
// are always told by default: to a template of Alertmanager they would look like alerts that fire.
func (r *Renderer) template(in Input, alerts []*lifeboatv1.Alert, same map[string]string, out *notice.Notice) {
	p := r.programs[in.Receiver.Name]
	if p == nil || out.Status == notice.Event {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	data := templateData(in, alerts, same, out)
	p.now, p.zone, p.labels = in.Now, out.Zone, data.RouteLabels
	said := []error{p.broken}
	title, err := p.execute(p.title, plain, data, maxTitle)
	said = append(said, err)
	if title = line(title, maxTitle); title != "" {
		out.Title = title
	}
	body, err := p.execute(p.text, p.kind, data, maxBody)
	if errors.Is(err, errFull) {
		out.Footer = line(fmt.Sprintf(out.Words.TemplateCut, maxBody>>10)+out.Words.Dot+out.Footer, maxFooter)
		err = nil
	}
	out.Body = strings.TrimSpace(body)
	if failure := errors.Join(append(said, err)...); failure != nil {
		failed := fmt.Sprintf(out.Words.TemplateFailed, line(failure.Error(), maxNote))
		out.Footer = line(failed+out.Words.Dot+out.Footer, maxFooter+maxNote)
	}
}

// execute runs one template. The text is what was written so far only when there was too much of it (errFull).
func (p *program) execute(t *template.Template, kind string, data *amtemplate.Data, most int) (text string, err error) {
	if t == nil {
		return "", nil
	}
	// text/template hands on what it takes for a mistake of its own. An alert must not be lost to it.
	defer func() {
		if r := recover(); r != nil {
			text, err = "", fmt.Errorf("the template panicked: %v", r)
		}
	}()
	w := newWriter(kind, most)
	err = t.Execute(w, data)
	if err != nil && !errors.Is(err, errFull) {
		return "", err //nolint:wrapcheck // it names the template and the line
	}
	return w.text(), err
}

// The trees are rewritten as html/template does it: the value of every action goes through a function that marks it as a value, so that
// the writer knows what to escape. Comparisons, arguments and variables see the values as they are.
const valueFunc = "lifeboatValue"

// preparer rewrites trees once: copies of a template share them.
type preparer map[*parse.Tree]bool

func (p preparer) all(set *template.Template) {
	for _, t := range set.Templates() {
		if t.Tree == nil || p[t.Tree] {
			continue
		}
		p[t.Tree] = true
		p.list(t.Tree, t.Root)
		t.Root.Nodes = slices.Concat([]parse.Node{sign(markEnter, t.Root.Pos)}, t.Root.Nodes, []parse.Node{sign(markLeave, t.Root.Pos)})
	}
}

// sign is a text that only the writer sees. By them it counts the turns of loops and how deep templates call each other, and ends what
// never would.
func sign(mark byte, pos parse.Pos) parse.Node {
	return &parse.TextNode{NodeType: parse.NodeText, Pos: pos, Text: []byte{mark}}
}

func (p preparer) list(tree *parse.Tree, l *parse.ListNode) {
	if l == nil {
		return
	}
	for _, n := range l.Nodes {
		switch n := n.(type) {
		case *parse.ActionNode:
			p.action(tree, n)
		case *parse.IfNode:
			p.list(tree, n.List)
			p.list(tree, n.ElseList)
		case *parse.WithNode:
			p.list(tree, n.List)
			p.list(tree, n.ElseList)
		case *parse.RangeNode:
			p.list(tree, n.List)
			p.list(tree, n.ElseList)
			n.List.Nodes = slices.Concat([]parse.Node{sign(markTurn, n.Pos)}, n.List.Nodes)
		}
	}
}

// action marks what an action writes; an assignment writes nothing, and a constant is the template's own text.
func (p preparer) action(tree *parse.Tree, n *parse.ActionNode) {
	if len(n.Pipe.Decl) > 0 {
		return
	}
	if cmds := n.Pipe.Cmds; len(cmds) == 1 && len(cmds[0].Args) == 1 && cmds[0].Args[0].Type() == parse.NodeString {
		return
	}
	n.Pipe.Cmds = append(n.Pipe.Cmds, &parse.CommandNode{
		NodeType: parse.NodeCommand, Pos: n.Pos,
		Args: []parse.Node{parse.NewIdentifier(valueFunc).SetTree(tree).SetPos(n.Pos)},
	})
}

// checker finds at the start what would fail at night.
type checker struct {
	set  *template.Template
	zone *time.Location
	seen map[string]bool
}

// tree checks a template and all that it calls: they have to exist, and must not turn times by hand that are turned already.
func (c checker) tree(t *parse.Tree) error {
	if c.seen[t.Name] {
		return nil
	}
	c.seen[t.Name] = true
	return c.node(t, t.Root)
}

func (c checker) node(tree *parse.Tree, n parse.Node) error {
	var errs []error
	each := func(nodes ...parse.Node) {
		for _, child := range nodes {
			errs = append(errs, c.node(tree, child))
		}
	}
	branch := func(b *parse.BranchNode) {
		each(b.Pipe, b.List)
		if b.ElseList != nil {
			each(b.ElseList)
		}
	}
	switch n := n.(type) {
	case *parse.ListNode:
		each(n.Nodes...)
	case *parse.ActionNode:
		each(n.Pipe)
	case *parse.IfNode:
		branch(&n.BranchNode)
	case *parse.WithNode:
		branch(&n.BranchNode)
	case *parse.RangeNode:
		branch(&n.BranchNode)
	case *parse.ChainNode:
		each(n.Node)
	case *parse.PipeNode:
		if n == nil {
			return nil
		}
		for _, cmd := range n.Cmds {
			each(cmd)
		}
	case *parse.CommandNode:
		errs = append(errs, c.shifted(tree, n))
		each(n.Args...)
	case *parse.TemplateNode:
		each(n.Pipe)
		called := c.set.Lookup(n.Name)
		if called == nil || called.Tree == nil {
			errs = append(errs, fmt.Errorf("%s: no template is named %q", place(tree, n), n.Name))
		} else {
			errs = append(errs, c.tree(called.Tree))
		}
	}
	return errors.Join(errs...)
}

// shifted finds ".StartsAt.Add 28800e9", by which templates of those who live at UTC+8 commonly turn Alertmanager's UTC into local time.
// With a time zone of the receiver they would be eight hours wrong, silently.
func (c checker) shifted(tree *parse.Tree, n *parse.CommandNode) error {
	if len(n.Args) != 2 {
		return nil
	}
	by, ok := n.Args[1].(*parse.NumberNode)
	if !ok || !by.IsInt || by.Int64 == 0 || !strings.HasSuffix(n.Args[0].String(), "At.Add") {
		return nil
	}
	for _, month := range []time.Month{time.January, time.July} {
		_, offset := time.Date(2026, month, 1, 0, 0, 0, 0, c.zone).Zone()
		if by.Int64 == int64(offset)*int64(time.Second) {
			return fmt.Errorf("%s: %q shifts a time that time_zone %s has turned already; remove the Add, or the time_zone", place(tree, n), n, c.zone)
		}
	}
	return nil
}

func place(tree *parse.Tree, n parse.Node) string {
	at, _ := tree.ErrorContext(n)
	return "template: " + at
}
