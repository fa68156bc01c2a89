//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// root is the module's directory, programs the one with what TestMain built.
var root, programs string

var commands = []string{"./entrance/cmd/run_entrance", "./box/cmd/run_box", "./publisher/cmd/run_publisher", "./cmd/dandelion"}

func TestMain(m *testing.M) {
	os.Exit(buildAndRun(m))
}

func buildAndRun(m *testing.M) int {
	var err error
	if root, err = filepath.Abs(".."); err == nil {
		programs, err = os.MkdirTemp("", "dandelion-e2e-")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(programs)
	build := exec.Command("go", append([]string{"build", "-o", programs + "/"}, commands...)...)
	build.Dir, build.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "the programs do not build: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// program returns the path of a built program.
func program(name string) string { return filepath.Join(programs, name) }

// needs fails the test when a program is not installed: it never passes for want of it.
func needs(t *testing.T, name, cure string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%s is not installed: %s", name, cure)
	}
	return path
}
