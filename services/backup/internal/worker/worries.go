package worker

import (
	"context"
	"fmt"
	"strings"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// mainCounts are the counts by which snapshots are compared, the first one that both have.
func mainCounts() []string { return []string{"keys", "jobs"} }

// Size is how many keys or jobs a snapshot holds; false when that is not known.
func Size(m *lifeboatv1.Manifest) (int64, bool) {
	for _, name := range mainCounts() {
		if n, ok := m.GetSource().GetCounts()[name]; ok {
			return n, true
		}
	}
	return 0, false
}

// worries compares a snapshot with the one before it. What a token may no longer read is missing without a word: only the
// counts tell.
func worries(m, last *lifeboatv1.Manifest, guard int) []string {
	if last == nil {
		return nil
	}
	var all []string
	was, now := last.GetSource().GetIdentity()["token_policies"], m.GetSource().GetIdentity()["token_policies"]
	before, knownBefore := Size(last)
	after, known := Size(m)
	fell := known && knownBefore && after < before
	if fell && (before-after)*100 > before*int64(guard) {
		all = append(all, fmt.Sprintf("it holds %d keys or jobs, and the snapshot before it (%s) held %d: was something deleted, "+
			"or may the token no longer read it?", after, last.GetId(), before))
	}
	if was != now && fell {
		all = append(all, fmt.Sprintf("the token's policies changed from %q to %q, and the count fell from %d to %d", was, now, before, after))
	}
	return all
}

// tellWorries publishes what should worry somebody about the source, or that nothing does any more.
func (w *Worker) tellWorries(ctx context.Context, j job, m *lifeboatv1.Manifest) error {
	e := &lifeboatv1.Event{
		Id: "source.well." + m.GetId(), Noun: "source", Verb: "well", Target: m.GetTarget(), SnapshotId: m.GetId(),
		JobId: m.GetJobId(), Time: m.GetCommittedAt(), Message: "nothing about the source worries",
		RequestedBy: j.requestedBy(), Attributes: j.attributes(nil),
	}
	if all := m.GetSource().GetWorries(); len(all) > 0 {
		e.Id, e.Verb, e.Message = "source.worrying."+m.GetId(), "worrying", strings.Join(all, "; ")
	}
	return w.Bus.Emit(ctx, e)
}
