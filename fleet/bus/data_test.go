package bus_test

import (
	"testing"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// What is encoded already is stored as it is, with its id, alone and among others.
func TestPublishOfDataIsTheMessageThatItHolds(t *testing.T) {
	_, b := fleet(t)
	encoded := bus.Outgoing{Subject: bus.SubjectReceived, Data: []byte(`{"id":"encoded"}`), ID: "encoded"}
	_, err := b.Publish(t.Context(), encoded)
	require.NoError(t, err)
	plain := bus.Outgoing{Subject: bus.SubjectReceived, Message: &lifeboatv1.Notification{Id: "plain"}, ID: "plain"}
	require.NoError(t, b.PublishAll(t.Context(), []bus.Outgoing{encoded, plain}))
	var ids []string
	require.NoError(t, b.Scan(t.Context(), bus.StreamAlerts, bus.SubjectReceived, func(m *bus.Message) error {
		n := &lifeboatv1.Notification{}
		require.NoError(t, bus.DecodeStrict(m.Data, n))
		ids = append(ids, n.GetId())
		assert.Equal(t, n.GetId(), m.Header.Get(jetstream.MsgIDHeader))
		assert.True(t, proto.Equal(&lifeboatv1.Notification{Id: n.GetId()}, n))
		return nil
	}))
	assert.Equal(t, []string{"encoded", "plain"}, ids)
}

// A consumer that is gone is forgotten with how far it had come; one that is not there is no error.
func TestDeleteConsumer(t *testing.T) {
	_, b := fleet(t)
	require.NoError(t, b.DeleteConsumer(t.Context(), bus.StreamEvents, "nobody"))
	require.Error(t, b.DeleteConsumer(t.Context(), "NO_STREAM", "nobody"))
}
