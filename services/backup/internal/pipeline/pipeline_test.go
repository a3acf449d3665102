package pipeline_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"

	"filippo.io/age"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/pipeline"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// text is data that compresses about as a control plane's does.
func text(r *rand.Rand, n int) []byte {
	var b bytes.Buffer
	for b.Len() < n {
		b.WriteString(`{"key":"registry/pods/default/app-`)
		b.WriteByte(byte('a' + r.IntN(26)))
		b.WriteString(`","value":"`)
		for range r.IntN(40) {
			b.WriteByte(byte(r.IntN(256)))
		}
		b.WriteString("\"}\n")
	}
	return b.Bytes()[:n]
}

func identity(t *testing.T) (*age.X25519Identity, []string) {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	require.NoError(t, err)
	return id, []string{id.Recipient().String()}
}

// encode returns the stored bytes and what a manifest says of them.
func encode(t *testing.T, raw []byte, recipients []string) ([]byte, *lifeboatv1.Data) {
	t.Helper()
	keys, err := pipeline.ParseRecipients(recipients)
	require.NoError(t, err)
	e := pipeline.Encode(bytes.NewReader(raw), keys)
	stored, err := io.ReadAll(e)
	require.NoError(t, err)
	require.NoError(t, e.Close())
	return stored, &lifeboatv1.Data{
		Raw: e.Raw(), Stored: e.Stored(), Compression: pipeline.Compression, Recipients: recipients,
	}
}

func decode(stored []byte, d *lifeboatv1.Data, ids ...age.Identity) ([]byte, error) {
	r, err := pipeline.Decode(bytes.NewReader(stored), d, ids)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

func newRand(t *testing.T) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 2))
}

func TestRoundTrip(t *testing.T) {
	r := newRand(t)
	id, recipients := identity(t)
	_, escrow := identity(t)
	for _, size := range []int{0, 1, 100, 128 << 10, 5<<20 + 3} {
		raw := text(r, size)
		stored, data := encode(t, raw, nil)
		assert.Equal(t, int64(size), data.GetRaw().GetBytes())
		assert.Equal(t, int64(len(stored)), data.GetStored().GetBytes())
		got, err := decode(stored, data)
		require.NoError(t, err)
		assert.True(t, bytes.Equal(raw, got))
		require.NoError(t, pipeline.Check(bytes.NewReader(stored), data.GetStored()))

		stored, data = encode(t, raw, append(recipients, escrow...))
		assert.NotContains(t, string(stored), "registry/pods")
		got, err = decode(stored, data, id)
		require.NoError(t, err, "each recipient alone can decrypt")
		assert.True(t, bytes.Equal(raw, got))
	}
}

// Guarantee 3: a flipped byte is found, wherever it is.
func TestGuarantee3EveryFlippedByteIsFound(t *testing.T) {
	r := newRand(t)
	id, recipients := identity(t)
	for name, keys := range map[string][]string{"clear": nil, "encrypted": recipients} {
		stored, data := encode(t, text(r, 300<<10), keys)
		for range 200 {
			at := r.IntN(len(stored))
			damaged := bytes.Clone(stored)
			damaged[at] ^= byte(1 + r.IntN(255))
			_, err := decode(damaged, data, id)
			require.Error(t, err, "%s: byte %d of %d", name, at, len(stored))
			require.ErrorIs(t, pipeline.Check(bytes.NewReader(damaged), data.GetStored()), pipeline.ErrDamaged)
		}
	}
}

func TestACutOrLongerObjectIsFound(t *testing.T) {
	r := newRand(t)
	id, recipients := identity(t)
	for _, keys := range [][]string{nil, recipients} {
		stored, data := encode(t, text(r, 200<<10), keys)
		for range 50 {
			_, err := decode(stored[:r.IntN(len(stored))], data, id)
			require.Error(t, err)
		}
		_, err := decode(append(bytes.Clone(stored), 'x'), data, id)
		require.Error(t, err)
		_, err = decode(append(bytes.Clone(stored), stored...), data, id)
		require.Error(t, err, "a second frame behind the first")
	}
}

func TestAnotherIdentityIsNamedAsThat(t *testing.T) {
	_, recipients := identity(t)
	other, _ := identity(t)
	stored, data := encode(t, []byte("data"), recipients)
	_, err := decode(stored, data, other)
	require.ErrorIs(t, err, pipeline.ErrNoIdentity)
	_, err = decode(stored, data)
	require.ErrorIs(t, err, pipeline.ErrNoIdentity)
	require.ErrorContains(t, err, recipients[0], "says whose identity is needed")
}

// A source that dies must not leave an object that decodes.
func TestADeadSourceNeverLooksWhole(t *testing.T) {
	boom := errors.New("the source died")
	id, recipients := identity(t)
	for _, keys := range [][]string{nil, recipients} {
		parsed, err := pipeline.ParseRecipients(keys)
		require.NoError(t, err)
		e := pipeline.Encode(io.MultiReader(strings.NewReader(strings.Repeat("x", 1<<20)), iotest.ErrReader(boom)), parsed)
		stored, err := io.ReadAll(e)
		require.ErrorIs(t, err, boom)
		require.NoError(t, e.Close())
		_, err = decode(stored, &lifeboatv1.Data{Compression: "zstd", Raw: e.Raw(), Stored: e.Stored(), Recipients: keys}, id)
		require.Error(t, err)
	}
}

func TestClosingEarlyStopsTheEncoder(t *testing.T) {
	pr, pw := io.Pipe()
	e := pipeline.Encode(pr, nil)
	_, err := pw.Write([]byte("a beginning"))
	require.NoError(t, err)
	require.NoError(t, pr.CloseWithError(io.ErrClosedPipe)) // as a cancelled source does
	require.NoError(t, e.Close())
	require.NoError(t, e.Close(), "twice")
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte("not zstd"), []byte{})
	e := pipeline.Encode(strings.NewReader("hello"), nil)
	good, err := io.ReadAll(e)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good, []byte("hello"))
	data := &lifeboatv1.Data{Compression: pipeline.Compression, Raw: e.Raw(), Stored: e.Stored()}
	f.Fuzz(func(t *testing.T, stored, _ []byte) {
		got, err := decode(stored, data)
		if err == nil {
			require.Equal(t, good, stored)
			require.Equal(t, "hello", string(got))
		}
	})
}

func TestAheadGivesWhatItsReaderGives(t *testing.T) {
	raw := text(newRand(t), 3<<20)
	for name, r := range map[string]io.Reader{
		"whole": bytes.NewReader(raw), "in small pieces": iotest.OneByteReader(bytes.NewReader(raw[:100_000])),
		"its last bytes with the end": iotest.DataErrReader(bytes.NewReader(raw)),
	} {
		a := pipeline.Ahead(r)
		got, err := io.ReadAll(a)
		require.NoError(t, err, name)
		assert.True(t, bytes.HasPrefix(raw, got) && len(got) >= 100_000, name)
		require.NoError(t, a.Close())
	}
	broken := errors.New("broken")
	a := pipeline.Ahead(io.MultiReader(bytes.NewReader(raw), iotest.ErrReader(broken)))
	got, err := io.ReadAll(a)
	require.ErrorIs(t, err, broken, "after all that came")
	assert.Len(t, got, len(raw))
	require.NoError(t, a.Close())

	a = pipeline.Ahead(bytes.NewReader(raw)) // goleak sees whether it is read on
	require.NoError(t, a.Close())
	require.NoError(t, a.Close())
}

func TestTheRawDigestCanBeLeftToTheReader(t *testing.T) {
	raw := text(newRand(t), 100_000)
	stored, data := encode(t, raw, nil)
	read := func(stored []byte) ([]byte, *pipeline.Decoder, error) {
		d, err := pipeline.Decode(bytes.NewReader(stored), data, nil)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, d.Close()) })
		d.LeaveRaw()
		got, err := io.ReadAll(d)
		return got, d, err
	}
	got, d, err := read(stored)
	require.NoError(t, err)
	require.NoError(t, d.CompareRaw(int64(len(got)), sha256.Sum256(got)))
	require.ErrorIs(t, d.CompareRaw(int64(len(got)), sha256.Sum256(got[1:])), pipeline.ErrDamaged)
	require.ErrorIs(t, d.CompareRaw(int64(len(got))-1, sha256.Sum256(got)), pipeline.ErrDamaged)
	_, _, err = read(append(bytes.Clone(stored), 0))
	require.ErrorIs(t, err, pipeline.ErrDamaged, "the stored digest is compared all the same")
}
