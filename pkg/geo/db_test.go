//go:build !386 && !arm && !mips && !mipsle

// The writer of test databases does not compile where an int has 32 bits.

package geo

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/maxmind/mmdbwriter"
	"github.com/maxmind/mmdbwriter/mmdbtype"

	"dandelion/pkg/wire"
)

// database writes a database of that type and returns its path.
func database(t *testing.T, kind string, records map[string]mmdbtype.Map) string {
	t.Helper()
	tree, err := mmdbwriter.New(mmdbwriter.Options{DatabaseType: kind, IncludeReservedNetworks: true})
	if err != nil {
		t.Fatal(err)
	}
	for network, record := range records {
		_, ipNet, err := net.ParseCIDR(network)
		if err != nil {
			t.Fatal(err)
		}
		if err := tree.Insert(ipNet, record); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(t.TempDir(), "geo.mmdb")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := tree.WriteTo(f); err != nil {
		t.Fatal(err)
	}
	return path
}

func open(t *testing.T, path string) *DB {
	t.Helper()
	db, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func named(name string) mmdbtype.Map {
	return mmdbtype.Map{"names": mmdbtype.Map{"en": mmdbtype.String(name), "de": mmdbtype.String("anders")}}
}

func location(lat, lon float64) mmdbtype.Map {
	return mmdbtype.Map{"latitude": mmdbtype.Float64(lat), "longitude": mmdbtype.Float64(lon)}
}

func TestLookupCity(t *testing.T) {
	t.Parallel()
	full := mmdbtype.Map{
		"country":      mmdbtype.Map{"iso_code": mmdbtype.String("DE")},
		"city":         named("Cologne"),
		"subdivisions": mmdbtype.Slice{named("North Rhine-Westphalia"), named("smaller")},
		"location":     location(50.9333, 6.95),
	}
	db := open(t, database(t, "GeoLite2-City", map[string]mmdbtype.Map{
		"203.0.113.0/24":  full,
		"2001:db8::/32":   full,
		"198.51.100.0/24": {"country": mmdbtype.Map{"iso_code": mmdbtype.String("FR")}},
		"192.0.2.0/25":    {"location": location(0, 0)},
		"192.0.2.128/25":  {"location": mmdbtype.Map{"latitude": mmdbtype.Float64(5)}},
		"9.0.0.0/8":       {"country": mmdbtype.String("not a map")},
		"192.168.0.0/16":  full,
		"127.0.0.0/8":     full,
	}))
	cologne := wire.GeoIP{Country: "DE", City: "Cologne", Region: "North Rhine-Westphalia", Loc: "50.9333,6.9500"}
	for _, test := range []struct {
		addr string
		want wire.GeoIP
	}{
		{"203.0.113.7", cologne},
		{"::ffff:203.0.113.7", cologne},
		{"2001:db8::1", cologne},
		{"198.51.100.1", wire.GeoIP{Country: "FR"}},
		{"192.0.2.1", wire.GeoIP{}},
		{"192.0.2.129", wire.GeoIP{}},
		{"8.8.8.8", wire.GeoIP{}},
		{"9.9.9.9", wire.GeoIP{}},
		{"192.168.1.1", wire.GeoIP{}},
		{"127.0.0.1", wire.GeoIP{}},
		{"::1", wire.GeoIP{}},
		{"169.254.1.1", wire.GeoIP{}},
	} {
		got, ok := db.Lookup(netip.MustParseAddr(test.addr))
		if test.want != (wire.GeoIP{}) {
			test.want.IP = netip.MustParseAddr(test.addr).Unmap().String()
		}
		if got != test.want || ok != (test.want != wire.GeoIP{}) {
			t.Errorf("Lookup(%s) = %+v, %v; want %+v", test.addr, got, ok, test.want)
		}
	}
	if _, ok := db.Lookup(netip.Addr{}); ok {
		t.Error("the zero address has a place")
	}
}

func TestLookupOtherDatabases(t *testing.T) {
	t.Parallel()
	addr := netip.MustParseAddr("203.0.113.7")
	asn := open(t, database(t, "GeoLite2-ASN", map[string]mmdbtype.Map{"203.0.113.0/24": {
		"autonomous_system_number":       mmdbtype.Uint32(64500),
		"autonomous_system_organization": mmdbtype.String("Example Net"),
	}}))
	if got, ok := asn.Lookup(addr); !ok || got != (wire.GeoIP{IP: "203.0.113.7", Org: "AS64500 Example Net"}) {
		t.Errorf("ASN: %+v, %v", got, ok)
	}
	country := open(t, database(t, "DBIP-Country-Lite", map[string]mmdbtype.Map{"203.0.113.0/24": {
		"country": mmdbtype.Map{"iso_code": mmdbtype.String("JP")},
	}}))
	if got, ok := country.Lookup(addr); !ok || got != (wire.GeoIP{IP: "203.0.113.7", Country: "JP"}) {
		t.Errorf("country: %+v, %v", got, ok)
	}
	var none *DB
	if got, ok := none.Lookup(addr); ok {
		t.Errorf("no database: %+v", got)
	}
	if err := none.Close(); err != nil {
		t.Error(err)
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	text := filepath.Join(t.TempDir(), "text.mmdb")
	if err := os.WriteFile(text, []byte("not a database"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ name, path, want string }{
		{"missing", filepath.Join(t.TempDir(), "absent.mmdb"), "no such file"},
		{"not a database", text, "text.mmdb"},
		{"flat schema", database(t, "ipinfo country_asn.mmdb", nil), "want a City, Country or ASN database"},
		{"no places", database(t, "GeoIP2-Domain", nil), "does not say where addresses are"},
	} {
		if _, err := Open(test.path); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v; want %q in it", test.name, err, test.want)
		}
	}
}
