package stream

import (
	"time"

	"dandelion/pkg/id"
)

// Status is what people want to know of a stream.
type Status struct {
	Name       id.StreamName     `json:"name"`
	Renditions []RenditionStatus `json:"renditions"`
	Ended      bool              `json:"ended"`   // the encoder said so, in all renditions
	Problem    string            `json:"problem"` // one sentence; "" when all is well
}

// RenditionStatus is one rendition of it, as viewers see it.
type RenditionStatus struct {
	Name           id.RenditionName `json:"name"`
	MediaSequence  uint64           `json:"media_sequence"`
	Entries        int              `json:"entries"`
	TargetDuration int              `json:"target_duration"` // seconds
	LastSegment    time.Time        `json:"last_segment"`    // when the source had it whole
	BitRate        int64            `json:"bitrate"`         // bits per second, measured over the playlist
	Longest        time.Duration    `json:"-"`               // segment of the playlist
	TTL            time.Duration    `json:"-"`               // of the last segment on boxes
}

// Status returns the state of the stream now.
func (s *Stream) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Status{Name: s.cfg.Name, Renditions: []RenditionStatus{}, Ended: true}
	for _, r := range s.renditions {
		if !r.listed {
			continue
		}
		one := RenditionStatus{
			Name: r.name, MediaSequence: r.number(r.start), Entries: r.shown - r.start, TargetDuration: r.targetDuration,
		}
		if n := len(r.entries); n > 0 {
			one.LastSegment, one.TTL = r.entries[n-1].Complete, r.entries[n-1].TTL
		}
		var bits, seconds float64
		for _, e := range r.entries[r.start:r.shown] {
			if !e.Listed.Gap {
				bits += 8 * float64(e.Size)
				seconds += e.Listed.Duration.Value.Seconds()
				one.Longest = max(one.Longest, e.Listed.Duration.Value)
			}
		}
		if seconds > 0 {
			one.BitRate = int64(bits / seconds)
		}
		st.Ended = st.Ended && r.ended
		st.Renditions = append(st.Renditions, one)
	}
	st.Ended = st.Ended && len(st.Renditions) > 0
	for _, problem := range s.problems {
		if problem != "" {
			st.Problem = problem
			break
		}
	}
	return st
}
