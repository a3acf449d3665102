package etcd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore"
	etcdsource "github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/etcd"
)

// zoo is a cluster with keys of every sort: binary names, empty values, large values, several versions, deleted ones.
func zoo(t *testing.T, r *rand.Rand) *member {
	t.Helper()
	m := startMember(t)
	m.fill(t, r, "/k/", 3000, 800)
	m.fill(t, r, "/k/", 200, 300)
	for i := range 40 {
		name := make([]byte, 1+r.IntN(20))
		for j := range name {
			name[j] = byte(r.UintN(256))
		}
		m.put(t, string(name), values(i))
	}
	for _, name := range []string{"\x00", "\xff\xff", "\xff", "a", "z", "ключ", " edge ", `"quoted"`, "new\nline", "/k", "/k/", "/l"} {
		m.put(t, name, "of "+name)
	}
	m.put(t, "/k/large", values(1_300_000))
	m.put(t, "/k/larger", values(1_400_000))
	m.put(t, "/empty", "")
	_, err := m.client.Delete(t.Context(), "/k/0001", clientv3.WithPrefix())
	require.NoError(t, err)
	return m
}

// TestWhole restores everything into an empty cluster: first the plan, which writes nothing, then all of it, then again.
func TestWhole(t *testing.T) {
	src, dest := zoo(t, newRand(t)), startMember(t)
	data, want := src.snapshot(t), src.all(t)
	src.put(t, "later", "is not in the snapshot")

	plan, err := to(t, dest.config(), data, Selection{}, restore.Options{})
	require.NoError(t, err)
	require.EqualValues(t, len(want), plan.summary.Created)
	require.Zero(t, plan.summary.Left())
	require.Empty(t, dest.all(t))
	names := make([]string, 0, len(plan.items))
	for _, i := range plan.items {
		names = append(names, i.Name)
		require.Equal(t, restore.Create, i.Action)
	}
	keys := slices.Sorted(maps.Keys(want))
	for i, k := range keys {
		require.Equal(t, printable(k), names[i])
	}
	require.EqualValues(t, len(want), plan.done)
	require.EqualValues(t, len(want), plan.total)

	applied, err := to(t, dest.config(), data, Selection{}, restore.Options{Apply: true})
	require.NoError(t, err)
	require.Equal(t, plan.summary, applied.summary)
	require.Equal(t, plan.items, applied.items)
	require.Equal(t, want, dest.all(t))

	head := dest.revision(t)
	again, err := to(t, dest.config(), data, Selection{}, restore.Options{Apply: true})
	require.NoError(t, err)
	require.EqualValues(t, len(want), again.summary.Same)
	require.EqualValues(t, len(want), again.summary.Restored())
	require.Equal(t, head, dest.revision(t), "nothing is written twice")
}

func (m *member) revision(tb testing.TB) int64 {
	tb.Helper()
	resp, err := m.client.Get(tb.Context(), "x")
	require.NoError(tb, err)
	return resp.Header.Revision
}

// TestNotEmpty is about what a whole restore and a part of one do with what is there.
func TestNotEmpty(t *testing.T) {
	src, dest := startMember(t), startMember(t)
	src.fill(t, newRand(t), "/k/", 500, 100)
	src.put(t, "/k/secret", "swordfish")
	data, want := src.snapshot(t), src.all(t)
	dest.put(t, "/k/000007", "newer")
	dest.put(t, "/k/secret", "mackerel")
	dest.put(t, "/k/000009x", "only there")
	dest.put(t, "/zz", "only there")
	dest.put(t, "\x00", "only there")
	before, head := dest.all(t), dest.revision(t)

	refused, err := to(t, dest.config(), data, Selection{}, restore.Options{Apply: true})
	require.ErrorIs(t, err, restore.ErrNotEmpty)
	require.EqualValues(t, 2, refused.summary.Differs)
	require.EqualValues(t, 3, refused.summary.Extra)
	require.Equal(t, head, dest.revision(t), "nothing was written")
	require.Len(t, refused.items, 5)
	require.Equal(t, restore.Item{Kind: "key", Name: "/k/secret", Action: restore.Differs, Detail: "value 8 B -> 9 B"},
		refused.of(t, "/k/secret"))

	// A part is restored beside what differs, which is left.
	part, err := to(t, dest.config(), data, Selection{Prefixes: []string{"/k/"}}, restore.Options{Apply: true})
	require.NoError(t, err)
	require.EqualValues(t, 2, part.summary.Differs)
	require.EqualValues(t, 1, part.summary.Extra, "of what is restored only")
	require.EqualValues(t, len(want)-2, part.summary.Created)
	expect := maps.Clone(want)
	maps.Copy(expect, before)
	require.Equal(t, expect, dest.all(t))

	// Forced, what differs is replaced, and what is only there stays.
	forced, err := to(t, dest.config(), data, Selection{}, restore.Options{Apply: true, Force: true})
	require.NoError(t, err)
	require.EqualValues(t, 2, forced.summary.Changed)
	require.EqualValues(t, 3, forced.summary.Extra)
	require.EqualValues(t, len(want)-2, forced.summary.Same)
	maps.Copy(expect, want)
	require.Equal(t, expect, dest.all(t))
	for _, r := range []*recorded{refused, part, forced} {
		for _, i := range r.items {
			require.NotContains(t, fmt.Sprint(i), "swordfish")
			require.NotContains(t, fmt.Sprint(i), "mackerel")
		}
	}
}

// TestSelection compares selections and renames at random with what a plain loop over the keys does.
func TestSelection(t *testing.T) {
	r := newRand(t)
	src := startMember(t)
	letters := []string{"a", "b", "\xff", "/"}
	word := func(n int) string {
		var b strings.Builder
		for range n {
			b.WriteString(letters[r.IntN(len(letters))])
		}
		return b.String()
	}
	for range 400 {
		k := word(1 + r.IntN(6))
		src.put(t, k, "of "+k)
	}
	data, held := src.snapshot(t), src.all(t)
	dest := startMember(t)
	var unfit int
	for range 60 {
		_, err := dest.client.Delete(t.Context(), "", clientv3.WithPrefix())
		require.NoError(t, err)
		dest.put(t, "ab/ab/ab", "there already")
		var sel Selection
		for range r.IntN(3) {
			sel.Prefixes = append(sel.Prefixes, word(r.IntN(3)))
		}
		for range r.IntN(4) {
			sel.Rename = append(sel.Rename, restore.Rename{Old: word(r.IntN(3)), New: word(r.IntN(3))})
		}
		want, clashes := expected(held, sel)
		expect := map[string]string{"ab/ab/ab": "there already"}
		for name, from := range want {
			expect[name] = held[from]
		}
		got, err := to(t, dest.config(), data, sel, restore.Options{Apply: true, Force: true})
		if idle(held, sel) {
			unfit++
			require.ErrorIs(t, err, restore.ErrNothingSelected, "%+v", sel)
			require.Equal(t, map[string]string{"ab/ab/ab": "there already"}, dest.all(t))
			continue
		}
		require.NoError(t, err, "%+v", sel)
		require.Equal(t, expect, dest.all(t), "%+v", sel)
		require.EqualValues(t, clashes, got.summary.Failed, "%+v", sel)
		require.EqualValues(t, len(want)+clashes, got.total)
		require.Equal(t, got.total, got.done)
	}
	t.Logf("%d of 60 refused because a part fits nothing", unfit)
	require.Less(t, unfit, 50)
}

// idle says whether a part of a selection is about none of the keys.
func idle(held map[string]string, sel Selection) bool {
	fits := func(beginning string) bool {
		for k := range held {
			selected := len(sel.Prefixes) == 0 || slices.ContainsFunc(sel.Prefixes, func(p string) bool { return strings.HasPrefix(k, p) })
			if selected && strings.HasPrefix(k, beginning) {
				return true
			}
		}
		return beginning == ""
	}
	return slices.ContainsFunc(sel.Prefixes, func(p string) bool { return !fits(p) }) ||
		slices.ContainsFunc(sel.Rename, func(r restore.Rename) bool { return !fits(r.Old) })
}

// TestNothingSelected names what of a selection was mistyped, before anything is written under a name that was not meant.
func TestNothingSelected(t *testing.T) {
	src, dest := startMember(t), startMember(t)
	for _, k := range []string{"config/a", "config/b", "other"} {
		src.put(t, k, "of "+k)
	}
	dest.put(t, "config/a", "newer")
	data := src.snapshot(t)
	for want, sel := range map[string]Selection{
		`no selected key begins with "confg/", which is to be renamed to "x/"`: {Rename: []restore.Rename{{Old: "config/", New: "y/"}, {Old: "confg/", New: "x/"}}},
		`no selected key begins with "config/c"`:                               {Prefixes: []string{"config/"}, Rename: []restore.Rename{{Old: "config/c", New: "x"}}},
		`no selected key begins with "other"`:                                  {Prefixes: []string{"config/"}, Rename: []restore.Rename{{Old: "other", New: "x"}}},
		`no key begins with the prefix "confg/"`:                               {Prefixes: []string{"confg/"}},
		`no key begins with the prefix "othr"`:                                 {Prefixes: []string{"config/", "othr"}},
		`no key begins with the prefix "config/c"`:                             {Prefixes: []string{"", "config/c"}},
	} {
		for _, o := range []restore.Options{{}, {Apply: true}, {Apply: true, Force: true}} {
			got, err := to(t, dest.config(), data, sel, o)
			require.ErrorIs(t, err, restore.ErrNothingSelected)
			require.ErrorContains(t, err, want)
			require.Empty(t, got.items)
		}
	}
	require.Equal(t, map[string]string{"config/a": "newer"}, dest.all(t))
	got, err := to(t, dest.config(), data, Selection{Prefixes: []string{"config/b"}, Rename: []restore.Rename{{Old: "config/", New: "x/"}}}, restore.Options{Apply: true})
	require.NoError(t, err, "a prefix within a rename")
	require.EqualValues(t, 1, got.summary.Created)
}

// expected are the names at the destination with the keys that they come from, and how many keys cannot be.
func expected(held map[string]string, sel Selection) (map[string]string, int) {
	from := make(map[string][]string)
	for k := range held {
		if len(sel.Prefixes) > 0 && !slices.ContainsFunc(sel.Prefixes, func(p string) bool { return strings.HasPrefix(k, p) }) {
			continue
		}
		best := restore.Rename{}
		for _, rn := range sel.Rename {
			if strings.HasPrefix(k, rn.Old) && len(rn.Old) >= len(best.Old) {
				best = rn
			}
		}
		name := best.New + strings.TrimPrefix(k, best.Old)
		from[name] = append(from[name], k)
	}
	want, clashes := make(map[string]string), 0
	for name, keys := range from {
		if len(keys) > 1 || name == "" {
			clashes += len(keys)
			continue
		}
		want[name] = keys[0]
	}
	return want, clashes
}

// TestLeases leaves out keys that would be gone soon, or grants new leases for them.
func TestLeases(t *testing.T) {
	src, dest := startMember(t), startMember(t)
	var ids []clientv3.LeaseID
	for i, ttl := range []int64{60, 3600} {
		l, err := src.client.Grant(t.Context(), ttl)
		require.NoError(t, err)
		ids = append(ids, l.ID)
		for k := range 200 {
			src.put(t, fmt.Sprintf("/leased/%d/%d", i, k), "v", clientv3.WithLease(l.ID))
		}
	}
	src.put(t, "/plain", "v")
	data := src.snapshot(t)

	without, err := to(t, dest.config(), data, Selection{}, restore.Options{Apply: true})
	require.NoError(t, err)
	require.EqualValues(t, 400, without.summary.Skipped)
	require.EqualValues(t, 400, without.summary.Left())
	require.Equal(t, "belongs to a lease of 60s TTL that nobody holds", without.of(t, "/leased/0/7").Detail)
	require.Equal(t, map[string]string{"/plain": "v"}, dest.all(t))

	with, err := to(t, dest.config(), data, Selection{Leases: true}, restore.Options{Apply: true})
	require.NoError(t, err)
	require.EqualValues(t, 400, with.summary.Created)
	for i, id := range ids {
		ttl, terr := dest.client.TimeToLive(t.Context(), id, clientv3.WithAttachedKeys())
		require.NoError(t, terr)
		require.Equal(t, []int64{60, 3600}[i], ttl.GrantedTTL)
		require.Len(t, ttl.Keys, 200)
	}
	again, err := to(t, dest.config(), data, Selection{Leases: true}, restore.Options{Apply: true})
	require.NoError(t, err)
	require.EqualValues(t, 401, again.summary.Same)

	// A key that a lease will end is not what the snapshot has, although its value is.
	l, err := dest.client.Grant(t.Context(), 3600)
	require.NoError(t, err)
	dest.put(t, "/plain", "v", clientv3.WithLease(l.ID))
	ends, err := to(t, dest.config(), data, Selection{Prefixes: []string{"/plain"}}, restore.Options{})
	require.NoError(t, err)
	require.Equal(t, restore.Item{
		Kind: "key", Name: "/plain", Action: restore.Differs, Detail: "a lease there ends it, and none in the snapshot",
	}, ends.of(t, "/plain"))
}

// TestLeaseThatEnds attaches to a lease that was granted and has ended since.
func TestLeaseThatEnds(t *testing.T) {
	src, dest := startMember(t), startMember(t)
	l, err := src.client.Grant(t.Context(), 600)
	require.NoError(t, err)
	src.put(t, "/leased", "v", clientv3.WithLease(l.ID))
	v := viewOf(t, src.snapshot(t))
	r := &run{
		view: v, decide: decider{leases: true, ttl: v.leases},
		dest: &destination{client: dest.client, patience: time.Minute, granted: map[int64]bool{int64(l.ID): true}},
	}
	page, err := v.page(t.Context(), spanOf(""))
	require.NoError(t, err)
	task := &task{kv: page[0], name: "/leased", item: restore.Item{Action: restore.Create}}
	require.NoError(t, r.one(t.Context(), task))
	require.Equal(t, restore.Create, task.item.Action)
	require.True(t, task.settled)
	require.Equal(t, map[string]string{"/leased": "v"}, dest.all(t))
}

func viewOf(t *testing.T, data []byte) *view {
	t.Helper()
	v, err := openView(t.Context(), fileOf(t, data))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, v.close()) })
	return v
}

// TestLimits restores into clusters that take less at once than others.
func TestLimits(t *testing.T) {
	src := startMember(t)
	src.fill(t, newRand(t), "/k/", 600, 2000)
	src.put(t, "/large", values(300_000))
	src.put(t, "/small", "v")
	src.put(t, "/vast", values(1_500_000))
	data, want := src.snapshot(t), src.all(t)
	dest := startMember(t, "--max-request-bytes=100000", "--max-txn-ops=10")
	got, err := to(t, dest.config(), data, Selection{}, restore.Options{Apply: true})
	require.NoError(t, err)
	require.EqualValues(t, 2, got.summary.Failed)
	require.ErrorContains(t, got.of(t, "/large").Err, "--max-request-bytes")
	require.ErrorContains(t, got.of(t, "/vast").Err, "--max-request-bytes")
	delete(want, "/large")
	delete(want, "/vast")
	require.Equal(t, want, dest.all(t))
}

// TestAuth restores as a user who may write a part of the keys.
func TestAuth(t *testing.T) {
	src, dest := startMember(t), startMember(t)
	src.fill(t, newRand(t), "/mine/", 300, 100)
	src.fill(t, newRand(t), "/theirs/", 20, 100)
	src.put(t, "/seen/1", "v")
	data, want := src.snapshot(t), src.all(t)
	for _, user := range []string{"root", "app"} {
		_, err := dest.client.UserAdd(t.Context(), user, "pw-"+user)
		require.NoError(t, err)
		_, err = dest.client.RoleAdd(t.Context(), user)
		require.NoError(t, err)
		_, err = dest.client.UserGrantRole(t.Context(), user, user)
		require.NoError(t, err)
	}
	for prefix, may := range map[string]int32{"/mine/": int32(clientv3.PermReadWrite), "/seen/": int32(clientv3.PermRead)} {
		_, err := dest.client.RoleGrantPermission(t.Context(), "app", prefix, after(prefix), clientv3.PermissionType(may))
		require.NoError(t, err)
	}
	_, err := dest.client.AuthEnable(t.Context())
	require.NoError(t, err)
	as := func(user, password string) config.Etcd {
		cfg := dest.config()
		cfg.Username, cfg.PasswordFile = user, passwordFile(t, password)
		return cfg
	}
	apply := restore.Options{Apply: true}
	_, err = to(t, dest.config(), data, Selection{}, apply)
	require.ErrorContains(t, err, "user name is empty")
	_, err = to(t, as("app", "wrong"), data, Selection{}, apply)
	require.ErrorContains(t, err, "authentication failed")
	require.NotContains(t, err.Error(), "wrong")
	_, err = to(t, as("app", "pw-app"), data, Selection{}, apply)
	require.ErrorContains(t, err, "permission denied")
	_, err = to(t, as("app", "pw-app"), data, Selection{Prefixes: []string{"/theirs/"}}, apply)
	require.ErrorContains(t, err, "permission denied")

	mine, err := to(t, as("app", "pw-app"), data, Selection{Prefixes: []string{"/mine/", "/seen/"}}, apply)
	require.NoError(t, err)
	require.EqualValues(t, 300, mine.summary.Created)
	require.EqualValues(t, 1, mine.summary.Failed)
	require.ErrorContains(t, mine.of(t, "/seen/1").Err, "permission denied")
	all, err := to(t, as("root", "pw-root"), data, Selection{}, apply)
	require.NoError(t, err)
	require.EqualValues(t, 21, all.summary.Created)
	require.Equal(t, want, allOf(t, dial(t, dest.Endpoint, "root", "pw-root")))
}

// TestNoSpace ends where the destination is full, says so, and goes on when there is room.
func TestNoSpace(t *testing.T) {
	const keys = 60
	src := startMember(t)
	for i := range keys {
		src.put(t, fmt.Sprintf("/k/%03d", i), values(500_000))
	}
	data, want := src.snapshot(t), src.all(t)
	// etcd compares its quota with what it has written out, which must not lag behind what it took.
	dest := startMember(t, "--quota-backend-bytes=64000000", "--backend-batch-limit=1")
	for i := range 45 {
		dest.put(t, fmt.Sprintf("/ballast/%d", i), values(1_000_000))
	}
	sel := Selection{Prefixes: []string{"/k/"}}
	got, err := to(t, dest.config(), data, sel, restore.Options{Apply: true})
	require.ErrorContains(t, err, "database space exceeded")
	require.ErrorContains(t, err, "run the restore again")
	require.Less(t, got.summary.Created, int64(keys))
	require.Positive(t, got.summary.Created)
	require.Zero(t, got.summary.Failed)

	cleared, err := dest.client.Delete(t.Context(), "/ballast/", clientv3.WithPrefix())
	require.NoError(t, err)
	_, err = dest.client.Compact(t.Context(), cleared.Header.Revision, clientv3.WithCompactPhysical())
	require.NoError(t, err)
	_, err = dest.client.Defragment(t.Context(), dest.Endpoint)
	require.NoError(t, err)
	_, err = dest.client.AlarmDisarm(t.Context(), &clientv3.AlarmMember{})
	require.NoError(t, err)
	again, err := to(t, dest.config(), data, sel, restore.Options{Apply: true})
	require.NoError(t, err)
	require.GreaterOrEqual(t, again.summary.Same, got.summary.Created)
	require.EqualValues(t, keys, again.summary.Restored())
	require.Equal(t, want, dest.all(t))
}

// TestKilledDestination kills the destination in the middle, again and again, and starts it again on the same data.
func TestKilledDestination(t *testing.T) {
	r := newRand(t)
	src, dest := startMember(t), startMember(t)
	src.fill(t, r, "/k/", 20_000, 300)
	data, want := src.snapshot(t), src.all(t)
	for i := range 200 {
		dest.put(t, fmt.Sprintf("/k/%06d", i*100), "other")
	}
	kill := make(chan struct{})
	var killer sync.WaitGroup
	killer.Go(func() {
		for range kill {
			assert.NoError(t, dest.Kill())
			assert.NoError(t, dest.Restart(t.Context()))
		}
	})
	seen, at := 0, []int{2000 + r.IntN(2000), 8000 + r.IntN(4000), 15_000 + r.IntN(3000)}
	got, err := toWith(t.Context(), t, dest.config(), data, Selection{}, restore.Options{Apply: true, Force: true, Item: func(restore.Item) {
		if seen++; len(at) > 0 && seen >= at[0] {
			at = at[1:]
			kill <- struct{}{}
		}
	}})
	close(kill)
	killer.Wait()
	require.NoError(t, err)
	require.Empty(t, at)
	require.Equal(t, want, dest.all(t))
	require.EqualValues(t, 20_000, got.summary.Restored())
	require.EqualValues(t, 200, got.summary.Changed)
	require.EqualValues(t, 19_800, got.summary.Created)
}

// TestSilentDestination gives up on a destination that does not come back, and says what to do.
func TestSilentDestination(t *testing.T) {
	src, dest := startMember(t), startMember(t)
	src.fill(t, newRand(t), "/k/", 8000, 300)
	data := src.snapshot(t)
	v := viewOf(t, data)
	client, err := etcdsource.Dial(t.Context(), dest.config())
	require.NoError(t, err)
	defer client.Close()
	r := &run{
		set: settings{inFlight: 4, patience: 2 * time.Second}, view: v,
		dest: &destination{client: client, patience: 2 * time.Second, granted: map[int64]bool{}},
	}
	var once sync.Once
	s, err := r.pass(t.Context(), restore.Options{Apply: true, Item: func(restore.Item) {
		once.Do(func() { assert.NoError(t, dest.Kill()) })
	}})
	require.ErrorContains(t, err, "did not answer for 2s")
	require.ErrorContains(t, err, "run the restore again")
	require.Less(t, s.Created, int64(8000))
	require.NoError(t, dest.Restart(t.Context()))
	got, err := toWith(t.Context(), t, dest.config(), data, Selection{}, restore.Options{Apply: true})
	require.NoError(t, err)
	require.EqualValues(t, 8000, got.summary.Restored())
	require.Equal(t, src.all(t), dest.all(t))
}

// TestInterrupted ends restores at random, and runs each again.
func TestInterrupted(t *testing.T) {
	r := newRand(t)
	src, dest := startMember(t), startMember(t)
	src.fill(t, r, "/k/", 5000, 300)
	data, want := src.snapshot(t), src.all(t)
	stopped := errors.New("somebody pressed a key")
	for range 5 {
		_, err := dest.client.Delete(t.Context(), "", clientv3.WithPrefix())
		require.NoError(t, err)
		ctx, cancel := context.WithCancelCause(t.Context())
		left := r.IntN(4000)
		got, err := toWith(ctx, t, dest.config(), data, Selection{}, restore.Options{Apply: true, Item: func(restore.Item) {
			if left--; left == 0 {
				cancel(stopped)
			}
		}})
		cancel(nil)
		require.ErrorIs(t, err, stopped)
		require.Less(t, got.summary.Created, int64(5000))
		again, err := to(t, dest.config(), data, Selection{}, restore.Options{Apply: true})
		require.NoError(t, err)
		require.GreaterOrEqual(t, again.summary.Same, got.summary.Created, "what was told to be written was")
		require.EqualValues(t, 5000, again.summary.Restored())
		require.Equal(t, want, dest.all(t))
	}
}

// TestOthersWrite has somebody else write the same keys, and compact, all the time.
func TestOthersWrite(t *testing.T) {
	r := newRand(t)
	for _, force := range []bool{false, true} {
		src, dest := startMember(t), startMember(t)
		src.fill(t, r, "/k/", 10_000, 100)
		data, want := src.snapshot(t), src.all(t)
		theirs := make(map[string]bool)
		ctx, cancel := context.WithCancel(t.Context())
		var others sync.WaitGroup
		others.Go(func() {
			mine := rand.New(rand.NewPCG(1, 2))
			for ctx.Err() == nil {
				key := fmt.Sprintf("/k/%06d", mine.IntN(10_000))
				resp, err := dest.client.Txn(ctx).If(clientv3.Compare(clientv3.Version(key), "=", 0)).Then(clientv3.OpPut(key, "theirs")).Commit()
				if err == nil && resp.Succeeded {
					theirs[key] = true
					_, err = dest.client.Compact(ctx, resp.Header.Revision)
				}
				if ctx.Err() == nil {
					assert.NoError(t, err)
				}
			}
		})
		sel := Selection{Prefixes: []string{"/"}}
		got, err := toWith(t.Context(), t, dest.config(), data, sel, restore.Options{Apply: true, Force: force})
		cancel()
		others.Wait()
		require.NoError(t, err)
		require.NotEmpty(t, theirs)
		now := dest.all(t)
		if force {
			require.EqualValues(t, 10_000, got.summary.Restored())
			require.Equal(t, want, now)
			continue
		}
		require.EqualValues(t, len(theirs), got.summary.Differs)
		for k, v := range want {
			if theirs[k] {
				v = "theirs"
			}
			require.Equal(t, v, now[k], "key %s", k)
		}
	}
}

// TestNoDestination and a damaged snapshot end before anything is written.
func TestNoDestination(t *testing.T) {
	src, dest := startMember(t), startMember(t)
	src.fill(t, newRand(t), "/k/", 300, 1000)
	data := src.snapshot(t)
	_, err := to(t, config.Etcd{Endpoints: []string{"http://127.0.0.1:1"}}, data, Selection{}, restore.Options{})
	require.ErrorContains(t, err, "connecting to the destination")
	require.ErrorContains(t, err, "connection refused")
	_, err = to(t, config.Etcd{Endpoints: []string{src.Endpoint, dest.Endpoint}}, data, Selection{}, restore.Options{})
	require.ErrorContains(t, err, "belongs to cluster")
	for what, bad := range map[string][]byte{"sha256": flip(data, 50_000), "it was cut": data[:len(data)-5]} {
		_, err = to(t, dest.config(), bad, Selection{}, restore.Options{Apply: true, Force: true})
		require.ErrorContains(t, err, what)
	}
	require.Empty(t, dest.all(t))
	// One that does not answer is no hindrance.
	got, err := to(t, config.Etcd{Endpoints: []string{"http://127.0.0.1:1", dest.Endpoint}}, data, Selection{}, restore.Options{Apply: true})
	require.NoError(t, err)
	require.EqualValues(t, 300, got.summary.Created)
}

func TestPrintable(t *testing.T) {
	for key, want := range map[string]string{
		"/registry/pods/a": "/registry/pods/a", "ключ": "ключ", "with space": "with space", "": `""`, "\x00": `"\x00"`, " a": `" a"`,
		"a ": `"a "`, "a\nb": `"a\nb"`, "a\xff": `"a\xff"`, `"a"`: `"\"a\""`, "\u202e": `"\u202e"`, "a\u00a0b": `"a\u00a0b"`,
	} {
		require.Equal(t, want, printable(key))
	}
}
