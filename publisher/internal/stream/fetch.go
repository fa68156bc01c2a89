package stream

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"path"
	"time"

	"dandelion/pkg/id"
	"dandelion/pkg/playlist"
	"dandelion/publisher/internal/source"
)

// errNotYet says that a listed file is not there or not whole, and may still become so.
var errNotYet = errors.New("not complete yet")

// assetError is trouble with an init segment or a key.
type assetError struct{ error }

func (e *assetError) Unwrap() error { return e.error }

// fetch copies a listed segment, its init segment and its keys into the window. The error is
// errNotYet where it may come later; else the segment is lost, and the error says why.
func (s *Stream) fetch(now time.Time, r *rendition, l source.Listing, i int) (*entry, error) {
	listed := l.Media.Entries[i]
	if listed.Gap {
		return nil, errors.New("the encoder says that it is missing")
	}
	e := &entry{Listed: listed}
	e.Listed.Range = nil // cut out: the range's bytes are a file of their own here
	if sequence := l.Media.Sequence + uint64(i); r.waitFor.sequence != sequence || r.waitFor.files == nil {
		r.waitFor = waited{sequence: sequence, since: now, files: map[string]quietFile{}}
	}
	if err := s.fetchAssets(now, r, l, e); err != nil {
		return nil, s.patience(now, r, l, i, &assetError{err})
	}
	f, err := s.src.Open(l.Path, listed.URI)
	if err != nil {
		return nil, s.patience(now, r, l, i, err)
	}
	defer f.Close()
	if err := s.complete(now, r, l, f, listed.Range); err != nil {
		return nil, s.patience(now, r, l, i, err)
	}
	digest, size, err := s.copyFile(f, listed.Range)
	if err != nil {
		return nil, s.patience(now, r, l, i, err)
	}
	e.Digest, e.Size, e.Origin.Stat = digest, size, f.Was
	if e.Path, e.Listed.URI, err = s.address(r, digest, f.Name); err != nil {
		s.window.discard(digest)
		return nil, err
	}
	r.waitFor = waited{}
	return e, nil
}

// copiedQuiet is how long a file that is newer than its playlist must not change to count as
// whole.
const copiedQuiet = 30 * time.Second

// complete reports whether a listed file, or the part of it that is listed, is whole. What a
// playlist lists is complete, but only when the playlist was written after it: an encoder
// that restarts begins to write the names that its old playlist still lists.
func (s *Stream) complete(now time.Time, r *rendition, l source.Listing, f *source.File, part *playlist.Range) error {
	size := f.Was.Size
	if part != nil {
		size = part.Length
		if f.Was.Size < part.Offset+part.Length {
			return errNotYet
		}
	}
	if size > s.cfg.WindowLimit {
		return fmt.Errorf("its %d bytes are more than the whole window may have (%d)", size, s.cfg.WindowLimit)
	}
	if part != nil || f.Was.Modified <= l.Written.UnixNano() {
		return nil
	}
	// A copied directory has its files in any order: what does not change any more is whole.
	need := copiedQuiet
	if l.Media.Ended {
		need = 2 * time.Duration(l.Media.TargetDuration) * time.Second
	}
	quiet, ok := r.waitFor.files[f.Name]
	if !ok || quiet.stat != f.Was {
		r.waitFor.files[f.Name] = quietFile{f.Was, now}
		return errNotYet
	}
	if now.Sub(quiet.since) < need {
		return errNotYet
	}
	return nil
}

// patience turns the trouble with a listed segment into errNotYet as long as it may pass: no
// later segment is whole, and its file has not been missing for a whole target duration.
func (s *Stream) patience(now time.Time, r *rendition, l source.Listing, i int, err error) error {
	if errors.Is(err, errOwnDisk) {
		s.report(problemDisk, "the window cannot be written: "+err.Error())
		return errNotYet
	}
	missing := errors.Is(err, fs.ErrNotExist)
	if !missing && !errors.Is(err, errNotYet) {
		return err
	}
	if missing && now.Sub(r.waitFor.since) >= time.Duration(max(l.Media.TargetDuration, 1))*time.Second {
		return err
	}
	var asset *assetError
	if !errors.As(err, &asset) && s.laterIsWhole(l, i) {
		if missing {
			return err
		}
		return errors.New("its file changed after the playlist listed it")
	}
	return errNotYet
}

// laterIsWhole reports whether a segment behind entry i is there and whole: then nothing
// that is listed before it will still come.
func (s *Stream) laterIsWhole(l source.Listing, i int) bool {
	for _, later := range l.Media.Entries[i+1:] {
		f, err := s.src.Open(l.Path, later.URI)
		if err != nil {
			continue
		}
		whole := f.Was.Modified <= l.Written.UnixNano()
		if later.Range != nil {
			whole = f.Was.Size >= later.Range.Offset+later.Range.Length
		}
		f.Close()
		if whole {
			return true
		}
	}
	return false
}

// copyFile copies a file or a part of it into the window.
func (s *Stream) copyFile(f *source.File, part *playlist.Range) (id.Digest, int64, error) {
	read := int64(0)
	digest, size, err := s.window.put(&counted{section(f, part), &read}, func() error {
		is, err := f.Now()
		if err != nil {
			return err
		}
		if part != nil {
			if read != part.Length || is.Inode != f.Was.Inode || is.Size < f.Was.Size {
				return errNotYet
			}
			return nil // the file grows behind the part
		}
		if is != f.Was || read != f.Was.Size {
			return errNotYet
		}
		return nil
	})
	if err == nil {
		s.setProblem(problemDisk, "")
	}
	return digest, size, err
}

type counted struct {
	io.Reader
	n *int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	*c.n += int64(n)
	return n, err
}

// address returns the path of a file with that content, and the URI that leads to it from
// the rendition's folder.
func (s *Stream) address(r *rendition, digest id.Digest, name string) (id.Path, string, error) {
	seg, err := id.NewSegmentPath(s.cfg.Name, r.name, digest, path.Base(name))
	if err != nil {
		return "", "", err
	}
	return seg.Path(), seg.Short + "/" + url.PathEscape(seg.Name), nil
}
