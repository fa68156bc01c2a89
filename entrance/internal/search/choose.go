package search

import (
	"cmp"
	"math"
	"net/netip"
	"slices"
	"time"

	"dandelion/entrance/internal/registry"
	"dandelion/pkg/geo"
	"dandelion/pkg/netaddr"
	"dandelion/pkg/wire"
)

// Publisher is who searches.
type Publisher struct {
	Addr  netip.Addr
	Place wire.GeoIP
}

const (
	newFor       = time.Hour // a box is new for so long after it was first seen
	newShare     = 10        // one place in so many is for new boxes
	fewPlaces    = 5         // with fewer places than this, none is kept for them
	perHousehold = 2         // while boxes of other households are left
)

// Limits beyond which a box is not offered.
const (
	fullUpload = 0.98     // of its capacity
	fullDisk   = 64 << 20 // bytes free, while its own limit is not reached
)

// WhyNot says in one sentence why a box is offered to nobody now, "" where nothing is against
// it: the reason that its owner and operators are shown.
func WhyNot(b *registry.Box, now time.Time) string {
	s := &b.System
	switch {
	case b.GoneWhy != "":
		return "it left: " + b.GoneWhy
	case !b.Expires.After(now):
		return "its lease is over: no report came in time"
	case b.Reach.State == registry.ReachUnknown:
		return "it was not dialled back yet"
	case b.Reach.State == registry.ReachNo:
		return b.Reach.Reason
	case s.StorageLimit == 0:
		return "its storage_limit is 0"
	case s.StorageFree < fullDisk && s.StorageUsed < s.StorageLimit:
		return "its disk is full"
	case s.NetCapacity > 0 && s.NetUp >= fullUpload*s.NetCapacity:
		return "its upload is used up"
	}
	return ""
}

// WhyNotFor is WhyNot for one publisher: a box at an address that the publisher cannot or must
// not be sent to is not offered to it.
func WhyNotFor(b *registry.Box, from Publisher, now time.Time) string {
	if why := WhyNot(b, now); why != "" {
		return why
	}
	if !netaddr.MayReach(from.Addr, b.Address) {
		return "a publisher at a " + netaddr.ScopeOf(from.Addr).String() + " address is not sent to a " + netaddr.ScopeOf(b.Address).String() + " one"
	}
	return ""
}

// offered is WhyNotFor(…) == "" for many boxes: it knows the publisher's scope already.
func offered(b *registry.Box, from netaddr.Scope, now time.Time) bool {
	return from != netaddr.Forbidden && b.Scope() >= from && b.Scope() != netaddr.Forbidden && WhyNot(b, now) == ""
}

// Choose returns at most count boxes for the publisher, the best first. chance returns numbers
// in [0, 1): it decides which new boxes get the places kept for them.
func Choose(boxes []*registry.Box, from Publisher, count int, now time.Time, chance func() float64) []*registry.Box {
	ranked := rank(boxes, from, now)
	chosen := make([]*registry.Box, 0, min(count, len(ranked)))
	taken := make(map[*registry.Box]bool, count)
	households := make(map[netip.Prefix]int)
	take := func(b *registry.Box) {
		taken[b] = true
		households[netaddr.Household(b.Address)]++
		chosen = append(chosen, b)
	}

	reserved := 0
	if count >= fewPlaces {
		reserved = max(1, count/newShare)
	}
	// fill takes boxes in order until so many are chosen.
	fill := func(list []*registry.Box, until, most int) {
		for _, b := range list {
			if len(chosen) >= until {
				return
			}
			if !taken[b] && households[netaddr.Household(b.Address)] < most {
				take(b)
			}
		}
	}
	fill(ranked, count-reserved, perHousehold)
	if len(chosen) < count {
		fill(newcomers(ranked, taken, now, chance), count, perHousehold)
	}
	// Places that are left go by rank, first to other households, then to any.
	fill(ranked, count, perHousehold)
	fill(ranked, count, math.MaxInt)
	return chosen
}

// newcomers returns at most the reserved number of new boxes that were not taken, in random
// order.
func newcomers(ranked []*registry.Box, taken map[*registry.Box]bool, now time.Time, chance func() float64) []*registry.Box {
	var list []*registry.Box
	for _, b := range ranked {
		if !taken[b] && now.Sub(b.FirstSeen) < newFor {
			list = append(list, b)
		}
	}
	for i := len(list) - 1; i > 0; i-- {
		j := int(chance() * float64(i+1))
		list[i], list[j] = list[j], list[i]
	}
	return list
}

// rank returns the boxes that may be offered, the best first.
func rank(boxes []*registry.Box, from Publisher, now time.Time) []*registry.Box {
	scope := netaddr.ScopeOf(from.Addr)
	ranked := make([]*registry.Box, 0, len(boxes))
	values := make([][factorCount]float64, 0, len(boxes))
	for _, b := range boxes {
		if offered(b, scope, now) {
			ranked = append(ranked, b)
			values = append(values, measure(b, from, now))
		}
	}
	usual := means(values)
	type scored struct {
		score float64
		box   *registry.Box
	}
	list := make([]scored, len(ranked))
	for i, b := range ranked {
		list[i].box = b
		for f, v := range values[i] {
			if math.IsNaN(v) {
				v = usual[f]
			}
			list[i].score += weights[f] * v
		}
	}
	slices.SortFunc(list, func(a, b scored) int {
		if c := cmp.Compare(b.score, a.score); c != 0 {
			return c
		}
		return cmp.Compare(a.box.ID, b.box.ID)
	})
	for i := range list {
		ranked[i] = list[i].box
	}
	return ranked
}

// means returns the mean of each factor over the boxes of which it is known: what is not known of
// a box counts as that, which is neither best nor worst.
func means(values [][factorCount]float64) (usual [factorCount]float64) {
	for f := range usual {
		sum, n := 0.0, 0
		for i := range values {
			if v := values[i][f]; !math.IsNaN(v) {
				sum += v
				n++
			}
		}
		usual[f] = 0.5
		if n > 0 {
			usual[f] = sum / float64(n)
		}
	}
	return usual
}

// The factors of a box's score, each from 0 (worst) to 1 (best), or NaN where it is not known.
const (
	freeUpload = iota
	nearness
	idleCPU
	freeStorage
	timeUp
	factorCount
)

var weights = [factorCount]float64{freeUpload: 0.40, nearness: 0.25, idleCPU: 0.15, freeStorage: 0.10, timeUp: 0.10}

// What counts as half of the best.
const (
	halfUpload   = 2.5e6 // bytes/s free: a home uplink of 20 Mbit/s
	halfDistance = 1000  // km
	halfTimeUp   = time.Hour
)

// measure returns the factors of a box for a publisher.
func measure(b *registry.Box, from Publisher, now time.Time) (values [factorCount]float64) {
	s := &b.System
	values[freeUpload] = math.NaN()
	if s.NetCapacity > 0 {
		used := s.NetUp
		if math.IsNaN(used) {
			used = s.NetCapacity / 2
		}
		free := max(s.NetCapacity-used, 0)
		values[freeUpload] = free / (free + halfUpload)
	}
	values[nearness] = math.NaN()
	if km, ok := geo.Distance(from.Place, b.GeoIP); ok {
		values[nearness] = halfDistance / (halfDistance + km)
	}
	values[idleCPU] = min(s.CPUIdle/100, 1)
	values[freeStorage] = math.NaN()
	if s.StorageLimit > 0 {
		values[freeStorage] = max(s.StorageLimit-s.StorageUsed, 0) / s.StorageLimit
	}
	up := max(now.Sub(b.FirstSeen), 0)
	values[timeUp] = float64(up) / float64(up+halfTimeUp)
	return values
}
