package worker_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/s3test"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/catalog"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store/s3"
)

// roleOnly makes a user who may do in the bucket what the policy of one role allows, and nothing else.
func (f *fleet) roleOnly(role config.Work) *s3.Store {
	f.t.Helper()
	name := string(role)
	require.NoError(f.t, f.s3.AddPlainUser(name, "the-secret-of-"+name))
	b, err := os.ReadFile(filepath.Join(os.Getenv("PWD"), "../../../../deploy/s3", name+".json"))
	require.NoError(f.t, err)
	var policy struct {
		Version   string
		Statement []map[string]any
	}
	require.NoError(f.t, json.Unmarshal([]byte(strings.ReplaceAll(string(b), "BUCKET", s3test.Bucket)), &policy))
	for _, s := range policy.Statement {
		s["Principal"] = map[string]any{"AWS": []string{name}}
	}
	b, err = json.Marshal(policy)
	require.NoError(f.t, err)
	_, err = f.owner().PutBucketPolicy(f.t.Context(), &awss3.PutBucketPolicyInput{Bucket: aws.String(s3test.Bucket), Policy: aws.String(string(b))})
	require.NoError(f.t, err)

	dir := f.t.TempDir()
	cfg := f.s3.Config
	cfg.AccessKeyIDFile, cfg.SecretAccessKeyFile = config.SecretFile(filepath.Join(dir, "id")), config.SecretFile(filepath.Join(dir, "secret"))
	require.NoError(f.t, os.WriteFile(string(cfg.AccessKeyIDFile), []byte(name), 0o600))
	require.NoError(f.t, os.WriteFile(string(cfg.SecretAccessKeyFile), []byte("the-secret-of-"+name), 0o600))
	s, err := s3.New(f.t.Context(), cfg)
	require.NoError(f.t, err)
	return s
}

// Each role works with the rights that its policy gives, and those of the others are denied to it.
func TestEachRoleNeedsOnlyItsOwnRights(t *testing.T) {
	for _, role := range config.Works() {
		t.Run(string(role), func(t *testing.T) {
			f := newFleet(t)
			owner := f.objects
			// What the other roles need to have been there before.
			if role != config.WorkSnapshot {
				f.work()
				f.snapshot()
				f.stop()
			}
			f.objects = f.roleOnly(role)
			f.wrapped, f.catalog = f.objects, catalog.New(f.objects, "p")
			f.target(func(t *config.Target) { t.Retention.Last = 1 })
			f.work()
			var first store.Version
			switch role {
			case config.WorkSnapshot:
				f.sources = nil
				f.snapshot()
			case config.WorkVerify, config.WorkDrill, config.WorkPrune:
				f.publish(role, target, "")
				f.event(string(role), "passed", target)
			}
			require.NoError(t, owner.Versions(t.Context(), "p/"+target+"/", func(v store.Version) error {
				if strings.HasSuffix(v.Key, "manifest.json") {
					first = v
				}
				return nil
			}))
			err := f.objects.Remove(t.Context(), first)
			if role == config.WorkPrune {
				require.NoError(t, err)
			} else {
				require.ErrorIs(t, err, store.ErrDenied, "only prune may delete")
			}
			_, err = f.objects.Put(t.Context(), "p/"+target+"/snapshots/forged/data.json.zst", strings.NewReader("forged"), 6, store.Condition{})
			if role == config.WorkSnapshot {
				require.NoError(t, err)
			} else {
				require.ErrorIs(t, err, store.ErrDenied, "only snapshot may write data")
			}
		})
	}
}
