package source

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"time"

	"dandelion/pkg/playlist"
)

// listed is one playlist file. Its content is the last that could be read whole, so that a
// file which is being written changes nothing.
type listed struct {
	path    string
	gone    bool // at the last look
	was     Stat // at the last read, good or bad
	sum     [sha256.Size]byte
	media   *playlist.Media
	multi   *playlist.Multivariant
	written time.Time

	err    error     // of the last read; nil: media or multi is what the file says
	badAt  time.Time // since when it cannot be read
	sameAt time.Time // since when its bad content is what it is
	logged string    // the error that was logged
}

// errTorn says that the last line has no end: the file may be half written.
var errTorn = errors.New("ends in the middle of a line")

// read takes in the file's content if it changed, or if always.
func (d *dir) read(l *listed, always bool) {
	f, err := d.open(l.path)
	l.gone = errors.Is(err, fs.ErrNotExist)
	if l.gone {
		return
	}
	now := time.Now()
	var is Stat
	if err == nil {
		defer f.Close()
		is = f.Was
		if !always && is == l.was && (l.err == nil || !errors.Is(l.err, errTorn)) {
			d.complain(l, now)
			return
		}
		err = d.parse(l, f, now)
	}
	if is != l.was {
		l.was, l.sameAt = is, now
	}
	switch {
	case err == nil:
		if l.logged != "" {
			d.log.Info("playlist can be read again", "playlist", l.path)
		}
		l.err, l.logged, l.badAt = nil, "", time.Time{}
		return
	case l.badAt.IsZero():
		l.badAt = now
	}
	l.err = err
	d.complain(l, now)
}

// complain logs a playlist's error once, when it lasts: one that is just being written is
// no trouble.
func (d *dir) complain(l *listed, now time.Time) {
	if l.err == nil || l.logged == l.err.Error() || now.Sub(l.badAt) < d.settle {
		return
	}
	if errors.Is(l.err, errTorn) && now.Sub(l.sameAt) < d.settle {
		return
	}
	l.logged = l.err.Error()
	d.log.Warn("not a playlist that can be published, going on without it", "playlist", l.path, "err", l.err)
}

func (d *dir) parse(l *listed, f *File, now time.Time) error {
	if f.Was.Size > playlist.MaxBytes {
		return fmt.Errorf("larger than %d bytes", playlist.MaxBytes)
	}
	b, err := io.ReadAll(io.LimitReader(f, playlist.MaxBytes+1))
	if err != nil {
		return err
	}
	if is, err := f.Now(); err != nil || is != f.Was {
		return errTorn // written while it was read; the next event comes
	}
	sum := sha256.Sum256(b)
	if sum == l.sum {
		l.written = time.Unix(0, f.Was.Modified)
		return nil
	}
	media, multi, err := playlist.Parse(b)
	if !terminated(b) {
		// Its end may be missing. It is taken when it stays so, unless it ends in the name of a file
		// that is not there.
		settled := l.was == f.Was && now.Sub(l.sameAt) >= d.settle
		if !settled || err == nil && !d.lastIsThere(l.path, media) {
			return errTorn
		}
	}
	if err != nil {
		return err
	}
	l.sum, l.media, l.multi, l.written = sum, media, multi, time.Unix(0, f.Was.Modified)
	return nil
}

// terminated reports whether a playlist is whole by its looks.
func terminated(b []byte) bool {
	return bytes.HasSuffix(b, []byte("\n")) || bytes.HasSuffix(b, []byte("\n#EXT-X-ENDLIST"))
}

func (d *dir) lastIsThere(base string, media *playlist.Media) bool {
	if media == nil || len(media.Entries) == 0 {
		return true
	}
	f, err := d.Open(base, media.Entries[len(media.Entries)-1].URI)
	if err != nil {
		return false
	}
	f.Close()
	return true
}

// collect puts together what the playlists say, and follows what the multivariant names.
func (d *dir) collect() Update {
	multi := d.multivariant()
	var names []string
	if multi == nil {
		for name := range d.playlists {
			names = append(names, name)
		}
		slices.Sort(names)
	} else {
		names = d.named(multi)
	}
	u := Update{Multivariant: multi}
	var bad *listed
	for _, name := range names {
		known := d.playlists[name]
		switch {
		case known == nil:
		case known.media != nil && len(u.Listings) < MaxListings:
			u.Listings = append(u.Listings, Listing{Path: name, Media: known.media, Written: known.written})
		case known.logged != "":
			bad = known
		}
	}
	switch {
	case len(u.Listings) > 0:
		d.say("")
	case bad != nil:
		u.Problem = fmt.Sprintf("%s in %s: %s", bad.path, d.path, bad.logged)
	case multi != nil:
		u.Problem = d.say(fmt.Sprintf("none of the playlists that %s in %s names is there yet", multi.Path, d.path))
	case len(d.playlists) == 0:
		u.Problem = d.say(fmt.Sprintf("no playlist (*.m3u8) in %s yet; waiting for the encoder to write one", d.path))
	}
	return u
}

// multivariant returns the multivariant playlist: the one in use as long as it is one, else
// the first by name.
func (d *dir) multivariant() *Multivariant {
	var found []string
	for name, known := range d.playlists {
		if known.multi != nil {
			found = append(found, name)
		}
	}
	if len(found) == 0 {
		d.multiPath = ""
		return nil
	}
	slices.Sort(found)
	if !slices.Contains(found, d.multiPath) {
		d.multiPath = found[0]
	}
	if len(found) > 1 {
		d.sayMore("several multivariant playlists, publishing the first that was seen; give each stream a directory of its own",
			"playlists", strings.Join(found, " "), "used", d.multiPath)
	}
	return &Multivariant{Path: d.multiPath, Playlist: d.playlists[d.multiPath].multi}
}

// named returns the paths of the media playlists that a multivariant playlist names, read.
func (d *dir) named(multi *Multivariant) []string {
	var names []string
	for _, uri := range multi.Playlist.Playlists() {
		name, err := Resolve(multi.Path, uri)
		if err != nil {
			d.sayMore("a multivariant playlist names a playlist that cannot be published, leaving it out", "playlist", multi.Path, "err", err)
			continue
		}
		if slices.Contains(names, name) {
			continue
		}
		if len(names) == MaxListings {
			d.sayMore("a multivariant playlist names too many playlists, leaving the rest out", "playlist", multi.Path, "limit", MaxListings)
			break
		}
		names = append(names, name)
		if d.playlists[name] == nil {
			d.follow(name)
		}
	}
	return names
}

// follow begins to read a playlist in a folder below.
func (d *dir) follow(name string) {
	if at := strings.LastIndexByte(name, '/'); at > 0 {
		if info, err := d.root.Stat(name[:at]); err != nil || !info.IsDir() {
			return
		}
		d.watch(d.path + "/" + name[:at])
	}
	known := &listed{path: name}
	if d.read(known, true); !known.gone {
		d.playlists[name] = known
	}
}

// say logs a problem when it is another than before, and that it is over.
func (d *dir) say(problem string) string {
	if problem == d.said {
		return problem
	}
	switch {
	case problem == "":
		d.log.Info("source is there", "source", d.path)
		d.came = true
	case d.root != nil && !d.came: // the usual beginning: the encoder is started after the publisher
		d.log.Info("waiting for the source", "problem", problem)
	default:
		d.log.Warn("source is not there", "problem", problem)
	}
	d.said = problem
	return problem
}

// sayMore logs what is worth one line and does not change by itself.
func (d *dir) sayMore(message string, args ...any) {
	key := message + fmt.Sprint(args...)
	if d.saidMore[key] || len(d.saidMore) > 1000 {
		return
	}
	d.saidMore[key] = true
	d.log.Warn(message, args...)
}
