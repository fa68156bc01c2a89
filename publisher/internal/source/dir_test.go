package source

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// followed is a running source and all that it said.
type followed struct {
	*dir
	t       *testing.T
	mu      sync.Mutex
	last    Update
	count   int
	changed chan struct{} // closed and made anew at every update
	logs    *lockedBuffer
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// follow runs a source on a directory. With every at an hour only events can bring news.
func follow(t *testing.T, name string, every, settle time.Duration) *followed {
	t.Helper()
	f := &followed{t: t, changed: make(chan struct{}), logs: &lockedBuffer{}}
	src, err := New("dir:"+name, slog.New(slog.NewTextHandler(f.logs, nil)))
	if err != nil {
		t.Fatal(err)
	}
	f.dir = src.(*dir)
	f.every, f.settle = every, settle
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() {
		done <- f.Run(ctx, func(u Update) {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.last = u
			f.count++
			close(f.changed)
			f.changed = make(chan struct{})
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return f
}

// wait returns the first update that is as wanted.
func (f *followed) wait(what string, want func(Update) bool) Update {
	f.t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		f.mu.Lock()
		last, count, changed := f.last, f.count, f.changed
		f.mu.Unlock()
		if count > 0 && want(last) {
			return last
		}
		select {
		case <-changed:
		case <-deadline:
			f.t.Fatalf("never came: %s; last was %+v\n%s", what, last, f.logs)
		}
	}
}

// updates waits for n more updates.
func (f *followed) updates(n int) {
	f.t.Helper()
	f.mu.Lock()
	until := f.count + n
	f.mu.Unlock()
	f.wait("more updates", func(Update) bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.count >= until
	})
}

func paths(u Update) []string {
	var names []string
	for _, l := range u.Listings {
		names = append(names, l.Path)
	}
	return names
}

// listsUpTo wants a playlist whose last entry has that URI.
func listsUpTo(name, uri string) func(Update) bool {
	return func(u Update) bool {
		for _, l := range u.Listings {
			if n := len(l.Media.Entries); l.Path == name && n > 0 && l.Media.Entries[n-1].URI == uri {
				return true
			}
		}
		return false
	}
}

func media(first int, uris ...string) string {
	s := fmt.Sprintf("#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXT-X-MEDIA-SEQUENCE:%d\n", first)
	for _, uri := range uris {
		s += "#EXTINF:2,\n" + uri + "\n"
	}
	return s
}

func write(t *testing.T, name, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func writeRenamed(t *testing.T, name, content string) {
	t.Helper()
	write(t, name+".tmp", content)
	if err := os.Rename(name+".tmp", name); err != nil {
		t.Fatal(err)
	}
}

func TestEventsTellOfPlaylists(t *testing.T) {
	t.Parallel()
	name := t.TempDir()
	write(t, name+"/index.m3u8", media(0, "0.ts"))
	f := follow(t, name, time.Hour, time.Hour)
	first := f.wait("the first listing", listsUpTo("index.m3u8", "0.ts"))
	if first.Problem != "" || first.Multivariant != nil || time.Since(first.Listings[0].Written) > time.Hour {
		t.Errorf("%+v", first)
	}
	writeRenamed(t, name+"/index.m3u8", media(0, "0.ts", "1.ts"))
	f.wait("a playlist that was renamed", listsUpTo("index.m3u8", "1.ts"))
	write(t, name+"/index.m3u8", media(0, "0.ts", "1.ts", "2.ts"))
	f.wait("a playlist that was rewritten in place", listsUpTo("index.m3u8", "2.ts"))
	writeRenamed(t, name+"/other.m3u8", media(0, "x.ts"))
	both := f.wait("a new playlist", listsUpTo("other.m3u8", "x.ts"))
	if got := paths(both); !slices.Equal(got, []string{"index.m3u8", "other.m3u8"}) {
		t.Errorf("%q", got)
	}
}

// A playlist that did not change is the same pointer, so that nobody looks at it again.
func TestUnchangedPlaylistsAreTheSame(t *testing.T) {
	t.Parallel()
	name := t.TempDir()
	write(t, name+"/index.m3u8", media(0, "0.ts"))
	f := follow(t, name, 5*time.Millisecond, time.Hour)
	before := f.wait("a listing", listsUpTo("index.m3u8", "0.ts")).Listings[0].Media
	write(t, name+"/index.m3u8", media(0, "0.ts")) // the same again
	f.updates(5)
	if after := f.wait("a listing", listsUpTo("index.m3u8", "0.ts")).Listings[0].Media; after != before {
		t.Error("the same playlist was parsed again")
	}
}

func TestTornPlaylistIsNotTaken(t *testing.T) {
	t.Parallel()
	name := t.TempDir()
	whole := media(0, "0.ts", "1.ts")
	write(t, name+"/index.m3u8", media(0, "0.ts"))
	f := follow(t, name, 5*time.Millisecond, time.Hour)
	f.wait("the first listing", listsUpTo("index.m3u8", "0.ts"))
	for cut := range len(whole) - 1 { // every way to be half written, but for a whole line less
		write(t, name+"/index.m3u8", whole[:cut])
		f.updates(2)
		f.mu.Lock()
		entries := f.last.Listings[0].Media.Entries
		f.mu.Unlock()
		for i, e := range entries {
			if want := fmt.Sprintf("%d.ts", i); e.URI != want {
				t.Fatalf("cut at %d: entry %d is %q", cut, i, e.URI)
			}
		}
	}
	write(t, name+"/index.m3u8", whole)
	f.wait("the whole playlist", listsUpTo("index.m3u8", "1.ts"))
	if strings.Contains(f.logs.String(), "not a playlist") {
		t.Errorf("a playlist that was being written was logged:\n%s", f.logs)
	}
}

// Some write no end of line behind the last entry. That is taken when it stays, and only
// where the last name is that of a file.
func TestPlaylistWithoutLastLineEnd(t *testing.T) {
	t.Parallel()
	name := t.TempDir()
	write(t, name+"/1.ts", "segment")
	write(t, name+"/good.m3u8", strings.TrimSuffix(media(0, "0.ts", "1.ts"), "\n"))
	write(t, name+"/cut.m3u8", strings.TrimSuffix(media(0, "0.ts", "12.ts"), "2.ts\n"))
	write(t, name+"/ended.m3u8", media(0, "0.ts")+"#EXT-X-ENDLIST")
	f := follow(t, name, 5*time.Millisecond, 50*time.Millisecond)
	u := f.wait("a playlist without its last line end", listsUpTo("good.m3u8", "1.ts"))
	if got := paths(u); !slices.Equal(got, []string{"ended.m3u8", "good.m3u8"}) {
		t.Errorf("%q", got)
	}
}

func TestBadPlaylistIsLoggedOnce(t *testing.T) {
	t.Parallel()
	name := t.TempDir()
	write(t, name+"/bad.m3u8", "<html>\n")
	write(t, name+"/huge.m3u8", strings.Repeat("#", 5<<20))
	if err := syscall.Mkfifo(name+"/pipe.m3u8", 0o644); err != nil {
		t.Fatal(err)
	}
	f := follow(t, name, 5*time.Millisecond, 30*time.Millisecond)
	u := f.wait("a problem", func(u Update) bool { return u.Problem != "" })
	if !strings.Contains(u.Problem, "m3u8") {
		t.Errorf("problem %q", u.Problem)
	}
	write(t, name+"/good.m3u8", media(0, "0.ts"))
	f.wait("the good one", listsUpTo("good.m3u8", "0.ts"))
	write(t, name+"/bad.m3u8", "<html>\n\n") // written again, as bad as before
	f.updates(20)
	for bad, want := range map[string]string{"bad.m3u8": "not with #EXTM3U", "huge.m3u8": "larger than", "pipe.m3u8": "not a file"} {
		if n := strings.Count(f.logs.String(), "playlist="+bad); n != 1 {
			t.Errorf("%s was logged %d times, want 1:\n%s", bad, n, f.logs)
		}
		if !strings.Contains(f.logs.String(), want) {
			t.Errorf("%s: %q is not logged", bad, want)
		}
	}
	write(t, name+"/bad.m3u8", media(0, "b.ts"))
	f.wait("the bad one, now good", listsUpTo("bad.m3u8", "b.ts"))
}

func TestDirectoryVanishesAndReturns(t *testing.T) {
	t.Parallel()
	name := t.TempDir() + "/hls/demo"
	f := follow(t, name, 5*time.Millisecond, time.Hour)
	u := f.wait("a problem", func(u Update) bool { return u.Problem != "" })
	if !strings.Contains(u.Problem, name+" does not exist") {
		t.Errorf("problem %q", u.Problem)
	}
	for round := range 3 {
		write(t, name+"/index.m3u8", media(round, fmt.Sprintf("%d.ts", round)))
		f.wait("a listing", listsUpTo("index.m3u8", fmt.Sprintf("%d.ts", round)))
		if file, err := f.Open("index.m3u8", "index.m3u8"); err != nil {
			t.Error(err)
		} else {
			file.Close()
		}
		if err := os.RemoveAll(name); err != nil {
			t.Fatal(err)
		}
		f.wait("no directory", func(u Update) bool { return strings.Contains(u.Problem, "does not exist") })
		if _, err := f.Open("index.m3u8", "index.m3u8"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("open without a directory: %v", err)
		}
	}
	if n := strings.Count(f.logs.String(), "does not exist"); n != 4 {
		t.Errorf("logged %d times, want once each time it was away:\n%s", n, f.logs)
	}
	write(t, name, "a file")
	f.wait("no directory", func(u Update) bool { return strings.Contains(u.Problem, "is not a directory") })
}

// A directory that another one takes the place of, in one moment, is noticed.
func TestDirectoryReplaced(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	write(t, base+"/old/index.m3u8", media(0, "0.ts"))
	write(t, base+"/new/index.m3u8", media(7, "7.ts"))
	if err := os.Symlink("old", base+"/demo"); err != nil {
		t.Fatal(err)
	}
	f := follow(t, base+"/demo", 5*time.Millisecond, time.Hour)
	f.wait("the old directory", listsUpTo("index.m3u8", "0.ts"))
	if err := os.Symlink("new", base+"/demo.tmp"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(base+"/demo.tmp", base+"/demo"); err != nil {
		t.Fatal(err)
	}
	f.wait("the new directory", listsUpTo("index.m3u8", "7.ts"))
}

func TestMultivariantNamesTheOthers(t *testing.T) {
	t.Parallel()
	name := t.TempDir()
	write(t, name+"/stray.m3u8", media(0, "0.ts"))
	write(t, name+"/720p/index.m3u8", media(0, "0.ts"))
	write(t, name+"/master.m3u8", "#EXTM3U\n"+
		"#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID=\"a\",NAME=\"x\",URI=\"deep/down/audio.m3u8\"\n"+
		"#EXT-X-STREAM-INF:BANDWIDTH=2,AUDIO=\"a\"\n720p/index.m3u8\n#EXT-X-STREAM-INF:BANDWIDTH=1\n../out.m3u8\n"+
		"#EXT-X-STREAM-INF:BANDWIDTH=1\nhttp://elsewhere/a.m3u8\n")
	f := follow(t, name, 10*time.Millisecond, time.Hour)
	u := f.wait("the variant", listsUpTo("720p/index.m3u8", "0.ts"))
	if u.Multivariant == nil || u.Multivariant.Path != "master.m3u8" {
		t.Fatalf("%+v", u)
	}
	write(t, name+"/deep/down/audio.m3u8", media(0, "a.aac"))
	u = f.wait("the audio, which came late", listsUpTo("deep/down/audio.m3u8", "a.aac"))
	if got := paths(u); !slices.Equal(got, []string{"deep/down/audio.m3u8", "720p/index.m3u8"}) {
		t.Errorf("%q", got)
	}
	write(t, name+"/deep/down/audio.m3u8", media(0, "a.aac", "b.aac"))
	f.wait("more audio", listsUpTo("deep/down/audio.m3u8", "b.aac"))
	if err := os.Remove(name + "/master.m3u8"); err != nil {
		t.Fatal(err)
	}
	f.updates(5)
	if u := f.wait("anything", func(Update) bool { return true }); u.Multivariant == nil {
		t.Error("the multivariant playlist was forgotten with its file")
	}
	for _, refused := range []string{"../out.m3u8", "http://elsewhere/a.m3u8"} {
		if n := strings.Count(f.logs.String(), refused); n != 1 {
			t.Errorf("%s was logged %d times, want 1:\n%s", refused, n, f.logs)
		}
	}
}

// nginx-rtmp with hls_nested: no playlist in the directory itself.
func TestNestedPlaylists(t *testing.T) {
	t.Parallel()
	name := t.TempDir()
	write(t, name+"/cam/index.m3u8", media(0, "0.ts"))
	f := follow(t, name, time.Hour, time.Hour)
	f.wait("the nested playlist", listsUpTo("cam/index.m3u8", "0.ts"))
	write(t, name+"/cam/index.m3u8", media(0, "0.ts", "1.ts"))
	f.wait("an event from below", listsUpTo("cam/index.m3u8", "1.ts"))
}
