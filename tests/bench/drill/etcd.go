package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/s3test"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/tests/bench/internal/testbed"
)

//go:embed script.sh
var script string

type bench struct{ *testbed.Bed }

// etcd measures a drill and the script in turn, so that a noisy neighbour meets both.
func (b *bench) etcd(ctx context.Context, rounds int, f *figures) error {
	t, err := b.NewTarget(b.S3.Endpoint, "etcd: {endpoints: ["+strconv.Quote(b.Etcd.Endpoint)+"]}")
	if err != nil {
		return err
	}
	data, err := b.snapshot(ctx, t)
	if err != nil {
		return err
	}
	w, err := b.StartWorker(ctx, t, "drill")
	if err != nil {
		return err
	}
	defer w.Stop()
	var drills, scripts []time.Duration
	var mine, stock []float64
	for i := range rounds {
		took, rss, err := b.drill(ctx, w)
		if err != nil {
			return err
		}
		drills, mine = append(drills, took), append(mine, rss)
		scripted, etcd, err := b.script(ctx, t, data.GetKey())
		if err != nil {
			return err
		}
		scripts, stock = append(scripts, scripted), append(stock, etcd)
		fmt.Fprintf(b.Out, "round %d: drill %.2f s, script %.2f s; peak memory: drill's worker %.0f MiB, script's etcd %.0f MiB\n", i+1,
			took.Seconds(), scripted.Seconds(), rss, etcd)
	}
	f.DrillS, f.ScriptS = testbed.Median(drills).Seconds(), testbed.Median(scripts).Seconds()
	f.VsScript = f.DrillS / f.ScriptS
	f.RSSMiB = testbed.Median(mine) - testbed.Median(stock)
	return nil
}

// snapshot takes the one that everything restores, by a worker that is then stopped.
func (b *bench) snapshot(ctx context.Context, t *testbed.Target) (*lifeboatv1.Data, error) {
	w, err := b.StartWorker(ctx, t, "snapshot")
	if err != nil {
		return nil, err
	}
	defer w.Stop()
	m, err := b.Snapshot(ctx, w)
	if err != nil {
		return nil, err
	}
	d := m.GetData()
	fmt.Fprintf(b.Out, "a snapshot of %d MiB is %d MiB in S3, encrypted\n", d.GetRaw().GetBytes()>>20, d.GetStored().GetBytes()>>20)
	return d, nil
}

// drill runs one and gives its time and the worker's peak memory, in MiB.
func (b *bench) drill(ctx context.Context, w *testbed.Worker) (time.Duration, float64, error) {
	if err := testbed.ForgetPeakRSS(w.PID()); err != nil {
		return 0, 0, fmt.Errorf("setting the worker's peak memory back: %w", err)
	}
	r, err := b.Drill(ctx, w)
	if err != nil {
		return 0, 0, err
	}
	rss, err := testbed.PeakRSS(w.PID())
	if err != nil {
		return 0, 0, err
	}
	var said []string
	var began, ended *durationpb.Duration
	for _, p := range r.GetPhases() {
		said = append(said, fmt.Sprintf("%s %.2f..%.2f", p.GetName(), p.GetBegan().AsDuration().Seconds(),
			(p.GetBegan().AsDuration()+p.GetTook().AsDuration()).Seconds()))
		switch p.GetName() {
		case "fetch":
			began = p.GetBegan()
		case "compare":
			ended = durationpb.New(p.GetBegan().AsDuration() + p.GetTook().AsDuration())
		}
	}
	fmt.Fprintf(b.Out, "  phases, in seconds from the drill's start: %s\n", strings.Join(said, ", "))
	if began == nil || ended == nil || r.GetLevel() != lifeboatv1.DrillReport_LEVEL_RESTORED {
		return 0, 0, errors.New("the drill's report does not say when it fetched and compared")
	}
	return ended.AsDuration() - began.AsDuration(), rss, nil
}

// script runs the script and gives its time and the peak memory of the etcd that it started, in MiB.
func (b *bench) script(ctx context.Context, t *testbed.Target, object string) (_ time.Duration, rss float64, err error) {
	dir := b.Path("script")
	if err = os.Mkdir(dir, 0o700); err != nil {
		return 0, 0, err
	}
	defer os.RemoveAll(dir)
	ports, err := bintest.FreePorts(2)
	if err != nil {
		return 0, 0, err
	}
	env, err := b.RcloneEnv()
	if err != nil {
		return 0, 0, err
	}
	tools, err := bintest.Find("etcdutl")
	if err != nil {
		return 0, 0, err
	}
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", script)
	cmd.Dir = dir
	cmd.Env = append(env, "PATH="+filepath.Dir(tools)+":"+os.Getenv("PATH"), "OBJECT="+s3test.Bucket+"/"+object, "IDENTITY_FILE="+t.IdentityFile,
		fmt.Sprintf("ENDPOINT=http://127.0.0.1:%d", ports[0]), fmt.Sprintf("PEER=http://127.0.0.1:%d", ports[1]))
	// What the script leaves running is of its group.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	group := func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.Cancel = group
	cmd.Stderr = b.Out
	start := time.Now()
	if err = cmd.Run(); err != nil {
		return 0, 0, fmt.Errorf("script.sh: %w", err)
	}
	took := time.Since(start)
	defer func() { err = errors.Join(err, group()) }()
	pid, err := os.ReadFile(filepath.Join(dir, "etcd.pid"))
	if err != nil {
		return 0, 0, err
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(pid)))
	if err != nil {
		return 0, 0, err
	}
	rss, err = testbed.PeakRSS(n)
	return took, rss, err
}
