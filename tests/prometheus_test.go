package tests

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
)

// observed is a fleet with a Prometheus that scrapes it and has the rules of deploy/prometheus, with seconds for minutes.
type observed struct {
	*fleet
	address string
}

// observe starts two of each service and a Prometheus.
func observe(t *testing.T) *observed {
	t.Helper()
	f := start(t)
	f.edit("    timeout: 5m\n", "    timeout: 5m\n    schedule: \"@hourly\"\n    rpo: 1h\n    drill: {schedule: \"@daily\"}\n    verify: {schedule: \"@daily\"}\n")
	ports, err := bintest.FreePorts(8)
	require.NoError(t, err)
	scrapes := "global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}\nscrape_configs:\n"
	for i, name := range []string{"scheduler", "backup", "notifier"} {
		addresses := []string{fmt.Sprintf("127.0.0.1:%d", ports[2*i]), fmt.Sprintf("127.0.0.1:%d", ports[2*i+1])}
		scrapes += fmt.Sprintf("  - {job_name: lifeboat-%s, static_configs: [{targets: [%q, %q]}]}\n", name, addresses[0], addresses[1])
		for j, address := range addresses {
			args := []string{name, "--config", f.config, "--http-addr", address}
			if name == "notifier" {
				args = append(args, "--listen", fmt.Sprintf("127.0.0.1:%d", ports[6+j]))
			}
			p, err := bintest.Start(binary, f.path(fmt.Sprintf("%s-%d.log", name, j)), nil, args...)
			require.NoError(t, err)
			t.Cleanup(func() { assert.NoError(t, p.Stop()) })
		}
	}
	scrapes += "rule_files:\n"
	for _, name := range []string{"lifeboat.recording.yml", "lifeboat.rules.yml"} {
		b, err := os.ReadFile(filepath.Join(os.Getenv("PWD"), "../deploy/prometheus", name))
		require.NoError(t, err)
		scrapes += "  - " + f.write(name, strings.ReplaceAll(string(b), "interval: 1m", "interval: 1s")) + "\n"
	}
	return &observed{fleet: f, address: startPrometheus(t, f.path("prometheus"), f.write("prometheus.yml", scrapes))}
}

func startPrometheus(t *testing.T, dir, config string) (address string) {
	t.Helper()
	bin, err := bintest.Find("prometheus")
	require.NoError(t, err, "tools/prometheus gets it: it unpacks Debian's package and starts nothing; or put one on the PATH")
	ports, err := bintest.FreePorts(1)
	require.NoError(t, err)
	address = fmt.Sprintf("127.0.0.1:%d", ports[0])
	p, err := bintest.Start(bin, dir+".log", nil, "--config.file="+config, "--storage.tsdb.path="+dir, "--web.listen-address="+address)
	require.NoError(t, err)
	t.Cleanup(func() {
		assert.NoError(t, p.Stop())
		if t.Failed() {
			b, err := os.ReadFile(dir + ".log")
			t.Logf("%v\n%s", err, b)
		}
	})
	return address
}

// ask asks Prometheus' API.
func (o *observed) ask(path string, into any) error {
	req, err := http.NewRequestWithContext(o.t.Context(), http.MethodGet, "http://"+o.address+"/api/v1/"+path, http.NoBody)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	var answer struct {
		Status, Error string
		Data          json.RawMessage
	}
	if err := json.Unmarshal(b, &answer); err != nil {
		return err
	}
	if answer.Status != "success" {
		return fmt.Errorf("%s: %s", path, answer.Error)
	}
	return json.Unmarshal(answer.Data, into)
}

// samples of an expression, as text by their labels.
func (o *observed) samples(expr string) (map[string]string, error) {
	var data struct {
		Result []struct {
			Metric map[string]string
			Value  [2]any
		}
	}
	if err := o.ask("query?query="+url.QueryEscape(expr), &data); err != nil {
		return nil, err
	}
	all := map[string]string{}
	for _, r := range data.Result {
		delete(r.Metric, "__name__")
		all[fmt.Sprint(r.Metric)] = fmt.Sprint(r.Value[1])
	}
	return all, nil
}

// Rules and dashboard hold with what a fleet of two of each really exports: that no join finds two partners is seen only there.
func TestPrometheusSeesAFleet(t *testing.T) {
	t.Parallel()
	o := observe(t)
	o.publish("lifeboat.job.snapshot.etcd-prod")
	o.event("lifeboat.event.snapshot.committed.etcd-prod")
	o.publish("lifeboat.job.drill.etcd-prod")
	o.event("lifeboat.event.drill.passed.etcd-prod")
	for expr, want := range map[string]string{
		`sum(up{job=~"lifeboat-.+"})`:                                      "6",
		`target:lifeboat_rpo_seconds:max{target="etcd-prod"}`:              "3600",
		`target:lifeboat_rpo_used:ratio < bool 0.5`:                        "1",
		`time() - target:lifeboat_proven_timestamp_seconds:max < bool 600`: "1",
		`target:lifeboat_proven_limit_seconds:max`:                         fmt.Sprint(2*24*3600 + 3600),
		`target_work:lifeboat_success_limit_seconds:max{work="snapshot"}`:  fmt.Sprint(2*3600 + 3600),
		`count(target_work:lifeboat_last_success_timestamp_seconds:max)`:   "2",
		`lifeboat:jobs_wait_limit_seconds`:                                 "900",
		`ALERTS{alertname="LifeboatWatchdog", alertstate="firing"}`:        "1",
	} {
		var got map[string]string
		require.Eventually(t, func() bool {
			var err error
			if got, err = o.samples(expr); err != nil || len(got) != 1 {
				return false
			}
			for _, v := range got {
				return v == want
			}
			return false
		}, 60*time.Second, 200*time.Millisecond, "%s: want %s, have %v", expr, want, got)
	}
	o.rulesAreHealthy(t)
	o.dashboardIsAnswered(t)
}

func (o *observed) rulesAreHealthy(t *testing.T) {
	t.Helper()
	var data struct {
		Groups []struct {
			Rules []struct{ Name, Health, LastError string }
		}
	}
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		require.NoError(c, o.ask("rules", &data))
		n := 0
		for _, g := range data.Groups {
			for _, r := range g.Rules {
				n++
				assert.Equal(c, "ok", r.Health, "%s: %s", r.Name, r.LastError)
			}
		}
		assert.Greater(c, n, 40)
	}, time.Minute, 200*time.Millisecond)
	// A fleet that is well has no alerts but those about what this one really lacks: it has one NATS server, without sync. What was
	// pending before the first scrape ends with the next evaluation.
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		got, err := o.samples(`count by (alertname) (ALERTS{alertname!~"LifeboatWatchdog|LifeboatNATSNotDurable"})`)
		require.NoError(c, err)
		assert.Empty(c, got)
	}, time.Minute, 200*time.Millisecond)
}

// Every query of the dashboard is answered, and the first row has one number in each panel.
func (o *observed) dashboardIsAnswered(t *testing.T) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(os.Getenv("PWD"), "../deploy/grafana/dashboards/lifeboat.json"))
	require.NoError(t, err)
	var d struct {
		Panels []struct {
			Title   string
			GridPos struct{ Y int }
			Targets []struct{ Expr string }
		}
	}
	require.NoError(t, json.Unmarshal(b, &d))
	variables := strings.NewReplacer("$__rate_interval", "1m", "$target", ".*")
	for _, p := range d.Panels {
		for _, q := range p.Targets {
			expr := variables.Replace(q.Expr)
			got, err := o.samples(expr)
			require.NoError(t, err, p.Title)
			if p.GridPos.Y == 0 {
				assert.Len(t, got, 1, "%s: %v", p.Title, got)
			}
			// What a fleet that is well has nothing of: failures, and what fires.
			if !regexp.MustCompile(`failing|failed|ALERTS|alerts_firing|delivery_lag|deliveries_total`).MatchString(expr) {
				require.Eventually(t, func() bool { // a rate needs two scrapes
					got, err = o.samples(expr)
					return err == nil && len(got) > 0
				}, time.Minute, 200*time.Millisecond, "%s: %s", p.Title, expr)
			}
		}
	}
}
