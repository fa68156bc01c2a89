package placement

import (
	"cmp"
	"math"
	"slices"
	"time"

	"dandelion/pkg/front"
	"dandelion/pkg/geo"
	"dandelion/pkg/id"
	"dandelion/publisher/internal/fleet"
	"dandelion/publisher/internal/plan"
)

const (
	mostAreas = 16 // of a rendition that are planned for, those with the most viewers; the others' viewers may be anywhere
	nearer    = 2  // steps, twice as near, by which a box must be nearer for a viewer to leave its own…
	mostNear  = 4  // …of which so many are looked at with each request
)

// areasOf lists where the viewers of a rendition are, and who is coming there, the most first.
func areasOf(w front.Watchers, planned int) []plan.Area {
	var areas []plan.Area
	for name, a := range w.Areas {
		areas = append(areas, plan.Area{Name: name, Place: a.Place, Viewers: int(int64(a.Viewers) * int64(planned) / int64(max(w.All, 1)))})
	}
	slices.SortFunc(areas, func(a, b plan.Area) int {
		return cmp.Or(cmp.Compare(b.Viewers, a.Viewers), cmp.Compare(a.Name, b.Name))
	})
	return areas[:min(len(areas), mostAreas)]
}

// near notes how far each box is from all viewers, and which of them lack boxes near them. The caller holds
// the lock.
func (p *Placement) near(renditions []plan.Rendition) {
	p.far = nil
	for _, h := range p.plan.Holders {
		p.far = append(p.far, h.Far...)
	}
	p.areas = p.areas[:0]
	for _, r := range renditions {
		p.areas = append(p.areas, r.Areas...)
	}
	for _, m := range p.members {
		m.distance = p.fromViewers(m.place)
	}
}

// fromViewers is how far a place is from the viewers, in the mean, km; NaN: unknown.
func (p *Placement) fromViewers(place *geo.Place) float64 {
	sum, viewers := 0.0, 0
	for _, a := range p.areas {
		if km, known := geo.Km(a.Place, place); known {
			sum += km * float64(a.Viewers)
			viewers += a.Viewers
		}
	}
	if viewers == 0 {
		return math.NaN()
	}
	return sum / float64(viewers)
}

// missed reports whether viewers lack boxes near them and this one is. The caller holds the lock.
func (p *Placement) missed(b fleet.Box) bool {
	if len(p.far) == 0 || len(p.members) >= p.cfg.MaxBoxes {
		return false
	}
	place := p.placeOf(b)
	return slices.ContainsFunc(p.far, func(a plan.Area) bool { return geo.Away(a.Place, place) < geo.AwayUnknown })
}

// placeOf is where a box is, as it or an entrance says; nil: unknown.
func (p *Placement) placeOf(b fleet.Box) *geo.Place {
	if place, said := geo.Said(b.Exchange.GeoIP); said {
		return geo.PlaceOf(place)
	}
	return p.cfg.Places.Place(b.EdgeAddr)
}

// knows takes what the fleet says of a box now.
func (p *Placement) knows(m *member, b fleet.Box) {
	if m.place == nil || b.Exchange.GeoIP != m.box.Exchange.GeoIP {
		m.place = p.placeOf(b)
	}
	m.box = b
}

// mayMove reports whether a box that holds the file and has room is clearly nearer to the viewer than the one
// where it sits. The caller holds the lock.
func (p *Placement) mayMove(seat candidate, boxes []id.BoxID, asker front.Asker, rate float64, now time.Time) bool {
	away := geo.Away(asker.Place, seat.place)
	if asker.Place == nil || away < nearer {
		return false
	}
	looks, first := 0, int(asker.Viewer%uint64(len(boxes))) // not all at the same
	for i := range boxes {
		box := boxes[(first+i)%len(boxes)]
		m := p.members[box]
		if m == nil || looks == mostNear || geo.Away(asker.Place, m.place) > away-nearer {
			continue
		}
		looks++
		if c, ok := p.candidate(box, asker, rate, now); ok && c.fraction <= plan.Share && !c.suspect && !c.slow {
			return true
		}
	}
	return false
}
