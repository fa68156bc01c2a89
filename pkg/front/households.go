package front

import (
	"hash/maphash"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"dandelion/pkg/id"
)

// A viewer that asks for the same bytes again within repeatWindow did not get them from the box
// that it was sent to: players wait up to ten seconds for a first byte.
//
// Address and player do not name a viewer: a family, a campus or a carrier may share them, and
// each of their viewers asks for the same once. How many they are shows in how often they asked
// for other files of the rendition of late; only requests beyond that are repeats. Else ten viewers of
// one household looked like one who fails ten times, and the origin served eight of them. While
// nobody knows how many they are, as when all come at once, it serves a third.
const (
	repeatWindow  = 30 * time.Second
	shunFor       = 30 * time.Second // for which a household is not sent to a box that failed it, if another one has the file
	maxHouseholds = 50_000           // remembered in one half of the window; more are forgotten early
	maxAsks       = 128              // files of one household that are remembered
	maxSent       = 64               // answers to one request that are remembered
	maxShunned    = 8
	maxDoubted    = 4
	usualAsks     = 16 // of the latest files that say how many viewers a household has
)

// households remembers what viewers asked for lately. The zero value is ready; any goroutine.
type households struct {
	mu     sync.Mutex
	now    map[uint64]*household
	old    map[uint64]*household
	turned time.Time
}

// household is the viewers who share an address and a player.
type household struct {
	asks    []ask // in the order of their first requests
	shunned []shunned
}

// ask is one request, made once or more often.
type ask struct {
	request
	first time.Time
	sent  []id.BoxID // where it was answered to, oldest first; "": the origin
	bytes int64      // that it asks for
}

type shunned struct {
	box   id.BoxID
	until time.Time
}

// request is who asks for what.
type request struct {
	household uint64
	what      uint64
	group     uint64 // the files that each viewer of one rendition asks for in turn
}

var seed = maphash.MakeSeed()

type (
	householdKey struct {
		viewer netip.Addr
		agent  string
	}
	whatKey struct {
		method, span string
		path         id.Path
	}
)

func requestOf(viewer netip.Addr, r *http.Request, path id.Path) request {
	return request{
		household: maphash.Comparable(seed, householdKey{viewer, r.UserAgent()}),
		what:      maphash.Comparable(seed, whatKey{r.Method, r.Header.Get("Range"), path}),
		group:     maphash.String(seed, groupOf(path)),
	}
}

// groupOf is the rendition of a segment, the directory of another file.
func groupOf(path id.Path) string {
	dir := string(path[:strings.LastIndexByte(string(path), '/')])
	if path.ContentAddressed() {
		dir = dir[:strings.LastIndexByte(dir, '/')]
	}
	return dir
}

// past is what earlier requests say of a request.
type past struct {
	tried   []id.BoxID // where the household was sent with the same request since the origin served it
	again   int        // how many of its requests, this one included, are repeats
	alone   bool       // the household seems to be one viewer
	known   bool       // it asked for other files of the rendition before
	bytes   int64      // that the request asks for
	shunned []id.BoxID // boxes that failed it lately
	place   int        // of the viewer among those who share address and player
}

// seat names the viewer to the Audience.
func (r request) seat(p past) uint64 { return r.household + uint64(p.place) }

// repeats reports whether the request is one more for what a box was to send already.
func (p past) repeats() bool { return p.again > 0 && p.known && len(p.tried) > 0 }

// failed returns the box that the viewer must have been sent to in vain; "" where that is not
// certain.
func (p past) failed() id.BoxID {
	if p.again <= 0 || !p.alone || !p.known || len(p.tried) == 0 {
		return ""
	}
	return p.tried[len(p.tried)-1]
}

// doubted returns the boxes that are worth a look: where several viewers ask, any of the latest may
// have failed one of them.
func (p past) doubted() []id.BoxID {
	if p.again <= 0 || p.alone || !p.known {
		return nil
	}
	boxes := slices.Clone(p.tried[max(len(p.tried)-maxDoubted, 0):])
	slices.Sort(boxes)
	return slices.Compact(boxes)
}

// avoid returns the boxes that must not be named again.
func (p past) avoid() []id.BoxID {
	if p.again <= 0 || !p.alone {
		return nil
	}
	return p.tried
}

// origin reports whether it is the origin's turn: two boxes failed.
func (p past) origin() bool { return p.again >= 2 && len(p.tried) >= 2 }

// ask looks up what is known of a request.
func (t *households) ask(r request, now time.Time) past {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.turn(now)
	h := t.now[r.household]
	if h == nil {
		h = t.old[r.household]
	}
	if h == nil {
		return past{alone: true}
	}
	viewers, known := h.viewers(r, now)
	p := past{alone: viewers == 1, known: known}
	if a := h.find(r, now); a != nil {
		origin := len(a.sent) - 1
		for origin >= 0 && a.sent[origin] != "" {
			origin--
		}
		p.tried = slices.Clone(a.sent[origin+1:])
		p.again = len(a.sent) - (viewers - 1)
		p.bytes = a.bytes
		p.place = min(len(a.sent), viewers-1)
	}
	for _, s := range h.shunned {
		if now.Before(s.until) {
			p.shunned = append(p.shunned, s.box)
		}
	}
	return p
}

// answered notes where a request for so many bytes was sent, "" for the origin, and the box that it
// shows to have failed, "" for none.
func (t *households) answered(r request, to, failed id.BoxID, bytes int64, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.turn(now)
	h := t.household(r.household)
	a := h.find(r, now)
	if a == nil {
		if len(h.asks) == maxAsks {
			h.asks = slices.Delete(h.asks, 0, 1)
		}
		h.asks = append(h.asks, ask{request: r, first: now})
		a = &h.asks[len(h.asks)-1]
	}
	a.bytes = bytes
	if len(a.sent) < maxSent {
		a.sent = append(a.sent, to)
	}
	if failed != "" {
		h.shun(failed, now)
	}
}

// takeBack forgets that a request was sent to a box that did not serve it because it was over its
// limit, and returns the bytes that it was sent there for; was is false where it was not.
func (t *households) takeBack(r request, box id.BoxID, now time.Time) (bytes int64, was bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.now[r.household]
	if h == nil {
		h = t.old[r.household]
	}
	if h == nil {
		return 0, false
	}
	a := h.find(r, now)
	if a == nil {
		return 0, false
	}
	for i := len(a.sent) - 1; i >= 0; i-- {
		if a.sent[i] == box {
			a.sent = slices.Delete(a.sent, i, i+1)
			return a.bytes, true
		}
	}
	return 0, false
}

// turn begins a new generation when the old one is over.
func (t *households) turn(now time.Time) {
	if t.now != nil && now.Sub(t.turned) < repeatWindow && len(t.now) < maxHouseholds {
		return
	}
	t.old, t.now = t.now, map[uint64]*household{}
	if now.Sub(t.turned) >= 2*repeatWindow {
		t.old = nil
	}
	t.turned = now
}

// household returns the household, made or taken over into the new generation where it has to be.
func (t *households) household(key uint64) *household {
	h := t.now[key]
	if h == nil {
		if h = t.old[key]; h == nil {
			h = &household{}
		}
		t.now[key] = h
	}
	return h
}

func (h *household) find(r request, now time.Time) *ask {
	for i := range h.asks {
		if a := &h.asks[i]; a.what == r.what && now.Sub(a.first) < repeatWindow {
			return a
		}
	}
	return nil
}

// viewers is how many the household seems to have: as often as it asked for the usual one of the
// other files of the rendition. One that fails changes no median. known is false where it asked for
// none.
func (h *household) viewers(r request, now time.Time) (n int, known bool) {
	var counts [usualAsks]int
	for _, a := range slices.Backward(h.asks) {
		if n < usualAsks && a.group == r.group && a.what != r.what && now.Sub(a.first) < repeatWindow {
			counts[n] = len(a.sent)
			n++
		}
	}
	if n == 0 {
		return 1, false
	}
	slices.Sort(counts[:n])
	return max(counts[n/2], 1), true
}

func (h *household) shun(box id.BoxID, now time.Time) {
	h.shunned = slices.DeleteFunc(h.shunned, func(s shunned) bool { return s.box == box || !now.Before(s.until) })
	if len(h.shunned) == maxShunned {
		h.shunned = slices.Delete(h.shunned, 0, 1)
	}
	h.shunned = append(h.shunned, shunned{box, now.Add(shunFor)})
}

// choose returns the best holder that is not shunned; of a repeat the one that it was sent to least.
func choose(holders []Holder, p past) Holder {
	if p.again <= 0 && len(p.shunned) == 0 {
		return holders[0]
	}
	rank := func(h Holder) int {
		n := 0
		for _, box := range p.tried {
			if box == h.Box && p.again > 0 {
				n += 2
			}
		}
		if slices.Contains(p.shunned, h.Box) {
			n++
		}
		return n
	}
	best := holders[0]
	for _, h := range holders[1:] {
		if rank(h) < rank(best) {
			best = h
		}
	}
	return best
}
