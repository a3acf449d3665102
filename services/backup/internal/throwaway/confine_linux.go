package throwaway

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// statusFD is the descriptor over which a confined process says how it went: one line.
	statusFD = 3
	// refusedWord and startedWord begin that line. After the first comes why, after the second the server's process id.
	refusedWord, startedWord = "refused", "started"
	loopback                 = "lo"
)

// namespaces are the ways to a network namespace, the plainest first. A user who is not root needs a user namespace for it.
func namespaces() []*syscall.SysProcAttr {
	user := &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
	}
	if os.Geteuid() != 0 {
		return []*syscall.SysProcAttr{user}
	}
	return []*syscall.SysProcAttr{{Cloneflags: syscall.CLONE_NEWNET}, user}
}

// namespaceRefused is whether the machine does not let this process have namespaces: seccomp, a limit, or a kernel without them.
func namespaceRefused(err error) bool {
	return slices.ContainsFunc([]error{
		syscall.EPERM, syscall.EINVAL, syscall.ENOSYS, syscall.ENOSPC, syscall.EUSERS,
	}, func(e error) bool { return errors.Is(err, e) })
}

// Confined runs a server in the network namespace of its own that this process was started in, and returns the exit code that
// this process should end with. It is what the command Options.Confine must do with its arguments, first thing. They are
//
//	[-relay <socket>=<address>] -- <program> [arguments]
//
// and mean: serve the socket, and carry each connection to the address inside. Confined brings loopback up, gives up the
// capabilities that lead out, and passes SIGTERM and SIGINT on. Descriptor 3 is told "started <pid>", or "refused <why>" when
// this is no such namespace.
func Confined(args []string) int {
	// The server dies with the thread that starts it.
	runtime.LockOSThread()
	unix.CloseOnExec(statusFD)
	status := os.NewFile(statusFD, "status")
	err := confined(args, status)
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		fmt.Fprintln(os.Stderr, "the server ended:", exit)
		return max(1, exit.ExitCode())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		return 1
	}
	return 0
}

func confined(args []string, status io.WriteCloser) error {
	flags := flag.NewFlagSet("confine", flag.ContinueOnError)
	relay := flags.String("relay", "", "<socket>=<address inside>")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() == 0 {
		return errors.New("no program to run")
	}
	if err := enter(); err != nil {
		fmt.Fprintln(status, refusedWord, err)
		return errors.Join(err, status.Close())
	}
	if *relay != "" {
		socket, address, _ := strings.Cut(*relay, "=")
		ln, err := net.Listen("unix", socket) //nolint:noctx // a socket in a folder of this process's own
		if err != nil {
			return fmt.Errorf("opening the relay's socket: %w", err)
		}
		defer ln.Close()
		go relayAll(ln, address)
	}
	cmd := exec.Command(flags.Arg(0), flags.Args()[1:]...) //nolint:gosec,noctx // what the parent asks for; signals end it
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := bindToParent(cmd); err != nil {
		return err
	}
	cmd.SysProcAttr.Setpgid = false // with this process, so that one signal kills both
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		return err
	}
	fmt.Fprintln(status, startedWord, cmd.Process.Pid)
	if err := status.Close(); err != nil {
		return err
	}
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		for {
			select {
			case s := <-signals:
				cmd.Process.Signal(s) //nolint:errcheck,gosec // it has ended, and that is what was wanted
			case <-ended:
				return
			}
		}
	}()
	return cmd.Wait()
}

// enter makes the namespace usable and closes the ways out of it.
func enter() error {
	all, err := net.Interfaces()
	if err != nil {
		return fmt.Errorf("listing interfaces: %w", err)
	}
	for _, i := range all {
		// Some kernels put interfaces for tunnels into every namespace, which are down.
		if i.Name != loopback && i.Flags&net.FlagUp != 0 {
			return fmt.Errorf("this is no network namespace of its own: it has the interface %s", i.Name)
		}
	}
	if err := interfaceUp(loopback); err != nil {
		return fmt.Errorf("bringing loopback up: %w", err)
	}
	return dropCapabilities()
}

func interfaceUp(name string) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	req, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(s, unix.SIOCGIFFLAGS, req); err != nil {
		return err
	}
	req.SetUint16(req.Uint16() | unix.IFF_UP)
	return unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, req)
}

// dropCapabilities takes from what this thread starts every capability but those to read and write files that root reaches. A
// server of root's could otherwise enter the machine's own namespace.
func dropCapabilities() error {
	keep := []int{unix.CAP_DAC_OVERRIDE, unix.CAP_DAC_READ_SEARCH, unix.CAP_FOWNER}
	for c := range unix.CAP_LAST_CAP + 1 {
		if slices.Contains(keep, c) {
			continue
		}
		err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0)
		if err != nil && !errors.Is(err, unix.EINVAL) { // a kernel older than the capability does not know it
			return fmt.Errorf("giving up capability %d: %w", c, err)
		}
	}
	return nil
}

// relayAll carries connections to an address until the listener is closed.
func relayAll(ln net.Listener, address string) {
	for {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		go relayOne(conn, address)
	}
}

// relayOne carries one connection. Whoever connects while the server does not listen yet finds it closed.
func relayOne(from net.Conn, address string) {
	defer from.Close()
	var dialer net.Dialer
	to, err := dialer.DialContext(context.Background(), "tcp", address)
	if err != nil {
		return
	}
	defer to.Close()
	var wg sync.WaitGroup
	for _, way := range [][2]net.Conn{{to, from}, {from, to}} {
		wg.Go(func() {
			io.Copy(way[0], way[1]) //nolint:errcheck,gosec // the other side sees the end of the connection
			if half, ok := way[0].(interface{ CloseWrite() error }); ok {
				half.CloseWrite() //nolint:errcheck,gosec // it is closed already
			}
		})
	}
	wg.Wait()
}
