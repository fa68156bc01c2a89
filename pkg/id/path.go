package id

import (
	"fmt"
	"net/url"
	"strings"
	"unicode/utf8"
)

// Limits of a FILE_PATH.
const (
	MaxPath      = 1024 // bytes, the leading slash included
	maxComponent = 255  // bytes, what file systems take
)

// Path is the FILE_PATH of a file (docs/protocol.md), always with exactly one leading
// slash: "/live/demo/720p/0123456789ab/seg-1.ts". It has no empty, "." or ".." component, no
// backslash, no control character, and is valid UTF-8; it may be joined below a directory and
// never leaves it.
type Path string

// ParsePath returns s as a Path. One leading slash may be absent. Errors wrap ErrPath.
func ParsePath(s string) (Path, error) {
	rel := strings.TrimPrefix(s, "/")
	if len(rel)+1 > MaxPath {
		return "", fmt.Errorf("%w: longer than %d bytes: %s", ErrPath, MaxPath, Quote(s))
	}
	if !utf8.ValidString(rel) {
		return "", fmt.Errorf("%w: not UTF-8: %s", ErrPath, Quote(s))
	}
	for part := range strings.SplitSeq(rel, "/") {
		switch {
		case part == "":
			return "", fmt.Errorf("%w: empty component: %s", ErrPath, Quote(s))
		case part == "." || part == "..":
			return "", fmt.Errorf("%w: component %q: %s", ErrPath, part, Quote(s))
		case len(part) > maxComponent:
			return "", fmt.Errorf("%w: component longer than %d bytes: %s", ErrPath, maxComponent, Quote(s))
		}
		for _, r := range part {
			if r < 0x20 || r == 0x7f || r == '\\' {
				return "", fmt.Errorf("%w: control character or backslash: %s", ErrPath, Quote(s))
			}
		}
	}
	return Path("/" + rel), nil
}

// Rel returns the path without its leading slash, for joining below a directory.
func (p Path) Rel() string { return string(p[1:]) }

// Name returns the last component.
func (p Path) Name() string { return string(p[strings.LastIndexByte(string(p), '/')+1:]) }

// Escaped returns the path as it stands in a URL.
func (p Path) Escaped() string {
	for i := range len(p) {
		if !unreserved(p[i]) {
			return (&url.URL{Path: string(p)}).EscapedPath()
		}
	}
	return string(p)
}

func unreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '/' || c == '-' || c == '.' || c == '_' || c == '~'
}

// SegmentPath is the path of a live segment, init segment or key, addressed by its content.
type SegmentPath struct {
	Stream    StreamName
	Rendition RenditionName
	Short     string // the first 12 hex digits of the digest
	Name      string
}

const shortLen = 12

// Path returns "/live/<stream>/<rendition>/<digest12>/<name>".
func (p SegmentPath) Path() Path {
	return Path("/live/" + string(p.Stream) + "/" + string(p.Rendition) + "/" + p.Short + "/" + p.Name)
}

// NewSegmentPath makes the path of a segment with that digest. The name must be one component
// that ParsePath takes.
func NewSegmentPath(s StreamName, r RenditionName, d Digest, name string) (SegmentPath, error) {
	p := SegmentPath{Stream: s, Rendition: r, Short: d.Short(), Name: name}
	if strings.Contains(name, "/") {
		return p, fmt.Errorf("%w: slash in a segment's name: %s", ErrPath, Quote(name))
	}
	_, err := ParsePath(string(p.Path()))
	return p, err
}

// ParseSegmentPath takes a path apart; ok is false where it is not a live segment's.
func ParseSegmentPath(p Path) (seg SegmentPath, ok bool) {
	parts := strings.Split(p.Rel(), "/")
	if len(parts) != 5 || parts[0] != "live" || len(parts[3]) != shortLen || !isLowerHex(parts[3]) {
		return seg, false
	}
	stream, err := ParseStreamName(parts[1])
	if err != nil {
		return seg, false
	}
	rendition, err := ParseRenditionName(parts[2])
	if err != nil {
		return seg, false
	}
	return SegmentPath{Stream: stream, Rendition: rendition, Short: parts[3], Name: parts[4]}, true
}

// ContentAddressed reports whether the bytes behind the path can never change: a live
// segment's path carries its digest.
func (p Path) ContentAddressed() bool {
	_, ok := ParseSegmentPath(p)
	return ok
}
