package registry

import (
	"math"
	"net/netip"
	"strconv"
	"time"

	"dandelion/pkg/id"
	"dandelion/pkg/netaddr"
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
	// Answered says that Address is the one that answered the dial-back.
	Answered bool
	scope    uint8 // of Address
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
	Reason string // one sentence for the owner
}

// Locate sets Address, and with it Scope.
func (b *Box) Locate(address netip.Addr) {
	b.Address, b.scope = address, uint8(netaddr.ScopeOf(address))
}

// Scope returns the scope of Address as Locate found it; the registry has called that.
func (b *Box) Scope() netaddr.Scope { return netaddr.Scope(b.scope) }

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
	if old.Answered {
		b.Address, b.Answered = old.Address, true
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

// eachChange calls yield with what differs between the hash EXCHANGE of before, which may be
// nil, and that of b: a name, its value now ("" for a field that is not there any more), and
// whether before had none.
func (b *Box) eachChange(before *Box, clock *clock, yield func(name, value string, appears bool)) {
	put := func(name, was, is string) {
		if was != is {
			yield(name, is, was == "")
		}
	}
	isNew := before == nil
	if isNew {
		before = &Box{}
		b.Exchange.EachChange(nil, yield)
	} else {
		b.Exchange.EachChange(&before.Exchange, yield)
	}
	if isNew || before.Seen != b.Seen {
		yield(fieldAddress, b.Seen.String(), isNew)
	}
	if isNew || !before.FirstSeen.Equal(b.FirstSeen) {
		yield(fieldFirstSeen, unixText(clock.at(b.FirstSeen)), isNew)
	}
	yield(fieldReported, unixText(clock.at(b.Reported)), isNew)
	if isNew || before.Persistent != b.Persistent {
		yield(fieldSession, b.sessionKind(), isNew)
	}
	put(fieldReachable, before.Reach.text(), b.Reach.text())
	put(fieldReason, before.Reach.Reason, b.Reach.Reason)
	put(fieldReachedAt, before.answered(), b.answered())
}

func unixText(t time.Time) string { return strconv.FormatInt(t.Unix(), 10) }

// text is what REACHABLE says; "" where nothing is known.
func (r Reach) text() string {
	if r.State == ReachUnknown {
		return ""
	}
	return r.State.String()
}

func (b *Box) sessionKind() string {
	if b.Persistent {
		return sessionPersistent
	}
	return sessionDialled
}

func (b *Box) answered() string {
	if !b.Answered {
		return ""
	}
	return b.Address.String()
}

// flat returns the hash EXCHANGE of the box.
func (b *Box) flat(clock *clock) map[string]string {
	m := make(map[string]string, 48)
	b.eachChange(nil, clock, func(name, value string, _ bool) { m[name] = value })
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
	if answered, err := netip.ParseAddr(flat[fieldReachedAt]); err == nil {
		b.Address, b.Answered = answered, true
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
