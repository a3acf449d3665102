package s3_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/s3test"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store/s3"
)

func TestProbeSaysWhatTheStoreDoes(t *testing.T) {
	for name, c := range map[string]struct {
		opts             []s3test.Option
		versioning, lock string
	}{
		"plain":     {nil, "off", "off"},
		"versioned": {[]s3test.Option{s3test.WithVersioning()}, "enabled", "off"},
		"lock":      {[]s3test.Option{s3test.WithObjectLock()}, "enabled", "enabled"},
	} {
		t.Run(name, func(t *testing.T) {
			server := s3test.New(t, c.opts...)
			proxy := s3test.NewProxy(t, server)
			s := open(t, proxy.Config)
			for range 3 {
				caps, err := s.Probe(t.Context(), "some/prefix")
				require.NoError(t, err)
				assert.Equal(t, store.Capabilities{
					Endpoint: proxy.Endpoint, Bucket: s3test.Bucket, ConditionalWrites: true, Versioning: c.versioning,
					ObjectLock: c.lock, Checksums: true, MultipartAbort: true,
				}, caps)
				all := versionsOf(t, s, "")
				require.Len(t, all, 1, "scratch objects must not grow in number with each start")
				assert.Equal(t, "some/prefix/.lifeboat-probe", all[0].Key)
				assert.Empty(t, uploadsOf(t, s))
			}
			assert.Zero(t, proxy.Count("DeleteObject"))
			_, err := s.Probe(t.Context(), "")
			require.NoError(t, err)
			_, err = s.Head(t.Context(), ".lifeboat-probe")
			require.NoError(t, err, "without a prefix the key does not begin with a slash")
		})
	}
}

func TestProbeSeesAStoreThatLies(t *testing.T) {
	_, proxy, s := proxied(t, s3.WithReuse(0))
	good := store.Capabilities{
		Endpoint: proxy.Endpoint, Bucket: s3test.Bucket, ConditionalWrites: true, Versioning: "off", ObjectLock: "off",
		Checksums: true, MultipartAbort: true,
	}
	for name, c := range map[string]struct {
		lie  func(*http.Request) s3test.Fault
		want func(*store.Capabilities)
	}{
		"put ignores conditions": {
			s3test.Always("PutObject", s3test.LoseConditions()), func(c *store.Capabilities) { c.ConditionalWrites = false },
		},
		"complete ignores conditions": {
			s3test.Always("CompleteMultipartUpload", s3test.LoseConditions()),
			func(c *store.Capabilities) { c.ConditionalWrites = false },
		},
		"conditions are not implemented": {
			func(r *http.Request) s3test.Fault {
				if r.Header.Get("If-None-Match") != "" && s3test.Op(r) == "PutObject" {
					return s3test.Answer(501, "NotImplemented")
				}
				return s3test.Pass()
			},
			func(c *store.Capabilities) { c.ConditionalWrites = false },
		},
		"checksums are ignored": {
			s3test.Always("UploadPart", s3test.Strip("Content-Md5")), func(c *store.Capabilities) { c.Checksums = false },
		},
		"abort does nothing": {
			s3test.Always("AbortMultipartUpload", s3test.Answer(204, "")), func(c *store.Capabilities) { c.MultipartAbort = false },
		},
		"abort does nothing and parts may not be listed": {
			func(r *http.Request) s3test.Fault {
				switch s3test.Op(r) {
				case "AbortMultipartUpload":
					return s3test.Answer(204, "")
				case "ListParts":
					return s3test.Answer(403, "AccessDenied")
				}
				return s3test.Pass()
			}, func(c *store.Capabilities) { c.MultipartAbort = false },
		},
		"nobody may abort": {
			s3test.Always("AbortMultipartUpload", s3test.Answer(403, "AccessDenied")),
			func(c *store.Capabilities) { c.MultipartAbort = false },
		},
		"nothing may be asked": {
			func(r *http.Request) s3test.Fault {
				switch s3test.Op(r) {
				case "GetBucketVersioning", "GetObjectLockConfiguration", "ListParts", "ListMultipartUploads":
					return s3test.Answer(403, "AccessDenied")
				}
				return s3test.Pass()
			},
			func(c *store.Capabilities) { c.Versioning, c.ObjectLock = "unknown", "unknown" },
		},
		"nothing is known of versions and locks": {
			func(r *http.Request) s3test.Fault {
				switch s3test.Op(r) {
				case "GetBucketVersioning", "GetObjectLockConfiguration":
					return s3test.Answer(501, "NotImplemented")
				}
				return s3test.Pass()
			},
			func(*store.Capabilities) {},
		},
	} {
		t.Run(name, func(t *testing.T) {
			proxy.Handle(c.lie)
			want := good
			c.want(&want)
			for range 3 {
				caps, err := s.Probe(t.Context(), "")
				require.NoError(t, err)
				assert.Equal(t, want, caps)
			}
			proxy.Handle(nil)
			left := uploadsOf(t, s)
			assert.LessOrEqual(t, len(left), 1, "unfinished uploads must not grow in number with each start")
			for _, u := range left {
				require.NoError(t, s.Abort(t.Context(), u))
			}
		})
	}
}

func TestProbeFailsWhenItCannotTell(t *testing.T) {
	_, proxy, s := proxied(t)
	for _, op := range []string{"PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"} {
		proxy.Handle(s3test.Always(op, s3test.Answer(403, "AccessDenied")))
		_, err := s.Probe(t.Context(), "")
		require.ErrorIs(t, err, store.ErrDenied, op)
		proxy.Handle(s3test.Always(op, s3test.SlowDown()))
		_, err = s.Probe(t.Context(), "")
		require.ErrorContains(t, err, "SlowDown", op)
	}
}

// A whole fleet starts at the same moment.
func TestProbesDoNotGetInEachOthersWay(t *testing.T) {
	server := s3test.New(t)
	s := open(t, server.Config)
	var g errgroup.Group
	for range 6 {
		g.Go(func() error {
			for range 5 {
				caps, err := s.Probe(t.Context(), "")
				if err != nil {
					return err
				}
				if !caps.ConditionalWrites || !caps.Checksums || !caps.MultipartAbort {
					return fmt.Errorf("%+v", caps)
				}
			}
			return nil
		})
	}
	require.NoError(t, g.Wait())
	assert.Empty(t, uploadsOf(t, s))
}

// A worker that takes snapshots has no right to delete, and none to look at the bucket's settings.
func TestAWorkerNeedsNoRightToDelete(t *testing.T) {
	server := s3test.New(t, s3test.WithVersioning())
	require.NoError(t, server.AddPlainUser("WRITER", "writers-secret"))
	policy, err := json.Marshal(map[string]any{"Version": "2012-10-17", "Statement": []any{
		map[string]any{
			"Effect": "Allow", "Principal": map[string]any{"AWS": []string{"WRITER"}},
			"Action":   []string{"s3:PutObject", "s3:GetObject", "s3:AbortMultipartUpload"},
			"Resource": fmt.Sprintf("arn:aws:s3:::%s/*", s3test.Bucket),
		},
		map[string]any{
			"Effect": "Allow", "Principal": map[string]any{"AWS": []string{"WRITER"}},
			"Action": []string{"s3:ListBucket"}, "Resource": "arn:aws:s3:::" + s3test.Bucket,
		},
	}})
	require.NoError(t, err)
	owner := open(t, server.Config)
	_, err = owner.Client().PutBucketPolicy(t.Context(), &awss3.PutBucketPolicyInput{
		Bucket: aws.String(s3test.Bucket), Policy: aws.String(string(policy)),
	})
	require.NoError(t, err)
	dir := t.TempDir()
	id, secret := filepath.Join(dir, "id"), filepath.Join(dir, "secret")
	require.NoError(t, os.WriteFile(id, []byte("WRITER"), 0o600))
	require.NoError(t, os.WriteFile(secret, []byte("writers-secret"), 0o600))
	cfg := server.Config
	cfg.AccessKeyIDFile, cfg.SecretAccessKeyFile = config.SecretFile(id), config.SecretFile(secret)
	s := open(t, cfg)

	caps, err := s.Probe(t.Context(), "p")
	require.NoError(t, err)
	assert.Equal(t, store.Capabilities{
		Endpoint: server.Endpoint, Bucket: s3test.Bucket, ConditionalWrites: true, Versioning: "unknown", ObjectLock: "unknown",
		Checksums: true, MultipartAbort: true,
	}, caps)
	require.NoError(t, put(t, s, "p/data.db", make([]byte, 9*mib), store.Condition{Absent: true}))
	require.ErrorIs(t, put(t, s, "p/data.db", make([]byte, 9*mib), store.Condition{Absent: true}), store.ErrPrecondition)
	_, err = read(t.Context(), s, "p/data.db")
	require.NoError(t, err)
	for _, v := range versionsOf(t, owner, "p/data.db") {
		require.ErrorIs(t, s.Remove(t.Context(), v), store.ErrDenied)
	}
	assert.Empty(t, uploadsOf(t, owner))
}
