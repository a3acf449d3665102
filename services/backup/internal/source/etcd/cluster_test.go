package etcd_test

import (
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/etcd"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/sourcetest"
)

func readAll(t *testing.T, endpoints ...string) ([]byte, *lifeboatv1.SourceInfo) {
	t.Helper()
	return readFrom(t, etcd.New(config.Etcd{Endpoints: endpoints}, etcd.Options{}))
}

func openAt(t *testing.T, endpoints ...string) source.Stream {
	t.Helper()
	st, err := etcd.New(config.Etcd{Endpoints: endpoints}, etcd.Options{}).Open(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, st.Close()) })
	return st
}

func drain(st source.Stream) error {
	_, err := io.Copy(io.Discard, st)
	return err
}

func readFrom(t *testing.T, src *etcd.Source) ([]byte, *lifeboatv1.SourceInfo) {
	t.Helper()
	st, err := src.Open(t.Context())
	require.NoError(t, err)
	defer st.Close()
	data, err := io.ReadAll(st)
	require.NoError(t, err)
	info, err := st.Info(t.Context())
	require.NoError(t, err)
	return data, info
}

// cluster runs n members.
func cluster(t *testing.T, n int) []*embed.Etcd {
	t.Helper()
	ports, err := bintest.FreePorts(n)
	require.NoError(t, err)
	var initial []string
	for i, port := range ports {
		initial = append(initial, fmt.Sprintf("m%d=http://127.0.0.1:%d", i, port))
	}
	members := make([]*embed.Etcd, n)
	for i, port := range ports {
		members[i] = member(t, i, port, strings.Join(initial, ","), embed.ClusterStateFlagNew)
	}
	for _, m := range members {
		<-m.Server.ReadyNotify()
	}
	return members
}

func member(t *testing.T, i, port int, initial, state string) *embed.Etcd {
	t.Helper()
	cfg := embed.NewConfig()
	cfg.Name = fmt.Sprintf("m%d", i)
	cfg.Dir = t.TempDir()
	cfg.UnsafeNoFsync = true
	cfg.StrictReconfigCheck = false // it would have members be connected for some seconds first
	cfg.TickMs, cfg.ElectionMs = 50, 500
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	peer := []url.URL{{Scheme: "http", Host: fmt.Sprintf("127.0.0.1:%d", port)}}
	client := []url.URL{{Scheme: "http", Host: "127.0.0.1:0"}}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = client, client
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = peer, peer
	cfg.InitialCluster, cfg.ClusterState = initial, state
	e, err := embed.StartEtcd(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { stop(e) })
	return e
}

// stop closes a member unless that was done; Close itself cannot be called twice.
func stop(e *embed.Etcd) {
	select {
	case <-e.Server.StopNotify():
	default:
		e.Close()
	}
}

func leaderOf(t *testing.T, members []*embed.Etcd) int {
	t.Helper()
	leader := slices.IndexFunc(members, func(m *embed.Etcd) bool { return m.Server.Leader() == m.Server.MemberID() })
	require.NotEqual(t, -1, leader)
	return leader
}

// TestChoosesMember takes the members of a real cluster away, one reason at a time.
func TestChoosesMember(t *testing.T) {
	members := cluster(t, 3)
	var urls []string
	for _, m := range members {
		urls = append(urls, clientURL(m))
	}
	c := dial(t, urls[0])
	_, err := c.Put(t.Context(), "a", "1")
	require.NoError(t, err)
	leader := leaderOf(t, members)
	id := func(i int) string { return fmt.Sprintf("%x", uint64(members[i].Server.MemberID())) }

	_, info := readAll(t, urls...)
	assert.NotEqual(t, id(leader), info.GetIdentity()["member_id"], "a follower is preferred")
	_, info = readAll(t, urls[leader])
	assert.Equal(t, id(leader), info.GetIdentity()["member_id"], "the leader is better than none")

	t.Run("a corrupt member is left out", func(t *testing.T) {
		follower, other := (leader+1)%3, (leader+2)%3
		raise(t, members[leader], uint64(members[follower].Server.MemberID()), etcdserverpb.AlarmType_CORRUPT)
		_, info := readAll(t, urls[follower], urls[other])
		assert.Equal(t, id(other), info.GetIdentity()["member_id"])
		assert.Equal(t, []string{"CORRUPT member " + id(follower)}, info.GetEtcdHealth().GetAlarms())
		require.Len(t, info.GetWorries(), 2, "the alarm, and that the endpoint was left out")
		assert.Contains(t, info.GetWorries()[0], id(follower)+" has a CORRUPT alarm")
		assert.Contains(t, info.GetWorries()[1], urls[follower])
		_, err = etcd.New(config.Etcd{Endpoints: urls[follower : follower+1]}, etcd.Options{}).Open(t.Context())
		require.ErrorContains(t, err, "CORRUPT")
		disarm(t, c)
	})
	t.Run("a member without an alarm is preferred", func(t *testing.T) {
		for n := range 3 {
			full := (leader + 1 + n) % 3 // the followers first, the leader last
			raise(t, members[leader], uint64(members[full].Server.MemberID()), etcdserverpb.AlarmType_NOSPACE)
			_, info := readAll(t, urls...)
			assert.Len(t, info.GetEtcdHealth().GetAlarms(), n+1)
			assert.Len(t, only(info.GetWorries(), "NOSPACE"), n+1)
			switch read := info.GetIdentity()["member_id"]; n {
			case 0:
				assert.Equal(t, id((leader+2)%3), read, "the other follower")
			case 1:
				assert.Equal(t, id(leader), read, "the leader, which alone has none")
			case 2:
				assert.NotEqual(t, id(leader), read, "all are full, and a follower is preferred again")
			}
		}
		disarm(t, c)
	})
	t.Run("a learner is left out", func(t *testing.T) {
		ports, err := bintest.FreePorts(1)
		require.NoError(t, err)
		peer := fmt.Sprintf("http://127.0.0.1:%d", ports[0])
		added, err := c.MemberAddAsLearner(t.Context(), []string{peer})
		require.NoError(t, err)
		var initial []string
		for _, m := range added.Members {
			name := m.Name
			if name == "" {
				name = "m3"
			}
			initial = append(initial, name+"="+m.PeerURLs[0])
		}
		learner := member(t, 3, ports[0], strings.Join(initial, ","), embed.ClusterStateFlagExisting)
		<-learner.Server.ReadyNotify()
		_, err = etcd.New(config.Etcd{Endpoints: []string{clientURL(learner)}}, etcd.Options{}).Open(t.Context())
		require.ErrorContains(t, err, "learner")
		_, info := readAll(t, clientURL(learner), urls[leader])
		assert.Equal(t, id(leader), info.GetIdentity()["member_id"])
		require.Len(t, only(info.GetWorries(), "learner"), 1)
		assert.Contains(t, only(info.GetWorries(), "learner")[0], clientURL(learner))
		_, err = c.MemberRemove(t.Context(), added.Member.ID)
		require.NoError(t, err)
		stop(learner)
	})
	t.Run("another cluster is refused", func(t *testing.T) {
		stranger := start(t)
		_, err := etcd.New(config.Etcd{Endpoints: []string{urls[0], stranger.Address}}, etcd.Options{}).Open(t.Context())
		var typed *source.Error
		require.ErrorAs(t, err, &typed)
		assert.Equal(t, source.Misconfigured, typed.Reason)
	})
	t.Run("one that is down is passed over", func(t *testing.T) {
		stop(members[(leader+1)%3])
		_, info := readAll(t, urls...)
		assert.NotEqual(t, id((leader+1)%3), info.GetIdentity()["member_id"])
		require.Len(t, info.GetWorries(), 1)
		assert.Contains(t, info.GetWorries()[0], urls[(leader+1)%3])
	})
	t.Run("no leader, no snapshot", func(t *testing.T) {
		stop(members[(leader+2)%3])
		require.Eventually(t, func() bool { return members[leader].Server.Leader() == 0 }, time.Minute, 20*time.Millisecond)
		_, err := etcd.New(config.Etcd{Endpoints: urls}, etcd.Options{}).Open(t.Context())
		var typed *source.Error
		require.ErrorAs(t, err, &typed)
		require.ErrorContains(t, err, "no leader")
	})
}

// enableAuth makes the users root, who may do everything, and reader, who may do nothing yet.
func enableAuth(t *testing.T, c *clientv3.Client, password string) {
	t.Helper()
	for _, user := range []string{"root", "reader"} {
		_, err := c.UserAdd(t.Context(), user, password)
		require.NoError(t, err)
	}
	_, err := c.RoleAdd(t.Context(), "root")
	require.NoError(t, err)
	_, err = c.UserGrantRole(t.Context(), "root", "root")
	require.NoError(t, err)
	_, err = c.AuthEnable(t.Context())
	require.NoError(t, err)
}

// cut is the address of a proxy that ends every connection after limit bytes from the server.
func cut(t *testing.T, address string, limit int64) string {
	t.Helper()
	return sourcetest.NewProxy(t, address, limit, sourcetest.Cut).Address
}

// TestAuth reads with a user who may, one who may not, and none, and looks for the password in what is said.
func TestAuth(t *testing.T) {
	const password = "c0rrecthorse"
	srv := start(t)
	c := dial(t, srv.Address)
	srv.Put(t, 7, 10)
	enableAuth(t, c, password)

	file := filepath.Join(t.TempDir(), "password")
	require.NoError(t, os.WriteFile(file, []byte(password+"\n"), 0o600))
	wrong := filepath.Join(t.TempDir(), "wrong")
	require.NoError(t, os.WriteFile(wrong, []byte("hunter2"), 0o600))
	as := func(user, file string) *etcd.Source {
		return etcd.New(config.Etcd{
			Endpoints: []string{srv.Address}, Username: user, PasswordFile: config.SecretFile(file),
		}, etcd.Options{})
	}
	_, info := readFrom(t, as("root", file))
	assert.EqualValues(t, 7, info.GetCounts()["keys"])
	assert.NotNil(t, info.GetHashKv())
	assert.Empty(t, info.GetMissing())
	for name, src := range map[string]*etcd.Source{
		"no user": as("", ""), "a wrong password": as("root", wrong), "a user who may not": as("reader", file),
	} {
		_, err := src.Open(t.Context())
		var typed *source.Error
		require.ErrorAs(t, err, &typed, name)
		assert.Equal(t, source.Denied, typed.Reason, "%s: %v", name, err)
		assert.NotContains(t, err.Error(), password)
		assert.NotContains(t, err.Error(), "hunter2")
	}
	_, err := as("root", filepath.Join(t.TempDir(), "none")).Open(t.Context())
	var typed *source.Error
	require.ErrorAs(t, err, &typed)
	assert.Equal(t, source.Misconfigured, typed.Reason)
}

// TestCompactedMeanwhile compacts between the end of the data and the questions about it.
func TestCompactedMeanwhile(t *testing.T) {
	srv := start(t)
	c := dial(t, srv.Address)
	srv.Put(t, 5, 10)
	st := openAt(t, srv.Address)
	require.NoError(t, drain(st))
	put, err := c.Put(t.Context(), "more", "")
	require.NoError(t, err)
	_, err = c.Compact(t.Context(), put.Header.Revision)
	require.NoError(t, err)
	info, err := st.Info(t.Context())
	require.NoError(t, err)
	assert.Equal(t, put.Header.Revision-1, info.GetRevision())
	assert.EqualValues(t, 5, info.GetCounts()["revisions"])
	assert.Nil(t, info.GetHashKv())
	require.Len(t, info.GetMissing(), 2)
	assert.Contains(t, info.GetMissing()[0], "keys: ")
	assert.Contains(t, info.GetMissing()[1], "compacted")
}
