// Package metricsdoc makes the table of all metrics, docs/metrics.md, of the registries of services that run.
package metricsdoc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/lifeboat-fleet/lifeboat/cli/internal/page"
	backup "github.com/lifeboat-fleet/lifeboat/services/backup/app"
	notifier "github.com/lifeboat-fleet/lifeboat/services/notifier/app"
	scheduler "github.com/lifeboat-fleet/lifeboat/services/scheduler/app"
)

// Prefix is what all our metrics begin with. Those of the Go runtime and the process are the client library's.
const Prefix = "lifeboat_"

// Metric is a family of series.
type Metric struct {
	Name string
	// Type is counter, gauge or histogram.
	Type string
	// Labels are the names of its labels, sorted.
	Labels []string
	// Unit is in words: "Unix seconds", "seconds", "bytes"; empty for a count.
	Unit string
	// Services have it, sorted.
	Services []string
	Help     string
}

// configuration is enough for every service to start. Nothing of it needs to be there: all of them wait.
const configuration = `nats: {url: "nats://127.0.0.1:1"}
store: {bucket: none, endpoint: "http://127.0.0.1:1", path_style: true}
targets: [{name: none, etcd: {endpoints: ["http://127.0.0.1:1"]}}]
notifier:
  listen: 127.0.0.1:0
  receivers: [{name: none, slack: {webhook_url_file: none}}]
  route: {receiver: none}
`

// All starts every service without anything behind it, and gives the metrics that they have registered. dir is a folder that it may
// write into.
func All(ctx context.Context, dir string) ([]Metric, error) {
	path := filepath.Join(dir, "lifeboat.yaml")
	if err := os.WriteFile(path, []byte(configuration), 0o600); err != nil {
		return nil, err
	}
	const addr = "127.0.0.1:0"
	log := slog.New(slog.DiscardHandler)
	type hook = func(*prometheus.Registry)
	services := map[string]func(context.Context, hook) error{
		"scheduler": func(ctx context.Context, h hook) error {
			return scheduler.Run(ctx, scheduler.Options{ConfigPath: path, HTTPAddr: addr, Logger: log, Registered: h})
		},
		"backup": func(ctx context.Context, h hook) error {
			return backup.Run(ctx, backup.Options{ConfigPath: path, HTTPAddr: addr, Logger: log, ScratchDir: filepath.Join(dir, "scratch"), Registered: h})
		},
		"notifier": func(ctx context.Context, h hook) error {
			return notifier.Run(ctx, notifier.Options{ConfigPath: path, HTTPAddr: addr, Logger: log, Registered: h})
		},
		"page": func(ctx context.Context, h hook) error {
			return page.Run(ctx, page.Options{ConfigPath: path, HTTPAddr: addr, Listen: addr, Logger: log, Registered: h})
		},
	}
	all := map[string]*Metric{}
	for _, name := range []string{"scheduler", "backup", "notifier", "page"} {
		registry, err := started(ctx, services[name])
		if err != nil {
			return nil, fmt.Errorf("starting the %s: %w", name, err)
		}
		if err := merge(all, name, registry); err != nil {
			return nil, fmt.Errorf("reading the metrics of the %s: %w", name, err)
		}
	}
	out := make([]Metric, 0, len(all))
	for _, m := range all {
		slices.Sort(m.Services)
		out = append(out, *m)
	}
	slices.SortFunc(out, func(a, b Metric) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}

// started runs a service until it has registered its metrics.
func started(ctx context.Context, run func(context.Context, func(*prometheus.Registry)) error) (*prometheus.Registry, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	got := make(chan *prometheus.Registry, 1)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return run(ctx, func(r *prometheus.Registry) { got <- r }) })
	select {
	case r := <-got:
		cancel()
		return r, g.Wait()
	case <-ctx.Done():
		return nil, cmp.Or(g.Wait(), errors.New("it ended before it had registered its metrics"))
	}
}

// merge adds what a registry describes.
func merge(all map[string]*Metric, service string, registry *prometheus.Registry) error {
	described := make(chan *prometheus.Desc)
	go func() {
		defer close(described)
		registry.Describe(described)
	}()
	var descs []*prometheus.Desc
	for d := range described { // all of them first: meanwhile the registry is locked, which is asked below
		descs = append(descs, d)
	}
	var failed error
	for _, d := range descs {
		m, err := describe(registry, d)
		if err != nil {
			failed = cmp.Or(failed, err)
			continue
		}
		if !strings.HasPrefix(m.Name, Prefix) {
			continue
		}
		have := all[m.Name]
		switch {
		case have == nil:
			all[m.Name] = &m
			have = &m
		case have.Type != m.Type || have.Help != m.Help || !slices.Equal(have.Labels, m.Labels):
			failed = cmp.Or(failed, fmt.Errorf("%s means different things in %s and %s", m.Name, have.Services, service))
		}
		have.Services = append(have.Services, service)
	}
	return failed
}

// A description tells what it says only as text (client_golang, prometheus/desc.go).
var text = regexp.MustCompile(`^Desc\{fqName: ("(?:[^"\\]|\\.)*"), help: ("(?:[^"\\]|\\.)*"), (?:unit: "[^"]*", )?constLabels: \{(.*)\}, variableLabels: \{(.*)\}\}$`)

func describe(registry *prometheus.Registry, d *prometheus.Desc) (m Metric, err error) {
	parts := text.FindStringSubmatch(d.String())
	if parts == nil {
		return m, fmt.Errorf("a description that is not understood: %s", d)
	}
	if m.Name, err = strconv.Unquote(parts[1]); err != nil {
		return m, fmt.Errorf("reading the name in %s: %w", d, err)
	}
	if m.Help, err = strconv.Unquote(parts[2]); err != nil {
		return m, fmt.Errorf("reading the help in %s: %w", d, err)
	}
	for label := range strings.SplitSeq(parts[3]+","+parts[4], ",") {
		name, _, _ := strings.Cut(label, "=")
		if name = strings.TrimSpace(name); name != "" {
			m.Labels = append(m.Labels, name)
		}
	}
	slices.Sort(m.Labels)
	m.Type, m.Unit = kind(registry, d), unit(m.Name)
	return m, nil
}

// probe describes what is registered already, so that the registry tells what has it.
type probe struct{ *prometheus.Desc }

func (p probe) Describe(out chan<- *prometheus.Desc) { out <- p.Desc }
func (probe) Collect(chan<- prometheus.Metric)       {}

// kind is the type of a metric, which its description does not tell. Ours that are made when they are asked for are all gauges; the
// test of a fleet holds that against what is scraped.
func kind(registry *prometheus.Registry, d *prometheus.Desc) string {
	there, ok := errors.AsType[prometheus.AlreadyRegisteredError](registry.Register(probe{d}))
	if !ok {
		return "gauge"
	}
	switch there.ExistingCollector.(type) {
	case *prometheus.CounterVec:
		return "counter"
	case *prometheus.HistogramVec, prometheus.Histogram:
		return "histogram"
	case *prometheus.GaugeVec, prometheus.Gauge:
		return "gauge"
	case prometheus.Counter: // which every gauge is as well
		return "counter"
	}
	return "gauge"
}

// unit follows from the name (https://prometheus.io/docs/practices/naming/).
func unit(name string) string {
	name = strings.TrimSuffix(name, "_total")
	switch {
	case strings.HasSuffix(name, "_timestamp_seconds"):
		return "Unix seconds"
	case strings.HasSuffix(name, "_seconds"):
		return "seconds"
	case strings.HasSuffix(name, "_bytes_per_second"):
		return "bytes per second"
	case strings.HasSuffix(name, "_bytes"):
		return "bytes"
	}
	return ""
}

const heading = `# Metrics

Made by ` + "`make metrics`" + ` from what the services register; a test fails when it is not up to date. Each service has its metrics at
` + "`/metrics`" + ` of its ` + "`--http-addr`" + ` (scheduler 127.0.0.1:9096, notifier 127.0.0.1:9097, backup 127.0.0.1:9098, page 127.0.0.1:9088), with those of the Go runtime
(` + "`go_`" + `) and the process (` + "`process_`" + `).

- Every scheduler says the same of targets, schedules and waiting jobs, whichever of them did the work, and right after its start: they
  read it from NATS. Of several take ` + "`max without (instance)`" + `. All others are about one process, and begin anew with it.
- A timestamp is absent until there is one; it is never 0, unless its meaning says so.
- A counter with labels is absent until it has counted.

| Name | Type | Labels | Unit | Service | Meaning |
|---|---|---|---|---|---|
`

// Table is the document, in Markdown.
func Table(all []Metric) []byte {
	var b strings.Builder
	b.WriteString(heading)
	for _, m := range all {
		labels := make([]string, 0, len(m.Labels))
		for _, l := range m.Labels {
			labels = append(labels, "`"+l+"`")
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s | %s |\n", m.Name, m.Type, cmp.Or(strings.Join(labels, ", "), "-"),
			cmp.Or(m.Unit, "-"), strings.Join(m.Services, ", "), strings.ReplaceAll(m.Help, "|", "\\|"))
	}
	return []byte(b.String())
}
