package config

import (
	"encoding"
	"errors"
	"fmt"
	"math"
	"reflect"
	"strconv"
	"strings"

	"github.com/caarlos0/env/v11"
)

// field is one setting: a field of a section's struct, or of a struct in a list of one.
type field struct {
	name    string // as in YAML
	path    string // as in errors: "box.listen", "publisher.streams[0].name"
	doc     string
	example string // for fields of structs in lists
	parent  reflect.Value
	value   reflect.Value // addressable
}

// fieldsOf returns the settings of the struct that ptr points to. A struct that is not as
// Section wants it is a mistake in the program, and panics.
func fieldsOf(path string, ptr reflect.Value) []field {
	if ptr.Kind() != reflect.Pointer || ptr.Elem().Kind() != reflect.Struct {
		panic(fmt.Sprintf("config: %s: want a pointer to a struct, not %s", path, ptr.Type()))
	}
	var fields []field
	parent := ptr.Elem()
	for i := range parent.NumField() {
		sf := parent.Type().Field(i)
		name := sf.Tag.Get("yaml")
		if !sf.IsExported() || name == "-" {
			continue
		}
		f := field{
			name: name, path: path + "." + name, doc: sf.Tag.Get("doc"), example: sf.Tag.Get("example"),
			parent: parent, value: parent.Field(i),
		}
		if name == "" || strings.Contains(name, ",") || f.doc == "" {
			panic(fmt.Sprintf("config: %s.%s: want tags yaml (a bare name) and doc", parent.Type(), sf.Name))
		}
		if f.shape() == unsupported {
			panic(fmt.Sprintf("config: %s.%s: type %s cannot be a setting", parent.Type(), sf.Name, sf.Type))
		}
		fields = append(fields, f)
	}
	return fields
}

type shape int

const (
	unsupported shape = iota
	scalar            // one text
	list              // texts, separated by commas where they stand on one line
	structs           // a list of structs; in YAML only
)

func (f field) shape() shape { return shapeOf(f.value.Type()) }

func shapeOf(t reflect.Type) shape {
	switch {
	case isText(t):
		return scalar
	case t.Kind() == reflect.Slice && shapeOf(t.Elem()) == scalar:
		return list
	case t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Struct:
		return structs
	}
	switch t.Kind() {
	case reflect.String, reflect.Bool, reflect.Float64, reflect.Int, reflect.Int64, reflect.Uint, reflect.Uint64:
		return scalar
	}
	return unsupported
}

// Paths is a list of files. In YAML one path may stand alone, without brackets: such settings were
// single texts once.
type Paths []string

func isText(t reflect.Type) bool {
	return reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
}

// set gives a scalar or list its value from text, in the same way whether the text came from
// YAML, the environment or a flag. The error is a *FieldError without an origin; the field then
// keeps its value.
func (f field) set(text string) error {
	var items []string
	if f.shape() == list {
		items = splitList(text)
		if len(items) == 0 {
			f.value.SetZero()
			return nil
		}
		text = strings.Join(items, ",")
	}
	if text == "" {
		if f.value.Kind() != reflect.String || isText(f.value.Type()) {
			return &FieldError{Field: f.path, Problem: "has no value", Want: f.want()}
		}
		f.value.SetString("")
		return nil
	}
	before := reflect.New(f.value.Type()).Elem()
	before.Set(f.value)
	err := env.ParseWithOptions(f.parent.Addr().Interface(), env.Options{
		TagName:     "yaml",
		Environment: map[string]string{f.name: text},
	})
	if err == nil && f.value.Kind() == reflect.Float64 && (math.IsNaN(f.value.Float()) || math.IsInf(f.value.Float(), 0)) {
		err = strconv.ErrRange
	}
	if err == nil {
		return nil
	}
	f.value.Set(before)
	for i := 0; i < len(items) && len(items) > 1; i++ { // which one was it?
		one := f.scratch()
		one.path = fmt.Sprintf("%s[%d]", f.path, i)
		if err := one.set(items[i]); err != nil {
			return err
		}
	}
	return f.explain(text, err)
}

// scratch returns the same field of another struct, to try a text on.
func (f field) scratch() field {
	for _, other := range fieldsOf("", reflect.New(f.parent.Type())) {
		if other.name == f.name {
			other.path = f.path
			return other
		}
	}
	panic("config: a struct has lost a field")
}

// explain makes a FieldError of what went wrong when text was read.
func (f field) explain(text string, err error) error {
	var aggregate env.AggregateError
	if errors.As(err, &aggregate) && len(aggregate.Errors) > 0 {
		err = aggregate.Errors[0] // only one variable is there to be wrong
	}
	var parse env.ParseError
	if errors.As(err, &parse) {
		err = parse.Err
	}
	var fe *FieldError
	if errors.As(err, &fe) { // from a unit
		return &FieldError{Field: f.path, Problem: fe.Problem, Want: fe.Want}
	}
	problem := "is " + quoted(text)
	switch {
	case errors.Is(err, strconv.ErrRange):
		problem += ", out of range"
	case f.want() == "":
		problem += ": " + err.Error()
	}
	return &FieldError{Field: f.path, Problem: problem, Want: f.want()}
}

// splitList takes a list on one line apart; empty items do not count.
func splitList(text string) []string {
	var items []string
	for item := range strings.SplitSeq(text, ",") {
		if item = strings.TrimSpace(item); item != "" {
			items = append(items, item)
		}
	}
	return items
}

// kinds are what people call the types of settings: a word for usage lines, and what would be
// right, for errors.
var kinds = map[reflect.Type]struct{ word, want string }{
	reflect.TypeFor[Duration]():     {"duration", wantDuration},
	reflect.TypeFor[ByteSize]():     {"size", wantByteSize},
	reflect.TypeFor[BitRate]():      {"rate", wantBitRate},
	reflect.TypeFor[AutoDuration](): {"duration", "auto, or " + wantDuration},
	reflect.TypeFor[AutoByteSize](): {"size", "auto, or " + wantByteSize},
	reflect.TypeFor[AutoBitRate]():  {"rate", "auto, or " + wantBitRate},
}

// word is what stands for the value in a usage line.
func (f field) word() string {
	t := f.value.Type()
	if k, ok := kinds[t]; ok {
		return k.word
	}
	switch {
	case f.shape() == list:
		return "a,b,…"
	case isText(t) || t.Kind() == reflect.String:
		return "text"
	case t.Kind() == reflect.Bool:
		return ""
	}
	return "number"
}

// want says what would be right, as far as the type tells it.
func (f field) want() string {
	t := f.value.Type()
	if k, ok := kinds[t]; ok {
		return k.want
	}
	switch f.shape() {
	case list:
		if isText(t.Elem()) {
			return ""
		}
		return "a list, such as [a, b]"
	case structs:
		return "a list, each item beginning with a dash"
	}
	switch {
	case isText(t):
		return ""
	case t.Kind() == reflect.String:
		return "text"
	case t.Kind() == reflect.Bool:
		return "true or false"
	case t.Kind() == reflect.Float64:
		return "a number"
	}
	return "a whole number"
}

// text returns the value as set reads it. Not for lists of structs.
func (f field) text() string {
	if f.shape() != list {
		return textOf(f.value)
	}
	var items []string
	for i := range f.value.Len() {
		items = append(items, textOf(f.value.Index(i)))
	}
	return strings.Join(items, ",")
}

func textOf(v reflect.Value) string {
	if m, ok := v.Interface().(encoding.TextMarshaler); ok {
		text, err := m.MarshalText()
		if err != nil {
			panic(fmt.Sprintf("config: a default cannot be written: %v", err))
		}
		return string(text)
	}
	return fmt.Sprint(v.Interface())
}

// nearest returns the name that was probably meant, or "".
func nearest(name string, known []string) string {
	best, least := "", len(name)
	for _, k := range known {
		d := editDistance(strings.ToLower(name), strings.ToLower(k))
		if d < least && d <= 1+min(len(name), len(k))/3 {
			best, least = k, d
		}
	}
	return best
}

// editDistance counts the letters to insert, delete or replace to get from a to b. Names from
// outside are cut: nothing longer is near to a setting.
func editDistance(a, b string) int {
	const limit = 64
	a, b = a[:min(len(a), limit)], b[:min(len(b), limit)]
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replace := diagonal
			if a[i] != b[j] {
				replace++
			}
			diagonal = row[j+1]
			row[j+1] = min(replace, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
