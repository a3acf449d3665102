package raftsnap_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/raftsnap"
)

// file is one member of an archive.
type file struct {
	name string
	body []byte
}

// files are those of a right archive.
func files(state []byte) []file {
	meta := fmt.Appendf(nil, `{"Version":1,"ID":"2-34-5","Index":34,"Term":2,"Peers":"ka4=","Size":%d}`+"\n", len(state))
	sums := fmt.Appendf(nil, "%x  state.bin\n%x  meta.json\n", sha256.Sum256(state), sha256.Sum256(meta))
	return []file{{"meta.json", meta}, {"state.bin", state}, {"SHA256SUMS", sums}}
}

// pack writes what both programs' snapshot packages write.
func pack(tb testing.TB, members []file, after []byte) []byte {
	tb.Helper()
	var b bytes.Buffer
	gz := gzip.NewWriter(&b)
	tw := tar.NewWriter(gz)
	for _, f := range members {
		require.NoError(tb, tw.WriteHeader(&tar.Header{Name: f.name, Mode: 0o600, Size: int64(len(f.body))}))
		_, err := tw.Write(f.body)
		require.NoError(tb, err)
	}
	require.NoError(tb, tw.Close())
	_, err := gz.Write(after)
	require.NoError(tb, err)
	require.NoError(tb, gz.Close())
	return b.Bytes()
}

// noise is what does not compress.
func noise(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b) // it never fails
	return b
}

func TestPasses(t *testing.T) {
	for name, state := range map[string][]byte{
		"empty": {}, "small": []byte("state"), "noise": noise(3 << 20), "zeros": make([]byte, 5<<20),
	} {
		t.Run(name, func(t *testing.T) {
			data := pack(t, files(state), nil)
			for _, src := range []io.Reader{
				bytes.NewReader(data), iotest.HalfReader(bytes.NewReader(data)), iotest.DataErrReader(bytes.NewReader(data)),
			} {
				r := raftsnap.NewReader(src)
				got, err := io.ReadAll(r)
				require.NoError(t, err)
				require.True(t, bytes.Equal(data, got), "the bytes must pass as they are")
				assert.Equal(t, raftsnap.Meta{Index: 34, Term: 2, StateBytes: int64(len(state))}, r.Meta())
				n, err := r.Read(make([]byte, 1))
				assert.Zero(t, n)
				assert.Equal(t, io.EOF, err)
			}
		})
	}
}

func requireDamaged(t *testing.T, data []byte, what string) {
	t.Helper()
	r := raftsnap.NewReader(bytes.NewReader(data))
	_, err := io.Copy(io.Discard, r)
	require.ErrorIs(t, err, raftsnap.ErrDamaged, what)
	require.NotErrorIs(t, err, io.EOF)
	_, again := r.Read(make([]byte, 1))
	require.Equal(t, err, again)
}

// TestFlipped flips bytes. gzip's own checksum leaves out six bytes of its header and the bits that fill up the last
// block's byte: what a flip there changes is nothing that a restore would read.
func TestFlipped(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	data := pack(t, files(noise(100<<10)), nil)
	want := unzip(data)
	var found int
	for range 1000 {
		bad := bytes.Clone(data)
		at := rnd.IntN(len(bad))
		bad[at] ^= byte(1 + rnd.IntN(255))
		_, err := io.Copy(io.Discard, raftsnap.NewReader(bytes.NewReader(bad)))
		if err == nil {
			require.Equal(t, want, unzip(bad), "byte %d", at)
			continue
		}
		require.ErrorIs(t, err, raftsnap.ErrDamaged, "byte %d", at)
		found++
	}
	assert.Greater(t, found, 990)
}

func unzip(data []byte) []byte {
	gz, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return nil
	}
	b, err := io.ReadAll(gz)
	if err != nil {
		return nil
	}
	return b
}

func TestTruncated(t *testing.T) {
	data := pack(t, files(noise(3000)), nil)
	for n := range data {
		requireDamaged(t, data[:n], fmt.Sprintf("cut to %d of %d", n, len(data)))
	}
}

func TestWrongContent(t *testing.T) {
	right := files([]byte("state"))
	meta, state, sums := right[0], right[1], right[2]
	whole := pack(t, right, nil)
	other := files([]byte("other"))
	wrongSize := files([]byte("longer state"))
	wrongSize[1].body = []byte("state")
	wrongSize[2].body = fmt.Appendf(nil, "%x  meta.json\n%x  state.bin\n",
		sha256.Sum256(wrongSize[0].body), sha256.Sum256(wrongSize[1].body))
	for name, data := range map[string][]byte{
		"not gzip":        []byte("permission denied"),
		"nothing":         nil,
		"no state":        pack(t, []file{meta, sums}, nil),
		"no sums":         pack(t, []file{meta, state}, nil),
		"no meta":         pack(t, []file{state, sums}, nil),
		"state of other":  pack(t, []file{meta, other[1], sums}, nil),
		"meta of other":   pack(t, []file{wrongSize[0], state, sums}, nil),
		"wrong size":      pack(t, wrongSize, nil),
		"twice":           pack(t, []file{meta, state, state, sums}, nil),
		"sums twice":      pack(t, []file{meta, state, sums, sums}, nil),
		"unknown file":    pack(t, append(files([]byte("state")), file{"extra", nil}), nil),
		"sum too many":    pack(t, []file{meta, state, {sums.name, append(bytes.Clone(sums.body), "00  x\n"...)}}, nil),
		"sums are no sum": pack(t, []file{meta, state, {sums.name, []byte("?\n")}}, nil),
		"meta is no JSON": pack(t, []file{{meta.name, []byte("{")}, state, sums}, nil),
		"huge meta":       pack(t, []file{{meta.name, make([]byte, 2<<20)}, state, sums}, nil),
		"after the tar":   pack(t, right, []byte("x")),
		"after the gzip":  append(bytes.Clone(whole), 0),
		"two members":     append(bytes.Clone(whole), pack(t, nil, nil)...),
	} {
		t.Run(name, func(t *testing.T) { requireDamaged(t, data, name) })
	}
}

// TestSourceFails tells a broken connection from a damaged archive.
func TestSourceFails(t *testing.T) {
	data := pack(t, files(noise(100<<10)), nil)
	broken := errors.New("connection reset")
	for _, n := range []int{0, 5, 5000, len(data) - 1, len(data)} {
		r := raftsnap.NewReader(io.MultiReader(bytes.NewReader(data[:n]), iotest.ErrReader(broken)))
		got, err := io.ReadAll(r)
		require.Equal(t, broken, err)
		require.NotErrorIs(t, err, raftsnap.ErrDamaged)
		assert.Len(t, got, n)
	}
}

// TestMemory reads an archive of 64 MiB that is made while it is read.
func TestMemory(t *testing.T) {
	const size = 64 << 20
	pr, pw := io.Pipe()
	go func() {
		meta := fmt.Appendf(nil, `{"Index":1,"Term":1,"Size":%d}`, size)
		gz, _ := gzip.NewWriterLevel(pw, gzip.BestSpeed)
		tw := tar.NewWriter(gz)
		write := func(name string, n int64, body io.Reader) {
			_ = tw.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: n})
			_, _ = io.Copy(tw, body)
		}
		write("meta.json", int64(len(meta)), bytes.NewReader(meta))
		sum := sha256.New()
		block := noise(1 << 20)
		blocks := make([]io.Reader, size>>20)
		for i := range blocks {
			blocks[i] = bytes.NewReader(block)
		}
		write("state.bin", size, io.TeeReader(io.MultiReader(blocks...), sum))
		sums := fmt.Appendf(nil, "%x  state.bin\n%x  meta.json\n", sum.Sum(nil), sha256.Sum256(meta))
		write("SHA256SUMS", int64(len(sums)), bytes.NewReader(sums))
		_ = tw.Close()
		_ = gz.Close()
		pw.CloseWithError(io.EOF)
	}()
	r := raftsnap.NewReader(pr)
	var before, now runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var most uint64
	buf := make([]byte, 64<<10)
	for i := 0; ; i++ {
		_, err := r.Read(buf)
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		if i%500 == 0 {
			runtime.GC()
			runtime.ReadMemStats(&now)
			most = max(most, now.HeapAlloc)
		}
	}
	assert.EqualValues(t, size, r.Meta().StateBytes)
	assert.Less(t, most, before.HeapAlloc+4<<20)
}

func FuzzReader(f *testing.F) {
	whole := pack(f, files([]byte("state")), nil)
	f.Add(whole)
	f.Add(whole[:len(whole)/2])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		r := raftsnap.NewReader(bytes.NewReader(data))
		got, err := io.ReadAll(r)
		if err == nil {
			require.True(t, bytes.Equal(data, got))
		}
	})
}
