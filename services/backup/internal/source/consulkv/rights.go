package consulkv

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source"
)

const (
	// anonymous is the secret of the token that stands for requests without one, and its accessor. Both are in every
	// datacenter's documentation.
	anonymousSecret   = "anonymous"
	anonymousAccessor = "00000000-0000-0000-0000-000000000002"
	// management is the policy that may do everything.
	management = "global-management"
	// aclsOff is what Consul says to any question about ACLs while they are off.
	aclsOff = "ACL support disabled"
)

// Token is what Consul tells about the one that a request carries. Its secret is never read.
type Token struct {
	set       bool // in the configuration
	off       bool // there are no ACLs
	anonymous bool
	accessor  string
	policies  []string // and what else gives rights; sorted
	err       error    // why it could not be read
}

// rights of a token, as GET /v1/acl/token/self shows them.
type rights struct {
	AccessorID        string
	Policies, Roles   []struct{ Name string }
	ServiceIdentities []struct{ ServiceName string }
	NodeIdentities    []struct{ NodeName string }
	TemplatedPolicies []struct{ TemplateName string }
}

func (r rights) names() []string {
	var all []string
	for _, p := range r.Policies {
		all = append(all, p.Name)
	}
	for _, p := range r.Roles {
		all = append(all, "role:"+p.Name)
	}
	for _, p := range r.ServiceIdentities {
		all = append(all, "service:"+p.ServiceName)
	}
	for _, p := range r.NodeIdentities {
		all = append(all, "node:"+p.NodeName)
	}
	for _, p := range r.TemplatedPolicies {
		all = append(all, "template:"+p.TemplateName)
	}
	slices.Sort(all)
	return all
}

// WhoAmI asks which token the requests carry; the agent's own default token may stand in for a missing one.
func (c *Client) WhoAmI(ctx context.Context) Token {
	const doing = "asking about the token"
	var r rights
	err := c.GetJSON(ctx, "/v1/acl/token/self", doing, &r)
	var status *source.StatusError
	if errors.As(err, &status) && strings.Contains(status.Body, aclsOff) {
		return Token{off: true}
	}
	t := Token{set: c.token != ""}
	if !t.set && status != nil && status.Status == http.StatusForbidden {
		// Without a token Consul finds none of that name. It finds the anonymous one by its well-known secret.
		t.anonymous = true
		err = c.as(anonymousSecret).GetJSON(ctx, "/v1/acl/token/self", doing, &r)
	}
	if err == nil && r.AccessorID == "" {
		err = c.Failed(ctx, source.Damaged, doing, errors.New("the answer names no accessor"))
	}
	t.anonymous = t.anonymous || r.AccessorID == anonymousAccessor
	t.accessor, t.policies, t.err = r.AccessorID, r.names(), err
	return t
}

// as is the client with another token, over the same connections.
func (c *Client) as(secret string) *Client {
	other := *c
	other.token = secret
	return &other
}

// Check says why a list that came may lack keys; nil when it cannot.
func (t Token) Check(h http.Header, prefix string, prefixes []string) error {
	rule := fmt.Sprintf(`key_prefix %q { policy = "read" }`, prefix)
	if len(prefixes) > 1 {
		rule += " (all prefixes are read at once, so it is the rule for what they have in common)"
	}
	if h.Get("X-Consul-Results-Filtered-By-ACLs") == "true" {
		// A list without the keys that the token may not read looks whole, and would be kept as a good snapshot.
		return fmt.Errorf("the token may not read every key; give it: %s", rule)
	}
	policy := h.Get("X-Consul-Default-ACL-Policy") // only while ACLs are on
	switch {
	case !t.anonymous && (t.set || t.err == nil || policy == ""):
		return nil
	case policy == "allow" && t.err == nil && len(t.policies) == 0:
		return nil
	}
	return fmt.Errorf("ACLs are on and no token is set: to such a request Consul does not tell that it left out keys; set "+
		"token_file to a token with: %s", rule)
}

// Forbidden adds what helps against a 403. A token that does not exist lacks no rule.
func Forbidden(err *source.StatusError, prefix string) error {
	if !strings.HasPrefix(err.Body, "Permission denied") {
		return err
	}
	return fmt.Errorf(`%w; give the token: key_prefix %q { policy = "list" }`, err, prefix)
}

// Tell adds what is known of the token to what was read.
func (t Token) Tell(info *lifeboatv1.SourceInfo) {
	switch {
	case t.off:
	case t.err != nil:
		info.Missing = append(info.Missing, "token_accessor, token_policies: "+t.err.Error())
	default:
		info.Identity["token_accessor"] = t.accessor
		info.Identity["token_policies"] = strings.Join(t.policies, ",")
	}
}

// Unsure says whether this version would leave out keys without a word: those before 1.11 do.
func (t Token) Unsure(version string) bool {
	major, rest, _ := strings.Cut(version, ".")
	minor, _, _ := strings.Cut(rest, ".")
	a, err := strconv.Atoi(major)
	b, err2 := strconv.Atoi(minor)
	old := err == nil && err2 == nil && (a < 1 || (a == 1 && b < 11))
	return old && !t.off && !slices.Contains(t.policies, management)
}
