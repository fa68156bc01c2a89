package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"dandelion/pkg/config"
)

// The root of the repository, from this package.
const root = "../.."

func TestExampleFileIsTheDefaults(t *testing.T) {
	t.Parallel()
	const cure = "run: go run ./cmd/dandelion config example > config.yaml.example"
	written, err := os.ReadFile(filepath.Join(root, "config.yaml.example"))
	if err != nil {
		t.Fatalf("%v: %s", err, cure)
	}
	want := bytes.Split(config.Example(sections()...), []byte("\n"))
	got := bytes.Split(written, []byte("\n"))
	for i := range max(len(got), len(want)) {
		var g, w []byte
		if i < len(got) {
			g = got[i]
		}
		if i < len(want) {
			w = want[i]
		}
		if !bytes.Equal(g, w) {
			t.Fatalf("config.yaml.example:%d is %q, the defaults say %q: %s", i+1, g, w, cure)
		}
	}
	if err := config.Check(filepath.Join(root, "config.yaml.example"), sections()...); err != nil {
		t.Error(err)
	}
}

func TestExamplesOfTheDocumentsAreRight(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob(filepath.Join(root, "docs/examples/*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 3 {
		t.Fatalf("docs/examples has %q: want a household's, a caster's and an operator's", files)
	}
	for _, file := range files {
		if err := config.Check(file, sections()...); err != nil {
			t.Error(err)
		}
	}
}
