package stream

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"dandelion/pkg/id"
	"dandelion/pkg/playlist"
	"dandelion/publisher/internal/source"
)

// look is all that the page of a rendition depends on, for a cheap answer to whether it must
// be written again.
type look struct {
	from, to                uint64
	targetDuration, version int
	ended                   bool
}

// show makes visible what may be seen now, and renders the playlists that changed. Called with
// mu held.
func (s *Stream) show(now time.Time) {
	changed := false
	for _, r := range s.renditions {
		r.show(now, s.saved)
		is := look{
			from: r.number(r.start), to: r.number(r.shown), targetDuration: r.onDisk.targetDuration,
			version: r.onDisk.version, ended: r.isEnded(now),
		}
		if is == r.look || r.shown == r.start {
			continue
		}
		r.look = is
		if r.pageAt.IsZero() {
			r.pageAt = now
		}
		changed = true
		s.setPage(now, string(r.name)+"/index.m3u8", r.render(""), r.maxAge())
	}
	if changed || s.indexWaits() {
		s.showIndex(now)
	}
}

// render writes the playlist of a rendition. prefix leads from the playlist to the
// rendition's folder.
func (r *rendition) render(prefix string) []byte {
	shown := r.entries[r.start:r.shown]
	m := &playlist.Media{
		Version:               r.look.version,
		TargetDuration:        r.look.targetDuration,
		Sequence:              r.number(r.start),
		DiscontinuitySequence: r.discontinuities,
		Header:                shown[len(shown)-1].Header,
		Entries:               make([]playlist.Entry, len(shown)),
		Ended:                 r.look.ended,
	}
	// EXT-X-PLAYLIST-TYPE is left out: EVENT and VOD promise that nothing ever leaves.
	for _, e := range r.entries[:r.start] {
		if e.Listed.Discontinuity {
			m.DiscontinuitySequence++
		}
	}
	for i, e := range shown {
		m.Entries[i] = e.Listed
		if prefix != "" {
			moveEntry(&m.Entries[i], prefix)
		}
	}
	return m.AppendTo(nil)
}

// neededVersion is the protocol version that an entry's tags ask for (RFC 8216 section 7, and
// for gaps its successor).
func neededVersion(e *playlist.Entry) int {
	switch {
	case e.Gap:
		return 8
	case e.Map != nil:
		return 6
	case len(e.Keys) > 0:
		return 5
	case strings.Contains(e.Duration.Text, "."):
		return 3
	}
	return 0
}

// moveEntry makes an entry's URIs relative to another place.
func moveEntry(e *playlist.Entry, prefix string) {
	e.URI = prefix + e.URI
	e.Keys = moveKeys(e.Keys, prefix)
	if e.Map != nil {
		uri := prefix + e.Map.URI
		e.Map = &playlist.Map{URI: uri, Attrs: e.Map.Attrs.With("URI", playlist.Quoted(uri)), Keys: moveKeys(e.Map.Keys, prefix)}
	}
}

func moveKeys(keys []playlist.Attributes, prefix string) []playlist.Attributes {
	out := slices.Clone(keys)
	for i, key := range out {
		if uri, ok := key.Get("URI"); ok && !source.HasScheme(uri) {
			out[i] = key.With("URI", playlist.Quoted(prefix+uri))
		}
	}
	return out
}

// Ages of playlists in caches: a viewer that asks once per target duration must not see an old
// one for long.
const maxPlaylistAge = time.Second

func (r *rendition) maxAge() time.Duration {
	target := time.Duration(r.targetDuration) * time.Second
	if r.look.ended {
		return target // the encoder may come back
	}
	return min(target/2, maxPlaylistAge)
}

// longAgo is when the page of a rendition was shown first that an earlier process showed: who
// plays it waits for nothing.
var longAgo = time.Unix(0, 0)

// mayBegin says when to stop waiting with "index.m3u8". A player that began with a single
// segment would have nothing to play when the next one is a moment late. And an encoder writes
// its multivariant playlist after the first segment of each rendition; before, one media
// playlist could be all there is.
func (r *rendition) mayBegin(now time.Time) bool {
	return r.shown-r.start >= 2 || r.isEnded(now) || !now.Before(r.waitsUntil())
}

// waitsUntil is when two target durations have passed since the rendition had a page.
func (r *rendition) waitsUntil() time.Time {
	return r.pageAt.Add(2 * time.Duration(r.targetDuration) * time.Second)
}

// indexWaits reports whether there is no index yet, so that time alone can show it.
func (s *Stream) indexWaits() bool {
	_, shown := s.Playlist("index.m3u8")
	return !shown && len(s.renditions) > 0
}

// showIndex renders "index.m3u8": the encoder's multivariant playlist, or its only media
// playlist, or a multivariant playlist made here where it has several and names none.
func (s *Stream) showIndex(now time.Time) {
	if s.index.multi != nil {
		s.showMultivariant(now)
		return
	}
	var listed []*rendition
	for _, r := range s.renditions {
		if r.listed && !r.pageAt.IsZero() {
			listed = append(listed, r)
		}
	}
	switch {
	case len(listed) == 1 && listed[0].mayBegin(now):
		r := listed[0]
		if s.index.alone != r {
			s.index.alone = r
			s.changed()
		}
		s.setPage(now, "index.m3u8", r.render(string(r.name)+"/"), r.maxAge())
	case len(listed) > 1 && !waits(now, listed):
		s.setPage(now, "index.m3u8", s.compose(listed), maxPlaylistAge)
	}
}

// waits reports whether "index.m3u8" waits for one of the renditions, at most two target
// durations of the one that came first.
func waits(now time.Time, all []*rendition) bool {
	waiting := false
	for _, r := range all {
		if !now.Before(r.waitsUntil()) {
			return false
		}
		waiting = waiting || !r.mayBegin(now)
	}
	return waiting
}

// showMultivariant renders the encoder's multivariant playlist as soon as players can begin
// with all that it names, or when that takes too long, without what is not there.
func (s *Stream) showMultivariant(now time.Time) {
	missing := false
	var variants []*rendition
	rewritten := s.index.multi.Rewrite(func(uri string) (string, bool) {
		name, err := source.Resolve(s.index.path, uri)
		if err != nil {
			return "", false
		}
		for _, r := range s.renditions {
			if r.path == name && !r.pageAt.IsZero() {
				variants = append(variants, r)
				return string(r.name) + "/index.m3u8", true
			}
		}
		missing = true
		return "", false
	})
	late := slices.ContainsFunc(variants, func(r *rendition) bool { return !now.Before(r.waitsUntil()) })
	if len(variants) == 0 || missing && !late || waits(now, variants) {
		return
	}
	s.setPage(now, "index.m3u8", rewritten.AppendTo(nil), maxPlaylistAge)
}

// compose makes a multivariant playlist out of several media playlists. The bit rates are
// measured once, so that the playlist does not change all the time.
func (s *Stream) compose(listed []*rendition) []byte {
	if s.index.bits == nil {
		s.log.Warn("several media playlists and no multivariant playlist: taken as variants of one stream; give each stream a directory of its own, or let the encoder write a multivariant playlist")
		s.index.bits = map[id.RenditionName]int{}
	}
	m := &playlist.Multivariant{}
	slices.SortFunc(listed, func(a, b *rendition) int { return strings.Compare(string(a.name), string(b.name)) })
	for _, r := range listed {
		if s.index.bits[r.name] == 0 {
			s.index.bits[r.name] = r.peak()
		}
		m.Tags = append(m.Tags, playlist.Tag{
			Name:  "EXT-X-STREAM-INF",
			Attrs: playlist.Attributes{{Name: "BANDWIDTH", Value: strconv.Itoa(s.index.bits[r.name])}},
			URI:   string(r.name) + "/index.m3u8",
		})
	}
	return m.AppendTo(nil)
}

// peak is the highest bit rate of a segment in the playlist.
func (r *rendition) peak() int {
	peak := 1
	for _, e := range r.entries[r.start:r.shown] {
		if seconds := e.Listed.Duration.Value.Seconds(); seconds > 0 {
			peak = max(peak, int(min(8*float64(e.Size)/seconds, 1e9)))
		}
	}
	return peak
}

func (s *Stream) setPage(now time.Time, name string, body []byte, maxAge time.Duration) {
	old := *s.pages.Load()
	was, ok := old[name]
	if ok && bytes.Equal(was.Body, body) && was.MaxAge == maxAge {
		return
	}
	sum := sha256.Sum256(body)
	pages := maps.Clone(old)
	pages[name] = Rendered{
		Body: body, ETag: fmt.Sprintf("%q", hex.EncodeToString(sum[:8])), Modified: now, MaxAge: maxAge,
	}
	s.pages.Store(&pages)
}

func (s *Stream) dropPage(name string) {
	pages := maps.Clone(*s.pages.Load())
	delete(pages, name)
	s.pages.Store(&pages)
}

// tick shows entries whose time has come, and returns the time until that is so for the next.
func (s *Stream) tick(now time.Time) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := now.Add(time.Hour)
	for path, waiting := range s.pending {
		still := waiting[:0]
		for _, e := range waiting {
			if now.Before(e.deadline) {
				next = earlier(next, e.deadline)
				still = append(still, e)
				continue
			}
			e.released = true
		}
		s.pending[path] = still
		if len(still) == 0 {
			delete(s.pending, path)
		}
	}
	s.show(now)
	for _, r := range s.renditions {
		if r.ended && now.Before(r.endAt) {
			next = earlier(next, r.endAt)
		}
	}
	if s.indexWaits() {
		next = earlier(next, now.Add(time.Second))
	}
	return max(next.Sub(now), time.Millisecond)
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}
