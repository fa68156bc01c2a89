package placement

import (
	"errors"
	"sync"

	"dandelion/pkg/wire"
	"dandelion/publisher/internal/push"
)

// Reason says why a box did not get a file that it was chosen for; another box is asked then. The
// list is append-only: it labels a metric.
type Reason string

const (
	ReasonTooSlow  Reason = "too_slow" // the push took longer than the segment may wait
	ReasonClosed   Reason = "closed"   // the session ended in the middle, or there was none
	ReasonSource   Reason = "source"   // the publisher's own file could not be read
	ReasonLate     Reason = "late"     // it waited for the box for longer than the segment may wait
	ReasonOverflow Reason = "overflow" // too many segments waited for the box
	ReasonFailing  Reason = "failing"  // the box went down, or failed at another file, while it waited
	ReasonRelay    Reason = "relay"    // the box that should have passed it on could not
	ReasonLagging  Reason = "lagging"  // it was not passed on in time
	ReasonRefused  Reason = "refused"  // with "_" and the refusal's kind, where that is known
)

func reasonOf(err error) Reason {
	var refusal *push.Refusal
	switch {
	case errors.As(err, &refusal):
		if refusal.Kind.Known() {
			return ReasonRefused + "_" + Reason(refusal.Kind)
		}
		return ReasonRefused
	case errors.Is(err, push.ErrSource):
		return ReasonSource
	case errors.Is(err, errTooSlow):
		return ReasonTooSlow
	}
	return ReasonClosed
}

// reasons lists them all.
func reasons() []Reason {
	all := []Reason{ReasonTooSlow, ReasonClosed, ReasonSource, ReasonLate, ReasonOverflow, ReasonFailing, ReasonRelay, ReasonLagging, ReasonRefused}
	for _, k := range wire.Kinds() {
		all = append(all, ReasonRefused+"_"+Reason(k))
	}
	return all
}

// tally counts by label. The zero value is ready; any goroutine.
type tally[K comparable] struct {
	mu sync.Mutex
	n  map[K]int64
}

func (t *tally[K]) add(k K) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.n == nil {
		t.n = map[K]int64{}
	}
	t.n[k]++
}

// all returns the counts of the labels, also where they are zero.
func (t *tally[K]) all(labels []K) map[K]int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := make(map[K]int64, len(labels))
	for _, k := range labels {
		all[k] = t.n[k]
	}
	return all
}
