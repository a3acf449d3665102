package deliver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// shelf is a stream of what is held, in order. It counts what is read, and can refuse what is brought back.
type shelf struct {
	Bus
	all     []*bus.Message
	read    int
	back    int
	refuses error
}

func (s *shelf) hold(t *testing.T, seq uint64, until time.Time, by ...string) {
	t.Helper()
	d := &lifeboatv1.Delivery{
		Id: fmt.Sprint(seq), Receiver: "one", MuteTimeIntervals: by,
		Notification: &lifeboatv1.Notification{GroupKey: fmt.Sprint(seq), Alerts: []*lifeboatv1.Alert{{Status: "firing", Fingerprint: fmt.Sprint(seq)}}},
	}
	if !until.IsZero() {
		d.HeldUntil = timestamppb.New(until)
	}
	data, err := protojson.Marshal(d)
	require.NoError(t, err)
	s.all = append(s.all, &bus.Message{Subject: bus.HeldSubject("one"), Data: data, Seq: seq, Stored: until})
}

func (s *shelf) ScanFrom(_ context.Context, _, _ string, from uint64, each func(*bus.Message) error) error {
	for _, m := range s.all {
		if m.Seq < from {
			continue
		}
		s.read++
		if err := each(m); err != nil {
			return err
		}
	}
	return nil
}

func (s *shelf) PublishAll(_ context.Context, all []bus.Outgoing) error {
	if s.refuses == nil {
		s.back += len(all)
	}
	return s.refuses
}

func (s *shelf) Delete(_ context.Context, _ string, seq uint64) error {
	for i, m := range s.all {
		if m.Seq == seq {
			s.all = append(s.all[:i], s.all[i+1:]...)
			return nil
		}
	}
	return bus.ErrNoMessage
}

// All that was held was read and decoded every five seconds, the whole night long.
func TestWhatIsHeldIsReadAgainOnlyWhenSomethingMayBeDue(t *testing.T) {
	t.Parallel()
	parsed := func(end string) *config.Config {
		cfg, err := config.Parse("lifeboat.yaml", []byte(`
notifier:
  receivers: [{name: one, slack: {webhook_url_file: /nowhere}}]
  time_intervals: [{name: nights, time_intervals: [{times: [{start_time: "00:00", end_time: "`+end+`"}]}]}]
  route: {receiver: one, routes: [{mute_time_intervals: [nights]}]}
`))
		require.NoError(t, err)
		return cfg
	}
	now, cfg, s := time.Date(2026, 11, 21, 2, 0, 0, 0, time.UTC), parsed("08:00"), &shelf{}
	d := New(Options{
		Bus: s, Config: func() *config.Config { return cfg }, Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
		Now: func() time.Time { return now }, Sender: func(config.Receiver) (Sender, error) { return keyed{}, nil },
	})
	sweep := func(wantRead, wantBack int, wantErr error) {
		t.Helper()
		c, err := d.current()
		require.NoError(t, err)
		s.read, s.back = 0, 0
		require.ErrorIs(t, d.release(t.Context(), c, "one"), wantErr)
		assert.Equal(t, []int{wantRead, wantBack}, []int{s.read, s.back}, "read, brought back")
	}
	for i := range 100 {
		s.hold(t, uint64(10+i), time.Time{}, "nights")
	}
	sweep(100, 0, nil)
	now = now.Add(sweepEvery)
	sweep(0, 0, nil)
	s.hold(t, 200, now.Add(20*time.Second)) // it flaps
	sweep(1, 0, nil)
	now = now.Add(sweepEvery)
	sweep(0, 0, nil)
	s.hold(t, 201, time.Time{}) // nobody holds it any more
	sweep(1+102, 1, nil)
	sweep(0, 0, nil)
	now = now.Add(20 * time.Second)
	s.refuses = errors.New("no space left on device")
	sweep(101, 0, s.refuses)
	sweep(101, 0, s.refuses)
	s.refuses = nil
	sweep(101, 1, nil)

	// A stream that was restored counts from where it was.
	s.hold(t, 5, time.Time{})
	sweep(0, 0, nil)
	now = now.Add(sleepMost)
	sweep(101, 1, nil)
	// Another file ends the night earlier.
	cfg = parsed("01:00")
	sweep(100, 100, nil)

	cfg = parsed("08:00")
	s.hold(t, 300, time.Time{}, "nights")
	sweep(1, 0, nil)
	now = time.Date(2026, 11, 21, 7, 59, 50, 0, time.UTC)
	sweep(1, 0, nil)
	now = now.Add(2 * sweepEvery)
	sweep(1, 1, nil)
}
