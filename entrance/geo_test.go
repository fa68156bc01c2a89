//go:build !386 && !arm && !mips && !mipsle

// The writer of test databases does not compile where an int has 32 bits.

package entrance

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/maxmind/mmdbwriter"
	"github.com/maxmind/mmdbwriter/mmdbtype"

	"dandelion/pkg/wire"
)

// TestPlacesOfBoxesThatDoNotSay: the entrance looks them up, and believes those that do say.
func TestPlacesOfBoxesThatDoNotSay(t *testing.T) {
	t.Parallel()
	tree, err := mmdbwriter.New(mmdbwriter.Options{DatabaseType: "GeoLite2-City", IncludeReservedNetworks: true})
	if err != nil {
		t.Fatal(err)
	}
	_, network, _ := net.ParseCIDR("203.0.113.0/24")
	if err := tree.Insert(network, mmdbtype.Map{"country": mmdbtype.Map{"iso_code": mmdbtype.String("DE")}}); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "city.mmdb")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := tree.WriteTo(f); err != nil {
		t.Fatal(err)
	}
	e := start(t, embedded, func(cfg *Config) {
		trustLoopback(cfg)
		cfg.GeoIPDB = path
	})
	for i, test := range []struct {
		from string
		says any
		want string // of the API's geoip
	}{
		{"203.0.113.9", nil, "map[COUNTRY:DE IP:203.0.113.9]"},
		{"203.0.113.9", map[string]string{"COUNTRY": "JP"}, "map[COUNTRY:JP]"},
		{"127.0.0.1", nil, "<nil>"},
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
			eventually(t, time.Second, func() string {
				if got := fmt.Sprint(e.api("/api/v1/boxes/" + string(b.id))["geoip"]); got != test.want {
					return fmt.Sprintf("from %s: %s, want %s", test.from, got, test.want)
				}
				return ""
			})
		}
	}
}
