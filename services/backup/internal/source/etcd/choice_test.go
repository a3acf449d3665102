package etcd_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/etcd"
)

// trio is a cluster of three, its leader first.
func trio(t *testing.T) (members []*embed.Etcd, urls []string, c *clientv3.Client) {
	t.Helper()
	members = cluster(t, 3)
	leader := leaderOf(t, members)
	members[0], members[leader] = members[leader], members[0]
	for _, m := range members {
		urls = append(urls, clientURL(m))
	}
	return members, urls, dial(t, urls[0])
}

func memberOf(info *lifeboatv1.SourceInfo) string { return info.GetIdentity()["member_id"] }

func idOf(e *embed.Etcd) string { return fmt.Sprintf("%x", uint64(e.Server.MemberID())) }

// TestLagging holds up one follower's disk while the cluster goes on.
func TestLagging(t *testing.T) {
	members, urls, c := trio(t)
	slow, other := members[1], members[2]
	held := slow.Server.Backend().BatchTx()
	held.LockOutsideApply()
	release := sync.OnceFunc(held.Unlock)
	defer release()
	const more = 5600 // than the 5000 entries that are allowed
	var writers sync.WaitGroup
	for w := range 8 {
		writers.Go(func() {
			for i := range more / 8 {
				_, err := c.Put(t.Context(), fmt.Sprintf("/w%d/%d", w, i%10), "x")
				assert.NoError(t, err)
			}
		})
	}
	writers.Wait()
	began := time.Now()
	for range 5 { // of two equal followers each would be first sometimes
		_, info := readAll(t, urls...)
		assert.Equal(t, idOf(other), memberOf(info))
		require.Len(t, info.GetWorries(), 1)
		assert.Contains(t, info.GetWorries()[0], idOf(slow))
		assert.Contains(t, info.GetWorries()[0], "raft entries")
	}
	_, info := readAll(t, urls[1], urls[0])
	assert.Equal(t, idOf(members[0]), memberOf(info), "the leader is better than a follower that lags")
	assert.Less(t, time.Since(began), 10*time.Second, "the one that lags must not hold up the others")

	_, err := etcd.New(config.Etcd{Endpoints: urls[1:2]}, etcd.Options{}).Open(t.Context())
	var typed *source.Error
	require.ErrorAs(t, err, &typed, "it cannot say how far the cluster is")
	assert.Equal(t, source.Stale, typed.Reason)

	release()
	head, err := c.Get(t.Context(), "x")
	require.NoError(t, err)
	_, info = readAll(t, urls[1])
	assert.Equal(t, idOf(slow), memberOf(info), "alone it is read, once it has caught up")
	assert.Equal(t, head.Header.Revision, info.GetRevision())
	require.Eventually(t, func() bool {
		_, info = readAll(t, urls[1], urls[2])
		return len(info.GetWorries()) == 0
	}, time.Minute, 20*time.Millisecond)
}

// TestOrderChanges reads equal followers in turn, by chance: a job that failed at one must not meet it again for ever.
func TestOrderChanges(t *testing.T) {
	members, urls, _ := trio(t)
	seen := map[string]bool{}
	for range 40 { // all at the same one: one time in 2^39
		_, info := readAll(t, urls...)
		seen[memberOf(info)] = true
		assert.Empty(t, info.GetWorries())
		if len(seen) == 2 {
			break
		}
	}
	assert.Equal(t, map[string]bool{idOf(members[1]): true, idOf(members[2]): true}, seen)
}

// TestBreaksHalfWay has one follower end every stream on its way; another attempt must succeed.
func TestBreaksHalfWay(t *testing.T) {
	members, urls, c := trio(t)
	for i := range 20 {
		_, err := c.Put(t.Context(), fmt.Sprint(i), strings.Repeat("x", 100_000))
		require.NoError(t, err)
	}
	attempts, broken := 0, 0
	for ; broken == 0 || attempts == broken; attempts++ {
		require.Less(t, attempts, 40)
		st := openAt(t, urls[0], cut(t, urls[1], 1_000_000), urls[2])
		if err := drain(st); err != nil {
			var typed *source.Error
			require.ErrorAs(t, err, &typed)
			require.Equal(t, source.Unreachable, typed.Reason)
			broken++
			continue
		}
		info, err := st.Info(t.Context())
		require.NoError(t, err)
		require.Equal(t, idOf(members[2]), memberOf(info))
	}
	t.Logf("%d of %d attempts met the broken member", broken, attempts)
}

// TestFailsOver has the preferred member die after every so many bytes: while it is asked, while it reads the cluster's
// revision, and while the snapshot is opened. Opening must succeed at the other one, and soon.
func TestFailsOver(t *testing.T) {
	members, urls, c := trio(t)
	for i := range 20 {
		_, err := c.Put(t.Context(), fmt.Sprint(i), strings.Repeat("x", 50_000))
		require.NoError(t, err)
	}
	over, broken := 0, 0
	limits := []int64{6000, 20_000, 40_000, 100_000, 500_000}
	for n := int64(0); n < 4000; n += 200 {
		limits = append(limits, n)
	}
	for _, limit := range limits {
		began := time.Now()
		dying := cut(t, urls[1], limit)
		st := openAt(t, dying, urls[0])
		assert.Less(t, time.Since(began), 10*time.Second, "after %d bytes", limit)
		if err := drain(st); err != nil {
			var typed *source.Error
			require.ErrorAs(t, err, &typed)
			assert.Equal(t, dying, typed.Endpoint)
			broken++
			continue
		}
		info, err := st.Info(t.Context())
		require.NoError(t, err)
		assert.Equal(t, idOf(members[0]), memberOf(info))
		assert.Len(t, only(info.GetWorries(), dying), 1, "after %d bytes: %q", limit, info.GetWorries())
		over++
	}
	t.Logf("%d failed over, %d broke on the way", over, broken)
	assert.Positive(t, over)
	assert.Positive(t, broken, "the limits do not reach the stream")
}
