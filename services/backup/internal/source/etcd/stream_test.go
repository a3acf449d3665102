package etcd

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/etcdtest"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source"
)

// replay is a stream of bytes that a member has sent before.
func replay(t *testing.T, data io.Reader) *stream {
	t.Helper()
	ctx, stop, idle := source.WatchIdle(t.Context(), 0)
	t.Cleanup(stop)
	return &stream{
		ctx: ctx, stop: stop, idle: idle, body: io.NopCloser(data), check: newCheck(),
		member: &member{endpoint: "http://127.0.0.1:2379", tls: &handshake{}, status: &clientv3.StatusResponse{}},
	}
}

func snapshotOf(t *testing.T, e *embed.Etcd, endpoint string) []byte {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, Logger: zap.NewNop()})
	require.NoError(t, err)
	defer c.Close()
	for range 300 {
		_, err = c.Put(t.Context(), "key", string(make([]byte, 3000)))
		require.NoError(t, err)
	}
	require.Positive(t, e.Server.KV().Rev())
	body, err := c.Snapshot(t.Context())
	require.NoError(t, err)
	data, err := io.ReadAll(body)
	require.NoError(t, err)
	return data
}

// TestEveryByteCounts flips a bit anywhere in a real snapshot, and cuts it anywhere: both must be found, and stay found.
func TestEveryByteCounts(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	e := etcdtest.New(t, t.TempDir())
	whole := snapshotOf(t, e.Etcd, e.Endpoint)
	require.Greater(t, len(whole), 500_000)

	good := replay(t, iotest.HalfReader(bytes.NewReader(whole)))
	read, err := io.ReadAll(good)
	require.NoError(t, err)
	require.Equal(t, whole, read)
	n, sum := good.Digest()
	require.EqualValues(t, len(whole), n)
	require.Equal(t, sha256.Sum256(whole), sum)

	requireDamaged := func(data []byte, what string, at int) {
		t.Helper()
		s := replay(t, bytes.NewReader(data))
		_, err := io.Copy(io.Discard, s)
		typed, ok := errors.AsType[*source.Error](err)
		require.True(t, ok, "%s at %d: %v", what, at, err)
		require.Equal(t, source.Damaged, typed.Reason, "%s at %d", what, at)
		require.True(t, typed.Retryable())
		_, again := s.Read(make([]byte, 1))
		require.Equal(t, err, again)
		_, infoErr := s.Info(t.Context())
		require.ErrorIs(t, infoErr, source.ErrUnfinished)
	}
	for range 200 {
		at := r.IntN(len(whole))
		bad := bytes.Clone(whole)
		bad[at] ^= 1 << r.IntN(8)
		requireDamaged(bad, "flipped", at)
	}
	for range 50 {
		at := r.IntN(len(whole))
		requireDamaged(whole[:at], "cut", at)
		requireDamaged(append(bytes.Clone(whole[:at]), whole[min(at+512, len(whole)):]...), "512 bytes less", at)
	}
}

// TestNotFarEnough refuses a snapshot of a member that had less than the cluster before the snapshot was opened.
func TestNotFarEnough(t *testing.T) {
	e := etcdtest.New(t, t.TempDir())
	data := snapshotOf(t, e.Etcd, e.Endpoint)
	s := replay(t, bytes.NewReader(data))
	s.atLeast = e.Server.KV().Rev()
	_, err := io.Copy(io.Discard, s)
	require.NoError(t, err)
	s = replay(t, bytes.NewReader(data))
	s.atLeast = e.Server.KV().Rev() + 1
	_, err = io.Copy(io.Discard, s)
	typed, ok := errors.AsType[*source.Error](err)
	require.True(t, ok, err)
	require.Equal(t, source.Stale, typed.Reason)
}

// TestAlarmsOfTheStatus reads from a member's status what the list of alarms says, for when that cannot be had.
func TestAlarmsOfTheStatus(t *testing.T) {
	e := etcdtest.New(t, t.TempDir())
	id := uint64(e.Server.MemberID())
	for _, kind := range []etcdserverpb.AlarmType{noSpace, corrupt} {
		_, err := e.Server.Alarm(t.Context(), &etcdserverpb.AlarmRequest{
			Action: etcdserverpb.AlarmRequest_ACTIVATE, MemberID: id, Alarm: kind,
		})
		require.NoError(t, err)
	}
	m, err := New(config.Etcd{Endpoints: []string{e.Endpoint}}, Options{}).ask(t.Context(), e.Endpoint)
	require.NoError(t, err)
	defer m.close()
	m.status.Errors = append(m.status.Errors, "etcdserver: no leader", "")

	listed := newSurvey(t.Context(), []*member{m})
	require.Empty(t, listed.missing)
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	inStatus := newSurvey(canceled, []*member{m, m})
	require.Len(t, inStatus.missing, 1)
	require.Contains(t, inStatus.missing[0], "etcd_health: the alarms are those of the members' own status")
	for _, v := range []*survey{listed, inStatus} {
		require.Equal(t, []string{"CORRUPT member " + memberID(id), "NOSPACE member " + memberID(id)}, v.health(m).GetAlarms())
		require.True(t, v.alarmed(id, corrupt))
		require.True(t, v.alarmed(id))
		require.False(t, v.alarmed(id+1))
		require.Error(t, v.refuse(m))
	}
}

// TestQuotaUnknown is about etcd before 3.6, which does not tell its quota.
func TestQuotaUnknown(t *testing.T) {
	m := &member{status: &clientv3.StatusResponse{Version: "3.5.17", DbSize: 1 << 30, DbSizeInUse: 1 << 30}}
	info := &lifeboatv1.SourceInfo{}
	(&survey{answered: []*member{m}}).tell(info, m)
	require.Equal(t, []string{"etcd_health: etcd 3.5.17 does not tell its quota"}, info.GetMissing())
	require.Empty(t, info.GetWorries())
	require.EqualValues(t, 1<<30, info.GetEtcdHealth().GetDbBytes())
}
