package playlist

import "strings"

// Multivariant is a multivariant playlist as its lines, so that everything the encoder wrote
// stays, in its order; only URIs are ever replaced.
type Multivariant struct {
	Tags []Tag
}

// Tag is one tag of a multivariant playlist.
type Tag struct {
	Name  string     // "EXT-X-STREAM-INF"
	Text  string     // the line as it came, where Attrs is nil
	Attrs Attributes // of the tags that can name a URI; else nil
	URI   string     // of a playlist: the line behind a STREAM-INF, else the URI attribute; "" where there is none
}

// What names a URI that is no playlist: attribute by tag.
var otherURIs = map[string]string{
	"EXT-X-SESSION-KEY": "URI", "EXT-X-SESSION-DATA": "URI", "EXT-X-CONTENT-STEERING": "SERVER-URI",
}

func parseMultivariant(lines []line) (*Multivariant, error) {
	m := &Multivariant{}
	wantURI := false
	for _, l := range lines {
		if len(m.Tags) == MaxEntries {
			return nil, l.errorf("more than %d tags", MaxEntries)
		}
		if l.tag == "" {
			if !wantURI {
				return nil, l.errorf("%s has no EXT-X-STREAM-INF before it", quote(l.text))
			}
			m.Tags[len(m.Tags)-1].URI, wantURI = l.text, false
			continue
		}
		if wantURI {
			return nil, l.errorf("%s where the URI of an EXT-X-STREAM-INF belongs", l.tag)
		}
		tag := Tag{Name: l.tag, Text: l.text}
		if k := tagKinds[l.tag]; k == kindMultivariant {
			attrs, err := ParseAttributes(l.value)
			if err != nil {
				return nil, l.errorf("%s: %w", l.tag, err)
			}
			if len(attrs) == 0 {
				return nil, l.errorf("%s: its attributes are missing", l.tag)
			}
			tag.Attrs = attrs
			if tag.Name == "EXT-X-MEDIA" || tag.Name == "EXT-X-I-FRAME-STREAM-INF" {
				tag.URI, _ = attrs.Get("URI")
			}
		}
		wantURI = l.tag == "EXT-X-STREAM-INF"
		m.Tags = append(m.Tags, tag)
	}
	if wantURI {
		return nil, lines[len(lines)-1].errorf("ends behind an EXT-X-STREAM-INF, without its URI")
	}
	return m, nil
}

// Playlists returns the URIs of the media playlists that it names, each once, in order.
// I-frame playlists are not among them: what they list are byte ranges of segments that
// another playlist lists whole, and boxes hold whole segments.
func (m *Multivariant) Playlists() []string {
	var uris []string
	seen := map[string]bool{}
	for _, tag := range m.Tags {
		if tag.URI != "" && tag.Name != "EXT-X-I-FRAME-STREAM-INF" && !seen[tag.URI] {
			seen[tag.URI] = true
			uris = append(uris, tag.URI)
		}
	}
	return uris
}

// Rewrite returns a copy in which every playlist has the URI that replace gives for it. Left
// out are playlists for which replace says false, I-frame playlists (see Playlists), and
// session keys, session data and steering servers at relative URIs, which lead nowhere from
// another place. A group that loses its last rendition is no longer referred to.
func (m *Multivariant) Rewrite(replace func(uri string) (string, bool)) *Multivariant {
	out := &Multivariant{Tags: make([]Tag, 0, len(m.Tags))}
	for _, tag := range m.Tags {
		if tag.Name == "EXT-X-I-FRAME-STREAM-INF" {
			continue
		}
		if name, ok := otherURIs[tag.Name]; ok {
			if uri, has := tag.Attrs.Get(name); has && !hasScheme(uri) {
				continue
			}
		}
		if tag.URI != "" {
			uri, ok := replace(tag.URI)
			if !ok {
				continue
			}
			tag.URI = uri
			if tag.Name != "EXT-X-STREAM-INF" {
				tag.Attrs = tag.Attrs.With("URI", Quoted(uri))
			}
		}
		out.Tags = append(out.Tags, tag)
	}
	out.dropEmptyGroups()
	return out
}

func (m *Multivariant) dropEmptyGroups() {
	type group struct{ kind, id string }
	have := map[group]bool{}
	for _, tag := range m.Tags {
		if tag.Name == "EXT-X-MEDIA" {
			kind, _ := tag.Attrs.Get("TYPE")
			id, _ := tag.Attrs.Get("GROUP-ID")
			have[group{kind, id}] = true
		}
	}
	for i, tag := range m.Tags {
		if tag.Name != "EXT-X-STREAM-INF" {
			continue
		}
		for _, kind := range []string{"AUDIO", "VIDEO", "SUBTITLES", "CLOSED-CAPTIONS"} {
			id, ok := tag.Attrs.Get(kind)
			if ok && !have[group{kind, id}] && id != "NONE" {
				tag.Attrs = tag.Attrs.Without(kind)
			}
		}
		m.Tags[i] = tag
	}
}

// AppendTo appends the playlist to b, every line ended with "\n".
func (m *Multivariant) AppendTo(b []byte) []byte {
	b = append(b, "#EXTM3U\n"...)
	for _, tag := range m.Tags {
		if tag.Attrs == nil {
			b = appendLine(b, "", tag.Text)
			continue
		}
		b = append(append(append(b, '#'), tag.Name...), ':')
		b = append(tag.Attrs.appendTo(b), '\n')
		if tag.Name == "EXT-X-STREAM-INF" {
			b = appendLine(b, "", tag.URI)
		}
	}
	return b
}

// hasScheme reports whether a URI is absolute: letters, digits, '+', '-' and '.' before a colon.
func hasScheme(uri string) bool {
	scheme, _, ok := strings.Cut(uri, ":")
	if !ok || scheme == "" {
		return false
	}
	for i := range len(scheme) {
		c := scheme[i] | 0x20
		letter := 'a' <= c && c <= 'z'
		if !letter && (i == 0 || !strings.ContainsRune("0123456789+-.", rune(scheme[i]))) {
			return false
		}
	}
	return true
}
