package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"dandelion/pkg/keys"
	"dandelion/pkg/wire"
)

// What other implementations and programs rely on stands in docs/protocol.md, all of it.
func TestProtocolNamesKeysFieldsAndKinds(t *testing.T) {
	t.Parallel()
	document, err := os.ReadFile(filepath.Join(root, "docs/protocol.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range keys.All {
		row := fmt.Sprintf("| `%s` | %s | %s | %s | %s |\n", k.Pattern, k.Type, k.Owner, k.Lifetime, k.Holds)
		if !strings.Contains(string(document), row) {
			t.Errorf("docs/protocol.md lacks the row of pkg/keys: %s", row)
		}
	}
	words := map[string]bool{}
	for _, word := range strings.FieldsFunc(string(document), func(r rune) bool { return strings.ContainsRune(" \n|`,;:()", r) }) {
		words[word] = true
	}
	kinds := []wire.Kind{
		wire.KindMalformed, wire.KindPath, wire.KindTTL, wire.KindSize, wire.KindDigest, wire.KindFull,
		wire.KindTooLarge, wire.KindDraining, wire.KindDenied, wire.KindBusy, wire.KindInternal,
	}
	for _, name := range wire.FieldNames() {
		if !words[name] {
			t.Errorf("docs/protocol.md does not name the field %s of EXCHANGE", name)
		}
	}
	for _, kind := range kinds {
		if !words[string(kind)] {
			t.Errorf("docs/protocol.md does not name the kind of refusal %s", kind)
		}
	}
	for _, feature := range wire.Ours() {
		if !words["**"+string(feature)+"**"] && !words[string(feature)] {
			t.Errorf("docs/protocol.md does not name the feature %s", feature)
		}
	}
}

func TestEachDependencyIsJustified(t *testing.T) {
	t.Parallel()
	document, err := os.ReadFile(filepath.Join(root, "docs/dependencies.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range slices.Concat(direct(t, "go.mod"), tools(t), packages(t)) {
		if !strings.Contains(string(document), "\n| "+name+" |") {
			t.Errorf("docs/dependencies.md does not say why there is %s", name)
		}
	}
}

// direct returns the modules that a go.mod requires by itself.
func direct(t *testing.T, file string) (names []string) {
	t.Helper()
	for _, fields := range lines(t, file) {
		if len(fields) == 2 && strings.HasPrefix(fields[1], "v") {
			names = append(names, fields[0])
		}
	}
	if len(names) == 0 {
		t.Fatalf("%s requires nothing", file)
	}
	return names
}

// tools returns the modules of the tools that tools/go.mod names.
func tools(t *testing.T) (names []string) {
	t.Helper()
	all := lines(t, "tools/go.mod")
	for _, tool := range all {
		for _, module := range all {
			if len(tool) == 1 && len(module) > 1 && strings.HasPrefix(tool[0]+"/", module[0]+"/") {
				names = append(names, module[0])
			}
		}
	}
	if len(names) == 0 {
		t.Fatal("tools/go.mod names no tool")
	}
	return names
}

func packages(t *testing.T) []string {
	t.Helper()
	var list struct {
		Dependencies    map[string]string `json:"dependencies"`
		DevDependencies map[string]string `json:"devDependencies"`
	}
	text, err := os.ReadFile(filepath.Join(root, "web/package.json"))
	if err == nil {
		err = json.Unmarshal(text, &list)
	}
	if err != nil || len(list.Dependencies) == 0 {
		t.Fatalf("web/package.json names no dependency: %v", err)
	}
	maps.Copy(list.Dependencies, list.DevDependencies)
	return slices.Sorted(maps.Keys(list.Dependencies))
}

func lines(t *testing.T, file string) (all [][]string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, file))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		all = append(all, strings.Fields(line))
	}
	return all
}
