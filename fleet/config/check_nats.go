package config

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// inboxPrefix is one or more tokens of a subject without wildcards.
var inboxPrefix = regexp.MustCompile(`^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$`)

// RolePlaceholder in nats.inbox_prefix stands for the role of the process.
const RolePlaceholder = "{role}"

func (c *checker) nats(n NATS) {
	if n.Replicas < 0 || n.Replicas > 5 {
		c.add("nats.replicas", "is %d; JetStream takes 1 to 5", n.Replicas)
	}
	if n.URL != "" {
		for u := range strings.SplitSeq(n.URL, ",") {
			c.url("nats.url", strings.TrimSpace(u), "nats", "tls", "ws", "wss")
		}
	}
	c.tls("nats.tls", n.TLS)
	if (n.Username == "") != (n.PasswordFile == "") {
		c.add("nats", "username and password_file go together")
	}
	ways := []bool{n.CredsFile != "", n.NkeyFile != "", n.Username != ""}
	if several := slices.DeleteFunc(ways, func(set bool) bool { return !set }); len(several) > 1 {
		c.add("nats", "takes one of creds_file, nkey_file and username; it has %d of them", len(several))
	}
	if n.InboxPrefix != "" && !inboxPrefix.MatchString(strings.ReplaceAll(n.InboxPrefix, RolePlaceholder, "role")) {
		c.add("nats.inbox_prefix", "%q is not the beginning of a subject, such as _INBOX_%s", n.InboxPrefix, RolePlaceholder)
	}
	for i, u := range n.MonitorURLs {
		c.url(fmt.Sprintf("nats.monitor_urls[%d]", i), u, "http", "https")
	}
}

// Inbox is the prefix of the subjects on which answers to a role come; empty for the usual one.
func (n NATS) Inbox(role string) string {
	return strings.ReplaceAll(n.InboxPrefix, RolePlaceholder, role)
}
