// Package bintest finds and runs the real servers that are not Go libraries: consul, nomad, alertmanager, nats-server.
package bintest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
)

// Find looks for a binary in the .bin folder of the folder that this process was started in, of its executable's, or of one
// above them, and then on PATH.
func Find(name string) (string, error) {
	// PWD and not the working directory: the embedded S3 server changes that to its own folder.
	roots := []string{os.Getenv("PWD")}
	if exe, err := os.Executable(); err == nil {
		roots = append(roots, filepath.Dir(exe))
	}
	for _, dir := range roots {
		for up := filepath.Dir(dir); filepath.IsAbs(dir); dir, up = up, filepath.Dir(up) {
			path := filepath.Join(dir, ".bin", name)
			//nolint:gosec // a folder of whoever started this process
			if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
				return path, nil
			}
			if up == dir {
				break
			}
		}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("no %s in .bin/ nor on PATH; build it with: tools/build %s", name, name)
	}
	return path, nil
}

// Process is a server that was started. It dies with this process, even when that is killed.
type Process struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error
}

// Start runs a binary with its output in a file.
func Start(path, logFile string, env []string, args ...string) (*Process, error) {
	out, err := os.OpenFile(logFile, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the log of %s: %w", filepath.Base(path), err)
	}
	cmd := exec.Command(path, args...) //nolint:noctx // a server that the caller names and stops
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	p := &Process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		// The death signal is sent when the thread that started the process ends, so the thread is kept for its life.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(p.done)
		defer out.Close()
		err := cmd.Start()
		started <- err
		if err == nil {
			p.err = cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("starting %s: %w", path, err)
	}
	return p, nil
}

// PID of the process.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Signal sends a signal. A process that has ended is no error.
func (p *Process) Signal(sig os.Signal) error {
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signalling %s: %w", p.cmd.Path, err)
	}
	return nil
}

// Kill ends the process as kill -9 does and waits.
func (p *Process) Kill() error {
	err := p.Signal(syscall.SIGKILL)
	<-p.done
	return err
}

// Stop asks the process to end and kills it after ten seconds.
func (p *Process) Stop() error {
	if err := p.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(10 * time.Second):
		return p.Kill()
	}
}

// WaitHTTP waits until a GET of url answers 200 and its body satisfies ok, which may be nil.
func (p *Process) WaitHTTP(ctx context.Context, url string, ok func(body string) bool) error {
	return p.waitHTTP(ctx, http.DefaultClient, url, ok)
}

func (p *Process) waitHTTP(ctx context.Context, client *http.Client, url string, ok func(body string) bool) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	last := errors.New("not asked yet")
	for {
		select {
		case <-p.done:
			return fmt.Errorf("%s ended before it answered: %w", p.cmd.Path, p.err)
		case <-ctx.Done():
			return fmt.Errorf("%s did not answer at %s: %w", p.cmd.Path, url, last)
		case <-tick.C:
		}
		body, err := get(ctx, client, url)
		switch {
		case err != nil:
			last = err
		case ok != nil && !ok(body):
			last = fmt.Errorf("it answered %q", body)
		default:
			return nil
		}
	}
}

func get(ctx context.Context, client *http.Client, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("status %s", resp.Status)
	}
	return string(body), nil
}

// Ports are looked for below those that the system gives to outgoing connections (net.ipv4.ip_local_port_range begins at 32768):
// one of these may take a port again before the server that it was found for listens.
const firstPort, lastPort = 10240, 32000

// FreePorts returns n loopback ports that are free now.
func FreePorts(n int) ([]int, error) {
	ports := make([]int, 0, n)
	var taken error
	for range 100 * n {
		if len(ports) == n {
			break
		}
		port := firstPort + rand.IntN(lastPort-firstPort)               //nolint:gosec // nobody is to be surprised by it
		ln, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)) //nolint:noctx // only to learn a free port
		if err != nil {
			taken = err
			continue
		}
		// All are held until all are known, so that no two are the same.
		defer ln.Close()
		ports = append(ports, port)
	}
	if len(ports) < n {
		return nil, fmt.Errorf("finding a free port: %w", taken)
	}
	return ports, nil
}
