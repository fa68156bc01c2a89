package front

import (
	"hash/maphash"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	"dandelion/pkg/id"
)

// A viewer that asks for the same bytes again within repeatWindow did not get them from the
// box that it was sent to (design.md section 3).
const (
	repeatWindow = 10 * time.Second
	maxRepeats   = 100_000 // requests that are remembered in one half of the window; more are forgotten early
)

// repeats remembers which boxes a request was sent to, in two generations so that forgetting
// costs nothing. The zero value is ready.
type repeats struct {
	mu       sync.Mutex
	now, old map[uint64][]id.BoxID
	turned   time.Time
}

var repeatSeed = maphash.MakeSeed()

type repeatKey struct {
	viewer              netip.Addr
	method, agent, span string
	path                id.Path
}

// requestKey identifies a request for its repeat: client address, user agent, path and range.
func requestKey(viewer netip.Addr, r *http.Request, path id.Path) uint64 {
	return maphash.Comparable(repeatSeed, repeatKey{viewer, r.Method, r.UserAgent(), r.Header.Get("Range"), path})
}

// given returns the boxes that the request was sent to lately.
func (t *repeats) given(key uint64, now time.Time) []id.BoxID {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.turn(now)
	return slices.Concat(t.old[key], t.now[key])
}

func (t *repeats) add(key uint64, box id.BoxID, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.turn(now)
	t.now[key] = append(t.now[key], box)
}

func (t *repeats) turn(now time.Time) {
	if t.now == nil || now.Sub(t.turned) >= repeatWindow || len(t.now) >= maxRepeats {
		t.old, t.now = t.now, map[uint64][]id.BoxID{}
		if now.Sub(t.turned) >= 2*repeatWindow {
			t.old = nil
		}
		t.turned = now
	}
}
