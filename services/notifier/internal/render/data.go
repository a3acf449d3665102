package render

import (
	"cmp"
	"maps"
	"regexp"

	amtemplate "github.com/prometheus/alertmanager/template"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
)

// runbookAnnotation is where templates commonly look for the runbook.
const runbookAnnotation = "runbook_url"

// templateData is what Alertmanager gives to templates, about the alerts that this receiver is told of: what they share is computed
// anew, as Alertmanager computes it (same are the labels). Times are in the receiver's zone. An alert whose runbook is found by a rule has it in its
// annotation.
func templateData(in Input, alerts []*lifeboatv1.Alert, same map[string]string, out *notice.Notice) *amtemplate.Data {
	n := in.Delivery.GetNotification()
	data := &amtemplate.Data{
		// Templates get it as a regular expression (Alertmanager's template.Data), as people put it into links: ?receiver=team\.x.
		Receiver: regexp.QuoteMeta(cmp.Or(n.GetReceiver(), in.Receiver.Name)),
		// Alertmanager knows two; what is not known to have ended must not look so.
		Status: "firing", Alerts: make(amtemplate.Alerts, 0, len(alerts)),
		NotificationReason: n.GetNotificationReason(), ExternalURL: n.GetExternalUrl(),
		GroupLabels: kv(n.GetGroupLabels()), RouteLabels: kv(n.GetRouteLabels()),
		CommonLabels: kv(same), CommonAnnotations: amtemplate.KV{},
	}
	if out.Status == notice.Resolved {
		data.Status = "resolved"
	}
	for i, a := range alerts {
		one := amtemplate.Alert{
			Status: a.GetStatus(), Labels: kv(a.GetLabels()), Annotations: kv(a.GetAnnotations()),
			GeneratorURL: a.GetGeneratorUrl(), Fingerprint: a.GetFingerprint(),
		}
		if t := a.GetStartsAt(); t != nil {
			one.StartsAt = t.AsTime().In(out.Zone)
		}
		if t := a.GetEndsAt(); t != nil {
			one.EndsAt = t.AsTime().In(out.Zone)
		}
		if i < len(out.Items) && out.Items[i].Runbook != "" && one.Annotations[runbookAnnotation] == "" {
			one.Annotations = maps.Clone(one.Annotations)
			one.Annotations[runbookAnnotation] = out.Items[i].Runbook
		}
		data.Alerts = append(data.Alerts, one)
	}
	if len(data.Alerts) > 0 {
		data.CommonAnnotations = common(len(data.Alerts), func(i int) map[string]string { return data.Alerts[i].Annotations })
	}
	return data
}

func kv(m map[string]string) amtemplate.KV {
	if m == nil {
		return amtemplate.KV{}
	}
	return m
}
