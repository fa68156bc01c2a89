package config

import (
	"flag"
	"fmt"
	"io"
	"runtime"
	"strings"
)

// Program is what a daemon's main says of itself.
type Program struct {
	Name     string    // run_box
	Doc      string    // what it does, as the end of a sentence that begins with its name
	Sections []Section // shared ones first, its own last
	Prints   []Print   // what it can write instead of running
}

// Print is a flag with which a program writes something that depends on its settings, and exits.
type Print struct {
	Flag  string // print-nginx
	Doc   string
	Write func(w io.Writer) error // called when the settings have been read
}

// Exit statuses of a program that does not start.
const (
	exitConfig = 1 // the configuration is wrong
	exitUsage  = 2 // the command line is wrong
)

// Parse reads the command line (without the program's name), the configuration file and the
// environment into the sections. done is true where main has nothing left to do but to exit
// with that status: after --help, --version and Prints (0), on a wrong configuration (1) or command
// line (2). What there is to say has then been written. Warnings go to stderr.
//
//	if done, status := program.Parse(os.Args[1:], os.Environ(), os.Stdout, os.Stderr); done {
//		os.Exit(status)
//	}
func (p Program) Parse(args, environ []string, stdout, stderr io.Writer) (done bool, status int) {
	fs := flag.NewFlagSet(p.Name, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.Usage = func() {}
	file := fs.String("config", "", "")
	help := fs.Bool("help", false, "")
	fs.BoolVar(help, "h", false, "")
	version := fs.Bool("version", false, "")
	prints := make([]*bool, len(p.Prints))
	for i, print := range p.Prints {
		prints[i] = fs.Bool(print.Flag, false, "")
	}
	flags := DefineFlags(fs, p.Sections...)

	err := fs.Parse(args)
	switch {
	case err != nil:
		err = explainFlags(fs, err)
	case *help:
		printUsage(stdout, p)
		return true, 0
	case *version:
		fmt.Fprintf(stdout, "%s %s (%s %s/%s)\n", p.Name, Version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
		return true, 0
	case fs.NArg() > 0:
		err = fmt.Errorf("%s does not belong to any flag", quoted(fs.Arg(0)))
	default:
		err = flags.Err()
	}
	if err != nil {
		fmt.Fprintf(stderr, "%s: %v\n%s --help lists the flags.\n", p.Name, err, p.Name)
		return true, exitUsage
	}

	options := Options{File: *file, Environ: environ, Flags: flags}
	if *file == "" {
		options.File, options.Optional = DefaultFile, true
	}
	warnings, err := Load(options, p.Sections...)
	for i, print := range p.Prints {
		if *prints[i] && err == nil {
			done = true
			err = print.Write(stdout)
		}
	}
	for _, warning := range warnings {
		fmt.Fprintf(stderr, "%s: warning: %s\n", p.Name, warning)
	}
	if err != nil {
		for line := range strings.Lines(err.Error()) {
			fmt.Fprintf(stderr, "%s: %s\n", p.Name, strings.TrimSuffix(line, "\n"))
		}
		return true, exitConfig
	}
	return done, 0
}

// explainFlags says what package flag said, with two dashes and with the flag that was meant.
func explainFlags(fs *flag.FlagSet, err error) error {
	if name, ok := strings.CutPrefix(err.Error(), "flag provided but not defined: -"); ok {
		var names []string
		fs.VisitAll(func(f *flag.Flag) { names = append(names, f.Name) })
		if near := nearest(name, names); near != "" {
			return fmt.Errorf("there is no flag --%s: did you mean --%s?", name, near)
		}
		return fmt.Errorf("there is no flag --%s", name)
	}
	if name, ok := strings.CutPrefix(err.Error(), "flag needs an argument: -"); ok {
		return fmt.Errorf("--%s needs a value", name)
	}
	if text, ok := strings.CutPrefix(err.Error(), "bad flag syntax: "); ok {
		return fmt.Errorf("%s is not a flag", quoted(text))
	}
	// What is left is about a value: `invalid boolean value "x" for -version: …`.
	return fmt.Errorf("%s", strings.Replace(err.Error(), " for -", " for --", 1))
}
