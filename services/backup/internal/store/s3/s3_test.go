package s3_test

import (
	"bytes"
	"context"
	crand "crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/s3test"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store/s3"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store/storetest"
)

const mib = 1 << 20

// open connects with quick retries. Its connections end with the test: the server waits at its end for those that a client
// made in advance and never used.
func open(t *testing.T, cfg config.ObjectStore, opts ...s3.Option) *s3.Store {
	t.Helper()
	var (
		mu    sync.Mutex
		conns []net.Conn
	)
	dial := s3.WithDial(func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, network, addr)
		if err == nil {
			mu.Lock()
			defer mu.Unlock()
			conns = append(conns, conn)
		}
		return conn, err
	})
	t.Cleanup(func() {
		mu.Lock()
		defer mu.Unlock()
		for _, c := range conns {
			_ = c.Close()
		}
	})
	s, err := s3.New(t.Context(), cfg, append([]s3.Option{s3.WithBackoff(20 * time.Millisecond), dial}, opts...)...)
	require.NoError(t, err)
	return s
}

func random(t *testing.T, size int) []byte {
	t.Helper()
	var seed [32]byte
	_, err := crand.Read(seed[:])
	require.NoError(t, err)
	t.Logf("seed %x", seed)
	data := make([]byte, size)
	_, err = rand.NewChaCha8(seed).Read(data)
	require.NoError(t, err)
	return data
}

func put(t *testing.T, s *s3.Store, key string, data []byte, c store.Condition) error {
	t.Helper()
	_, err := s.Put(t.Context(), key, bytes.NewReader(data), int64(len(data)), c)
	return err
}

func read(ctx context.Context, s *s3.Store, key string) ([]byte, error) {
	r, _, err := s.Get(ctx, key)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(r)
	return b, errors.Join(err, r.Close())
}

func uploadsOf(t *testing.T, s *s3.Store) []store.Upload {
	t.Helper()
	var all []store.Upload
	require.NoError(t, s.Uploads(t.Context(), "", func(u store.Upload) error {
		all = append(all, u)
		return nil
	}))
	return all
}

func versionsOf(t *testing.T, s *s3.Store, prefix string) []store.Version {
	t.Helper()
	var all []store.Version
	require.NoError(t, s.Versions(t.Context(), prefix, func(v store.Version) error {
		all = append(all, v)
		return nil
	}))
	return all
}

func TestConformance(t *testing.T) {
	for name, opts := range map[string][]s3test.Option{
		"plain": nil, "versioned": {s3test.WithVersioning()}, "object lock": {s3test.WithObjectLock()},
		"tls": {s3test.WithTLS()},
	} {
		t.Run(name, func(t *testing.T) {
			server := s3test.New(t, opts...)
			storetest.Run(t, open(t, server.Config))

			// A failed upload must not leave parts that are paid for for ever. Of a cancelled one a part may stay that was on
			// its way when the upload was aborted (S3's AbortMultipartUpload says so). The server names the folder by the key's
			// sha256.
			cancelled := fmt.Sprintf("%x", sha256.Sum256([]byte("cancelled")))
			var parts []string
			require.NoError(t, filepath.WalkDir(server.Dir, func(path string, d os.DirEntry, err error) error {
				if err == nil && !d.IsDir() && strings.Contains(path, "multipart") && !strings.Contains(path, cancelled) {
					parts = append(parts, path)
				}
				return err
			}))
			assert.Empty(t, parts, "parts of aborted uploads")
		})
	}
}

func TestAnErrorNamesTheStoreAndNoSecret(t *testing.T) {
	dir := t.TempDir()
	key, secret := filepath.Join(dir, "id"), filepath.Join(dir, "secret")
	require.NoError(t, os.WriteFile(key, []byte("AKIAEXAMPLE"), 0o600))
	require.NoError(t, os.WriteFile(secret, []byte("very-secret-indeed"), 0o600))
	s := open(t, config.ObjectStore{
		Bucket: "backups", Endpoint: "http://127.0.0.1:1", Region: "us-east-1", PathStyle: true,
		AccessKeyIDFile: config.SecretFile(key), SecretAccessKeyFile: config.SecretFile(secret),
	})
	err := s.Ping(t.Context())
	require.ErrorContains(t, err, "bucket backups at http://127.0.0.1:1")
	require.NotContains(t, err.Error(), "very-secret-indeed")
	require.NotErrorIs(t, err, store.ErrNotFound)
}

// What a bucket's encryption, class and lock are is said with the request that begins an object, whether it has one part or
// many. Parts carry checksums when something is locked, because S3 demands them then.
func TestHeadersOfAWrite(t *testing.T) {
	server := s3test.New(t, s3test.WithObjectLock())
	proxy := s3test.NewProxy(t, server)
	cfg := proxy.Config
	cfg.StorageClass = "STANDARD_IA"
	cfg.ObjectLock = config.ObjectLock{Mode: "GOVERNANCE", Days: 30}
	s := open(t, cfg)

	const dir = "t/snapshots/1/"
	small, big := []byte("small"), random(t, 9*mib)
	require.NoError(t, put(t, s, dir+"data.small.zst", small, store.Condition{Absent: true}))
	require.NoError(t, put(t, s, dir+"data.big.zst", big, store.Condition{Absent: true}))
	require.NoError(t, put(t, s, dir+"manifest.json", small, store.Condition{Absent: true}))
	require.NoError(t, put(t, s, dir+"marks/pin.json", small, store.Condition{}))

	for _, r := range proxy.Requests() {
		class, mode, until := r.Header.Get("X-Amz-Storage-Class"), r.Header.Get("X-Amz-Object-Lock-Mode"),
			r.Header.Get("X-Amz-Object-Lock-Retain-Until-Date")
		begins := r.Op == "PutObject" || r.Op == "CreateMultipartUpload"
		if begins && strings.HasPrefix(filepath.Base(r.Key), "data.") {
			assert.Equal(t, "STANDARD_IA", class, "%s %s", r.Op, r.Key)
		} else {
			assert.Empty(t, class, "%s %s", r.Op, r.Key)
		}
		if begins && !strings.Contains(r.Key, "marks/") {
			assert.Equal(t, "GOVERNANCE", mode, "%s %s", r.Op, r.Key)
			at, err := time.Parse(time.RFC3339, until)
			require.NoError(t, err)
			assert.WithinDuration(t, time.Now().AddDate(0, 0, 30), at, 26*time.Hour, "a day may be of 23 or 25 hours")
		} else {
			assert.Empty(t, mode+until, "%s %s", r.Op, r.Key)
		}
		if r.Op == "PutObject" || r.Op == "UploadPart" {
			assert.NotEmpty(t, r.Header.Get("Content-Md5"), "%s %s", r.Op, r.Key)
		}
		assert.Empty(t, r.Header.Get("X-Amz-Trailer"), "some stores refuse them")
		assert.Empty(t, r.Header.Get("Expect"), "some servers wait a second")
	}
	assert.Equal(t, 2, proxy.Count("UploadPart"))
}

func TestServerSideEncryption(t *testing.T) {
	server := s3test.New(t)
	for _, c := range []struct {
		sse        config.SSE
		want, keys string
	}{
		{config.SSE{}, "", ""},
		{config.SSE{Type: "s3"}, "AES256", ""},
		{config.SSE{Type: "kms"}, "aws:kms", ""},
		{config.SSE{Type: "kms", KMSKeyID: "arn:aws:kms:eu-central-1:1:key/k"}, "aws:kms", "arn:aws:kms:eu-central-1:1:key/k"},
	} {
		proxy := s3test.NewProxy(t, server)
		// The server encrypts nothing: what counts is what it is asked for. It is not shown the headers.
		proxy.Handle(func(r *http.Request) s3test.Fault {
			return s3test.Strip("X-Amz-Server-Side-Encryption", "X-Amz-Server-Side-Encryption-Aws-Kms-Key-Id")
		})
		cfg := proxy.Config
		cfg.SSE = c.sse
		s := open(t, cfg)
		require.NoError(t, put(t, s, "data.small", []byte("small"), store.Condition{}))
		require.NoError(t, put(t, s, "data.big", make([]byte, 9*mib), store.Condition{}))
		require.NoError(t, put(t, s, "marks/pin.json", []byte("small"), store.Condition{}))
		begun := 0
		for _, r := range proxy.Requests() {
			sse, key := r.Header.Get("X-Amz-Server-Side-Encryption"), r.Header.Get("X-Amz-Server-Side-Encryption-Aws-Kms-Key-Id")
			if r.Op != "PutObject" && r.Op != "CreateMultipartUpload" {
				assert.Empty(t, sse+key, "S3 refuses them with %s", r.Op)
				continue
			}
			begun++
			assert.Equal(t, c.want, sse, "%s %s", r.Op, r.Key)
			assert.Equal(t, c.keys, key, "%s %s", r.Op, r.Key)
		}
		assert.Equal(t, 3, begun)
	}
}

func TestASecondBucketIsACopyDestination(t *testing.T) {
	server := s3test.New(t, s3test.WithBuckets("copies"))
	first := open(t, server.Config)
	cfg := server.Config
	cfg.Bucket = "copies"
	second := open(t, cfg)
	data := random(t, 9*mib)
	require.NoError(t, put(t, first, "data.db", data, store.Condition{Absent: true}))
	r, o, err := first.Get(t.Context(), "data.db")
	require.NoError(t, err)
	_, err = second.Put(t.Context(), "data.db", r, o.Size, store.Condition{Absent: true})
	require.NoError(t, err)
	require.NoError(t, r.Close())
	got, err := read(t.Context(), second, "data.db")
	require.NoError(t, err)
	assert.True(t, bytes.Equal(data, got))
}
