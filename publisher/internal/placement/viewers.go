package placement

import (
	"hash/maphash"
	"math"
	"net/netip"
	"slices"
	"sync"
	"time"

	"dandelion/pkg/front"
	"dandelion/pkg/id"
	"dandelion/pkg/netaddr"
	"dandelion/publisher/internal/ranking"
)

// loadHalf is the time after which half of a viewer load is forgotten.
const loadHalf = 5 * time.Second

// viewerLoad is the decayed rate of bytes that a box was asked for through redirects.
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

// assumedUplink is what a box that does not tell its capacity can send to viewers, bytes/s.
const assumedUplink = 250e3

// startLoad is the share of a box's uplink from which on its load counts in the order.
const startLoad = 0.25

var affinity = maphash.MakeSeed()

// HoldersFor returns the boxes that hold the file and that the viewer may reach, best first for
// this viewer, without those in avoid. Boxes that are down, silent or deaf are left out.
func (p *Placement) HoldersFor(path id.Path, digest id.Digest, viewer netip.Addr, avoid []id.BoxID) []front.Holder {
	boxes := p.records.holdersFor(path, digest)
	now := time.Now()
	order := make([]ranking.Holder, 0, len(boxes))
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, box := range boxes {
		m := p.members[box]
		if m == nil || !m.link.Up() || m.doubts.deaf || slices.Contains(avoid, box) || !mayReach(viewer, m.box.EdgeAddr) {
			continue
		}
		uplink := m.box.Exchange.System.NetCapacity
		if math.IsNaN(uplink) || uplink <= 0 {
			uplink = assumedUplink
		}
		order = append(order, ranking.Holder{
			ID: box, Distance: math.NaN(),
			Same:     viewer.IsValid() && netaddr.ScopeOf(viewer) > netaddr.Loopback && netaddr.Household(viewer).Contains(m.box.EdgeAddr),
			Suspect:  m.doubts.suspected(now),
			Slow:     now.Before(m.slow),
			Load:     m.viewers.get(now) / (uplink * startLoad),
			Affinity: maphash.Comparable(affinity, viewerBox{viewer, box}),
		})
	}
	ranking.OrderForViewer(order)
	holders := make([]front.Holder, len(order))
	for i, o := range order {
		holders[i] = front.Holder{Box: o.ID, Base: p.members[o.ID].box.EdgeBase}
	}
	return holders
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

// Redirected notes that a viewer was sent to the box for so many bytes.
func (p *Placement) Redirected(box id.BoxID, bytes int64) {
	p.mu.Lock()
	m := p.members[box]
	p.mu.Unlock()
	if m != nil {
		m.viewers.add(bytes, time.Now())
	}
}
