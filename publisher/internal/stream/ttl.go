package stream

import (
	"fmt"
	"time"

	"dandelion/pkg/playlist"
	"dandelion/publisher/internal/source"
)

// neededTTL is how long boxes must keep a segment at least: a viewer may ask for it as long as
// it is listed and as long again (RFC 8216 section 6.2.2), and while it lasts. The window is
// what the encoder lists, what viewers see, or three target durations, whichever is longest.
func neededTTL(m *playlist.Media, shown time.Duration) (ttl, window, longest time.Duration) {
	for i := range m.Entries {
		d := m.Entries[i].Duration.Value
		window += d
		longest = max(longest, d)
	}
	target := time.Duration(max(m.TargetDuration, 1)) * time.Second
	window = max(window, shown, 3*target)
	ttl = 2*window + max(longest, target)
	return (ttl + time.Second - 1).Truncate(time.Second), window, longest
}

// ttlFits reports whether the configured TTL is long enough for what the source lists when
// the stream begins; until then nothing is published.
func (s *Stream) ttlFits(u source.Update) bool {
	if s.checked || len(u.Listings) == 0 {
		return s.checked
	}
	for _, l := range u.Listings {
		if need, window, longest := neededTTL(l.Media, 0); s.cfg.SegmentTTL > 0 && s.cfg.SegmentTTL < need {
			s.report(problemTTL, s.shortTTL(need, window, longest)+"; the stream does not start")
			return false
		}
	}
	s.setProblem(problemTTL, "")
	s.checked = true
	return true
}

// ttl is the TTL of a new segment. A window that grew beyond what the configured TTL covers
// does not stop a running stream; it is reported, and the segment gets what it needs. Called
// with mu held.
func (s *Stream) ttl(r *rendition, m *playlist.Media) time.Duration {
	need, window, longest := neededTTL(m, r.span(r.index(r.target), len(r.entries)))
	if s.cfg.SegmentTTL == 0 {
		return need
	}
	if s.cfg.SegmentTTL < need && s.problems[problemTTL] == "" {
		s.problems[problemTTL] = s.shortTTL(need, window, longest)
		s.log.Error("stream has a problem", "problem", s.problems[problemTTL])
	}
	return max(s.cfg.SegmentTTL, need)
}

func (s *Stream) shortTTL(need, window, longest time.Duration) string {
	return fmt.Sprintf("segment_ttl %v of stream %s is too short: with a window of %v and segments of up to %v it must be %v or more, or auto",
		s.cfg.SegmentTTL, s.cfg.Name, window, longest, need)
}
