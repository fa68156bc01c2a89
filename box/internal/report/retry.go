package report

import (
	"math/rand/v2"
	"time"
)

const (
	// returnWindow is the longest time over which the boxes of an entrance that was away come back.
	returnWindow = 4 * time.Second
	// steady is how long a session must last before its end counts as the first one.
	steady = 10 * time.Second
	// shortFree is how many sessions in a row may be shorter before the waits grow: an entrance may
	// be restarted twice.
	shortFree = 2
	// longestShift bounds that growth: at an entrance that answers and keeps no session a box
	// waits up to 4 windows.
	longestShift = 2
)

// retry decides when a link dials again. Not for concurrent use.
//
// An entrance that stops, or whose network fails, loses all its boxes in one moment. They must be
// back within 5 s of its return, however long it was away, and must not come at once. So the first
// attempt after a session comes at any moment of a window, and the next ones about a window apart,
// with jitter: of n boxes no more than about n × 0.35 dial in any second of a window of 4 s. The
// window is the report interval, since an entrance that bears the reports bears as many dials, but
// never longer than returnWindow. A box pays for an entrance that is away with one dial for each
// window.
type retry struct {
	window time.Duration
	second bool // another link to the same entrance comes first
	short  int  // sessions in a row that did not last
}

func newRetry(interval time.Duration) *retry { return &retry{window: min(interval, returnWindow)} }

// unreachable returns the wait after a dial that failed: 3/4 to 9/8 of a window, so that no box
// waits longer than 4.5 s.
func (r *retry) unreachable() time.Duration {
	wait := r.window*3/4 + rand.N(r.window*3/8+1)
	if r.second {
		wait *= 2
	}
	return wait
}

// ended returns the wait after a session that was up for so long; 0: it was never accepted.
func (r *retry) ended(lasted time.Duration) time.Duration {
	if lasted > 0 {
		r.second = false
	}
	if lasted >= steady {
		r.short = 0
	} else {
		r.short = min(r.short+1, shortFree+longestShift)
	}
	return rand.N(r.window<<max(r.short-shortFree, 0) + 1)
}

// turn returns for how long the session of another link to the same entrance must be away before
// this link tries: that one's first attempt is over by then.
func (r *retry) turn() time.Duration {
	r.second = true
	return r.window + rand.N(r.window+1)
}
