package events

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

const (
	alertName = "LifeboatEvent"
	// maxMessage and maxValue are what a chat shows of a text without hiding the rest.
	maxMessage = 2000
	maxValue   = 300
)

// complete fills in what an event lacks that a person published. The subject is what it was filtered by, so it decides what happened.
func complete(e *lifeboatv1.Event, m *bus.Message) {
	if parts := strings.SplitN(strings.TrimPrefix(m.Subject, "lifeboat.event."), ".", 3); len(parts) == 3 {
		e.Noun, e.Verb, e.Target = parts[0], parts[1], parts[2]
	}
	if e.GetId() == "" {
		e.Id = m.ID()
	}
	if e.GetTime().CheckValid() != nil {
		e.Time = timestamppb.New(m.Stored)
	}
}

// notification is an event in the form of an alert. It depends on nothing but the event and the time of receipt.
func notification(e *lifeboatv1.Event, now time.Time) *lifeboatv1.Notification {
	event := e.GetNoun() + "." + e.GetVerb()
	labels := map[string]string{
		"alertname": alertName, "event": event, "noun": e.GetNoun(), "verb": e.GetVerb(), "target": e.GetTarget(),
		"severity": "info", "service": "lifeboat",
	}
	annotations := map[string]string{"summary": summary(event, e), "description": description(e)}
	sum := sha256.Sum256([]byte(e.GetId()))
	return &lifeboatv1.Notification{
		Id: "event-" + hex.EncodeToString(sum[:16]), ReceivedAt: timestamppb.New(now), Origin: "event",
		GroupKey:    fmt.Sprintf("event/%s/%s", event, e.GetTarget()),
		GroupLabels: map[string]string{"alertname": alertName, "event": event, "target": e.GetTarget()},
		// The group of one alert has its labels in common.
		CommonLabels: labels, CommonAnnotations: annotations, Status: "event",
		Alerts: []*lifeboatv1.Alert{{
			Status: "event", Labels: labels, Annotations: annotations, StartsAt: e.GetTime(), Fingerprint: fingerprint(labels),
		}},
		Part: 1, Parts: 1,
	}
}

// sentences say what happened to a target.
func sentences() map[string]string {
	return map[string]string{ //nolint:gosec // that something passed is no password
		"snapshot.committed": "Snapshot of %s taken", "snapshot.failed": "Snapshot of %s failed", "snapshot.deleted": "Snapshot of %s deleted by retention",
		"snapshot.started": "Snapshot of %s started", "snapshot.pinned": "Snapshot of %s pinned", "snapshot.unpinned": "Snapshot of %s unpinned",
		"snapshot.interrupted": "Snapshot of %s was interrupted",
		"verify.started":       "Verification of the snapshots of %s started", "verify.passed": "The stored snapshots of %s are whole",
		"verify.failed": "Verification of the stored snapshots of %s failed",
		"drill.started": "Restore drill of %s started", "drill.passed": "Restore drill of %s passed", "drill.failed": "Restore drill of %s failed",
		"drill.escrow-passed": "Restore drill of %s with the escrow identity passed",
		"drill.escrow-failed": "Restore drill of %s with the escrow identity failed",
		"copy.passed":         "Snapshot of %s copied to the second bucket", "copy.failed": "Snapshot of %s could not be copied to the second bucket",
		"prune.started": "Retention of %s started", "prune.passed": "Retention of %s applied", "prune.failed": "Retention of %s could not be applied",
		"prune.held": "Retention of %s is held: it suddenly shrank", "source.worrying": "Something about the source %s should worry somebody",
		"source.well": "The source %s is well", "rpo.exceeded": "%s has no good snapshot within its RPO", "rpo.met": "%s has a good snapshot within its RPO again",
		"restore.applied": "%s was restored", "job.rejected": "A job for %s was rejected", "job.cancelled": "A job for %s was cancelled",
		"tick.missed": "A scheduled run of %s was missed", "schedule.paused": "A schedule of %s was paused",
		"schedule.resumed": "A schedule of %s was resumed", "target.added": "%s is backed up from now on",
		"orphan.deleted": "Something left over in the bucket of %s was deleted",
	}
}

func summary(event string, e *lifeboatv1.Event) string {
	if s, known := sentences()[event]; known {
		return fmt.Sprintf(s, e.GetTarget())
	}
	words := strings.ReplaceAll(e.GetNoun()+" "+e.GetVerb(), "-", " ")
	if words != "" {
		words = strings.ToUpper(words[:1]) + words[1:]
	}
	return words + ": " + e.GetTarget()
}

// description is the event's message, and below it what identifies it and its attributes, one a line.
func description(e *lifeboatv1.Event) string {
	lines := make([]string, 0, 4+len(e.GetAttributes()))
	if e.GetMessage() != "" {
		lines = append(lines, short(e.GetMessage(), maxMessage))
	}
	add := func(key, value string) {
		if value != "" {
			lines = append(lines, key+": "+short(value, maxValue))
		}
	}
	add("requested by", e.GetRequestedBy())
	add("snapshot", e.GetSnapshotId())
	add("drill", e.GetDrillId())
	add("job", e.GetJobId())
	for _, k := range slices.Sorted(maps.Keys(e.GetAttributes())) {
		add(strings.ReplaceAll(k, "_", " "), e.GetAttributes()[k])
	}
	return cmp.Or(short(strings.Join(lines, "\n"), 2*maxMessage), "by "+e.GetActor())
}

// short cuts a text at a character's end and says so.
func short(s string, most int) string {
	if len(s) <= most {
		return s
	}
	end := most
	for end > 0 && !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end] + "…"
}

// fingerprint is the hash by which Prometheus and Alertmanager name an alert.
func fingerprint(labels map[string]string) string {
	h := fnv.New64a()
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		_, _ = h.Write([]byte(k + "\xff" + labels[k] + "\xff")) // a hash does not fail
	}
	return fmt.Sprintf("%016x", h.Sum64())
}
