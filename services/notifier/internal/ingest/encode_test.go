package ingest

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// missing names the fields that a message does not have, so that one that was added to the contract and not to the encoder shows.
func missing(m proto.Message) (names []string) {
	r := m.ProtoReflect()
	for i := range r.Descriptor().Fields().Len() {
		if f := r.Descriptor().Fields().Get(i); !r.Has(f) {
			names = append(names, f.TextName())
		}
	}
	return names
}

func full(word string) *lifeboatv1.Notification {
	m := map[string]string{"a" + word: word, "b": "", "": word}
	at := timestamppb.New(time.Date(2026, 11, 21, 4, 0, 0, 120_000_000, time.UTC))
	alert := &lifeboatv1.Alert{
		Status: word, Labels: m, Annotations: m, StartsAt: at, EndsAt: timestamppb.New(time.Date(9999, 12, 31, 23, 59, 59, 1, time.UTC)),
		GeneratorUrl: word, Fingerprint: word,
	}
	return &lifeboatv1.Notification{
		Id: word, ReceivedAt: at, Origin: word, GroupKey: word, Receiver: word, GroupLabels: m, CommonLabels: m, CommonAnnotations: m,
		ExternalUrl: word, TruncatedAlerts: 1 << 60, Alerts: []*lifeboatv1.Alert{alert, alert}, Part: 2, Parts: 3, RouteLabels: m,
		NotificationReason: word, Status: word,
	}
}

// noteOf is the note that ought to be written as n.
func noteOf(n *lifeboatv1.Notification) *note {
	out := &note{
		id: n.GetId(), receivedAt: n.GetReceivedAt().AsTime(), origin: n.GetOrigin(), groupKey: n.GetGroupKey(), receiver: n.GetReceiver(),
		groupLabels: textsOf(n.GetGroupLabels()), commonLabels: textsOf(n.GetCommonLabels()), commonAnnotations: textsOf(n.GetCommonAnnotations()),
		externalURL: n.GetExternalUrl(), truncatedAlerts: n.GetTruncatedAlerts(), part: int(n.GetPart()), parts: int(n.GetParts()),
		routeLabels: textsOf(n.GetRouteLabels()), notificationReason: n.GetNotificationReason(), status: n.GetStatus(),
	}
	for _, a := range n.GetAlerts() {
		out.alerts = append(out.alerts, item{
			status: a.GetStatus(), labels: textsOf(a.GetLabels()), annotations: textsOf(a.GetAnnotations()), startsAt: a.GetStartsAt().AsTime(),
			endsAt: a.GetEndsAt().AsTime(), generatorURL: a.GetGeneratorUrl(), fingerprint: a.GetFingerprint(),
		})
	}
	return out
}

func TestWhatIsWrittenIsWhatProtoJSONReads(t *testing.T) {
	t.Parallel()
	for _, word := range []string{"plain", "<>&\u2028\"\\\n\x00\x7f", "日本語 🚨 \ufffd", "{}[]:,"} {
		want := full(word)
		assert.Equal(t, []string{"only_receiver"}, missing(want), "of the contract only what no webhook sets may be missing")
		assert.Empty(t, missing(want.GetAlerts()[0]))
		n := noteOf(want)
		written, _ := n.write()
		got := &lifeboatv1.Notification{}
		require.NoError(t, protojson.Unmarshal(n.append(nil, written[:len(written)-1]), got))
		assert.Empty(t, mismatch(want, got), "%q", word)
	}
}

// Bytes of a webhook go into the message as they are, so they must be read there as they would have been here.
func TestLabelsThatAreTakenAsTheyAreAreReadTheSame(t *testing.T) {
	t.Parallel()
	for labels, want := range map[string]map[string]string{
		`{}`: nil, ` { } `: nil, `null`: nil,
		`{"a":"b"}`: {"a": "b"}, " {\n\"a\" :\t\"b\" , \"c\":\"\"} ": {"a": "b", "c": ""},
		`{"\u0061\n":"\ud83d\udea8\u0000<&>"}`: {"a\n": "🚨\x00<&>"},
		`{"a":"\"","b\\":"}","c":"\\\""}`:      {"a": `"`, `b\`: "}", "c": `\"`},
		// What is not strict is mended.
		`{"a":"1","a":"2"}`: {"a": "2"}, `{"a":"\ud800"}`: {"a": "\ufffd"}, "{\"a\":\"\xff\"}": {"a": "\ufffd"}, `{"a":null}`: {"a": ""},
	} {
		n, err := Parse(fmt.Appendf(nil, `{"version":"4","commonLabels":%s,"alerts":[{"status":"firing","labels":%s,"annotations":%s}]}`,
			labels, labels, labels))
		require.NoError(t, err, labels)
		for _, got := range []map[string]string{n.GetCommonLabels(), n.GetAlerts()[0].GetLabels(), n.GetAlerts()[0].GetAnnotations()} {
			assert.True(t, maps.Equal(want, got), "%s: %q", labels, got)
		}
		assert.Equal(t, fingerprint(want), n.GetAlerts()[0].GetFingerprint(), labels)
	}
	for _, labels := range []string{`{"a":1}`, `{"a":{"b":"c"}}`, `["a"]`, `"a"`, `7`, `true`, `{"a":["b"]}`, `{"a":"b","c":false}`} {
		_, err := Parse(fmt.Appendf(nil, `{"version":"4","alerts":[{"status":"firing","labels":%s}]}`, labels))
		require.ErrorContains(t, err, "alerts/0/labels", labels)
	}
}

func FuzzPlain(f *testing.F) {
	for _, s := range []string{`{}`, `{"a":"b","c":"\""}`, `{"a":{"b":"c"}}`, `null`, `[]`, `{"a":1}`, "\n{ \"\" : \"\\\\\" } "} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if !json.Valid([]byte(s)) || strings.Contains(s, "null") {
			return
		}
		var m map[string]string
		require.Equal(t, json.Unmarshal([]byte(s), &m) == nil, plain(texts(s)), "%q", s)
	})
}

func mismatch(a, b proto.Message) string {
	if proto.Equal(a, b) {
		return ""
	}
	return fmt.Sprintf("%v\nis not\n%v", a, b)
}

func TestUnquoteIsTheInverseOfAlertmanagersQuoting(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"", "team", "team.x", `team\x`, `a\.b`, `\`, `\\`, "a|b(c)*", "日本.語", `ends\`, "a-b_c/d:e", `[]{}^$+?`} {
		assert.Equal(t, name, unquote(regexp.QuoteMeta(name)), name)
	}
	assert.Equal(t, `C:\temp`, unquote(`C:\temp`), "a backslash that quotes nothing belongs to the name")
}
