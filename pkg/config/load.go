package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
)

// DefaultFile is the configuration file that is read when none is named. It may be absent.
const DefaultFile = "config.yaml"

const (
	maxFile     = 1 << 20 // bytes
	maxProblems = 50      // nobody reads more at once
)

// Options says where settings come from. The zero value means: nowhere, the defaults stay.
type Options struct {
	File     string   // path of the YAML file; empty: none
	Optional bool     // the file may be absent
	Environ  []string // as os.Environ returns it
	Flags    *Flags   // already parsed; nil: none
}

// Load gives the sections their settings: what they hold as defaults, overridden by the YAML
// file, that by the environment, that by flags. An empty variable counts as not set.
// Then it lets each section validate itself.
//
// The error joins all that is wrong, one line each, most of them *FieldError; the sections must
// not be used then. Warnings, one line each, are for people and come with or without an error.
func Load(o Options, sections ...Section) (warnings []string, err error) {
	l := loader{origins: map[string]origin{}}
	for _, s := range sections {
		if !slices.Contains(sectionNames, s.Name) {
			panic(fmt.Sprintf("config: %q is no section's name", s.Name))
		}
		l.sections = append(l.sections, section{s, fieldsOf(s.Name, reflect.ValueOf(s.Value))})
	}
	if err := l.readFile(o.File, o.Optional); err != nil {
		return nil, err
	}
	l.readEnvironment(o.Environ)
	l.readFlags(o.Flags)
	l.validate()
	return l.warnings, errors.Join(l.problems...)
}

// Check reads and validates a file as the programs that load these sections would, without
// environment and flags. Its error is Load's.
func Check(file string, sections ...Section) error {
	_, err := Load(Options{File: file}, sections...)
	return err
}

type section struct {
	Section
	fields []field
}

type loader struct {
	sections []section
	file     string
	origins  map[string]origin // where a field's value is from; none: it is the default
	problems []error
	warnings []string
}

// origin is where a field's value is from: a line of the file, or what from says.
type origin struct {
	line int
	from string
}

// problem notes what is wrong with a field whose value is from there.
func (l *loader) problem(fe *FieldError, at origin) {
	switch {
	case at.line != 0:
		fe.File, fe.Line = l.file, at.line
	case at.from != "":
		fe.From = at.from
	default:
		fe.From = "default"
	}
	if len(l.problems) < maxProblems {
		l.problems = append(l.problems, fe)
	}
}

// set gives a field its value and remembers where it is from.
func (l *loader) set(f field, text string, at origin) {
	if at.from != "" { // the file's items are gone
		maps.DeleteFunc(l.origins, func(path string, _ origin) bool { return strings.HasPrefix(path, f.path+"[") })
	}
	l.origins[f.path] = at
	for _, fe := range fieldErrors(f.set(text)) {
		l.problem(fe, l.originOf(fe.Field))
	}
}

func (l *loader) readFile(path string, optional bool) error {
	if path == "" {
		return nil
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) && optional {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot read the configuration: %w; want a YAML file that this user may read", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return fmt.Errorf("cannot read the configuration: %w; want a YAML file that this user may read", err)
	}
	if len(data) > maxFile {
		return fmt.Errorf("%s has more than %s: this is no configuration", path, ByteSize(maxFile))
	}
	l.file = path
	return l.readYAML(data)
}

const variablePrefix = "DANDELION_"

// variable is the name of a field's variable: DANDELION_BOX_EDGE_LISTEN.
func (f field) variable() string {
	return variablePrefix + strings.ToUpper(strings.ReplaceAll(f.path, ".", "_"))
}

func (l *loader) readEnvironment(environ []string) {
	for _, variable := range environ {
		name, text, _ := strings.Cut(variable, "=")
		if text != "" && strings.HasPrefix(name, variablePrefix) {
			l.readVariable(name, text)
		}
	}
}

func (l *loader) readVariable(name, text string) {
	var known []string
	loaded := map[string]bool{}
	for _, s := range l.sections {
		loaded[s.Name] = true
		for _, f := range s.fields {
			if f.variable() != name {
				known = append(known, f.variable())
				continue
			}
			from := origin{from: "from " + name}
			if f.shape() == structs {
				l.problem(&FieldError{Field: f.path, Problem: "cannot be set by a variable", Want: "it in the configuration file"}, from)
				return
			}
			l.set(f, text, from)
			return
		}
	}
	for _, s := range sectionNames {
		if !loaded[s] && strings.HasPrefix(name, variablePrefix+strings.ToUpper(s)+"_") {
			return // another program's
		}
	}
	warning := name + " is set, but is no setting"
	if near := nearest(name, known); near != "" {
		warning += ": did you mean " + near + "?"
	}
	l.warnings = append(l.warnings, warning)
}

func (l *loader) readFlags(flags *Flags) {
	if flags == nil {
		return
	}
	for _, s := range l.sections {
		for _, f := range s.fields {
			name := s.flagName(f)
			if text, ok := flags.texts[name]; ok {
				l.set(f, text, origin{from: "from --" + name})
			}
		}
	}
}

// validate asks the sections without problems so far: what they would say of others could be
// about a default that nobody wanted.
func (l *loader) validate() {
	bad := map[string]bool{}
	for _, err := range l.problems {
		var fe *FieldError
		if errors.As(err, &fe) {
			name, _, _ := strings.Cut(fe.Field, ".")
			bad[name] = true
		}
	}
	for _, s := range l.sections {
		v, ok := s.Value.(interface{ Validate() error })
		if !ok || bad[s.Name] {
			continue
		}
		for _, fe := range fieldErrors(v.Validate()) {
			switch {
			case fe.Field == "":
				fe.Field = s.Name
			case !strings.HasPrefix(fe.Field, s.Name+"."):
				fe.Field = s.Name + "." + fe.Field
			}
			l.problem(fe, l.originOf(fe.Field))
		}
	}
}

// originOf finds where a field's value is from; for one that was left out of a list's item, the
// item, and so on upwards, but not as far as the section.
func (l *loader) originOf(path string) origin {
	for {
		if at, ok := l.origins[path]; ok {
			return at
		}
		end := strings.LastIndexAny(path, ".[")
		if end < 0 || !strings.ContainsAny(path[:end], ".") {
			return origin{}
		}
		path = path[:end]
	}
}
