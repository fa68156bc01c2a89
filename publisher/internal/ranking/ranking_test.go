package ranking

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"dandelion/pkg/geo"
	"dandelion/pkg/id"
	"dandelion/pkg/wire"
)

func box(name string, change func(*Box)) Box {
	b := Box{ID: id.BoxID(name), System: wire.UnknownSystem(), Distance: math.NaN(), Pushes: Record{Tried: 100, Success: 1, Throughput: 1e6}}
	if change != nil {
		change(&b)
	}
	return b
}

// TestScoreOrder: each row's first box must come before its second.
func TestScoreOrder(t *testing.T) {
	for name, c := range map[string][2]func(*Box){
		"free upload":           {func(b *Box) { b.System.NetCapacity, b.System.NetUp = 5e6, 1e6 }, func(b *Box) { b.System.NetCapacity, b.System.NetUp = 5e6, 4e6 }},
		"known good, unknown":   {func(b *Box) { b.System.NetCapacity, b.System.NetUp = 50e6, 0 }, nil},
		"unknown, known bad":    {nil, func(b *Box) { b.System.NetCapacity, b.System.NetUp = 1e6, 1e6 }},
		"push success":          {nil, func(b *Box) { b.Pushes.Success = 0.5 }},
		"throughput":            {func(b *Box) { b.Pushes.Throughput = 2e6 }, nil},
		"distance":              {func(b *Box) { b.Distance = 10 }, func(b *Box) { b.Distance = 9000 }},
		"idle CPU":              {func(b *Box) { b.System.CPUIdle = 90 }, func(b *Box) { b.System.CPUIdle = 10 }},
		"free storage":          {func(b *Box) { b.System.StorageLimit, b.System.StorageUsed = 10, 1 }, func(b *Box) { b.System.StorageLimit, b.System.StorageUsed = 10, 9 }},
		"time known":            {func(b *Box) { b.Known = 10 * time.Hour }, nil},
		"excluded boxes last":   {func(b *Box) { b.Pushes.Success = 0 }, func(b *Box) { b.Down = true }},
		"storage limit of zero": {func(b *Box) { b.System.CPUIdle = 100 }, func(b *Box) { b.System.StorageLimit, b.System.StorageUsed = 0, 0 }},
	} {
		ranked := Score([]Box{box("box-b", c[1]), box("box-a", c[0])})
		if ranked[0].ID != "box-a" || !(ranked[0].Score >= 0 && ranked[0].Score <= 1) {
			t.Errorf("%s: %s (%v) before %s (%v)", name, ranked[0].ID, ranked[0].Score, ranked[1].ID, ranked[1].Score)
		}
	}
}

func TestChooseKeepsHouseholdsApart(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	home := func(h string) func(*Box) { return func(b *Box) { b.Household = h } }
	ranked := Score([]Box{box("box-1", home("a")), box("box-2", home("a")), box("box-3", home("b")), box("box-4", home(""))})
	for range 200 {
		chosen := Choose(ranked, 3, nil, rng)
		homes := map[string]int{}
		for _, c := range chosen {
			homes[map[id.BoxID]string{"box-1": "a", "box-2": "a", "box-3": "b", "box-4": "-"}[c]]++
		}
		if len(chosen) != 3 || homes["a"] != 1 {
			t.Fatalf("chose %v", chosen)
		}
		if got := Choose(ranked, 1, map[id.BoxID]bool{"box-1": true}, rng); got[0] == "box-2" || got[0] == "box-1" {
			t.Fatalf("chose %v beside box-1", got)
		}
	}
	if got := Choose(ranked, 9, nil, rng); len(got) != 4 {
		t.Errorf("with no others left: %v", got)
	}
}

func TestChooseAvoidsTheBusyAndTheExcluded(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 2))
	boxes := []Box{
		box("box-busy", func(b *Box) { b.Busy = time.Minute }),
		box("box-free", nil),
		box("box-down", func(b *Box) { b.Down = true }),
	}
	counts := map[id.BoxID]int{}
	for range 1000 {
		counts[Choose(Score(boxes), 1, nil, rng)[0]]++
	}
	if counts["box-down"] != 0 || counts["box-free"] < 700 {
		t.Errorf("%v", counts)
	}
}

func TestNewBoxesGetAShare(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 3))
	var boxes []Box
	for i := range 9 {
		boxes = append(boxes, box(fmt.Sprintf("box-%d", i), nil))
	}
	boxes = append(boxes, box("box-new", func(b *Box) { b.Pushes = Record{} }))
	count := 0
	for range 2000 {
		if Choose(Score(boxes), 1, nil, rng)[0] == "box-new" {
			count++
		}
	}
	if count < 50 || count > 200 {
		t.Errorf("a new box got %d of 2000 places", count)
	}
}

func TestRecord(t *testing.T) {
	var r Record
	r = r.Succeeded(1<<20, time.Second)
	if r.Success != 1 || r.Throughput != 1<<20 || r.Pause() != 0 {
		t.Errorf("%+v", r)
	}
	for range 3 {
		r = r.Failed()
	}
	if r.Streak != 3 || r.Pause() != 2*time.Second || r.Success > 0.75 {
		t.Errorf("%+v, %v", r, r.Pause())
	}
	for range 50 {
		r = r.Failed()
	}
	if r.Pause() != time.Minute {
		t.Errorf("%v", r.Pause())
	}
	if r = r.Succeeded(1, time.Second); r.Streak != 0 || r.Throughput != 1<<20 {
		t.Errorf("%+v", r)
	}
}

func TestOrderForViewer(t *testing.T) {
	holders := []Holder{
		{ID: "far", Away: 16},
		{ID: "unknown", Away: geo.AwayUnknown},
		{ID: "near-loaded", Away: 1, Load: 40},
		{ID: "near-b", Away: 1, Load: 2, Affinity: 9},
		{ID: "near-a", Away: 1, Load: 3, Affinity: 5},
		{ID: "less near", Away: 2},
		{ID: "same", Away: geo.AwayUnknown, Same: true, Load: 99},
	}
	OrderForViewer(holders)
	var got []id.BoxID
	for _, h := range holders {
		got = append(got, h.ID)
	}
	if fmt.Sprint(got) != "[same near-a near-b near-loaded less near unknown far]" {
		t.Error(got)
	}
}

// TestFewProvenBoxesDoNotTakeAll: the first boxes that proved themselves leave work for the others of
// a small fleet.
func TestFewProvenBoxesDoNotTakeAll(t *testing.T) {
	t.Parallel()
	var boxes []Box
	for i, tried := range []int{proven, proven, 0, 0} {
		boxes = append(boxes, Box{ID: id.BoxID(rune('a' + i)), Pushes: Record{Tried: tried, Success: 1, Throughput: 1e8}})
	}
	rng, count := rand.New(rand.NewPCG(1, 2)), map[id.BoxID]int{}
	const rounds = 200
	for range rounds {
		for _, box := range Choose(Score(boxes), 2, map[id.BoxID]bool{}, rng) {
			count[box]++
		}
	}
	for _, box := range boxes {
		if count[box.ID] < rounds/10 {
			t.Errorf("%s got %d of %d: %v", box.ID, count[box.ID], 2*rounds, count)
		}
	}
}
