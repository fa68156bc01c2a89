// Package source follows what an encoder writes: which playlists there are, what they list
// now, and the files that they name. One file per kind of input stands behind Source. It
// reports what is there and judges nothing: what is new, what was lost and what a viewer may
// see is decided by package stream. It never writes, and never opens anything outside of
// the place that it was given.
package source

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"

	"dandelion/pkg/id"
	"dandelion/pkg/playlist"
)

// MaxListings is how many media playlists of one source are followed; more are named in the
// log and left out.
const MaxListings = 64

// Source is one encoder's output.
type Source interface {
	// Run calls update from one goroutine at every change, and at least once a second while
	// nothing changes, until ctx ends. It returns an error only when it could not start.
	Run(ctx context.Context, update func(Update)) error
	// Open opens a file that the playlist at that path (Listing.Path) names by uri. Errors are
	// ErrRefused, fs.ErrNotExist, or those of reading. Any goroutine.
	Open(playlist, uri string) (*File, error)
}

// New makes the source that a configuration names, "dir:/var/hls/demo". An error says what
// would be right. It touches nothing before Run.
func New(spec string, log *slog.Logger) (Source, error) {
	kind, rest, ok := strings.Cut(spec, ":")
	if !ok || kind != "dir" {
		return nil, fmt.Errorf(`source %s: want "dir:" and a directory, such as "dir:/var/hls/demo"`, id.Quote(spec))
	}
	return newDir(rest, log)
}

// Update is all that a source has at one moment. Playlists that did not change since the
// last update are the same pointers.
type Update struct {
	Problem      string        // one sentence for people while nothing can be read; "" when all is well
	Multivariant *Multivariant // nil: none seen
	Listings     []Listing     // in the order of the multivariant playlist, else by path
}

// Multivariant is the playlist that names the others.
type Multivariant struct {
	Path     string // slash-separated, within the source
	Playlist *playlist.Multivariant
}

// Listing is what one media playlist lists.
type Listing struct {
	Path    string // slash-separated, within the source
	Media   *playlist.Media
	Written time.Time // when the encoder wrote it, by the clock of its files
}

// ErrRefused is what refusals of a URI wrap: it names something outside of the source, or
// nothing that is a file.
var ErrRefused = errors.New("refused")

// Resolve returns the path, within the source, of what a playlist at path base names by uri.
// Errors wrap ErrRefused.
func Resolve(base, uri string) (string, error) {
	names, err := candidates(base, uri)
	if err != nil {
		return "", err
	}
	return names[0], nil
}

// candidates returns the paths that a URI can mean, likeliest first: encoders write file
// names into playlists without escaping them, so "100%.ts" and "a?b.ts" are tried as they are.
func candidates(base, uri string) ([]string, error) {
	if HasScheme(uri) || strings.HasPrefix(uri, "/") {
		return nil, fmt.Errorf("%w: %s is not relative to its playlist", ErrRefused, id.Quote(uri))
	}
	plain := uri
	if at := strings.IndexAny(plain, "?#"); at >= 0 {
		plain = plain[:at]
	}
	if plain == "" {
		return nil, fmt.Errorf("%w: %s names no file", ErrRefused, id.Quote(uri))
	}
	var texts []string
	if decoded, err := url.PathUnescape(plain); err == nil {
		texts = append(texts, decoded)
	}
	texts = append(texts, plain, uri)
	var names []string
	for _, text := range texts {
		name := path.Join(path.Dir(base), text)
		if slices.Contains(names, name) {
			continue
		}
		if name == ".." || strings.HasPrefix(name, "../") {
			return nil, fmt.Errorf("%w: %s leads out of the source", ErrRefused, id.Quote(uri))
		}
		if _, err := id.ParsePath(name); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrRefused, err)
		}
		names = append(names, name)
	}
	return names, nil
}

// HasScheme reports whether a URI names its own way to something ("https://…", "data:…")
// rather than a file beside its playlist. A colon alone does not: "seg-12:30:00.ts" is a file.
func HasScheme(uri string) bool {
	lower := strings.ToLower(uri)
	for _, scheme := range []string{"data:", "skd:", "urn:", "file:", "blob:"} {
		if strings.HasPrefix(lower, scheme) {
			return true
		}
	}
	before, _, ok := strings.Cut(uri, "//")
	return ok && (before == "" || strings.HasSuffix(before, ":") && !strings.ContainsAny(before, "/?#"))
}

// File is an open file of a source. Close it.
type File struct {
	*os.File
	Name string // path within the source
	Was  Stat   // when it was opened
}

// Stat tells whether a file is still the one that was read: an encoder that writes a name
// again changes at least one of the three.
type Stat struct {
	Size     int64  `json:"size"`
	Modified int64  `json:"modified"` // nanoseconds since 1970
	Inode    uint64 `json:"inode"`
}

// Now returns the file's state now.
func (f *File) Now() (Stat, error) {
	info, err := f.File.Stat()
	if err != nil {
		return Stat{}, err
	}
	return statOf(info), nil
}

func statOf(info os.FileInfo) Stat {
	s := Stat{Size: info.Size(), Modified: info.ModTime().UnixNano()}
	if sys, ok := info.Sys().(*syscall.Stat_t); ok {
		s.Inode = sys.Ino
	}
	return s
}
