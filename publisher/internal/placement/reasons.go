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

// tally counts by reason. The zero value is ready; any goroutine.
type tally struct {
	mu sync.Mutex
	n  map[Reason]int64
}

func (t *tally) add(r Reason) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.n == nil {
		t.n = map[Reason]int64{}
	}
	t.n[r]++
}

// all returns the counts, with a zero for each reason that has not occurred.
func (t *tally) all() map[Reason]int64 {
	all := map[Reason]int64{
		ReasonTooSlow: 0, ReasonClosed: 0, ReasonSource: 0, ReasonLate: 0, ReasonOverflow: 0, ReasonFailing: 0, ReasonRefused: 0,
	}
	for _, k := range wire.Kinds() {
		all[ReasonRefused+"_"+Reason(k)] = 0
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for r, n := range t.n {
		all[r] = n
	}
	return all
}
