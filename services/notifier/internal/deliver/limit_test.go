package deliver

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
)

func TestOurOwnTrafficStaysBelowTheChatsLimits(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		receiver config.Receiver
		within   time.Duration
		most     int
	}{
		"slack: 1 a second":      {config.Receiver{Name: "r", Slack: &config.Slack{}}, time.Second, 1},
		"dingtalk: 20 in 1 m":    {config.Receiver{Name: "r", DingTalk: &config.DingTalk{}}, time.Minute, 20},
		"dingtalk: quick bursts": {config.Receiver{Name: "r", DingTalk: &config.DingTalk{}}, time.Second, 5},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				l := newLimits()
				var sent []time.Time
				for range 100 {
					require.NoError(t, l.wait(t.Context(), c.receiver))
					sent = append(sent, time.Now())
					in := 0
					for _, at := range sent {
						if time.Since(at) < c.within {
							in++
						}
					}
					assert.LessOrEqual(t, in, c.most)
				}
			})
		})
	}
}
