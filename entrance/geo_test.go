//go:build !386 && !arm && !mips && !mipsle

// The writer of test databases does not compile where an int has 32 bits.

package entrance

import (
	"fmt"
	"testing"

	"github.com/maxmind/mmdbwriter/mmdbtype"

	"dandelion/pkg/geo/geotest"
	"dandelion/pkg/wire"
)

// TestPlacesOfBoxesThatDoNotSay: the entrance looks them up, and believes those that do say.
func TestPlacesOfBoxesThatDoNotSay(t *testing.T) {
	t.Parallel()
	path := geotest.New(t, "GeoLite2-City", map[string]mmdbtype.Map{"203.0.113.0/24": geotest.City("DE", "", "", 0, 0)})
	e := start(t, embedded, func(cfg *Config) {
		trustLoopback(cfg)
		cfg.GeoIPDB = []string{path}
	})
	for i, test := range []struct {
		from string
		says any
		want string // of the API's geoip and place
	}{
		{"203.0.113.9", nil, "map[COUNTRY:DE IP:203.0.113.9] DE"},
		{"203.0.113.9", map[string]string{"COUNTRY": "JP"}, "map[COUNTRY:JP] JP"},
		{"127.0.0.1", nil, "<nil> unknown"},
		{"203.0.113.9", map[string]string{"LOC": "0,0"}, "map[COUNTRY:DE IP:203.0.113.9] DE"},
		{"127.0.0.1", map[string]string{"LOC": "0,0"}, "<nil> unknown"},
	} {
		b := newBox(t, i)
		p := e.dialWith(wire.EntranceWSPath, from(test.from))
		report := b.report(func(m map[string]any) {
			// A name, which the dial-back refuses once it is resolved: nothing is dialled.
			m["CONNECT_WS"], m["EDGE_URL"] = "http://localhost:"+b.port()+wire.BoxWSPath(b.id), "http://localhost:"+b.port()
			if test.says != nil {
				m["GEOIP"] = test.says
			}
		})
		for range 2 {
			if reply := p.ask(report); reply["MESSAGE"] != "ACCEPTED" {
				t.Fatal(reply)
			}
			eventually(t, func() string {
				box := e.api("/api/v1/boxes/" + string(b.id))
				if got := fmt.Sprint(box["geoip"], " ", box["place"]); got != test.want {
					return fmt.Sprintf("from %s: %s, want %s", test.from, got, test.want)
				}
				return ""
			})
		}
	}
}

// TestPlaceFollowsTheDatabase: a box that says nothing is looked up again when the database was read again.
func TestPlaceFollowsTheDatabase(t *testing.T) {
	t.Parallel()
	records := func(country string) map[string]mmdbtype.Map {
		return map[string]mmdbtype.Map{"203.0.113.0/24": geotest.City(country, "", "", 0, 0)}
	}
	path := geotest.New(t, "GeoLite2-Country", records("DE"))
	e := start(t, embedded, func(cfg *Config) {
		trustLoopback(cfg)
		cfg.GeoIPDB = []string{path}
	})
	b := newBox(t, 1)
	p := e.dialWith(wire.EntranceWSPath, from("203.0.113.9"))
	report := b.report(func(m map[string]any) {
		m["CONNECT_WS"], m["EDGE_URL"] = "http://localhost:"+b.port()+wire.BoxWSPath(b.id), "http://localhost:"+b.port()
	})
	for _, want := range []string{"DE", "JP", "unknown", "FR"} {
		if want == "unknown" {
			geotest.Write(t, path, "GeoLite2-Country", nil)
		} else {
			geotest.Write(t, path, "GeoLite2-Country", records(want))
		}
		e.places.Look()
		e.places.Look()
		if reply := p.ask(report); reply["MESSAGE"] != "ACCEPTED" {
			t.Fatal(reply)
		}
		eventually(t, func() string {
			if got := e.api("/api/v1/boxes/" + string(b.id))["place"]; got != want {
				return fmt.Sprintf("%s, want %s", got, want)
			}
			return ""
		})
	}
}
