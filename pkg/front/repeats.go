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
// box that it was sent to.
//
// Address and player do not name a viewer: all of a household or a campus may share them. So as
// many requests as viewers seem to share them are only spread over the holders; what exceeds that,
// or comes over the same connection, is a failure and leads to the origin in the end. Else ten
// viewers of one household looked like one who fails ten times, and the origin served eight.
const (
	repeatWindow = 10 * time.Second
	maxRecent    = 100_000 // keys that are remembered in one half of the window; more are forgotten early
	maxSent      = 16      // answers to one request that are remembered in one half of the window
)

// repeats remembers what viewers asked for lately. The zero value is ready; any goroutine.
type repeats struct {
	mu      sync.Mutex
	sent    recent[[]sent] // by request
	kept    recent[bool]   // by connection that was seen; true: more than once, and counted
	viewers recent[int]    // by household: kept connections
}

// sent is one answer to a request.
type sent struct {
	box  id.BoxID
	conn uint16
}

// asker is who asks, as far as a request tells.
type asker struct {
	household uint64 // address and player
	request   uint64 // the household's for these bytes
	conn      uint16 // port of the connection; 0 behind a proxy, whose connections are not the viewer's
}

var seed = maphash.MakeSeed()

type (
	householdKey struct {
		viewer netip.Addr
		agent  string
	}
	requestKey struct {
		household    uint64
		method, span string
		path         id.Path
	}
	connKey struct {
		household uint64
		conn      uint16
	}
)

func whoAsks(viewer netip.Addr, r *http.Request, path id.Path) asker {
	a := asker{household: maphash.Comparable(seed, householdKey{viewer, r.UserAgent()})}
	a.request = maphash.Comparable(seed, requestKey{a.household, r.Method, r.Header.Get("Range"), path})
	if remote, err := netip.ParseAddrPort(r.RemoteAddr); err == nil && remote.Addr().Unmap().WithZone("") == viewer {
		a.conn = remote.Port()
	}
	return a
}

// here notes that a viewer asks for anything. It returns how many viewers the household seems to
// have, at least 1: connections over which it asked more than once. Players that open one for
// each request are not told apart.
func (t *repeats) here(a asker, now time.Time) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.kept.turn(now)
	t.viewers.turn(now)
	if a.conn != 0 {
		key := maphash.Comparable(seed, connKey{a.household, a.conn})
		counted, seen := t.kept.now[key]
		_, seenBefore := t.kept.old[key]
		t.kept.now[key] = seen || seenBefore
		if (seen || seenBefore) && !counted {
			t.viewers.now[a.household]++
		}
	}
	return max(t.viewers.now[a.household], t.viewers.old[a.household], 1)
}

// given returns what the request was answered with lately, oldest first.
func (t *repeats) given(a asker, now time.Time) []sent {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sent.turn(now)
	return slices.Concat(t.sent.old[a.request], t.sent.now[a.request])
}

func (t *repeats) add(a asker, box id.BoxID, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sent.turn(now)
	list := t.sent.now[a.request]
	if len(list) == maxSent {
		list = list[1:]
	}
	t.sent.now[a.request] = append(list, sent{box, a.conn})
}

// failed returns the boxes that the same connection was sent to.
func (a asker) failed(seen []sent) []id.BoxID {
	var boxes []id.BoxID
	for _, s := range seen {
		if s.conn == a.conn {
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

// recent is a map in two generations, so that forgetting costs nothing.
type recent[V any] struct {
	now, old map[uint64]V
	turned   time.Time
}

func (m *recent[V]) turn(now time.Time) {
	if m.now != nil && now.Sub(m.turned) < repeatWindow && len(m.now) < maxRecent {
		return
	}
	m.old, m.now = m.now, map[uint64]V{}
	if now.Sub(m.turned) >= 2*repeatWindow {
		m.old = nil
	}
	m.turned = now
}
