package stream

import (
	"fmt"
	"time"

	"dandelion/pkg/playlist"
)

// trim forgets entries that have left the playlists long enough ago, and more of them where
// the window is too large. Called with mu held, by update only.
func (s *Stream) trim(now time.Time) {
	for _, r := range s.renditions {
		for r.leaves(now) || r.start > 0 && len(r.entries) > 2*playlist.MaxEntries {
			s.forget(r)
		}
	}
	for s.window.bytes() > s.cfg.WindowLimit {
		var oldest *rendition
		for _, r := range s.renditions {
			if r.start > 0 && (oldest == nil || r.entries[0].leftAt.Before(oldest.entries[0].leftAt)) {
				oldest = r
			}
		}
		if oldest == nil {
			s.force()
			return
		}
		s.forget(oldest)
	}
	s.problems[problemLimit] = ""
}

// forget drops the oldest entry of a rendition, which has left the playlist, and its files
// where no other entry needs them.
func (s *Stream) forget(r *rendition) {
	e := r.drop()
	if !e.Listed.Gap && !e.fileLost {
		s.release(e.Path)
	}
	for _, path := range e.Needs {
		s.release(path)
	}
}

// force makes playlists shorter than their encoder's, where even what viewers see is more
// than the window may have. What it decides is shown when it is on disk; trim then deletes
// the files.
func (s *Stream) force() {
	over := s.window.bytes() - s.cfg.WindowLimit
	for _, r := range s.renditions {
		for _, e := range r.entries[r.start:max(r.start, r.index(r.forced))] {
			over -= e.Size
		}
	}
	for over > 0 {
		var oldest *rendition
		for _, r := range s.renditions {
			at := max(r.start, r.index(r.forced))
			if r.canLeave(at, len(r.entries)) && (oldest == nil ||
				r.entries[at].Complete.Before(oldest.entries[max(oldest.start, oldest.index(oldest.forced))].Complete)) {
				oldest = r
			}
		}
		if oldest == nil {
			problem := fmt.Sprintf("window_limit of %d bytes is too small: three target durations of all renditions need %d",
				s.cfg.WindowLimit, s.cfg.WindowLimit+over)
			if s.problems[problemLimit] == "" {
				s.log.Error("stream has a problem", "problem", problem)
			}
			s.problems[problemLimit] = problem
			return
		}
		at := max(oldest.start, oldest.index(oldest.forced))
		over -= oldest.entries[at].Size
		oldest.forced = oldest.number(at) + 1
		oldest.target = max(oldest.target, oldest.forced)
		s.changed()
	}
}
