package runbook_test

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/runbook"
)

func TestKebab(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"LifeboatDrillFailed": "lifeboat-drill-failed", "KubePodCrashLooping": "kube-pod-crash-looping",
		"HTTPErrors": "http-errors", "LifeboatRPOExceeded": "lifeboat-rpo-exceeded", "etcdNoLeader": "etcd-no-leader",
		"disk_full  now": "disk-full-now", "Etcd3Down": "etcd3-down", "磁盘满": "磁盘满", "": "", "../../x": "x",
	} {
		assert.Equal(t, want, runbook.Kebab(in), in)
	}
}

func TestLink(t *testing.T) {
	t.Parallel()
	c := config.Runbooks{BaseURL: "https://rb.example.com/ops/", Suffix: ".md"}
	link := func(name, annotation string) string {
		return runbook.Link(c, name, map[string]string{runbook.Annotation: annotation})
	}
	assert.Equal(t, "https://rb.example.com/ops/disk-full.md", link("DiskFull", ""))
	assert.Equal(t, "http://wiki/x?a=b#c", link("DiskFull", " http://wiki/x?a=b#c "))
	for _, bad := range []string{
		"javascript:alert(1)", "file:///etc/passwd", "//host/x", "x", "http://", "https://user:pw@host/", "http://a\nb",
	} {
		assert.Equal(t, "https://rb.example.com/ops/disk-full.md", link("DiskFull", bad), bad)
		assert.Empty(t, runbook.Link(config.Runbooks{}, "DiskFull", map[string]string{runbook.Annotation: bad}), bad)
	}
	assert.Equal(t, "https://rb.example.com/ops/%E7%A3%81%E7%9B%98.md", link("磁盘", ""))
	assert.Empty(t, link("", ""), "an alert without a name has no page")
}
