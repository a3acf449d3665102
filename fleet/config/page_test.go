package config

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestThePage(t *testing.T) {
	cfg, err := Parse("/etc/lifeboat/lifeboat.yaml", []byte("page: {web_config_file: web.yml, time_zone: Asia/Shanghai}\n"))
	require.NoError(t, err)
	assert.Equal(t, Page{
		Listen: "127.0.0.1:9089", WebConfigFile: filepath.Join("/etc/lifeboat", "web.yml"), Title: "Lifeboat", TimeZone: "Asia/Shanghai",
	}, cfg.Page)
	for text, want := range map[string]string{
		"page: {listen: nowhere}":     "lifeboat.yaml:1:16: page.listen: \"nowhere\" is not host:port",
		"page: {time_zone: Nowhere}":  "page.time_zone: \"Nowhere\" is no time zone",
		"page: {listne: \"a:1\"}":     "page.listne",
		"page: {time_zone: local}":    "page.time_zone",
		"page: {title: [not a text]}": "page.title",
	} {
		_, err = Parse("lifeboat.yaml", []byte(text+"\n"))
		require.ErrorContains(t, err, want, text)
	}
}
