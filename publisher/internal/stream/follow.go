package stream

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"slices"
	"time"

	"dandelion/pkg/id"
	"dandelion/pkg/playlist"
	"dandelion/publisher/internal/source"
)

// tracker is what is known of the encoder of one rendition. An epoch is one run of the
// encoder: within it, its sequence numbers name segments.
type tracker struct {
	met        bool   // an epoch has begun
	epoch      uint64 // counts them
	epochFirst uint64 // the first number that was listed in it
	next       uint64 // the number that is expected next
	listFirst  uint64 // the first number that was listed last
	started    bool   // there was an entry ever
	broken     bool   // what comes next does not continue what came before

	// Of this process only.
	seen     *playlist.Media // the listing that was looked at last
	written  time.Time       // when the encoder wrote it
	waiting  bool            // it must be looked at again although it is the same
	verified bool            // the listings were seen to continue the window
	live     bool            // the encoder was seen to be at work
	fellAt   time.Time       // since when the numbers are lower than they were, and in which
	fellIn   *playlist.Media // listing that was seen first
	waitFor  waited
}

// waited is the segment that is listed but cannot be copied yet.
type waited struct {
	sequence uint64
	since    time.Time
	files    map[string]quietFile // by URI: it and what it needs
}

// quietFile is a file as it has been since a time.
type quietFile struct {
	stat  source.Stat
	since time.Time
}

// fellPatience is how long numbers must stay lower before an encoder is taken to have
// restarted, where a half-written playlist could look the same.
const fellPatience = 2 * time.Second

// update takes in what the source has now. Called from one goroutine, the only one that
// copies files and adds or drops entries.
func (s *Stream) update(ctx context.Context, now time.Time, u source.Update) {
	s.setProblem(problemSource, u.Problem) // the source logs it by itself
	if s.ttlFits(u) {
		s.prepare(u)
		for _, l := range u.Listings {
			if r := s.rendition(u, l.Path); r != nil {
				s.ingest(ctx, now, r, l)
			}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trim(now)
	s.show(now)
}

// ingest adds the segments of a listing that are new.
func (s *Stream) ingest(ctx context.Context, now time.Time, r *rendition, l source.Listing) {
	m := l.Media
	// The same text written again can be another encoder's.
	if m == r.seen && l.Written.Equal(r.written) && !r.waiting || len(m.Entries) == 0 {
		return
	}
	r.seen, r.written = m, l.Written
	s.learn(r, m)
	first, ok := s.compare(now, r, l)
	r.waiting = !ok
	var lost losses
	for i := first; ok && i < len(m.Entries); i++ {
		if ctx.Err() != nil {
			r.waiting = true
			return
		}
		e, err := s.fetch(now, r, l, i)
		if errors.Is(err, errNotYet) {
			r.waiting = true
			break
		}
		if err != nil {
			lost.add(m.Entries[i].URI, err)
		}
		if seg, ok := s.take(now, r, m, i, e); ok {
			s.placer.Place(seg)
		}
	}
	lost.log(s.log, r)
	if ok && !r.waiting {
		s.finish(now, r, m)
	}
}

// learn takes over what the listing says of the whole playlist.
func (s *Stream) learn(r *rendition, m *playlist.Media) {
	s.mu.Lock()
	defer s.mu.Unlock()
	target, version := max(r.targetDuration, m.TargetDuration, 1), max(r.version, m.Version)
	if target != r.targetDuration || version != r.version {
		r.targetDuration, r.version = target, version
		s.changed()
	}
}

// compare finds the first entry of a listing that is new, and notes where the encoder
// restarted or went on without us. It is false when that cannot be told yet.
func (s *Stream) compare(now time.Time, r *rendition, l source.Listing) (first int, ok bool) {
	m := l.Media
	end := m.Sequence + uint64(len(m.Entries))
	s.mu.Lock()
	known := r.knownIn(m.Sequence, end)
	s.mu.Unlock()

	switch {
	case !r.met:
		s.mu.Lock()
		r.met, r.epochFirst, r.next = true, m.Sequence, m.Sequence
		s.mu.Unlock()
	case len(known) > 0:
		switch s.same(l, known) {
		case unsure:
			return 0, false
		case another:
			s.restarted(r, m)
		case again:
			if end < r.next { // an encoder that plays a file began it again
				s.restarted(r, m)
			}
		case unknown:
			if !r.fellAt.IsZero() {
				s.restarted(r, m)
			} else if !r.verified {
				s.breaks(r, r.next)
			}
		}
	case end < r.next && m.Sequence == r.listFirst && !r.fell(now, m):
		return 0, false
	case end < r.next || end == r.next && m.Sequence < r.listFirst:
		s.restarted(r, m)
	case m.Sequence > r.next || m.Sequence == r.next && (r.want > 1 || !r.verified):
		// The number alone does not say that it goes on: an encoder that lists several segments
		// would still list one that we know.
		if r.started {
			s.log.Warn("segments were missed, viewers get a discontinuity", "rendition", r.name,
				"next", r.next, "listed_from", m.Sequence)
		}
		s.breaks(r, m.Sequence)
	}
	r.verified, r.fellAt, r.fellIn = true, time.Time{}, nil
	if r.next <= m.Sequence {
		return 0, true
	}
	return int(min(r.next-m.Sequence, uint64(len(m.Entries)))), true
}

// fell reports whether the numbers are lower than before for good: in another listing, too,
// and for long enough.
func (t *tracker) fell(now time.Time, m *playlist.Media) bool {
	if t.fellAt.IsZero() {
		t.fellAt, t.fellIn = now, m
	}
	return m != t.fellIn && now.Sub(t.fellAt) >= fellPatience
}

// restarted begins a new epoch.
func (s *Stream) restarted(r *rendition, m *playlist.Media) {
	s.log.Info("encoder restarted, viewers get a discontinuity", "rendition", r.name,
		"expected", r.next, "listed_from", m.Sequence)
	s.mu.Lock()
	defer s.mu.Unlock()
	r.epoch++
	r.epochFirst, r.next, r.broken = m.Sequence, m.Sequence, true
}

// breaks makes what comes next, expected to be that number, a discontinuity.
func (s *Stream) breaks(r *rendition, next uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r.broken, r.next = true, next
}

// knownIn returns the entries of this epoch with an encoder's number in [from, to), newest first.
func (r *rendition) knownIn(from, to uint64) []*entry {
	var known []*entry
	for _, e := range slices.Backward(r.entries) {
		if e.Origin.Epoch != r.epoch || e.Origin.Sequence < from {
			break
		}
		if e.Origin.Sequence < to {
			known = append(known, e)
		}
	}
	return known
}

// verdict is whether numbers still mean the segments that they meant.
type verdict int

const (
	alike   verdict = iota // they do
	again                  // they do by their bytes, which were written once more
	another                // the encoder restarted, and they mean something else
	unknown                // the names are the same, and no file is left to compare
	unsure                 // ask again: a file is being written
)

// same compares the entries that we have, newest first, with those that are listed now under
// their numbers. Names decide, then the file: an encoder that restarts writes the same names
// again.
//
// Only the newest entry whose file is there is compared: with encoders that write a ring of
// files the oldest one listed can be overwritten already.
func (s *Stream) same(l source.Listing, known []*entry) verdict {
	for _, e := range known {
		o, listed := e.Origin, l.Media.Entries[e.Origin.Sequence-l.Media.Sequence]
		if o.URI != listed.URI || (o.Range == nil) != (listed.Range == nil) || o.Range != nil && *o.Range != *listed.Range {
			return another
		}
		if e.Listed.Gap {
			continue
		}
		f, err := s.src.Open(l.Path, listed.URI)
		if err != nil {
			continue // deleted, most likely
		}
		defer f.Close()
		return s.sameFile(l, e, f)
	}
	return unknown
}

func (s *Stream) sameFile(l source.Listing, e *entry, f *source.File) verdict {
	part := e.Origin.Range
	if f.Was == e.Origin.Stat {
		return alike
	}
	if part == nil && f.Was.Modified > l.Written.UnixNano() {
		return alike // written again after the playlist that lists it: that playlist is old
	}
	digest, err := digestOf(f, part)
	if is, nowErr := f.Now(); err != nil || nowErr != nil || part == nil && is != f.Was {
		return unsure
	}
	if digest != e.Digest {
		return another
	}
	s.mu.Lock()
	e.Origin.Stat = f.Was
	s.mu.Unlock()
	return again
}

func digestOf(f *source.File, part *playlist.Range) (id.Digest, error) {
	hash := sha256.New()
	n, err := io.Copy(hash, section(f, part))
	if err == nil && part != nil && n != part.Length {
		err = io.ErrUnexpectedEOF
	}
	return id.Digest(hash.Sum(nil)), err
}

func section(f *source.File, part *playlist.Range) io.Reader {
	if part == nil {
		return f
	}
	return io.NewSectionReader(f, part.Offset, part.Length)
}

// losses are the segments of one listing that could not be had: one line in the log.
type losses struct {
	count int
	uri   string
	err   error
}

func (l *losses) add(uri string, err error) {
	if l.count++; l.count == 1 {
		l.uri, l.err = uri, err
	}
}

func (l *losses) log(log *slog.Logger, r *rendition) {
	if l.count == 0 {
		return
	}
	reason := l.err
	if errors.Is(reason, fs.ErrNotExist) {
		reason = errors.New("its file is gone")
	}
	log.Warn("segments are lost, viewers skip them", "rendition", r.name, "count", l.count, "first", id.Quote(l.uri), "reason", reason)
}
