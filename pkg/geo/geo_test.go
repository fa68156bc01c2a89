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
