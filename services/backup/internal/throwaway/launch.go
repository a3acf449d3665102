package throwaway

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source"
)

const (
	// maxAttempts is how often a server is started when a port that was free is taken at that moment.
	maxAttempts = 5
	// maxSocketPath is how long the path of a socket may be: sun_path of unix(7), without the zero at its end.
	maxSocketPath = 107
	// firstFixedPort is where the ports begin in a namespace, in which nobody else has any.
	firstFixedPort = 4000
	defaultRegion  = "global"
)

// kind is what differs between the servers.
type kind struct {
	name string
	// flag is the command line's for the path of the program.
	flag string
	// configFlag is what stands before the path of a configuration.
	configFlag string
	// ports is how many it listens on. The API's is the first.
	ports int
	// native is whether it can serve its API on a socket.
	native bool
	// domain is the name that it must have in a certificate for its peers.
	domain func(region string) string
	// configure is the content of its configuration, and of a further one of what only newer versions know.
	configure func(p place) (conf, newer map[string]any)
	// ready returns once it takes writes, and sets the Server's Version, and Token if there is one.
	ready func(ctx context.Context, s *Server, p place) error
}

// place is where a server runs.
type place struct {
	// dir is its folder.
	dir string
	// socket is the path of its API's socket; empty when that is on the first of the ports.
	socket string
	ports  []int
	tls    config.TLS
	region string
}

// launch is how a server is started.
type launch struct {
	kind    kind
	scratch *Scratch
	options Options
	binary  string
	// namespace is asked for with the process; nil for none.
	namespace *syscall.SysProcAttr
	// newer is whether to configure what only newer versions know.
	newer bool
}

// refusal is why a server has no namespace.
type refusal struct{ err error }

// Error says why.
func (r *refusal) Error() string { return "the machine refuses a network namespace: " + r.err.Error() }

// Unwrap gives the cause.
func (r *refusal) Unwrap() error { return r.err }

// start runs a server, in a namespace when it can have one, and waits until it is ready.
func start(ctx context.Context, scratch *Scratch, o Options, k kind) (*Server, error) {
	l := launch{kind: k, scratch: scratch, options: o}
	var err error
	if l.binary, err = find(k, o.Binary); err != nil {
		return nil, err
	}
	refused := errors.New("no command is configured that confines it")
	if len(o.Confine) > 0 {
		for _, l.namespace = range namespaces() {
			s, serr := l.attempts(ctx)
			if _, no := errors.AsType[*refusal](serr); !no {
				return s, serr
			}
			refused = serr
		}
	}
	if o.RequireIsolation {
		return nil, fmt.Errorf("starting %s: it must not run without a network namespace of its own: %w", k.name, refused)
	}
	l.namespace = nil
	return l.attempts(ctx)
}

// find is the program's path.
func find(k kind, binary string) (string, error) {
	name := cmp.Or(binary, k.name)
	path, err := exec.LookPath(name)
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		return "", fmt.Errorf("%w: the drill restores into a real %s server: %w; install %s on the drill worker, or give its path with --%s",
			ErrNoBinary, k.name, err, k.name, k.flag)
	}
	return path, nil
}

// attempts starts the server until all its ports were free and it understood its configuration.
func (l launch) attempts(ctx context.Context) (*Server, error) {
	var last error
	// What a server of an older version does not know is an error to it, in words that differ.
	_, newer := l.kind.configure(place{ports: make([]int, l.kind.ports)})
	l.newer = newer != nil
	for range maxAttempts {
		s, err := l.once(ctx)
		if err == nil {
			return s, nil
		}
		last = fmt.Errorf("starting %s: %w", l.kind.name, err)
		if _, no := errors.AsType[*refusal](err); no || ctx.Err() != nil {
			return nil, last
		}
		switch {
		case strings.Contains(err.Error(), syscall.EADDRINUSE.Error()):
		case l.newer:
			l.newer = false
		default:
			return nil, last
		}
	}
	return nil, fmt.Errorf("after %d attempts: %w", maxAttempts, last)
}

// once starts the server and waits until it is ready.
func (l launch) once(ctx context.Context) (_ *Server, err error) {
	s := &Server{}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Stop())
		}
	}()
	p, err := l.prepare(s)
	if err != nil {
		return nil, err
	}
	command, err := l.configure(p)
	if err != nil {
		return nil, fmt.Errorf("writing its configuration: %w", err)
	}
	if s.client, s.base, err = source.NewHTTPClient(s.Address, s.TLS, startTimeout); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, fmt.Errorf("it was not ready within %s", startTimeout))
	defer cancel()
	if err = l.run(ctx, s, p, command); err != nil {
		return nil, err
	}
	if err = l.kind.ready(ctx, s, p); err != nil {
		return nil, err
	}
	s.client.CloseIdleConnections()
	info, err := os.Stat(p.log())
	if err != nil {
		return nil, fmt.Errorf("looking at its log: %w", err)
	}
	s.ready = info.Size()
	return s, nil
}

// prepare makes the server's folder, and decides where it listens.
func (l launch) prepare(s *Server) (p place, err error) {
	p.region = cmp.Or(l.options.Region, defaultRegion)
	if p.dir, err = os.MkdirTemp(l.scratch.Dir(), l.kind.name+"-"); err != nil {
		return p, fmt.Errorf("making its folder: %w", err)
	}
	if p.tls, err = newPair(p.dir, l.kind.domain(p.region)); err != nil {
		return p, err
	}
	s.Isolation = IsolatedByConfiguration
	if l.namespace != nil {
		s.Isolation = IsolatedByNamespace
		for i := range l.kind.ports {
			p.ports = append(p.ports, firstFixedPort+i)
		}
	} else {
		find := l.options.ports
		if find == nil {
			find = freePorts
		}
		if p.ports, err = find(l.kind.ports); err != nil {
			return p, fmt.Errorf("finding free ports: %w", err)
		}
	}
	if l.namespace == nil && !l.kind.native {
		s.Address, s.TLS = "https://"+p.api(), p.tls
		return p, nil
	}
	if p.socket, err = s.socket(l.scratch, p.dir); err != nil {
		return p, err
	}
	s.Address = "unix://" + p.socket
	return p, nil
}

// api is where the server's API is when it is not on a socket.
func (p place) api() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(p.ports[0])) }

// socket is a path for the API's socket: in the server's folder, or in a short one where that would be too long.
func (s *Server) socket(scratch *Scratch, dir string) (string, error) {
	const name = "s"
	path := filepath.Join(dir, name)
	if len(path) <= maxSocketPath {
		return path, nil
	}
	var err error
	if s.sockets, err = NewScratch(os.TempDir()); err != nil {
		return "", fmt.Errorf("making a folder with a short path for its socket: %w", err)
	}
	if err := scratch.recordFolder(s.sockets); err != nil {
		return "", err
	}
	if path = filepath.Join(s.sockets.Dir(), name); len(path) > maxSocketPath {
		return "", fmt.Errorf("the path of its socket %s is %d bytes long and may be %d: give the scratch folder, or TMPDIR, a shorter path",
			path, len(path), maxSocketPath)
	}
	return path, nil
}

// configure writes the configuration. It returns the command that runs the server.
func (l launch) configure(p place) ([]string, error) {
	conf, newer := l.kind.configure(p)
	files := []map[string]any{conf}
	if l.newer {
		files = append(files, newer)
	}
	command := []string{l.binary, "agent"}
	for i, content := range files {
		b, err := json.MarshalIndent(content, "", "  ")
		if err != nil {
			return nil, err
		}
		path := filepath.Join(p.dir, fmt.Sprintf("%d.json", i+1))
		if err := os.WriteFile(path, b, 0o600); err != nil {
			return nil, err
		}
		command = append(command, l.kind.configFlag+path)
	}
	return command, nil
}

// run starts the process.
func (l launch) run(ctx context.Context, s *Server, p place, command []string) error {
	if l.namespace != nil {
		return l.runConfined(ctx, s, p, command)
	}
	cmd := exec.Command(command[0], command[1:]...) //nolint:gosec,noctx // the configured program; Stop ends it
	var err error
	if s.process, err = startProcess(scrub(cmd, p), p.log()); err != nil {
		return err
	}
	return l.scratch.record(s.PID())
}

// runConfined starts the process that confines the server, and waits until that has started the server.
func (l launch) runConfined(ctx context.Context, s *Server, p place, command []string) error {
	args := slices.Clone(l.options.Confine[1:])
	if !l.kind.native {
		args = append(args, "-relay", p.socket+"="+p.api())
	}
	args = append(append(args, "--"), command...)
	cmd := exec.Command(l.options.Confine[0], args...) //nolint:gosec,noctx // a command of this program; Stop ends it
	namespace := *l.namespace
	cmd.SysProcAttr = &namespace
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("making a pipe: %w", err)
	}
	defer r.Close()
	cmd.ExtraFiles = []*os.File{w}
	s.process, err = startProcess(scrub(cmd, p), p.log())
	// Only the child holds that end from here on, so that its death is the end of what it has to say.
	if cerr := w.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		if namespaceRefused(err) {
			err = &refusal{err}
		}
		return err
	}
	if err = l.scratch.record(s.PID()); err != nil {
		return err
	}
	inner, err := s.innerPID(ctx, r)
	if err != nil {
		return err
	}
	if s.inner, err = identify(inner); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("looking at the server's process: %w", err)
	}
	return l.scratch.record(inner)
}

// log is the file for what the server says.
func (p place) log() string { return filepath.Join(p.dir, "log") }

// scrub leaves cmd nothing of this process's environment that could lead it somewhere.
func scrub(cmd *exec.Cmd, p place) *exec.Cmd {
	cmd.Dir = p.dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + p.dir, "TMPDIR=" + p.dir}
	return cmd
}

// innerPID waits until the confining process has started the server, or has said why it did not.
func (s *Server) innerPID(ctx context.Context, status *os.File) (int, error) {
	stop := context.AfterFunc(ctx, func() {
		status.SetReadDeadline(time.Unix(1, 0)) //nolint:errcheck,gosec // a pipe has deadlines
	})
	defer stop()
	line, err := bufio.NewReader(status).ReadString('\n')
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	if err != nil {
		<-s.process.done // it let go of the pipe without a word
		return 0, s.process.ended()
	}
	word, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
	if word == refusedWord {
		return 0, &refusal{errors.New(rest)}
	}
	pid, err := strconv.Atoi(rest)
	if word != startedWord || err != nil {
		return 0, fmt.Errorf("the process that confines it said %q", line)
	}
	return pid, nil
}

// freePorts returns n loopback ports that are free now, for TCP and UDP.
func freePorts(n int) ([]int, error) {
	var ports []int
	for len(ports) < n {
		ln, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // only to learn a free port
		if err != nil {
			return nil, err
		}
		// All are held until all are known, so that no two are the same.
		defer ln.Close()
		addr, ok := ln.Addr().(*net.TCPAddr)
		if !ok {
			return nil, fmt.Errorf("unexpected address %s", ln.Addr())
		}
		if udp, err := net.ListenUDP("udp", &net.UDPAddr{IP: addr.IP, Port: addr.Port}); err == nil {
			defer udp.Close()
			ports = append(ports, addr.Port)
		}
	}
	return ports, nil
}
