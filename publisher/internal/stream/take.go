package stream

import (
	"fmt"
	"slices"
	"time"

	"dandelion/pkg/playlist"
)

// take appends an entry for m.Entries[i]. e is nil where the segment is lost: that becomes a
// gap, but right behind a break, where nobody expects anything yet, it is part of the break.
func (s *Stream) take(now time.Time, r *rendition, m *playlist.Media, i int, e *entry) (Segment, bool) {
	boxes := s.cfg.Boxes != nil && s.cfg.Boxes() > 0
	patience := usualRelease
	if boxes && s.cfg.Patience != nil {
		patience = s.cfg.Patience()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	listed, sequence := m.Entries[i], m.Sequence+uint64(i)
	r.next = sequence + 1
	if e == nil && (!r.started || r.broken) {
		r.broken = r.broken || listed.Discontinuity
		return Segment{}, false
	}
	number := r.end()
	if !r.started {
		number = max(sequence, s.floor.Number)
		r.first, r.discontinuities = number, max(m.DiscontinuitySequence, s.floor.Discontinuity)
	}
	if e == nil {
		e = gap(listed, number)
	}
	e.Listed.Discontinuity = listed.Discontinuity || r.started && (r.broken || r.ended)
	if number != sequence {
		e.Listed.Keys = withIVs(e.Listed.Keys, sequence)
	}
	e.Complete = now
	e.Header = m.Header
	if n := len(r.entries); n > 0 && !e.Listed.Discontinuity {
		e.Header = r.entries[n-1].Header // one run of an encoder has one header; a half-written playlist has half of it
	}
	e.Origin.Epoch, e.Origin.Sequence, e.Origin.URI, e.Origin.Range = r.epoch, sequence, listed.URI, listed.Range
	r.started, r.broken = true, false
	r.append(e, len(m.Entries), m.Sequence > r.epochFirst)
	e.version = s.changed()
	e.TTL = s.ttl(r, m)
	s.await(now, r, e, boxes, patience)
	if e.Listed.Gap {
		return Segment{}, false
	}
	for _, path := range e.Needs {
		s.files[path].refs++ // its rendition holds it, too
	}
	held := s.hold(e.Path, e.Digest, e.Size, false)
	if expires := e.Complete.Add(e.TTL); expires.After(held.expires) {
		held.expires = expires
	}
	return s.segment(e), true
}

// gap stands for a segment that is lost. No file is behind its URI; players know by the tag,
// or skip it when they do not get it.
func gap(listed playlist.Entry, number uint64) *entry {
	listed.Gap, listed.URI = true, fmt.Sprintf("gap/%d", number)
	listed.Range, listed.Map, listed.Keys = nil, nil, nil
	return &entry{Listed: listed}
}

// usualRelease is how many target durations an entry waits for a box, and maxRelease the longest that it
// does where nobody said otherwise. Who watches plays three of them behind the newest segment, and a delay
// that stays the same delays nobody.
const (
	usualRelease = 0.5
	maxRelease   = 2 * time.Second
)

// await decides until when an entry waits for a box, where there are boxes.
func (s *Stream) await(now time.Time, r *rendition, e *entry, boxes bool, patience float64) {
	e.deadline = now
	if e.Listed.Gap || !boxes {
		e.released = true
		return
	}
	wait := time.Duration(patience * float64(r.targetDuration) * float64(time.Second))
	if patience <= usualRelease {
		wait = min(wait, maxRelease)
	}
	e.deadline = now.Add(wait)
	s.pending[e.Path] = append(s.pending[e.Path], e)
}

// finish ends the reading of a listing of which everything was taken.
func (s *Stream) finish(now time.Time, r *rendition, m *playlist.Media) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r.listFirst = m.Sequence
	s.forgetAssets(r, m)
	if m.Sequence+uint64(len(m.Entries)) >= r.next {
		target := r.target
		if r.resize(len(m.Entries), m.Sequence > r.epochFirst); r.target != target {
			s.changed()
		}
	}
	if !m.Ended {
		r.live = true
		return
	}
	if !r.ended && r.started && m.Sequence+uint64(len(m.Entries)) >= r.next {
		r.ended = true
		r.endAt = now
		if r.live {
			// An encoder that is restarted says that it ended, too. Who is at the live edge has
			// so much to play, and does not stop if it is back by then.
			r.endAt = now.Add(3 * time.Duration(r.targetDuration) * time.Second)
		}
		s.changed()
		s.log.Info("the encoder ended the rendition", "rendition", r.name)
	}
}

// withIVs writes the initialisation vector into keys that leave it to the sequence number
// (RFC 8216 section 5.2), for that number is the encoder's and not ours.
func withIVs(keys []playlist.Attributes, sequence uint64) []playlist.Attributes {
	out := slices.Clone(keys)
	for i, key := range out {
		method, _ := key.Get("METHOD")
		format, ok := key.Get("KEYFORMAT")
		_, has := key.Get("IV")
		if !has && (method == "AES-128" || method == "SAMPLE-AES") && (!ok || format == "identity") {
			out[i] = key.With("IV", fmt.Sprintf("0x%032X", sequence))
		}
	}
	return out
}
