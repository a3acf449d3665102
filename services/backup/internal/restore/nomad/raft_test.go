package nomad_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"testing/iotest"
	"time"

	"github.com/hashicorp/nomad/api"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore/nomad"
	source "github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/nomad"
)

// as is the region for whoever holds another token.
func (r *region) as(t *testing.T, secret string) config.Nomad {
	t.Helper()
	file := filepath.Join(t.TempDir(), "token")
	require.NoError(t, os.WriteFile(file, []byte(secret+"\n"), 0o600))
	return config.Nomad{Address: r.address, TokenFile: config.SecretFile(file)}
}

func (r *region) operatorSnapshot(t *testing.T) []byte {
	t.Helper()
	st, err := source.NewOperator(r.cfg, source.Options{}).Open(t.Context())
	require.NoError(t, err)
	data, err := io.ReadAll(st)
	require.NoError(t, err)
	require.NoError(t, st.Close())
	return data
}

// inTurn gives one after the other, and the last one again and again.
func inTurn(ways ...func() io.Reader) restore.Open {
	return func(context.Context) (io.ReadCloser, error) {
		now := ways[0]
		if len(ways) > 1 {
			ways = ways[1:]
		}
		return io.NopCloser(now()), nil
	}
}

// TestRaft brings a region back with its tokens, and leaves the destination alone while anything is wrong.
func TestRaft(t *testing.T) {
	src := startRegion(t, withACLs)
	_, err := src.api.Namespaces().Register(&api.Namespace{Name: "apps"}, nil)
	require.NoError(t, err)
	src.variable(t, "apps", "db", map[string]string{"password": "s3cr3t"})
	large := job("large", "apps")
	noise := make([]byte, 300<<10)
	_, _ = rand.NewChaCha8([32]byte{}).Read(noise) // it never fails
	large.SetMeta("noise", base64.StdEncoding.EncodeToString(noise))
	src.register(t, large)
	data := src.operatorSnapshot(t)

	dst := startRegion(t, withACLs)
	dst.register(t, job("before", "default"))
	good := func() io.Reader { return bytes.NewReader(data) }
	part := func(n int) func() io.Reader { return func() io.Reader { return bytes.NewReader(data[:n]) } }
	broken := func(n int) func() io.Reader {
		return func() io.Reader { return io.MultiReader(bytes.NewReader(data[:n]), iotest.ErrReader(io.ErrClosedPipe)) }
	}
	flipped := bytes.Clone(data)
	flipped[len(flipped)/2] ^= 4
	bad := func() io.Reader { return bytes.NewReader(flipped) }
	untouched := func(t *testing.T) {
		t.Helper()
		jobs, _, lerr := dst.api.Jobs().List(&api.QueryOptions{Namespace: "*"})
		require.NoError(t, lerr, "the token of before still holds")
		require.Len(t, jobs, 1)
		require.Equal(t, "before", jobs[0].ID)
	}
	for name, ways := range map[string][]func() io.Reader{
		"damaged": {bad}, "cut": {part(len(data) - 1)}, "empty": {part(0)}, "breaks": {broken(len(data))},
		"damaged later": {good, bad}, "cut later": {good, part(len(data) - 1)}, "breaks half-way": {good, broken(200 << 10)},
		"breaks at last": {good, broken(len(data))},
	} {
		t.Run(name, func(t *testing.T) {
			require.ErrorContains(t, nomad.RestoreRaft(t.Context(), dst.cfg, inTurn(ways...)), "reading the operator snapshot")
			untouched(t)
		})
	}
	t.Run("nobody is asked before it is proven", func(t *testing.T) {
		nobody := config.Nomad{Address: "http://127.0.0.1:1"}
		require.ErrorContains(t, nomad.RestoreRaft(t.Context(), nobody, inTurn(bad)), "reading the operator snapshot")
	})
	t.Run("rights", func(t *testing.T) {
		_, err := dst.api.ACLPolicies().Upsert(&api.ACLPolicy{Name: "most", Rules: `namespace "*" { policy = "write" } operator { policy = "write" }`}, nil)
		require.NoError(t, err)
		token, _, err := dst.api.ACLTokens().Create(&api.ACLToken{Type: "client", Policies: []string{"most"}}, nil)
		require.NoError(t, err)
		for _, secret := range []string{token.SecretID, src.root} {
			err = nomad.RestoreRaft(t.Context(), dst.as(t, secret), inTurn(good))
			require.ErrorContains(t, err, "the token needs to be a management token")
			assert.NotContains(t, err.Error(), secret)
			untouched(t)
		}
	})
	t.Run("canceled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		require.ErrorIs(t, nomad.RestoreRaft(ctx, dst.cfg, inTurn(good)), context.Canceled)
		untouched(t)
	})
	t.Run("good", func(t *testing.T) {
		require.NoError(t, nomad.RestoreRaft(t.Context(), dst.cfg, inTurn(good)))
		_, _, err := dst.api.Jobs().List(&api.QueryOptions{Namespace: "*"})
		require.Error(t, err, "the destination's own token is gone")
		dst.api.SetSecretID(src.root)
		jobs, _, err := dst.api.Jobs().List(&api.QueryOptions{Namespace: "*"})
		require.NoError(t, err)
		require.Len(t, jobs, 1)
		assert.Equal(t, "large", jobs[0].ID)
		require.Eventually(t, func() bool { // the keyring is read a moment later
			v, _, verr := dst.api.Variables().Read("db", &api.QueryOptions{Namespace: "apps"})
			return verr == nil && v.Items["password"] == "s3cr3t"
		}, time.Minute, 50*time.Millisecond, "the keyring came along")
	})
}

// TestRaftWithoutAnswer loses the connection once all of the snapshot was sent: nobody knows whether it was restored.
func TestRaftWithoutAnswer(t *testing.T) {
	dst := startRegion(t, "")
	data := dst.operatorSnapshot(t)
	address := dst.before(t, func(req *http.Request) {
		if req.Method == http.MethodPut {
			_, _ = io.Copy(io.Discard, req.Body)
			panic(http.ErrAbortHandler)
		}
	})
	err := nomad.RestoreRaft(t.Context(), config.Nomad{Address: address}, opened(data))
	require.ErrorContains(t, err, "whether it was restored is not known")
	require.ErrorContains(t, err, address)
	// A proxy answers 502 in the region's place, after it took everything.
	address = dst.before(t, func(req *http.Request) {
		if req.Method == http.MethodPut {
			_, _ = io.Copy(io.Discard, req.Body)
			req.Body = io.NopCloser(iotest.ErrReader(io.ErrUnexpectedEOF))
		}
	})
	err = nomad.RestoreRaft(t.Context(), config.Nomad{Address: address}, opened(data))
	require.ErrorContains(t, err, "502")
	require.ErrorContains(t, err, "whether it was restored is not known")
	require.NoError(t, nomad.RestoreRaft(t.Context(), dst.cfg, opened(data)), "without ACLs it needs no token")
}
