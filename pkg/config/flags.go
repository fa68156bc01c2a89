package config

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"reflect"
	"strings"
	"unicode/utf8"
)

// Flags are the settings that a command line has overridden.
type Flags struct {
	texts map[string]string // by flag name, as set reads them
	err   error             // the first that cannot be read
}

// DefineFlags defines a flag on fs for each setting that is not a list of structs: --edge-listen
// for edge_listen, with the section's name in front where the section is shared. Lists are
// separated by commas; a list's flag that is given again adds to it.
func DefineFlags(fs *flag.FlagSet, sections ...Section) *Flags {
	flags := &Flags{texts: map[string]string{}}
	for _, s := range sections {
		sec := section{s, fieldsOf(s.Name, reflect.ValueOf(s.Value))}
		for _, f := range sec.fields {
			if f.shape() != structs {
				fs.Var(&flagValue{flags: flags, name: sec.flagName(f), field: f}, sec.flagName(f), f.doc)
			}
		}
	}
	return flags
}

// Err returns what is wrong with the first flag whose text cannot be read, once fs has parsed.
func (f *Flags) Err() error { return f.err }

func (s section) flagName(f field) string {
	name := strings.ReplaceAll(f.name, "_", "-")
	if s.Shared {
		name = s.Name + "-" + name
	}
	return name
}

type flagValue struct {
	flags *Flags
	name  string
	field field
}

// Set takes the text down; Load gives it to the field when file and environment have been read.
// It always returns nil, because package flag would name the flag with one dash.
func (v *flagValue) Set(text string) error {
	if before, again := v.flags.texts[v.name]; again && v.field.shape() == list {
		text = before + "," + text
	}
	v.flags.texts[v.name] = text
	if err := v.field.scratch().set(text); err != nil && v.flags.err == nil {
		var fe *FieldError
		if errors.As(err, &fe) {
			fe.Field = "--" + v.name
		}
		v.flags.err = err
	}
	return nil
}

// String is called by package flag also on a zero value.
func (v *flagValue) String() string {
	if v.field.name == "" {
		return ""
	}
	return v.field.text()
}

// IsBoolFlag lets a flag stand without a value.
func (v *flagValue) IsBoolFlag() bool { return v.field.value.Kind() == reflect.Bool }

// usageWidth is how many columns usage and example lines have at most.
const usageWidth = 92

// printUsage writes what --help shows.
func printUsage(w io.Writer, p Program) {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\nUsage: %s [--name value ...]\n\n", wrap("", p.Name+" "+p.Doc), p.Name)
	b.WriteString("General:\n")
	printFlag(&b, "config", "file", "YAML file with the settings.", DefaultFile+", which may be absent")
	printFlag(&b, "version", "", "Print the version and exit.", "")
	for _, print := range p.Prints {
		printFlag(&b, print.Flag, "", print.Doc, "")
	}
	printFlag(&b, "help", "", "Print this and exit.", "")
	for _, s := range p.Sections {
		sec := section{s, fieldsOf(s.Name, reflect.ValueOf(s.Value))}
		fmt.Fprintf(&b, "\nSection %s of the file:\n", s.Name)
		if s.Doc != "" {
			b.WriteString(wrap("  ", s.Doc))
		}
		for _, f := range sec.fields {
			if f.shape() == structs {
				b.WriteString("  (in the file only) " + f.name + "\n" + wrap("      ", f.doc))
				continue
			}
			byDefault := f.text()
			if byDefault == "false" { // what a flag without a value is there to change
				byDefault = ""
			}
			printFlag(&b, sec.flagName(f), f.word(), f.doc, byDefault)
		}
	}
	own := p.Sections[len(p.Sections)-1]
	example := section{own, fieldsOf(own.Name, reflect.ValueOf(own.Value))}.fields[0].variable()
	b.WriteString("\n" + wrap("", "Each setting may also be a variable of the environment, such as "+example+
		". Flags override variables, and variables override the file."))
	io.WriteString(w, b.String())
}

func printFlag(b *strings.Builder, name, word, doc, byDefault string) {
	fmt.Fprintf(b, "  %s\n", strings.TrimSpace("--"+name+" "+word))
	if byDefault != "" {
		doc = strings.TrimSuffix(doc, ".") + " (default " + byDefault + ")"
	}
	b.WriteString(wrap("      ", doc))
}

// wrap writes text in lines that begin with indent and have at most usageWidth columns, where
// words allow it.
func wrap(indent, text string) string {
	var b strings.Builder
	line := indent
	for word := range strings.FieldsSeq(text) {
		if line != indent && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > usageWidth {
			b.WriteString(line + "\n")
			line = indent
		}
		if line != indent {
			line += " "
		}
		line += word
	}
	return b.String() + line + "\n"
}
