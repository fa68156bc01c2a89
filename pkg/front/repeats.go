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
//
// Address and player do not name a viewer: all of a household or a campus may share them. So the
// same request over another connection is sent to another box, which helps either way, but only
// over the same connection is it a failure that leads to the origin in the end. Else ten viewers
// of one household looked like one who fails ten times, and the origin would serve eight of them.
const (
	repeatWindow = 10 * time.Second
	maxRepeats   = 100_000 // requests that are remembered in one half of the window; more are forgotten early
	maxSent      = 16      // answers to one request that are remembered in one half of the window
)

// repeats remembers which boxes a request was sent to, in two generations so that forgetting
// costs nothing. The zero value is ready.
type repeats struct {
	mu       sync.Mutex
	now, old map[uint64][]sent
	turned   time.Time
}

// sent is one answer to a request.
type sent struct {
	box  id.BoxID
	conn uint16
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

// connection tells the viewer's connections apart by their port. It is 0 for all behind a proxy,
// whose connections are not theirs.
func connection(viewer netip.Addr, r *http.Request) uint16 {
	remote, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil || remote.Addr().Unmap().WithZone("") != viewer {
		return 0
	}
	return remote.Port()
}

// failed returns the boxes that the same connection was sent to.
func failed(seen []sent, conn uint16) []id.BoxID {
	var boxes []id.BoxID
	for _, s := range seen {
		if s.conn == conn {
			boxes = append(boxes, s.box)
		}
	}
	return boxes
}

// leastSent returns the holder that the request was sent to least, of several the best.
func leastSent(holders []Holder, seen []sent) Holder {
	best, least := holders[0], len(seen)+1
	for _, h := range holders {
		n := 0
		for _, s := range seen {
			if s.box == h.Box {
				n++
			}
		}
		if n < least {
			best, least = h, n
		}
	}
	return best
}

// given returns what the request was answered with lately.
func (t *repeats) given(key uint64, now time.Time) []sent {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.turn(now)
	return slices.Concat(t.old[key], t.now[key])
}

func (t *repeats) add(key uint64, s sent, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.turn(now)
	list := t.now[key]
	if len(list) == maxSent {
		list = list[:copy(list, list[1:])]
	}
	t.now[key] = append(list, s)
}

func (t *repeats) turn(now time.Time) {
	if t.now == nil || now.Sub(t.turned) >= repeatWindow || len(t.now) >= maxRepeats {
		t.old, t.now = t.now, map[uint64][]sent{}
		if now.Sub(t.turned) >= 2*repeatWindow {
			t.old = nil
		}
		t.turned = now
	}
}
