package ops

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/console"
)

// WhyCommand is `lifeboat why`.
func WhyCommand() *cobra.Command {
	var f flags
	var work, job, since string
	cmd := &cobra.Command{
		Use: "why target", Short: "One page about a target, from the tick to the object: what ran, how it went, and why nothing did",
		Long: "why follows the newest job of a target, or the one that --job names, from its tick over the attempts of workers to the stored\n" +
			"object and its drill. When nothing ran it says why: paused, blackout, overlap, no worker, a dead letter, no scheduler. It\n" +
			"reads NATS and needs no bucket; what it may not read it leaves out and says so. Exit code 1 says that it could read nothing.",
		Example: "  lifeboat why etcd-prod\n  lifeboat why etcd-prod --work drill\n" +
			"  lifeboat why etcd-prod --job 20261121T040000.123Z-42\n  lifeboat why etcd-prod --since 7d --output json",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: console.CompleteTarget(&f.config),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			w := config.Work(work)
			if !slices.Contains(config.Works(), w) {
				return console.Usagef("--work: %q is not one of %v", work, config.Works())
			}
			now := time.Now()
			from, err := parseSince(since, now)
			if err != nil {
				return err
			}
			cfg, err := f.load()
			if err != nil {
				return err
			}
			t, err := console.FindTarget(cfg, f.config, args[0])
			if err != nil {
				return err
			}
			fl, err := connect(cmd.Context(), cfg, f.config, reachTimeout)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, fl.close()) }()
			q := question{fleet: fl, target: t, work: w, named: cmd.Flags().Changed("work"), job: job, since: from, now: now}
			p, err := q.answer(cmd.Context())
			if err != nil {
				return err
			}
			if f.output == console.OutputJSON {
				err = console.WriteJSON(cmd.OutOrStdout(), p)
			} else {
				err = p.print(cmd.OutOrStdout(), now)
			}
			if err == nil && p.blind {
				err = fmt.Errorf("nothing that NATS knows of %s could be read", t.Name)
			}
			return err
		},
	}
	f.add(cmd)
	cmd.Flags().StringVar(&work, "work", string(config.WorkSnapshot), "the kind of `work`: snapshot, drill, verify or prune")
	cmd.Flags().StringVar(&job, "job", "", "the `id` of the job to look at (default: the newest)")
	cmd.Flags().StringVar(&since, "since", "30d", "how far to look back, as 36h or 30d")
	var works []string
	for _, w := range config.Works() {
		works = append(works, string(w))
	}
	console.CompleteFlag(cmd, "work", works...)
	console.CompleteFlag(cmd, "since", "24h", "7d", "30d", "90d")
	return cmd
}

// question is what is asked about one target.
type question struct {
	*fleet
	target config.Target
	work   config.Work
	// named: the kind of work was asked for, and is not looked up by the job's id.
	named bool
	job   string
	since time.Time
	now   time.Time
	loc   *time.Location
}

// recentLines is how many of the newest ticks and jobs are listed.
const recentLines = 10

// answer reads what can be read and puts it together.
func (q *question) answer(ctx context.Context) (*page, error) {
	var err error
	if q.loc, err = time.LoadLocation(q.target.TimeZone); err != nil {
		return nil, fmt.Errorf("time_zone of %s: %w", q.target.Name, err)
	}
	k := q.know(ctx)
	if q.job != "" && !q.named {
		q.work = k.workOf(q.job, q.work)
	}
	stories := k.stories(q)
	p := &page{
		blind:  !k.stateOK && !k.openOK && !k.rpoOK,
		Target: q.target.Name, Kind: q.target.Kind(), Work: q.work, Zone: q.target.Zone, TimeZone: q.loc.String(), Unknown: k.unknown,
		Schedules: q.schedules(k), RPO: q.rpo(k), Findings: []finding{}, Recent: []outcome{},
	}
	if q.job != "" {
		i := slices.IndexFunc(stories, func(s *jobStory) bool { return s.ID == q.job })
		if i < 0 && len(k.unknown) > 0 {
			return nil, fmt.Errorf("whether there was a %s %s of %s is not known, because not everything could be read: %s", q.work, clean(q.job),
				q.target.Name, clean(strings.Join(k.unknown, "; ")))
		}
		if i < 0 {
			return nil, fmt.Errorf("nothing is known of a %s %s of %s since %s: mistyped, another --work, or longer ago than --since?",
				q.work, clean(q.job), q.target.Name, q.since.In(q.loc).Format(moment))
		}
		p.Job = stories[i]
	} else if len(stories) > 0 {
		p.Job = stories[len(stories)-1]
	}
	if p.Job != nil {
		q.complete(p, k)
	}
	p.Recent = append(p.Recent, q.recent(k, stories)...)
	p.Findings = append(p.Findings, q.findings(p, k, stories)...)
	return p, nil
}
