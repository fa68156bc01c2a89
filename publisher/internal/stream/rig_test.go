package stream

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"dandelion/pkg/id"
	"dandelion/pkg/playlist"
	"dandelion/publisher/internal/source"
)

// rig is a stream on a directory without goroutines: the test moves the clock, lets the
// stream look at the directory and write its state. After each step what a viewer sees is
// compared with what he saw before.
type rig struct {
	t      testing.TB
	dir    string // where the encoder writes
	state  string // where the stream does
	cfg    Config
	s      *Stream
	now    time.Time
	placed []Segment // in the order of Place
	logs   *bytes.Buffer
	seen   map[string]*playlist.Media // the last reload of each playlist
	parsed map[string]parsedPlaylist
	mtime  int64 // of the file that is written next: the clock of the encoder's files
	boxes  int
	full   bool     // the disk of the window is
	also   *viewers // who compare more than the last two reloads; nil: nobody
}

type parsedPlaylist struct {
	text    string
	media   *playlist.Media
	multi   *playlist.Multivariant
	written time.Time
}

func newRig(t testing.TB) *rig {
	r := &rig{
		t: t, dir: t.TempDir(), state: t.TempDir() + "/demo", now: time.Unix(1_800_000_000, 0), logs: &bytes.Buffer{},
		seen: map[string]*playlist.Media{}, parsed: map[string]parsedPlaylist{}, mtime: 1_700_000_000_000_000_000, boxes: 3,
	}
	r.cfg = Config{Name: "demo", Source: "dir:" + r.dir, Dir: r.state, Boxes: func() int { return r.boxes }}
	return r
}

// start makes the stream, as a new process would.
func (r *rig) start() *rig {
	r.t.Helper()
	s, err := New(r.cfg, r, slog.New(slog.NewTextHandler(r.logs, nil)))
	if err != nil {
		r.t.Fatal(err)
	}
	s.src = dirNow{r.dir}
	create := s.window.create
	s.window.create = func() (*os.File, error) {
		f, err := create()
		if err != nil || !r.full {
			return f, err
		}
		f.Close()
		return os.Open(f.Name()) // not for writing, so that it fails later than at once
	}
	r.s, r.placed, r.parsed = s, nil, map[string]parsedPlaylist{}
	if r.also != nil {
		clear(r.also.read)
	}
	if err := s.Load(r.now); err != nil {
		r.t.Fatal(err)
	}
	r.check()
	return r
}

func (r *rig) Place(seg Segment) { r.placed = append(r.placed, seg) }

// dirNow opens files of a directory as the real source does, without its Run.
type dirNow struct{ dir string }

func (d dirNow) Run(context.Context, func(source.Update)) error { return nil }

func (d dirNow) Open(base, uri string) (*source.File, error) {
	name, err := source.Resolve(base, uri)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(filepath.Join(d.dir, name))
	if err != nil {
		return nil, err
	}
	file := &source.File{File: f, Name: name}
	file.Was, err = file.Now()
	return file, err
}

// write writes a file of the encoder, in place.
func (r *rig) write(name, content string) {
	r.t.Helper()
	full := filepath.Join(r.dir, name)
	if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(full, []byte(content), 0o644); err != nil {
		r.t.Fatal(err)
	}
	r.mtime += 1_000_000
	at := time.Unix(0, r.mtime)
	if err := os.Chtimes(full, at, at); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) remove(name string) {
	r.t.Helper()
	if err := os.Remove(filepath.Join(r.dir, name)); err != nil {
		r.t.Fatal(err)
	}
}

// media writes a media playlist of two-second segments. Lines that begin with '#' are tags.
func (r *rig) media(name string, sequence int, lines ...string) {
	r.t.Helper()
	r.write(name, mediaText(sequence, lines...))
}

func mediaText(sequence int, lines ...string) string {
	s := fmt.Sprintf("#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n#EXT-X-MEDIA-SEQUENCE:%d\n", sequence)
	for _, line := range lines {
		if !strings.HasPrefix(line, "#") {
			s += "#EXTINF:2.000000,\n"
		}
		s += line + "\n"
	}
	return s
}

// segments writes files whose content is their name and run, so that no two are equal.
func (r *rig) segments(run string, names ...string) {
	r.t.Helper()
	for _, name := range names {
		r.write(name, run+" "+name)
	}
}

// look lets the stream see the directory as it is now.
func (r *rig) look() {
	r.t.Helper()
	var u source.Update
	names, err := filepath.Glob(r.dir + "/*.m3u8")
	if err != nil {
		r.t.Fatal(err)
	}
	deeper, err := filepath.Glob(r.dir + "/*/*.m3u8")
	if err != nil {
		r.t.Fatal(err)
	}
	for _, full := range append(names, deeper...) {
		name, _ := filepath.Rel(r.dir, full)
		b, err := os.ReadFile(full)
		if err != nil {
			r.t.Fatal(err)
		}
		info, err := os.Stat(full)
		if err != nil {
			r.t.Fatal(err)
		}
		p := r.parsed[name]
		if p.text != string(b) {
			p.media, p.multi, err = playlist.Parse(b)
		}
		if err != nil {
			p = r.parsed[name] // as the source does: the last good one stays
		} else {
			p.text, p.written = string(b), info.ModTime()
		}
		r.parsed[name] = p
		if p.multi != nil {
			u.Multivariant = &source.Multivariant{Path: name, Playlist: p.multi}
		}
		if p.media != nil {
			u.Listings = append(u.Listings, source.Listing{Path: name, Media: p.media, Written: p.written})
		}
	}
	r.s.update(context.Background(), r.now, u)
	r.check()
}

// save writes the state, so that what is released is shown.
func (r *rig) save() {
	r.t.Helper()
	if !r.s.save(r.now) {
		r.t.Fatalf("state not written: %s", r.s.Status().Problem)
	}
	r.check()
}

// step lets time pass, and everything happen that happens by itself.
func (r *rig) step(d time.Duration) {
	r.t.Helper()
	r.now = r.now.Add(d)
	r.look()
	r.save()
	r.s.tick(r.now)
	r.check()
}

// check compares all media playlists with what was seen of them before.
func (r *rig) check() {
	r.t.Helper()
	for name, page := range *r.s.pages.Load() {
		media, _, err := playlist.Parse(page.Body)
		if err != nil {
			r.t.Fatalf("%s: %v in\n%s", name, err, page.Body)
		}
		if media == nil {
			continue
		}
		if old := r.seen[name]; old != nil {
			if err := playlist.CheckReload(old, media); err != nil {
				r.t.Fatalf("%s: %v\nwas:\n%s\nis:\n%s\nlog:\n%s", name, err, old.AppendTo(nil), page.Body, r.logs)
			}
		}
		r.seen[name] = media
	}
	if r.also != nil {
		r.also.look()
	}
}

func span(m *playlist.Media) (sum time.Duration) {
	for _, e := range m.Entries {
		sum += e.Duration.Value
	}
	return sum
}

// shown returns a rendition's playlist, which must be there.
func (r *rig) shown(name string) *playlist.Media {
	r.t.Helper()
	page, ok := r.s.Playlist(name)
	if !ok {
		r.t.Fatalf("no %s; log:\n%s", name, r.logs)
	}
	media, err := playlist.ParseMedia(page.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return media
}

// contents returns what the entries of a rendition's playlist lead to: "-" for a gap, a "|"
// before each discontinuity.
func (r *rig) contents(rendition string) string {
	r.t.Helper()
	var out []string
	for _, e := range r.shown(rendition + "/index.m3u8").Entries {
		if e.Discontinuity {
			out = append(out, "|")
		}
		if e.Gap {
			out = append(out, "-")
			continue
		}
		out = append(out, r.read(rendition, e.URI))
	}
	return strings.Join(out, " ")
}

// read returns the bytes behind a URI of a rendition's playlist.
func (r *rig) read(rendition, uri string) string {
	r.t.Helper()
	path, err := id.ParsePath("/live/demo/" + rendition + "/" + strings.ReplaceAll(uri, "%20", " "))
	if err != nil {
		r.t.Fatal(err)
	}
	f, info, err := r.s.Open(path)
	if err != nil {
		r.t.Fatalf("%v; log:\n%s", err, r.logs)
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		r.t.Fatal(err)
	}
	seg, ok := id.ParseSegmentPath(path)
	if digest := id.DigestOf(b); digest != info.Digest || !ok || seg.Short != digest.Short() || info.Size != int64(len(b)) {
		r.t.Fatalf("%s has digest %s and %d bytes, Open said %+v", path, digest, len(b), info)
	}
	return string(b)
}

func (r *rig) want(rendition, want string) {
	r.t.Helper()
	if got := r.contents(rendition); got != want {
		r.t.Fatalf("%s shows %q, want %q; log:\n%s", rendition, got, want, r.logs)
	}
}

// files returns the names in the window.
func (r *rig) files() []string {
	r.t.Helper()
	entries, err := os.ReadDir(r.state + "/window")
	if err != nil {
		r.t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	slices.Sort(names)
	return names
}

// lockedBuffer is a log that goroutines write.
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
