package throwaway

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
)

// TestMain runs the tests, or is one of the processes that they start.
func TestMain(m *testing.M) {
	modes := map[string]func(args []string) int{
		"confine": Confined, "dial": dialAll, "allocate": allocate, "drill": drill,
	}
	if len(os.Args) > 1 {
		if mode, ok := modes[os.Args[1]]; ok {
			os.Exit(mode(os.Args[2:])) //nolint:forbidigo // here the test is a main program
		}
	}
	goleak.VerifyTestMain(m)
}

// confine is the command that confines a server.
func confine() []string { return []string{os.Args[0], "confine"} }

// dialAll tries to reach each address, given as network and address, and prints what became of it.
func dialAll(args []string) int {
	for i := 0; i+1 < len(args); i += 2 {
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		conn, err := new(net.Dialer).DialContext(ctx, args[i], args[i+1])
		cancel()
		if err == nil {
			conn.Close()
		}
		fmt.Fprintln(os.Stdout, args[i], args[i+1], "reached:", err == nil, err)
	}
	return 0
}

// allocate holds 64 MiB of memory until its input ends.
func allocate([]string) int {
	b := make([]byte, 64<<20)
	for i := 0; i < len(b); i += 4 << 10 {
		b[i] = 1
	}
	fmt.Fprintln(os.Stdout, "ready")
	_, err := io.Copy(io.Discard, os.Stdin)
	fmt.Fprintln(io.Discard, b[len(b)-1], err)
	return 0
}

// drill starts both servers as a drill does, prints their folder and process ids, and waits to be killed. Its arguments are the
// parent folder, the two programs, and whether to confine.
func drill(args []string) int {
	ctx := context.Background()
	s, err := NewScratch(args[0])
	if err == nil {
		fmt.Fprintln(os.Stdout, s.Dir())
	}
	o := Options{}
	if args[3] == "true" {
		o.Confine = confine()
	}
	for i, start := range []func(context.Context, *Scratch, Options) (*Server, error){StartConsul, StartNomad} {
		var srv *Server
		if err == nil {
			o.Binary = args[1+i]
			srv, err = start(ctx, s, o)
		}
		if err != nil {
			fmt.Fprintln(os.Stdout, err)
			return 1
		}
		fmt.Fprintln(os.Stdout, srv.PID(), srv.inner.pid)
	}
	fmt.Fprintln(os.Stdout, "ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
	return 0
}

// scratch is a scratch folder that is removed after the test.
func scratch(t *testing.T) *Scratch {
	t.Helper()
	s, err := NewScratch(t.TempDir())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Remove()) })
	return s
}

// program is the path of a real server.
func program(t *testing.T, name string) string {
	t.Helper()
	path, err := bintest.Find(name)
	require.NoError(t, err)
	return path
}

// lines reads lines from r until one is "ready".
func lines(t *testing.T, r io.Reader) []string {
	t.Helper()
	var all []string
	for in := bufio.NewScanner(r); in.Scan(); {
		if in.Text() == "ready" {
			return all
		}
		all = append(all, in.Text())
	}
	require.Fail(t, "it ended before it was ready", "%q", all)
	return nil
}
