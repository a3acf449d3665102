package service

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
)

// Live is a configuration that is read again on SIGHUP and when the file changes. An invalid new file is refused and the
// old one stays in force. Settings of nats, store and listen addresses are used at start only.
type Live struct {
	path    string
	log     *slog.Logger
	current atomic.Pointer[config.Config]
	// read is the file as it was when it was loaded first.
	read []byte

	mu        sync.Mutex
	listeners []chan struct{}
	// hup is listened to from the first reading to the end of the process: a SIGHUP that nobody listens to ends it, also while it starts,
	// or finishes its work.
	hup chan os.Signal

	ok   prometheus.Gauge
	when prometheus.Gauge
	// OnReload is told the result of each reload, to emit an event: an error, or a sentence. Set it before Run. It may be
	// nil.
	OnReload func(ctx context.Context, result string, err error)
}

// LoadLive reads the file for the first time; an error there is a UsageError.
func LoadLive(path string, log *slog.Logger, reg prometheus.Registerer) (*Live, error) {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	read, err := os.ReadFile(path) // before it is loaded: a change in between is found in Run
	var cfg *config.Config
	if err == nil {
		cfg, err = config.Load(path)
	}
	if err != nil {
		signal.Stop(hup)
		return nil, &UsageError{err}
	}
	f := promauto.With(reg)
	l := &Live{
		path: path, log: log, hup: hup, read: read,
		ok: f.NewGauge(prometheus.GaugeOpts{
			Name: "lifeboat_config_last_reload_successful",
			Help: "Whether the configuration file as it stands now is in force: 0 means that it was refused.",
		}),
		when: f.NewGauge(prometheus.GaugeOpts{
			Name: "lifeboat_config_last_reload_success_timestamp_seconds",
			Help: "When the configuration in force was read.",
		}),
	}
	l.current.Store(cfg)
	l.ok.Set(1)
	l.when.SetToCurrentTime()
	return l, nil
}

// Current is the configuration in force.
func (l *Live) Current() *config.Config { return l.current.Load() }

// Changed returns a channel that gets a value after the configuration changed; several changes may be one value.
func (l *Live) Changed() <-chan struct{} {
	c := make(chan struct{}, 1)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.listeners = append(l.listeners, c)
	return c
}

// Run watches until the context ends.
func (l *Live) Run(ctx context.Context) error {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watching the configuration: %w", err)
	}
	// The folder, not the file: editors and template renderers replace the file by a rename.
	if err = watcher.Add(filepath.Dir(l.path)); err != nil {
		return fmt.Errorf("watching the folder of %s: %w", l.path, err)
	}
	last := l.read
	// Writers often make several events of one change; the file is read when they have paused. It may have changed already.
	settle := time.NewTimer(0)
	defer settle.Stop()
	for {
		select {
		case <-ctx.Done():
			return watcher.Close()
		case <-l.hup:
			settle.Reset(0)
			last = nil
		case err := <-watcher.Errors:
			l.log.WarnContext(ctx, "watching the configuration", slog.Any("err", err))
		case <-watcher.Events:
			settle.Reset(100 * time.Millisecond)
		case <-settle.C:
			now, err := os.ReadFile(l.path)
			if err == nil && last != nil && string(now) == string(last) {
				continue
			}
			last = now
			l.reload(ctx)
		}
	}
}

func (l *Live) reload(ctx context.Context) {
	cfg, err := config.Load(l.path)
	result := "the new configuration is in force"
	if err != nil {
		l.ok.Set(0)
		l.log.ErrorContext(ctx, "the new configuration is refused; the old one stays in force", slog.String("err", config.Places(err)))
	} else {
		if fixed := needsRestart(l.current.Load(), cfg); len(fixed) > 0 {
			result += ", but for what is used at start only and needs a restart: " + strings.Join(fixed, ", ")
		}
		l.current.Store(cfg)
		l.ok.Set(1)
		l.when.SetToCurrentTime()
		l.log.InfoContext(ctx, "reloaded", slog.String("file", l.path), slog.String("result", result))
		l.mu.Lock()
		for _, c := range l.listeners {
			select {
			case c <- struct{}{}:
			default:
			}
		}
		l.mu.Unlock()
	}
	if l.OnReload != nil {
		l.OnReload(ctx, result, err)
	}
}

// needsRestart names the changed settings that a running service does not take up.
func needsRestart(old, now *config.Config) []string {
	var names []string
	if !reflect.DeepEqual(old.NATS, now.NATS) {
		names = append(names, "nats")
	}
	if !reflect.DeepEqual(old.Store, now.Store) {
		names = append(names, "store")
	}
	for key, changed := range map[string]bool{
		"page.listen":                                old.Page.Listen != now.Page.Listen,
		"page.web_config_file":                       old.Page.WebConfigFile != now.Page.WebConfigFile,
		"notifier.listen":                            old.Notifier.Listen != now.Notifier.Listen,
		"notifier.web_config_file":                   old.Notifier.WebConfigFile != now.Notifier.WebConfigFile,
		"notifier.bearer_tokens_file":                old.Notifier.BearerTokensFile != now.Notifier.BearerTokensFile,
		"notifier.interactions.listen":               old.Notifier.Interactions.Listen != now.Notifier.Interactions.Listen,
		"notifier.interactions.web_config_file":      old.Notifier.Interactions.WebConfigFile != now.Notifier.Interactions.WebConfigFile,
		"notifier.interactions.slack_app_token_file": (old.Notifier.Interactions.SlackAppTokenFile == "") != (now.Notifier.Interactions.SlackAppTokenFile == ""),
	} {
		if changed {
			names = append(names, key)
		}
	}
	slices.Sort(names)
	return names
}
