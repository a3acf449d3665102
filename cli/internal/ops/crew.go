package ops

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
)

// crew are the workers that answered. unknown says why nobody could be asked, and then nothing is said about missing ones.
type crew struct {
	workers []bus.WorkerInfo
	unknown error
}

// crewTimeout bounds the question, which waits about half a second for answers.
const crewTimeout = 3 * time.Second

func (f *fleet) crew(ctx context.Context) crew {
	ctx, cancel := context.WithTimeout(ctx, crewTimeout)
	defer cancel()
	workers, err := f.bus.Workers(ctx)
	if err != nil {
		return crew{unknown: fmt.Errorf("asking which workers run: %w", err)}
	}
	slices.SortFunc(workers, func(a, b bus.WorkerInfo) int { return strings.Compare(a.Actor, b.Actor) })
	return crew{workers: workers}
}

// takes says whether a worker takes a kind of work of targets of a zone; a target without a zone is anybody's.
func takes(w bus.WorkerInfo, work config.Work, zone string) bool {
	return slices.Contains(w.Roles, string(work)) && (zone == "" || w.Zone == zone)
}

// lacking says in words that no worker takes a target's jobs; empty when one does or nobody could be asked.
func (c crew) lacking(work config.Work, zone string) string {
	if c.unknown != nil || slices.ContainsFunc(c.workers, func(w bus.WorkerInfo) bool { return takes(w, work, zone) }) {
		return ""
	}
	if len(c.workers) == 0 {
		return "no worker answers"
	}
	if zone != "" && !c.has(zone) {
		return fmt.Sprintf("zone %s has no worker", zone)
	}
	if zone != "" {
		return fmt.Sprintf("no worker of zone %s takes %s", zone, plural(work))
	}
	return fmt.Sprintf("no worker takes %s", plural(work))
}

// has says whether a zone has a worker that takes jobs.
func (c crew) has(zone string) bool {
	return slices.ContainsFunc(c.workers, func(w bus.WorkerInfo) bool { return w.Zone == zone && !w.Draining })
}

// remedy is what to do about lacking.
func remedy(work config.Work, zone string) string {
	if zone != "" {
		return fmt.Sprintf("start one in zone %s: lifeboat-backup --zone %s --roles %s", zone, zone, work)
	}
	return fmt.Sprintf("start one: lifeboat-backup --roles %s", work)
}

// answers says whether a worker that holds a claim is among those that answered.
func (c crew) answers(actor string) bool {
	return c.unknown != nil || slices.ContainsFunc(c.workers, func(w bus.WorkerInfo) bool { return w.Actor == actor })
}

// plural is a kind of work in a sentence.
func plural(w config.Work) string {
	switch w {
	case config.WorkSnapshot, config.WorkDrill, config.WorkPrune:
		return string(w) + "s"
	case config.WorkVerify:
		return "verifications"
	}
	return string(w) + " jobs"
}
