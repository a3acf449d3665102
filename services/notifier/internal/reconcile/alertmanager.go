package reconcile

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-openapi/runtime"
	httptransport "github.com/go-openapi/runtime/client"
	"github.com/go-openapi/strfmt"
	"github.com/prometheus/alertmanager/api/v2/client"
	api "github.com/prometheus/alertmanager/api/v2/client/alert"
	"github.com/prometheus/alertmanager/api/v2/models"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// askTimeout bounds one question, so that a hanging Alertmanager does not keep us from asking the next one.
const askTimeout = 30 * time.Second

// alert is one that fires.
type alert struct {
	id alertID
	// audible says that nothing keeps Alertmanager from sending it: no silence, inhibition or time interval.
	audible             bool
	receivers           []string
	labels, annotations map[string]string
	generator           string
}

// firing are the alerts of the first Alertmanager that answers, silenced ones and such included.
func (r *Reconciler) firing(ctx context.Context, addresses []string) ([]*alert, error) {
	var errs []error
	for _, address := range addresses {
		all, err := r.ask(ctx, address)
		if err == nil {
			return all, nil
		}
		errs = append(errs, err)
	}
	return nil, fmt.Errorf("no Alertmanager answers: %w", errors.Join(errs...))
}

func (r *Reconciler) ask(ctx context.Context, address string) ([]*alert, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, fmt.Errorf("parsing the Alertmanager's URL: %w", err)
	}
	transport := httptransport.NewWithClient(u.Host, strings.TrimSuffix(u.Path, "/")+client.DefaultBasePath, []string{u.Scheme}, r.http)
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	answer, err := client.New(transport, strfmt.Default).Alert.GetAlerts(api.NewGetAlertsParamsWithContext(ctx))
	if refused, ok := errors.AsType[*runtime.APIError](err); ok {
		return nil, fmt.Errorf("asking %s for its alerts: status %d", address, refused.Code)
	}
	if err != nil {
		return nil, fmt.Errorf("asking %s for its alerts: %w", address, err)
	}
	out := make([]*alert, 0, len(answer.Payload))
	for _, g := range answer.Payload {
		if a := newAlert(g); a != nil {
			out = append(out, a)
		}
	}
	return out, nil
}

// newAlert takes what is needed of an alert; nil for one that lacks it.
func newAlert(g *models.GettableAlert) *alert {
	if g == nil || g.Fingerprint == nil || g.StartsAt == nil || g.Status == nil || g.Status.State == nil {
		return nil
	}
	fingerprint, err := strconv.ParseUint(*g.Fingerprint, 16, 64)
	if err != nil {
		return nil
	}
	s := g.Status
	a := &alert{
		id:      alertID{fingerprint, time.Time(*g.StartsAt).UnixMilli()},
		audible: *s.State == models.AlertStatusStateActive && len(s.SilencedBy)+len(s.InhibitedBy)+len(s.MutedBy) == 0,
	}
	if !a.audible {
		return a // only that it fires matters
	}
	a.labels, a.annotations, a.generator = g.Labels, g.Annotations, g.GeneratorURL.String()
	for _, r := range g.Receivers {
		if r != nil && r.Name != nil {
			a.receivers = append(a.receivers, *r.Name)
		}
	}
	return a
}

// groupKey of an alert that was missed holds its labels, so that it can be told once more that it has ended. It is a group of its own: which
// one Alertmanager would have put it into is not known.
const groupPrefix = "lifeboat/reconcile/"

func groupKey(labels map[string]string) string {
	b, err := json.Marshal(labels) // with its keys in order
	if err != nil {
		return groupPrefix // strings can always be written
	}
	return groupPrefix + string(b)
}

// amReceiver stands where Alertmanager's receiver does otherwise.
const amReceiver = "lifeboat"

func notification(id string, labels, annotations map[string]string, a *lifeboatv1.Alert, now time.Time) *lifeboatv1.Notification {
	return &lifeboatv1.Notification{
		Id: id, ReceivedAt: timestamppb.New(now), Origin: "reconcile", GroupKey: groupKey(labels), Receiver: amReceiver,
		GroupLabels: map[string]string{"alertname": labels["alertname"]}, CommonLabels: labels, CommonAnnotations: annotations,
		Status: a.GetStatus(), Alerts: []*lifeboatv1.Alert{a}, Part: 1, Parts: 1,
	}
}

func (a *alert) notification(now time.Time) *lifeboatv1.Notification {
	return notification("recon-"+a.id.String(), a.labels, a.annotations, &lifeboatv1.Alert{
		Status: firing, Labels: a.labels, Annotations: a.annotations, StartsAt: timestamppb.New(time.UnixMilli(a.id.starts)),
		GeneratorUrl: a.generator, Fingerprint: fmt.Sprintf("%016x", a.id.fingerprint),
	}, now)
}

func (a *alert) event() *lifeboatv1.Event {
	target := a.labels["target"]
	if !config.ValidName(target) {
		target = ""
	}
	starts := time.UnixMilli(a.id.starts).UTC().Format(time.RFC3339)
	return &lifeboatv1.Event{
		Id: "missed-" + a.id.String(), Noun: "alert", Verb: "missed", Target: target,
		Message: fmt.Sprintf("%s fires in Alertmanager since %s, and nobody was told; it is delivered now", a.labels["alertname"], starts),
		Attributes: map[string]string{
			"alert": a.id.String(), "alertname": a.labels["alertname"], "starts_at": starts,
			"receivers": strings.Join(slices.Sorted(slices.Values(a.receivers)), ","),
		},
	}
}

// ending is an alert that was delivered by us, and that Alertmanager does not have any more.
type ending struct {
	id       alertID
	receiver string
	labels   map[string]string
}

func (e *ending) notification(ended, now time.Time) *lifeboatv1.Notification {
	n := notification("recon-"+e.id.String()+"-resolved-"+e.receiver, e.labels, nil, &lifeboatv1.Alert{
		Status: resolved, Labels: maps.Clone(e.labels), StartsAt: timestamppb.New(time.UnixMilli(e.id.starts)), EndsAt: timestamppb.New(ended),
		Fingerprint: fmt.Sprintf("%016x", e.id.fingerprint),
	}, now)
	n.OnlyReceiver = e.receiver
	return n
}
