// Package config is how daemons and the tool are configured: units, defaults, strict YAML,
// environment, flags, and errors that name the field, its line and what would be right. It owns
// the mechanism; what the settings are is the sections' own: each lives as a struct with its
// defaults in the package that uses it, and this package must not know any of them but by name.
package config

import (
	"errors"
	"fmt"
)

// sectionNames are the sections that a configuration file may have. A program checks those that
// it loads and lets the others be.
var sectionNames = []string{"redis", "entrance", "box", "publisher"}

// Section is one section of the configuration.
type Section struct {
	// Name is one of redis, entrance, box, publisher.
	Name string
	// Value is a pointer to a struct that holds the defaults; loading changes it. Each exported
	// field has the tags `yaml:"name"` and `doc:"one sentence of help"`, or `yaml:"-"`; fields
	// are text, bool, numbers, types with encoding.TextUnmarshaler, lists of these, or a list
	// of structs of the same kind, whose fields may add `example:"text"`.
	// If Value has a method `Validate() error`, loading ends with it (Problems).
	Value any
	// Doc is one sentence for people about the section.
	Doc string
	// Shared says that several programs read the section, so that its flags carry its name:
	// --redis-url instead of --url.
	Shared bool
}

// FieldError says what is wrong with one setting.
type FieldError struct {
	Field   string // "entrance.lease_ttl"; Validate may leave the section away
	Problem string // with a verb in front: "is 0s"
	Want    string // what would be right: "a duration of at least 3s, such as 20s"; may be empty

	// Where the value comes from, filled in by Load: a line of a file, or else From:
	// "from DANDELION_BOX_LISTEN", "from --listen", "default".
	File string
	Line int
	From string
}

func (e *FieldError) Error() string {
	field := e.Field
	if field == "" {
		field = "the value"
	}
	s := field + " " + e.Problem
	switch {
	case e.File != "":
		s = fmt.Sprintf("%s:%d: %s", e.File, e.Line, s)
	case e.From != "":
		s += " (" + e.From + ")"
	}
	if e.Want != "" {
		s += "; want " + e.Want
	}
	return s
}

// fieldErrors returns the FieldErrors that err joins, in order; other errors become one each.
func fieldErrors(err error) []*FieldError {
	if err == nil {
		return nil
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var all []*FieldError
		for _, e := range joined.Unwrap() {
			all = append(all, fieldErrors(e)...)
		}
		return all
	}
	var fe *FieldError
	if !errors.As(err, &fe) {
		fe = &FieldError{Problem: "is wrong: " + err.Error()}
	}
	one := *fe // so that no two loads write to one value
	return []*FieldError{&one}
}
