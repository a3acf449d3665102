//go:build chaos

package chaos

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// readBucket reads every manifest and the data that it describes from the bucket's files, past every line of our code, and holds
// them against the jobs: a snapshot that was told of is there or was told to be deleted, and one that is there was told of.
func (f *fleet) readBucket(l *ledger) {
	f.t.Helper()
	paths, err := filepath.Glob(f.s3.Path("*/snapshots/*/manifest.json"))
	require.NoError(f.t, err)
	there := map[string]bool{}
	for _, path := range paths {
		m := &lifeboatv1.Manifest{}
		content, err := os.ReadFile(path)
		require.NoError(f.t, err)
		if err := decode(content, m); err != nil {
			l.fault("a bad manifest", "%s: %v", path, err)
			continue
		}
		l.counts["manifests in the bucket"]++
		there[m.GetJobId()] = true
		if id := filepath.Base(filepath.Dir(path)); m.GetId() != id || m.GetJobId() != id {
			l.fault("a bad manifest", "%s is of snapshot %s and job %s", path, m.GetId(), m.GetJobId())
		}
		for _, d := range append([]*lifeboatv1.Data{m.GetData()}, m.GetParts()...) {
			if err := same(f.s3.Path(d.GetKey()), d.GetStored()); err != nil {
				l.fault("a bad manifest", "%s: %v", path, err)
			}
		}
		switch j := l.jobs[m.GetJobId()]; {
		case j == nil || j.verb != "committed":
			l.fault("a manifest that nothing tells of", "%s", path)
		case !proto.Equal(j.data, m.GetData()):
			l.fault("a bad manifest", "%s is of other data than the event told of: another attempt committed", path)
		}
	}
	for id, j := range l.jobs {
		if j.verb == "committed" && !there[id] && !l.deleted[j.of.target+" "+id] {
			l.fault("a snapshot is gone and nothing tells of it", "%s: %s", j.of, id)
		}
	}
}

// same compares a stored object with what its manifest says of it.
func same(path string, want *lifeboatv1.Digest) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	hash := sha256.New()
	n, err := io.Copy(hash, file)
	if err != nil {
		return err
	}
	if got := hex.EncodeToString(hash.Sum(nil)); n != want.GetBytes() || got != want.GetSha256() {
		return fmt.Errorf("%s has %d bytes with sha256 %s, and not %d with %s", path, n, got, want.GetBytes(), want.GetSha256())
	}
	return nil
}
