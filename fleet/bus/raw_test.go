package bus_test

import (
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// What was stored before is stored again as it was: the bytes, also those that are no message, and the trace of the first time.
func TestPublishRawStoresPayloadAndHeadersAsTheyAre(t *testing.T) {
	_, b := fleet(t)
	const subject = "lifeboat.alert.delivery.ops"
	payload := []byte("{\xff\x00 no message")
	trace := map[string]string{"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "Content-Type": "application/json"}
	seq, err := b.PublishRaw(t.Context(), subject, payload, trace, "")
	require.NoError(t, err)
	var stored []*bus.Message
	require.NoError(t, b.Scan(t.Context(), bus.StreamAlerts, subject, func(m *bus.Message) error {
		stored = append(stored, m)
		return nil
	}))
	require.Len(t, stored, 1)
	assert.Equal(t, seq, stored[0].Seq)
	assert.Equal(t, payload, stored[0].Data)
	for k, v := range trace {
		assert.Equal(t, v, stored[0].Header.Get(k))
	}
	assert.Empty(t, stored[0].Header.Get(nats.MsgIdHdr))
}

// An id makes the second time harmless, and says where the first one is; without one each is stored.
func TestPublishRawWithAnIDStoresOnce(t *testing.T) {
	_, b := fleet(t)
	const subject = "lifeboat.alert.delivery.ops"
	publish := func(id string) uint64 {
		seq, err := b.PublishRaw(t.Context(), subject, []byte("{}"), nil, id)
		require.NoError(t, err)
		return seq
	}
	first := publish("replay-a-1")
	assert.Equal(t, first, publish("replay-a-1"))
	assert.Equal(t, first+1, publish("replay-a-2"))
	assert.Equal(t, first+2, publish(""))
	assert.Equal(t, first+3, publish(""))
}

// A job that is refused because one is there leaves its id free: the same one is stored when there is room.
func TestPublishRawOfAJobThatIsRefusedIsStoredLater(t *testing.T) {
	_, b := fleet(t)
	subject := bus.JobSubject(config.WorkSnapshot, "etcd-prod")
	seq, err := b.Publish(t.Context(), job("etcd-prod"))
	require.NoError(t, err)
	_, err = b.PublishRaw(t.Context(), subject, nil, nil, "replay-a-1")
	require.ErrorIs(t, err, bus.ErrBusy)
	require.ErrorContains(t, err, subject)
	require.NoError(t, b.Delete(t.Context(), bus.StreamJobs, seq))
	again, err := b.PublishRaw(t.Context(), subject, nil, nil, "replay-a-1")
	require.NoError(t, err)
	have, _, err := b.Last(t.Context(), bus.StreamJobs, subject, &lifeboatv1.Job{})
	require.NoError(t, err)
	assert.Equal(t, again, have)
}

// A subject that no stream takes is an error, and not a message that is gone.
func TestPublishRawToNowhereIsAnError(t *testing.T) {
	_, b := fleet(t)
	_, err := b.PublishRaw(t.Context(), "lifeboat.nowhere", nil, nil, "")
	require.ErrorContains(t, err, "publishing to lifeboat.nowhere")
}
