//go:build !386 && !arm && !mips && !mipsle

// Package geotest makes small GeoIP databases for tests. Only tests import it. The writer of databases
// does not compile where an int has 32 bits.
package geotest

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/maxmind/mmdbwriter"
	"github.com/maxmind/mmdbwriter/mmdbtype"
)

// City is a record of a City database. What is empty is left out, as are coordinates 0,0.
func City(country, region, city string, lat, lon float64) mmdbtype.Map {
	m := mmdbtype.Map{}
	if country != "" {
		m["country"] = mmdbtype.Map{"iso_code": mmdbtype.String(country)}
	}
	if city != "" {
		m["city"] = named(city)
	}
	if region != "" {
		m["subdivisions"] = mmdbtype.Slice{named(region), named("smaller")}
	}
	if lat != 0 || lon != 0 {
		m["location"] = mmdbtype.Map{"latitude": mmdbtype.Float64(lat), "longitude": mmdbtype.Float64(lon)}
	}
	return m
}

// ASN is a record of an ASN database.
func ASN(number uint32, name string) mmdbtype.Map {
	return mmdbtype.Map{
		"autonomous_system_number":       mmdbtype.Uint32(number),
		"autonomous_system_organization": mmdbtype.String(name),
	}
}

func named(name string) mmdbtype.Map {
	return mmdbtype.Map{"names": mmdbtype.Map{"en": mmdbtype.String(name), "de": mmdbtype.String("anders")}}
}

// New writes a database of that type, with records by network, into a directory of its own and returns
// its path.
func New(t testing.TB, kind string, records map[string]mmdbtype.Map) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "geo.mmdb")
	Write(t, path, kind, records)
	return path
}

// Write writes a database in place of what is at path, by rename.
func Write(t testing.TB, path, kind string, records map[string]mmdbtype.Map) {
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
	f, err := os.Create(path + ".new")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := tree.WriteTo(f); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		t.Fatal(err)
	}
}
