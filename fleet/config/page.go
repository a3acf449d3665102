package config

import (
	"strings"
	"time"
)

// Page is the status page, which shows people how the fleet is.
type Page struct {
	// Listen is the address of the page; 127.0.0.1:9089 when empty.
	Listen string `yaml:"listen"`
	// WebConfigFile is a web configuration file of Prometheus' exporter-toolkit, for TLS, client certificates and basic
	// authentication: https://github.com/prometheus/exporter-toolkit/blob/master/docs/web-configuration.md. Empty: anybody who reaches
	// the address may look, in clear.
	WebConfigFile string `yaml:"web_config_file"`
	// Title is what the page is called, for who runs several fleets; "Lifeboat" when empty.
	Title string `yaml:"title"`
	// TimeZone is that of the times on the page, an IANA name; UTC when empty.
	TimeZone string `yaml:"time_zone"`
}

// Alertmanager's gossip has 9094 on every address by default, and the webhooks 9095.
const (
	defaultPageListen = "127.0.0.1:9089"
	defaultPageTitle  = "Lifeboat"
)

func (p *Page) setDefaults() {
	usual(&p.Listen, defaultPageListen)
	usual(&p.Title, defaultPageTitle)
}

func (c *checker) page(p Page) {
	c.listen("page.listen", p.Listen)
	if _, err := time.LoadLocation(p.TimeZone); err != nil || strings.EqualFold(p.TimeZone, "local") {
		c.add("page.time_zone", "%q is no time zone; name one such as Asia/Shanghai", p.TimeZone)
	}
}
