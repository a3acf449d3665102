package service

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"
)

// What a release stamps: -ldflags "-X .../fleet/service.version=v1.2.3 -X .../fleet/service.commit=... -X .../fleet/service.date=...".
// The date is the commit's and not the build's, in RFC 3339: two builds of one commit are the same bytes.
var version, commit, date string //nolint:gochecknoglobals // the linker can set nothing else

// Version of this build: what was stamped, else "dev" and the commit, else "dev".
func Version() string {
	if version != "" {
		return version
	}
	if c, _ := source(); c != "" {
		return "dev-" + c[:min(12, len(c))]
	}
	return "dev"
}

// VersionText is what --version says: the version, and in brackets the commit, the commit's date, Go and the platform.
func VersionText() string {
	var parts []string
	c, d := source()
	if c != "" {
		parts = append(parts, "commit "+c)
	}
	if d != "" {
		parts = append(parts, d)
	}
	parts = append(parts, runtime.Version(), runtime.GOOS+"/"+runtime.GOARCH)
	return fmt.Sprintf("%s (%s)", Version(), strings.Join(parts, ", "))
}

// Commit that this was built from, in full; empty when the build did not know.
func Commit() string {
	c, _ := source()
	return c
}

// source is the commit and its date: what was stamped, else what Go recorded when it built in a clone.
func source() (revision, when string) {
	if commit != "" {
		return commit, date
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "", ""
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			revision = s.Value
		case "vcs.time":
			when = s.Value
		}
	}
	return revision, when
}
