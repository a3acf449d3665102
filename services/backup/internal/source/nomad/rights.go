package nomad

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/nomad/api"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// The capabilities without which Nomad leaves things out of its lists, and answers as if that were all.
const (
	capListJobs = "list-jobs"
	capHostRead = "host-volume-read"
	capPoolRead = "read"
	capVarList  = "list"
	capDeny     = "deny"
	everything  = "*"
)

// token is what Nomad tells about the one that the requests carry. Its secret is never read.
type token struct {
	off        bool // there are no ACLs
	management bool
	accessor   string
	policies   []string // sorted, those of its roles too
	err        error    // why its rights could not be read

	// The capabilities that its policies give, by the pattern that they give them for.
	namespaces, variables, pools rules
}

// pattern is what a rule is for: the name of a namespace or of a node pool, and for variables a path. Both may hold
// asterisks.
type pattern struct{ name, path string }

// rules are capabilities by pattern. Of several patterns that match, Nomad takes one, the closest.
type rules map[pattern][]string

// policyRules is the part of a policy's RulesJSON that matters here. Nomad has expanded policy = "read" into capabilities.
type policyRules struct {
	Namespaces []struct {
		Name         string
		Capabilities []string
		Variables    *struct {
			Paths []struct {
				PathSpec     string
				Capabilities []string
			}
		}
	}
	NodePools []struct {
		Name         string
		Capabilities []string
	}
}

// ask is a question to Nomad; the reader counts how long it waits for the answer.
type ask func(ctx context.Context, path string, q *api.QueryOptions, out any) (*api.QueryMeta, error)

// whoami asks what the token may read. It fails only when there is no answer at all.
func (c *client) whoami(ctx context.Context, get ask) (token, error) {
	var self struct{ AccessorID, Type string }
	_, err := get(ctx, "/v1/acl/token/self", &api.QueryOptions{}, &self)
	switch {
	case aclsOff(err):
		return token{off: true}, nil
	case statusOf(err) == http.StatusNotFound:
		// There are no ACLs, or it is a workload's identity, which is no token and has policies nevertheless.
		self.AccessorID = "workload identity"
	case statusOf(err) != 0:
		return token{err: err}, nil
	case err != nil:
		return token{}, c.failed(ctx, "asking what the token may read", err)
	}
	t := token{accessor: self.AccessorID, management: self.Type == "management"}
	if t.management {
		return t, nil
	}
	err = t.load(ctx, get)
	switch {
	case aclsOff(err):
		return token{off: true}, nil
	case err != nil && statusOf(err) == 0:
		return token{}, c.failed(ctx, "reading the token's policies", err)
	}
	t.err = err
	return t, nil
}

// aclsOff tells Nomad's answer to any question about ACLs while they are off.
func aclsOff(err error) bool {
	return statusOf(err) == http.StatusBadRequest && strings.Contains(err.Error(), "ACL support disabled")
}

// load reads the token's own policies: of all others, Nomad tells a client token nothing.
func (t *token) load(ctx context.Context, get ask) error {
	t.namespaces, t.pools, t.variables = make(rules), make(rules), make(rules)
	var stubs []struct{ Name string }
	if _, err := get(ctx, "/v1/acl/policies", &api.QueryOptions{}, &stubs); err != nil {
		return err
	}
	for _, s := range stubs {
		var policy struct{ RulesJSON *policyRules }
		if _, err := get(ctx, "/v1/acl/policy/"+url.PathEscape(s.Name), &api.QueryOptions{}, &policy); err != nil {
			return err
		}
		t.policies = append(t.policies, s.Name)
		if policy.RulesJSON != nil { // otherwise nothing is known to be allowed
			t.learn(*policy.RulesJSON)
		}
	}
	slices.Sort(t.policies)
	return nil
}

func (t *token) learn(p policyRules) {
	for _, ns := range p.Namespaces {
		t.namespaces.add(pattern{name: ns.Name}, ns.Capabilities)
		if ns.Variables == nil {
			continue
		}
		for _, v := range ns.Variables.Paths {
			t.variables.add(pattern{ns.Name, v.PathSpec}, v.Capabilities)
		}
	}
	for _, pool := range p.NodePools {
		t.pools.add(pattern{name: pool.Name}, pool.Capabilities)
	}
}

func (p pattern) String() string {
	if p.path == "" {
		return strconv.Quote(p.name)
	}
	return strconv.Quote(p.name + "/" + p.path)
}

func (p pattern) compare(other pattern) int {
	return cmp.Or(cmp.Compare(p.name, other.name), cmp.Compare(p.path, other.path))
}

// matches says whether a namespace is meant.
func (p pattern) matches(namespace string) bool {
	ok, err := path.Match(p.name, namespace) // both hold no slash, and nothing special but the asterisk
	return ok && err == nil
}

func (r rules) add(p pattern, capabilities []string) { r[p] = append(r[p], capabilities...) }

// allow says whether a pattern gives a capability. Another policy's deny for the same pattern takes it away.
func (r rules) allow(p pattern, capability string) bool {
	all := r[p]
	return slices.Contains(all, capability) && !slices.Contains(all, capDeny)
}

// gaps names what the token is not known to have the capability for. It is asked of the rule for everything, which is
// every's, and of all others: one of them may be closer to something, and Nomad takes the closest only.
func (r rules) gaps(every pattern, capability string) []string {
	var gaps []string
	for _, p := range slices.SortedFunc(maps.Keys(r), pattern.compare) {
		if !r.allow(p, capability) {
			gaps = append(gaps, p.String())
		}
	}
	if _, ok := r[every]; !ok {
		gaps = append(gaps, "whatever no rule of its policies names")
	}
	return gaps
}

// gapsOf is gaps for some namespaces only. The path is that of the rule that is enough for a whole namespace, if rules of
// this kind have paths.
func (r rules) gapsOf(namespaces []string, path, capability string) []string {
	var gaps []string
	for _, name := range namespaces {
		mine := make(rules)
		whole := false
		for p, capabilities := range r {
			if p.matches(name) {
				mine[p] = capabilities
				whole = whole || p.path == path
			}
		}
		if best, ok := mine.closest(name); ok && path == "" {
			mine = rules{best: mine[best]}
		}
		denies := func(p pattern) bool { return !mine.allow(p, capability) }
		if !whole || slices.ContainsFunc(slices.Collect(maps.Keys(mine)), denies) {
			gaps = append(gaps, strconv.Quote(name))
		}
	}
	return gaps
}

// closest is the pattern that Nomad takes for a name: the name itself, or the one with the most characters of its own.
func (r rules) closest(name string) (best pattern, found bool) {
	most := -1
	for _, p := range slices.SortedFunc(maps.Keys(r), pattern.compare) {
		if p.name == name {
			return p, true
		}
		if own := len(p.name) - strings.Count(p.name, everything); own > most {
			best, most, found = p, own, true
		}
	}
	return best, found
}

// hidden says what Nomad leaves out of its lists for this token without a word. The namespaces wanted may be nil for all.
func (t *token) hidden(wanted []string) []string {
	switch {
	case t.off, t.management:
		return nil
	case t.err != nil:
		return []string{fmt.Sprintf("what the token may not read: Nomad leaves that out of its lists without a word, and "+
			"the token's policies could not be read: %v; the token needs %s", t.err, needManagement)}
	}
	var all []string
	hide := func(what string, gaps []string, need string) {
		if len(gaps) > 0 {
			all = append(all, fmt.Sprintf("%s: Nomad leaves out without a word what the token may not list: %s; "+
				"the token needs %s", what, strings.Join(gaps, ", "), need))
		}
	}
	one, whole := pattern{name: everything}, pattern{everything, everything}
	if len(wanted) == 0 {
		hide("namespaces, jobs and CSI volumes", t.namespaces.gaps(one, capListJobs), needNamespace)
		hide("host volumes", t.namespaces.gaps(one, capHostRead), needNamespace)
		hide("variables", t.variables.gaps(whole, capVarList), needVariables)
	} else {
		hide("namespaces, jobs and CSI volumes", t.namespaces.gapsOf(wanted, "", capListJobs), needNamespace)
		hide("host volumes", t.namespaces.gapsOf(wanted, "", capHostRead), needNamespace)
		hide("variables", t.variables.gapsOf(wanted, whole.path, capVarList), needVariables)
	}
	hide("node pools", t.pools.gaps(one, capPoolRead), needNodePool)
	return append(all, "ACL policies and roles: all but those of the token itself; the token needs "+needManagement)
}

// describe says who asked.
func (t *token) describe(info *lifeboatv1.SourceInfo) {
	switch {
	case t.off:
		return
	case t.management:
		info.Identity["token_policies"] = "management"
	default:
		info.Identity["token_policies"] = strings.Join(t.policies, ",")
	}
	info.Identity["token_accessor"] = t.accessor
}
