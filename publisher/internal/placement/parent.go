package placement

import (
	"errors"
	"maps"
	"time"

	"dandelion/pkg/id"
)

// When a box is not asked to pass segments on, although it says that it can.
const (
	mostVain     = 2                // boxes in a row that did not get of it what they should, each within cannotFor of the one before: then it is not asked…
	leastUnfit   = 15 * time.Second // …for so long, doubling each time…
	longestUnfit = 8 * time.Minute  // …to this…
	fitAgain     = 10 * time.Minute // …until this went well
)

// parenthood is how well a box passes segments on. What it is blamed for may have been the other box's fault,
// so one failure only parts these two; an honest box soon has a success between two failures. It is guarded by
// Placement.mu.
type parenthood struct {
	vain  int       // since the last copy that came
	last  time.Time // of them
	unfit time.Time // until then
	pause time.Duration
	why   Reason
}

// passed notes that a box got in time what this one passed on.
func (h *parenthood) passed() { h.vain = 0 }

// failed notes that a box did not, and reports whether that makes this one unfit.
func (h *parenthood) failed(why Reason, now time.Time) bool {
	if now.Sub(h.last) > cannotFor {
		h.vain = 0
	}
	h.vain, h.last = h.vain+1, now
	if h.vain < mostVain || now.Before(h.unfit) {
		return false
	}
	if now.Sub(h.unfit) > fitAgain {
		h.pause = 0
	}
	h.pause = min(max(2*h.pause, leastUnfit), longestUnfit)
	h.vain, h.why, h.unfit = 0, why, now.Add(h.pause)
	return true
}

// unfitNow says why the box is not asked to pass segments on; "" if it is.
func (h *parenthood) unfitNow(now time.Time) Reason {
	if now.Before(h.unfit) {
		return h.why
	}
	return ""
}

// blame notes that a box passed a segment on in vain: it is not asked again to pass on to that one, and to
// nobody when that is no exception. Where several boxes failed at the same one, that one is to blame. The
// caller holds the lock.
func (p *Placement) blame(from, to id.BoxID, why Reason) {
	parent, child := p.members[from], p.members[to]
	if parent == nil || child == nil {
		return
	}
	now, apart := time.Now(), p.apart(from, to)
	maps.DeleteFunc(parent.cannot, func(_ id.BoxID, at time.Time) bool { return now.Sub(at) >= cannotFor }) // boxes come and go
	parent.cannot[to] = now
	if apart {
		return // these were under way when the first one failed
	}
	if child.missed++; child.missed > 1 {
		child.note(0, 0, errMissed)
		if child.missed > mostVain {
			return
		}
	}
	if parent.parent.failed(why, now) {
		p.log.Warn("a box does not pass on what it is given; it is not asked to for a while", "box", from, "reason", why, "for", parent.parent.pause)
	}
}

var errMissed = errors.New("it did not get what several boxes should have passed on to it")
