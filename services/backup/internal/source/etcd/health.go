package etcd

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/encoding/prototext"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

const (
	corrupt = etcdserverpb.AlarmType_CORRUPT
	noSpace = etcdserverpb.AlarmType_NOSPACE
)

// What is worth somebody's attention.
const (
	// quotaPercent of the quota in use. At all of it etcd refuses every write until somebody has made room by hand. Its own
	// alert rules (contrib/mixin) call that critical at 95 %; a backup may be taken once a day, so it must say it earlier.
	quotaPercent = 80
	// unusedPercent of the database that nothing is in. etcd's own alert rules warn at the same half.
	unusedPercent = 50
	// unusedBytes below which no ratio matters: to defragment blocks the member, and to win less than this is not worth it.
	unusedBytes = 100 << 20
)

// survey is what the endpoints said of their cluster before one of them was chosen.
type survey struct {
	answered []*member // their clients may be closed; what they said stays
	alarms   []*etcdserverpb.AlarmMember
	// worries and missing are those of SourceInfo.
	worries []string
	missing []string
}

// newSurvey asks the members for the cluster's alarms.
func newSurvey(ctx context.Context, answered []*member) *survey {
	v := &survey{answered: answered}
	// A member that lags would take its time to answer.
	nearest := slices.SortedStableFunc(slices.Values(answered), func(a, b *member) int {
		return cmp.Compare(v.behind(a), v.behind(b))
	})
	var failed error
	for _, m := range nearest {
		askCtx, cancel := context.WithTimeout(ctx, statusTimeout)
		resp, err := m.client.AlarmList(askCtx)
		cancel()
		if err == nil {
			v.alarms = resp.Alarms
			return v
		}
		failed = cmp.Or(failed, m.failed(ctx, "listing the alarms", err))
	}
	// The list goes through the cluster's log, and its user needs to be known there; each member's status has the alarms
	// that this member knows.
	for _, m := range answered {
		for _, a := range statusAlarms(m.status.Errors) {
			if !v.alarmed(a.GetMemberID(), a.GetAlarm()) {
				v.alarms = append(v.alarms, a)
			}
		}
	}
	if failed != nil {
		v.missing = append(v.missing, fmt.Sprintf("etcd_health: the alarms are those of the members' own status: %v", failed))
	}
	return v
}

// statusAlarms reads the alarms among the errors of a member's status, where they are in protobuf's text format.
func statusAlarms(texts []string) []*etcdserverpb.AlarmMember {
	var found []*etcdserverpb.AlarmMember
	for _, text := range texts {
		a := &etcdserverpb.AlarmMember{}
		if prototext.Unmarshal([]byte(text), a) == nil && a.GetAlarm() != etcdserverpb.AlarmType_NONE {
			found = append(found, a)
		}
	}
	return found
}

// alarmed says whether a member has one of these alarms, or any when none is named.
func (v *survey) alarmed(id uint64, kinds ...etcdserverpb.AlarmType) bool {
	return slices.ContainsFunc(v.alarms, func(a *etcdserverpb.AlarmMember) bool {
		return a.GetMemberID() == id && (len(kinds) == 0 || slices.Contains(kinds, a.GetAlarm()))
	})
}

// left notes an endpoint that was not read because of err.
func (v *survey) left(err error) {
	v.worries = append(v.worries, fmt.Sprintf(
		"an endpoint could not be read, so that another one was: %v; mend it, or take it out of the target's endpoints", err))
}

// health is how the member that was read was at that moment.
func (v *survey) health(m *member) *lifeboatv1.EtcdHealth {
	h := &lifeboatv1.EtcdHealth{
		DbBytes: m.status.DbSize, DbBytesInUse: m.status.DbSizeInUse,
		// Below zero is etcd's way to say that there is none.
		QuotaBytes: max(m.status.DbSizeQuota, 0),
	}
	for _, a := range v.alarms {
		h.Alarms = append(h.Alarms, alarmText(a))
	}
	slices.Sort(h.Alarms)
	return h
}

func alarmText(a *etcdserverpb.AlarmMember) string {
	return a.GetAlarm().String() + " member " + memberID(a.GetMemberID())
}

// tell adds the health of the cluster to what is known of a snapshot from one of its members.
func (v *survey) tell(info *lifeboatv1.SourceInfo, m *member) {
	info.EtcdHealth = v.health(m)
	info.Missing = append(info.Missing, v.missing...)
	if m.status.DbSizeQuota == 0 {
		info.Missing = append(info.Missing, fmt.Sprintf("etcd_health: etcd %s does not tell its quota", m.status.Version))
	}
	info.Worries = append(info.Worries, v.alarmWorries()...)
	info.Worries = append(info.Worries, v.worries...)
	info.Worries = append(info.Worries, v.sizeWorries()...)
}

func (v *survey) alarmWorries() []string {
	var all []string
	for _, a := range v.alarms {
		id := memberID(a.GetMemberID())
		switch a.GetAlarm() {
		case noSpace:
			all = append(all, fmt.Sprintf("member %s has a NOSPACE alarm, and the cluster refuses all writes: compact, "+
				"`etcdctl defrag` each member or raise --quota-backend-bytes, then `etcdctl alarm disarm`", id))
		case corrupt:
			all = append(all, fmt.Sprintf("member %s has a CORRUPT alarm: its data is not that of the others; remove it from "+
				"the cluster, add it anew with an empty data directory, then `etcdctl alarm disarm`", id))
		default:
			all = append(all, fmt.Sprintf("there is an alarm, %s: see `etcdctl alarm list`", alarmText(a)))
		}
	}
	return all
}

// sizeWorries are about every member that answered: each has a database, a quota and holes of its own.
func (v *survey) sizeWorries() []string {
	var full, loose, late []string
	for _, m := range v.answered {
		size, unused, quota := m.status.DbSize, m.status.DbSize-m.status.DbSizeInUse, m.status.DbSizeQuota
		// The quota is about the file and not about what is in use of it (storage/quota.go).
		if quota > 0 && size >= quota/100*quotaPercent {
			full = append(full, fmt.Sprintf("%s (%d of %d MiB, %d in use)", m, size>>20, quota>>20, m.status.DbSizeInUse>>20))
		}
		if unused > unusedBytes && unused > size/100*unusedPercent {
			loose = append(loose, fmt.Sprintf("%s (%d of %d MiB)", m, unused>>20, size>>20))
		}
		if n := v.behind(m); n > maxBehind {
			late = append(late, fmt.Sprintf("%s (%d raft entries)", m, n))
		}
	}
	var all []string
	if full != nil {
		all = append(all, fmt.Sprintf("the database takes %d %% of its quota or more: %s; at 100 %% etcd refuses all writes: "+
			"compact and `etcdctl defrag`, or raise --quota-backend-bytes", quotaPercent, strings.Join(full, ", ")))
	}
	if loose != nil {
		all = append(all, fmt.Sprintf("more than half of the database is unused: %s; run `etcdctl defrag`, one member after "+
			"the other: each blocks while it runs", strings.Join(loose, ", ")))
	}
	if late != nil {
		all = append(all, fmt.Sprintf("it has not applied what the cluster has: %s; look at the disk and the load of that member",
			strings.Join(late, ", ")))
	}
	return all
}
