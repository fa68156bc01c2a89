package playlist

import (
	"io"
	"slices"
	"strconv"
)

// Write writes the playlist, every line ended with "\n".
func (m *Media) Write(w io.Writer) error {
	_, err := w.Write(m.AppendTo(nil))
	return err
}

// AppendTo appends the playlist to b. Keys and maps are written where they change.
func (m *Media) AppendTo(b []byte) []byte {
	b = append(b, "#EXTM3U\n"...)
	if m.Version > 0 {
		b = appendNumber(b, "#EXT-X-VERSION:", uint64(m.Version))
	}
	b = appendNumber(b, "#EXT-X-TARGETDURATION:", uint64(m.TargetDuration))
	b = appendNumber(b, "#EXT-X-MEDIA-SEQUENCE:", m.Sequence)
	if m.DiscontinuitySequence > 0 {
		b = appendNumber(b, "#EXT-X-DISCONTINUITY-SEQUENCE:", m.DiscontinuitySequence)
	}
	if m.Type != "" {
		b = appendLine(b, "#EXT-X-PLAYLIST-TYPE:", m.Type)
	}
	for _, text := range m.Header {
		b = appendLine(b, "", text)
	}
	var in effect
	for i := range m.Entries {
		b = in.appendEntry(b, &m.Entries[i])
	}
	if m.Ended {
		b = append(b, "#EXT-X-ENDLIST\n"...)
	}
	return b
}

// effect is what the lines so far have put into effect for the next segment.
type effect struct {
	keys    []Attributes
	mapping *Map
}

func (in *effect) appendEntry(b []byte, e *Entry) []byte {
	if e.Discontinuity {
		b = append(b, "#EXT-X-DISCONTINUITY\n"...)
	}
	if e.Map != nil && !e.Map.equal(in.mapping) {
		// The keys before a map are those of its init segment, which need not be the segment's.
		b = in.appendKeys(b, e.Map.Keys)
		b = append(b, "#EXT-X-MAP:"...)
		b = append(e.Map.Attrs.appendTo(b), '\n')
		in.mapping = e.Map
	}
	b = in.appendKeys(b, e.Keys)
	if e.DateTime != "" {
		b = appendLine(b, "#EXT-X-PROGRAM-DATE-TIME:", e.DateTime)
	}
	for _, text := range e.Tags {
		b = appendLine(b, "", text)
	}
	if e.Gap {
		b = append(b, "#EXT-X-GAP\n"...)
	}
	b = append(b, "#EXTINF:"...)
	b = append(b, e.Duration.Text...)
	b = append(b, ',')
	b = appendLine(b, e.Title, "")
	if e.Range != nil {
		b = appendLine(b, "#EXT-X-BYTERANGE:", e.Range.String())
	}
	return appendLine(b, "", e.URI)
}

// appendKeys puts exactly keys into effect.
func (in *effect) appendKeys(b []byte, keys []Attributes) []byte {
	if slices.EqualFunc(in.keys, keys, slices.Equal[Attributes]) {
		return b
	}
	ends := slices.ContainsFunc(in.keys, func(old Attributes) bool {
		return !slices.ContainsFunc(keys, func(k Attributes) bool { return keyFormat(k) == keyFormat(old) })
	})
	if ends {
		b = append(b, "#EXT-X-KEY:METHOD=NONE\n"...)
	}
	for _, key := range keys {
		b = append(b, "#EXT-X-KEY:"...)
		b = append(key.appendTo(b), '\n')
	}
	in.keys = keys
	return b
}

func (m *Map) equal(other *Map) bool {
	return m == other || other != nil && slices.Equal(m.Attrs, other.Attrs) && slices.EqualFunc(m.Keys, other.Keys, slices.Equal[Attributes])
}

func appendNumber(b []byte, tag string, n uint64) []byte {
	return append(strconv.AppendUint(append(b, tag...), n, 10), '\n')
}

func appendLine(b []byte, tag, value string) []byte {
	return append(append(append(b, tag...), value...), '\n')
}
