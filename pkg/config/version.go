package config

import "runtime/debug"

// version is set by the linker: -ldflags "-X dandelion/pkg/config.version=v1.2.3".
var version string

// Version returns what was built: the version that the linker was told, or else the commit that
// the binary was built from ("-dirty" behind it where files were changed), or else "devel".
func Version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		info = &debug.BuildInfo{}
	}
	return versionOf(version, info)
}

func versionOf(linked string, info *debug.BuildInfo) string {
	if linked != "" {
		return linked
	}
	var revision, dirty string
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision" && len(s.Value) >= 12:
			revision = s.Value[:12]
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = "-dirty"
		}
	}
	if revision != "" {
		return revision + dirty
	}
	if v := info.Main.Version; v != "" && v != "(devel)" { // installed by go install …@v1.2.3
		return v
	}
	return "devel"
}
