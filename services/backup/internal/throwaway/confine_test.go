package throwaway

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source"
)

// TestGuarantee10AConfinedProcessReachesNothing runs a program as servers are run, which tries to reach what this process listens on
// and what is elsewhere.
func TestGuarantee10AConfinedProcessReachesNothing(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()
	dial := []string{"dial", "tcp", ln.Addr().String()}
	targets := 1
	all, err := net.InterfaceAddrs()
	require.NoError(t, err)
	for _, a := range all {
		// Every address of this machine, at which a listener on all of them could be reached.
		ip, _, perr := net.ParseCIDR(a.String())
		require.NoError(t, perr)
		own, lerr := net.Listen("tcp", net.JoinHostPort(ip.String(), "0"))
		if lerr != nil {
			continue // an address of one link only
		}
		defer own.Close()
		dial = append(dial, "tcp", own.Addr().String())
		targets++
	}
	// An abstract socket has no path, and belongs to a network namespace.
	abstract, err := net.Listen("unix", fmt.Sprintf("@lifeboat-test-%d", os.Getpid()))
	require.NoError(t, err)
	defer abstract.Close()
	dial = append(dial, "unix", abstract.Addr().String())
	targets++
	outside := []string{"udp", otherIP + ":53", "tcp", "169.254.169.254:80", "tcp", "[" + otherIP6 + "]:443"}

	// The control: the same program reaches all that there is when it is not confined.
	free, err := exec.Command(os.Args[0], dial...).Output()
	require.NoError(t, err)
	require.Equal(t, targets, strings.Count(string(free), "reached: true"), "%s", free)

	program := append(append([]string{os.Args[0]}, dial...), outside...)
	for i, ns := range namespaces() {
		p := place{dir: t.TempDir()}
		s := &Server{}
		l := launch{kind: consul(), scratch: scratch(t), options: Options{Confine: confine()}, namespace: ns}
		err := l.run(t.Context(), s, p, program)
		require.NoError(t, err, "this test needs root, or user namespaces; way %d", i)
		<-s.Done()
		require.NoError(t, s.process.err)
		said, err := os.ReadFile(p.log())
		require.NoError(t, err)
		assert.NotContains(t, string(said), "reached: true", "way %d", i)
		assert.Equal(t, targets+3, strings.Count(string(said), "reached: false"), "%s", said)
		require.NoError(t, s.Stop())
	}
}

// TestConfinedGivesUpWhatLeadsOut looks at the capabilities that a confined program has.
func TestConfinedGivesUpWhatLeadsOut(t *testing.T) {
	for i, ns := range namespaces() {
		p, s := place{dir: t.TempDir()}, &Server{}
		l := launch{kind: consul(), scratch: scratch(t), options: Options{Confine: confine()}, namespace: ns}
		require.NoError(t, l.run(t.Context(), s, p, []string{"/bin/cat", "/proc/self/status"}))
		<-s.Done()
		require.NoError(t, s.Stop())
		said, err := os.ReadFile(p.log())
		require.NoError(t, err)
		// CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH and CAP_FOWNER are bits 1, 2 and 3.
		assert.Regexp(t, `CapEff:\s0*[0e]\n`, string(said), "way %d", i)
		assert.Regexp(t, `CapBnd:\s0*[0e]\n`, string(said), "way %d", i)
		assert.Regexp(t, `NoNewPrivs:\s1\n`, string(said), "way %d", i)
	}
}

// TestConfinedRefusesTheMachinesNamespace runs the hidden command by hand, in the namespace that everybody is in.
func TestConfinedRefusesTheMachinesNamespace(t *testing.T) {
	if !alone(t, syscall.CLONE_NEWNET) {
		return
	}
	newOutside(t) // a machine's namespace has an interface that leads out
	ran := filepath.Join(t.TempDir(), "ran")
	cmd := exec.Command(os.Args[0], "confine", "--", "/bin/touch", ran)
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer r.Close()
	cmd.ExtraFiles = []*os.File{w}
	out, err := cmd.CombinedOutput()
	require.NoError(t, w.Close())
	require.Error(t, err)
	assert.Contains(t, string(out), "it has the interface out0")
	assert.NoFileExists(t, ran)
	b := make([]byte, 100)
	n, err := r.Read(b)
	require.NoError(t, err)
	assert.True(t, strings.HasPrefix(string(b[:n]), "refused "))
}

// TestMachineThatRefusesNamespaces has a machine whose limit of namespaces is zero, as a container's seccomp filter has it in effect.
func TestMachineThatRefusesNamespaces(t *testing.T) {
	// The limits are those of the user namespace of the test's own.
	if !alone(t, syscall.CLONE_NEWUSER|syscall.CLONE_NEWNET) {
		return
	}
	require.NoError(t, interfaceUp("lo"))
	for _, kind := range []string{"net", "user"} {
		require.NoError(t, os.WriteFile("/proc/sys/user/max_"+kind+"_namespaces", []byte("0"), 0))
	}
	srv := started(t, StartNomad, scratch(t), Options{Binary: program(t, "nomad"), Confine: confine()})
	assert.Equal(t, IsolatedByConfiguration, srv.Isolation)
	writeAtOnce(t, "nomad", srv)
	_, err := StartNomad(t.Context(), scratch(t), Options{Binary: program(t, "nomad"), Confine: confine(), RequireIsolation: true})
	require.ErrorContains(t, err, "must not run without a network namespace of its own")
	require.ErrorContains(t, err, "the machine refuses")
}

// TestConfineThatDoesNotWork has a command that is no such command: that is an error, and no reason to go without.
func TestConfineThatDoesNotWork(t *testing.T) {
	for _, c := range []struct {
		command []string
		says    string
	}{
		{[]string{"/nowhere/lifeboat", "confine"}, "no such file"},
		{[]string{"/bin/false"}, "it ended by itself"},
		{[]string{"/bin/sh", "-c", "echo nonsense >&3"}, `said "nonsense`},
	} {
		_, err := StartConsul(t.Context(), scratch(t), Options{Binary: program(t, "consul"), Confine: c.command})
		require.ErrorContains(t, err, c.says)
	}
}

// TestRelayCarriesManyConnections has requests at the same time, and one that the server answers late.
func TestRelayCarriesManyConnections(t *testing.T) {
	srv := started(t, StartNomad, scratch(t), Options{Binary: program(t, "nomad"), Confine: confine()})
	client, base, err := source.NewHTTPClient(srv.Address, srv.TLS, time.Minute)
	require.NoError(t, err)
	defer client.CloseIdleConnections()
	errs := make(chan error)
	const n = 50
	for i := range n {
		go func() {
			path := "/v1/status/leader"
			if i%5 == 0 {
				path = "/v1/jobs?index=1000000&wait=500ms"
			}
			s := &Server{client: client, base: base, Token: srv.Token}
			errs <- s.call(t.Context(), "GET", path, nil, nil)
		}()
	}
	for range n {
		require.NoError(t, <-errs)
	}
}
