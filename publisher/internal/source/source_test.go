package source

import (
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	for spec, want := range map[string]string{
		"": `want "dir:"`, "/var/hls": `want "dir:"`, "rtmp://x": `want "dir:"`, "dir:": "want an absolute path", "dir:hls": "want an absolute path",
	} {
		if _, err := New(spec, slog.Default()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", spec, err, want)
		}
	}
}

func TestResolve(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ base, uri, want string }{
		{"index.m3u8", "seg-0.ts", "seg-0.ts"},
		{"720p/index.m3u8", "seg-0.ts", "720p/seg-0.ts"},
		{"720p/index.m3u8", "../audio/seg-0.ts", "audio/seg-0.ts"},
		{"index.m3u8", "my%20seg.ts?token=1#x", "my seg.ts"},
		{"index.m3u8", "100%.ts", "100%.ts"},
		{"index.m3u8", "seg-12:30:00.ts", "seg-12:30:00.ts"},
		{"index.m3u8", "./a/./b.ts", "a/b.ts"},
		{"index.m3u8", "..a.ts", "..a.ts"},
	} {
		if got, err := Resolve(c.base, c.uri); err != nil || got != c.want {
			t.Errorf("%s in %s: %q, %v; want %q", c.uri, c.base, got, err, c.want)
		}
	}
	for _, uri := range []string{
		"../seg.ts", "a/../../seg.ts", "%2e%2e/seg.ts", "/etc/passwd", "//host/a.ts", "http://host/a.ts", "HTTPS://host/a.ts",
		"file:/etc/passwd", "data:text/plain,a", "", ".", "..", "?a", "a%00.ts", `a\b.ts`, strings.Repeat("a", 300),
	} {
		if got, err := Resolve("index.m3u8", uri); !errors.Is(err, ErrRefused) {
			t.Errorf("%q: %q, %v; want a refusal", uri, got, err)
		}
	}
}

func TestOpenStaysInside(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	name := base + "/hls"
	write(t, base+"/secret", "secret")
	write(t, name+"/index.m3u8", media(0, "0.ts"))
	write(t, name+"/sub/seg 0%.ts", "segment")
	for link, target := range map[string]string{
		"/out.ts": base + "/secret", "/out": base, "/up.ts": "../secret", "/in.ts": "sub/seg 0%.ts", "/loop.ts": "loop.ts",
	} {
		if err := os.Symlink(target, name+link); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(name+"/pipe.ts", 0o644); err != nil {
		t.Fatal(err)
	}
	f := follow(t, name, time.Hour, time.Hour)
	f.wait("a listing", listsUpTo("index.m3u8", "0.ts"))
	for _, uri := range []string{"out.ts", "out/secret", "up.ts", "pipe.ts", "sub", "../secret", base + "/secret"} {
		if file, err := f.Open("index.m3u8", uri); !errors.Is(err, ErrRefused) {
			t.Errorf("%s: %v, %v; want a refusal", uri, file, err)
		}
	}
	if _, err := f.Open("index.m3u8", "none.ts"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
	if _, err := f.Open("index.m3u8", "loop.ts"); err == nil {
		t.Error("a link to itself was opened")
	}
	for _, uri := range []string{"in.ts", "sub/seg%200%25.ts", "sub/seg 0%.ts"} {
		file, err := f.Open("index.m3u8", uri)
		if err != nil {
			t.Errorf("%s: %v", uri, err)
			continue
		}
		b, err := io.ReadAll(file)
		if is, nowErr := file.Now(); string(b) != "segment" || err != nil || nowErr != nil || is != file.Was || is.Size != 7 || is.Inode == 0 {
			t.Errorf("%s: %q, %v, %+v, %v", uri, b, err, is, nowErr)
		}
		file.Close()
	}
}
