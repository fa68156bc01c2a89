package placement

import (
	"errors"
	"time"

	"dandelion/pkg/id"
	"dandelion/pkg/wire"
	"dandelion/publisher/internal/push"
)

// deniedFor is for how long a box is not asked again to take a stream that it does not take: its owner may change
// their mind, but not from one segment to the next.
const deniedFor = 5 * time.Minute

// isDenied reports whether a box does not want a file because of whose it is. That is its right, and says nothing
// about how good it is.
func isDenied(err error) bool {
	var refusal *push.Refusal
	return errors.As(err, &refusal) && refusal.Kind == wire.KindDenied
}

func streamOf(path id.Path) id.StreamName {
	seg, _ := id.ParseSegmentPath(path)
	return seg.Stream
}

// deny notes that the box does not take a stream. The caller holds the lock.
func (p *Placement) deny(m *member, stream id.StreamName) {
	if m.denies(stream, time.Now()) {
		return
	}
	if m.denied == nil {
		m.denied = map[id.StreamName]time.Time{}
	}
	m.denied[stream] = time.Now()
	p.log.Info("a box does not take a stream; it is not asked to for a while", "box", m.id, "stream", stream, "for", deniedFor)
}

// denies reports whether the box does not take a stream.
func (m *member) denies(stream id.StreamName, now time.Time) bool {
	at, denied := m.denied[stream]
	return denied && now.Sub(at) < deniedFor
}

// except adds to a set the boxes that do not take the segment's stream. The caller holds the lock.
func (p *Placement) except(taken map[id.BoxID]bool, j *job) map[id.BoxID]bool {
	stream, now := streamOf(j.Path), time.Now()
	for box, m := range p.members {
		if m.denies(stream, now) {
			taken[box] = true
		}
	}
	return taken
}
