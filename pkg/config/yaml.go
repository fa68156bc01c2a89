package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
)

// readYAML overrides the fields that data names. The error is for what is not YAML at all;
// other problems are noted.
func (l *loader) readYAML(data []byte) error {
	doc, second, err := parseYAML(data)
	switch {
	case err != nil:
		return l.syntaxError(data, err)
	case second != nil:
		return fmt.Errorf("%s:%d: a second document begins here; want one", l.file, second.Line)
	case doc == nil:
		return nil // empty, or comments only
	}
	root := resolve(doc.Content[0])
	if isNull(root) {
		return nil
	}
	if root.Kind != yaml.MappingNode {
		return fmt.Errorf("%s:%d: the file is %s; want sections, such as box: and its fields indented below it", l.file, root.Line, describe(root))
	}
	l.eachEntry("", root, func(name string, key, value *yaml.Node) {
		for _, s := range l.sections {
			if s.Name == name {
				l.readStruct(s.Name, value, s.fields)
				return
			}
		}
		l.unknownSection(name, key)
	})
	return nil
}

// parseYAML returns the first document of data, and the second where there is one.
func parseYAML(data []byte) (first, second *yaml.Node, err error) {
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	var docs [2]*yaml.Node
	for i := range docs {
		var doc yaml.Node
		if err := decoder.Decode(&doc); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, nil, err
		}
		docs[i] = &doc
	}
	return docs[0], docs[1], nil
}

var yamlMessage = regexp.MustCompile(`^yaml: (?:line \d+: )?(.*)`)

func (l *loader) syntaxError(data []byte, err error) error {
	what := err.Error()
	if m := yamlMessage.FindStringSubmatch(what); m != nil {
		what = m[1]
	}
	if strings.Contains(what, "cannot start any token") {
		what += " (lines are indented with spaces, not with tabs)"
	}
	return fmt.Errorf("%s:%d: this is not YAML: %s", l.file, badLine(data), what)
}

// badLine returns the line on which data ceases to be YAML: the one behind the last that ends a
// piece that is. The parser's own line is often the one before, or where the block began.
func badLine(data []byte) int {
	const tries = 1000 // each parses the piece; files of people are shorter
	lines := bytes.SplitAfter(data, []byte("\n"))
	piece := data
	for n := len(lines); n > 0 && len(lines)-n < tries; n-- {
		piece = piece[:len(piece)-len(lines[n-1])]
		if _, _, err := parseYAML(piece); err == nil {
			return n
		}
	}
	return 1
}

// eachEntry calls do for each entry of a mapping whose key is there for the first time.
func (l *loader) eachEntry(path string, mapping *yaml.Node, do func(name string, key, value *yaml.Node)) {
	seen := map[string]int{}
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		key, value := mapping.Content[i], resolve(mapping.Content[i+1])
		name := key.Value
		if line, ok := seen[name]; ok {
			l.problem(&FieldError{
				Field:   strings.TrimPrefix(path+"."+shorten(name), "."),
				Problem: fmt.Sprintf("is already set on line %d", line),
				Want:    "it once",
			}, origin{line: key.Line})
			continue
		}
		seen[name] = key.Line
		do(name, key, value)
	}
}

func (l *loader) unknownSection(name string, key *yaml.Node) {
	for _, known := range sectionNames {
		if name == known {
			return // another program's
		}
	}
	problem := "is not a section"
	if near := nearest(name, sectionNames); near != "" {
		problem += ": did you mean " + near + "?"
	}
	fe := &FieldError{Field: shorten(name), Problem: problem, Want: "one of " + strings.Join(sectionNames, ", ")}
	for _, s := range slices.Backward(l.sections) {
		for _, f := range s.fields {
			if f.name == name {
				fe.Problem, fe.Want = "is not a section", "it indented below the section it is for, such as "+s.Name+":"
			}
		}
	}
	l.problem(fe, origin{line: key.Line})
}

// readStruct reads a section, or an item of a list of structs.
func (l *loader) readStruct(path string, node *yaml.Node, fields []field) {
	if isNull(node) {
		return
	}
	if node.Kind != yaml.MappingNode {
		l.problem(&FieldError{
			Field: path, Problem: "is " + describe(node), Want: "fields such as " + fields[0].name + ": below it, indented",
		}, origin{line: node.Line})
		return
	}
	l.eachEntry(path, node, func(name string, key, value *yaml.Node) {
		var names []string
		for _, f := range fields {
			if f.name == name {
				l.readField(f, key, value)
				return
			}
			names = append(names, f.name)
		}
		fe := &FieldError{Field: path + "." + shorten(name), Problem: "is not a setting", Want: "one of " + strings.Join(names, ", ")}
		if near := nearest(name, names); near != "" {
			fe.Problem, fe.Want = "is not a setting: did you mean "+near+"?", ""
		}
		l.problem(fe, origin{line: key.Line})
	})
}

func (l *loader) readField(f field, key, value *yaml.Node) {
	at := origin{line: value.Line}
	if isNull(value) {
		at.line = key.Line
	}
	switch shape := f.shape(); {
	case isNull(value) && shape != structs: // "listen:" and nothing behind it
		l.set(f, "", at)
	case shape == scalar && value.Kind == yaml.ScalarNode:
		l.set(f, value.Value, at)
	case f.value.Type() == reflect.TypeFor[Paths]() && value.Kind == yaml.ScalarNode:
		l.set(f, value.Value, at)
	case shape == list && value.Kind == yaml.SequenceNode:
		l.readList(f, value)
	case shape == structs && (isNull(value) || value.Kind == yaml.SequenceNode):
		l.readStructs(f, value)
	default:
		l.problem(&FieldError{Field: f.path, Problem: "is " + describe(value), Want: f.want()}, at)
	}
}

func (l *loader) readList(f field, node *yaml.Node) {
	var items []string
	for i, item := range node.Content {
		item = resolve(item)
		path, at := fmt.Sprintf("%s[%d]", f.path, i), origin{line: item.Line}
		l.origins[path] = at
		switch {
		case item.Kind != yaml.ScalarNode || isNull(item):
			l.problem(&FieldError{Field: path, Problem: "is " + describe(item), Want: "text"}, at)
		case strings.TrimSpace(item.Value) == "" || strings.Contains(item.Value, ","):
			l.problem(&FieldError{Field: path, Problem: "is " + quoted(item.Value), Want: "text without commas"}, at)
		default:
			items = append(items, item.Value)
		}
	}
	l.set(f, strings.Join(items, ","), origin{line: node.Line})
}

func (l *loader) readStructs(f field, node *yaml.Node) {
	l.origins[f.path] = origin{line: node.Line}
	f.value.Set(reflect.MakeSlice(f.value.Type(), len(node.Content), len(node.Content)))
	for i, item := range node.Content {
		item = resolve(item)
		path := fmt.Sprintf("%s[%d]", f.path, i)
		l.origins[path] = origin{line: item.Line}
		l.readStruct(path, item, fieldsOf(path, f.value.Index(i).Addr()))
	}
}

// resolve follows an alias to what it stands for.
func resolve(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }

func describe(n *yaml.Node) string {
	switch {
	case isNull(n):
		return "empty"
	case n.Kind == yaml.MappingNode:
		return "a mapping"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	}
	return quoted(n.Value)
}

// shorten makes a name from outside fit into a line.
func shorten(name string) string {
	if q := quoted(name); name == "" || q != `"`+name+`"` {
		return q
	}
	return name
}
