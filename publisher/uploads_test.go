package publisher

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dandelion/pkg/id"
	"dandelion/pkg/wire"
)

func TestUploadsStayForTheirTTL(t *testing.T) {
	t.Parallel()
	u, err := openUploads(t.TempDir(), 100)
	if err != nil {
		t.Fatal(err)
	}
	paths := map[time.Duration]id.Path{}
	for ttl, name := range map[time.Duration]string{0: "kept", time.Hour: "hour", wire.MaxTTL: "year", time.Minute: ".incoming-is-a-name-too"} {
		if paths[ttl], err = u.add(name, ttl, strings.NewReader("content")); err != nil {
			t.Fatal(err)
		}
	}
	left := func(now time.Time) (n int) {
		u.sweep(now)
		for _, path := range paths {
			if u.file(path) != "" {
				n++
			}
		}
		return n
	}
	now := time.Now()
	for after, want := range map[time.Duration]int{0: 4, 59 * time.Second: 4} {
		if got := left(now.Add(after)); got != want {
			t.Errorf("after %v: %d files, want %d", after, got, want)
		}
	}
	if got := left(now.Add(2 * time.Minute)); got != 3 {
		t.Errorf("after 2 min: %d files", got)
	}
	if got := left(now.Add(2 * time.Hour)); got != 2 {
		t.Errorf("after 2 h: %d files", got)
	}
	if got := left(now.AddDate(10, 0, 0)); got != 1 || u.file(paths[0]) == "" {
		t.Errorf("after 10 years: %d files; the one without a TTL must be there", got)
	}
}

func TestUploadsRefuse(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	u, err := openUploads(dir, 10)
	if err != nil {
		t.Fatal(err)
	}
	never := readerFunc(func([]byte) (int, error) { t.Error("the body of a bad name is read"); return 0, io.EOF })
	for _, name := range []string{"", "..", "a/../b", "/", "a\\b", "a\nb", strings.Repeat("x", 300)} {
		if _, err := u.add(name, time.Hour, never); !errors.Is(err, id.ErrPath) {
			t.Errorf("name %q: %v", name, err)
		}
	}
	if _, err := u.add("large", time.Hour, strings.NewReader("more than ten bytes")); !errors.Is(err, errTooLarge) {
		t.Error(err)
	}
	broken := readerFunc(func([]byte) (int, error) { return 0, io.ErrUnexpectedEOF })
	if _, err := u.add("broken", time.Hour, broken); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 0 {
		t.Errorf("%d files are left of refused uploads", len(entries))
	}
	left := filepath.Join(dir, incomingPrefix+"1") // by a crash
	if err := os.WriteFile(left, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	u.sweep(time.Now())
	if _, err := os.Stat(left); err != nil {
		t.Error("an upload that is under way was removed")
	}
	u.sweep(time.Now().Add(abandoned + time.Minute))
	if _, err := os.Stat(left); err == nil {
		t.Error("an upload that a crash left stays for ever")
	}
	for _, path := range []id.Path{"/uploads/0123456789ab/none", "/uploads/0123456789ab", "/live/demo/v/0123456789ab/x"} {
		if file := u.file(path); file != "" {
			t.Errorf("%s is %s", path, file)
		}
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

func TestUploadTTL(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]time.Duration{"": defaultUploadTTL, "0": 0, "12h": 12 * time.Hour, "1s": time.Second, "20000h": wire.MaxTTL} {
		if got, err := uploadTTL(text); err != nil || got != want {
			t.Errorf("ttl=%s: %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"soon", "-1h", "1", "0s", "999ms", "1e9h"} {
		if got, err := uploadTTL(text); err == nil {
			t.Errorf("ttl=%s: %v", text, got)
		}
	}
}

func TestSyncDirs(t *testing.T) {
	t.Parallel()
	top := t.TempDir()
	dir := filepath.Join(top, "a", "b")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syncDirs(dir, top); err != nil {
		t.Error(err)
	}
	if err := syncDirs(filepath.Join(dir, "c"), top); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a directory that is not there: %v", err)
	}
}
