package placement

import (
	"cmp"
	"hash/maphash"
	"math"
	"net/netip"
	"slices"
	"sync"
	"time"

	"dandelion/pkg/front"
	"dandelion/pkg/geo"
	"dandelion/pkg/id"
	"dandelion/pkg/netaddr"
	"dandelion/publisher/internal/plan"
	"dandelion/publisher/internal/ranking"
)

// loadHalf is the time after which half of a viewer load is forgotten.
const loadHalf = 3 * time.Second

// joinSegments is what a viewer costs when it joins, in segments beside its seat. It begins three target
// durations before the end and loads them all at once; while it has no more than one of them, it stalls
// where that is slow. So much, forgotten by halves, keeps two segments' worth free for it over the time of one.
const joinSegments = 4

// viewerLoad is the decayed rate of bytes that a box was asked for through redirects beside what its seats
// cost: for files that are no live segments, and for viewers who join.
type viewerLoad struct {
	mu   sync.Mutex
	rate float64 // bytes/s
	at   time.Time
}

func (l *viewerLoad) add(bytes int64, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rate = l.decayed(now) + float64(bytes)*math.Ln2/loadHalf.Seconds()
	l.at = now
}

func (l *viewerLoad) get(now time.Time) float64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.decayed(now)
}

func (l *viewerLoad) decayed(now time.Time) float64 {
	return l.rate * math.Exp2(-now.Sub(l.at).Seconds()/loadHalf.Seconds())
}

// startLoad is the share of a grant from which on its load counts in the order.
const startLoad = 0.25

// mostOver is how far above its grant a box is asked by those who watch, for a moment: before all who should
// have a new segment have it. A box that cannot says so.
const mostOver = 1.2

var affinity = maphash.MakeSeed()

// Found is where a file is for a viewer.
type Found struct {
	Holders  []front.Holder // best first; the first Room have upload left for the viewer
	Room     int
	Watching bool // the viewer has a seat already
	Origin   bool // the publisher itself has upload left for it
}

// Find returns the boxes that hold the file and that the viewer may reach, best first for this
// viewer, without those that it avoids. Boxes that are down, silent or deaf are left out. Who watches keeps
// its box while that has upload for it and none that has is clearly nearer; who is new goes where a plan has room.
func (p *Placement) Find(path id.Path, digest id.Digest, asker front.Asker) Found {
	boxes := p.records.holdersFor(path, digest)
	now, rate := time.Now(), p.rate(asker.Rendition)
	seat, watching := id.BoxID(""), false
	if asker.Rendition != "" {
		seat, watching = p.cfg.Audience.Sits(asker.Rendition, asker.Viewer)
	}
	found := Found{Watching: watching, Origin: rate == 0 || p.originRoom(rate)}
	p.mu.Lock()
	defer p.mu.Unlock()
	if watching && len(asker.Avoid) == 0 && slices.Contains(boxes, seat) { // as most requests go
		if c, ok := p.candidate(seat, asker, rate, now); ok {
			c.fraction -= rate / c.grant // its seat counts already
			if c.fraction <= mostOver && !c.suspect && !c.slow && !p.mayMove(c, boxes, asker, rate, now) {
				found.Holders, found.Room = []front.Holder{{Box: seat, Base: c.box.EdgeBase}}, 1
				return found
			}
		}
	}
	var all []candidate
	for _, box := range boxes {
		c, ok := p.candidate(box, asker, rate, now)
		if !ok || slices.Contains(asker.Avoid, box) {
			continue
		}
		if watching && box == seat {
			c.fraction -= rate / c.grant
		}
		all = append(all, c)
	}
	found = p.order(found, all, asker, rate, watching && seat != "")
	if left, known := p.doors[asker.Rendition]; rate > 0 && known && left <= 0 && !watching {
		found.Room = 0
	}
	return found
}

// candidate is a box that could serve a viewer.
type candidate struct {
	*member
	suspect, slow bool
	grant         float64 // bytes/s
	fraction      float64 // of it that is asked for with one viewer more
}

// candidate describes a box that the viewer may be sent to. The caller holds the lock.
func (p *Placement) candidate(box id.BoxID, asker front.Asker, rate float64, now time.Time) (candidate, bool) {
	m := p.members[box]
	if m == nil || !m.link.Up() || m.doubts.deaf || !mayReach(asker.Addr, m.box.EdgeAddr) {
		return candidate{}, false
	}
	c := candidate{member: m, suspect: m.doubts.suspected(now), slow: now.Before(m.slow), grant: max(float64(m.link.Standing().Grant), 1)}
	c.fraction = (p.loadOf(m, now) + rate) / c.grant
	return c, true
}

// loadOf is what is asked of a box by our viewers and for passing on, bytes/s. The caller holds the lock.
func (p *Placement) loadOf(m *member, now time.Time) float64 {
	passing := max(p.plan.Relayed[m.id], float64(m.passing)) // in about a second
	return p.cfg.Audience.Load(m.id, p.rate) + passing + m.viewers.get(now)
}

// order sorts the candidates: those that have room for the viewer as a plan has it, or where none has and the
// viewer sits at a box already, somewhat over their grants: who watches goes on. Behind them come the
// others, the least loaded first. A slow one has no room while the publisher itself has.
func (p *Placement) order(found Found, all []candidate, asker front.Asker, rate float64, atBox bool) Found {
	viewer := asker.Addr
	limit := plan.Share
	if atBox && !slices.ContainsFunc(all, func(c candidate) bool { return c.fraction <= plan.Share }) {
		limit = mostOver
	}
	var order []ranking.Holder
	var full []candidate
	for _, c := range all {
		if rate > 0 && (c.fraction > limit || c.slow && found.Origin) {
			full = append(full, c)
			continue
		}
		order = append(order, ranking.Holder{
			ID: c.id, Away: geo.Away(asker.Place, c.place),
			Same:    viewer.IsValid() && netaddr.ScopeOf(viewer) > netaddr.Loopback && netaddr.Household(viewer).Contains(c.box.EdgeAddr),
			Suspect: c.suspect, Slow: c.slow,
			Load:     c.fraction / startLoad,
			Affinity: maphash.Comparable(affinity, viewerBox{viewer, c.id}),
		})
	}
	ranking.OrderForViewer(order)
	slices.SortFunc(full, func(a, b candidate) int { return cmp.Compare(a.fraction, b.fraction) })
	found.Room = len(order)
	for _, o := range order {
		found.Holders = append(found.Holders, front.Holder{Box: o.ID, Base: p.members[o.ID].box.EdgeBase})
	}
	for _, c := range full {
		found.Holders = append(found.Holders, front.Holder{Box: c.id, Base: c.box.EdgeBase})
	}
	return found
}

type viewerBox struct {
	viewer netip.Addr
	box    id.BoxID
}

// mayReach lets names pass: they were registered as public, and what they resolve to is seen
// only by the viewer's own resolver.
func mayReach(viewer, edge netip.Addr) bool {
	return !edge.IsValid() || netaddr.MayReach(viewer, edge)
}

// Joined notes that a viewer of a rendition who was sent to the box is new.
func (p *Placement) Joined(rendition string, box id.BoxID, bytes int64) {
	p.Redirected(box, joinSegments*bytes)
	p.mu.Lock()
	defer p.mu.Unlock()
	if left, known := p.doors[rendition]; known {
		p.doors[rendition] = left - 1
	}
}

// Redirected notes that somebody was sent to the box for so many bytes of a file that is no live segment.
func (p *Placement) Redirected(box id.BoxID, bytes int64) {
	p.mu.Lock()
	m := p.members[box]
	p.mu.Unlock()
	if m != nil {
		m.viewers.add(bytes, time.Now())
	}
}
