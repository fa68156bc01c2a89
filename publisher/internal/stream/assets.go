package stream

import (
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"time"

	"dandelion/pkg/id"
	"dandelion/pkg/playlist"
	"dandelion/publisher/internal/source"
)

// fetchAssets copies what an entry needs beside its segment and makes its tags refer to the
// copies. Keys with a scheme ("https:", "skd:", "data:") are left alone.
func (s *Stream) fetchAssets(now time.Time, r *rendition, l source.Listing, e *entry) error {
	if m := e.Listed.Map; m != nil {
		path, uri, err := s.asset(now, r, l, m.URI, m.Range)
		if err != nil {
			return fmt.Errorf("init segment %s: %w", id.Quote(m.URI), err)
		}
		keys, err := s.fetchKeys(now, r, l, e, m.Keys)
		if err != nil {
			return err
		}
		e.Needs = append(e.Needs, path)
		e.Listed.Map = &playlist.Map{
			URI: uri, Attrs: m.Attrs.With("URI", playlist.Quoted(uri)).Without("BYTERANGE"), Keys: keys,
		}
	}
	keys, err := s.fetchKeys(now, r, l, e, e.Listed.Keys)
	e.Listed.Keys = keys
	return err
}

func (s *Stream) fetchKeys(now time.Time, r *rendition, l source.Listing, e *entry, listed []playlist.Attributes) ([]playlist.Attributes, error) {
	var keys []playlist.Attributes
	for _, key := range listed {
		if uri, ok := key.Get("URI"); ok && !source.HasScheme(uri) {
			path, copied, err := s.asset(now, r, l, uri, nil)
			if err != nil {
				return nil, fmt.Errorf("key %s: %w", id.Quote(uri), err)
			}
			e.Needs = append(e.Needs, path)
			key = key.With("URI", playlist.Quoted(copied))
		}
		keys = append(keys, key)
	}
	return keys, nil
}

// asset copies an init segment or key, once for each content that the file has.
func (s *Stream) asset(now time.Time, r *rendition, l source.Listing, uri string, part *playlist.Range) (id.Path, string, error) {
	key := assetKey(uri, part)
	had, have := r.assets[key]
	f, err := s.src.Open(l.Path, uri)
	if err != nil {
		if have && had.Epoch == r.epoch && errors.Is(err, fs.ErrNotExist) {
			return had.Path, relative(had.Path), nil // deleted, and still what the encoder meant
		}
		return "", "", err
	}
	defer f.Close()
	if have && f.Was == had.Stat {
		return had.Path, relative(had.Path), nil
	}
	if err := s.complete(now, r, l, f, part); err != nil {
		if have && had.Epoch == r.epoch && errors.Is(err, errNotYet) {
			return had.Path, relative(had.Path), nil // being written again, for another run
		}
		return "", "", err
	}
	digest, size, err := s.copyFile(f, part)
	if err != nil {
		return "", "", err
	}
	path, rel, err := s.address(r, digest, f.Name)
	if err != nil {
		s.window.discard(digest)
		return "", "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hold(path, digest, size, true)
	if have {
		s.release(had.Path)
	}
	r.assets[key] = assetRef{Path: path, Stat: f.Was, Epoch: r.epoch}
	return path, rel, nil
}

// forgetAssets lets go of what the encoder does not name any more; entries that need it
// still hold it.
func (s *Stream) forgetAssets(r *rendition, m *playlist.Media) {
	named := map[string]bool{}
	var last []playlist.Attributes
	for i := range m.Entries {
		e := &m.Entries[i]
		if e.Map != nil {
			named[assetKey(e.Map.URI, e.Map.Range)] = true
			nameKeys(named, e.Map.Keys)
		}
		if i == 0 || len(e.Keys) != len(last) || len(last) > 0 && &e.Keys[0] != &last[0] {
			nameKeys(named, e.Keys)
		}
		last = e.Keys
	}
	for key, ref := range r.assets {
		if !named[key] {
			delete(r.assets, key)
			s.release(ref.Path)
		}
	}
}

func nameKeys(named map[string]bool, keys []playlist.Attributes) {
	for _, key := range keys {
		if uri, ok := key.Get("URI"); ok {
			named[assetKey(uri, nil)] = true
		}
	}
}

func assetKey(uri string, part *playlist.Range) string {
	if part == nil {
		return uri
	}
	return uri + " " + part.String()
}

// relative is the URI of a path from its rendition's folder.
func relative(p id.Path) string {
	seg, _ := id.ParseSegmentPath(p)
	return seg.Short + "/" + url.PathEscape(seg.Name)
}
