package page

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// drawer is a stream of dead letters of one subject, by their sequences.
type drawer struct {
	reader
	t       *testing.T
	letters map[uint64]time.Time
	last    uint64
	// scanned are the letters that were read, each as often as it was.
	scanned []uint64
}

func (d *drawer) Subjects(context.Context, string, string) (map[string]uint64, error) {
	return map[string]uint64{"lifeboat.dead.alert.delivery.ops": uint64(len(d.letters))}, nil
}

func (d *drawer) ScanFrom(_ context.Context, _, _ string, from uint64, each func(*bus.Message) error) error {
	for seq := from; seq <= d.last; seq++ {
		at, there := d.letters[seq]
		if !there {
			continue
		}
		b, err := protojson.Marshal(&lifeboatv1.DeadLetter{Id: fmt.Sprint(seq), Subject: "lifeboat.alert.delivery.ops", Time: timestamppb.New(at)})
		require.NoError(d.t, err)
		d.scanned = append(d.scanned, seq)
		if err = each(&bus.Message{Subject: "lifeboat.dead.alert.delivery.ops", Seq: seq, Data: b, Stored: at}); err != nil {
			return err
		}
	}
	return nil
}

func (d *drawer) put(seq uint64, at time.Time) {
	d.letters[seq], d.last = at, max(d.last, seq)
}

// Somebody replays a letter and it is refused again: one goes and one comes before the page looks again, and their number stays.
func TestALetterThatComesWhileAnotherGoes(t *testing.T) {
	l := newTold(t, two)
	d := &drawer{t: t, letters: map[uint64]time.Time{}}
	var r letterReader
	look := func() []string {
		require.NoError(t, r.read(t.Context(), d, l.f))
		var ids []string
		for _, letter := range l.f.dead.newest {
			ids = append(ids, letter.id)
		}
		return ids
	}
	d.put(7, threeAM().Add(-48*time.Hour))
	require.Equal(t, []string{"7"}, look())
	require.Empty(t, l.view().problems, "nobody looks at it any more")

	delete(d.letters, 7)
	d.put(8, threeAM().Add(-time.Minute))
	assert.Contains(t, look(), "8")
	require.Len(t, l.view().problems, 1)
	assert.Equal(t, "New dead letters in the last day: 1", l.screen(english).Problems()[0].Lines[0].Text)
	assert.Equal(t, uint64(1), l.f.dead.total)
	r.fullAt = r.fullAt.Add(-recount)
	assert.Equal(t, []string{"8"}, look(), "the one that went goes from the page, too")

	// What is known is not read again, and what comes besides is.
	d.scanned = nil
	look()
	d.put(9, threeAM())
	assert.Equal(t, []string{"9", "8"}, look())
	look()
	assert.Equal(t, []uint64{9}, d.scanned)
}

// A NATS that was made anew counts from the beginning, and may have as many letters as the one before.
func TestLettersOfANATSThatWasMadeAnew(t *testing.T) {
	l := newTold(t, two)
	d := &drawer{t: t, letters: map[uint64]time.Time{}}
	var r letterReader
	d.put(50, threeAM().Add(-48*time.Hour))
	require.NoError(t, r.read(t.Context(), d, l.f))
	d.letters, d.last = map[uint64]time.Time{}, 0
	d.put(1, threeAM())
	l.f.forget()
	require.NoError(t, r.read(t.Context(), d, l.f))
	require.Len(t, l.f.dead.newest, 1)
	assert.Equal(t, "1", l.f.dead.newest[0].id)
}
