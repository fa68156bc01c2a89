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
	busyIdle   = 3        // percent of CPU left, together with
	busyLoad   = 2        // processes waiting for each CPU
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
	case s.CPUIdle < busyIdle && s.Load1 > busyLoad*s.CPUCount:
		return "its CPU is overloaded"
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
	for _, b := range ranked {
		if len(chosen) < count-reserved && households[netaddr.Household(b.Address)] < perHousehold {
			take(b)
		}
	}
	for _, b := range newcomers(ranked, taken, now, chance) {
		if len(chosen) < count && households[netaddr.Household(b.Address)] < perHousehold {
			take(b)
		}
	}
	// Places that are left go by rank, first to other households, then to any.
	for _, most := range []int{perHousehold, math.MaxInt} {
		for _, b := range ranked {
			if len(chosen) < count && !taken[b] && households[netaddr.Household(b.Address)] < most {
				take(b)
			}
		}
	}
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
	type scored struct {
		box    *registry.Box
		values [factorCount]float64
		score  float64
	}
	var list []scored
	for _, b := range boxes {
		if WhyNotFor(b, from, now) == "" {
			list = append(list, scored{box: b, values: measure(b, from, now)})
		}
	}
	// What is not known of a box counts as the mean of what is known of the others: neither best
	// nor worst.
	var means [factorCount]float64
	for f := range means {
		sum, n := 0.0, 0
		for i := range list {
			if v := list[i].values[f]; !math.IsNaN(v) {
				sum += v
				n++
			}
		}
		means[f] = 0.5
		if n > 0 {
			means[f] = sum / float64(n)
		}
	}
	for i := range list {
		for f, v := range list[i].values {
			if math.IsNaN(v) {
				v = means[f]
			}
			list[i].score += weights[f] * v
		}
	}
	slices.SortFunc(list, func(a, b scored) int {
		return cmp.Or(cmp.Compare(b.score, a.score), cmp.Compare(a.box.ID, b.box.ID))
	})
	ranked := make([]*registry.Box, len(list))
	for i := range list {
		ranked[i] = list[i].box
	}
	return ranked
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
