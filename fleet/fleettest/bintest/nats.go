package bintest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// NATS is a nats-server process with JetStream, for tests that kill it.
type NATS struct {
	*Process
	URL string
	// Monitor is the address of the monitoring endpoints.
	Monitor string
	// Name is what the server calls itself; by default an id that it makes up.
	Name string
	dir  string
	args []string
}

// NATSOptions are what a test may want otherwise.
type NATSOptions struct {
	// Conf is further configuration, in the server's own words. What it includes is relative to the server's folder.
	Conf string
	// Name of the server; it must have one in a cluster.
	Name string
	// Port for clients; a free one when zero.
	Port int
}

// StartNATS runs a nats-server that keeps its data in dir, on random loopback ports.
func StartNATS(ctx context.Context, dir string) (*NATS, error) {
	return StartNATSWith(ctx, dir, NATSOptions{})
}

// StartNATSWith is StartNATS with options.
func StartNATSWith(ctx context.Context, dir string, o NATSOptions) (*NATS, error) {
	n, err := newNATS(dir, o)
	if err != nil {
		return nil, err
	}
	return n, n.Restart(ctx)
}

// ClusterConf writes the configuration of one server of a cluster: where it listens for the others, and the routes to all.
type ClusterConf func(n *NATS, port int, routes []string) (string, error)

// PlainCluster is a cluster block and further configuration.
func PlainCluster(conf string) ClusterConf {
	return func(_ *NATS, port int, routes []string) (string, error) {
		return fmt.Sprintf("cluster { name: lifeboat, listen: \"127.0.0.1:%d\", routes: [%s] }\n%s",
			port, strings.Join(routes, ", "), conf), nil
	}
}

// StartNATSCluster runs servers named n1, n2, ... that know each other, each in a folder of its name, and waits until all of
// them are healthy. After an error those that were started are returned, to be killed.
func StartNATSCluster(ctx context.Context, dir string, size int, conf ClusterConf) ([]*NATS, error) {
	ports, err := FreePorts(size)
	if err != nil {
		return nil, err
	}
	routes := make([]string, size)
	for i, p := range ports {
		routes[i] = fmt.Sprintf("nats-route://127.0.0.1:%d", p)
	}
	all := make([]*NATS, 0, size)
	for i, port := range ports {
		name := fmt.Sprintf("n%d", i+1)
		n, err := newNATS(filepath.Join(dir, name), NATSOptions{Name: name})
		if err != nil {
			return all, err
		}
		text, err := conf(n, port, routes)
		if err != nil {
			return all, err
		}
		if err := errors.Join(n.Configure(text), n.start()); err != nil {
			return all, err
		}
		all = append(all, n)
	}
	for _, n := range all { // only together are they healthy
		if err := n.wait(ctx); err != nil {
			return all, err
		}
	}
	return all, nil
}

func newNATS(dir string, o NATSOptions) (*NATS, error) {
	ports, err := FreePorts(2)
	if err != nil {
		return nil, err
	}
	if o.Port != 0 {
		ports[0] = o.Port
	}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("making nats-server's folder: %w", err)
	}
	n := &NATS{
		URL:     fmt.Sprintf("nats://127.0.0.1:%d", ports[0]),
		Monitor: fmt.Sprintf("http://127.0.0.1:%d", ports[1]),
		Name:    o.Name, dir: dir,
		args: []string{
			"-a", "127.0.0.1", "-p", strconv.Itoa(ports[0]), "-m", strconv.Itoa(ports[1]), "-js", "-sd", filepath.Join(dir, "data"),
		},
	}
	if o.Name != "" {
		n.args = append(n.args, "-n", o.Name)
	}
	n.args = append(n.args, "-c", n.conf())
	return n, n.Configure(o.Conf)
}

func (n *NATS) conf() string { return filepath.Join(n.dir, "nats.conf") }

// Log is the file that the server logs into.
func (n *NATS) Log() string { return filepath.Join(n.dir, "nats.log") }

// Configure writes another configuration, which the server reads at its next Restart or Reload.
func (n *NATS) Configure(conf string) error {
	if err := os.WriteFile(n.conf(), []byte(conf+"\n"), 0o600); err != nil {
		return fmt.Errorf("writing nats-server's configuration: %w", err)
	}
	return nil
}

// Reload asks the server to read its configuration again. It does so a moment later.
func (n *NATS) Reload() error { return n.Signal(syscall.SIGHUP) }

// Restart starts the server again, on the same ports and data, after it was killed.
func (n *NATS) Restart(ctx context.Context) error {
	if err := n.start(); err != nil {
		return err
	}
	return n.wait(ctx)
}

func (n *NATS) start() error {
	path, err := Find("nats-server")
	if err != nil {
		return err
	}
	n.Process, err = Start(path, n.Log(), nil, n.args...)
	return err
}

func (n *NATS) wait(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := n.WaitHTTP(ctx, n.Monitor+"/healthz", nil); err != nil {
		return errors.Join(fmt.Errorf("%w (log: %s)", err, n.Log()), n.Kill())
	}
	return nil
}
