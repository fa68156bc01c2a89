package ranking

import (
	"cmp"
	"math"
	"slices"
	"time"
)

// Ranked is a box with its place.
type Ranked struct {
	Box
	Score    float64 // 0 to 1, higher is better
	Excluded string  // why nothing goes there now; "" if something may
}

// Where half of a quantity's value is reached.
const (
	halfUpload     = 2.5e6 // bytes/s, 20 Mbit/s
	halfThroughput = 1.25e6
	halfDistance   = 1000.0 // km
	halfKnown      = time.Hour
)

// neutral stands for what is unknown: neither best nor worst.
const neutral = 0.5

// aspects are what a score is made of, each from 0 to 1 or NaN where it is unknown.
var aspects = []struct {
	weight float64
	of     func(Box) float64
}{
	{3, func(b Box) float64 { return saturate(b.System.NetCapacity-b.System.NetUp, halfUpload) }},
	{3, func(b Box) float64 { return known(b.Pushes.Success, b.Pushes.Tried > 0) }},
	{2, func(b Box) float64 {
		return known(saturate(b.Pushes.Throughput, halfThroughput), b.Pushes.Throughput > 0)
	}},
	{2, func(b Box) float64 { return 1 - saturate(b.Distance, halfDistance) }},
	{1, func(b Box) float64 { return clamp(b.System.CPUIdle / 100) }},
	{1, func(b Box) float64 { return clamp(1 - b.System.StorageUsed/b.System.StorageLimit) }},
	{1, func(b Box) float64 { return saturate(b.Known.Seconds(), halfKnown.Seconds()) }},
}

// Score ranks boxes, best first, the excluded ones behind the others with their reasons.
func Score(boxes []Box) []Ranked {
	ranked := make([]Ranked, len(boxes))
	for i, b := range boxes {
		ranked[i] = Ranked{Box: b, Score: score(b), Excluded: excluded(b)}
	}
	slices.SortFunc(ranked, func(a, b Ranked) int {
		if (a.Excluded == "") != (b.Excluded == "") {
			if a.Excluded == "" {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(b.Score, a.Score), cmp.Compare(a.ID, b.ID))
	})
	return ranked
}

func score(b Box) float64 {
	var sum, weights float64
	for _, a := range aspects {
		v := a.of(b)
		if math.IsNaN(v) {
			v = neutral
		}
		sum += a.weight * v
		weights += a.weight
	}
	return sum / weights
}

func excluded(b Box) string {
	switch {
	case b.Down:
		return "it leaves, has no session, or gives no sign of life"
	case b.Deaf:
		return "it does not answer viewers"
	case b.Paused > 0:
		return "its last pushes failed"
	}
	return ""
}

// saturate maps 0… to 0…1, half of it at half. NaN stays NaN.
func saturate(v, half float64) float64 {
	if math.IsNaN(v) {
		return v
	}
	v = max(v, 0)
	return v / (v + half)
}

func clamp(v float64) float64 {
	if math.IsNaN(v) {
		return v
	}
	return min(max(v, 0), 1)
}

func known(v float64, is bool) float64 {
	if !is {
		return math.NaN()
	}
	return v
}
