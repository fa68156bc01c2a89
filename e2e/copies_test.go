//go:build e2e

package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/url"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"dandelion/pkg/playlist"
)

// TestCopies: every segment that the encoder writes is held by as many boxes as configured, and
// each of them serves, at its own URL, the encoder's bytes. The origin is not asked.
func TestCopies(t *testing.T) {
	t.Parallel()
	for _, f := range formats {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			const replicas = 2
			fleet := newFleet(t, plan{boxes: 4, replicas: replicas})
			encoder := encode(t, fleet.source, f, "") // deletes nothing
			copies := &copies{t: t, fleet: fleet, replicas: replicas, compared: map[string]bool{}, used: map[string]bool{}}
			eventually(t, patience, func() error {
				if copies.look(); copies.segments < 8*len(f.renditions) {
					return fmt.Errorf("%d segments shown", copies.segments)
				}
				return nil
			})
			finish(t, encoder)
			var written []string
			for _, folder := range f.renditions {
				for _, name := range segments(t, filepath.Join(fleet.source, folder)) {
					written = append(written, filepath.Join(folder, name))
				}
			}
			eventually(t, patience, func() error {
				copies.look()
				missing := slices.DeleteFunc(slices.Clone(written), func(name string) bool { return copies.compared[name] })
				if len(missing) > 0 {
					return fmt.Errorf("viewers were not shown %s", missing)
				}
				return nil
			})
			if len(copies.used) < replicas {
				t.Errorf("only %d of %d boxes hold anything", len(copies.used), len(fleet.boxes))
			}
			t.Logf("%d segments and init segments compared over %d boxes", len(copies.compared), len(copies.used))
		})
	}
}

type copies struct {
	t        *testing.T
	fleet    *fleet
	replicas int
	compared map[string]bool // by the encoder's file, below the source
	segments int             // of them that are no init segments
	used     map[string]bool // addresses of boxes that served something
}

// look compares what the playlists show and was not compared yet.
func (c *copies) look() {
	c.t.Helper()
	var urls []string
	eventually(c.t, patience, func() (err error) {
		urls, err = mediaURLs(c.t, c.fleet.index())
		return err
	})
	for _, u := range urls {
		body, _, err := get(c.t, u)
		if err != nil {
			c.t.Fatal(err)
		}
		media, err := playlist.ParseMedia(body)
		if err != nil {
			c.t.Fatalf("%s: %v", u, err)
		}
		for _, e := range media.Entries {
			if e.Gap {
				c.t.Fatalf("a segment was given up:\n%s", body)
			}
			c.compare(u, e.URI, true)
			if e.Map != nil {
				c.compare(u, e.Map.URI, false)
			}
		}
	}
}

// compare fetches one file from each of its holders, or, where it is an init segment, from the
// front, which is to serve it itself.
func (c *copies) compare(media, ref string, segment bool) {
	c.t.Helper()
	base, err := url.Parse(media)
	if err != nil {
		c.t.Fatal(err)
	}
	u, err := base.Parse(ref)
	if err != nil {
		c.t.Fatal(err)
	}
	parts := strings.Split(u.Path, "/") // "", live, demo, rendition, digest, name
	if len(parts) != 6 {
		c.t.Fatalf("%s is not /live/<stream>/<rendition>/<digest>/<name>", u.Path)
	}
	folder := parts[3]
	if folder == "index" { // the playlist in the source itself
		folder = "."
	}
	file := filepath.Join(folder, path.Base(u.Path))
	if c.compared[file] {
		return
	}
	want := read(c.t, filepath.Join(c.fleet.source, file))
	from := []string{u.String()}
	if segment {
		from = c.holders(u.Path, want)
	}
	for _, holder := range from {
		got, header, err := get(c.t, holder)
		if err != nil {
			c.t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			c.t.Fatalf("%s: %d bytes that are not the encoder's %d of %s", holder, len(got), len(want), file)
		}
		if etag := header.Get("ETag"); etag != `"`+hexDigest(want)+`"` {
			c.t.Errorf("%s has ETag %s, want the digest", holder, etag)
		}
		if segment {
			c.used[host(c.t, holder)] = true
		}
	}
	c.compared[file] = true
	if segment {
		c.segments++
	}
}

// holders waits until a segment has its copies and returns their URLs.
func (c *copies) holders(path string, want []byte) []string {
	c.t.Helper()
	var holders []string
	eventually(c.t, soon, func() error {
		var l located
		var err error
		if holders, l, err = c.fleet.holders(path); err != nil {
			return err
		}
		if l.Digest != hexDigest(want) || l.Size != int64(len(want)) {
			return fatal{fmt.Errorf("%s is located as %+v, want %d bytes, %s", path, l, len(want), hexDigest(want))}
		}
		if len(holders) != c.replicas {
			return fmt.Errorf("%s has %d holders, want %d: %s", path, len(holders), c.replicas, l.URLs)
		}
		return nil
	})
	return holders
}

func hexDigest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
