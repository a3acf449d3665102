package s3_test

import (
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/s3test"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store/s3"
)

// hide deletes as a person does in a console: in a versioned bucket nothing is freed by it.
func hide(t *testing.T, s *s3.Store, key string) {
	t.Helper()
	_, err := s.Client().DeleteObject(t.Context(), &awss3.DeleteObjectInput{Bucket: aws.String(s3test.Bucket), Key: &key})
	require.NoError(t, err)
}

func used(t *testing.T, server *s3test.Server) int64 {
	t.Helper()
	n, err := server.Used()
	require.NoError(t, err)
	return n
}

func TestRemovingEveryVersionFreesAVersionedBucket(t *testing.T) {
	server := s3test.New(t, s3test.WithVersioning())
	s := open(t, server.Config)
	empty := used(t, server)
	const big = 9 * mib
	require.NoError(t, put(t, s, "t/overwritten", random(t, big), store.Condition{}))
	require.NoError(t, put(t, s, "t/overwritten", random(t, big), store.Condition{}))
	require.NoError(t, put(t, s, "t/deleted", random(t, big), store.Condition{}))
	require.NoError(t, put(t, s, "t/kept", []byte("kept"), store.Condition{}))
	hide(t, s, "t/deleted")
	require.NoError(t, put(t, s, "t/deleted", random(t, 1000), store.Condition{}))
	hide(t, s, "t/deleted")
	_, err := s.Head(t.Context(), "t/deleted")
	require.ErrorIs(t, err, store.ErrNotFound)
	require.Greater(t, used(t, server), empty+3*big, "overwriting and hiding freed nothing")

	all := versionsOf(t, s, "t/")
	// S3 gives versions and markers as two lists with times in full seconds, so two of one second may change places.
	var got []string
	for _, v := range all {
		kind := " version"
		if v.Marker {
			kind = " marker"
		}
		if v.Latest {
			kind += ", latest"
		}
		got = append(got, v.Key+kind)
		assert.NotEmpty(t, v.ID)
	}
	require.Len(t, got, 7)
	assert.ElementsMatch(t, []string{"t/deleted version", "t/deleted marker", "t/deleted version"}, got[1:4])
	assert.Equal(t, []string{
		"t/deleted marker, latest", "t/kept version, latest", "t/overwritten version, latest", "t/overwritten version",
	}, append(got[:1:1], got[4:]...))

	for _, v := range all {
		if v.Key != "t/kept" {
			require.NoError(t, s.Remove(t.Context(), v))
			require.NoError(t, s.Remove(t.Context(), v), "again")
		}
	}
	left := versionsOf(t, s, "")
	require.Len(t, left, 1)
	assert.Equal(t, "t/kept", left[0].Key)
	assert.Less(t, used(t, server), empty+1000, "the space is freed")
	kept, err := read(t.Context(), s, "t/kept")
	require.NoError(t, err)
	assert.Equal(t, "kept", string(kept))
}

func TestRemovingAnOldVersionKeepsTheNewOne(t *testing.T) {
	server := s3test.New(t, s3test.WithVersioning())
	s := open(t, server.Config)
	require.NoError(t, put(t, s, "k", []byte("old"), store.Condition{}))
	require.NoError(t, put(t, s, "k", []byte("new"), store.Condition{}))
	all := versionsOf(t, s, "k")
	require.Len(t, all, 2)
	require.NoError(t, s.Remove(t.Context(), all[1]))
	got, err := read(t.Context(), s, "k")
	require.NoError(t, err)
	assert.Equal(t, "new", string(got))
	require.Len(t, versionsOf(t, s, "k"), 1)
}

func TestALockedVersionStays(t *testing.T) {
	server := s3test.New(t, s3test.WithObjectLock())
	for _, mode := range []string{"GOVERNANCE", "COMPLIANCE"} {
		t.Run(mode, func(t *testing.T) {
			cfg := server.Config
			cfg.ObjectLock = config.ObjectLock{Mode: mode, Days: 2}
			s := open(t, cfg)
			dir := mode + "/snapshots/1/"
			for key, size := range map[string]int{"data.db.zst": 9 * mib, "data.raft": 10, "manifest.json": 10, "marks/pin.json": 10} {
				require.NoError(t, put(t, s, dir+key, random(t, size), store.Condition{}))
			}
			hide(t, s, dir+"data.db.zst")
			before := used(t, server)
			for _, v := range versionsOf(t, s, dir) {
				lock, err := s.Lock(t.Context(), v)
				require.NoError(t, err)
				if v.Marker || v.Key == dir+"marks/pin.json" {
					assert.Equal(t, store.Lock{}, lock, "%s", v.Key)
					continue
				}
				assert.Equal(t, mode, lock.Mode)
				assert.WithinDuration(t, time.Now().AddDate(0, 0, 2), lock.Until, 2*time.Hour)
				assert.False(t, lock.LegalHold)
				assert.True(t, lock.Held(time.Now()))
				err = s.Remove(t.Context(), v)
				require.ErrorIs(t, err, store.ErrLocked, "%s", v.Key)
				require.NotErrorIs(t, err, store.ErrDenied, "the credentials are not the reason")
			}
			assert.Equal(t, before, used(t, server), "nothing was freed")
			for _, v := range versionsOf(t, s, dir) {
				if v.Marker || v.Key == dir+"marks/pin.json" {
					require.NoError(t, s.Remove(t.Context(), v), "%s", v.Key)
				}
			}
			got, err := read(t.Context(), s, dir+"data.db.zst")
			require.NoError(t, err, "without its marker the locked version is there again")
			assert.Len(t, got, 9*mib)
		})
	}
}

func TestALegalHoldHasNoDate(t *testing.T) {
	server := s3test.New(t, s3test.WithObjectLock())
	s := open(t, server.Config)
	require.NoError(t, put(t, s, "held", []byte("x"), store.Condition{}))
	v := versionsOf(t, s, "held")[0]
	hold := func(status types.ObjectLockLegalHoldStatus) {
		_, err := s.Client().PutObjectLegalHold(t.Context(), &awss3.PutObjectLegalHoldInput{
			Bucket: aws.String(s3test.Bucket), Key: &v.Key, VersionId: &v.ID, LegalHold: &types.ObjectLockLegalHold{Status: status},
		})
		require.NoError(t, err)
	}
	hold(types.ObjectLockLegalHoldStatusOn)
	lock, err := s.Lock(t.Context(), v)
	require.NoError(t, err)
	assert.Equal(t, store.Lock{LegalHold: true}, lock)
	require.ErrorIs(t, s.Remove(t.Context(), v), store.ErrLocked)
	hold(types.ObjectLockLegalHoldStatusOff)
	lock, err = s.Lock(t.Context(), v)
	require.NoError(t, err)
	assert.Equal(t, store.Lock{}, lock)
	require.NoError(t, s.Remove(t.Context(), v))
	assert.Empty(t, versionsOf(t, s, "held"))
}

func TestALockLetsGoWhenItsTimeHasPassed(t *testing.T) {
	server := s3test.New(t, s3test.WithObjectLock())
	s := open(t, server.Config)
	require.NoError(t, put(t, s, "k", []byte("x"), store.Condition{}))
	v := versionsOf(t, s, "k")[0]
	_, err := s.Client().PutObjectRetention(t.Context(), &awss3.PutObjectRetentionInput{
		Bucket: aws.String(s3test.Bucket), Key: &v.Key, VersionId: &v.ID, Retention: &types.ObjectLockRetention{
			Mode: types.ObjectLockRetentionModeCompliance, RetainUntilDate: aws.Time(time.Now().Add(3 * time.Second)),
		},
	})
	require.NoError(t, err)
	require.ErrorIs(t, s.Remove(t.Context(), v), store.ErrLocked)
	require.Eventually(t, func() bool { return s.Remove(t.Context(), v) == nil }, time.Minute, 100*time.Millisecond)
	assert.Empty(t, versionsOf(t, s, "k"))
}

// A denied delete is a matter of rights unless a lock is seen.
func TestADeniedRemoveIsNotALock(t *testing.T) {
	server := s3test.New(t, s3test.WithObjectLock())
	proxy := s3test.NewProxy(t, server)
	s := open(t, proxy.Config)
	require.NoError(t, put(t, s, "k", []byte("x"), store.Condition{}))
	proxy.Handle(s3test.Always("DeleteObject", s3test.Answer(403, "AccessDenied")))
	err := s.Remove(t.Context(), versionsOf(t, s, "k")[0])
	require.ErrorIs(t, err, store.ErrDenied)
	require.NotErrorIs(t, err, store.ErrLocked)
}

func TestAStoreWithoutVersionsListsObjects(t *testing.T) {
	server := s3test.New(t)
	proxy := s3test.NewProxy(t, server)
	s := open(t, proxy.Config)
	require.NoError(t, put(t, s, "k", []byte("xyz"), store.Condition{}))
	proxy.Handle(s3test.Always("ListObjectVersions", s3test.Answer(501, "NotImplemented")))
	all := versionsOf(t, s, "")
	require.Len(t, all, 1)
	assert.Equal(t, "k", all[0].Key)
	assert.True(t, all[0].Latest)
	assert.Empty(t, all[0].ID)
	require.NoError(t, s.Remove(t.Context(), all[0]))
	assert.Empty(t, versionsOf(t, s, ""))
}
