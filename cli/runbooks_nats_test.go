package main

import (
	"bytes"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"mvdan.cc/sh/v3/syntax"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/rolestest"
	"github.com/lifeboat-fleet/lifeboat/fleet/service"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// people is a NATS server with the files of deploy/nats and the keys of `lifeboat keys`, and somebody who uses the nats command with it.
type people struct {
	server  *bintest.NATS
	secrets string
	// env has where the command keeps its contexts.
	env []string
	bin string
}

func newPeople(t *testing.T) *people {
	t.Helper()
	dir := t.TempDir()
	p := &people{secrets: filepath.Join(dir, "secrets"), env: append(os.Environ(), "XDG_CONFIG_HOME="+filepath.Join(dir, "home"))}
	var err error
	p.bin, err = bintest.Find("nats")
	require.NoError(t, err)
	var out bytes.Buffer
	cmd := root()
	cmd.SetArgs([]string{"keys", "--out", p.secrets, "--host", "nats-1,nats-2,nats-3"})
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	require.Zero(t, service.Main(cmd), out.String())
	folder := filepath.Join(dir, "nats")
	require.NoError(t, os.CopyFS(folder, os.DirFS("../deploy/nats")))
	keys := filepath.Join(folder, "keys.conf")
	require.NoError(t, os.Remove(keys))
	require.NoError(t, os.Link(filepath.Join(p.secrets, "nats", "keys.conf"), keys))
	p.server, err = bintest.StartNATSWith(t.Context(), folder, bintest.NATSOptions{Conf: fmt.Sprintf(`
		tls { cert_file: "%[1]s/server.pem", key_file: "%[1]s/server-key.pem", ca_file: "%[1]s/ca.pem", verify: true }
		include ./lifeboat.conf`, filepath.Join(p.secrets, "tls"))})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, p.server.Kill()) })
	return p
}

// as connects as a process of a role does.
func (p *people) as(t *testing.T, role string) *bus.Bus {
	t.Helper()
	in := func(name string) string { return filepath.Join(p.secrets, "tls", name) }
	b, err := bus.Connect(bus.Options{
		Config: config.NATS{
			URL: p.url(), NkeyFile: config.SecretFile(filepath.Join(p.secrets, "nats", role+".nk")), InboxPrefix: "_INBOX_{role}",
			TLS: config.TLS{CAFile: in("ca.pem"), CertFile: in("client.pem"), KeyFile: config.SecretFile(in("client-key.pem"))},
		},
		Actor: "lifeboat@test", Role: role, Logger: slog.New(slog.NewTextHandler(t.Output(), nil)), Registerer: prometheus.NewRegistry(),
	})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, b.Close()) })
	return b
}

func (p *people) url() string { return strings.Replace(p.server.URL, "nats://", "tls://", 1) }

// filled is a command with what a person puts for the words in capitals, and where the keys are here.
func (p *people) filled(args []string) []string {
	filled := slices.Clone(args)
	for i, a := range filled {
		filled[i] = strings.NewReplacer(
			"tls://nats-1:4222,tls://nats-2:4222,tls://nats-3:4222", p.url(), "secrets/", p.secrets+"/", "TARGET", "etcd-prod",
		).Replace(a)
	}
	return filled
}

// nats runs a command of it.
func (p *people) nats(t *testing.T, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), p.bin, args...)
	cmd.Env = p.env
	b, err := cmd.CombinedOutput()
	return string(b), err
}

// denied are the lines of the server's log about what it denied.
func (p *people) denied(t *testing.T) (lines []string) {
	t.Helper()
	b, err := os.ReadFile(p.server.Log())
	require.NoError(t, err)
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, "Violation") {
			lines = append(lines, line)
		}
	}
	return lines
}

// natsCommands are those of a page, within its sentences as well, without the word nats.
func natsCommands(t *testing.T, p runbook) [][]string {
	t.Helper()
	spans := slices.DeleteFunc(slices.Clone(p.spans), func(s string) bool { return !strings.HasPrefix(s, "nats ") })
	return natsIn(t, p.name, append(spans, p.blocks[""]...))
}

// natsIn are the nats commands in pieces of shell.
func natsIn(t *testing.T, name string, pieces []string) (all [][]string) {
	t.Helper()
	for _, text := range pieces {
		file, err := syntax.NewParser(syntax.Variant(syntax.LangPOSIX)).Parse(strings.NewReader(text), name)
		require.NoError(t, err, "%s: %s", name, text)
		syntax.Walk(file, func(n syntax.Node) bool {
			if call, ok := n.(*syntax.CallExpr); ok && len(call.Args) > 0 && plain(call.Args[0].Parts) == "nats" {
				var args []string
				for _, w := range call.Args[1:] {
					args = append(args, plain(w.Parts))
				}
				all = append(all, args)
			}
			return true
		})
	}
	return all
}

// tell stores an event as the first role that may, and says how many may not.
func tell(t *testing.T, roles map[string]*bus.Bus, subject string) (denied int) {
	t.Helper()
	token := strings.Split(strings.ReplaceAll(subject, "*", "etcd-prod"), ".")
	require.Len(t, token, 5, subject)
	for _, role := range slices.Sorted(maps.Keys(roles)) {
		err := roles[role].Emit(t.Context(), &lifeboatv1.Event{Noun: token[2], Verb: token[3], Target: token[4]})
		if err == nil {
			return denied
		}
		require.ErrorIs(t, err, bus.ErrDenied, "%s as %s", subject, role)
		denied++
	}
	require.Fail(t, "nobody ever tells of "+subject)
	return denied
}

// The nats commands that pages tell people to run work with the key that is made for people: each is run, after what docs/permissions.md
// tells to run once. What is denied would be taken for a fault of NATS.
func TestTheKeyForPeopleMayRunEveryNATSCommandOfTheRunbooks(t *testing.T) {
	t.Parallel()
	p := newPeople(t)
	roles := map[string]*bus.Bus{}
	for _, role := range rolestest.Roles() {
		roles[role] = p.as(t, role)
	}
	require.Eventually(t, func() bool { return roles["scheduler"].EnsureStreams(t.Context()) == nil }, time.Minute, 20*time.Millisecond)

	src, err := os.ReadFile("../docs/permissions.md")
	require.NoError(t, err)
	blocks := parsePage(t, "permissions", src).blocks[""]
	first := natsIn(t, "permissions", slices.DeleteFunc(blocks, func(b string) bool { return !strings.HasPrefix(b, "nats ") }))
	require.Len(t, first, 1, "what a person tells the nats command once: server, key, certificates, inbox")
	out, err := p.nats(t, p.filled(first[0])...)
	require.NoError(t, err, out)

	commands := map[string][]string{"the status page": {"stream", "ls"}}
	denied := 0
	for name, page := range readPages(t) {
		for _, args := range natsCommands(t, page) {
			args = p.filled(args)
			commands[name+": nats "+strings.Join(args, " ")] = args
			for _, a := range args {
				if strings.HasPrefix(a, "lifeboat.event.") {
					denied += tell(t, roles, a)
				}
			}
		}
	}
	require.Greater(t, len(commands), 10)
	// A server tells of what it denied before it logs that.
	require.Eventually(t, func() bool { return len(p.denied(t)) == denied }, time.Minute, 10*time.Millisecond)
	for name, args := range commands {
		out, err = p.nats(t, args...)
		require.NoError(t, err, "%s\n%s", name, out)
	}
	// Nothing of all that was denied, and this is.
	out, err = p.nats(t, "--timeout", "1s", "stream", "purge", "-f", bus.StreamEvents)
	require.Error(t, err, out)
	require.Eventually(t, func() bool { return len(p.denied(t)) > denied }, time.Minute, 10*time.Millisecond)
	for _, line := range p.denied(t)[denied:] {
		assert.Contains(t, line, "$JS.API.STREAM.PURGE."+bus.StreamEvents)
	}
}
