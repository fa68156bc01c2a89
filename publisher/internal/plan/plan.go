// Package plan decides which boxes hold each rendition, so that its viewers find upload there, and
// who passes a segment on to whom. It is pure: plain structs in, holders and trees out; no clocks,
// no I/O. How a box is ranked is ranking's to say, what becomes of a plan placement's.
//
// A slot is what one more stream of a rendition takes of a box: a viewer fills one, and so does
// each box that it passes the rendition on to. One viewer more costs the fleet one slot; one holder
// more costs one, and brings its own.
package plan

import (
	"cmp"
	"slices"

	"dandelion/pkg/geo"
	"dandelion/pkg/id"
)

// Share is how much of a grant is planned with. The rest is for what no plan foresees: viewers who
// join and load three segments at once, segments larger than the others.
const Share = 0.8

// Box is what a plan needs to know of a box that is up.
type Box struct {
	ID        id.BoxID
	Household string  // boxes of one home share it; "" is its own home
	Grant     float64 // bytes/s of its upload that may be planned with
	Score     float64 // ranking's, 0 to 1
	Relays    bool    // it passes files on
	Slow      bool    // now slower than viewers need, as far as anybody knows: it is planned with where others do not suffice
	// Unmeasured: nobody knows what its line carries, and it would show if it held something.
	Unmeasured bool
	Place      *geo.Place // nil: unknown
}

// Rendition is what has to be carried.
type Rendition struct {
	Name     string
	Rate     float64 // bytes/s of one viewer, more than 0
	Viewers  int     // that are planned for
	Areas    []Area  // where those of them are whose place is known
	Replicas int     // holders that it has at least, viewers or not
	Keep     []id.BoxID
	Refused  map[id.BoxID]bool // boxes that do not take it
}

// Area is how many viewers are in one place.
type Area struct {
	Name    string
	Place   *geo.Place
	Viewers int
}

// Holders are the boxes that should hold a rendition's segments, those that have longest first.
type Holders struct {
	Boxes   []id.BoxID
	Roots   []id.BoxID // those of them that the publisher itself sends to
	Viewers int        // that are planned for
	Short   float64    // bytes/s of viewers that no box has upload for
	ShortIn []ShortIn  // where they are, as far as that is known; the most first
	Far     []Area     // viewers of areas that lack boxes near them
}

// ShortIn is what the viewers of an area lack.
type ShortIn struct {
	Area  string
	Short float64 // bytes/s
}

// Plan is who should hold what.
type Plan struct {
	Holders map[string]Holders   // by rendition
	Relayed map[id.BoxID]float64 // bytes/s that passing on takes of each box
	Wanted  map[id.BoxID]float64 // bytes/s of a grant that the plan could use of each box
	Uses    map[id.BoxID]Use     // what it takes of each box
}

// Use is what a plan takes of a box, beside what the box grants.
type Use struct {
	Grant, Relayed, Viewers float64 // bytes/s
}

// Short is what all renditions are short of, bytes/s.
func (p Plan) Short() (short float64) {
	for _, h := range p.Holders {
		short += h.Short
	}
	return short
}

// Make plans for the renditions, the least demand first, so that a stream of few viewers is not
// starved by one of many. The publisher itself sends each to so many roots. Holders of the plan
// before stay where they may, so that sessions and viewers do; the latest to come are the first to
// go. Each rendition gets the fewest boxes with which no box is planned beyond Share of its grant,
// and one more while there are viewers.
func Make(boxes []Box, renditions []Rendition, roots int, before Plan) Plan {
	m := maker{
		boxes: map[id.BoxID]Box{}, left: map[id.BoxID]float64{}, roots: max(roots, 1),
		plan: Plan{Holders: map[string]Holders{}, Relayed: map[id.BoxID]float64{}, Wanted: map[id.BoxID]float64{}, Uses: map[id.BoxID]Use{}},
	}
	for _, b := range boxes {
		m.boxes[b.ID], m.left[b.ID] = b, Share*b.Grant
		m.plan.Uses[b.ID] = Use{Grant: b.Grant}
	}
	ordered := slices.Clone(renditions)
	slices.SortStableFunc(ordered, func(a, b Rendition) int {
		return cmp.Or(cmp.Compare(float64(a.Viewers)*a.Rate, float64(b.Viewers)*b.Rate), cmp.Compare(a.Name, b.Name))
	})
	for _, r := range ordered {
		m.add(r, before.Holders[r.Name].Boxes)
	}
	for b := range m.plan.Wanted {
		m.plan.Wanted[b] /= Share
	}
	if short := m.plan.Short(); short > 0 {
		for b := range m.boxes { // any of them may have more to give than it says now
			m.plan.Wanted[b] += short / Share
		}
	}
	return m.plan
}

type maker struct {
	boxes map[id.BoxID]Box
	left  map[id.BoxID]float64 // bytes/s that can still be planned
	roots int
	plan  Plan
}

func (m *maker) slots(b id.BoxID, rate float64) int { return Slots(m.left[b], rate) }

// Slots is how many streams of a rate so many bytes/s carry.
func Slots(bytes, rate float64) int {
	if rate <= 0 || bytes <= 0 {
		return 0
	}
	return int(min(bytes/rate+1e-9, 1e6))
}

func (m *maker) add(r Rendition, before []id.BoxID) {
	if r.Rate <= 0 {
		return
	}
	chosen, far := m.choose(r, before)
	for _, b := range r.Keep {
		if _, up := m.boxes[b]; up && !r.Refused[b] && !slices.Contains(chosen, b) && len(chosen) > 0 {
			chosen = append(chosen, b)
		}
	}
	members := make([]Member, 0, len(chosen))
	for _, b := range chosen {
		members = append(members, Member{m.boxes[b], m.slots(b, r.Rate)})
	}
	roots, rest := Roots(members, m.roots)
	below, _ := Forest(roots, rest, nil)
	h := Holders{Boxes: chosen, Viewers: r.Viewers, Far: far}
	for _, root := range roots {
		h.Roots = append(h.Roots, root.ID)
	}
	free, total := map[id.BoxID]int{}, 0
	for _, member := range members {
		relays := len(below[member.ID])
		m.take(member.ID, float64(relays)*r.Rate, 0)
		free[member.ID] = max(member.Slots-relays, 0)
		total += free[member.ID]
	}
	carried := min(r.Viewers, total)
	for b, n := range free {
		if n > 0 {
			m.take(b, 0, float64(carried)*float64(n)/float64(total)*r.Rate)
		}
	}
	if h.Short = float64(r.Viewers-carried) * r.Rate; h.Short > 0 {
		h.ShortIn = m.shortIn(r, free)
	}
	m.plan.Holders[r.Name] = h
}

func (m *maker) take(b id.BoxID, relayed, viewers float64) {
	m.left[b] -= relayed + viewers
	m.plan.Relayed[b] += relayed
	m.plan.Wanted[b] += relayed + viewers
	u := m.plan.Uses[b]
	u.Relayed, u.Viewers = u.Relayed+relayed, u.Viewers+viewers
	m.plan.Uses[b] = u
}

// choose picks the holders: boxes near many viewers; then, until all have room, those of before that are
// still there and of use, and the best of the others, no two of a household while there are others. far are
// the viewers whom it found no box near to.
func (m *maker) choose(r Rendition, before []id.BoxID) (chosen []id.BoxID, far []Area) {
	chosen, far = m.nearby(r, before)
	homes := map[string]bool{}
	slots, oneMore := 0, r.Viewers > 0
	for _, b := range chosen {
		homes[m.boxes[b].Household] = true
		slots += m.slots(b, r.Rate)
	}
	enough := func() bool {
		return len(chosen) >= r.Replicas && (r.Viewers == 0 || slots-max(len(chosen)-m.roots, 0) >= r.Viewers)
	}
	candidates := m.candidates(r, before)
	for _, strangers := range []bool{true, false} {
		for _, b := range candidates {
			if enough() && !oneMore {
				break
			}
			home, n := m.boxes[b].Household, m.slots(b, r.Rate)
			useful := n >= 2 || n == 1 && len(chosen) < m.roots || len(chosen) < r.Replicas
			if !useful || slices.Contains(chosen, b) || strangers && home != "" && homes[home] {
				continue
			}
			oneMore = oneMore && !enough()
			chosen = append(chosen, b)
			homes[home] = true
			slots += n
		}
	}
	if !enough() && !slices.ContainsFunc(chosen, m.unmeasured) {
		if i := slices.IndexFunc(candidates, m.unmeasured); i >= 0 { // it may have more upload than it says
			chosen = append(chosen, candidates[i])
		}
	}
	return longestFirst(chosen, before), far
}

func (m *maker) unmeasured(b id.BoxID) bool { return m.boxes[b].Unmeasured }

// longestFirst orders holders: those of before as they were, then the new ones.
func longestFirst(chosen, before []id.BoxID) []id.BoxID {
	var list []id.BoxID
	for _, b := range before {
		if slices.Contains(chosen, b) {
			list = append(list, b)
		}
	}
	for _, b := range chosen {
		if !slices.Contains(list, b) {
			list = append(list, b)
		}
	}
	return list
}

// candidates orders the boxes: first who holds the rendition already, then by score and by what they
// can carry, so that few are needed; slow ones come last.
func (m *maker) candidates(r Rendition, before []id.BoxID) []id.BoxID {
	var list, fresh []id.BoxID
	for _, b := range before {
		if _, up := m.boxes[b]; up && !r.Refused[b] {
			list = append(list, b)
		}
	}
	for b := range m.boxes {
		if !slices.Contains(list, b) && !r.Refused[b] {
			fresh = append(fresh, b)
		}
	}
	slices.SortFunc(fresh, func(a, b id.BoxID) int {
		return cmp.Or(cmp.Compare(m.worth(b, r.Rate), m.worth(a, r.Rate)), cmp.Compare(m.boxes[b].Score, m.boxes[a].Score), cmp.Compare(a, b))
	})
	list = append(list, fresh...)
	slices.SortStableFunc(list, func(a, b id.BoxID) int { return falseFirst(m.boxes[a].Slow, m.boxes[b].Slow) })
	return list
}

func falseFirst(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// halfSlots is with how many slots a box is worth half of what its score says.
const halfSlots = 4

// worth is a box's score, the less the fewer streams it can carry, so that few are needed.
func (m *maker) worth(b id.BoxID, rate float64) float64 {
	n := float64(m.slots(b, rate))
	return (m.boxes[b].Score + 0.01) * n / (n + halfSlots)
}
