package app

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/console"
	"github.com/lifeboat-fleet/lifeboat/fleet/service"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/ingest"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/render"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/route"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/runbook"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/silence"
)

// testFlags are those of `lifeboat notify test`.
type testFlags struct {
	config, receiver, webhook string
	labels, annotations       []string
	resolved, dryRun          bool
	timeout                   time.Duration
}

// testCommand is `lifeboat notify test`.
func testCommand() *cobra.Command {
	var f testFlags
	cmd := &cobra.Command{
		Use: "test --receiver NAME", Short: "Send a receiver a message, or only show what it would be sent",
		Long: "test hands the notifier an alert for one receiver, past the routes, and waits until the chat has taken it or refused it: the whole\n" +
			"way but the webhook. The running notifier sends it, with its own secrets.\n\n" +
			"With --dry-run nothing is sent: the message is made here and its JSON is printed, to preview templates, a language, a time zone.\n" +
			"No secret is read, and its links to silence do not work. Only a runbook's link is looked up, if runbooks.check_links says so.",
		Example: "  lifeboat notify test --receiver ops-slack\n" +
			"  lifeboat notify test --receiver ops-dingtalk --dry-run --label alertname=EtcdNoLeader --label severity=critical\n" +
			"  lifeboat notify test --receiver ops-slack --dry-run --annotation summary='no leader for 3 minutes' --resolved\n" +
			"  lifeboat notify test --receiver ops-slack --dry-run --webhook recorded.json   # what Alertmanager posted",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	console.AddConfig(cmd, &f.config)
	cmd.Flags().StringVar(&f.receiver, "receiver", "", "the receiver's `name`")
	cmd.Flags().StringArrayVarP(&f.labels, "label", "l", nil, "a label of the alert, `key=value`; may be repeated")
	cmd.Flags().StringArrayVarP(&f.annotations, "annotation", "a", nil, "an annotation of the alert, `key=value`; may be repeated")
	cmd.Flags().BoolVar(&f.resolved, "resolved", false, "an alert that has ended")
	cmd.Flags().StringVar(&f.webhook, "webhook", "", "a `file` with a webhook as Alertmanager posts it, instead of an alert made here")
	cmd.Flags().BoolVar(&f.dryRun, "dry-run", false, "show the message and send nothing")
	cmd.Flags().DurationVar(&f.timeout, "timeout", time.Minute, "how long to wait for the chat")
	cobra.CheckErr(cmd.MarkFlagRequired("receiver"))
	cobra.CheckErr(cmd.RegisterFlagCompletionFunc("receiver", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return receiverNames(f.config), cobra.ShellCompDirectiveNoFileComp
	}))
	console.CompleteFlag(cmd, "label", "alertname=", "severity=critical", "severity=warning")
	console.CompleteFlag(cmd, "annotation", "summary=", "description=", "runbook_url=")
	return cmd
}

func receiverNames(file string) []string {
	cfg, err := config.Load(file)
	if err != nil {
		return nil
	}
	var names []string
	for _, r := range cfg.Notifier.Receivers {
		names = append(names, r.Name)
	}
	return names
}

func (f *testFlags) run(cmd *cobra.Command) error {
	cfg, err := config.Load(f.config)
	if err != nil {
		return &service.UsageError{Err: err}
	}
	i := slices.IndexFunc(cfg.Notifier.Receivers, func(r config.Receiver) bool { return r.Name == f.receiver })
	if i < 0 {
		return console.Usagef("%s has no receiver %q; it has %s", f.config, f.receiver, console.OrDash(strings.Join(receiverNames(f.config), ", ")))
	}
	if f.timeout <= 0 {
		return console.Usagef("--timeout: %s is no time to wait", f.timeout)
	}
	n, err := f.notification(time.Now())
	if err != nil {
		return err
	}
	if f.dryRun {
		n.Origin = "alertmanager" // a test has nothing to silence, and it is a real alert that is previewed
		return preview(cmd.Context(), cmd.OutOrStdout(), cfg, cfg.Notifier.Receivers[i], n)
	}
	return f.send(cmd, cfg, n)
}

// notification is the alert that the flags describe.
func (f *testFlags) notification(now time.Time) (*lifeboatv1.Notification, error) {
	id := "test-" + ulid.Make().String()
	if f.webhook != "" {
		if len(f.labels)+len(f.annotations) > 0 || f.resolved {
			return nil, console.Usagef("--webhook has its own labels, annotations and states")
		}
		data, err := os.ReadFile(f.webhook)
		if err != nil {
			return nil, &service.UsageError{Err: fmt.Errorf("reading a webhook: %w", err)}
		}
		n, err := ingest.Parse(data)
		if err != nil {
			return nil, &service.UsageError{Err: fmt.Errorf("%s: %w", f.webhook, err)}
		}
		n.Id, n.Origin, n.OnlyReceiver, n.ReceivedAt = id, "test", f.receiver, timestamppb.New(now)
		n.GroupKey += "/" + id
		return n, nil
	}
	labels := map[string]string{"alertname": "LifeboatTest", "severity": "info", "service": "lifeboat"}
	given, err := route.ParseLabels(f.labels)
	if err != nil {
		return nil, &service.UsageError{Err: fmt.Errorf("--label: %w", err)}
	}
	maps.Copy(labels, given)
	annotations := map[string]string{
		"summary": "A test of receiver " + f.receiver, "description": "Sent by " + console.Whoami() + " with lifeboat notify test. Nothing is wrong.",
	}
	given, err = route.ParseLabels(f.annotations)
	if err != nil {
		return nil, &service.UsageError{Err: fmt.Errorf("--annotation: %w", err)}
	}
	maps.Copy(annotations, given)
	a := &lifeboatv1.Alert{Status: "firing", Labels: labels, Annotations: annotations, StartsAt: timestamppb.New(now), Fingerprint: id}
	if f.resolved {
		a.Status, a.StartsAt, a.EndsAt = "resolved", timestamppb.New(now.Add(-10*time.Minute)), timestamppb.New(now)
	}
	return &lifeboatv1.Notification{
		Id: id, ReceivedAt: timestamppb.New(now), Origin: "test", GroupKey: id, Receiver: "lifeboat", GroupLabels: labels, CommonLabels: labels,
		CommonAnnotations: annotations, Alerts: []*lifeboatv1.Alert{a}, Part: 1, Parts: 1, OnlyReceiver: f.receiver,
	}, nil
}

// preview makes the message as the notifier would, and prints it.
func preview(ctx context.Context, out io.Writer, cfg *config.Config, r config.Receiver, n *lifeboatv1.Notification) (err error) {
	renderer, err := render.New(cfg.Notifier)
	if err != nil {
		return &service.UsageError{Err: err}
	}
	tree, err := route.Compile(cfg.Notifier)
	if err != nil {
		return &service.UsageError{Err: err}
	}
	log := slog.New(slog.DiscardHandler)
	pages := runbook.New(runbook.Options{Logger: log, Registerer: prometheus.NewRegistry(), Now: time.Now})
	defer pages.Close()
	links, forget, err := previewLinks(cfg, notice.In(r.Language))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, forget()) }()
	in := cfg.Notifier.Interactions
	message, err := renderer.Message(render.Input{
		Receiver: r, Delivery: deliveryTo(r.Name, tree, n), Now: time.Now(),
		Mention: slices.ContainsFunc(n.GetAlerts(), func(a *lifeboatv1.Alert) bool { return a.GetStatus() == "firing" }),
		Page: func(a *lifeboatv1.Alert) render.Page {
			p := pages.Page(ctx, cfg.Notifier.Runbooks, a.GetLabels()["alertname"], a.GetAnnotations())
			return render.Page{Found: p.Found, Link: p.Link, Dead: p.Dead, Steps: p.Steps}
		},
		Links: links, Buttons: r.Slack != nil && (in.SlackSigningSecretFile != "" || in.SlackAppTokenFile != ""),
	})
	if err != nil {
		return err
	}
	sender := previewSender(r, out)
	for _, part := range sender.Split(message) {
		if _, err := sender.Send(ctx, part, notice.Ref{}, func(context.Context, notice.Call) error { return nil }); err != nil {
			return err
		}
	}
	return nil
}

// deliveryTo is what the receiver would get, with the mentions of the routes that lead to it.
func deliveryTo(receiver string, tree *route.Tree, n *lifeboatv1.Notification) *lifeboatv1.Delivery {
	d := &lifeboatv1.Delivery{Id: n.GetId(), Receiver: receiver, Notification: n, Route: "{}"}
	for _, a := range n.GetAlerts() {
		for _, h := range tree.Match(a.GetLabels()) {
			if h.Receiver != receiver || a.GetStatus() != "firing" {
				continue
			}
			d.Route = h.Route
			for _, who := range h.MentionsFor(a.GetLabels()["severity"]) {
				if !slices.Contains(d.GetMentions(), who) {
					d.Mentions = append(d.Mentions, who)
				}
			}
			break // the first route that leads to it
		}
	}
	return d
}

// previewLinks makes links that look like the real ones and are signed with a secret that is forgotten at once: the real one is not
// here as a rule, and a link that works would not belong into a terminal.
func previewLinks(cfg *config.Config, words notice.Words) (links func(map[string]string, string) []notice.Link, forget func() error, err error) {
	if cfg.Notifier.Interactions.LinkSecretFile == "" {
		return nil, func() error { return nil }, nil
	}
	dir, err := os.MkdirTemp("", "lifeboat-preview-")
	if err != nil {
		return nil, nil, fmt.Errorf("making a secret for the preview's links: %w", err)
	}
	forget = func() error { return os.RemoveAll(dir) }
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, []byte(rand.Text()+rand.Text()), 0o600); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("making a secret for the preview's links: %w", err), forget())
	}
	in := cfg.Notifier.Interactions
	in.LinkSecretFile = config.SecretFile(secret)
	silencer := silence.New(silence.Options{
		Config: func() *config.Config { return cfg }, Emit: func(context.Context, *lifeboatv1.Event) error { return nil },
		Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(), Now: time.Now,
	})
	return func(matchers map[string]string, comment string) []notice.Link {
		return silencer.Links(in, words, matchers, comment)
	}, forget, nil
}

// send hands it to the notifier and waits for how it ends.
func (f *testFlags) send(cmd *cobra.Command, cfg *config.Config, n *lifeboatv1.Notification) (err error) {
	ctx, cancel := context.WithTimeout(cmd.Context(), f.timeout)
	defer cancel()
	b, err := bus.Connect(bus.Options{
		Config: cfg.NATS, Actor: service.Instance("lifeboat-cli"), Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
	})
	if err != nil {
		return &service.UsageError{Err: err}
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	if err := b.Reach(cmd.Context()); err != nil {
		return fmt.Errorf("%w (see nats.url in %s)", err, f.config)
	}
	ends, failed := make(chan *lifeboatv1.Event), make(chan error, 1)
	caughtUp := make(chan struct{})
	following, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	defer func() { stop(); <-done }()
	go func() {
		defer close(done)
		failed <- b.Follow(following, bus.Follower{
			Stream: bus.StreamEvents, CaughtUp: func() { close(caughtUp) },
			Filters: []string{"lifeboat.event.alert.delivered.*", "lifeboat.event.alert.dead.*", "lifeboat.event.alert.handed-on.*", "lifeboat.event.alert.folded.*"},
			Message: func(_ context.Context, m *bus.Message) {
				e := &lifeboatv1.Event{}
				if bus.Decode(m.Data, e) != nil {
					return
				}
				select {
				case ends <- e:
				case <-following.Done():
				}
			},
		})
	}()
	// The delivery's id begins with the name of the message that it was made of, which ends with its sequence.
	mark := ""
	for {
		select {
		case <-caughtUp:
			caughtUp = nil
			seq, err := b.Publish(ctx, bus.Outgoing{Subject: bus.SubjectReceived, Message: n, ID: n.GetId()})
			if err != nil {
				return fmt.Errorf("handing the notifier a test: %w", err)
			}
			mark = fmt.Sprintf("-%d.%s", seq, f.receiver)
		case e := <-ends:
			if mark == "" || !strings.Contains(e.GetAttributes()["delivery_id"], mark) {
				continue
			}
			return f.tell(cmd, e)
		case err := <-failed:
			if err != nil {
				return err
			}
			failed = nil // it ends well only when the time is over
		case <-ctx.Done():
			if err := cmd.Context().Err(); err != nil {
				return fmt.Errorf("waiting until %s is told: %w; the message is on its way all the same", f.receiver, err)
			}
			return fmt.Errorf("%s was not told within %s: is a notifier running, and does its chat answer? "+
				"The message stays in the queue until it does; see lifeboat notify deliveries --receiver %s -c %s", f.receiver, f.timeout, f.receiver, f.config)
		}
	}
}

func (f *testFlags) tell(cmd *cobra.Command, e *lifeboatv1.Event) error {
	if e.GetVerb() != "delivered" {
		return fmt.Errorf("%s was not told: %s", f.receiver, e.GetMessage())
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s was told after %s s\n", e.GetAttributes()["receiver"], e.GetAttributes()["lag_seconds"])
	return err
}
