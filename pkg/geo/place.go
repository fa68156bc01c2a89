package geo

import (
	"cmp"
	"math"
	"strconv"
	"strings"

	"dandelion/pkg/wire"
)

// Place is where somebody is, ready to be compared. A nil *Place and the zero Place are unknown.
type Place struct {
	// Area is the region and country of it, such as "Bavaria, DE", or the country alone, or the provider
	// where no country is known: a name for what lies near together. "" where nothing is known.
	Area    string
	country string
	city    string
	asn     string // or the provider's name
	at      Point
}

// Point is a place on the unit sphere; sums of them point to the middle of places. The zero Point is none.
type Point struct{ X, Y, Z float64 }

// PlaceOf makes what a peer says, or a database knows, ready to be compared; nil where that is nothing.
func PlaceOf(g wire.GeoIP) *Place {
	lat, lon, located := parseLoc(g.Loc)
	if g.Country == "" && g.City == "" && g.Org == "" && !located {
		return nil
	}
	p := &Place{Area: g.Country, country: g.Country, city: g.City, asn: g.Org}
	if strings.HasPrefix(g.Org, "AS") {
		p.asn, _, _ = strings.Cut(g.Org, " ") // names are spelled in many ways
	}
	switch {
	case g.Country == "":
		p.Area = g.Org
	case g.Region != "":
		p.Area = g.Region + ", " + g.Country
	}
	if located {
		p.at = pointAt(lat, lon)
	}
	return p
}

// InArea returns a place in the area of p, of no city or provider, in the middle of the points that sum is of.
func (p *Place) InArea(sum Point) *Place {
	q := *p
	if q.country != "" {
		q.asn = "" // one of many
	}
	if length := math.Sqrt(sum.X*sum.X + sum.Y*sum.Y + sum.Z*sum.Z); length > 1e-9 {
		q.city, q.at = "", Point{sum.X / length, sum.Y / length, sum.Z / length}
	}
	return &q
}

// At is the point of the place; zero where it is not known.
func (p *Place) At() Point {
	if p == nil {
		return Point{}
	}
	return p.at
}

// Add returns the sum of two points.
func (a Point) Add(b Point) Point { return Point{a.X + b.X, a.Y + b.Y, a.Z + b.Z} }

// What distances are taken to be, in km, where coordinates are missing.
const (
	UnknownKm   = 5000 // neither near nor far
	sameCountry = 500
	otherKm     = 7500 // of two countries
)

// Km estimates the kilometres between two places: along the surface where both have coordinates, else by
// their countries; UnknownKm, and known false, where even that is missing.
func Km(p, q *Place) (km float64, known bool) {
	switch {
	case p == nil || q == nil:
		return UnknownKm, false
	case p.at != (Point{}) && q.at != (Point{}):
		return between(p.at, q.at), true
	case p.country == "" || q.country == "":
		return UnknownKm, false
	case p.country == q.country:
		return sameCountry, true
	}
	return otherKm, true
}

// Said returns what a peer says of its place, without a LOC that is none, such as 0,0. ok is false where
// nothing is left that says where it is.
func Said(g wire.GeoIP) (place wire.GeoIP, ok bool) {
	if g.Loc != "" {
		if _, _, located := parseLoc(g.Loc); !located {
			g.Loc = ""
		}
	}
	return g, g.Country != "" || g.City != "" || g.Region != "" || g.Org != "" || g.Loc != ""
}

// Text is a place for people: "Cologne, DE", or the most that is known; "unknown" where that is nothing.
func Text(g wire.GeoIP) string {
	g, _ = Said(g)
	town := cmp.Or(g.City, g.Region)
	if town != "" && g.Country != "" {
		return town + ", " + g.Country
	}
	return cmp.Or(town, g.Country, g.Org, g.Loc, "unknown")
}

// SameCity reports whether both are known to be in one city.
func SameCity(p, q *Place) bool {
	return p != nil && q != nil && p.city != "" && p.city == q.city && p.country == q.country
}

// SameProvider reports whether both are known to be in one autonomous system.
func SameProvider(p, q *Place) bool { return p != nil && q != nil && p.asn != "" && p.asn == q.asn }

// Away says in steps how far two places are apart: 0 in one provider's network and not far, 1 in one city,
// then a step more for each half as far again, so that the nearer of two places shows wherever one is.
// AwayUnknown is neither near nor far.
func Away(p, q *Place) int {
	km, known := Km(p, q)
	switch {
	case SameProvider(p, q) && (km <= providerKm || !known):
		return 0
	case SameCity(p, q) || km < cityKm:
		return 1
	}
	return 2 + int(2*math.Log2(km/cityKm))
}

// AwayUnknown is Away of places of which one is unknown.
var AwayUnknown = Away(nil, nil)

const (
	providerKm = 1000 // a provider's network may span continents
	cityKm     = 50
)

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

// Distance is Km of places that are not compared often. A LOC that is unreadable or 0,0 is none.
func Distance(a, b wire.GeoIP) (km float64, known bool) {
	p, q := Place{country: a.Country}, Place{country: b.Country}
	latA, lonA, okA := parseLoc(a.Loc)
	latB, lonB, okB := parseLoc(b.Loc)
	if okA && okB {
		p.at, q.at = pointAt(latA, lonA), pointAt(latB, lonB)
	}
	return Km(&p, &q)
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

func pointAt(lat, lon float64) Point {
	const radians = math.Pi / 180
	sinLat, cosLat := math.Sincos(lat * radians)
	sinLon, cosLon := math.Sincos(lon * radians)
	return Point{cosLat * cosLon, cosLat * sinLon, sinLat}
}

// between is the way along the surface of two points of the unit sphere, by their chord.
func between(a, b Point) float64 {
	const earth = 6371.0 // km, mean radius
	x, y, z := a.X-b.X, a.Y-b.Y, a.Z-b.Z
	return 2 * earth * math.Asin(min(math.Sqrt(x*x+y*y+z*z)/2, 1))
}
