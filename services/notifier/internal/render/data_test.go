package render_test

import (
	"net/url"
	"testing"

	amtemplate "github.com/prometheus/alertmanager/template"
	"github.com/prometheus/common/model"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Alertmanager quotes the receiver's name in the webhook, and for its own templates as well.
func TestTemplatesGetTheReceiverAsAlertmanagerGivesIt(t *testing.T) {
	t.Parallel()
	am, err := amtemplate.FromGlobs(nil)
	require.NoError(t, err)
	am.ExternalURL = &url.URL{}
	for _, name := range []string{`team.x`, `a|b (c)`, `C:\temp`, `plain`} {
		d := group()
		d.Notification.Receiver = name // as it is configured: ingest takes the quotes off
		want := am.Data(name, model.LabelSet{}, model.LabelSet{}, "").Receiver
		assert.Equal(t, want, body(t, slack("", "{{ .Receiver }}"), d).Body)
	}
}
