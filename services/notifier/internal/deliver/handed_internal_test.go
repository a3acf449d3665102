package deliver

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

func TestWhatWasHandedOnFitsIntoTheState(t *testing.T) {
	t.Parallel()
	g := &lifeboatv1.Group{HandedMore: map[string][]byte{"odd": {1, 2, 3}}}
	h := handedOf(g)
	fingerprint := func(i int) string { return fmt.Sprintf("%016x", i) }
	for i := range 10_000 {
		h.note(fingerprint(i), []string{"ops-slack", "ops-dingtalk"}[i%2])
		h.note(fingerprint(i), []string{"ops-slack", "ops-dingtalk"}[i%2]) // again, as Alertmanager repeats it
	}
	h.store(g)
	data, err := protojson.Marshal(g)
	require.NoError(t, err)
	t.Logf("%d KiB", len(data)>>10)
	assert.Less(t, len(data), 150<<10, "beside 850 KiB of alerts, in a message of 1 MiB")

	h = handedOf(g)
	require.False(t, h.changed)
	for i := range 10_000 {
		to, ok := h.take(fingerprint(i))
		require.True(t, ok)
		require.Equal(t, []string{"ops-slack", "ops-dingtalk"}[i%2], to)
	}
	_, ok := h.take(fingerprint(0))
	assert.False(t, ok, "it is told once")
	h.store(g)
	assert.Empty(t, g.GetHandedTo())
	assert.Empty(t, g.GetHandedMore())
}
