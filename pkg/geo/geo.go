// Package geo says where an address is, from a GeoIP database on disk, and how far two places
// are from each other. It must not know who asks, nor what nearness is good for.
package geo

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"

	"github.com/oschwald/geoip2-golang/v2"

	"dandelion/pkg/netaddr"
	"dandelion/pkg/wire"
)

// DB is a GeoIP database: a City, Country, Enterprise or ASN one in MaxMind's schema. A nil *DB
// is one that knows no address. It may be used concurrently; Close comes after the last Lookup.
type DB struct {
	reader *geoip2.Reader
	lookup func(*geoip2.Reader, netip.Addr) (wire.GeoIP, error)
}

// Open maps the database at path into memory. While it is open the file may be replaced by
// rename, not rewritten in place. The error says what is wrong with the file and what would do.
func Open(path string) (*DB, error) {
	reader, err := geoip2.Open(path)
	var unknown geoip2.UnknownDatabaseTypeError
	switch {
	case errors.As(err, &unknown):
		reader.Close()
		return nil, fmt.Errorf("GeoIP database %s is of type %q: want a City, Country or ASN database in MaxMind's schema "+
			"(GeoLite2, GeoIP2 or DB-IP lite)", path, unknown.DatabaseType)
	case err != nil:
		return nil, fmt.Errorf("GeoIP database %s: %w", path, err)
	}
	for _, lookup := range []func(*geoip2.Reader, netip.Addr) (wire.GeoIP, error){city, organisation} {
		// Which methods a database has is told only by calling them.
		if _, err := lookup(reader, netip.IPv4Unspecified()); !errors.As(err, new(geoip2.InvalidMethodError)) {
			return &DB{reader: reader, lookup: lookup}, nil
		}
	}
	kind := reader.Metadata().DatabaseType
	reader.Close()
	return nil, fmt.Errorf("GeoIP database %s is of type %q: it does not say where addresses are; want a City, Country or ASN database", path, kind)
}

// Close gives the file free.
func (db *DB) Close() error {
	if db == nil {
		return nil
	}
	return db.reader.Close()
}

// Lookup returns what the database knows of a public address: COUNTRY as an ISO 3166-1 code,
// CITY and REGION in English, ORG as "AS<number> <name>", LOC as "lat,lon" in degrees. What it does
// not know is empty. ok is false where it knows nothing; other addresses than public ones are
// nowhere.
func (db *DB) Lookup(addr netip.Addr) (place wire.GeoIP, ok bool) {
	addr = addr.Unmap().WithZone("")
	if db == nil || netaddr.ScopeOf(addr) != netaddr.Public {
		return wire.GeoIP{}, false
	}
	place, err := db.lookup(db.reader, addr)
	if err != nil || place == (wire.GeoIP{}) {
		// A record that cannot be read is worth no more than none.
		return wire.GeoIP{}, false
	}
	place.IP = addr.String()
	return place, true
}

func city(r *geoip2.Reader, addr netip.Addr) (wire.GeoIP, error) {
	record, err := r.City(addr)
	if err != nil {
		return wire.GeoIP{}, err
	}
	place := wire.GeoIP{Country: record.Country.ISOCode, City: record.City.Names.English}
	if len(record.Subdivisions) > 0 {
		place.Region = record.Subdivisions[0].Names.English
	}
	if record.Location.HasCoordinates() {
		place.Loc = formatLoc(*record.Location.Latitude, *record.Location.Longitude)
	}
	return place, nil
}

func organisation(r *geoip2.Reader, addr netip.Addr) (wire.GeoIP, error) {
	record, err := r.ASN(addr)
	if err != nil || record.AutonomousSystemNumber == 0 {
		return wire.GeoIP{}, err
	}
	org := "AS" + strconv.FormatUint(uint64(record.AutonomousSystemNumber), 10) + " " + record.AutonomousSystemOrganization
	return wire.GeoIP{Org: strings.TrimSpace(org)}, nil
}

// formatLoc returns "" for what is no place on earth, and for 0,0, where databases put what they
// cannot place.
func formatLoc(lat, lon float64) string {
	if !onEarth(lat, lon) {
		return ""
	}
	return strconv.FormatFloat(lat, 'f', 4, 64) + "," + strconv.FormatFloat(lon, 'f', 4, 64)
}

func onEarth(lat, lon float64) bool {
	return math.Abs(lat) <= 90 && math.Abs(lon) <= 180 && (lat != 0 || lon != 0)
}

// Distance returns the kilometres between two places along the surface. ok is false where LOC
// of either is missing, unreadable or 0,0.
func Distance(a, b wire.GeoIP) (km float64, ok bool) {
	latA, lonA, okA := parseLoc(a.Loc)
	latB, lonB, okB := parseLoc(b.Loc)
	if !okA || !okB {
		return 0, false
	}
	return haversine(latA, lonA, latB, lonB), true
}

func parseLoc(loc string) (lat, lon float64, ok bool) {
	first, second, found := strings.Cut(loc, ",")
	if !found {
		return 0, 0, false
	}
	lat, errLat := strconv.ParseFloat(strings.TrimSpace(first), 64)
	lon, errLon := strconv.ParseFloat(strings.TrimSpace(second), 64)
	if errLat != nil || errLon != nil {
		return 0, 0, false
	}
	return lat, lon, onEarth(lat, lon)
}

func haversine(latA, lonA, latB, lonB float64) float64 {
	const earth = 6371.0 // km, mean radius
	const radians = math.Pi / 180
	sinLat := math.Sin((latB - latA) * radians / 2)
	sinLon := math.Sin((lonB - lonA) * radians / 2)
	h := sinLat*sinLat + math.Cos(latA*radians)*math.Cos(latB*radians)*sinLon*sinLon
	return 2 * earth * math.Asin(math.Sqrt(min(h, 1)))
}
