package s3_test

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/s3test"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store/s3"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store/storetest"
)

func TestConformance(t *testing.T) {
	server := s3test.New(t)
	s, err := s3.New(t.Context(), server.Config)
	require.NoError(t, err)
	storetest.Run(t, s)

	// A failed upload must not leave parts that are paid for for ever. Of a cancelled one a part may stay that was on its way
	// when the upload was aborted (S3's AbortMultipartUpload says so). The server names the folder by the key's sha256.
	cancelled := fmt.Sprintf("%x", sha256.Sum256([]byte("cancelled")))
	var parts []string
	require.NoError(t, filepath.WalkDir(server.Dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.Contains(path, "multipart") && !strings.Contains(path, cancelled) {
			parts = append(parts, path)
		}
		return err
	}))
	assert.Empty(t, parts, "parts of aborted uploads")
}

func TestAnErrorNamesTheStoreAndNoSecret(t *testing.T) {
	dir := t.TempDir()
	key, secret := filepath.Join(dir, "id"), filepath.Join(dir, "secret")
	require.NoError(t, os.WriteFile(key, []byte("AKIAEXAMPLE"), 0o600))
	require.NoError(t, os.WriteFile(secret, []byte("very-secret-indeed"), 0o600))
	s, err := s3.New(t.Context(), config.ObjectStore{
		Bucket: "backups", Endpoint: "http://127.0.0.1:1", Region: "us-east-1", PathStyle: true,
		AccessKeyIDFile: config.SecretFile(key), SecretAccessKeyFile: config.SecretFile(secret),
	})
	require.NoError(t, err)
	err = s.Ping(t.Context())
	require.ErrorContains(t, err, "bucket backups at http://127.0.0.1:1")
	require.NotContains(t, err.Error(), "very-secret-indeed")
	require.NotErrorIs(t, err, store.ErrNotFound)
}

func TestCredentialsMayRotate(t *testing.T) {
	server := s3test.New(t)
	dir := t.TempDir()
	cfg := server.Config
	cfg.SecretAccessKeyFile = config.SecretFile(filepath.Join(dir, "secret"))
	s, err := s3.New(t.Context(), cfg)
	require.NoError(t, err, "a missing file is found when it is used")
	require.ErrorContains(t, s.Ping(t.Context()), "secret_access_key_file")
	right, err := server.Config.SecretAccessKeyFile.Read()
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(string(cfg.SecretAccessKeyFile), []byte(right), 0o600))
	require.NoError(t, s.Ping(t.Context()), "the file is read again")
}
