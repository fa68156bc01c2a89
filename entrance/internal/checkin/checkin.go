// Package checkin is an entrance's side of a box's session: it checks each EXCHANGE, gives the
// box its lease and an answer, and finds out by dialling back whether others can reach it
// (docs/protocol.md).
//
// It must not know how leases are kept (registry) nor who is offered to publishers (search).
package checkin

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"hash/maphash"
	"log/slog"
	"slices"

	"dandelion/entrance/internal/door"
	"dandelion/entrance/internal/registry"
	"dandelion/pkg/geo"
	"dandelion/pkg/id"
	"dandelion/pkg/wire"
)

// Endpoint answers EXCHANGE. It is made by New and inert until its Prober runs.
type Endpoint struct {
	registry *registry.Registry
	prober   *Prober
	accounts Accounts
	places   *geo.DB
	log      *slog.Logger
	seed     maphash.Seed
}

// Accounts takes what accepted boxes say that they delivered (ledger.Ledger).
type Accounts interface {
	Deliveries(box id.BoxID, deliveries map[string]wire.Delivery, traffic *wire.Traffic, counted func())
}

// New returns an endpoint that keeps leases in reg, has boxes dialled by prober and hands their
// deliveries to accounts. places may be nil.
func New(reg *registry.Registry, prober *Prober, accounts Accounts, places *geo.DB, log *slog.Logger) *Endpoint {
	return &Endpoint{registry: reg, prober: prober, accounts: accounts, places: places, log: log, seed: maphash.MakeSeed()}
}

// visit is what a session of a box remembers. There is one for each connected box: it is kept
// small, and its texts are those of the registry's Box.
type visit struct {
	nonce      string // "" for a box without features
	persistent bool
	claims     uint64 // a digest of those of the last report
	found      placed // what place made of them
	lookedUp   uint64 // in which state of the database its place was; 0: the box said it
}

// Exchange is the door.Command of EXCHANGE: it validates the report, makes or renews the lease,
// answers, and then sees to the accounts and to the dial-back: a box can answer that only when it has
// read its nonce.
func (e *Endpoint) Exchange(s *door.Session, message []byte) error {
	box := new(registry.Box)
	if err := box.Decode(message); err != nil {
		return err
	}
	if box.Type != wire.TypeBox {
		return &door.Refusal{Text: "Wrong format in your message: EXCHANGE is for TYPE BOX"}
	}
	// They are no facts about the box: the register does not keep them.
	deliveries, traffic := box.Deliveries, box.Traffic
	box.Deliveries, box.Traffic = nil, nil
	v := visitOf(s)
	if err := e.place(s, v, box); err != nil {
		return err
	}
	s.Named(box.Features)
	v.name(s)
	if v.persistent {
		box.Session, box.Persistent = s.Number, true
	}
	e.locate(v, box)
	err := e.registry.Put(box)
	switch {
	case errors.Is(err, registry.ErrTaken), errors.Is(err, registry.ErrFull):
		return &door.Refusal{Text: "Refused: " + err.Error()}
	case err != nil:
		return err
	}
	if v.persistent && s.OnEnd == nil {
		e.endWith(s, box.ID)
	}
	if err := s.Reply(e.reply(s, v, box)); err != nil {
		return err
	}
	if len(deliveries) > 0 || traffic != nil {
		e.account(s, box.ID, deliveries, traffic)
	}
	e.prober.Consider(box, v.nonce)
	return nil
}

// account hands the deliveries of an accepted report to the accounts, and has the box told when a numbered batch is
// in them.
func (e *Endpoint) account(s *door.Session, box id.BoxID, deliveries map[string]wire.Delivery, traffic *wire.Traffic) {
	if !s.Features.Has(wire.FeatureTraffic) {
		traffic = nil
	}
	var counted func()
	if traffic != nil {
		reply := wire.Counted{Peer: s.Own, Command: wire.CommandCounted, Mark: traffic.Mark}
		counted = func() { _ = s.Reply(reply) } // where it does not come through, the box sends the batch again
	}
	e.accounts.Deliveries(box, deliveries, traffic, counted)
}

// place fills in where the box is, by what it claims and where its session comes from. What was
// judged for the last report is good for this one if it claims the same.
func (e *Endpoint) place(s *door.Session, v *visit, box *registry.Box) (err error) {
	said := claimsOf(&box.Exchange)
	if digest := maphash.Comparable(e.seed, said); digest != v.claims || !v.found.address.IsValid() {
		if v.found, err = place(said, s.Remote); err != nil {
			return err
		}
		v.claims = digest
	}
	box.ID, box.Seen, box.Address = id.BoxID(s.Peer()), s.Remote, v.found.address
	box.Peer = wire.Peer{ID: s.Peer(), IP: v.found.ip, Port: v.found.port, Type: wire.TypeBox}
	box.ConnectWS, box.EdgeURL = v.found.connectWS, v.found.edgeURL
	return nil
}

// visitOf returns what the session remembers.
func visitOf(s *door.Session) *visit {
	v, _ := s.Value.(*visit)
	if v == nil {
		v = &visit{}
		s.Value = v
	}
	return v
}

// name makes the connection persistent when the first EXCHANGE on it named a feature.
func (v *visit) name(s *door.Session) {
	if len(s.Features) > 0 && !v.persistent {
		v.persistent = true
		v.nonce = newNonce()
	}
}

func newNonce() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// locate asks the database where a box is that does not say so itself: again when it comes from another
// address, and when the database was read again.
func (e *Endpoint) locate(v *visit, box *registry.Box) {
	var said bool
	if box.GeoIP, said = geo.Said(box.GeoIP); said {
		v.lookedUp = 0
		return
	}
	database := e.places.Loaded() + 1
	if old, ok := e.registry.Held(box.ID); ok && v.lookedUp == database && old.Seen == box.Seen && old.Address == box.Address {
		box.GeoIP = old.GeoIP
		return
	}
	box.GeoIP, _ = e.places.Lookup(box.Address)
	v.lookedUp = database
}

// endWith ends the lease when the session ends.
func (e *Endpoint) endWith(s *door.Session, box id.BoxID) {
	number := s.Number
	s.OnEnd = func(why string) {
		e.log.Info("box left", "box", box, "why", why)
		e.registry.End(box, number, why)
	}
	e.log.Info("box connected", "box", box, "address", s.Remote)
}

func (e *Endpoint) reply(s *door.Session, v *visit, box *registry.Box) wire.ExchangeReply {
	reply := wire.ExchangeReply{
		Peer:         s.Own,
		Command:      wire.CommandExchange,
		Message:      wire.MessageAccepted,
		EntranceURLs: EntranceURLs(s.URL, e.registry.OtherURLs()),
	}
	if !v.persistent {
		return reply
	}
	reply.Features = s.Features
	reply.Address = s.Remote.String()
	reply.Nonce = v.nonce
	if box.Reach.State != registry.ReachUnknown {
		reply.Reachable = box.Reach.State.String()
		reply.Reason = box.Reach.Reason
	}
	return reply
}

// EntranceURLs is the ENTRANCE_URLS of a reply: the entrance's own, then others.
func EntranceURLs(own string, others []string) []string {
	urls := make([]string, 0, 1+len(others))
	if own != "" {
		urls = append(urls, own)
	}
	for _, u := range others {
		if !slices.Contains(urls, u) {
			urls = append(urls, u)
		}
	}
	return urls
}
