package geo

import (
	"math"
	"testing"

	"dandelion/pkg/wire"
)

func TestDistance(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		a, b string
		km   float64 // NaN: unknown
	}{
		{"52.5200,13.4050", "48.8566,2.3522", 878},
		{"52.52, 13.405", "52.52,13.405", 0},
		{"10,179.9", "10,-179.9", 22},
		{"90,0", "-90,0", 20015},
		{"0,90", "0,-90", 20015},
		{"0,0", "48.8,2.3", math.NaN()},
		{"", "48.8,2.3", math.NaN()},
		{"48.8", "48.8,2.3", math.NaN()},
		{"91,0", "48.8,2.3", math.NaN()},
		{"48.8,181", "48.8,2.3", math.NaN()},
		{"NaN,NaN", "48.8,2.3", math.NaN()},
		{"Inf,0", "48.8,2.3", math.NaN()},
		{"48.8,2.3,5", "48.8,2.3", math.NaN()},
	} {
		km, ok := Distance(wire.GeoIP{Loc: test.a}, wire.GeoIP{Loc: test.b})
		if ok == math.IsNaN(test.km) || ok && math.Abs(km-test.km) > 2 {
			t.Errorf("Distance(%q, %q) = %v, %v; want %v", test.a, test.b, km, ok, test.km)
		}
	}
}

func TestKm(t *testing.T) {
	t.Parallel()
	at := func(country, city, org, loc string) *Place {
		return PlaceOf(wire.GeoIP{Country: country, City: city, Org: org, Loc: loc})
	}
	berlin, paris := at("DE", "Berlin", "AS1 One", "52.5,13.4"), at("FR", "Paris", "AS1 ONE SA", "48.85,2.35")
	for _, test := range []struct {
		name           string
		a, b           *Place
		km             float64
		known          bool
		city, provider bool
	}{
		{"coordinates", berlin, paris, 878, true, false, true},
		{"no coordinates, one country", at("DE", "Berlin", "", ""), berlin, 500, true, true, false},
		{"no coordinates, two countries", at("DE", "Paris", "", ""), at("FR", "Paris", "", ""), 7500, true, false, false},
		{"providers alone", at("", "", "AS2", ""), at("", "", "AS2 Two", ""), UnknownKm, false, false, true},
		{"unknown", nil, berlin, UnknownKm, false, false, false},
		{"both unknown", nil, nil, UnknownKm, false, false, false},
		{"0,0 is no place", at("", "", "", "0,0"), berlin, UnknownKm, false, false, false},
	} {
		km, known := Km(test.a, test.b)
		back, _ := Km(test.b, test.a)
		if math.Abs(km-test.km) > 2 || known != test.known || back != km || SameCity(test.a, test.b) != test.city || SameProvider(test.a, test.b) != test.provider {
			t.Errorf("%s: %v km, %v; city %v, provider %v", test.name, km, known, SameCity(test.a, test.b), SameProvider(test.a, test.b))
		}
	}
}

func TestTexts(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		place      wire.GeoIP
		text, area string
	}{
		{wire.GeoIP{}, "unknown", ""},
		{wire.GeoIP{IP: "127.0.0.1", Loc: "0,0"}, "unknown", ""},
		{wire.GeoIP{Country: "TW"}, "TW", "TW"},
		{wire.GeoIP{Country: "DE", Region: "Bavaria", City: "Munich"}, "Munich, DE", "Bavaria, DE"},
		{wire.GeoIP{Country: "DE", Region: "Bavaria"}, "Bavaria, DE", "Bavaria, DE"},
		{wire.GeoIP{Org: "AS1 One"}, "AS1 One", "AS1 One"},
		{wire.GeoIP{Loc: "1,2"}, "1,2", ""},
	} {
		area := ""
		if p := PlaceOf(test.place); p != nil {
			area = p.Area
		}
		if got := Text(test.place); got != test.text || area != test.area {
			t.Errorf("%+v: %q in %q; want %q in %q", test.place, got, area, test.text, test.area)
		}
	}
}
