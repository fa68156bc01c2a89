package plan

import (
	"cmp"
	"slices"

	"dandelion/pkg/geo"
	"dandelion/pkg/id"
	"dandelion/pkg/wire"
)

// Member is a box with the slots that it has for a rendition.
type Member struct {
	Box
	Slots int
}

// Node is a box in a tree, with those that it passes the segment on to.
type Node struct {
	Box   id.BoxID
	Below []Node
}

const mostFanOut = 8 // of one box: more would make each of its transfers slow

// fanOut is to how many boxes one passes a segment on: half of its slots, so that viewers find room
// in every level, but two if it can, or trees become chains.
func (m Member) fanOut() int {
	if !m.Relays {
		return 0
	}
	return min(m.Slots, max(2, m.Slots/2), mostFanOut)
}

// CanPassOn reports whether the box can pass a segment on to others.
func (m Member) CanPassOn() bool { return m.fanOut() > 0 }

// Roots takes out so many members that the publisher sends to: the first that can pass on and are not slow,
// else the first.
func Roots(members []Member, n int) (roots, rest []Member) {
	ordered := slices.Clone(members)
	slices.SortStableFunc(ordered, func(a, b Member) int {
		return cmp.Or(
			falseFirst(!a.CanPassOn(), !b.CanPassOn()), falseFirst(a.Slow, b.Slow), falseFirst(a.fanOut() < 2, b.fanOut() < 2),
		)
	})
	roots = ordered[:min(n, len(ordered))]
	for _, m := range members {
		if !slices.ContainsFunc(roots, m.is) {
			rest = append(rest, m)
		}
	}
	return roots, rest
}

func (m Member) is(other Member) bool { return m.ID == other.ID }

// parent is a place in a forest where boxes can be put below.
type parent struct {
	Member
	level int
	room  int // boxes that fit below
	below []*parent
}

// Forest puts each target below a source or another target: as high as possible, and of the parents
// in one level below the nearest. Those with the largest fan-out come first, so that trees are
// shallow, and slow ones last: nothing is put below them while others have room. below has the boxes
// below each source and each target, only one level of them; targets that no box has a slot for are
// left. apart, where it is not nil, tells that one box cannot reach another.
func Forest(sources, targets []Member, apart func(parent, child id.BoxID) bool) (below map[id.BoxID][]Node, left []id.BoxID) {
	var all []*parent
	for _, s := range sources {
		all = append(all, &parent{Member: s, room: s.fanOut()})
	}
	ordered := slices.Clone(targets)
	slices.SortStableFunc(ordered, func(a, b Member) int {
		return cmp.Or(falseFirst(a.Slow, b.Slow), cmp.Compare(b.fanOut(), a.fanOut()))
	})
	full := false // parents use all of their slots, because their fan-out was not enough
	for _, t := range ordered {
		p := best(all, t, apart)
		if p == nil && !full {
			full = true
			for _, other := range all {
				if other.Relays {
					other.room = other.Slots - len(other.below)
				}
			}
			p = best(all, t, apart)
		}
		if p == nil {
			left = append(left, t.ID)
			continue
		}
		child := &parent{Member: t, level: p.level + 1, room: t.fanOut()}
		if full && t.Relays {
			child.room = t.Slots
		}
		p.room--
		p.below = append(p.below, child)
		all = append(all, child)
	}
	below = map[id.BoxID][]Node{}
	for _, p := range all {
		if len(p.below) > 0 {
			below[p.ID] = p.nodes()
		}
	}
	return below, left
}

func (p *parent) nodes() []Node {
	var nodes []Node
	for _, child := range p.below {
		nodes = append(nodes, Node{Box: child.ID, Below: child.nodes()})
	}
	return nodes
}

// best returns the parent for a box: the nearest of the highest that have room and are not slow; nil where none has.
func best(all []*parent, t Member, apart func(parent, child id.BoxID) bool) (found *parent) {
	nearest := 0.0
	for _, p := range all {
		if p.room <= 0 || p.level >= wire.MaxRelayDepth || apart != nil && apart(p.ID, t.ID) {
			continue
		}
		worse := 0
		if found != nil {
			worse = cmp.Or(falseFirst(p.Slow, found.Slow), cmp.Compare(p.level, found.level))
		}
		if worse > 0 {
			continue
		}
		km, _ := geo.Km(p.Place, t.Place)
		if found == nil || worse < 0 || km < nearest {
			found, nearest = p, km
		}
	}
	return found
}
