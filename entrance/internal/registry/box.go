package registry

import (
	"math"
	"net/netip"
	"strconv"
	"time"

	"dandelion/pkg/id"
	"dandelion/pkg/wire"
)

// Box is what an entrance knows of one box. The values in the index are never changed; a newer
// one takes their place.
type Box struct {
	wire.Exchange           // its last report, unspecified hosts replaced
	ID            id.BoxID  // Exchange.ID, validated
	FirstSeen     time.Time // kept while it is known without a break of 10 minutes
	Reported      time.Time // when its last report came
	Expires       time.Time // when its lease ends; when it ended, of a box that left
	// Seen is the address that its session comes from.
	Seen netip.Addr
	// Address is the one that others reach it at; Seen where its URLs have a name that was not
	// resolved yet.
	Address netip.Addr
	Reach   Reach

	// Session numbers the websocket of a persistent box, so that only this one ends the lease; 0
	// for a box that dials for each exchange.
	Session    uint64
	Persistent bool
	// Own says that this process holds its lease; else another process of this entrance does.
	Own bool
	// GoneWhy says why a box is not in the index any more; "" for one that is.
	GoneWhy string

	score float64 // of BOX_SET: the end of its lease in Redis' time
}

// Reachability is what the dial-back found.
type Reachability uint8

// The states of reachability.
const (
	ReachUnknown Reachability = iota // not tried yet
	ReachYes
	ReachNo
)

// String returns what the API says: "unknown", "yes" or "no".
func (s Reachability) String() string { return [...]string{"unknown", "yes", "no"}[s] }

// Reach is the outcome of the last dial-back.
type Reach struct {
	State  Reachability
	Reason string     // one sentence for the owner
	Addr   netip.Addr // the address that answered
	At     time.Time
}

// sameURLs reports whether both claim the same places.
func (b *Box) sameURLs(other *Box) bool {
	return b.ConnectWS == other.ConnectWS && b.EdgeBase() == other.EdgeBase()
}

// inherit takes over from an earlier report what is still true.
func (b *Box) inherit(old *Box) {
	if old == nil {
		return
	}
	b.FirstSeen = old.FirstSeen
	if !b.sameURLs(old) || b.Seen != old.Seen {
		return
	}
	b.Reach = old.Reach
	if b.Reach.Addr.IsValid() {
		b.Address = b.Reach.Addr
	}
	if b.GeoIP == (wire.GeoIP{}) {
		b.GeoIP = old.GeoIP
	}
}

// Names of what the hash EXCHANGE holds beside the exchange, for other processes and for people.
const (
	fieldAddress   = "ADDRESS"
	fieldFirstSeen = "FIRST-SEEN" // unix seconds
	fieldReported  = "REPORTED"   // unix seconds
	fieldReachable = "REACHABLE"
	fieldReason    = "REASON"
	fieldReachedAt = "REACHED-AT" // the address that answered the dial-back
	fieldSession   = "SESSION"
)

const (
	sessionPersistent = "persistent"
	sessionDialled    = "dialled" // it dials for each exchange
)

// optionalFields may be missing from a hash and must then be removed from an older one.
var optionalFields = append(wire.FieldNames(),
	"EDGE_URL", "GEOIP", "FEATURES", fieldReachable, fieldReason, fieldReachedAt)

// flat returns the hash EXCHANGE of the box.
func (b *Box) flat(clock *clock) map[string]string {
	m := b.Exchange.Flat()
	m[fieldAddress] = b.Seen.String()
	m[fieldFirstSeen] = strconv.FormatInt(clock.at(b.FirstSeen).Unix(), 10)
	m[fieldReported] = strconv.FormatInt(clock.at(b.Reported).Unix(), 10)
	m[fieldSession] = sessionDialled
	if b.Persistent {
		m[fieldSession] = sessionPersistent
	}
	if b.Reach.State != ReachUnknown {
		m[fieldReachable] = b.Reach.State.String()
		m[fieldReason] = b.Reach.Reason
	}
	if b.Reach.Addr.IsValid() {
		m[fieldReachedAt] = b.Reach.Addr.String()
	}
	return m
}

// boxFromFlat reads what another process wrote. score is its lease in BOX_SET.
func boxFromFlat(box id.BoxID, flat map[string]string, score float64, clock *clock) (*Box, error) {
	x, err := wire.ExchangeFromFlat(flat)
	if err != nil {
		return nil, err
	}
	if x.ID != string(box) {
		return nil, wire.ErrFormat
	}
	b := &Box{Exchange: x, ID: box, score: score, Persistent: flat[fieldSession] == sessionPersistent}
	b.Seen, _ = netip.ParseAddr(flat[fieldAddress])
	b.Address = b.Seen
	b.FirstSeen = clock.local(unixField(flat[fieldFirstSeen]))
	b.Reported = clock.local(unixField(flat[fieldReported]))
	b.Expires = clock.local(timeOf(score))
	switch flat[fieldReachable] {
	case ReachYes.String():
		b.Reach.State = ReachYes
	case ReachNo.String():
		b.Reach.State = ReachNo
	}
	b.Reach.Reason = flat[fieldReason]
	if b.Reach.Addr, _ = netip.ParseAddr(flat[fieldReachedAt]); b.Reach.Addr.IsValid() {
		b.Address = b.Reach.Addr
	}
	return b, nil
}

func unixField(s string) time.Time {
	n, _ := strconv.ParseInt(s, 10, 64)
	return time.Unix(max(n, 0), 0)
}

// scoreOf is a time in BOX_SET: unix seconds, to the millisecond so that it survives every way
// in which a Redis prints a double.
func scoreOf(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

func timeOf(score float64) time.Time {
	return time.UnixMilli(int64(math.Round(max(0, min(score, 1e11)) * 1000)))
}
