package ops

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/console"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

func notifyDeadCommand() *cobra.Command {
	var f flags
	var receivers []string
	var since string
	cmd := &cobra.Command{
		Use: "dead", Short: "List the alerts that could not be delivered and the webhooks that were refused, newest last",
		Long: "dead lists the dead letters of alerts. One with a receiver is a delivery that its chat refused for good or that waited for too\n" +
			"long; one from \"received\" was never routed; one with an endpoint is a webhook that the notifier refused. The letter itself\n" +
			"shows lifeboat dead show ID; lifeboat notify replay sends it again.",
		Example: "  lifeboat notify dead\n  lifeboat notify dead --receiver ops-slack --since 7d\n" +
			"  lifeboat notify dead --output json | jq -r '.[] | [.id, .receiver, .reason] | @tsv'",
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			from, err := parseSince(since, time.Now())
			if err != nil {
				return err
			}
			fl, err := f.open(cmd.Context())
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, fl.close()) }()
			all, err := fl.deadAlerts(cmd.Context(), receivers, from)
			if err != nil {
				return err
			}
			return printDeadAlerts(cmd.OutOrStdout(), f.output, all)
		},
	}
	f.add(cmd)
	addReceivers(cmd, &receivers, &f.config)
	cmd.Flags().StringVar(&since, "since", "", "only what is younger than this `age`, as 36h or 7d")
	console.CompleteFlag(cmd, "since", "24h", "7d", "30d")
	return cmd
}

// deadAlert is a dead letter about alerts.
type deadAlert struct {
	ID      string    `json:"id"`
	Time    time.Time `json:"time"`
	Subject string    `json:"subject"`
	// Receiver is empty for a refused webhook, and for a notification that was not routed.
	Receiver string `json:"receiver,omitempty"`
	// Endpoint is where a refused webhook came to: its path.
	Endpoint string `json:"endpoint,omitempty"`
	// Alerts in it; absent when they cannot be counted.
	Alerts     *int     `json:"alerts,omitempty"`
	Alertnames []string `json:"alertnames,omitempty"`
	Attempts   int64    `json:"attempts"`
	Reason     string   `json:"reason"`
	Bytes      int      `json:"bytes"`
	// Truncated says that only the beginning was kept, so that it cannot be sent again.
	Truncated bool `json:"truncated,omitempty"`
	*letter   `json:"-"`
}

// alertLetters are the original subjects of dead letters about alerts.
func alertLetters() []string { return []string{"lifeboat.alert.>", subjectWebhook} }

// deadAlerts are the dead letters of alerts, newest last, without their payloads. With receivers there are no webhooks among them.
func (f *fleet) deadAlerts(ctx context.Context, receivers []string, since time.Time) ([]*deadAlert, error) {
	about := map[string]*deadAlert{}
	found := map[string]bool{}
	var all []*deadAlert
	for _, filter := range alertLetters() {
		letters, err := f.letters(ctx, filter, since, func(d *lifeboatv1.DeadLetter) bool {
			about[d.GetId()] = newDeadAlert(d)
			return false
		})
		if err != nil {
			return nil, err
		}
		for _, l := range letters {
			a := about[l.GetId()]
			a.letter = l
			found[a.Receiver] = true
			if len(receivers) == 0 || slices.Contains(receivers, a.Receiver) {
				all = append(all, a)
			}
		}
	}
	slices.SortStableFunc(all, func(a, b *deadAlert) int { return a.Time.Compare(b.Time) })
	return all, f.unknownReceiver(receivers, func(name string) bool { return found[name] })
}

// newDeadAlert looks into a letter that still has its payload.
func newDeadAlert(d *lifeboatv1.DeadLetter) *deadAlert {
	a := &deadAlert{
		ID: d.GetId(), Time: d.GetTime().AsTime(), Subject: d.GetSubject(), Attempts: d.GetAttempts(), Reason: d.GetReason(),
		Bytes: len(d.GetPayload()), Truncated: d.GetTruncated(),
	}
	if a.Subject == subjectWebhook {
		a.Endpoint = endpoint(d)
		a.Alerts = posted(d.GetPayload())
		return a
	}
	// The subject tells the receiver also when the payload does not.
	if name, ok := strings.CutPrefix(a.Subject, bus.DeliverySubject("")); ok {
		a.Receiver = strings.TrimSuffix(name, ".critical")
	}
	n := &lifeboatv1.Notification{}
	if a.Subject == bus.SubjectReceived {
		if bus.Decode(d.GetPayload(), n) != nil {
			return a
		}
	} else {
		out := &lifeboatv1.Delivery{}
		if bus.Decode(d.GetPayload(), out) != nil {
			return a
		}
		n = out.GetNotification()
	}
	count, names := len(n.GetAlerts()), map[string]bool{}
	for _, alert := range n.GetAlerts() {
		names[alert.GetLabels()["alertname"]] = true
	}
	a.Alerts, a.Alertnames = &count, slices.Sorted(maps.Keys(names))
	return a
}

// The endpoints of the notifier.
const (
	endpointAlertmanager = "/api/v1/alertmanager"
	endpointGeneric      = "/api/v1/alerts"
	// headerEndpoint of a letter says where the body was posted.
	headerEndpoint = "endpoint"
)

// endpoint is where a refused webhook was posted. A letter that does not say it is judged by its form: a script's alert is an object
// of its own or a list, and Alertmanager's is an object around a list.
func endpoint(d *lifeboatv1.DeadLetter) string {
	if e := d.GetHeaders()[headerEndpoint]; e == endpointGeneric || e == endpointAlertmanager {
		return e
	}
	body := bytes.TrimLeft(d.GetPayload(), " \t\r\n")
	if bytes.HasPrefix(body, []byte("[")) {
		return endpointGeneric
	}
	var fields map[string]json.RawMessage
	if json.Unmarshal(body, &fields) != nil || len(fields) == 0 {
		return endpointAlertmanager
	}
	for _, key := range []string{"version", "groupKey", "alerts", "receiver"} {
		if fields[key] != nil {
			return endpointAlertmanager
		}
	}
	return endpointGeneric
}

// posted counts the alerts in a webhook's body; nil when nobody can.
func posted(body []byte) *int {
	n := 1
	var list []json.RawMessage
	var object map[string]json.RawMessage
	switch {
	case json.Unmarshal(body, &list) == nil:
		n = len(list)
	case json.Unmarshal(body, &object) != nil:
		return nil
	case object["alerts"] != nil:
		if json.Unmarshal(object["alerts"], &list) != nil {
			return nil
		}
		n = len(list)
	case object["name"] == nil:
		return nil
	}
	return &n
}

// where is the receiver, or what stands instead of one.
func (a *deadAlert) where() string {
	switch {
	case a.Endpoint != "":
		return "webhook " + a.Endpoint
	case a.Receiver != "":
		return a.Receiver
	}
	return strings.TrimPrefix(a.Subject, "lifeboat.alert.")
}

// what are the alerts in it.
func (a *deadAlert) what() string {
	switch {
	case a.Alerts == nil:
		return "?"
	case len(a.Alertnames) == 0:
		return fmt.Sprint(*a.Alerts)
	}
	return fmt.Sprintf("%d: %s", *a.Alerts, strings.Join(a.Alertnames, ", "))
}

func printDeadAlerts(out io.Writer, output string, all []*deadAlert) error {
	if output == console.OutputJSON {
		if all == nil {
			all = []*deadAlert{}
		}
		return console.WriteJSON(out, all)
	}
	t := console.NewTable(out, "ID", "AGE", "RECEIVER", "ALERTS", "REASON")
	for _, a := range all {
		reason := console.FirstLine(a.Reason)
		if a.Truncated {
			reason = "(only its beginning was kept) " + reason
		}
		t.Row(clean(a.ID), console.Age(a.Time), clean(a.where()), cut(clean(a.what()), maxReason/2), cut(reason, maxReason))
	}
	return t.Flush("no alert is dead, and no webhook was refused")
}
