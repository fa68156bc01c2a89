package ranking

import (
	"math/rand/v2"

	"dandelion/pkg/id"
)

const (
	proven     = 5    // attempts after which a box is no longer new
	newShare   = 0.05 // of the places that go to new boxes, so that they can prove themselves
	wellRanked = 0.5  // share of the list that is compared…
	leastWell  = 4    // …but so many boxes at least
)

// Choose picks up to n boxes for a file out of a list that Score made, none of them in taken.
// For each place two well-ranked boxes are compared and the less busy one is taken; no two
// share a household, nor one with a taken box, while others exist.
func Choose(ranked []Ranked, n int, taken map[id.BoxID]bool, rng *rand.Rand) []id.BoxID {
	homes := map[string]bool{}
	var free []Ranked
	for _, r := range ranked {
		switch {
		case taken[r.ID]:
			homes[r.Household] = r.Household != ""
		case r.Excluded == "":
			free = append(free, r)
		}
	}
	var chosen []id.BoxID
	for len(chosen) < n && len(free) > 0 {
		i := pick(free, homes, rng)
		chosen = append(chosen, free[i].ID)
		homes[free[i].Household] = free[i].Household != ""
		free = append(free[:i:i], free[i+1:]...)
	}
	return chosen
}

// pick returns the index in free of the box that gets the next place.
func pick(free []Ranked, homes map[string]bool, rng *rand.Rand) int {
	eligible := filter(free, func(r Ranked) bool { return !homes[r.Household] })
	if len(eligible) == 0 {
		eligible = filter(free, func(Ranked) bool { return true })
	}
	old := only(free, eligible, func(r Ranked) bool { return r.Pushes.Tried >= proven })
	fresh := only(free, eligible, func(r Ranked) bool { return r.Pushes.Tried < proven })
	switch {
	case len(old) < leastWell: // or the first few would be all there are, for long
		return better(free, eligible, rng)
	case len(fresh) > 0 && rng.Float64() < newShare:
		return better(free, fresh, rng)
	}
	well := max(int(float64(len(old))*wellRanked), min(leastWell, len(old)))
	return better(free, old[:well], rng)
}

// better compares two of the candidates and returns the less busy one.
func better(free []Ranked, candidates []int, rng *rand.Rand) int {
	a := candidates[rng.IntN(len(candidates))]
	b := candidates[rng.IntN(len(candidates))]
	if free[b].Busy < free[a].Busy || free[b].Busy == free[a].Busy && b < a {
		return b
	}
	return a
}

func filter(list []Ranked, keep func(Ranked) bool) []int {
	var indexes []int
	for i, r := range list {
		if keep(r) {
			indexes = append(indexes, i)
		}
	}
	return indexes
}

func only(list []Ranked, indexes []int, keep func(Ranked) bool) []int {
	var left []int
	for _, i := range indexes {
		if keep(list[i]) {
			left = append(left, i)
		}
	}
	return left
}
