package config

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestPaths: a setting that became a list takes one text still.
func TestPaths(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		yaml string
		want []string
	}{
		{`""`, nil},
		{`/a b.mmdb`, []string{"/a b.mmdb"}},
		{`[/a.mmdb, b.mmdb]`, []string{"/a.mmdb", "b.mmdb"}},
		{`[]`, nil},
	} {
		var s struct {
			DB Paths `yaml:"db" doc:"files"`
		}
		file := filepath.Join(t.TempDir(), "config.yaml")
		if err := os.WriteFile(file, []byte("box:\n  db: "+c.yaml+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := Check(file, Section{Name: "box", Value: &s}); err != nil || !slices.Equal(s.DB, c.want) {
			t.Errorf("%s: %q, %v; want %q", c.yaml, s.DB, err, c.want)
		}
		if example := string(Example(Section{Name: "box", Value: &s})); !strings.Contains(example, "db: [") {
			t.Errorf("%s: %s", c.yaml, example)
		}
	}
}
