package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/chattest"
	"github.com/lifeboat-fleet/lifeboat/tests/bench/internal/testbed"
)

// A step of a benchmark that takes longer than this will not end.
const patience = 10 * time.Minute

// bench measures on a test bed.
type bench struct {
	*testbed.Bed
	options
	// made is how many webhooks were made: each has alerts of its own.
	made atomic.Int64
}

// notifier is one that runs as a process, and its chats.
type notifier struct {
	*bintest.Process
	chat         *chattest.Server
	hook, health string
	log          string
	client       *http.Client
}

// Receivers without limits, and with those of the real chats.
const (
	free = `
  receivers: [{name: ops-slack, slack: {webhook_url_file: slack-url}, limit: {messages: -1}}]
  route: {receiver: ops-slack}
`
	limited = `
  receivers:
    - {name: ops-slack, slack: {webhook_url_file: slack-url}}
    - {name: ops-dingtalk, dingtalk: {webhook_url_file: dingtalk-url, secret_file: dingtalk-secret}}
  route:
    receiver: ops-slack
    routes: [{receiver: ops-slack, continue: true}, {receiver: ops-dingtalk}]
`
)

// start runs a notifier on fresh streams.
func (b *bench) start(ctx context.Context, settings string, o chattest.Options) (_ *notifier, err error) {
	for _, name := range []string{bus.StreamJobs, bus.StreamEvents, bus.StreamAlerts, bus.StreamDead} {
		if err = b.JetStream.DeleteStream(ctx, name); err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
			return nil, fmt.Errorf("deleting stream %s: %w", name, err)
		}
	}
	chat, err := chattest.Start(o) //nolint:contextcheck // it lives until stop
	if err != nil {
		return nil, err
	}
	n := &notifier{chat: chat, log: b.Path("notifier.log"), client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}}
	defer func() { //nolint:contextcheck // it must end also when the context has
		if err != nil {
			n.stop()
		}
	}()
	for name, secret := range map[string]string{
		"slack-url": chat.SlackURL(), "dingtalk-url": chat.DingTalkURL(), "dingtalk-secret": chat.DingTalkSecret(),
	} {
		if err = os.WriteFile(b.Path(name), []byte(secret), 0o600); err != nil {
			return nil, err
		}
	}
	ports, err := bintest.FreePorts(2)
	if err != nil {
		return nil, err
	}
	n.hook, n.health = fmt.Sprintf("http://127.0.0.1:%d/api/v1/alertmanager", ports[0]), fmt.Sprintf("http://127.0.0.1:%d", ports[1])
	conf := fmt.Sprintf("nats: {url: %q}\nnotifier:\n  listen: 127.0.0.1:%d\n  reconcile: {interval: -1s}\n%s", b.NATS.URL, ports[0], settings)
	if err = os.WriteFile(b.Path("lifeboat.yaml"), []byte(conf), 0o600); err != nil {
		return nil, err
	}
	n.Process, err = bintest.Start(b.Binary, n.log, nil, "notifier", "--config", b.Path("lifeboat.yaml"),
		"--http-addr", fmt.Sprintf("127.0.0.1:%d", ports[1]), "--log-level", "warn")
	if err != nil {
		return nil, err
	}
	if err := n.WaitHTTP(ctx, n.health+"/readyz", func(string) bool { return true }); err != nil {
		return nil, err
	}
	return n, nil
}

func (n *notifier) stop() {
	n.client.CloseIdleConnections()
	if n.Process != nil {
		_ = n.Stop()
	}
	_ = n.chat.Stop()
}

// post sends one webhook and wants it taken.
func (n *notifier) post(ctx context.Context, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, n.hook, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := n.client.Do(req)
	if err != nil {
		return fmt.Errorf("posting a webhook: %w", err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("reading the answer to a webhook: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the webhook was answered with %s: %s", resp.Status, answer)
	}
	return nil
}

// webhook makes one, with a group and alerts that no other has. name is the alerts' name.
func (b *bench) webhook(name, severity string, alerts int) []byte {
	i := b.made.Add(1)
	starts := time.Now().UTC().Format(time.RFC3339Nano)
	var all []any
	for j := range alerts {
		all = append(all, map[string]any{
			"status": "firing",
			"labels": map[string]string{
				"alertname": name, "severity": severity, "instance": fmt.Sprintf("node-%d-%d.example.net:9100", i, j), "job": "node",
				"cluster": "bj-prod-1", "namespace": "platform", "pod": fmt.Sprintf("agent-%05d-%04d", i, j), "team": "platform",
			},
			"annotations": map[string]string{
				"summary":     fmt.Sprintf("The disk of node-%d-%d is almost full", i, j),
				"description": "Less than 5% of the space of /var is left, and at the rate of the last hour it is full within two hours. Pods are evicted then.",
			},
			"startsAt": starts, "endsAt": "0001-01-01T00:00:00Z", "fingerprint": fmt.Sprintf("%08x%08x", i, j),
			"generatorURL": "http://prometheus.example.net:9090/graph?g0.expr=node_filesystem_avail_bytes+%2F+node_filesystem_size_bytes+%3C+0.05&g0.tab=1",
		})
	}
	body, err := json.Marshal(map[string]any{
		"version": "4", "groupKey": fmt.Sprintf("{}:{alertname=%q, group=\"%d\"}", name, i), "truncatedAlerts": 0, "status": "firing", "receiver": "lifeboat",
		"groupLabels":  map[string]string{"alertname": name, "group": fmt.Sprint(i)},
		"commonLabels": map[string]string{"alertname": name, "severity": severity}, "commonAnnotations": map[string]string{},
		"externalURL": "http://alertmanager.example.net:9093", "alerts": all,
	})
	if err != nil {
		panic(err) // strings and numbers can be encoded
	}
	return body
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func quantile(d []time.Duration, q float64) time.Duration {
	d = slices.Sorted(slices.Values(d))
	return d[min(int(q*float64(len(d))), len(d)-1)]
}
