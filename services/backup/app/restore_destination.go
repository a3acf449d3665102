package app

import (
	"cmp"
	"net/url"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/console"
)

// destinationFlags say where a restore goes and how it is let in.
type destinationFlags struct {
	to                                []string
	tokenFile, username, passwordFile string
	caFile, certFile, keyFile         string
}

func (d *destinationFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringSliceVar(&d.to, "to", nil, "`URL` of the server to restore into; for etcd its members, separated by commas")
	flags.StringVar(&d.tokenFile, "token-file", "", "Consul, Nomad: `file` with the destination's token")
	flags.StringVar(&d.username, "username", "", "etcd: the destination's user")
	flags.StringVar(&d.passwordFile, "password-file", "", "etcd: `file` with that user's password")
	flags.StringVar(&d.caFile, "ca-file", "", "`file` of the CA that the destination's certificate is of")
	flags.StringVar(&d.certFile, "cert-file", "", "`file` of the client certificate for the destination")
	flags.StringVar(&d.keyFile, "key-file", "", "`file` of that certificate's key")
}

// own are the addresses that the configuration has for a target.
func own(t config.Target) []string {
	switch {
	case t.Etcd != nil:
		return t.Etcd.Endpoints
	case t.Consul != nil:
		return []string{t.Consul.Address}
	case t.Nomad != nil:
		return []string{t.Nomad.Address}
	}
	return nil
}

// check refuses a destination that cannot be meant. dataDir is that of etcd; empty for others.
func (d *destinationFlags) check(t config.Target, dataDir string) error {
	if dataDir != "" {
		return nil
	}
	if len(d.to) == 0 {
		or := ""
		if t.Etcd != nil {
			or = ", or --data-dir to make a new member's data directory"
		}
		return console.Usagef("--to is missing: name the server to restore into%s; the target's own is --to %s", or, strings.Join(own(t), ","))
	}
	if t.Etcd == nil && len(d.to) > 1 {
		return console.Usagef("--to takes one address for a target of kind %s", t.Kind())
	}
	for _, to := range d.to {
		u, err := url.Parse(to)
		switch {
		case err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "":
			return console.Usagef("--to: not a URL such as http://host:port")
		case u.User != nil:
			return console.Usagef("--to must not hold a user or password: use --username with --password-file, or --token-file")
		}
	}
	if (d.certFile == "") != (d.keyFile == "") {
		return console.Usagef("--cert-file and --key-file go together")
	}
	if (d.username == "") != (d.passwordFile == "") {
		return console.Usagef("--username and --password-file go together")
	}
	return nil
}

// isOwn says whether a restore goes where the target's snapshots come from.
func (d *destinationFlags) isOwn(t config.Target) bool {
	plain := func(address string) string { return strings.ToLower(strings.TrimSuffix(address, "/")) }
	mine := own(t)
	for _, to := range d.to {
		if !slices.ContainsFunc(mine, func(o string) bool { return plain(o) == plain(to) }) {
			return false
		}
	}
	return len(d.to) > 0
}

// tls are the destination's TLS settings, over those of the configuration.
func (d *destinationFlags) tls(configured config.TLS) config.TLS {
	if d.certFile != "" {
		configured.CertFile, configured.KeyFile = d.certFile, config.SecretFile(d.keyFile)
	}
	configured.CAFile = cmp.Or(d.caFile, configured.CAFile)
	return configured
}

// etcd, consul and nomad are the destination as a configuration would have it.
func (d *destinationFlags) etcd(t config.Target) config.Etcd {
	var c config.Etcd
	if d.isOwn(t) {
		c = *t.Etcd
	}
	if d.username != "" {
		c.Username, c.PasswordFile = d.username, config.SecretFile(d.passwordFile)
	}
	c.Endpoints, c.TLS = d.to, d.tls(c.TLS)
	return c
}

func (d *destinationFlags) consul(t config.Target) config.Consul {
	var c config.Consul
	if d.isOwn(t) {
		c.TLS, c.TokenFile = t.Consul.TLS, t.Consul.TokenFile
	}
	c.Address, c.TLS, c.TokenFile = d.to[0], d.tls(c.TLS), cmp.Or(config.SecretFile(d.tokenFile), c.TokenFile)
	return c
}

func (d *destinationFlags) nomad(t config.Target) config.Nomad {
	var c config.Nomad
	if d.isOwn(t) {
		c.TLS, c.TokenFile = t.Nomad.TLS, t.Nomad.TokenFile
	}
	c.Address, c.TLS, c.TokenFile = d.to[0], d.tls(c.TLS), cmp.Or(config.SecretFile(d.tokenFile), c.TokenFile)
	return c
}
