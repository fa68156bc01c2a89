//go:build e2e

package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"dandelion/pkg/testnginx"
)

// daemons by the name of their section.
var daemons = map[string]string{"entrance": "run_entrance", "box": "run_box", "publisher": "run_publisher"}

// refuses runs a program that must end with status 1 and one line with all the words.
func refuses(t *testing.T, within time.Duration, program string, args []string, words ...string) {
	t.Helper()
	status, _, stderr := run(t, within, nil, program, args...)
	said := slices.DeleteFunc(slices.Collect(lines(stderr)), func(line string) bool { return strings.HasPrefix(line, "time=") })
	if status != 1 || len(said) != 1 || !hasAll(said[0], words) {
		t.Errorf("%s %s: status %d, want 1, and one line with %q:\n%s", filepath.Base(program), args, status, words, stderr)
	}
}

// TestRefusals: what cannot work is said in one line with the cause and the cure.
func TestRefusals(t *testing.T) {
	t.Parallel()
	for section, name := range daemons {
		t.Run(section, func(t *testing.T) {
			t.Parallel()
			taken, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer taken.Close()
			dir := t.TempDir()
			file := filepath.Join(dir, "file")
			write(t, file, "")
			refuses(t, soon, program(name), []string{"--data-dir", filepath.Join(dir, "a"), "--listen", taken.Addr().String()},
				section+".listen", taken.Addr().String(), "uses", "stop it", "another port")
			refuses(t, soon, program(name), []string{"--data-dir", filepath.Join(file, "below"), "--listen", "127.0.0.1:0"},
				"data_dir", file, "not a directory", "set data_dir")
			refuses(t, soon, program(name), []string{"--data-dir", dir, "--config", filepath.Join(dir, "absent.yaml")},
				"absent.yaml", "no such file")

			d := newDaemon(t, name, section, filepath.Join(dir, "b"), fmt.Sprintf("%s:\n  data_dir: data\n", section))
			refuses(t, soon, program(name), []string{"--data-dir", filepath.Join(d.dir, "data"), "--listen", "127.0.0.1:0"},
				"data_dir", fmt.Sprint(d.cmd.Process.Pid))
		})
	}
}

// badConfigs are files, the line that is wrong, and words that must be said.
var badConfigs = []struct {
	text  string
	line  int
	words []string
}{
	{"publisher:\n  replicas: many\n", 2, []string{"publisher.replicas", `"many"`, "whole number"}},
	{"box:\n  listn: \":7072\"\n", 2, []string{"box.listn", "did you mean listen?"}},
	{"bocks:\n  listen: \":7072\"\n", 1, []string{"bocks", "box"}},
	{"entrance:\n  lease_ttl: 20\n", 2, []string{"entrance.lease_ttl", "20s"}},
	{"publisher:\n\tlisten: x\n", 2, []string{"not YAML", "tabs"}},
	{
		"publisher:\n  streams:\n    - name: demo\n      source: dir:/a\n    - name: demo\n      source: dir:/b\n", 5,
		[]string{"publisher.streams[1].name", "streams[0]", "a name of its own"},
	},
	{"publisher:\n  streams:\n    - name: a/b\n      source: dir:/a\n", 3, []string{"publisher.streams[0].name", `"a/b"`, "letters, digits"}},
	{"publisher:\n  streams:\n    - name: demo\n      source: /a\n", 4, []string{"publisher.streams[0].source", "dir:/var/hls/demo"}},
}

// TestBadConfig: each bad field is named with its line and what would be right, by
// `dandelion config check` and by the daemon whose it is.
func TestBadConfig(t *testing.T) {
	t.Parallel()
	for _, bad := range badConfigs {
		file := filepath.Join(t.TempDir(), "config.yaml")
		write(t, file, bad.text)
		words := append([]string{fmt.Sprintf("%s:%d:", file, bad.line)}, bad.words...)
		refuses(t, soon, program("dandelion"), []string{"config", "check", file}, words...)
		section, _, _ := strings.Cut(bad.text, ":")
		if name, ok := daemons[section]; ok && !strings.Contains(bad.text, "listn") { // unknown fields are a later version's
			refuses(t, soon, program(name), []string{"--config", file, "--data-dir", t.TempDir(), "--listen", "127.0.0.1:0"}, words...)
		}
	}
	file := filepath.Join(t.TempDir(), "config.yaml")
	status, example, stderr := run(t, soon, nil, program("dandelion"), "config", "example")
	write(t, file, example)
	if status != 0 || stderr != "" {
		t.Errorf("config example: status %d: %s", status, stderr)
	}
	if status, _, stderr := run(t, soon, nil, program("dandelion"), "config", "check", file); status != 0 || stderr != "" {
		t.Errorf("the example is not right: status %d: %s", status, stderr)
	}
}

// TestOverrides: a variable overrides the file, and a flag overrides both.
func TestOverrides(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "config.yaml")
	write(t, file, "entrance:\n  lease_ttl: 20s\n")
	args := []string{"--config", file, "--data-dir", "data", "--listen", "127.0.0.1:0"}
	start := func(env string, more ...string) *process {
		cmd := exec.Command(program("run_entrance"), append(args, more...)...)
		cmd.Dir, cmd.Env = t.TempDir(), append(os.Environ(), env)
		return begin(t, "entrance", cmd, nil)
	}
	variable := start("DANDELION_ENTRANCE_LEASE_TTL=7 moons")
	if status := variable.exit(t, soon); status != 1 || !strings.Contains(variable.log.String(), "DANDELION_ENTRANCE_LEASE_TTL") {
		t.Errorf("a bad variable: status %d: %s", status, variable.log.String())
	}
	flag := start("DANDELION_ENTRANCE_LEASE_TTL=15s", "--lease-ttl", "8 suns")
	if status := flag.exit(t, soon); status == 0 || !strings.Contains(flag.log.String(), "--lease-ttl") {
		t.Errorf("a bad flag: status %d: %s", status, flag.log.String())
	}
	start("DANDELION_ENTRANCE_LEASE_TTL=15s", "--lease-ttl", "16s").says(t, soon, "entrance starts")
}

// oneDash finds a flag that is written with one dash; -h and -v stand beside their long forms.
var oneDash = regexp.MustCompile(`(?m)(?:^|[\s(])-[a-zA-Z][a-zA-Z-]+`)

// TestHelp: each program explains itself, its flags with two dashes, and tells its version.
func TestHelp(t *testing.T) {
	t.Parallel()
	for name, flags := range map[string][]string{
		"run_entrance":  {"--config", "--help", "--version", "--listen", "--data-dir", "--public-url", "--other-urls", "--lease-ttl", "--max-search-results", "--redis-url"},
		"run_box":       {"--config", "--help", "--version", "--listen", "--edge-listen", "--public-address", "--data-dir", "--live-dir", "--live-limit", "--storage-limit", "--entrances", "--report-interval", "--geoip-db", "--redis-url"},
		"run_publisher": {"--config", "--help", "--version", "--listen", "--data-dir", "--public-url", "--entrances", "--min-boxes", "--replicas", "--redis-url"},
		"dandelion":     {"--help", "--version", "demo", "boxes", "streams", "upload", "ready", "config"},
	} {
		status, stdout, stderr := run(t, soon, nil, program(name), "--help")
		if status != 0 || stderr != "" || !hasAll(stdout, flags) {
			t.Errorf("%s --help: status %d, want %q in\n%s%s", name, status, flags, stdout, stderr)
		}
		if found := oneDash.FindString(stdout); found != "" {
			t.Errorf("%s --help shows %q with one dash", name, found)
		}
		status, stdout, stderr = run(t, soon, nil, program(name), "--version")
		if status != 0 || stderr != "" || !strings.HasPrefix(stdout, name+" ") || strings.Count(stdout, "\n") != 1 {
			t.Errorf("%s --version: status %d: %s%s", name, status, stdout, stderr)
		}
		status, stdout, stderr = run(t, soon, nil, program(name), "--no-such-flag")
		if status == 0 || !strings.Contains(stderr, "--no-such-flag") {
			t.Errorf("%s --no-such-flag: status %d: %s%s", name, status, stdout, stderr)
		}
	}
	for _, command := range []string{"demo", "boxes", "streams", "upload", "ready", "config"} {
		status, stdout, stderr := run(t, soon, nil, program("dandelion"), command, "--help")
		if status != 0 || stderr != "" || oneDash.MatchString(stdout) {
			t.Errorf("dandelion %s --help: status %d: %s%s", command, status, stdout, stderr)
		}
	}
}

// TestRedisDown: a Redis that is configured and does not answer is tried for 30 s, which is said;
// then the daemon ends with one line.
func TestRedisDown(t *testing.T) {
	t.Parallel()
	addr := testnginx.FreeAddr(t)
	url := "redis://" + addr + "/0"
	begun := map[string]*process{}
	began := time.Now()
	for section, name := range daemons {
		cmd := exec.Command(program(name), "--redis-url", url, "--data-dir", "data", "--listen", "127.0.0.1:0")
		cmd.Dir = t.TempDir()
		begun[section] = begin(t, section, cmd, nil)
	}
	for section, p := range begun {
		p.says(t, soon, "level=", "edis", addr) // that it tries
		status := p.exit(t, 45*time.Second)
		if took := time.Since(began); took < 25*time.Second {
			t.Errorf("%s gave up after %v, want 30 s", section, took)
		}
		said := slices.DeleteFunc(slices.Collect(lines(p.log.String())), func(line string) bool { return strings.HasPrefix(line, "time=") })
		if status == 0 || len(said) != 1 || !hasAll(said[0], []string{"edis", addr}) {
			t.Errorf("%s: status %d and %q, want an error in one line that names Redis and %s", section, status, said, addr)
		}
	}
}

// TestSources: a source that is no playlist, vanishes or returns never stops the publisher, and
// what is wrong is on its API.
func TestSources(t *testing.T) {
	t.Parallel()
	fleet := newFleet(t, plan{boxes: 1, replicas: 1})
	problem := func(words ...string) {
		t.Helper()
		eventually(t, patience, func() error {
			s, err := fleet.streams()
			if err == nil && !(len(words) == 0 && s.Streams[0].Problem == "" || len(words) > 0 && hasAll(s.Streams[0].Problem, words)) {
				err = fmt.Errorf("the problem is %q, want %q", s.Streams[0].Problem, words)
			}
			return err
		})
	}
	problem("no playlist", fleet.source, "waiting for the encoder")
	write(t, filepath.Join(fleet.source, "index.m3u8"), "<html>not found</html>\n")
	problem("index.m3u8", fleet.source, "#EXTM3U")
	encoder := encode(t, fleet.source, ts, "+delete_segments")
	fleet.awaitMore(2)
	problem()

	encoder.kill()
	if err := os.RemoveAll(fleet.source); err != nil {
		t.Fatal(err)
	}
	problem(fleet.source, "does not exist", "waiting for the encoder")
	if _, _, err := get(t, fleet.index()); err != nil {
		t.Errorf("what viewers had is gone with the source: %v", err)
	}
	if err := os.Mkdir(fleet.source, 0o700); err != nil {
		t.Fatal(err)
	}
	encode(t, fleet.source, ts, "+delete_segments")
	fleet.awaitMore(2)
	problem()
}

// TestSignals: SIGINT ends each daemon with status 0, as SIGTERM does at the end of every test.
func TestSignals(t *testing.T) {
	t.Parallel()
	for section, name := range daemons {
		d := newDaemon(t, name, section, filepath.Join(t.TempDir(), section), fmt.Sprintf("%s:\n  data_dir: data\n", section))
		d.signal(syscall.SIGINT)
		if status := d.exit(t, leave); status != 0 {
			t.Errorf("%s: status %d after SIGINT", name, status)
		}
	}
}
