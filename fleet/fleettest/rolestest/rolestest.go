// Package rolestest prepares deploy/nats, the permissions of every role, for a server of a test.
package rolestest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nkeys"
	"github.com/stretchr/testify/require"
)

// Roles are those of deploy/nats.
func Roles() []string {
	return []string{"scheduler", "snapshot", "verify", "drill", "prune", "notifier", "cli", "page"}
}

// Deploy copies deploy/nats, which is at source, into a folder and puts keys of the test's own for the placeholders of
// keys.conf; everything else stays as it is. It returns the files of the seeds, by role.
func Deploy(tb testing.TB, source, dir string) map[string]string {
	tb.Helper()
	require.NoError(tb, os.CopyFS(dir, os.DirFS(source)))
	path := filepath.Join(dir, "keys.conf")
	b, err := os.ReadFile(path)
	require.NoError(tb, err)
	text, seeds := string(b), map[string]string{}
	for _, role := range Roles() {
		secret, public := Seed(tb)
		placeholder := fmt.Sprintf("%s: \"put the public key of %s here\"", strings.ToUpper(role), role)
		require.Equal(tb, 1, strings.Count(text, placeholder), placeholder)
		text = strings.Replace(text, placeholder, fmt.Sprintf("%s: %s", strings.ToUpper(role), public), 1)
		seeds[role] = filepath.Join(dir, role+".nk")
		require.NoError(tb, os.WriteFile(seeds[role], []byte(secret+"\n"), 0o600))
	}
	require.NoError(tb, os.WriteFile(path, []byte(text), 0o600)) //nolint:gosec // a folder of the test's own
	return seeds
}

// Seed makes a user's NKey.
func Seed(tb testing.TB) (secret, public string) {
	tb.Helper()
	pair, err := nkeys.CreateUser()
	require.NoError(tb, err)
	seed, err := pair.Seed()
	require.NoError(tb, err)
	public, err = pair.PublicKey()
	require.NoError(tb, err)
	return string(seed), public
}
