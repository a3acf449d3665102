package nomad_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/certtest"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/nomad"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/sourcetest"
)

var _ sourcetest.Opener = (*nomad.Operator)(nil)

// noise is what hardly compresses.
func noise(n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	return base64.StdEncoding.EncodeToString(b)
}

// startNoisy is start with values that do not compress.
func startNoisy(t *testing.T) *sourcetest.Server {
	t.Helper()
	srv := start(t)
	c := dial(t, srv.Address)
	reset := srv.Reset
	srv.Reset = func(t *testing.T) {
		t.Helper()
		reset(t)
		require.NoError(t, c.System().GarbageCollect())
	}
	srv.Put = func(t *testing.T, n, size int) {
		t.Helper()
		for i := range n {
			j := job(fmt.Sprintf("item-%d", i), "default", 0)
			j.SetMeta("value", noise(size))
			_, _, err := c.Jobs().Register(j, nil)
			require.NoError(t, err)
		}
	}
	return srv
}

// restore gives an archive to a fresh server with Nomad's own command.
func restore(t *testing.T, data []byte) *api.Client {
	t.Helper()
	n, err := bintest.StartNomad(t.Context(), t.TempDir())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, n.Kill()) })
	r := &region{address: n.Address}
	file := filepath.Join(t.TempDir(), "data.snap")
	require.NoError(t, os.WriteFile(file, data, 0o600))
	r.run(t, "", "nomad operator snapshot restore "+file)
	return dial(t, n.Address)
}

func TestOperatorConformance(t *testing.T) {
	srv := startNoisy(t)
	sourcetest.RunOpaque(t, sourcetest.Harness{
		Format: "snap", Server: srv, Victim: startNoisy, Items: "bytes", Huge: 100 << 10,
		New: func(address string, idle time.Duration) sourcetest.Opener {
			return nomad.NewOperator(config.Nomad{Address: address}, nomad.Options{Idle: idle})
		},
		Decode: func(t *testing.T, data []byte) map[string]string {
			t.Helper()
			c := restore(t, data)
			jobs, _, err := c.Jobs().List(&api.QueryOptions{Namespace: "*"})
			require.NoError(t, err)
			items := make(map[string]string)
			for _, stub := range jobs {
				j, _, err := c.Jobs().Info(stub.ID, nil)
				require.NoError(t, err)
				items[stub.ID] = j.Meta["value"]
			}
			return items
		},
	})
	t.Run("silent", func(t *testing.T) { testSilent(t, srv) })
	t.Run("digest", func(t *testing.T) { testDigest(t, srv) })
}

// testDigest has an archive that is whole, and another one's digest.
func testDigest(t *testing.T, srv *sourcetest.Server) {
	t.Helper()
	for digest, damaged := range map[string]bool{
		"sha-256=" + base64.StdEncoding.EncodeToString(make([]byte, 32)): true, "": false, "md5=x": false,
	} {
		u := srv.Address
		address := front(t, u, func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path != "/v1/operator/snapshot" {
				return false
			}
			req, err := http.NewRequestWithContext(r.Context(), http.MethodGet, u+r.URL.Path, nil)
			assert.NoError(t, err)
			resp, err := quiet(&http.Transport{}).Do(req)
			if !assert.NoError(t, err) {
				return true
			}
			defer resp.Body.Close()
			assert.Contains(t, resp.Header.Get("Digest"), "sha-256=", "Nomad sends one")
			w.Header().Set("Digest", digest)
			_, err = io.Copy(w, resp.Body)
			assert.NoError(t, err)
			return true
		})
		st, err := nomad.NewOperator(config.Nomad{Address: address}, nomad.Options{}).Open(t.Context())
		require.NoError(t, err)
		_, err = io.Copy(io.Discard, st)
		require.Equal(t, damaged, err != nil, "%q: %v", digest, err)
		if damaged {
			var typed *source.Error
			require.ErrorAs(t, err, &typed)
			assert.Equal(t, source.Damaged, typed.Reason)
		}
		require.NoError(t, st.Close())
	}
}

// testSilent has a server that never begins to answer.
func testSilent(t *testing.T, srv *sourcetest.Server) {
	t.Helper()
	address := front(t, srv.Address, func(_ http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != "/v1/operator/snapshot" {
			return false
		}
		<-r.Context().Done()
		return true
	})
	_, err := nomad.NewOperator(config.Nomad{Address: address}, nomad.Options{Idle: 300 * time.Millisecond}).Open(t.Context())
	var typed *source.Error
	require.ErrorAs(t, err, &typed)
	assert.Equal(t, source.Stalled, typed.Reason)
}

func testOperatorDenied(t *testing.T, r *region) {
	t.Helper()
	_, err := nomad.NewOperator(r.as(t, r.token(t, "backup", reader)), nomad.Options{}).Open(t.Context())
	var typed *source.Error
	require.ErrorAs(t, err, &typed)
	assert.Equal(t, source.Denied, typed.Reason)
	require.ErrorContains(t, err, `needs to be a management token, or operator { capabilities = ["snapshot-save"] }`)

	for secret, policies := range map[string]string{
		r.root: "management", r.token(t, "saver", `operator { capabilities = ["snapshot-save"] }`): "saver",
	} {
		st, err := nomad.NewOperator(r.as(t, secret), nomad.Options{}).Open(t.Context())
		require.NoError(t, err)
		_, err = io.Copy(io.Discard, st)
		require.NoError(t, err)
		info, err := st.Info(t.Context())
		require.NoError(t, err)
		assert.Equal(t, policies, info.GetIdentity()["token_policies"])
		require.NoError(t, st.Close())
	}
}

// TestTLS has a server that wants certificates of its clients.
func TestTLS(t *testing.T) {
	ca := certtest.New(t, "nomad")
	server := ca.Server(t, certtest.For("127.0.0.1", "localhost", "server.global.nomad"))
	mine := ca.Client(t, "lifeboat")
	files := config.TLS{CAFile: ca.File, CertFile: mine.Cert, KeyFile: config.SecretFile(mine.Key)}
	tlsConfig, err := files.Client()
	require.NoError(t, err)
	n, err := bintest.StartNomadWith(t.Context(), t.TempDir(), bintest.NomadOptions{
		TLS: quiet(&http.Transport{TLSClientConfig: tlsConfig}),
		HCL: fmt.Sprintf("tls {\n http = true\n rpc = true\n ca_file = %q\n cert_file = %q\n key_file = %q\n "+
			"verify_https_client = true\n}", ca.File, server.Cert, server.Key),
	})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, n.Kill()) })

	cfg := config.Nomad{Address: n.Address, TLS: files}
	_, _, info := readSource(t, nomad.New(cfg, nomad.Options{}))
	assert.EqualValues(t, 1, info.GetCounts()["namespaces"])
	require.NoError(t, nomad.New(cfg, nomad.Options{}).Ping(t.Context()))
	st, err := nomad.NewOperator(cfg, nomad.Options{}).Open(t.Context())
	require.NoError(t, err)
	_, err = io.Copy(io.Discard, st)
	require.NoError(t, err)
	require.NoError(t, st.Close())

	stranger, expired := certtest.New(t, "stranger").Client(t, "lifeboat"), ca.Client(t, "lifeboat", certtest.Expired())
	for name, bad := range map[string]config.TLS{
		"no certificate":      {CAFile: ca.File},
		"another CA's client": {CAFile: ca.File, CertFile: stranger.Cert, KeyFile: config.SecretFile(stranger.Key)},
		"an expired one":      {CAFile: ca.File, CertFile: expired.Cert, KeyFile: config.SecretFile(expired.Key)},
		"another CA's server": {CAFile: certtest.New(t, "other").File, CertFile: mine.Cert, KeyFile: config.SecretFile(mine.Key)},
		"no CA":               {CertFile: mine.Cert, KeyFile: config.SecretFile(mine.Key)},
		"no such certificate": {CAFile: ca.File, CertFile: ca.File + ".gone", KeyFile: config.SecretFile(mine.Key)},
	} {
		cfg.TLS = bad
		_, err := nomad.New(cfg, nomad.Options{}).Open(t.Context())
		var typed *source.Error
		require.ErrorAs(t, err, &typed, name)
		_, err = nomad.NewOperator(cfg, nomad.Options{}).Open(t.Context())
		require.ErrorAs(t, err, &typed, name)
	}
}

// TestRotation replaces the certificates under a source.
func TestRotation(t *testing.T) {
	n, err := bintest.StartNomad(t.Context(), t.TempDir())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, n.Kill()) })
	certtest.TryClient(t, strings.TrimPrefix(n.Address, "http://"), func(_ *testing.T, addr string, files config.TLS) func(context.Context) error {
		return nomad.New(config.Nomad{Address: "https://" + addr, TLS: files}, nomad.Options{}).Ping
	})
}

// TestVolumes has volumes on a server that has no client to make them: they are put into a snapshot of its state.
func TestVolumes(t *testing.T) {
	n, err := bintest.StartNomad(t.Context(), t.TempDir())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, n.Kill()) })
	st, err := nomad.NewOperator(config.Nomad{Address: n.Address}, nomad.Options{}).Open(t.Context())
	require.NoError(t, err)
	data, err := io.ReadAll(st)
	require.NoError(t, err)
	require.NoError(t, st.Close())
	const csi, host = 18, 31 // as nomad/fsm.go numbers them
	capability := []any{map[string]any{"AttachmentMode": "file-system", "AccessMode": "single-node-writer"}}
	var records [][]byte
	for _, id := range []string{"data[1]", "data[0]"} {
		records = append(records, append([]byte{csi}, pack(map[string]any{
			"ID": id, "Name": id, "ExternalID": "vol-1234", "Namespace": "default", "PluginID": "ebs",
			"RequestedCapabilities": capability, "AccessMode": "single-node-writer", "AttachmentMode": "file-system",
			"Parameters": map[string]any{"type": "gp3"}, "Context": map[string]any{"zone": "a"}, "Capacity": 1 << 40,
			"MountOptions": map[string]any{"FSType": "ext4", "MountFlags": []any{"password=s3cr3t"}},
			"Secrets":      map[string]any{"key": "s3cr3t"}, "Schedulable": true, "CreateIndex": 5, "ModifyIndex": 6,
		})...))
	}
	records = append(records, append([]byte{host}, pack(map[string]any{
		"ID": "43ac2ae0-0000-4000-8000-000000000001", "Name": "scratch", "Namespace": "default", "PluginID": "mkdir",
		"NodePool": "default", "NodeID": "43ac2ae0-0000-4000-8000-000000000002", "State": "ready", "HostPath": "/srv/scratch",
		"CapacityBytes": 1000, "RequestedCapabilities": capability, "CreateIndex": 5, "ModifyIndex": 6,
	})...))
	address := restore(t, amend(t, data, slices.Concat(records...))).Address()

	files, before, info := readSource(t, nomad.New(config.Nomad{Address: address}, nomad.Options{PerPage: 1}))
	assert.Subset(t, info.GetCounts(), map[string]int64{"csi_volumes": 2, "host_volumes": 1})
	assert.Equal(t, []string{"secrets and mount flags of CSI volumes: Nomad tells nobody whether there are any; " +
		"only the operator snapshot (full: true) holds them"}, info.GetMissing())
	file := files["volumes/csi/default/data%5B0%5D.json"]
	assert.JSONEq(t, `{"Volumes": [{"ID": "data[0]", "Name": "data[0]", "ExternalID": "vol-1234", "Namespace": "default",
		"PluginID": "ebs", "RequestedCapabilities": [{"AttachmentMode": "file-system", "AccessMode": "single-node-writer"}],
		"Parameters": {"type": "gp3"}, "Context": {"zone": "a"}, "Capacity": 1099511627776, "MountOptions": {"FSType": "ext4"},
		"RequestedCapacityMin": 0, "RequestedCapacityMax": 0, "CloneID": "", "SnapshotID": "", "RequestedTopologies": null,
		"Topologies": []}]}`, string(file))
	var register api.CSIVolumeRegisterRequest
	require.NoError(t, json.Unmarshal(file, &register))
	assert.Equal(t, "vol-1234", register.Volumes[0].ExternalID)
	file = files["volumes/host/default/43ac2ae0-0000-4000-8000-000000000001.json"]
	var volume api.HostVolumeRegisterRequest
	require.NoError(t, json.Unmarshal(file, &volume))
	assert.Equal(t, "/srv/scratch", volume.Volume.HostPath)
	assert.Empty(t, volume.Volume.ID)
	for _, b := range files {
		assert.NotContains(t, string(b), "s3cr3t")
		assert.NotContains(t, string(b), "REDACTED")
	}
	_, after, _ := readSource(t, nomad.New(config.Nomad{Address: address}, nomad.Options{}))
	assert.Equal(t, before, after)

	_, _, info = readSource(t, nomad.New(config.Nomad{Address: address, Namespaces: []string{"default"}}, nomad.Options{}))
	assert.EqualValues(t, 1, info.GetCounts()["host_volumes"])
}

// amend adds records to the state of an operator snapshot.
func amend(t *testing.T, data, records []byte) []byte {
	t.Helper()
	gz, err := gzip.NewReader(bytes.NewReader(data))
	require.NoError(t, err)
	files := make(map[string][]byte)
	for tr := tar.NewReader(gz); ; {
		h, nerr := tr.Next()
		if errors.Is(nerr, io.EOF) {
			break
		}
		require.NoError(t, nerr)
		files[h.Name], err = io.ReadAll(tr)
		require.NoError(t, err)
	}
	state := append(files["state.bin"], records...)
	var meta map[string]any
	dec := json.NewDecoder(bytes.NewReader(files["meta.json"]))
	dec.UseNumber()
	require.NoError(t, dec.Decode(&meta))
	meta["Size"] = len(state)
	head, err := json.Marshal(meta)
	require.NoError(t, err)
	sums := fmt.Appendf(nil, "%x  meta.json\n%x  state.bin\n", sha256.Sum256(head), sha256.Sum256(state))
	var out bytes.Buffer
	zw := gzip.NewWriter(&out)
	tw := tar.NewWriter(zw)
	for name, b := range map[string][]byte{"meta.json": head, "state.bin": state, "SHA256SUMS": sums} {
		require.NoError(t, tw.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: int64(len(b))}))
		_, err = tw.Write(b)
		require.NoError(t, err)
	}
	require.NoError(t, tw.Close())
	require.NoError(t, zw.Close())
	return out.Bytes()
}

// pack encodes the little of MessagePack that a volume needs.
func pack(v any) []byte {
	switch v := v.(type) {
	case map[string]any:
		b := binary.BigEndian.AppendUint16([]byte{0xde}, uint16(len(v)))
		for key, value := range v {
			b = append(append(b, pack(key)...), pack(value)...)
		}
		return b
	case []any:
		b := binary.BigEndian.AppendUint16([]byte{0xdc}, uint16(len(v)))
		for _, item := range v {
			b = append(b, pack(item)...)
		}
		return b
	case string:
		return append(binary.BigEndian.AppendUint16([]byte{0xda}, uint16(len(v))), v...)
	case int:
		return binary.BigEndian.AppendUint64([]byte{0xd3}, uint64(v))
	case bool:
		return []byte{0xc3} // only true is needed
	}
	panic(fmt.Sprintf("no %T is needed", v))
}
