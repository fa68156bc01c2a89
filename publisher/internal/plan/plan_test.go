package plan

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"dandelion/pkg/geo"
	"dandelion/pkg/id"
	"dandelion/pkg/wire"
)

const mbit = 1e6 / 8

func boxes(n int, grant float64) []Box {
	var list []Box
	for i := range n {
		list = append(list, Box{ID: id.BoxID(fmt.Sprintf("box-%03d", i)), Household: fmt.Sprint("home", i), Grant: grant, Score: 0.5, Relays: true})
	}
	return list
}

func TestFewestHolders(t *testing.T) {
	for _, c := range []struct {
		name    string
		boxes   []Box
		viewers int
		want    int
		short   float64
	}{
		// 8 Mbit/s: 6 slots at 80 %.
		{"nobody watches: replicas alone", boxes(30, 8*mbit), 0, 2, 0},
		{"one viewer: replicas, and one more", boxes(30, 8*mbit), 1, 3, 0},
		{"a box and its copy are enough", boxes(30, 8*mbit), 11, 3, 0},
		{"a hundred viewers", boxes(30, 8*mbit), 100, 21, 0}, // 20×6 − 19 = 101
		{"too few boxes", boxes(10, 8*mbit), 100, 10, 49 * mbit},
		{"boxes of one slot bring nothing", boxes(30, 1.5*mbit), 10, 2, 9 * mbit},
		{"no grants", boxes(30, 0), 10, 2, 10 * mbit},
		{"no boxes", nil, 10, 0, 10 * mbit},
	} {
		p := Make(c.boxes, []Rendition{{Name: "r", Rate: mbit, Viewers: c.viewers, Replicas: 2}}, 1, Plan{})
		h := p.Holders["r"]
		if len(h.Boxes) != c.want || math.Abs(h.Short-c.short) > 1 {
			t.Errorf("%s: %d holders, short of %.1f Mbit/s; want %d and %.1f", c.name, len(h.Boxes), h.Short/mbit, c.want, c.short/mbit)
		}
	}
}

func TestHoldersStay(t *testing.T) {
	all := boxes(30, 8*mbit)
	few := []Rendition{{Name: "r", Rate: mbit, Viewers: 20, Replicas: 2}}
	many := []Rendition{{Name: "r", Rate: mbit, Viewers: 60, Replicas: 2}}
	first := Make(all, few, 1, Plan{})
	for i := range all {
		all[i].Score = float64(i) / 100 // others are better now
	}
	second := Make(all, many, 1, first)
	if a, b := first.Holders["r"].Boxes, second.Holders["r"].Boxes; !slices.Equal(a, b[:len(a)]) {
		t.Errorf("%v became %v", a, b)
	}
	third := Make(all, few, 1, second)
	if a, b := first.Holders["r"].Boxes, third.Holders["r"].Boxes; !slices.Equal(a, b) {
		t.Errorf("%v became %v", a, b)
	}
}

// TestUnmeasuredBoxes: while upload is short one box more than can carry viewers holds the segments, so that it
// shows what its line carries; once it has, the next one.
func TestUnmeasuredBoxes(t *testing.T) {
	all := append(boxes(4, 0.5*mbit), Box{ID: "box-fast", Household: "fast", Grant: 8 * mbit, Score: 0.5, Relays: true})
	for i := range 4 {
		all[i].Unmeasured = true
	}
	short := []Rendition{{Name: "r", Rate: mbit, Viewers: 10, Replicas: 1}}
	first := Make(all, short, 1, Plan{})
	if got := fmt.Sprint(first.Holders["r"].Boxes); got != "[box-fast box-000]" {
		t.Error(got)
	}
	if got := fmt.Sprint(Make(all, short, 1, first).Holders["r"].Boxes); got != "[box-fast box-000]" {
		t.Error(got)
	}
	all[0].Unmeasured = false // and slow
	second := Make(all, short, 1, first)
	if got := fmt.Sprint(second.Holders["r"].Boxes); got != "[box-fast box-001]" {
		t.Error(got)
	}
	all[1].Unmeasured, all[1].Grant = false, 8*mbit
	if got := fmt.Sprint(Make(all, short, 1, second).Holders["r"].Boxes); got != "[box-fast box-001]" {
		t.Errorf("%s, and there is room for all", got)
	}
	if got := fmt.Sprint(Make(all[:1], short, 1, Plan{}).Holders["r"].Boxes); got != "[box-000]" {
		t.Error(got)
	}
}

func TestHouseholdsApart(t *testing.T) {
	all := boxes(8, 8*mbit)
	for i := range all {
		all[i].Household = fmt.Sprint("home", i/2)
	}
	homes := map[string]int{}
	for _, b := range Make(all, []Rendition{{Name: "r", Rate: mbit, Viewers: 13, Replicas: 2}}, 1, Plan{}).Holders["r"].Boxes {
		homes[all[slices.IndexFunc(all, func(o Box) bool { return o.ID == b })].Household]++
	}
	if len(homes) != 4 {
		t.Errorf("%v", homes)
	}
	if n := len(Make(all, []Rendition{{Name: "r", Rate: mbit, Viewers: 40, Replicas: 2}}, 1, Plan{}).Holders["r"].Boxes); n != 8 {
		t.Errorf("%d holders while upload is short, want all", n)
	}
}

// TestSmallStreamIsNotStarved: the large one gets what the small one leaves.
func TestSmallStreamIsNotStarved(t *testing.T) {
	p := Make(boxes(10, 8*mbit), []Rendition{
		{Name: "large", Rate: mbit, Viewers: 10_000, Replicas: 2}, {Name: "small", Rate: mbit, Viewers: 10, Replicas: 2},
	}, 1, Plan{})
	if p.Holders["small"].Short != 0 || p.Holders["large"].Short == 0 {
		t.Errorf("%+v", p.Holders)
	}
}

func TestVolunteers(t *testing.T) {
	p := Make(boxes(10, 8*mbit), []Rendition{{Name: "r", Rate: mbit, Replicas: 2, Keep: []id.BoxID{"box-009", "box-away"}}}, 1, Plan{})
	if h := p.Holders["r"].Boxes; len(h) != 3 || h[2] != "box-009" {
		t.Errorf("%v", h)
	}
}

// TestSlowBoxesPassNothingOn: while others can, slow boxes are neither roots nor have boxes below them.
func TestSlowBoxesPassNothingOn(t *testing.T) {
	t.Parallel()
	var members []Member
	for i, b := range boxes(6, 10) {
		b.Slow = i < 3
		members = append(members, Member{b, 3})
	}
	roots, rest := Roots(members, 1)
	if len(roots) != 1 || roots[0].ID != members[3].ID || len(rest) != 5 {
		t.Fatalf("roots %v", roots)
	}
	below, left := Forest(roots, rest, nil)
	for _, m := range members[:3] {
		if len(below[m.ID]) > 0 {
			t.Errorf("%s is slow, and passes on to %v", m.ID, below[m.ID])
		}
	}
	if len(left) > 0 || len(below[roots[0].ID]) == 0 {
		t.Errorf("left %v, below %v", left, below)
	}
	slowOnly, old := members[:2], members[4]
	old.Relays = false
	if roots, _ := Roots(append([]Member{old}, slowOnly...), 1); !roots[0].Slow {
		t.Error("a box that passes nothing on is the root, where a slow one would")
	}
	if below, _ := Forest(slowOnly[:1], slowOnly[1:], nil); len(below[slowOnly[0].ID]) != 1 {
		t.Error("a slow box passes nothing on, and there is no other")
	}
}

// TestSlowBoxesComeLast: others take the viewers of a slow holder, near ones too, and it is one again when it is
// not slow any more, or when they do not suffice.
func TestSlowBoxesComeLast(t *testing.T) {
	t.Parallel()
	all := boxes(4, 10*mbit) // eight viewers each, less one for each that it passes on to
	here := geo.PlaceOf(wire.GeoIP{Loc: "25.0,121.5"})
	r := Rendition{Name: "r", Rate: mbit, Viewers: 5, Replicas: 2}
	before := Make(all, []Rendition{r}, 1, Plan{})
	held := before.Holders["r"].Boxes[0]
	slow := slices.IndexFunc(all, func(b Box) bool { return b.ID == held })
	all[slow].Slow = true
	holds := func(viewers int) bool {
		r.Viewers = viewers
		p := Make(all, []Rendition{r}, 1, before)
		return slices.Contains(p.Holders["r"].Boxes, held)
	}
	if holds(5) {
		t.Error("a slow box holds what others have room for")
	}
	all[slow].Place, r.Areas = here, []Area{{"TW", here, 5}}
	if holds(5) {
		t.Error("a slow box holds what others have room for, because it is near")
	}
	if !holds(28) {
		t.Error("others do not suffice, and the slow box does not hold it")
	}
	all[slow].Slow = false
	if !holds(5) {
		t.Error("it is not slow any more, holds it and is near, and is given up")
	}
}

func TestNearBoxesBelowNearBoxes(t *testing.T) {
	at := func(loc string) *geo.Place { return geo.PlaceOf(wire.GeoIP{Loc: loc}) }
	taipei, tokyo := at("25.0,121.5"), at("35.7,139.7")
	member := func(name id.BoxID, slots int, place *geo.Place) Member {
		return Member{Box{ID: name, Relays: true, Place: place}, slots}
	}
	below, left := Forest([]Member{member("taipei", 4, taipei), member("tokyo", 4, tokyo)},
		[]Member{member("t1", 1, tokyo), member("k1", 1, taipei), member("t2", 1, tokyo), member("k2", 1, taipei)}, nil)
	if got := fmt.Sprint(below["taipei"], below["tokyo"], left); got != "[{k1 []} {k2 []}] [{t1 []} {t2 []}] []" {
		t.Error(got)
	}
}

// TestProperties: of any plan, no box is planned beyond its share, a tree covers its holders once,
// old boxes pass nothing on, and trees are shallow.
func TestProperties(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	before := Plan{}
	for round := range 2000 {
		var all []Box
		for i := range rng.IntN(60) {
			all = append(all, Box{
				ID: id.BoxID(fmt.Sprintf("box-%03d", i)), Household: fmt.Sprint(rng.IntN(40)), Score: rng.Float64(),
				Grant: rng.Float64() * 10 * mbit * float64(rng.IntN(3)), Relays: rng.IntN(5) > 0,
			})
		}
		var renditions []Rendition
		for i := range 1 + rng.IntN(4) {
			renditions = append(renditions, Rendition{Name: fmt.Sprint(i), Rate: (0.2 + rng.Float64()) * mbit, Viewers: rng.IntN(2) * rng.IntN(80), Replicas: 1 + rng.IntN(3)})
		}
		p := Make(all, renditions, 1+rng.IntN(2), before)
		for b, u := range p.Uses {
			if u.Relayed+u.Viewers > Share*u.Grant+1 {
				t.Fatalf("round %d: %s grants %.0f and is planned with %.0f and %.0f", round, b, u.Grant, u.Relayed, u.Viewers)
			}
		}
		for _, r := range renditions {
			h := p.Holders[r.Name]
			if unique := slices.Compact(slices.Sorted(slices.Values(h.Boxes))); len(unique) != len(h.Boxes) {
				t.Fatalf("round %d: %v", round, h.Boxes)
			}
			if len(h.Boxes) < min(r.Replicas, len(all)) || r.Viewers == 0 && len(h.Boxes) > max(r.Replicas, 0) {
				t.Fatalf("round %d: %d holders of %d boxes for %+v", round, len(h.Boxes), len(all), r)
			}
			checkForest(t, all, h, r)
		}
		before = p
	}
}

func checkForest(t *testing.T, all []Box, h Holders, r Rendition) {
	t.Helper()
	var members []Member
	least := math.MaxInt
	for _, b := range h.Boxes {
		box := all[slices.IndexFunc(all, func(o Box) bool { return o.ID == b })]
		m := Member{box, Slots(Share*box.Grant, r.Rate)}
		members = append(members, m)
		if m.fanOut() > 1 {
			least = min(least, m.fanOut())
		}
	}
	roots, rest := Roots(members, 1)
	below, left := Forest(roots, rest, nil)
	seen := map[id.BoxID]int{}
	depth := 0
	var walk func(m id.BoxID, above []id.BoxID)
	walk = func(m id.BoxID, above []id.BoxID) {
		seen[m]++
		depth = max(depth, len(above))
		if slices.Contains(above, m) {
			t.Fatalf("%s is above itself: %v", m, above)
		}
		own := members[slices.IndexFunc(members, func(o Member) bool { return o.ID == m })]
		if n := len(below[m]); n > own.Slots || n > 0 && !own.Relays {
			t.Fatalf("%+v passes on to %d", own, n)
		}
		for _, child := range below[m] {
			walk(child.Box, append(slices.Clone(above), m))
		}
	}
	for _, root := range roots {
		walk(root.ID, nil)
	}
	for _, b := range left {
		seen[b]++
	}
	for _, m := range members {
		if seen[m.ID] != 1 {
			t.Fatalf("%s is in the forest %d times", m.ID, seen[m.ID])
		}
	}
	chain := slices.ContainsFunc(members, func(m Member) bool { return m.Slots < 2 || !m.Relays })
	if n := len(members); !chain && n > 1 && float64(depth) > math.Log(float64(n))/math.Log(float64(least))+1 {
		t.Fatalf("%d boxes in %d levels, least fan-out %d", n, depth, least)
	}
}

func TestSlots(t *testing.T) {
	for _, c := range []struct {
		bytes, rate float64
		want        int
	}{{0, 1, 0}, {-1, 1, 0}, {1, 0, 0}, {2.5, 1, 2}, {0.3 / 0.1, 1, 3}, {math.Inf(1), 1, 1e6}} {
		if got := Slots(c.bytes, c.rate); got != c.want {
			t.Errorf("Slots(%v, %v) = %d", c.bytes, c.rate, got)
		}
	}
}

// TestRefused: a box that does not take a rendition does not hold it, whatever it held or should keep, and holds others.
func TestRefused(t *testing.T) {
	t.Parallel()
	boxes := []Box{{ID: "a", Grant: 1000, Score: 1, Relays: true}, {ID: "b", Grant: 100, Score: 0.1, Relays: true}}
	refused := map[id.BoxID]bool{"a": true}
	before := Plan{Holders: map[string]Holders{"x": {Boxes: []id.BoxID{"a"}}}}
	p := Make(boxes, []Rendition{
		{Name: "x", Rate: 10, Replicas: 2, Viewers: 1, Keep: []id.BoxID{"a"}, Refused: refused},
		{Name: "y", Rate: 10, Replicas: 2},
	}, 1, before)
	if got := p.Holders["x"].Boxes; !slices.Equal(got, []id.BoxID{"b"}) {
		t.Errorf("holders of what one refuses: %v", got)
	}
	if got := p.Holders["y"].Boxes; !slices.Equal(got, []id.BoxID{"a", "b"}) {
		t.Errorf("holders of another: %v", got)
	}
	boxes[0].Place, boxes[1].Place = taipei, taipei
	p = Make(boxes, []Rendition{{Name: "x", Rate: 10, Viewers: 5, Areas: []Area{{"TW", taipei, 5}}, Refused: refused}}, 1, before)
	if got := p.Holders["x"].Boxes; !slices.Equal(got, []id.BoxID{"b"}) {
		t.Errorf("holders near viewers: %v", got)
	}
}
