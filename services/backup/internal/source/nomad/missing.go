package nomad

import (
	"fmt"
	"slices"
	"strings"
)

// What a token needs, in words that follow "the token needs".
const (
	needNamespace  = `namespace "*" { policy = "read" }`
	needVariables  = `namespace "*" { variables { path "*" { capabilities = ["list", "read"] } } }`
	needNodePool   = `node_pool "*" { policy = "read" }`
	needQuota      = `quota { policy = "read" }`
	needOperator   = `operator { policy = "read" }`
	needAgent      = `agent { policy = "read" }`
	needManagement = `to be a management token`
)

// maxNamed is how many of the things of one kind that were denied are named.
const maxNamed = 10

// denied is what of one kind the token may not read.
type denied struct {
	kind, need string
	names      []string
	more       int
}

// deny notes that a thing of a kind was refused; with no name, all of the kind.
func (r *reader) deny(kind, name, need string) {
	for _, d := range r.denied {
		if d.kind != kind || d.need != need {
			continue
		}
		switch {
		case name == "":
		case len(d.names) < maxNamed:
			d.names = append(d.names, name)
		default:
			d.more++
		}
		return
	}
	d := &denied{kind: kind, need: need}
	if name != "" {
		d.names = []string{name}
	}
	r.denied = append(r.denied, d)
}

func (r *reader) isDenied(kind string) bool {
	return slices.ContainsFunc(r.denied, func(d *denied) bool { return d.kind == kind })
}

func (d *denied) String() string {
	what := d.kind
	if len(d.names) > 0 {
		what += " " + strings.Join(d.names, ", ")
	}
	if d.more > 0 {
		what += fmt.Sprintf(" and %d more", d.more)
	}
	return what + ": denied (403); the token needs " + d.need
}

// absent is everything that is not in the archive, and why.
func (r *reader) absent() []string {
	all := append(r.token.hidden(r.wanted), r.missing...)
	for _, d := range r.denied {
		all = append(all, d.String())
	}
	return all
}
