package publisher

import (
	"net/netip"
	"os"

	"dandelion/pkg/front"
	"dandelion/pkg/id"
	"dandelion/publisher/internal/placement"
	"dandelion/publisher/internal/stream"
)

// content is what the front shows of a publisher.
type content struct{ p *Publisher }

// Playlist implements front.Content.
func (c content) Playlist(name id.StreamName, file string) (front.Playlist, bool) {
	s := c.p.streams[name]
	if s == nil {
		return front.Playlist{}, false
	}
	r, ok := s.Playlist(file)
	return front.Playlist{Body: r.Body, ETag: r.ETag, Modified: r.Modified, MaxAge: r.MaxAge}, ok
}

// Locate implements front.Content.
func (c content) Locate(path id.Path, asker front.Asker) (front.Location, bool) {
	loc, ok := c.describe(path)
	if !ok || loc.Own {
		return loc, ok
	}
	loc.Path = "/" + string(c.p.id) + path.Escaped()
	found := c.p.placement.Find(path, loc.Digest, asker)
	loc.Boxes, loc.Room, loc.Watching, loc.Origin = found.Holders, found.Room, found.Watching, found.Origin
	return loc, true
}

// describe finds a file's digest and size in the streams' windows, in the records of what boxes
// hold, or among the uploads.
func (c content) describe(path id.Path) (front.Location, bool) {
	if s := c.stream(path); s != nil {
		if info, ok := s.Lookup(path); ok {
			return front.Location{Digest: info.Digest, Size: info.Size, Own: !info.Placeable}, true
		}
	}
	if placed, ok := c.p.placement.Records().Lookup(path); ok {
		return front.Location{Digest: placed.Digest, Size: placed.Size}, true
	}
	if local := c.p.uploads.file(path); local != "" { // that no box holds: not yet, or not any more
		if info, err := os.Stat(local); err == nil {
			return front.Location{Size: info.Size()}, true
		}
	}
	return front.Location{}, false
}

func (c content) stream(path id.Path) *stream.Stream {
	seg, ok := id.ParseSegmentPath(path)
	if !ok || c.p.streams[seg.Stream] == nil {
		return nil
	}
	return c.p.streams[seg.Stream]
}

// Redirected implements front.Content.
func (c content) Redirected(box id.BoxID, bytes int64) { c.p.placement.Redirected(box, bytes) }

// Joined implements front.Content.
func (c content) Joined(rendition string, box id.BoxID, bytes int64) {
	c.p.placement.Joined(rendition, box, bytes)
}

// Complained implements front.Content.
func (c content) Complained(box id.BoxID, path id.Path, viewer netip.Addr) {
	c.p.placement.Complained(box, path, viewer)
}

// Open implements front.Content.
func (c content) Open(path id.Path) (*os.File, error) {
	if s := c.stream(path); s != nil {
		file, _, err := s.Open(path)
		return file, err
	}
	if local := c.p.uploads.file(path); local != "" {
		return os.Open(local) // named by its content: what is there now is what was placed
	}
	placed, ok := c.p.placement.Records().Lookup(path)
	if !ok || placed.Local == (placement.LocalFile{}) {
		return nil, os.ErrNotExist
	}
	return placed.Local.Open()
}
