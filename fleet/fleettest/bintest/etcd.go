package bintest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// Etcd is a single etcd member as a process.
type Etcd struct {
	*Process
	// Endpoint is the address for clients.
	Endpoint string
	dir      string
	args     []string
}

// StartEtcd runs an etcd that keeps its data in dir, on random loopback ports. args are further flags.
func StartEtcd(ctx context.Context, dir string, args ...string) (*Etcd, error) {
	ports, err := FreePorts(2)
	if err != nil {
		return nil, err
	}
	if err = os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making etcd's folder: %w", err)
	}
	client, peer := fmt.Sprintf("http://127.0.0.1:%d", ports[0]), fmt.Sprintf("http://127.0.0.1:%d", ports[1])
	e := &Etcd{Endpoint: client, dir: dir, args: append([]string{
		"--data-dir=" + filepath.Join(dir, "data"), "--listen-client-urls=" + client, "--advertise-client-urls=" + client,
		"--listen-peer-urls=" + peer, "--initial-advertise-peer-urls=" + peer, "--initial-cluster=default=" + peer,
		"--log-level=error",
	}, args...)}
	return e, e.Restart(ctx)
}

// Restart starts the member again, on the same ports and data, after it was killed.
func (e *Etcd) Restart(ctx context.Context) error {
	path, err := Find("etcd")
	if err != nil {
		return err
	}
	log := filepath.Join(e.dir, "etcd.log")
	if e.Process, err = Start(path, log, nil, e.args...); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := e.WaitHTTP(ctx, e.Endpoint+"/health", nil); err != nil {
		return fmt.Errorf("%w (log: %s); %w", err, log, e.Kill())
	}
	return nil
}
