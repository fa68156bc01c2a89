// Package wire is the protocol between boxes, publishers and entrances (docs/protocol.md,
// docs/protocol.md): its messages, the framing of files, its limits and its features.
//
// It turns bytes into validated values and back. It knows nothing of sockets (pkg/wsconn),
// of Redis (pkg/keys) or of what a peer does with a message.
package wire

import (
	"slices"
	"time"
)

// Peer types, the TYPE of every message.
const (
	TypeBox       = "BOX"
	TypePublisher = "PUBLISHER"
	TypeEntrance  = "ENTRANCE"
)

// Commands, the COMMAND of every message. The first three are the old protocol's; the others
// are used only between peers that both named a feature.
const (
	CommandExchange = "EXCHANGE" // box to entrance, and its reply
	CommandSearch   = "SEARCH"   // publisher to entrance, and its reply
	CommandPublish  = "PUBLISH"  // publisher to box, and its reply

	CommandStored  = "STORED"  // box to publisher: the file is committed
	CommandRefused = "REFUSED" // box to publisher: the file is not stored, and why
	CommandGoodbye = "GOODBYE" // either side: it is about to leave
	CommandHave    = "HAVE"    // publisher asks what the box holds of its files; the box answers in pages
	CommandDelete  = "DELETE"  // publisher to box: paths that may go
	CommandDeleted = "DELETED" // its reply
	CommandGone    = "GONE"    // box to publisher: files that went before their time
	CommandGrant   = "GRANT"   // box to publisher: how much of its upload it may plan with
	CommandDemand  = "DEMAND"  // publisher to box: how much of its upload it could use
	CommandCopy    = "COPY"    // publisher to box: pass on a file that it holds

	CommandCounted   = "COUNTED"   // entrance to box or publisher: what it was told is in its accounts, durably
	CommandRedirects = "REDIRECTS" // publisher to entrance: where it sent its viewers
)

// MessageAccepted is the MESSAGE of a reply that is not an error.
const MessageAccepted = "ACCEPTED"

// Limits of what a peer may send. Longer messages are refused and the connection is closed.
const (
	MaxMessage      = 1 << 20   // bytes of a JSON message
	MaxExchange     = 256 << 10 // bytes of an EXCHANGE with its traffic logs
	MaxFileHeader   = 64 << 10  // bytes of a file's JSON headers; a sub-tree of MaxRelay boxes fits
	MaxRelay        = 256       // boxes below one box in RELAY
	MaxRelayDepth   = 16        // levels of them
	MaxEcho         = 1 << 10   // bytes of an offending message in an ERROR
	MaxField        = 512       // bytes of one text field of an EXCHANGE
	MaxURL          = 512       // bytes of a URL in a message
	MaxFeatures     = 32        // names in FEATURES
	MaxEntranceURLs = 64        // URLs in ENTRANCE_URLS that are looked at
	MaxBoxSet       = 1000      // boxes in a SEARCH reply that are looked at
	HavePage        = 1000      // files in one HAVE page
)

// Lifetimes in seconds that the protocol fixes.
const (
	DefaultTTL = 60 * time.Second // of a file whose headers have no TTL
	MaxTTL     = 366 * 24 * time.Hour
)

// Timings of a kept connection: the server pings, and a peer that named a feature and is
// silent for longer than SilenceLimit is gone (docs/protocol.md; an old peer is never
// dropped for its silence alone).
const (
	PingInterval = 3 * time.Second
	SilenceLimit = 8 * time.Second

	// Both ends of a publisher's session with `ack` ping every SessionPing: the publisher hears the
	// box also while the other direction is full of files. It sends no viewer to a box that it has not
	// heard for DoubtAfter, and takes it up again with its next sign of life.
	SessionPing = time.Second
	DoubtAfter  = 2500 * time.Millisecond
)

// Feature is a capability that both sides must name before it is used (docs/protocol.md "FEATURES").
type Feature string

// FeatureAck: files are acknowledged, and GOODBYE, HAVE, DELETE and GONE are understood.
const FeatureAck Feature = "ack"

// FeatureGrant: the box promises the publisher a share of its upload (GRANT), asked for with DEMAND;
// files say how long they play (DURATION).
const FeatureGrant Feature = "grant"

// FeatureRelay: the box passes files on to other boxes (RELAY, COPY). Between a publisher and a box it
// marks the session on which the box answers for files that others passed on to it.
const FeatureRelay Feature = "relay"

// FeatureTraffic: deliveries in EXCHANGE are numbered (TRAFFIC) and acknowledged (COUNTED), and
// publishers say where they sent their viewers (REDIRECTS).
const FeatureTraffic Feature = "traffic"

// Features is a FEATURES list. An old peer has none.
type Features []Feature

// Ours lists what this implementation can do.
func Ours() Features { return Features{FeatureAck, FeatureGrant, FeatureRelay, FeatureTraffic} }

// Has reports whether the list names f.
func (fs Features) Has(f Feature) bool { return slices.Contains(fs, f) }

// And returns what both lists name, the features that may be used.
func (fs Features) And(other Features) Features {
	var both Features
	for _, f := range fs {
		if other.Has(f) {
			both = append(both, f)
		}
	}
	return both
}

// Kind says why a box refused a file. The list is append-only: kinds cross the wire.
type Kind string

// Kinds of refusal. What the publisher should do: send it elsewhere after Full, Busy,
// Draining, Denied and Internal; correct or drop the file after the others.
const (
	KindMalformed Kind = "malformed" // headers that are not JSON, or lack a field
	KindPath      Kind = "path"      // a FILE_PATH that cannot be stored
	KindTTL       Kind = "ttl"       // a TTL that is negative, null or not a number
	KindSize      Kind = "size"      // more or fewer bytes than SIZE
	KindDigest    Kind = "digest"    // other bytes than SHA256 says
	KindFull      Kind = "full"      // no room, even after eviction
	KindTooLarge  Kind = "too_large" // larger than the box's whole limit
	KindDraining  Kind = "draining"  // the box is about to leave
	KindDenied    Kind = "denied"    // the box does not store for this publisher
	KindBusy      Kind = "busy"      // too many files at once
	KindInternal  Kind = "internal"  // the box failed; its log says why
	KindRelay     Kind = "relay"     // the box that should have passed it on could not
)

var kinds = []Kind{
	KindMalformed, KindPath, KindTTL, KindSize, KindDigest, KindFull, KindTooLarge, KindDraining, KindDenied, KindBusy, KindInternal, KindRelay,
}

// Kinds lists the kinds that this version knows.
func Kinds() []Kind { return slices.Clone(kinds) }

// Known reports whether this version knows the kind; a peer of a later one may name others.
func (k Kind) Known() bool { return slices.Contains(kinds, k) }
