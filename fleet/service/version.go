package service

import "runtime/debug"

// version is stamped by the build: -ldflags "-X .../fleet/service.version=v1.2.3".
var version string

// Version of this build: what was stamped, else the module's version and commit, else "dev".
func Version() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "dev"
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return "dev-" + s.Value[:min(12, len(s.Value))]
		}
	}
	return "dev"
}
