package nomad_test

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore/nomad"
)

// large is an archive that is made while it is read.
type large struct {
	jobs, variables  int
	job, version     int // bytes
	opened, finished atomic.Int64
}

func (l *large) open(context.Context) (io.ReadCloser, error) {
	l.opened.Add(1)
	pr, pw := io.Pipe()
	go func() { pw.CloseWithError(l.write(pw)) }()
	return &counted{pr, &l.finished}, nil
}

// counted counts how often the data was read to its end.
type counted struct {
	*io.PipeReader
	ends *atomic.Int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.PipeReader.Read(p)
	if err == io.EOF { //nolint:errorlint // as it is
		c.ends.Add(1)
	}
	return n, err
}

func (l *large) write(w io.Writer) error {
	tw := tar.NewWriter(w)
	add := func(name, body string) error {
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o600, Size: int64(len(body))}); err != nil {
			return err
		}
		_, err := io.WriteString(tw, body)
		return err
	}
	meta := fmt.Sprintf(`"Meta":{"pad":%q},"Type"`, strings.Repeat("x", l.job))
	version := fmt.Sprintf(`{"Job":{"pad":%q}}`, strings.Repeat("x", l.version))
	for i := range l.jobs {
		id := fmt.Sprintf("job-%06d", i)
		body := strings.ReplaceAll(strings.Replace(web, `"Type"`, meta, 1), `"web"`, `"`+id+`"`)
		dir := "jobs/default/" + id + "/"
		if err := add(dir+"job.json", body); err != nil {
			return err
		}
		if l.version > 0 {
			if err := add(dir+"versions/0.json", version); err != nil {
				return err
			}
		}
	}
	for i := range l.variables {
		name := fmt.Sprintf("v-%06d", i)
		body := `{"Namespace":"default","Path":"` + name + `","Items":{"k":"v"}}`
		if err := add("variables/default/"+name+".json", body); err != nil {
			return err
		}
	}
	return tw.Close()
}

// TestLarge restores more than it may hold.
func TestLarge(t *testing.T) {
	dst := startRegion(t, "")
	dst.pause(t, true)
	l := &large{jobs: 1500, variables: 200, job: 8 << 10, version: 100 << 10}
	var before, now runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var most uint64
	var seen int
	o := apply()
	o.Item = func(restore.Item) {
		if seen++; seen%100 == 0 {
			runtime.GC()
			runtime.ReadMemStats(&now)
			most = max(most, now.HeapAlloc)
		}
	}
	began := time.Now()
	s, err := nomad.Restore(t.Context(), dst.cfg, l.open, nomad.Selection{}, o)
	require.NoError(t, err)
	t.Logf("%d jobs in %s, heap %d KiB more at most", l.jobs, time.Since(began), (most-before.HeapAlloc)>>10)
	assert.Equal(t, restore.Summary{Created: 1700, Bytes: s.Bytes}, s)
	assert.EqualValues(t, 2, l.opened.Load(), "once to check it, and once for the jobs")
	assert.EqualValues(t, 2, l.finished.Load())
	assert.Less(t, most-min(most, before.HeapAlloc), uint64(16<<20), "of 170 MiB")

	s, err = nomad.Restore(t.Context(), dst.cfg, l.open, nomad.Selection{Jobs: []string{"job-000007", "job-001499"}}, apply())
	require.NoError(t, err)
	assert.Equal(t, restore.Summary{Same: 2, Bytes: s.Bytes}, s)
	assert.EqualValues(t, 3, l.opened.Load(), "what was selected is small")

	// A second reading that is not what the first one was is no restore.
	first := true
	_, err = nomad.Restore(t.Context(), dst.cfg, func(ctx context.Context) (io.ReadCloser, error) {
		if first {
			first = false
			return l.open(ctx)
		}
		return (&large{jobs: 7, job: 8 << 10}).open(ctx)
	}, nomad.Selection{}, force())
	require.ErrorContains(t, err, "7 of 1500")
}
