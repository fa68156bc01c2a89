package plan

import (
	"cmp"
	"slices"

	"dandelion/pkg/geo"
	"dandelion/pkg/id"
)

// ownHolders is how many viewers an area has before it gets holders for its own sake: each costs its household,
// and one that passes the segment on to it, as much as a viewer.
const ownHolders = 3

// pair is a box that could serve an area.
type pair struct {
	area, away, slots int
	worth             float64
	box               id.BoxID
}

// nearby picks boxes for areas with viewers: the nearest pair of box and area first, until each has room for
// its viewers. A holder of before counts as one step nearer. far are the viewers who found none nearer than
// somewhere.
func (m *maker) nearby(r Rendition, before []id.BoxID) (chosen []id.BoxID, far []Area) {
	pairs := m.pairs(r, before)
	need, free, homes := make([]int, len(r.Areas)), map[id.BoxID]int{}, map[string]bool{}
	for i, a := range r.Areas {
		need[i] = a.Viewers
	}
	for _, p := range pairs {
		if need[p.area] == 0 {
			continue
		}
		if _, taken := free[p.box]; !taken {
			home := m.boxes[p.box].Household
			if home != "" && homes[home] {
				continue
			}
			homes[home] = true
			chosen = append(chosen, p.box)
			free[p.box] = p.slots - 1 // as much as one holder more takes of the others
		}
		n := min(need[p.area], free[p.box])
		need[p.area] -= n
		free[p.box] -= n
	}
	for i, a := range r.Areas {
		if need[i] > 0 && a.Viewers >= ownHolders {
			far = append(far, Area{a.Name, a.Place, need[i]})
		}
	}
	return chosen, far
}

// pairs lists boxes that are nearer to areas than somewhere and not slow, the nearest first.
func (m *maker) pairs(r Rendition, before []id.BoxID) []pair {
	var pairs []pair
	for b, box := range m.boxes {
		n, held := m.slots(b, r.Rate), slices.Contains(before, b)
		if n < 2 || box.Slow || box.Place == nil || r.Refused[b] {
			continue
		}
		for i, a := range r.Areas {
			if a.Viewers < ownHolders && !held {
				continue
			}
			away := geo.Away(a.Place, box.Place)
			if away >= geo.AwayUnknown {
				continue
			}
			if held {
				away--
			}
			pairs = append(pairs, pair{i, away, n, m.worth(b, r.Rate), b})
		}
	}
	slices.SortFunc(pairs, func(a, b pair) int {
		return cmp.Or(
			cmp.Compare(a.away, b.away), cmp.Compare(r.Areas[b.area].Viewers, r.Areas[a.area].Viewers),
			cmp.Compare(b.worth, a.worth), cmp.Compare(a.box, b.box), cmp.Compare(a.area, b.area),
		)
	})
	return pairs
}

// shortIn says for whose viewers upload lacks when each goes to the nearest box that has a slot free.
func (m *maker) shortIn(r Rendition, free map[id.BoxID]int) (list []ShortIn) {
	areas, known := slices.Clone(r.Areas), 0
	for _, a := range areas {
		known += a.Viewers
	}
	if len(areas) == 0 {
		return nil
	}
	areas = append(areas, Area{Viewers: max(r.Viewers-known, 0)}) // nobody knows where
	var pairs []pair
	for b, n := range free {
		for i, a := range areas {
			if n > 0 && a.Viewers > 0 {
				pairs = append(pairs, pair{area: i, away: geo.Away(a.Place, m.boxes[b].Place), box: b})
			}
		}
	}
	slices.SortFunc(pairs, func(a, b pair) int {
		return cmp.Or(cmp.Compare(a.away, b.away), cmp.Compare(a.box, b.box), cmp.Compare(a.area, b.area))
	})
	left := map[id.BoxID]int{}
	for b, n := range free {
		left[b] = n
	}
	for _, p := range pairs {
		n := min(areas[p.area].Viewers, left[p.box])
		areas[p.area].Viewers -= n
		left[p.box] -= n
	}
	for _, a := range areas {
		if a.Viewers > 0 && a.Name != "" {
			list = append(list, ShortIn{a.Name, float64(a.Viewers) * r.Rate})
		}
	}
	slices.SortFunc(list, func(a, b ShortIn) int { return cmp.Or(cmp.Compare(b.Short, a.Short), cmp.Compare(a.Area, b.Area)) })
	return list
}
