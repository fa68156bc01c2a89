package config

import (
	"errors"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestGoodFiles(t *testing.T) {
	t.Parallel()
	defaults := newFixture()
	defaults.box.internal = 1
	everything := &fixture{
		redis: redisConfig{URL: "redis://127.0.0.1:6379/0"},
		box: &boxConfig{
			Listen: "127.0.0.1:0", LeaseTTL: 90 * Minute, Storage: Fixed(1536 * MiB), Upload: 300 * Kbit,
			Entrances:      []string{"http://192.0.2.1:7070/", "https://entrance.example.org"},
			TrustedProxies: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("fd00::/8")},
			Verbose:        true, MaxFiles: 1000, Weight: 1e-3, Proxy: netip.IPv6Loopback(), internal: 1,
		},
		publisher: publisherConfig{Listen: ":1", Streams: []streamConfig{
			{Name: "demo", Source: "dir:/var/hls/demo"},
			{Name: "123", Source: "dir:/x", TTL: Fixed(90 * Second)},
		}},
	}
	empty := newFixture()
	empty.box.internal = 1
	empty.publisher.Streams = []streamConfig{}
	want := map[string]*fixture{"empty": defaults, "comments": defaults, "null": empty, "everything": everything}
	files, err := filepath.Glob("testdata/good/*.yaml")
	if err != nil || len(files) != len(want) {
		t.Fatalf("files %q, %v", files, err)
	}
	for _, file := range files {
		got := newFixture()
		if err := Check(file, got.withPublisher()...); err != nil {
			t.Errorf("%s: %v", file, err)
		}
		if want := want[strings.TrimSuffix(filepath.Base(file), ".yaml")]; !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\n got %+v %+v\nwant %+v %+v", file, got, got.box, want, want.box)
		}
	}
}

// Each bad file says in comments which lines of error it wants, FILE standing for its path.
func TestBadFiles(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/bad/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("files %q, %v", files, err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var want []string
		for line := range strings.Lines(string(data)) {
			if message, ok := strings.CutPrefix(line, "# want: "); ok {
				want = append(want, strings.ReplaceAll(strings.TrimSpace(message), "FILE", file))
			}
		}
		err = Check(file, newFixture().withPublisher()...)
		if err == nil || len(want) == 0 {
			t.Errorf("%s: error %v; the file wants %q", file, err, want)
			continue
		}
		if got := err.Error(); got != strings.Join(want, "\n") {
			t.Errorf("%s:\n got %s\nwant %s", file, got, strings.Join(want, "\n     "))
		}
	}
}

func TestMissingAndUnreadableFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	missing := filepath.Join(dir, "config.yaml")
	if _, err := Load(Options{File: missing, Optional: true}, newFixture().sections()...); err != nil {
		t.Errorf("an optional file: %v", err)
	}
	huge := filepath.Join(dir, "huge.yaml")
	if err := os.WriteFile(huge, []byte(strings.Repeat("#", maxFile+1)), 0o600); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{
		missing: "no such file",
		dir:     "is a directory",
		huge:    "more than 1MiB",
	} {
		if err := Check(file, newFixture().sections()...); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v; want %q", file, err, want)
		}
	}
}

func TestOverrides(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "config.yaml")
	err := os.WriteFile(file, []byte("box:\n  listen: :1\n  edge_listen: :1\n  upload: 1Mbit/s\n  entrances: [http://file]\n  verbose: true\n"), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	got := newFixture()
	fs := flag.NewFlagSet("", flag.ContinueOnError)
	flags := DefineFlags(fs, got.sections()...)
	if err := fs.Parse([]string{"--upload", "3Mbit/s", "--entrances=http://a, http://b", "--verbose=false", "--entrances", "http://c", "--edge-listen="}); err != nil {
		t.Fatal(err)
	}
	warnings, err := Load(Options{File: file, Flags: flags, Environ: []string{
		"HOME=/root", "DANDELION_BOX_EDGE_LISTEN=:2", "DANDELION_BOX_UPLOAD=2Mbit/s", "DANDELION_REDIS_URL=redis://env",
		"DANDELION_BOX_TRUSTED_PROXIES=10.0.0.0/8, ::1/128", "DANDELION_BOX_STORAGE_LIMIT=auto", "DANDELION_BOX_LISTEN=", "DANDELION_BOX_MAX_FILES=7",
	}}, got.sections()...)
	if err != nil || len(warnings) != 0 {
		t.Fatalf("%v, warnings %q", err, warnings)
	}
	want := newFixture()
	want.redis.URL = "redis://env"
	want.box.Listen = ":1" // an empty variable is not set
	want.box.EdgeListen = ""
	want.box.Upload = 3 * Mbit
	want.box.Entrances = []string{"http://a", "http://b", "http://c"}
	want.box.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("::1/128")}
	want.box.MaxFiles = 7
	want.box.internal = 1
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got.box, want.box)
	}
}

func TestOriginOfProblems(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, []byte("box:\n  listen: nowhere\n  entrances: [http://a, ftp://b]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		environ, args []string
		change        func(*boxConfig)
		want          string
	}{
		"file": {
			want: file + `:2: box.listen is "nowhere"; want an address to listen on, such as :7072 or 127.0.0.1:7072` + "\n" +
				file + `:3: box.entrances[1] is "ftp://b"; want an http or https URL, such as http://192.0.2.1:7070/`,
		},
		"environment": {
			environ: []string{"DANDELION_BOX_LISTEN=:x", "DANDELION_BOX_ENTRANCES=http://a,b"},
			want: `box.listen is ":x" (from DANDELION_BOX_LISTEN); want an address to listen on, such as :7072 or 127.0.0.1:7072, its port from 0 to 65535` + "\n" +
				`box.entrances[1] is "b" (from DANDELION_BOX_ENTRANCES); want an http or https URL, such as http://192.0.2.1:7070/`,
		},
		"flags": {
			environ: []string{"DANDELION_BOX_LISTEN=:x"},
			args:    []string{"--listen", "65536", "--entrances", ""},
			want:    `box.listen is "65536" (from --listen); want an address to listen on, such as :7072 or 127.0.0.1:7072`,
		},
		"default": {
			args:   []string{"--listen", ":1", "--entrances", ""},
			change: func(c *boxConfig) { c.MaxFiles = -1 },
			want:   `box.max_files is -1 (default); want 1 to 1000`,
		},
		"text that cannot be read, which stops validation": {
			environ: []string{"DANDELION_BOX_LEASE_TTL=20", "DANDELION_BOX_TRUSTED_PROXIES=10.0.0.0/8,x"},
			want: `box.lease_ttl is 20, without a unit: seconds would be 20s (from DANDELION_BOX_LEASE_TTL); want a duration with its unit, such as 20s, 5m or 1h30m` + "\n" +
				`box.trusted_proxies[1] is "x": netip.ParsePrefix("x"): no '/' (from DANDELION_BOX_TRUSTED_PROXIES)`,
		},
		"a list of structs": {
			environ: []string{"DANDELION_PUBLISHER_STREAMS=demo", "DANDELION_BOX_LISTEN=:1", "DANDELION_BOX_ENTRANCES=http://a"},
			want:    "publisher.streams cannot be set by a variable (from DANDELION_PUBLISHER_STREAMS); want it in the configuration file",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture()
			if tt.change != nil {
				tt.change(f.box)
			}
			fs := flag.NewFlagSet("", flag.ContinueOnError)
			flags := DefineFlags(fs, f.sections()...)
			if err := fs.Parse(tt.args); err != nil {
				t.Fatal(err)
			}
			_, err := Load(Options{File: file, Environ: tt.environ, Flags: flags}, f.withPublisher()...)
			if err == nil || err.Error() != tt.want {
				t.Errorf("got  %v\nwant %s", err, tt.want)
			}
			var fe *FieldError
			if !errors.As(err, &fe) {
				t.Errorf("%T holds no FieldError", err)
			}
		})
	}
}

func TestUnknownVariables(t *testing.T) {
	t.Parallel()
	warnings, err := Load(Options{Environ: []string{
		"DANDELION_BOX_LISTN=:1", "DANDELION_ENTRANCE_LISTN=:1", "DANDELION_SOMETHING_ELSE_ENTIRELY=1", "dandelion_box_x=1",
	}}, newFixture().sections()...)
	want := []string{
		"DANDELION_BOX_LISTN is set, but is no setting: did you mean DANDELION_BOX_LISTEN?",
		"DANDELION_SOMETHING_ELSE_ENTIRELY is set, but is no setting",
	}
	if err != nil || !reflect.DeepEqual(warnings, want) {
		t.Errorf("%v, warnings %q; want %q", err, warnings, want)
	}
}

func TestValidateWithPlainErrors(t *testing.T) {
	t.Parallel()
	_, err := Load(Options{}, Section{Name: "redis", Value: &brokenConfig{}})
	if want := "redis is wrong: out of luck (default)"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

type brokenConfig struct {
	X string `yaml:"x" doc:"x"`
}

func (*brokenConfig) Validate() error { return errors.New("out of luck") }

func TestMistakesInTheProgramPanic(t *testing.T) {
	t.Parallel()
	for name, s := range map[string]Section{
		"unknown section": {Name: "boxes", Value: &redisConfig{}},
		"no pointer":      {Name: "box", Value: redisConfig{}},
		"no yaml": {Name: "box", Value: &struct {
			X int `doc:"x"`
		}{}},
		"no doc": {Name: "box", Value: &struct {
			X int `yaml:"x"`
		}{}},
		"yaml with options": {Name: "box", Value: &struct {
			X int `yaml:"x,omitempty" doc:"x"`
		}{}},
		"impossible type": {Name: "box", Value: &struct {
			X map[string]int `yaml:"x" doc:"x"`
		}{}},
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			Load(Options{}, s)
		}()
	}
}

func TestNearest(t *testing.T) {
	t.Parallel()
	known := []string{"listen", "edge_listen", "lease_ttl", "data_dir"}
	for name, want := range map[string]string{
		"listn": "listen", "LISTEN": "listen", "datadir": "data_dir", "lease-ttl": "lease_ttl", "edge_lisen": "edge_listen",
		"x": "", "": "", "replicas": "", strings.Repeat("listen", 1000): "",
	} {
		if got := nearest(name, known); got != want {
			t.Errorf("nearest(%.20q) = %q, want %q", name, got, want)
		}
	}
}

func FuzzYAML(f *testing.F) {
	for _, pattern := range []string{"testdata/good/*.yaml", "testdata/bad/*.yaml"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(string(data))
		}
	}
	f.Fuzz(func(t *testing.T, data string) {
		fixture := newFixture()
		l := loader{origins: map[string]origin{}, file: "f"}
		for _, s := range fixture.withPublisher() {
			l.sections = append(l.sections, section{s, fieldsOf(s.Name, reflect.ValueOf(s.Value))})
		}
		if err := l.readYAML([]byte(data)); err != nil {
			return
		}
		l.validate()
		for _, err := range l.problems {
			var fe *FieldError
			if !errors.As(err, &fe) || fe.Field == "" || fe.Problem == "" {
				t.Errorf("%q: %#v", data, err)
			}
		}
	})
}
