package main

import (
	"os/exec"
	"strings"
	"testing"
)

// TestArrowsGoDown holds the direction of imports (docs/architecture.md, "Packages"): peers know
// no other peer, and pkg knows no peer. Every package says what it owns.
func TestArrowsGoDown(t *testing.T) {
	t.Parallel()
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}}|{{join .Imports ","}}|{{.Doc}}`, "dandelion/...").CombinedOutput()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		fields := strings.SplitN(strings.TrimSpace(line), "|", 3)
		path, doc := fields[0], fields[2]
		if doc == "" {
			t.Errorf("%s has no package comment", path)
		}
		from := peer(path)
		for imported := range strings.SplitSeq(fields[1], ",") {
			to := peer(imported)
			switch {
			case to == "" || to == from, path == "dandelion/pkg/testfleet", strings.HasPrefix(path, "dandelion/cmd/dandelion"):
			default:
				t.Errorf("%s imports %s", path, imported)
			}
		}
	}
}

// peer is the peer that a package belongs to, "" for all others.
func peer(path string) string {
	for _, p := range []string{"entrance", "box", "publisher"} {
		if path == "dandelion/"+p || strings.HasPrefix(path, "dandelion/"+p+"/") {
			return p
		}
	}
	return ""
}
