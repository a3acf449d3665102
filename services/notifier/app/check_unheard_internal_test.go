package app

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
)

// What says that an alert was lost was itself lost in the receiver that was broken, and check-config found nothing.
func TestALostAlertThatOnlyItsReceiverHearsOfIsAWarning(t *testing.T) {
	t.Parallel()
	const three = "{name: ops, slack: {webhook_url_file: a}}, {name: db, slack: {webhook_url_file: b}}, {name: last, slack: {webhook_url_file: c}}"
	for name, c := range map[string]struct{ receivers, route, want string }{
		"one receiver": {"{name: ops, slack: {webhook_url_file: a}}", "{receiver: ops}", "notifier.receivers[0].name"},
		"by the severity": {
			three, "{receiver: last, routes: [{matchers: ['severity=critical'], receiver: db}, {receiver: ops}]}", "notifier.receivers[1].name",
		},
		"a receiver of another route": {
			three, "{receiver: last, routes: [{matchers: ['alertname=LifeboatAlertDead'], receiver: db}, {matchers: [team=db], receiver: db}]}",
			"notifier.receivers[1].name",
		},
		"the fallback of the others": {
			"{name: ops, slack: {webhook_url_file: a}, fallback: db}, {name: db, slack: {webhook_url_file: b}}",
			"{receiver: ops, routes: [{matchers: ['alertname=LifeboatAlertDead'], receiver: db}]}", "notifier.receivers[1].name",
		},
		"a fallback": {"{name: ops, slack: {webhook_url_file: a}, fallback: db}, {name: db, slack: {webhook_url_file: b}}", "{receiver: ops}", ""},
		"two receivers": {
			three, "{receiver: last, routes: [{matchers: ['service=lifeboat'], receiver: ops, continue: true}, {receiver: db}]}", "",
		},
		"one of its own": {three, "{receiver: ops, routes: [{matchers: ['alertname=LifeboatAlertDead'], receiver: last}, {receiver: db}]}", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg, err := config.Parse("lifeboat.yaml", []byte("notifier:\n  receivers: ["+c.receivers+"]\n  route: "+c.route+"\n"))
			require.NoError(t, err)
			found := unheard(cfg.Notifier)
			if c.want == "" {
				assert.Empty(t, found)
				return
			}
			require.Len(t, found, 1)
			assert.True(t, found[0].Warning)
			assert.Equal(t, c.want, found[0].Key)
			assert.Contains(t, Check(cfg), found[0])
		})
	}
	assert.Empty(t, unheard(config.Notifier{}))
}
