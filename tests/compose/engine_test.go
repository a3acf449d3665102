//go:build e2e

package compose

// Where there is a Docker engine, it is used. Where there is none and this runs as root, one is started for these tests alone, in network,
// mount and process namespaces of its own: its bridges, rules, mounts and containers go with them, whatever happens. docker.io,
// busybox-static and prometheus come from Debian when they are missing.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
)

// The folder of everything that these tests make; who finds it set is the process inside the namespaces, or beside an engine that was there.
const dirEnv = "LIFEBOAT_E2E_COMPOSE"

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "tests/compose:", err)
		code = 1
	}
	os.Exit(code) //nolint:forbidigo // the tests may have run in another process, whose exit code this is
}

func run(m *testing.M) (code int, err error) {
	if dir := os.Getenv(dirEnv); dir != "" {
		return inside(m, dir)
	}
	ctx := context.Background()
	// Not the temporary folder: what an engine keeps may be in memory or on a disk, but not on an overlay.
	base := "/dev/shm"
	if _, failed := os.Stat(base); failed != nil {
		base = ""
	}
	dir, err := os.MkdirTemp(base, "lifeboat-compose-")
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err = debian(ctx, dir); err != nil {
		return 1, err
	}
	if exec.CommandContext(ctx, "docker", "info").Run() == nil {
		return 0, errors.Join(os.Setenv(dirEnv, dir), prepare(dir), failed(m.Run()))
	}
	if os.Geteuid() != 0 {
		return 1, errors.New("there is no Docker engine to reach: start one, or run this as root on Debian, where it starts its own")
	}
	return outside(ctx, dir)
}

func failed(code int) error {
	if code != 0 {
		return errors.New("tests failed")
	}
	return nil
}

// outside runs this binary again in namespaces of its own, and afterwards looks for what it left behind.
func outside(ctx context.Context, dir string) (int, error) {
	// Nothing can be downloaded in there: what the images are built of is compiled here first.
	if err := command(ctx, "../..", "make", "dist"); err != nil {
		return 1, err
	}
	before, err := links()
	if err != nil {
		return 1, err
	}
	exe, err := os.Executable()
	if err != nil {
		return 1, err
	}
	// A shell is the first process there, because it also reaps what nobody else waits for.
	inner := []string{"--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", `ip link set lo up && { "$0" "$@" & wait $!; }`, exe}
	cmd := exec.CommandContext(ctx, "unshare", append(inner, os.Args[1:]...)...)
	cmd.Env = append(os.Environ(), dirEnv+"="+dir)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err = cmd.Run()
	code := 0
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		code, err = max(exit.ExitCode(), 1), nil
	}
	after, failed := links()
	if !slices.Equal(before, after) {
		failed = errors.Join(failed, fmt.Errorf("network interfaces were left behind: %v before, %v now", before, after))
	}
	return code, errors.Join(err, failed, nothingLeft(dir))
}

func links() ([]string, error) {
	all, err := net.Interfaces()
	names := make([]string, 0, len(all))
	for _, l := range all {
		names = append(names, l.Name)
	}
	return names, err
}

// nothingLeft looks for processes, mounts and control groups of this run.
func nothingLeft(dir string) error {
	var left []error
	paths, err := filepath.Glob("/proc/[0-9]*/cmdline")
	left = append(left, err)
	for _, path := range paths {
		if b, failed := os.ReadFile(path); failed == nil && bytes.Contains(b, []byte(dir)) {
			left = append(left, fmt.Errorf("a process was left behind: %s", bytes.ReplaceAll(b, []byte{0}, []byte(" "))))
		}
	}
	mounts, err := os.ReadFile("/proc/mounts")
	left = append(left, err)
	if bytes.Contains(mounts, []byte(dir)) {
		left = append(left, fmt.Errorf("a mount was left behind below %s", dir))
	}
	return errors.Join(append(left, removeGroups(dir))...)
}

// groups is the parent of the control groups of an engine's containers: control groups are the one thing that no namespace here keeps apart.
func groups(dir string) string { return filepath.Base(dir) }

// removeGroups removes the empty folders that containers leave below their parent; a folder that is not empty is still in use.
func removeGroups(dir string) error {
	var folders []string
	err := filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.Contains(path, groups(dir)) {
			folders = append(folders, path)
		}
		return nil
	})
	slices.Reverse(folders) // the innermost first
	for _, f := range folders {
		err = errors.Join(err, os.Remove(f))
	}
	return err
}

// inside starts an engine, runs the tests and stops it.
func inside(m *testing.M, dir string) (code int, err error) {
	socket := "unix://" + filepath.Join(dir, "docker.sock")
	engine, err := bintest.Start("/usr/sbin/dockerd", filepath.Join(dir, "dockerd.log"), nil, "--data-root", filepath.Join(dir, "data"),
		"--exec-root", filepath.Join(dir, "exec"), "--pidfile", filepath.Join(dir, "docker.pid"), "--host", socket, "--cgroup-parent", groups(dir))
	if err != nil {
		return 1, err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		err = errors.Join(err, engine.Signal(syscall.SIGTERM))
		select {
		case <-engine.Done():
		case <-ctx.Done():
			err = errors.Join(err, errors.New("the engine did not stop within a minute"), engine.Kill())
		}
	}()
	if err = os.Setenv("DOCKER_HOST", socket); err != nil {
		return 1, err
	}
	if err = reachable(engine); err != nil {
		log, failed := os.ReadFile(filepath.Join(dir, "dockerd.log"))
		return 1, errors.Join(err, failed, errors.New(string(log)))
	}
	if err = prepare(dir); err != nil {
		return 1, err
	}
	return m.Run(), nil
}

func reachable(engine *bintest.Process) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-engine.Done():
			return errors.New("dockerd ended")
		case <-ctx.Done():
			return errors.New("dockerd did not answer within a minute")
		case <-tick.C:
			if exec.CommandContext(ctx, "docker", "info").Run() == nil {
				return nil
			}
		}
	}
}

// debian installs what is missing, and unpacks a Prometheus without installing it, because that would start it.
func debian(ctx context.Context, dir string) error {
	var missing []string
	for name, pkg := range map[string]string{"dockerd": "docker.io", "iptables": "iptables", "busybox": "busybox-static", "ip": "iproute2"} {
		if _, err := exec.LookPath(name); err != nil && (name == "busybox" || exec.CommandContext(ctx, "docker", "info").Run() != nil) {
			missing = append(missing, pkg)
		}
	}
	if len(missing) > 0 {
		slices.Sort(missing)
		args := append([]string{"install", "--yes", "--no-install-recommends"}, missing...)
		if err := apt(ctx, "", args...); err != nil {
			return fmt.Errorf("installing %s: %w", strings.Join(missing, " "), err)
		}
	}
	// Others may read the folder: apt downloads as a user of its own.
	folder := filepath.Join(dir, "prometheus")
	if err := errors.Join(os.Mkdir(folder, 0o700), apt(ctx, folder, "download", "prometheus")); err != nil {
		return fmt.Errorf("downloading Debian's prometheus: %w", err)
	}
	files, err := filepath.Glob(filepath.Join(folder, "*.deb"))
	if err != nil || len(files) != 1 {
		return fmt.Errorf("expected one package, found %v: %w", files, err)
	}
	return command(ctx, folder, "dpkg-deb", "--extract", files[0], ".")
}

// apt runs apt-get, and again after it has learnt which packages there are.
func apt(ctx context.Context, dir string, args ...string) error {
	if command(ctx, dir, "apt-get", args...) == nil {
		return nil
	}
	return errors.Join(command(ctx, dir, "apt-get", "update"), command(ctx, dir, "apt-get", args...))
}

func command(ctx context.Context, dir, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

// prepare gives every command that follows the engine, Compose as a plug-in of docker, and our tools.
func prepare(dir string) error {
	compose, err := bintest.Find("docker-compose")
	if err != nil {
		return err
	}
	plugins := filepath.Join(dir, "config/cli-plugins")
	return errors.Join(
		os.MkdirAll(plugins, 0o700),
		os.Symlink(compose, filepath.Join(plugins, "docker-compose")),
		os.Setenv("DOCKER_CONFIG", filepath.Join(dir, "config")),
		os.Setenv("DOCKER_BUILDKIT", "0"), // the other builder would ask a registry
		os.Setenv("PATH", filepath.Dir(compose)+string(os.PathListSeparator)+os.Getenv("PATH")),
		os.Setenv("COMPOSE_PROJECT_NAME", "lifeboat-e2e"), // beside one that somebody runs
		os.Setenv("COMPOSE_FILE", "compose.yaml"+string(os.PathListSeparator)+"../../tests/compose/override.yaml"),
	)
}
