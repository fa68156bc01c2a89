package config

import (
	"fmt"
	"reflect"
	"strings"

	"gopkg.in/yaml.v3"
)

// Example returns a configuration file with every setting of the sections at its default, its
// help above it. A list of structs that is empty by default is followed by an example of an
// item, commented out. Reading the file changes nothing.
func Example(sections ...Section) []byte {
	var b strings.Builder
	b.WriteString(comment("", "Settings of Dandelion, all at their defaults: keep the lines that you change. "+
		"A program reads its own section and redis, and lets the others be. Each setting may also be a variable of the environment, "+
		"such as DANDELION_BOX_LISTEN, and a flag, such as --listen; flags override variables, and variables override this file. "+
		"Durations have a unit: 500ms, 20s, 5m, 1h30m. Sizes: 512MB, 8GB (decimal), 1.5GiB (binary). Rates: 300kbit/s, 2Mbit/s."))
	for _, s := range sections {
		b.WriteString("\n")
		if s.Doc != "" {
			b.WriteString(comment("", s.Doc))
		}
		b.WriteString(s.Name + ":\n")
		for i, f := range fieldsOf(s.Name, reflect.ValueOf(s.Value)) {
			if i > 0 {
				b.WriteString("\n")
			}
			b.WriteString(comment("  ", f.doc))
			writeField(&b, f)
		}
	}
	return []byte(b.String())
}

func writeField(b *strings.Builder, f field) {
	switch {
	case f.shape() != structs:
		fmt.Fprintf(b, "  %s: %s\n", f.name, yamlText(f))
	case f.value.Len() == 0:
		fmt.Fprintf(b, "  %s: []\n", f.name)
		item := reflect.New(f.value.Type().Elem())
		fmt.Fprintf(b, "  # %s:\n", f.name)
		for line := range strings.Lines(itemText(item)) {
			b.WriteString("  # " + line)
		}
	default:
		fmt.Fprintf(b, "  %s:\n", f.name)
		for i := range f.value.Len() {
			for line := range strings.Lines(itemText(f.value.Index(i).Addr())) {
				b.WriteString("  " + line)
			}
		}
	}
}

// itemText writes an item of a list, with examples where it has no values.
func itemText(item reflect.Value) string {
	var b strings.Builder
	lead := "  - "
	for _, f := range fieldsOf("", item) {
		if f.example != "" && f.value.IsZero() {
			if err := f.set(f.example); err != nil {
				panic(fmt.Sprintf("config: example of %s: %v", f.name, err))
			}
		}
		b.WriteString(comment("    ", f.doc))
		fmt.Fprintf(&b, "%s%s: %s\n", lead, f.name, yamlText(f))
		lead = "    "
	}
	return b.String()
}

// yamlText writes a scalar or a list as it stands behind a colon.
func yamlText(f field) string {
	if f.shape() != list {
		return yamlScalar(f.value)
	}
	var items []string
	for i := range f.value.Len() {
		items = append(items, yamlScalar(f.value.Index(i)))
	}
	return "[" + strings.Join(items, ", ") + "]"
}

func yamlScalar(v reflect.Value) string {
	node := yaml.Node{Kind: yaml.ScalarNode, Value: textOf(v)}
	if v.Kind() == reflect.String && !isText(v.Type()) {
		node.Tag = "!!str"
		node.Style = yaml.DoubleQuotedStyle
	}
	text, err := yaml.Marshal(&node)
	if err != nil {
		panic(fmt.Sprintf("config: a default cannot be written: %v", err))
	}
	return strings.TrimSuffix(string(text), "\n")
}

func comment(indent, text string) string { return wrap(indent+"# ", text) }
