package app

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/s3test"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store/s3"
)

// storeInitCommand runs `lifeboat store ARGS` for a bucket of that server which is not there yet.
func storeInitCommand(t *testing.T, server *s3test.Server, bucket string, args ...string) (string, error) {
	t.Helper()
	cfg := server.Config
	cfg.Bucket = bucket
	path := filepath.Join(t.TempDir(), "lifeboat.yaml")
	l := &lab{server: server, prefix: "p"}
	require.NoError(t, os.WriteFile(path, []byte(l.yaml(cfg)), 0o600))
	cmd := StoreCommand()
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetArgs(append(args, "--config", path))
	err := cmd.ExecuteContext(t.Context())
	return out.String(), err
}

// policiesFolder is a copy of deploy/s3 that a test may change.
func policiesFolder(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	// Not the working directory: the embedded S3 server moves that.
	require.NoError(t, os.CopyFS(dir, os.DirFS(filepath.Join(os.Getenv("PWD"), "../../../deploy/s3"))))
	return dir
}

// A bucket that loses what is written over is said to.
func TestStoreInitWithoutVersions(t *testing.T) {
	out, err := storeInitCommand(t, s3test.New(t), s3test.Bucket, "init")
	require.NoError(t, err, out)
	assert.Contains(t, out, "it keeps no versions (it says: off)")
}

// The rights themselves are tested with internal/worker and with the deployments; here is how the command treats what is there.
func TestStoreInit(t *testing.T) {
	server := s3test.New(t, s3test.WithVersioning())
	dir := policiesFolder(t)
	for _, role := range []string{"snapshot", "verify", "drill", "prune", "operator"} { // the server refuses a policy about nobody
		require.NoError(t, server.AddPlainUser("lifeboat-"+role, "the-secret-of-"+role))
	}
	init := func(args ...string) (string, error) {
		return storeInitCommand(t, server, "fresh-bucket", append([]string{"init", "--policies", dir}, args...)...)
	}
	out, err := init()
	require.NoError(t, err, out)
	assert.Equal(t, "bucket fresh-bucket: made\nbucket fresh-bucket: it keeps versions\nbucket fresh-bucket: each role's user now has its rights\n", out)
	cfg := server.Config
	cfg.Bucket = "fresh-bucket"
	objects, err := s3.New(t.Context(), cfg)
	require.NoError(t, err)
	caps, err := objects.Probe(t.Context(), "p/.lifeboat-probe")
	require.NoError(t, err)
	assert.Equal(t, "enabled", caps.Versioning, "what a worker writes over is not lost")

	out, err = init()
	require.NoError(t, err, out)
	assert.Equal(t, "bucket fresh-bucket: it is there already\nbucket fresh-bucket: it keeps versions\nbucket fresh-bucket: each role's user has its rights already\n", out)

	// A policy that somebody made is not replaced unasked.
	path := filepath.Join(dir, "verify.json")
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, []byte(strings.Replace(string(b), "s3:GetObject", "s3:GetObjectVersion", 1)), 0o600))
	_, err = init()
	require.ErrorIs(t, err, s3.ErrOtherPolicy)
	assert.Contains(t, err.Error(), "--replace-policy")
	out, err = init("--replace-policy")
	require.NoError(t, err, out)
	assert.Contains(t, out, "now has its rights")
}

func TestStoreInitWithObjectLock(t *testing.T) {
	server := s3test.New(t, s3test.WithVersioning())
	cfg := server.Config
	cfg.Bucket = "locked-bucket"
	cfg.ObjectLock.Mode, cfg.ObjectLock.Days = "COMPLIANCE", 1
	objects, err := s3.New(t.Context(), cfg)
	require.NoError(t, err)
	made, err := objects.Create(t.Context())
	require.NoError(t, err)
	assert.True(t, made)
	caps, err := objects.Probe(t.Context(), "p/.lifeboat-probe")
	require.NoError(t, err)
	assert.Equal(t, "enabled", caps.ObjectLock)
}

// Nothing is changed when what was asked for makes no sense.
func TestStoreInitRefuses(t *testing.T) {
	server := s3test.New(t)
	for name, test := range map[string]struct {
		args []string
		says string
	}{
		"all roles as one user": {[]string{"--policies", policiesFolder(t), "--principal", "lifeboat"}, "{role}"},
		"no policies":           {[]string{"--policies", t.TempDir()}, "no policy"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := storeInitCommand(t, server, "other-bucket", append([]string{"init"}, test.args...)...)
			require.Error(t, err)
			assert.Contains(t, err.Error(), test.says)
		})
	}
	_, err := storeInitCommand(t, server, "other-bucket", "init")
	require.NoError(t, err, "the bucket alone")
}
