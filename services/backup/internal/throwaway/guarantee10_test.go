package throwaway

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.uber.org/zap"

	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
)

// TestGuarantee10 is "a drill never touches production: loopback only". The servers run with nothing but their configuration to
// hold them, in a network namespace whose every route leads to the test, which counts what arrives. They are given all that could
// tempt them to send something.
func TestGuarantee10NothingLeavesLoopback(t *testing.T) {
	if !alone(t, syscall.CLONE_NEWNET) {
		return
	}
	out := newOutside(t)
	out.countsAll(t)
	trap := newTraps(t)
	trap.catches(t)
	for name, tempt := range map[string]func(*testing.T, *Server){"consul": temptConsul, "nomad": temptNomad} {
		t.Run(name, func(t *testing.T) {
			srv := started(t, starters()[name], scratch(t), Options{Binary: program(t, name)})
			require.Equal(t, IsolatedByConfiguration, srv.Isolation)
			tempt(t, srv)
			assertQuiet(t, out, trap)
		})
	}
	t.Run("etcd", func(t *testing.T) {
		srv := restoredEtcd(t)
		assertQuiet(t, out, trap)
		require.NoError(t, srv.Stop())
	})
	out.countsAll(t)
	trap.catches(t)
}

// assertQuiet waits for a while, in which timers of the servers run out, and asserts that nothing came of them, and that whatever
// listens in this namespace does so on loopback.
func assertQuiet(t *testing.T, out *outside, trap *traps) {
	t.Helper()
	var sent, caught []string
	look, enough := time.NewTicker(50*time.Millisecond), time.After(5*time.Second)
	defer look.Stop()
	// assert.Never would leave its last look running beside the lines below.
	for looking := true; looking && len(sent)+len(caught) == 0; {
		select {
		case <-look.C:
		case <-enough:
			looking = false
		}
		sent, caught = append(sent, out.packets()...), append(caught, trap.caught()...)
	}
	assert.Empty(t, sent, "packets that left loopback")
	assert.Empty(t, caught, "connections to what a machine has on its loopback")
	listening := listeners(t)
	require.NotEmpty(t, listening)
	for _, a := range listening {
		assert.True(t, strings.HasPrefix(a, "127."), "something listens on %s", a)
	}
}

// listeners are the addresses at which this namespace listens, by TCP and UDP.
func listeners(t *testing.T) []string {
	t.Helper()
	const listen, unconnected = "0A", "07"
	var all []string
	for _, file := range []string{"tcp", "tcp6", "udp", "udp6"} {
		b, err := os.ReadFile("/proc/net/" + file)
		require.NoError(t, err)
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if len(f) < 4 || f[3] != listen && f[3] != unconnected {
				continue
			}
			host, portHex, ok := strings.Cut(f[1], ":")
			require.True(t, ok)
			if len(host) > 8 {
				all = append(all, host) // an IPv6 address: none is expected, 127.0.0.1 mapped into it neither
				continue
			}
			var ip [4]byte
			_, err := fmt.Sscanf(host, "%02x%02x%02x%02x", &ip[3], &ip[2], &ip[1], &ip[0])
			require.NoError(t, err)
			p, err := strconv.ParseUint(portHex, 16, 16)
			require.NoError(t, err)
			all = append(all, fmt.Sprintf("%d.%d.%d.%d:%d", ip[0], ip[1], ip[2], ip[3], p))
		}
	}
	return all
}

// traps listen where a machine of production has its agents on loopback.
type traps struct {
	mu    sync.Mutex
	conns []string
}

func newTraps(t *testing.T) *traps {
	t.Helper()
	tr := &traps{}
	// Consul's and Vault's API, Nomad's, etcd's, and a resolver.
	for _, a := range []string{
		"127.0.0.1:8500", "127.0.0.1:8501", "127.0.0.1:8502", "127.0.0.1:8300", "127.0.0.1:8301", "127.0.0.1:8200",
		"127.0.0.1:4646", "127.0.0.1:4647", "127.0.0.1:4648", "127.0.0.1:2379", "127.0.0.1:2380", "127.0.0.1:8125", "127.0.0.1:53",
	} {
		tr.listen(t, a)
	}
	resolv, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		return tr
	}
	for line := range strings.Lines(string(resolv)) {
		f := strings.Fields(line)
		if len(f) == 2 && f[0] == "nameserver" && strings.HasPrefix(f[1], "127.") && f[1] != "127.0.0.1" {
			tr.listen(t, f[1]+":53")
		}
	}
	return tr
}

func (tr *traps) listen(t *testing.T, address string) {
	t.Helper()
	ln, err := net.Listen("tcp", address)
	require.NoError(t, err)
	pc, err := net.ListenPacket("udp", address)
	require.NoError(t, err)
	var wg sync.WaitGroup
	note := func(network string) {
		tr.mu.Lock()
		defer tr.mu.Unlock()
		tr.conns = append(tr.conns, network+" "+address)
	}
	wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			note("tcp")
			conn.Close()
		}
	})
	wg.Go(func() {
		b := make([]byte, 64<<10)
		for {
			if _, _, err := pc.ReadFrom(b); err != nil {
				return
			}
			note("udp")
		}
	})
	t.Cleanup(func() { ln.Close(); pc.Close(); wg.Wait() })
}

func (tr *traps) caught() []string {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	conns := tr.conns
	tr.conns = nil
	return conns
}

// catches is the control: a Nomad server as it is usually set up goes to the Consul agent on its machine's loopback by itself.
func (tr *traps) catches(t *testing.T) {
	t.Helper()
	tr.caught()
	n, err := bintest.StartNomad(t.Context(), t.TempDir())
	require.NoError(t, err)
	defer func() { require.NoError(t, n.Kill()) }()
	require.Eventually(t, func() bool { return slices.Contains(tr.caught(), "tcp 127.0.0.1:8500") }, time.Minute, 10*time.Millisecond)
	require.NoError(t, n.Kill())
	tr.caught()
}

// send makes a request of a throwaway server. What it answers is logged and does not matter: it is what it does that counts. It
// must have understood most of it, though.
func send(t *testing.T, s *Server, method, path, body string) {
	t.Helper()
	var in any
	if body != "" {
		require.NoError(t, json.Unmarshal([]byte(body), &in), body)
	}
	require.NoError(t, s.call(t.Context(), method, path, in, nil), path)
}

// temptConsul gives a Consul server things with addresses outside.
func temptConsul(t *testing.T, s *Server) {
	t.Helper()
	defer s.client.CloseIdleConnections()
	at := fmt.Sprintf
	send(t, s, "PUT", "/v1/kv/config/url", at(`"http://%s/"`, otherIP))
	for _, name := range []string{"web", "consul"} { // a server of the source's, too
		send(t, s, "PUT", "/v1/catalog/register", at(`{"Node":"n-%s","Address":%q,"TaggedAddresses":{"wan":%q,"lan":%q},
			"Service":{"Service":%q,"ID":%q,"Address":%q,"Port":8300},
			"Checks":[{"Node":"n-%s","CheckID":"serfHealth","Name":"serf","Status":"passing"},
			{"Node":"n-%s","CheckID":"h","Name":"h","Status":"critical","Definition":{"HTTP":"http://%s/","Interval":"1s"}}]}`,
			name, otherIP, otherIP, otherIP, name, name, otherIP, name, name, otherIP))
	}
	send(t, s, "PUT", "/v1/catalog/register", at(`{"Node":"dc2","Address":%q,"Service":{"Service":"mesh-gateway","Kind":"mesh-gateway",
		"Port":443,"Address":%q}}`, otherIP, otherIP))
	send(t, s, "POST", "/v1/query", `{"Name":"q","Service":{"Service":"web","Failover":{"NearestN":3,"Datacenters":["dc2"]}}}`)
	send(t, s, "PUT", "/v1/session/create", `{"Node":"n-web","Name":"s","TTL":"10s","Checks":["serfHealth"]}`)
	send(t, s, "PUT", "/v1/config", `{"Kind":"service-defaults","Name":"web","Protocol":"http"}`)
	send(t, s, "PUT", "/v1/config", at(`{"Kind":"service-defaults","Name":"out","Protocol":"tcp","Destination":{"Addresses":[%q],"Port":443}}`, otherIP))
}

// temptNomad gives a Nomad server jobs and settings that lead outside.
func temptNomad(t *testing.T, s *Server) {
	t.Helper()
	defer s.client.CloseIdleConnections()
	u := "http://" + otherIP + ":8200"
	send(t, s, "PUT", "/v1/namespace/n", `{"Name":"n"}`)
	send(t, s, "PUT", "/v1/var/n", `{"Items":{"url":"`+u+`"}}`)
	send(t, s, "PUT", "/v1/acl/auth-method/oidc", `{"Name":"oidc","Type":"OIDC","TokenLocality":"global","MaxTokenTTL":"100h","Config":{
		"OIDCDiscoveryURL":"`+u+`","OIDCClientID":"c","OIDCClientSecret":"s","AllowedRedirectURIs":["`+u+`"],"BoundAudiences":["a"]}}`)
	send(t, s, "PUT", "/v1/acl/auth-method/jwt", `{"Name":"jwt","Type":"JWT","TokenLocality":"global","MaxTokenTTL":"1h","Config":{
		"JWKSURL":"`+u+`/keys","BoundIssuer":["i"],"BoundAudiences":["a"]}}`)
	send(t, s, "PUT", "/v1/acl/binding-rule", `{"AuthMethod":"oidc","BindType":"management","Selector":"x in list.y"}`)
	send(t, s, "PUT", "/v1/jobs", `{"Job":{"ID":"tempting","Name":"tempting","Type":"service","Datacenters":["*"],"TaskGroups":[{
		"Name":"g","Count":3,"Networks":[{"Mode":"bridge"}],"Consul":{"Cluster":"default"},
		"Services":[{"Name":"web","Provider":"consul","PortLabel":"80","Connect":{"SidecarService":{"Proxy":{"Upstreams":[
			{"DestinationName":"db","LocalBindPort":5432}]}}},
			"Checks":[{"Type":"http","Path":"/","Interval":10000000000,"Timeout":1000000000,"Expose":true}]}],
		"Volumes":{"v":{"Name":"v","Type":"csi","Source":"vol","AccessMode":"multi-node-multi-writer","AttachmentMode":"file-system"}},
		"Tasks":[{"Name":"t","Driver":"docker","Config":{"image":"`+otherIP+`:5000/x:1"},
			"Vault":{"Cluster":"default","Role":"r","ChangeMode":"restart"},
			"Identities":[{"Name":"aws","Audience":["sts"],"File":true}],
			"Artifacts":[{"GetterSource":"`+u+`/a.tgz"},{"GetterSource":"s3::https://s3.amazonaws.com/b/k"}],
			"Templates":[{"EmbeddedTmpl":"{{ key \"a\" }}{{ with secret \"b\" }}{{ end }}","DestPath":"local/x"}],
			"VolumeMounts":[{"Volume":"v","Destination":"/d"}]}]}]}}`)
	send(t, s, "PUT", "/v1/jobs", `{"Job":{"ID":"every-second","Name":"every-second","Type":"batch","Datacenters":["*"],
		"Periodic":{"Enabled":true,"Spec":"* * * * * *","SpecType":"cron"},
		"TaskGroups":[{"Name":"g","Tasks":[{"Name":"t","Driver":"raw_exec","Config":{"command":"/bin/true"}}]}]}}`)
	send(t, s, "PUT", "/v1/operator/scheduler/configuration", `{"SchedulerAlgorithm":"spread","MemoryOversubscriptionEnabled":true}`)
	send(t, s, "PUT", "/v1/job/tempting/plan", `{"Diff":true,"Job":{"ID":"tempting","Name":"tempting","Type":"service","Datacenters":["*"],
		"TaskGroups":[{"Name":"g","Tasks":[{"Name":"t","Driver":"docker","Config":{"image":"x"}}]}]}}`)
	send(t, s, "PUT", "/v1/system/gc", "")
}

// restoredEtcd is an etcd in this process with a snapshot restored.
func restoredEtcd(t *testing.T) *Etcd {
	t.Helper()
	dir := t.TempDir()
	source, err := bintest.StartEtcd(t.Context(), filepath.Join(dir, "source"))
	require.NoError(t, err)
	defer func() { require.NoError(t, source.Kill()) }()
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{source.Endpoint}})
	require.NoError(t, err)
	defer client.Close()
	_, err = client.Put(t.Context(), "url", "http://"+otherIP)
	require.NoError(t, err)
	db := filepath.Join(dir, "db")
	log := zap.NewNop()
	_, err = snapshot.NewV3(log).Save(t.Context(), clientv3.Config{Endpoints: []string{source.Endpoint}}, db)
	require.NoError(t, err)
	require.NoError(t, source.Kill())
	data := filepath.Join(dir, "data")
	require.NoError(t, snapshot.NewV3(log).Restore(snapshot.RestoreConfig{
		SnapshotPath: db, Name: EtcdName, OutputDataDir: data, PeerURLs: []string{EtcdPeerURL},
		InitialCluster: EtcdName + "=" + EtcdPeerURL, InitialClusterToken: "t",
	}))
	srv, err := StartEtcd(t.Context(), data, 1<<20)
	require.NoError(t, err)
	return srv
}
