// Package playlist reads and writes HLS playlists (RFC 8216): media playlists as entries with
// everything that applies to them, multivariant playlists as lines whose URIs can be
// replaced. It keeps every tag that it does not know, in order, and every duration in the
// text in which it came. It knows nothing of files, streams or HTTP, and never resolves a URI.
package playlist

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Limits of a playlist; beyond them parsing fails with an error that names the limit.
const (
	MaxBytes   = 4 << 20  // a whole playlist
	MaxLine    = 64 << 10 // one line, in bytes
	MaxEntries = 50_000   // segments of a media playlist, tags of a multivariant one
	maxAttrs   = 100      // attributes of one tag
	maxKeys    = 16       // EXT-X-KEYs in effect at once, one for each KEYFORMAT
)

// Largest MEDIA-SEQUENCE and DISCONTINUITY-SEQUENCE taken: counting on from there cannot
// overflow, and an encoder that numbers by microseconds since 1970 is far below.
const maxSequence = 1 << 62

// Parse reads a playlist of either kind: exactly one of media and multi is set when err is
// nil. b must be a whole playlist; a byte order mark, CRLF and a missing end of the last line
// are accepted. Errors name the line. Any goroutine; b is not kept.
func Parse(b []byte) (media *Media, multi *Multivariant, err error) {
	lines, err := split(b)
	if err != nil {
		return nil, nil, err
	}
	kind, err := kindOf(lines)
	if err != nil {
		return nil, nil, err
	}
	if kind == kindMultivariant {
		multi, err = parseMultivariant(lines)
		return nil, multi, err
	}
	media, err = parseMedia(lines)
	return media, nil, err
}

// ParseMedia is Parse for a playlist that must be a media playlist.
func ParseMedia(b []byte) (*Media, error) {
	media, _, err := Parse(b)
	if err == nil && media == nil {
		return nil, errors.New("a multivariant playlist where a media playlist belongs")
	}
	return media, err
}

// ParseMultivariant is Parse for a playlist that must be a multivariant playlist.
func ParseMultivariant(b []byte) (*Multivariant, error) {
	_, multi, err := Parse(b)
	if err == nil && multi == nil {
		return nil, errors.New("a media playlist where a multivariant playlist belongs")
	}
	return multi, err
}

// line is one line that says something: a tag or a URI.
type line struct {
	number int
	text   string // trimmed
	tag    string // "EXTINF", "EXT-X-KEY"; empty for a URI
	value  string // what stands behind the first colon of a tag
}

func (l line) errorf(format string, args ...any) error {
	return fmt.Errorf("line %d: %w", l.number, fmt.Errorf(format, args...))
}

// uint reads the tag's value as a whole number of at most limit.
func (l line) uint(limit uint64) (uint64, error) {
	n, err := strconv.ParseUint(strings.TrimSpace(l.value), 10, 64)
	if err != nil {
		return 0, l.errorf("%s: %s is not a whole number", l.tag, quote(l.value))
	}
	if n > limit {
		return 0, l.errorf("%s: %d is more than %d", l.tag, n, limit)
	}
	return n, nil
}

// split cuts a playlist into lines, without blank ones and comments, and checks what holds
// for both kinds of playlist.
func split(b []byte) ([]line, error) {
	if len(b) > MaxBytes {
		return nil, fmt.Errorf("larger than %d bytes", MaxBytes)
	}
	b = bytes.TrimPrefix(b, []byte("\xef\xbb\xbf"))
	if len(b) == 0 {
		return nil, errors.New("empty, not a playlist")
	}
	var lines []line
	number := 0
	for raw := range bytes.SplitSeq(b, []byte("\n")) {
		number++
		if len(raw) > MaxLine {
			return nil, fmt.Errorf("line %d: longer than %d bytes", number, MaxLine)
		}
		l := line{number: number, text: strings.TrimSpace(string(raw))}
		if err := checkText(l); err != nil {
			return nil, err
		}
		if number == 1 && l.text != "#EXTM3U" {
			return nil, fmt.Errorf("line 1: not a playlist: begins with %s, not with #EXTM3U", quote(l.text))
		}
		if number == 1 || l.text == "" {
			continue
		}
		if rest, ok := strings.CutPrefix(l.text, "#"); ok {
			if !strings.HasPrefix(rest, "EXT") {
				continue // a comment
			}
			l.tag, l.value, _ = strings.Cut(rest, ":")
		}
		lines = append(lines, l)
	}
	return lines, nil
}

// checkText refuses what cannot be in a playlist and would break the lines that are written
// from it. A file that is read while it is written can show NUL bytes.
func checkText(l line) error {
	if !utf8.ValidString(l.text) {
		return l.errorf("not UTF-8")
	}
	for _, r := range l.text {
		if r < 0x20 && r != '\t' || r == 0x7f {
			return l.errorf("control character %q", r)
		}
	}
	return nil
}

type kind int

const (
	kindMedia kind = iota + 1
	kindMultivariant
)

// tagKinds are the tags that tell the two kinds of playlist apart.
var tagKinds = map[string]kind{
	"EXTINF": kindMedia, "EXT-X-TARGETDURATION": kindMedia, "EXT-X-MEDIA-SEQUENCE": kindMedia,
	"EXT-X-DISCONTINUITY-SEQUENCE": kindMedia, "EXT-X-ENDLIST": kindMedia, "EXT-X-PLAYLIST-TYPE": kindMedia,
	"EXT-X-STREAM-INF": kindMultivariant, "EXT-X-MEDIA": kindMultivariant, "EXT-X-I-FRAME-STREAM-INF": kindMultivariant,
	"EXT-X-SESSION-DATA": kindMultivariant, "EXT-X-SESSION-KEY": kindMultivariant,
	"EXT-X-CONTENT-STEERING": kindMultivariant,
}

func kindOf(lines []line) (kind, error) {
	var found kind
	for _, l := range lines {
		k := tagKinds[l.tag]
		if k == 0 {
			continue
		}
		if found != 0 && k != found {
			return 0, l.errorf("%s: tags of a media playlist and of a multivariant playlist in one", l.tag)
		}
		found = k
	}
	if found == 0 {
		return 0, errors.New("neither a media playlist nor a multivariant playlist: none of their tags is in it")
	}
	return found, nil
}

// quote quotes text from outside for an error, at most 80 bytes of it.
func quote(s string) string {
	const limit = 80
	if len(s) > limit {
		return fmt.Sprintf("%q…", s[:limit])
	}
	return fmt.Sprintf("%q", s)
}
