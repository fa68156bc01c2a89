package stream

import (
	"path"
	"strconv"
	"strings"

	"dandelion/pkg/id"
	"dandelion/pkg/playlist"
	"dandelion/publisher/internal/source"
)

// rendition returns the rendition that the playlist at path is, a new one where it is not
// known, or nil where there are too many.
func (s *Stream) rendition(u source.Update, path string) *rendition {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.renditions {
		if r.path == path {
			return r
		}
	}
	if r := s.index.alone; r != nil && !r.listed && len(u.Listings) == 1 && u.Multivariant == nil {
		// The only playlist is the stream, whatever the encoder calls it this time.
		r.path, r.listed = path, true
		r.met, r.broken, r.seen = false, true, nil
		r.epoch++
		s.changed()
		s.log.Info("encoder restarted with another playlist, viewers get a discontinuity", "rendition", r.name, "playlist", path)
		return r
	}
	if len(s.renditions) >= 2*source.MaxListings && !s.retire() {
		return nil
	}
	alone := true
	for _, l := range u.Listings {
		alone = alone && (l.Path == path || folder(l.Path) != folder(path))
	}
	r := &rendition{path: path, name: s.newName(path, alone), assets: map[string]assetRef{}, listed: true}
	s.renditions = append(s.renditions, r)
	s.changed()
	s.log.Info("new rendition", "rendition", r.name, "playlist", path)
	return r
}

// retire forgets the rendition that has not been listed for longest: an encoder that gives
// its playlists new names at each start must not fill the memory.
func (s *Stream) retire() bool {
	for i, r := range s.renditions { // in the order in which they came
		if r.listed || r == s.index.alone {
			continue
		}
		r.start, r.shown = len(r.entries), len(r.entries)
		for len(r.entries) > 0 {
			s.forget(r)
		}
		for _, ref := range r.assets {
			s.release(ref.Path)
		}
		s.renditions = append(s.renditions[:i:i], s.renditions[i+1:]...)
		s.dropPage(string(r.name) + "/index.m3u8")
		return true
	}
	return false
}

// newName makes a rendition's name from the path of its playlist: "stream_0.m3u8" is
// "stream_0", "720p/index.m3u8" is "720p" where nothing else is in that folder, else
// "720p_index". Once given it is kept, in the state on disk, too.
func (s *Stream) newName(playlistPath string, alone bool) id.RenditionName {
	base := strings.TrimSuffix(path.Base(playlistPath), ".m3u8")
	dir := strings.ReplaceAll(folder(playlistPath), "/", "_")
	wishes := []string{base}
	if dir != "" {
		wishes = []string{dir + "_" + base}
		if alone {
			wishes = []string{dir, dir + "_" + base}
		}
	}
	for _, wish := range wishes {
		if name, err := id.ParseRenditionName(sanitize(wish)); err == nil && !s.hasName(name) {
			return name
		}
	}
	for n := 2; ; n++ {
		suffix := "-" + strconv.Itoa(n)
		stem := sanitize(wishes[0])
		name, err := id.ParseRenditionName(stem[:min(len(stem), 64-len(suffix))] + suffix)
		if err == nil && !s.hasName(name) {
			return name
		}
	}
}

func (s *Stream) hasName(name id.RenditionName) bool {
	for _, r := range s.renditions {
		if r.name == name {
			return true
		}
	}
	return false
}

// sanitize turns any text into a name: other characters become '-', and it begins with a
// letter or a digit.
func sanitize(s string) string {
	b := []byte(s)
	for i, c := range b {
		if !alphanumeric(c) && c != '.' && c != '_' && c != '-' {
			b[i] = '-'
		}
	}
	for len(b) > 0 && !alphanumeric(b[0]) {
		b = b[1:]
	}
	if len(b) == 0 {
		return "rendition"
	}
	return string(b[:min(len(b), 64)])
}

func alphanumeric(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}

func folder(playlistPath string) string {
	if dir := path.Dir(playlistPath); dir != "." {
		return dir
	}
	return ""
}

// prepare takes over what the source says of the stream as a whole.
func (s *Stream) prepare(u source.Update) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m := u.Multivariant; m != nil && m.Playlist != s.index.multi {
		if s.index.multi == nil || m.Path != s.index.path || string(m.Playlist.AppendTo(nil)) != string(s.index.multi.AppendTo(nil)) {
			s.index.path, s.index.multi = m.Path, m.Playlist
			s.changed()
		}
	}
	if len(u.Listings) == 0 {
		return // the directory is away, most likely
	}
	listed := map[string]bool{}
	for _, l := range u.Listings {
		listed[l.Path] = true
	}
	if listed[s.index.path] {
		s.index.path, s.index.multi = "", nil // what was the multivariant playlist is a media playlist now
	}
	for _, r := range s.renditions {
		r.listed = listed[r.path]
	}
}

// index is what "index.m3u8" is made of.
type index struct {
	path  string // of the multivariant playlist in the source
	multi *playlist.Multivariant
	alone *rendition               // whose playlist the index is, where there is no other and no multivariant
	bits  map[id.RenditionName]int // in the playlist that is made where the encoder made none
}
