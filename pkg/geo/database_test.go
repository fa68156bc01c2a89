//go:build !386 && !arm && !mips && !mipsle

package geo

import (
	"bytes"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/maxmind/mmdbwriter/mmdbtype"

	"dandelion/pkg/geo/geotest"
	"dandelion/pkg/wire"
)

func open(t *testing.T, paths ...string) *DB {
	t.Helper()
	db, err := Open(paths, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return db
}

func location(lat, lon float64) mmdbtype.Map {
	return mmdbtype.Map{"latitude": mmdbtype.Float64(lat), "longitude": mmdbtype.Float64(lon)}
}

func TestLookupCity(t *testing.T) {
	t.Parallel()
	full := geotest.City("DE", "North Rhine-Westphalia", "Cologne", 50.9333, 6.95)
	db := open(t, geotest.New(t, "GeoLite2-City", map[string]mmdbtype.Map{
		"203.0.113.0/24":  full,
		"2001:db8::/32":   full,
		"198.51.100.0/24": geotest.City("FR", "", "", 0, 0),
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
	if none := open(t); none != nil {
		t.Errorf("no paths: %v", none)
	} else if got, ok := none.Lookup(netip.MustParseAddr("203.0.113.7")); ok {
		t.Errorf("no database: %+v", got)
	}
}

// TestDatabasesAreJoined: what one does not know comes from the next, but no city of another country.
func TestDatabasesAreJoined(t *testing.T) {
	t.Parallel()
	const network, other = "203.0.113.0/24", "198.51.100.0/24"
	asn := geotest.New(t, "GeoLite2-ASN", map[string]mmdbtype.Map{network: geotest.ASN(64500, "Example Net"), other: geotest.ASN(64501, "")})
	country := geotest.New(t, "DBIP-Country-Lite", map[string]mmdbtype.Map{network: geotest.City("JP", "", "", 0, 0)})
	city := geotest.New(t, "GeoIP2-City", map[string]mmdbtype.Map{
		network: geotest.City("JP", "Tokyo", "Tokyo", 35.7, 139.7), other: geotest.City("KR", "", "Seoul", 0, 0),
	})
	elsewhere := geotest.New(t, "GeoIP2-City", map[string]mmdbtype.Map{network: geotest.City("US", "", "Boston", 42, -71)})
	enterprise := geotest.New(t, "GeoIP2-Enterprise", map[string]mmdbtype.Map{network: {
		"country": mmdbtype.Map{"iso_code": mmdbtype.String("JP")}, "traits": geotest.ASN(64502, "Enterprise"),
	}})
	isp := geotest.New(t, "GeoIP2-ISP", map[string]mmdbtype.Map{network: geotest.ASN(64503, "ISP")})
	for _, test := range []struct {
		name  string
		paths []string
		want  wire.GeoIP
	}{
		{"ASN", []string{asn}, wire.GeoIP{Org: "AS64500 Example Net"}},
		{"country", []string{country}, wire.GeoIP{Country: "JP"}},
		{"ISP", []string{isp}, wire.GeoIP{Org: "AS64503 ISP"}},
		{"enterprise", []string{enterprise, asn}, wire.GeoIP{Country: "JP", Org: "AS64502 Enterprise"}},
		{"all", []string{country, asn, city}, wire.GeoIP{Country: "JP", Region: "Tokyo", City: "Tokyo", Loc: "35.7000,139.7000", Org: "AS64500 Example Net"}},
		{"two countries", []string{country, elsewhere, asn}, wire.GeoIP{Country: "JP", Org: "AS64500 Example Net"}},
	} {
		test.want.IP = "203.0.113.7"
		if got, ok := open(t, test.paths...).Lookup(netip.MustParseAddr("203.0.113.7")); !ok || got != test.want {
			t.Errorf("%s: %+v, %v; want %+v", test.name, got, ok, test.want)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	text := filepath.Join(t.TempDir(), "text.mmdb")
	if err := os.WriteFile(text, []byte("not a database"), 0o600); err != nil {
		t.Fatal(err)
	}
	empty := filepath.Join(t.TempDir(), "empty.mmdb")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ name, path, want string }{
		{"missing", filepath.Join(t.TempDir(), "absent.mmdb"), "absent.mmdb: no such file"},
		{"empty", empty, "empty.mmdb: it is empty"},
		{"a directory", t.TempDir(), "no file"},
		{"not a database", text, "text.mmdb"},
		{"flat schema", geotest.New(t, "country ipvAll", nil), `dandelion geoip fetch`},
		{"no places", geotest.New(t, "GeoIP2-Domain", nil), "does not say where addresses are"},
	} {
		if _, err := Open([]string{test.path}, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v; want %q in it", test.name, err, test.want)
		}
	}
}

// TestFileChanges: a new file is read, by rename or in place, when two looks find it the same; a broken one
// is named once and what was read before stays; lookups go on meanwhile.
func TestFileChanges(t *testing.T) {
	t.Parallel()
	const network = "203.0.113.0/24"
	addr := netip.MustParseAddr("203.0.113.7")
	path := geotest.New(t, "GeoLite2-Country", map[string]mmdbtype.Map{network: geotest.City("DE", "", "", 0, 0)})
	var words bytes.Buffer
	db, err := Open([]string{path}, slog.New(slog.NewTextHandler(&words, nil)))
	if err != nil {
		t.Fatal(err)
	}
	cache := NewCache(db)

	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					if place, ok := db.Lookup(addr); !ok || len(place.Country) != 2 {
						t.Errorf("%+v", place)
						return
					}
				}
			}
		})
	}
	expect := func(when, country string, loaded uint64) {
		t.Helper()
		if place, _ := db.Lookup(addr); place.Country != country || db.Loaded() != loaded {
			t.Errorf("%s: %+v, loaded %d; want %s, %d", when, place, db.Loaded(), country, loaded)
		}
		if place := cache.Place(addr); place == nil || place.Area != country || place != cache.Place(addr) {
			t.Errorf("%s: cached %+v; want %s", when, place, country)
		}
	}
	other := geotest.New(t, "GeoLite2-Country", map[string]mmdbtype.Map{network: geotest.City("FR", "", "", 0, 0)})
	whole, err := os.ReadFile(other)
	if err != nil {
		t.Fatal(err)
	}
	expect("at first", "DE", 0)
	geotest.Write(t, path, "GeoLite2-Country", map[string]mmdbtype.Map{network: geotest.City("JP", "", "", 0, 0)})
	db.Look()
	expect("seen once", "DE", 0)
	db.Look()
	expect("renamed", "JP", 1)
	db.Look()
	expect("looked at again", "JP", 1)

	if err := os.WriteFile(path, whole[:len(whole)/2], 0o600); err != nil { // in place
		t.Fatal(err)
	}
	for range 4 {
		db.Look()
	}
	expect("half written", "JP", 1)
	if n := strings.Count(words.String(), "cannot be read"); n != 1 || !strings.Contains(words.String(), path) {
		t.Errorf("said %d times: %s", n, &words)
	}
	if err := os.WriteFile(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	db.Look()
	db.Look()
	expect("whole again", "FR", 2)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	for range 4 {
		db.Look()
	}
	expect("removed", "FR", 2)
	if n := strings.Count(words.String(), "cannot be read"); n != 2 {
		t.Errorf("said %d times: %s", n, &words)
	}
	close(stop)
	readers.Wait()
}

// TestCacheIsBounded: more addresses than a generation has room for push others out, and nothing else.
func TestCacheIsBounded(t *testing.T) {
	t.Parallel()
	c := NewCache(open(t, geotest.New(t, "GeoLite2-Country", map[string]mmdbtype.Map{"1.0.0.0/8": geotest.City("AU", "", "", 0, 0)})))
	for i := range 3*mostCached + 10 {
		addr := netip.AddrFrom4([4]byte{1, byte(i >> 16), byte(i >> 8), byte(i)})
		if p := c.Place(addr); p == nil || p.Area != "AU" {
			t.Fatalf("%s: %+v", addr, p)
		}
	}
	if n := len(c.now.addrs) + len(c.old.addrs); n > 2*mostCached {
		t.Errorf("%d addresses are remembered", n)
	}
	if n := len(c.now.places); n != 1 {
		t.Errorf("%d places for one", n)
	}
	if p := c.Place(netip.MustParseAddr("127.0.0.1")); p != nil {
		t.Errorf("loopback: %+v", p)
	}
}

// BenchmarkPlace: a viewer who was seen before costs no allocation.
func BenchmarkPlace(b *testing.B) {
	path := geotest.New(b, "GeoLite2-City", map[string]mmdbtype.Map{"1.0.0.0/8": geotest.City("AU", "Victoria", "Melbourne", -37.8, 145)})
	db, err := Open([]string{path}, slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	addr := netip.MustParseAddr("1.2.3.4")
	b.Run("cached", func(b *testing.B) {
		b.ReportAllocs()
		c := NewCache(db)
		for b.Loop() {
			c.Place(addr)
		}
	})
	b.Run("looked up", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			db.Lookup(addr)
		}
	})
}
