package ops

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/console"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// NotifyCommands are those of `lifeboat notify` that ask the fleet: what was delivered, what was not, and how it is sent again.
func NotifyCommands() []*cobra.Command {
	return []*cobra.Command{notifyDeliveriesCommand(), notifyDeadCommand(), notifyReplayCommand()}
}

// How a delivery ends, as --outcome has it.
const (
	outcomeDelivered = "delivered"
	outcomeDigest    = "digest"
	outcomeFolded    = "folded"
	outcomeHandedOn  = "handed-on"
	outcomeDead      = "dead"
)

func outcomes() []string {
	return []string{outcomeDelivered, outcomeDigest, outcomeFolded, outcomeHandedOn, outcomeDead}
}

// deliveriesFlags are those of `lifeboat notify deliveries`.
type deliveriesFlags struct {
	flags
	receivers, outcomes []string
	since, alertname    string
	slow                time.Duration
	limit               int
}

func notifyDeliveriesCommand() *cobra.Command {
	var f deliveriesFlags
	cmd := &cobra.Command{
		Use: "deliveries", Short: "What was delivered to whom, how late, what was not and why, and what waits now",
		Long: "deliveries reads the audit log: each delivery is one receiver's part of a webhook, and ends as delivered, in a digest, folded\n" +
			"(nothing in it was news), handed on to the fallback, or dead. LAG is from the webhook to the chat. Below stands what waits now.\n\n" +
			"The summary counts alerts of all that matches, also of what --limit leaves out. An alert that was handed on is counted there\n" +
			"and, when the fallback is done with it, again.",
		Example: "  lifeboat notify deliveries\n" +
			"  lifeboat notify deliveries --receiver ops-slack --since 7d --outcome dead,handed-on\n" +
			"  lifeboat notify deliveries --slow 1m                      # what came more than a minute late\n" +
			"  lifeboat notify deliveries --alertname EtcdNoLeader --output json | jq '.deliveries[] | {time, receiver, outcome}'",
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	f.add(cmd)
	addReceivers(cmd, &f.receivers, &f.config)
	cmd.Flags().StringVar(&f.since, "since", "24h", "how far to look back, as 36h or 7d")
	cmd.Flags().StringSliceVar(&f.outcomes, "outcome", nil, "only what ended like this: "+strings.Join(outcomes(), ", "))
	cmd.Flags().StringVar(&f.alertname, "alertname", "", "only deliveries whose alerts all have this `name`")
	cmd.Flags().DurationVar(&f.slow, "slow", 0, "only what took longer than this, as 1m")
	cmd.Flags().IntVar(&f.limit, "limit", 200, "list the newest `n`; 0 lists all")
	console.CompleteFlag(cmd, "outcome", outcomes()...)
	console.CompleteFlag(cmd, "since", "1h", "24h", "7d", "30d")
	console.CompleteFlag(cmd, "slow", "10s", "1m", "10m")
	console.CompleteFlag(cmd, "alertname")
	console.CompleteFlag(cmd, "limit")
	return cmd
}

// addReceivers declares --receiver.
func addReceivers(cmd *cobra.Command, receivers *[]string, file *string) {
	cmd.Flags().StringSliceVar(receivers, "receiver", nil, "only this `receiver`; may be repeated")
	// The only error is a flag that does not exist, and it has just been declared.
	_ = cmd.RegisterFlagCompletionFunc("receiver", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		cfg, err := config.Load(*file)
		if err != nil { // a shell has no place for errors
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return receiverNames(cfg), cobra.ShellCompDirectiveNoFileComp
	})
}

func receiverNames(cfg *config.Config) []string {
	names := make([]string, 0, len(cfg.Notifier.Receivers))
	for _, r := range cfg.Notifier.Receivers {
		names = append(names, r.Name)
	}
	return names
}

// unknownReceiver is a usage error for a --receiver that the configuration does not have and of which nothing was found either: one
// that was removed may be asked for.
func (f *fleet) unknownReceiver(asked []string, found func(string) bool) error {
	for _, r := range asked {
		if !slices.Contains(receiverNames(f.config), r) && !found(r) {
			return console.Usagef("no receiver is named %q in %s, and nothing was found of one; it has %s", clean(r), f.file,
				console.OrDash(strings.Join(receiverNames(f.config), ", ")))
		}
	}
	return nil
}

func (f *deliveriesFlags) run(cmd *cobra.Command) (err error) {
	now := time.Now()
	from, err := parseSince(f.since, now)
	if err != nil {
		return err
	}
	for _, o := range f.outcomes {
		if !slices.Contains(outcomes(), o) {
			return console.Usagef("--outcome: %q is not one of %s", clean(o), strings.Join(outcomes(), ", "))
		}
	}
	if f.limit < 0 {
		return console.Usagef("--limit: %d is less than nothing; 0 lists all", f.limit)
	}
	fl, err := f.open(cmd.Context())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, fl.close()) }()
	r := &deliveries{f: f, seen: map[uint64]bool{}, receivers: map[string]bool{}, digests: map[string]bool{}, List: []*ended{}}
	if err = r.read(cmd.Context(), fl, from); err != nil {
		return err
	}
	r.Waiting, err = fl.waiting(cmd.Context(), f.receivers)
	if err != nil { // what was delivered is worth telling without it
		r.Unknown = append(r.Unknown, "what waits: "+clean(err.Error()))
	}
	err = fl.unknownReceiver(f.receivers, func(name string) bool { return r.receivers[name] || r.Waiting.has(name) })
	if err != nil {
		return err
	}
	if f.output == console.OutputJSON {
		return console.WriteJSON(cmd.OutOrStdout(), r)
	}
	return r.print(cmd.OutOrStdout())
}

// deliveries is what `lifeboat notify deliveries` shows.
type deliveries struct {
	// List are the newest deliveries, newest last.
	List    []*ended `json:"deliveries"`
	Summary summary  `json:"summary"`
	Waiting *waiting `json:"waiting"`
	// Unknown is what could not be read, and why.
	Unknown []string `json:"unknown,omitempty"`

	f    *deliveriesFlags
	lags []float64
	// seen are the hashes of the events' ids: after a crash the same one may have been stored twice.
	seen      map[uint64]bool
	receivers map[string]bool
	digests   map[string]bool
}

// ended is how one delivery ended.
type ended struct {
	Time     time.Time `json:"time"`
	Receiver string    `json:"receiver"`
	Outcome  string    `json:"outcome"`
	// Why it was folded, handed on or given up.
	Why string `json:"why,omitempty"`
	// To is the fallback that it was handed on to.
	To string `json:"to,omitempty"`
	// Alertname is empty when its alerts have several.
	Alertname string `json:"alertname,omitempty"`
	Target    string `json:"target,omitempty"`
	Alerts    int    `json:"alerts"`
	// Held are those of its alerts that flap and are told later, in another delivery.
	Held       int     `json:"held,omitempty"`
	LagSeconds float64 `json:"lag_seconds"`
	Attempts   int     `json:"attempts"`
	Origin     string  `json:"origin,omitempty"`
	Route      string  `json:"route,omitempty"`
	DeliveryID string  `json:"delivery_id,omitempty"`
	// Digest is the same for all that one digest told.
	Digest string `json:"digest,omitempty"`
	// DeadID is for lifeboat notify replay.
	DeadID string `json:"dead_id,omitempty"`
}

// read goes through the audit log.
func (r *deliveries) read(ctx context.Context, fl *fleet, since time.Time) error {
	filters := make([]string, 0, 4)
	for _, verb := range []string{"delivered", "folded", "handed-on", "dead"} {
		filters = append(filters, bus.EventSubject("alert", verb, "*"))
	}
	seed := maphash.MakeSeed()
	err := fl.bus.History(ctx, bus.StreamEvents, filters, since, func(m *bus.Message) error {
		e := &lifeboatv1.Event{}
		if err := bus.Decode(m.Data, e); err != nil {
			return nil //nolint:nilerr // what nobody can read hides nothing else
		}
		if id := maphash.String(seed, e.GetId()); e.GetId() != "" {
			if r.seen[id] {
				return nil
			}
			r.seen[id] = true
		}
		r.add(newEnded(e, m.Stored))
		return nil
	})
	if err != nil {
		return fmt.Errorf("reading what was delivered: %w", explain(err))
	}
	if r.f.limit > 0 && len(r.List) > r.f.limit {
		r.List = slices.Clone(r.List[len(r.List)-r.f.limit:])
	}
	r.Summary.end(r.lags, len(r.digests))
	return nil
}

// newEnded reads an event. stored stands in for a time that it lacks.
func newEnded(e *lifeboatv1.Event, stored time.Time) *ended {
	a := e.GetAttributes()
	d := &ended{
		Time: stored, Receiver: a["receiver"], Outcome: e.GetVerb(), To: a["to"], Alertname: a["alertname"], Target: e.GetTarget(), Origin: a["origin"],
		Route: a["route"], DeliveryID: a["delivery_id"], Digest: a["digest"], DeadID: a["dead_id"],
	}
	if t := at(e.GetTime()); t != nil {
		d.Time = *t
	}
	// What is not a number is none: the rest of the line is worth telling.
	d.Alerts, _ = strconv.Atoi(a["alerts"])
	d.Held, _ = strconv.Atoi(a["held"])
	d.Attempts, _ = strconv.Atoi(a["attempts"])
	d.LagSeconds, _ = strconv.ParseFloat(a["lag_seconds"], 64)
	if d.Outcome == outcomeDelivered {
		if a["kind"] == "digest" {
			d.Outcome = outcomeDigest
		}
		return d
	}
	// The event's sentence names the receiver, which stands in a column of its own.
	d.Why = strings.TrimPrefix(e.GetMessage(), "nothing in it was news for "+d.Receiver+": ")
	if rest, ok := strings.CutPrefix(d.Why, d.Receiver+" did not take it ("); ok {
		if inner, cut := strings.CutSuffix(rest, "); "+d.To+" takes over"); cut {
			d.Why = inner
		}
	}
	return d
}

// add takes in a delivery that was asked for.
func (r *deliveries) add(d *ended) {
	r.receivers[d.Receiver] = true
	f := r.f
	if len(f.receivers) > 0 && !slices.Contains(f.receivers, d.Receiver) || len(f.outcomes) > 0 && !slices.Contains(f.outcomes, d.Outcome) ||
		f.alertname != "" && f.alertname != d.Alertname || f.slow > 0 && d.LagSeconds <= f.slow.Seconds() {
		return
	}
	if len(r.List) >= 2*max(f.limit, 1) && f.limit > 0 { // the oldest ones are not listed
		r.List = append(r.List[:0], r.List[len(r.List)-f.limit:]...)
	}
	r.List = append(r.List, d)
	r.Summary.count(d)
	switch d.Outcome {
	case outcomeDigest:
		r.digests[d.Digest] = true
		fallthrough
	case outcomeDelivered:
		r.lags = append(r.lags, d.LagSeconds)
	}
}

func (r *deliveries) print(out io.Writer) error {
	t := console.NewTable(out, "TIME", "RECEIVER", "WHAT", "OUTCOME", "LAG", "ATTEMPTS")
	for _, d := range r.List {
		outcome := d.outcome()
		if d.Outcome == outcomeDead {
			outcome = console.Red(out, outcome)
		}
		t.Row(d.Time.UTC().Format(time.RFC3339), console.OrDash(clean(d.Receiver)), d.what(), outcome, short(d.LagSeconds), fmt.Sprint(d.Attempts))
	}
	if err := t.Flush("no delivery ended like this since then; look further back with --since 7d"); err != nil {
		return err
	}
	var b strings.Builder
	b.WriteByte('\n')
	if all := r.Summary.Deliveries; len(r.List) < all {
		fmt.Fprintf(&b, "the newest %d of %d deliveries; all of them with --limit 0\n", len(r.List), all)
	}
	fmt.Fprintln(&b, r.Summary.line())
	if slices.ContainsFunc(r.List, func(d *ended) bool { return d.Outcome == outcomeDead }) {
		b.WriteString("what is dead and not replayed yet: lifeboat notify dead\n")
	}
	r.Waiting.print(&b)
	for _, u := range r.Unknown {
		fmt.Fprintln(&b, console.Red(out, "not known: "+u))
	}
	_, err := io.WriteString(out, b.String())
	return err
}

// what is the alert that it was about, or how many.
func (d *ended) what() string {
	what := clean(d.Alertname)
	if d.Target != "" {
		what += " " + clean(d.Target)
	}
	switch {
	case d.Alertname == "":
		what = strings.TrimSpace(counted(int64(d.Alerts), "alert") + what)
	case d.Alerts != 1:
		what += ", " + counted(int64(d.Alerts), "alert")
	}
	if d.Origin != "" && d.Origin != "alertmanager" {
		what += " (" + clean(d.Origin) + ")"
	}
	return cut(what, maxReason)
}

func (d *ended) outcome() string {
	text := d.Outcome
	switch d.Outcome {
	case outcomeDigest:
		text = "in a digest"
	case outcomeHandedOn:
		text = "handed on to " + clean(d.To)
	}
	if d.Held > 0 && d.Outcome != outcomeFolded {
		text += fmt.Sprintf(", %d flap and are told later", d.Held)
	}
	if d.Why != "" {
		text += ": " + cut(clean(d.Why), maxReason)
	}
	return text
}
