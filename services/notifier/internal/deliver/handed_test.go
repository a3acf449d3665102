package deliver_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
)

// Of a group of thousands the fallback was told of 2000 ends only: the others stayed red there for ever.
func TestTheFallbackHearsTheEndOfAllThatItTookOver(t *testing.T) {
	t.Parallel()
	l := newLab(t, two)
	l.chat.rule(func(receiver string, _ notice.Notice) error {
		if receiver == "one" {
			return bus.Terminal("refused", errors.New("one answered 400"))
		}
		return nil
	})
	const webhooks, each = 6, 500
	send := func(status string) {
		for i := range webhooks {
			var all []*lifeboatv1.Alert
			for j := range each {
				all = append(all, alert(fmt.Sprintf("A%d-%d", i, j), status, "critical"))
			}
			l.send("g", all...)
		}
	}
	l.run("n1")
	send("firing")
	l.waitEnded(map[string]int{"handed-on": webhooks * each, "delivered": webhooks * each})
	assert.Len(t, l.state("g").GetHandedTo(), 2000)
	assert.Len(t, l.state("g").GetHandedMore()["two"], 4*(webhooks*each-2000))
	l.chat.rule(nil)
	send("resolved")
	l.waitEnded(map[string]int{"handed-on": webhooks * each, "delivered": 3 * webhooks * each}) // one hears the ends, two both
	assert.Empty(t, l.state("g").GetHandedTo())
	assert.Empty(t, l.state("g").GetHandedMore())
}
