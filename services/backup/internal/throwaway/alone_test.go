package throwaway

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// aloneEnv names the test that a process was started for by alone.
const aloneEnv = "LIFEBOAT_TEST_ALONE"

// alone runs the calling test in a process of its own with its own namespaces, as root there, and fails with it. It is true in that
// process, which is where the test then goes on.
func alone(t *testing.T, flags uintptr) bool {
	t.Helper()
	if os.Getenv(aloneEnv) == t.Name() {
		return true
	}
	attr := &syscall.SysProcAttr{Cloneflags: flags}
	if os.Geteuid() != 0 || flags&syscall.CLONE_NEWUSER != 0 {
		attr.Cloneflags |= syscall.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}}
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=200s")
	cmd.SysProcAttr = attr
	cmd.Env = append(os.Environ(), aloneEnv+"="+t.Name())
	log := filepath.Join(t.TempDir(), "log")
	p, err := startProcess(cmd, log)
	require.NoError(t, err, "this test needs root, or user namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone)")
	<-p.done
	out, err := os.ReadFile(log)
	require.NoError(t, err)
	require.NoError(t, p.err, "%s", out)
	t.Logf("%s", out)
	return false
}

// outside is a network device that takes everything that leaves this namespace, and counts it.
type outside struct {
	mu   sync.Mutex
	seen []string
}

// addresses of nobody, for documentation (RFC 5737, RFC 3849).
const (
	ownIP, otherIP   = "198.51.100.1", "203.0.113.9"
	ownIP6, otherIP6 = "2001:db8:1::1", "2001:db8:2::9"
)

// newOutside makes the device and routes everything to it that is not loopback. The namespace must be the test's own.
func newOutside(t *testing.T) *outside {
	t.Helper()
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	require.NoError(t, err, "this test needs /dev/net/tun")
	req, err := unix.NewIfreq("out0")
	require.NoError(t, err)
	req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	require.NoError(t, unix.IoctlIfreq(fd, unix.TUNSETIFF, req))
	require.NoError(t, unix.SetNonblock(fd, true))
	tun := os.NewFile(uintptr(fd), "out0")
	require.NoError(t, interfaceUp("lo"))
	require.NoError(t, interfaceUp("out0"))
	for _, ip := range []string{ownIP, ownIP6} {
		address(t, unix.RTM_NEWADDR, "out0", ip)
		route(t, "out0", ip)
	}
	o := &outside{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 64<<10)
		for {
			n, err := tun.Read(b)
			if err != nil {
				return
			}
			if what, ok := describe(b[:n]); ok {
				o.mu.Lock()
				o.seen = append(o.seen, what)
				o.mu.Unlock()
			}
		}
	}()
	t.Cleanup(func() { tun.Close(); <-done })
	return o
}

// packets are those that came since the last call.
func (o *outside) packets() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	seen := o.seen
	o.seen = nil
	return seen
}

// describe says where a packet goes. What the kernel sends by itself on a new device (neighbours, routers, groups; RFC 4861, RFC 3810)
// is not counted.
func describe(p []byte) (string, bool) {
	const icmp6, ipv6Header = 58, 40
	switch {
	case len(p) >= 20 && p[0]>>4 == 4:
		header := int(p[0]&15) * 4
		dst, _ := netip.AddrFromSlice(p[16:20])
		return fmt.Sprintf("protocol %d to %s%s", p[9], dst, port(p, header)), true
	case len(p) >= ipv6Header && p[0]>>4 == 6:
		dst, _ := netip.AddrFromSlice(p[24:40])
		// Reports of groups come after a hop-by-hop header (0).
		if p[6] == 0 && len(p) > 48 && p[ipv6Header] == icmp6 && p[48] == 143 {
			return "", false
		}
		if p[6] == icmp6 && len(p) > ipv6Header && p[ipv6Header] >= 133 && p[ipv6Header] <= 136 {
			return "", false
		}
		return fmt.Sprintf("protocol %d to %s%s", p[6], dst, port(p, ipv6Header)), true
	}
	return fmt.Sprintf("%d bytes of something", len(p)), true
}

func port(p []byte, header int) string {
	if len(p) < header+4 {
		return ""
	}
	return fmt.Sprintf(" port %d", binary.BigEndian.Uint16(p[header+2:]))
}

// netlink sends a request and waits for the acknowledgement; rtnetlink(7).
func netlink(t *testing.T, kind uint16, body []byte) {
	t.Helper()
	s, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	require.NoError(t, err)
	defer unix.Close(s)
	flags := uint16(unix.NLM_F_REQUEST | unix.NLM_F_ACK)
	if kind != unix.RTM_DELADDR {
		flags |= unix.NLM_F_CREATE
	}
	msg := binary.NativeEndian.AppendUint32(nil, uint32(unix.NLMSG_HDRLEN+len(body)))
	msg = binary.NativeEndian.AppendUint16(msg, kind)
	msg = binary.NativeEndian.AppendUint16(msg, flags)
	msg = append(append(msg, 1, 0, 0, 0, 0, 0, 0, 0), body...)
	require.NoError(t, unix.Sendto(s, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}))
	answer := make([]byte, 4096)
	n, _, err := unix.Recvfrom(s, answer, 0)
	require.NoError(t, err)
	require.GreaterOrEqual(t, n, unix.NLMSG_HDRLEN+4)
	require.Equal(t, uint16(unix.NLMSG_ERROR), binary.NativeEndian.Uint16(answer[4:]))
	if code := int32(binary.NativeEndian.Uint32(answer[unix.NLMSG_HDRLEN:])); code != 0 {
		require.NoError(t, syscall.Errno(-code), "netlink request %d", kind)
	}
}

func attribute(kind uint16, value []byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(value)))
	b = append(binary.NativeEndian.AppendUint16(b, kind), value...)
	return append(b, make([]byte, (4-len(b)%4)%4)...)
}

func family6(ip string) byte {
	if strings.Contains(ip, ":") {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

func index(t *testing.T, device string) uint32 {
	t.Helper()
	i, err := net.InterfaceByName(device)
	require.NoError(t, err)
	return uint32(i.Index)
}

// address adds or removes an address of a device.
func address(t *testing.T, kind uint16, device, ip string) {
	t.Helper()
	a := netip.MustParseAddr(ip)
	body := append([]byte{family6(ip), byte(a.BitLen()), unix.IFA_F_NODAD, unix.RT_SCOPE_UNIVERSE},
		binary.NativeEndian.AppendUint32(nil, index(t, device))...)
	body = append(body, attribute(unix.IFA_LOCAL, a.AsSlice())...)
	netlink(t, kind, append(body, attribute(unix.IFA_ADDRESS, a.AsSlice())...))
}

// route sends everything of ip's family to a device, from ip.
func route(t *testing.T, device, ip string) {
	t.Helper()
	body := []byte{
		family6(ip), 0, 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_STATIC, unix.RT_SCOPE_UNIVERSE, unix.RTN_UNICAST, 0, 0, 0, 0,
	}
	netlink(t, unix.RTM_NEWROUTE, append(body,
		attribute(unix.RTA_OIF, binary.NativeEndian.AppendUint32(nil, index(t, device)))...))
}

// countsAll is the control of a count of none: what is sent on purpose arrives.
func (o *outside) countsAll(t *testing.T) {
	t.Helper()
	o.packets()
	for ip, network := range map[string]string{otherIP: "udp", otherIP6: "udp", "203.0.113.10": "tcp", "2001:db8:2::10": "tcp"} {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		conn, err := new(net.Dialer).DialContext(ctx, network, net.JoinHostPort(ip, "443"))
		if network == "udp" {
			require.NoError(t, err)
			_, err = conn.Write([]byte("hello"))
			require.NoError(t, err)
			require.NoError(t, conn.Close())
		} else {
			require.ErrorContains(t, err, "timeout")
		}
		cancel()
	}
	var all []string
	for _, want := range []string{
		"protocol 17 to " + otherIP + " port 443", "protocol 17 to " + otherIP6 + " port 443",
		"protocol 6 to 203.0.113.10 port 443", "protocol 6 to 2001:db8:2::10 port 443",
	} {
		require.Eventually(t, func() bool {
			all = append(all, o.packets()...)
			return slices.Contains(all, want)
		}, time.Minute, 10*time.Millisecond, want)
	}
}
