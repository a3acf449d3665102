package up

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/lifeboat-fleet/lifeboat/fleet/service"
)

// Command is `lifeboat up`.
func Command() *cobra.Command {
	var o Options
	var kinds, level string
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Run the whole fleet on embedded servers, with sample data, until Ctrl-C",
		Long: "up runs NATS, S3 and etcd inside this process, the real Consul, Nomad and Alertmanager when their binaries are in\n" +
			".bin/ or on PATH, a local Slack and DingTalk with a page that shows what arrives, the three services on short\n" +
			"schedules, and the status page. Everything listens on loopback. The configuration it runs with is written beside its data.",
		Example: "  lifeboat up\n  lifeboat up --kinds etcd --data /tmp/lifeboat",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := service.NewLogger(cmd.ErrOrStderr(), level)
			if err != nil {
				return &service.UsageError{Err: err}
			}
			if o.Kinds, err = ParseKinds(kinds); err != nil {
				return err
			}
			if o.Dir, err = filepath.Abs(o.Dir); err != nil {
				return fmt.Errorf("finding the folder: %w", err)
			}
			o.Logger, o.Progress = log, cmd.OutOrStdout()
			return run(cmd.Context(), o)
		},
	}
	cmd.Flags().StringVar(&o.Dir, "data", ".data/up", "`folder` for data, secrets, logs and the configuration")
	cmd.Flags().StringVar(&kinds, "kinds", strings.Join(Kinds(), ","), "targets to run, separated by commas")
	cmd.Flags().StringVar(&o.Every, "every", "@every 30s", "`schedule` of snapshots")
	cmd.Flags().StringVar(&o.DrillEvery, "drill-every", "@every 1m", "`schedule` of restore drills")
	cmd.Flags().StringVar(&o.VerifyEvery, "verify-every", "@every 2m", "`schedule` of etcd verifications")
	cmd.Flags().StringVar(&level, "log-level", "info", "debug, info, warn or error")
	return cmd
}

// ParseKinds reads a list of kinds.
func ParseKinds(list string) ([]string, error) {
	var kinds []string
	for k := range strings.FieldsFuncSeq(list, func(r rune) bool { return r == ',' || r == ' ' }) {
		if !slices.Contains(Kinds(), k) {
			return nil, &service.UsageError{Err: fmt.Errorf("--kinds: %q is not one of %s", k, strings.Join(Kinds(), ", "))}
		}
		kinds = append(kinds, k)
	}
	if len(kinds) == 0 {
		return nil, &service.UsageError{Err: errors.New("--kinds: name at least one")}
	}
	return kinds, nil
}

func run(ctx context.Context, o Options) (err error) {
	f, err := Start(ctx, o)
	defer func() { err = errors.Join(err, f.Stop()) }()
	if err != nil {
		return err
	}
	if err := f.Print(o.Progress); err != nil {
		return fmt.Errorf("printing the addresses: %w", err)
	}
	sending, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if err := f.SendSampleAlert(sending); err != nil {
		o.Logger.WarnContext(ctx, "could not send the sample alert", slog.Any("err", err))
	}
	return f.Wait(ctx)
}

// Print says where everything listens and what to try.
func (f *Fleet) Print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	row := func(a, b string) { fmt.Fprintf(w, "  %s\t%s\n", a, b) }
	fmt.Fprintln(w, "\nThe fleet is up.")
	row("status page", "http://"+f.PageAddr+"/")
	row("chat page", f.Chat.PageURL())
	row("NATS", f.NATS.URL())
	row("S3", f.S3.Endpoint+"  bucket "+f.S3.Config.Bucket)
	if f.Etcd != nil {
		row("etcd", f.Etcd.Endpoint)
	}
	if f.Consul != nil {
		row("Consul", f.Consul.Address)
	}
	if f.Nomad != nil {
		row("Nomad", f.Nomad.Address)
	}
	if f.Alertmanager != nil {
		row("Alertmanager", f.Alertmanager.URL)
	}
	row("webhook", "http://"+f.WebhookAddr+"/api/v1/alertmanager")
	for _, name := range []string{"scheduler", "backup", "notifier", "page"} {
		row(name, "http://"+f.healthAddrs[name]+"/readyz  /healthz  /metrics")
	}
	row("configuration", f.ConfigPath)
	lifeboat := os.Args[0]
	fmt.Fprintf(w, "\nAn alert has just been sent; the chat page shows it. Try, in another terminal:\n"+
		"  %[4]s status -c %[1]s\n  %[4]s snapshot list -c %[1]s\n  %[4]s drill run %[2]s -c %[1]s\n"+
		"  nats -s %[3]s pub lifeboat.job.drill.%[2]s ''\n\nCtrl-C ends it.\n\n", f.ConfigPath, f.Targets()[0], f.NATS.URL(), lifeboat)
	return w.Flush()
}
