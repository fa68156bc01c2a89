package ranking

import (
	"cmp"
	"math"
	"slices"

	"dandelion/pkg/id"
)

// Holder is a box that holds what a viewer asks for, as seen from that viewer.
type Holder struct {
	ID       id.BoxID
	Same     bool    // in the viewer's own network
	Away     int     // from the viewer, in geo's steps
	Suspect  bool    // several viewers did not get what they were sent there for
	Slow     bool    // it took segments hardly faster than they play
	Load     float64 // viewers sent there lately, by what it can carry; less is better
	Affinity uint64  // hash of viewer and box: a stable choice among equals
}

const loadStep = 2 // a box with this many times the load of another comes behind it

// OrderForViewer sorts holders in place, best first: not suspect, in the viewer's own network, not slow, nearest, then clearly less loaded, then a
// choice that stays the same for the same viewer, so that connections are reused.
func OrderForViewer(holders []Holder) {
	slices.SortFunc(holders, func(a, b Holder) int {
		return cmp.Or(
			compareBool(a.Suspect, b.Suspect),
			-compareBool(a.Same, b.Same),
			compareBool(a.Slow, b.Slow),
			cmp.Compare(a.Away, b.Away),
			cmp.Compare(loadClass(a), loadClass(b)),
			cmp.Compare(a.Affinity, b.Affinity),
			cmp.Compare(a.ID, b.ID),
		)
	})
}

// loadClass is the logarithm of the load, so that small differences do not move viewers.
func loadClass(h Holder) int {
	if h.Load < 1 {
		return 0
	}
	return 1 + int(math.Log(h.Load)/math.Log(loadStep))
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}
