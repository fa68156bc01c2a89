package config

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"runtime/debug"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestParse(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	good, bad := filepath.Join(dir, "good.yaml"), filepath.Join(dir, "bad.yaml")
	for path, text := range map[string]string{good: "box: {listen: ':5'}\n", bad: "box:\n  listen: x\n  nonsense: 1\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	tests := map[string]struct {
		args, environ  string
		done           bool
		status         int
		stdout, stderr string // what must be in it; empty: nothing may be
		listen         string
	}{
		"nothing said":        {listen: ":7072"},
		"file":                {args: "--config " + good, listen: ":5"},
		"flag over file":      {args: "--config=" + good + " --listen :6", listen: ":6"},
		"one dash is taken":   {args: "-listen :6", listen: ":6"},
		"shared section":      {args: "--redis-url redis://x", listen: ":7072"},
		"warning":             {environ: "DANDELION_X=1", listen: ":7072", stderr: "run_box: warning: DANDELION_X is set, but is no setting\n"},
		"help":                {args: "--listen nonsense --help", done: true, stdout: "Usage: run_box"},
		"short help":          {args: "-h", done: true, stdout: "Usage: run_box"},
		"version":             {args: "--version", done: true, stdout: "run_box " + Version() + " (go1."},
		"unknown flag":        {args: "--listn :1", done: true, status: 2, stderr: "run_box: there is no flag --listn: did you mean --listen?\nrun_box --help lists the flags.\n"},
		"very unknown flag":   {args: "--completely-else :1", done: true, status: 2, stderr: "run_box: there is no flag --completely-else\n"},
		"flag without value":  {args: "--listen", done: true, status: 2, stderr: "--listen needs a value\n"},
		"bad flag":            {args: "--=x", done: true, status: 2, stderr: `"--=x" is not a flag`},
		"bad boolean":         {args: "--version=maybe", done: true, status: 2, stderr: "for --version"},
		"stray argument":      {args: "config.yaml", done: true, status: 2, stderr: `"config.yaml" does not belong to any flag`},
		"text of a flag":      {args: "--lease-ttl 20", done: true, status: 2, stderr: "run_box: --lease-ttl is 20, without a unit"},
		"boolean flag":        {args: "--verbose=perhaps", done: true, status: 2, stderr: `run_box: --verbose is "perhaps"; want true or false`},
		"value of a flag":     {args: "--lease-ttl 1s", done: true, status: 1, stderr: "run_box: box.lease_ttl is 1s (from --lease-ttl); want a duration of at least 3s"},
		"no flag for structs": {args: "--streams x", done: true, status: 2, stderr: "there is no flag --streams"},
		"missing file":        {args: "--config " + dir + "/none.yaml", done: true, status: 1, stderr: "none.yaml: no such file"},
		"bad file":            {args: "--config " + bad, done: true, status: 1, stderr: "run_box: " + bad + ":3: box.nonsense is not a setting"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture()
			var stdout, stderr bytes.Buffer
			p := Program{Name: "run_box", Doc: "keeps segments.", Sections: f.sections()}
			done, status := p.Parse(strings.Fields(tt.args), strings.Fields(tt.environ), &stdout, &stderr)
			if done != tt.done || status != tt.status {
				t.Errorf("done %v, status %d; want %v, %d", done, status, tt.done, tt.status)
			}
			if !done && f.box.Listen != tt.listen {
				t.Errorf("listen is %s, want %s", f.box.Listen, tt.listen)
			}
			for got, want := range map[*bytes.Buffer]string{&stdout: tt.stdout, &stderr: tt.stderr} {
				if want == "" && got.Len() > 0 || !strings.Contains(got.String(), want) {
					t.Errorf("wrote %q; want %q", got, want)
				}
			}
		})
	}
}

func TestUsage(t *testing.T) {
	t.Parallel()
	f := newFixture()
	var out bytes.Buffer
	printUsage(&out, Program{Name: "run_box", Doc: "keeps segments.", Sections: append(f.withPublisher(), f.sections()[1])[2:]})
	text := out.String()
	for _, want := range []string{
		"run_box keeps segments.\n\nUsage: run_box [--name value ...]\n",
		"  --config file\n      YAML file with the settings (default config.yaml, which may be absent)\n",
		"  --version\n", "  --help\n",
		"Section box of the file:\n  The edge.\n  --listen text\n      Address for websockets and viewers (default :7072)\n",
		"  --lease-ttl duration\n      How long a lease lasts (default 20s)\n",
		"  --storage-limit size\n",
		"  --entrances a,b,…\n      URLs of entrances (default http://192.0.2.1:7070)\n",
		"  --verbose\n      Log more.\n",
		"  (in the file only) streams\n",
		"DANDELION_BOX_LISTEN",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the usage lacks %q:\n%s", want, text)
		}
	}
	for line := range strings.Lines(text) {
		if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > usageWidth {
			t.Errorf("%d columns: %s", n, line)
		}
		if name := strings.TrimSpace(line); strings.HasPrefix(name, "-") && !strings.HasPrefix(name, "--") {
			t.Errorf("a flag with one dash: %s", line)
		}
	}
}

func TestExample(t *testing.T) {
	t.Parallel()
	f := newFixture()
	want := *f
	example := Example(f.withPublisher()...)
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, example, 0o600); err != nil {
		t.Fatal(err)
	}
	// With nothing as default, what the file says is what is there after.
	got := fixture{box: &boxConfig{}}
	if err := Check(file, got.withPublisher()...); err != nil {
		t.Fatalf("%v in\n%s", err, example)
	}
	want.box.internal, want.publisher.Streams = 1, []streamConfig{}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v %+v\nwant %+v %+v from\n%s", got.box, got, want.box, want, example)
	}
	for _, want := range []string{
		"\n# The edge.\nbox:\n  # Address for websockets and viewers.\n  listen: \":7072\"\n\n",
		"\n  storage_limit: auto\n", "\n  upload: 2Mbit/s\n", "\n  entrances: [\"http://192.0.2.1:7070\"]\n", "\n  trusted_proxies: []\n",
		"\n  streams: []\n  # streams:\n  #     # Its name in URLs.\n  #   - name: \"demo\"\n  #     # Where it comes from.\n  #     source: \"dir:/var/hls/demo\"\n",
	} {
		if !strings.Contains(string(example), want) {
			t.Errorf("the example lacks %q:\n%s", want, example)
		}
	}

	// The commented item becomes the setting when its comment signs go.
	_, streams, _ := strings.Cut(string(example), "\n  # streams:\n")
	uncommented := "publisher:\n  streams:\n" + regexp.MustCompile(`(?m)^  # `).ReplaceAllString(streams, "  ")
	if err := os.WriteFile(file, []byte(uncommented), 0o600); err != nil {
		t.Fatal(err)
	}
	got = *newFixture()
	if err := Check(file, got.withPublisher()...); err != nil {
		t.Fatalf("%v in\n%s", err, uncommented)
	}
	if want := []streamConfig{{Name: "demo", Source: "dir:/var/hls/demo"}}; !reflect.DeepEqual(got.publisher.Streams, want) {
		t.Errorf("streams: %+v from\n%s", got.publisher.Streams, uncommented)
	}
}

func TestExampleOfAFilledList(t *testing.T) {
	t.Parallel()
	f := newFixture()
	f.publisher.Streams = []streamConfig{{Name: "a", Source: "dir:/a", TTL: Fixed(Minute)}, {Name: "b", Source: "dir:/b"}}
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, Example(f.withPublisher()...), 0o600); err != nil {
		t.Fatal(err)
	}
	got := newFixture()
	if err := Check(file, got.withPublisher()...); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got.publisher, f.publisher) {
		t.Errorf("got %+v, want %+v", got.publisher, f.publisher)
	}
}

func TestVersion(t *testing.T) {
	t.Parallel()
	info := func(main string, settings ...debug.BuildSetting) *debug.BuildInfo {
		return &debug.BuildInfo{Main: debug.Module{Version: main}, Settings: settings}
	}
	revision := debug.BuildSetting{Key: "vcs.revision", Value: "0123456789abcdef0123"}
	for name, tt := range map[string]struct {
		linked string
		info   *debug.BuildInfo
		want   string
	}{
		"linker":    {linked: "v1.2.3", info: info("", revision), want: "v1.2.3"},
		"commit":    {info: info("v0.0.0-2026+dirty", revision), want: "0123456789ab"},
		"changed":   {info: info("", revision, debug.BuildSetting{Key: "vcs.modified", Value: "true"}), want: "0123456789ab-dirty"},
		"unchanged": {info: info("", revision, debug.BuildSetting{Key: "vcs.modified", Value: "false"}), want: "0123456789ab"},
		"module":    {info: info("v1.4.0"), want: "v1.4.0"},
		"nothing":   {info: info("(devel)"), want: "devel"},
	} {
		if got := versionOf(tt.linked, tt.info); got != tt.want {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
	if Version() == "" {
		t.Error("no version")
	}
}
