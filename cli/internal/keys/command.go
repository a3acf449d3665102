package keys

import (
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lifeboat-fleet/lifeboat/fleet/console"
)

// Command is `lifeboat keys`.
func Command() *cobra.Command {
	var o Options
	var output string
	var days int
	cmd := &cobra.Command{
		Use:   "keys",
		Short: "Make the secrets of a deployment: NATS users, certificates, age identities, a webhook token",
		Long: "keys makes every secret that a deployment needs into a folder, and prints none of them:\n\n" +
			"  nats/*.nk, nats/keys.conf           a NATS user for each role, and the public keys for deploy/nats\n" +
			"  tls/{ca,server,client}.pem, *-key   a CA for ten years, and a certificate each for servers and clients, for --days\n" +
			"  age/identity, age/escrow-identity   two keys, each of which decrypts snapshots; age/recipients has their public halves\n" +
			"  webhook-tokens, link-secret         what Alertmanager shows the notifier, and what signs links in chats\n\n" +
			"What is there is left alone, so that it can be run again: after a file was removed to renew it, or with further --host. It says\n" +
			"when a certificate ends soon or lacks a host, when files do not fit each other, and when others can read a secret, with exit code 1.\n" +
			"Secret files are made with mode 0600. Put age/escrow-identity and tls/ca-key.pem into a safe; they are not made again.",
		Example: "  lifeboat keys --out secrets --host nats-1,nats-2,nats-3\n" +
			"  lifeboat keys --out secrets --host '*.lifeboat.example.org,10.1.2.3' --days 365\n" +
			"  lifeboat keys --out secrets/etcd --host etcd-1,etcd-2 --only tls    # another CA, whose clients are no clients of the first\n" +
			"  rm secrets/tls/server.pem && lifeboat keys --out secrets --host nats-1,nats-2,nats-3,nats-4    # a new certificate for the same key",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := console.CheckOutput(output); err != nil {
				return err
			}
			if o.Dir == "" {
				return console.Usagef("--out: name the folder to make them in")
			}
			o.Valid, o.Now = time.Duration(days)*24*time.Hour, time.Now
			if days < 1 || o.Valid > MaxValid {
				return console.Usagef("--days: %d is not between 1 and %d, which the CA lives", days, int(MaxValid.Hours()/24))
			}
			for _, part := range o.Only {
				if !slices.Contains(Parts(), part) {
					return console.Usagef("--only: %q is none of %s", part, strings.Join(Parts(), ", "))
				}
			}
			hosts, err := parseHosts(o.Hosts)
			if err != nil {
				return err
			}
			o.Hosts = hosts
			files, err := Make(o)
			return errors.Join(show(cmd.OutOrStdout(), output, files), err, unfit(files, o.Dir))
		},
	}
	cmd.Flags().StringVar(&o.Dir, "out", "", "`folder` to make them in; what is there stays")
	cmd.Flags().StringSliceVar(&o.Hosts, "host", nil, "`names` and addresses of servers for their certificate; loopback's are always in it")
	cmd.Flags().IntVar(&days, "days", int(DefaultValid.Hours()/24), "for how long certificates of servers and clients are good")
	cmd.Flags().StringSliceVar(&o.Only, "only", nil, "`parts` to make: "+strings.Join(Parts(), ", ")+" (default all)")
	console.AddOutput(cmd, &output)
	cmd.ValidArgsFunction = cobra.NoFileCompletions
	return cmd
}

// A name as DNS and containers have it, with or without a wildcard as its first part.
var hostname = regexp.MustCompile(`^(\*\.)?([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.)*[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?$`)

func parseHosts(list []string) (hosts []string, err error) {
	for _, h := range list {
		if net.ParseIP(h) == nil && !hostname.MatchString(h) {
			return nil, console.Usagef("--host: %q is not a name or an address (without port, scheme or brackets)", h)
		}
		if !slices.Contains(hosts, h) && !slices.Contains(always(), h) {
			hosts = append(hosts, h)
		}
	}
	return hosts, nil
}

func show(out io.Writer, output string, files []File) error {
	if output == console.OutputJSON {
		return console.WriteJSON(out, files)
	}
	t := console.NewTable(out, "FILE", "STATE", "FOR", "NOTE")
	for _, f := range files {
		state := string(f.State)
		if f.State == Unfit {
			state = console.Red(out, state)
		}
		t.Row(f.Path, state, f.For, f.Note)
	}
	return t.Flush("nothing was made")
}

func unfit(files []File, dir string) error {
	n := 0
	for _, f := range files {
		if f.State == Unfit {
			n++
		}
	}
	if n == 0 {
		return nil
	}
	return fmt.Errorf("%d of the files in %s do not do what they are for: see their notes", n, dir)
}
