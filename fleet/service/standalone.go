package service

import (
	// A binary runs in an image without any file of a system. Schedules name time zones, and the zone database of Go's own is asked last.
	_ "time/tzdata"

	// Mozilla's authorities, for S3, Slack and DingTalk. The system's, SSL_CERT_FILE's and SSL_CERT_DIR's come first: these are asked only where
	// there are none at all.
	_ "golang.org/x/crypto/x509roots/fallback"
)
