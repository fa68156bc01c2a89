package stream

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"dandelion/pkg/id"
	"dandelion/pkg/playlist"
)

// viewers remember everything that was ever shown, and compare with it what is shown now:
// what RFC 8216 section 6.2 promises holds between any two reloads, not only between one
// and the next.
type viewers struct {
	t    testing.TB
	r    *rig
	rng  *rand.Rand
	skew time.Duration // how far r.now was moved although no time passed

	pages    map[string][]*playlist.Media // all that were shown, by playlist
	last     map[string][]byte
	shown    map[string]*shown   // by rendition and number
	left     map[*shown]bool     // entries that left the playlist and must still be there
	contents map[string]uint64   // number by content, of encoders that never write the same twice
	uris     map[string]uint64   // and by URI
	encoders map[string]*encoder // by rendition
	read     map[string]string   // by URI: what this process gave
	bytes    map[string]string   // by URI: what any process gave
	limited  bool                // window_limit was made small: what left may be gone early
}

// shown is one entry of a rendition.
type shown struct {
	rendition     string
	number        uint64
	entry         playlist.Entry
	discontinuity uint64 // DISCONTINUITY-SEQUENCE that it belongs to
	longest       time.Duration
	leftAt        time.Time
}

func newViewers(r *rig, rng *rand.Rand) *viewers {
	return &viewers{
		t: r.t, r: r, rng: rng, pages: map[string][]*playlist.Media{}, last: map[string][]byte{}, shown: map[string]*shown{},
		left: map[*shown]bool{}, contents: map[string]uint64{}, uris: map[string]uint64{}, encoders: map[string]*encoder{}, read: map[string]string{}, bytes: map[string]string{},
	}
}

func (v *viewers) now() time.Time { return v.r.now.Add(-v.skew) }

func (v *viewers) fatalf(format string, args ...any) {
	v.t.Helper()
	v.t.Fatalf("%s\nlog:\n%s", fmt.Sprintf(format, args...), v.r.logs)
}

// look reloads every playlist.
func (v *viewers) look() {
	v.t.Helper()
	now := *v.r.s.pages.Load()
	for name := range v.last {
		if _, ok := now[name]; !ok {
			v.fatalf("%s was shown and is not any more", name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(now)) {
		page := now[name]
		if bytes.Equal(page.Body, v.last[name]) {
			continue
		}
		media, multi, err := playlist.Parse(page.Body)
		switch was, ok := v.last[name]; {
		case err != nil:
			v.fatalf("%s: %v in\n%s", name, err, page.Body)
		case ok && (len(v.pages[name]) > 0) != (media != nil):
			v.fatalf("%s was\n%s\nand is\n%s", name, was, page.Body)
		case multi != nil:
			v.named(multi, now)
		default:
			v.reload(name, media)
		}
		v.last[name] = page.Body
	}
	for s := range v.left {
		if v.now().Sub(s.leftAt) >= s.entry.Duration.Value+s.longest {
			delete(v.left, s)
		} else {
			v.available(s)
		}
	}
}

// forget leaves only the numbers of what was shown: all else is lost with the state file.
func (v *viewers) forget() {
	clear(v.left)
	clear(v.contents)
	clear(v.uris)
	clear(v.last) // playlists are away until the encoder lists something
	for name, pages := range v.pages {
		last := pages[len(pages)-1]
		v.pages[name] = []*playlist.Media{{Sequence: last.Sequence + uint64(len(last.Entries)), DiscontinuitySequence: discontinuities(last)}}
	}
}

// discontinuities is the number of the last entry's.
func discontinuities(m *playlist.Media) uint64 {
	n := m.DiscontinuitySequence
	for _, e := range m.Entries {
		if e.Discontinuity {
			n++
		}
	}
	return n
}

// named checks that a multivariant playlist leads to playlists that are there.
func (v *viewers) named(multi *playlist.Multivariant, now map[string]Rendered) {
	v.t.Helper()
	for _, uri := range multi.Playlists() {
		if _, ok := now[uri]; !ok {
			v.fatalf("the index names %s, which is not there", uri)
		}
	}
}

// reload compares a media playlist with the one before, the first, and some in between.
func (v *viewers) reload(name string, media *playlist.Media) {
	v.t.Helper()
	pages := v.pages[name]
	for _, n := range []int{len(pages) - 1, 0, v.rng.IntN(max(len(pages), 1)), v.rng.IntN(max(len(pages), 1))} {
		if len(pages) == 0 {
			break
		}
		old := pages[n]
		if err := playlist.CheckReload(old, media); err != nil {
			v.fatalf("%s: %v\nwas, %d reloads ago:\n%s\nis:\n%s", name, err, len(pages)-n, old.AppendTo(nil), media.AppendTo(nil))
		}
	}
	if len(pages) > 0 {
		v.follows(name, pages[len(pages)-1], media)
	}
	v.pages[name] = append(pages, media)
	if rendition, ok := strings.CutSuffix(name, "/index.m3u8"); ok {
		v.entries(rendition, media)
	}
}

// follows checks what CheckReload leaves open: what only an encoder that restarted may change.
func (v *viewers) follows(name string, old, media *playlist.Media) {
	v.t.Helper()
	oldEnd := old.Sequence + uint64(len(old.Entries))
	fresh := media.Entries[min(max(oldEnd, media.Sequence)-media.Sequence, uint64(len(media.Entries))):]
	broken := discontinuities(media) > discontinuities(old)
	if strings.Join(old.Header, "\n") != strings.Join(media.Header, "\n") && !broken && len(old.Entries) > 0 {
		v.fatalf("%s: its header changed from %q to %q without a discontinuity", name, old.Header, media.Header)
	}
	if old.Ended && media.Ended && len(fresh) > 0 && !broken {
		v.fatalf("%s: segments came behind the end\n%s", name, media.AppendTo(nil))
	}
	if old.Ended && !media.Ended && !broken {
		v.fatalf("%s: its end is gone and no discontinuity came\n%s", name, media.AppendTo(nil))
	}
}

func (v *viewers) entries(rendition string, media *playlist.Media) {
	v.t.Helper()
	encoder := v.encoders[rendition]
	if media.Ended && !encoder.everEnded {
		v.fatalf("%s ended, and its encoder never said so", rendition)
	}
	discontinuity, gaps := media.DiscontinuitySequence, 0
	var before string // content of the entry before
	for i := range media.Entries {
		e := &media.Entries[i]
		if e.Discontinuity {
			discontinuity++
		}
		number := media.Sequence + uint64(i)
		s := v.shown[rendition+strconv.FormatUint(number, 10)]
		if s == nil {
			s = &shown{rendition: rendition, number: number, entry: *e, discontinuity: discontinuity}
			v.shown[rendition+strconv.FormatUint(number, 10)] = s
		}
		if s.discontinuity != discontinuity {
			v.fatalf("%s %d was of discontinuity %d and is of %d", rendition, number, s.discontinuity, discontinuity)
		}
		if was, ok := v.uris[rendition+"/"+e.URI]; ok && was != number && (e.Gap || !encoder.replays) {
			v.fatalf("%s/%s is shown as %d and as %d", rendition, e.URI, was, number)
		}
		v.uris[rendition+"/"+e.URI] = number
		s.longest = max(s.longest, span(media))
		if e.Gap {
			gaps++
			continue
		}
		content := v.get(rendition, e.URI)
		if was, ok := v.contents[content]; ok && was != number && !encoder.replays {
			v.fatalf("%q is shown as %d and as %d", content, was, number)
		}
		v.contents[content] = number
		v.means(s, content)
		v.goesOn(before, content, gaps, e.Discontinuity)
		before, gaps = content, 0
	}
	if old := v.pages[rendition+"/index.m3u8"]; len(old) > 1 {
		was := old[len(old)-2]
		for n := was.Sequence; n < min(media.Sequence, was.Sequence+uint64(len(was.Entries))); n++ {
			if s := v.shown[rendition+strconv.FormatUint(n, 10)]; s != nil && s.leftAt.IsZero() {
				s.leftAt = v.now()
				v.left[s] = true
			}
		}
	}
}

// get returns the bytes behind a URI, which never change.
func (v *viewers) get(rendition, uri string) string {
	v.t.Helper()
	if content, ok := v.read[rendition+"/"+uri]; ok {
		return content
	}
	content := v.r.read(rendition, uri)
	if was, ok := v.bytes[rendition+"/"+uri]; ok && was != content {
		v.fatalf("%s/%s was %q and is %q", rendition, uri, was, content)
	}
	v.read[rendition+"/"+uri], v.bytes[rendition+"/"+uri] = content, content
	return content
}

// means checks that an entry has the init segment, the key and the initialisation vector that
// its encoder meant.
func (v *viewers) means(s *shown, content string) {
	v.t.Helper()
	var name string
	var run, number, init, key int
	if n, _ := fmt.Sscanf(content, "%s %d %d %d %d", &name, &run, &number, &init, &key); n != 5 || name != s.rendition {
		v.fatalf("%s %d: %q is not a whole segment of it", s.rendition, s.number, content)
	}
	switch {
	case (init < 0) != (s.entry.Map == nil):
		v.fatalf("%s %d: %q has the init segment %+v", s.rendition, s.number, content, s.entry.Map)
	case init >= 0:
		if got, want := v.get(name, s.entry.Map.URI), fmt.Sprintf("init %s %d %d", name, run, init); got != want {
			v.fatalf("%s %d: %q has init segment %q, want %q", name, s.number, content, got, want)
		}
	}
	if key < 0 {
		return
	}
	if len(s.entry.Keys) != 1 {
		v.fatalf("%s %d: %d keys", name, s.number, len(s.entry.Keys))
	}
	uri, _ := s.entry.Keys[0].Get("URI")
	if got, want := v.get(name, uri), fmt.Sprintf("key %s %d %d", name, run, key); got != want {
		v.fatalf("%s %d: %q has key %q, want %q", name, s.number, content, got, want)
	}
	iv := s.number
	if text, ok := s.entry.Keys[0].Get("IV"); ok {
		iv, _ = strconv.ParseUint(strings.TrimLeft(text, "0x"), 16, 64)
	}
	if iv != uint64(number) {
		v.fatalf("%s %d: %q is read with the vector of %d", name, s.number, content, iv)
	}
}

// goesOn checks that one segment may stand behind another.
func (v *viewers) goesOn(before, content string, gaps int, discontinuity bool) {
	v.t.Helper()
	var name string
	var run, number, init, key, runBefore, numberBefore int
	var marked bool
	fmt.Sscanf(content, "%s %d %d %d %d %t", &name, &run, &number, &init, &key, &marked)
	if marked && !discontinuity {
		v.fatalf("%q lost its discontinuity", content)
	}
	if before == "" || discontinuity {
		return
	}
	fmt.Sscanf(before, "%s %d %d", &name, &runBefore, &numberBefore)
	if run != runBefore || number != numberBefore+1+gaps {
		v.fatalf("%q follows %q with %d gaps and no discontinuity", content, before, gaps)
	}
}

// available checks that what left the playlist can still be had, with what it needs.
func (v *viewers) available(s *shown) {
	v.t.Helper()
	if v.limited || s.entry.Gap {
		return
	}
	uris := []string{s.entry.URI}
	if s.entry.Map != nil {
		uris = append(uris, s.entry.Map.URI)
	}
	for _, key := range s.entry.Keys {
		uri, _ := key.Get("URI")
		uris = append(uris, uri)
	}
	for _, uri := range uris {
		path, err := id.ParsePath("/live/demo/" + s.rendition + "/" + uri)
		if err != nil {
			v.t.Fatal(err)
		}
		if _, ok := v.r.s.Lookup(path); !ok {
			v.fatalf("%s %d: %s left %v ago and is gone; it lasts %v, the longest playlist lasted %v",
				s.rendition, s.number, uri, v.now().Sub(s.leftAt), s.entry.Duration.Value, s.longest)
		}
	}
}

// offered checks that what is being placed is what the stream holds.
func (v *viewers) offered() {
	v.t.Helper()
	for _, seg := range v.r.placed {
		f, info, err := v.r.s.Open(seg.Path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // the window dropped it
		}
		if err != nil {
			v.fatalf("%s: %v", seg.Path, err)
		}
		f.Close()
		if info.Digest != seg.Digest || !info.Placeable {
			v.fatalf("%s: offered with %s, opened with %+v", seg.Path, seg.Digest, info)
		}
	}
}
