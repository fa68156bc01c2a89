package plan

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"dandelion/pkg/geo"
	"dandelion/pkg/id"
	"dandelion/pkg/wire"
)

var (
	taipei = geo.PlaceOf(wire.GeoIP{Country: "TW", Loc: "25.0,121.5"})
	tokyo  = geo.PlaceOf(wire.GeoIP{Country: "JP", Loc: "35.7,139.7"})
	berlin = geo.PlaceOf(wire.GeoIP{Country: "DE", Loc: "52.5,13.4"})
)

// world has n boxes of six slots in each of the places; nil: nobody knows where.
func world(n int, places ...*geo.Place) (list []Box) {
	for _, place := range places {
		name := "somewhere"
		if place != nil {
			name = place.Area
		}
		for i := range n {
			list = append(list, Box{ID: id.BoxID(fmt.Sprintf("box-%s-%02d", name, i)), Grant: 8 * mbit, Score: 0.5, Relays: true, Place: place})
		}
	}
	return list
}

// in counts the holders in each area.
func in(boxes []Box, h Holders) string {
	counts := map[string]int{}
	for _, b := range h.Boxes {
		place := boxes[slices.IndexFunc(boxes, func(o Box) bool { return o.ID == b })].Place
		if place == nil {
			counts["somewhere"]++
			continue
		}
		counts[place.Area]++
	}
	return fmt.Sprint(counts)
}

func TestHoldersAreWhereViewersAre(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		boxes []Box
		areas []Area
		more  int // viewers of whom nobody knows where they are
		want  string
		far   int
	}{
		// Six slots, of which one is for passing on; and one holder more, as ever.
		{"two places", world(10, taipei, tokyo, berlin), []Area{{"TW", taipei, 20}, {"DE", berlin, 10}}, 0, "map[DE:3 TW:4]", 0},
		{"a place too small", world(3, taipei, tokyo, berlin), []Area{{"TW", taipei, 20}}, 0, "map[DE:1 JP:1 TW:3]", 0},
		{"no box near", world(5, berlin, nil), []Area{{"TW", taipei, 10}}, 0, "map[DE:3]", 10},
		{"few have no holders of their own", world(5, taipei, berlin), []Area{{"TW", taipei, 20}, {"DE", berlin, 2}}, 0, "map[DE:2 TW:4]", 0},
		{"viewers anywhere", world(5, taipei, berlin), []Area{{"TW", taipei, 5}}, 10, "map[DE:3 TW:1]", 0},
	} {
		r := Rendition{Name: "r", Rate: mbit, Viewers: c.more, Areas: c.areas, Replicas: 2}
		for _, a := range c.areas {
			r.Viewers += a.Viewers
		}
		p := Make(c.boxes, []Rendition{r}, 1, Plan{})
		h, far := p.Holders["r"], 0
		for _, a := range h.Far {
			far += a.Viewers
		}
		if got := in(c.boxes, h); got != c.want || far != c.far || h.Short != 0 {
			t.Errorf("%s: %s, %d far, short of %v; want %s, %d", c.name, got, far, h.Short, c.want, c.far)
		}
		if again := Make(c.boxes, []Rendition{r}, 1, p).Holders["r"].Boxes; !slices.Equal(again, h.Boxes) {
			t.Errorf("%s: %v became %v", c.name, h.Boxes, again)
		}
	}
}

// TestShortageHasAPlace: of two places, that one is named whose viewers find no box.
func TestShortageHasAPlace(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		areas []Area
		more  int
		want  string
	}{
		// Berlin's four boxes carry 24 and Taipei's four 24; seven slots are for passing on.
		{"one is", []Area{{"TW", taipei, 60}, {"DE", berlin, 10}}, 0, "[TW 29]"},
		{"both are", []Area{{"TW", taipei, 40}, {"DE", berlin, 40}}, 0, "39"},
		{"the others are", []Area{{"DE", berlin, 10}}, 100, "[]"},
	} {
		boxes := world(4, taipei, berlin)
		r := Rendition{Name: "r", Rate: mbit, Viewers: c.more, Areas: c.areas, Replicas: 2}
		for _, a := range c.areas {
			r.Viewers += a.Viewers
		}
		h := Make(boxes, []Rendition{r}, 1, Plan{}).Holders["r"]
		var got []string
		sum := 0.0
		for _, s := range h.ShortIn {
			got = append(got, fmt.Sprintf("%s %.0f", s.Area, s.Short/mbit))
			sum += s.Short / mbit
		}
		text := fmt.Sprint(got)
		if c.name == "both are" {
			text = fmt.Sprintf("%.0f", sum)
		}
		if text != c.want || c.more == 0 && math.Abs(sum*mbit-h.Short) > 1 {
			t.Errorf("%s: %v, short of %.0f Mbit/s; want %s", c.name, got, h.Short/mbit, c.want)
		}
	}
}
