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

// A viewer that asks for the same bytes again within repeatWindow did not get them from the box
// that it was sent to: players wait up to ten seconds for a first byte.
//
// Address and player do not name a viewer: a family, a campus or a carrier may share them, and
// each of their viewers asks for the same once. How many they are shows in how often they asked
// for other files of late; only requests beyond that are repeats. Else ten viewers of one household
// looked like one who fails ten times, and the origin served eight of them.
const (
	repeatWindow  = 30 * time.Second
	shunFor       = 30 * time.Second // for which a household is not sent to a box that failed it, if another one has the file
	maxHouseholds = 50_000           // remembered in one half of the window; more are forgotten early
	maxAsks       = 32               // files of one household that are remembered
	maxSent       = 64               // answers to one request that are remembered
	maxShunned    = 8
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
	asks    []ask // the files asked for, in the order of their first requests
	shunned []shunned
}

// ask is one request, made once or more often.
type ask struct {
	request uint64
	first   time.Time
	sent    []id.BoxID // where it was answered to, oldest first; "": the origin
}

type shunned struct {
	box   id.BoxID
	until time.Time
}

// request is who asks for what.
type request struct {
	household, request uint64
}

var seed = maphash.MakeSeed()

type (
	householdKey struct {
		viewer netip.Addr
		agent  string
	}
	requestKey struct {
		method, span string
		path         id.Path
	}
)

func requestOf(viewer netip.Addr, r *http.Request, path id.Path) request {
	return request{
		household: maphash.Comparable(seed, householdKey{viewer, r.UserAgent()}),
		request:   maphash.Comparable(seed, requestKey{r.Method, r.Header.Get("Range"), path}),
	}
}

// past is what earlier requests say of a request.
type past struct {
	sent    []id.BoxID // where the household was sent with the same request lately, oldest first
	again   int        // how many of its requests, this one included, are repeats
	alone   bool       // the household seems to be one viewer
	shunned []id.BoxID // boxes that failed it lately
}

// failed returns the boxes that the viewer must have been sent to in vain: the last one, or where
// several viewers ask, any of those that they were sent to.
func (p past) failed() []id.BoxID {
	switch {
	case p.again <= 0 || len(p.sent) == 0:
		return nil
	case p.alone:
		return p.sent[len(p.sent)-1:]
	}
	return p.sent
}

// ask looks up what is known of a request.
func (t *households) ask(r request, now time.Time) past {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.household(r.household, now)
	viewers := h.viewers(r.request, now)
	p := past{alone: viewers == 1}
	if a := h.find(r.request, now); a != nil {
		p.sent = slices.Clone(a.sent)
		p.again = len(a.sent) - (viewers - 1)
	}
	for _, s := range h.shunned {
		if now.Before(s.until) {
			p.shunned = append(p.shunned, s.box)
		}
	}
	return p
}

// answered notes where a request was sent, "" for the origin, and which boxes it shows to have
// failed.
func (t *households) answered(r request, to id.BoxID, failed []id.BoxID, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.household(r.household, now)
	a := h.find(r.request, now)
	if a == nil {
		if len(h.asks) == maxAsks {
			h.asks = slices.Delete(h.asks, 0, 1)
		}
		h.asks = append(h.asks, ask{request: r.request, first: now})
		a = &h.asks[len(h.asks)-1]
	}
	if len(a.sent) < maxSent {
		a.sent = append(a.sent, to)
	}
	for _, box := range failed {
		if box != "" {
			h.shun(box, now)
		}
	}
}

// household returns the household, the old generation's where the new one has it not yet.
func (t *households) household(key uint64, now time.Time) *household {
	if t.now == nil || now.Sub(t.turned) >= repeatWindow || len(t.now) >= maxHouseholds {
		t.old, t.now = t.now, map[uint64]*household{}
		if now.Sub(t.turned) >= 2*repeatWindow {
			t.old = nil
		}
		t.turned = now
	}
	h := t.now[key]
	if h == nil {
		if h = t.old[key]; h == nil {
			h = &household{}
		}
		t.now[key] = h
	}
	return h
}

func (h *household) find(request uint64, now time.Time) *ask {
	for i := range h.asks {
		if a := &h.asks[i]; a.request == request {
			if now.Sub(a.first) < repeatWindow {
				return a
			}
			h.asks = slices.Delete(h.asks, i, i+1)
			return nil
		}
	}
	return nil
}

// viewers is how many the household seems to have: as often as it asked for the usual one of the
// other files. One that fails changes no median.
func (h *household) viewers(other uint64, now time.Time) int {
	var counts [usualAsks]int
	n := 0
	for _, a := range slices.Backward(h.asks) {
		if n < usualAsks && a.request != other && now.Sub(a.first) < repeatWindow {
			counts[n] = len(a.sent)
			n++
		}
	}
	if n == 0 {
		return 1
	}
	slices.Sort(counts[:n])
	return max(counts[n/2], 1)
}

func (h *household) shun(box id.BoxID, now time.Time) {
	h.shunned = slices.DeleteFunc(h.shunned, func(s shunned) bool { return s.box == box || !now.Before(s.until) })
	if len(h.shunned) == maxShunned {
		h.shunned = slices.Delete(h.shunned, 0, 1)
	}
	h.shunned = append(h.shunned, shunned{box, now.Add(shunFor)})
}

// choose returns the holder that the request was sent to least; of several the best that is not
// shunned.
func choose(holders []Holder, p past) Holder {
	if len(p.sent) == 0 && len(p.shunned) == 0 {
		return holders[0]
	}
	rank := func(h Holder) int {
		n := 0
		for _, box := range p.sent {
			if box == h.Box {
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
