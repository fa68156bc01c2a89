// Package search answers publishers: which boxes are best for this one (docs/protocol.md "SEARCH"). It
// reads the registry's index in memory and nothing else. It also takes what publishers say of their
// redirects (REDIRECTS).
//
// Filtering, scoring and choosing are pure functions over plain values (choose.go); it must not
// know how boxes report or how leases are kept.
package search

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"dandelion/entrance/internal/checkin"
	"dandelion/entrance/internal/door"
	"dandelion/entrance/internal/registry"
	"dandelion/pkg/geo"
	"dandelion/pkg/id"
	"dandelion/pkg/wire"
)

// usual is how many boxes a publisher is told of that does not say how many it wants (docs/protocol.md SEARCH).
const usual = 20

// Endpoint answers SEARCH and REDIRECTS.
type Endpoint struct {
	registry *registry.Registry
	accounts Accounts
	places   *geo.DB
	most     int
	log      *slog.Logger
}

// Accounts takes where publishers say that they sent viewers (ledger.Ledger).
type Accounts interface {
	Redirects(publisher id.PublisherID, mark wire.Mark, boxes []wire.Redirected, counted func())
}

// New returns an endpoint that offers at most so many boxes and hands redirects to accounts. places may be nil.
func New(reg *registry.Registry, accounts Accounts, places *geo.DB, most int, log *slog.Logger) *Endpoint {
	return &Endpoint{registry: reg, accounts: accounts, places: places, most: most, log: log}
}

// Search is the door.Command of SEARCH.
func (e *Endpoint) Search(s *door.Session, message []byte) error {
	q, err := wire.Decode[wire.Search](message)
	if err != nil {
		return err
	}
	if q.Type != wire.TypePublisher {
		return &door.Refusal{Text: "Wrong format in your message: SEARCH is for TYPE PUBLISHER"}
	}
	if _, err := id.ParsePublisherID(q.ID); err != nil {
		return &door.Refusal{Text: "Wrong format in your message: ID: " + err.Error()}
	}
	s.Named(q.Features)
	from := Publisher{Addr: s.Remote}
	if q.GeoIP != nil {
		from.Place = *q.GeoIP
	}
	var said bool
	if from.Place, said = geo.Said(from.Place); !said {
		from.Place, _ = e.places.Lookup(s.Remote)
	}
	count := usual
	if q.Count > 0 {
		count = q.Count
	}
	count = min(count, e.most)
	chosen := Choose(e.registry.Boxes(), from, count, time.Now(), rand.Float64)
	reply := wire.SearchReply{
		Peer:         s.Own,
		URL:          s.URL,
		Command:      wire.CommandSearch,
		EntranceURLs: checkin.EntranceURLs(s.URL, e.registry.OtherURLs()),
		BoxSet:       make(map[string]map[string]wire.Text, len(chosen)),
		Features:     s.Features,
	}
	for _, box := range chosen {
		reply.BoxSet[string(box.ID)] = flat(box)
	}
	e.log.Debug("search answered", "publisher", q.ID, "remote", s.Remote, "boxes", len(chosen))
	return s.Reply(reply)
}

// Redirects is the door.Command of REDIRECTS: the answer comes when they are in the accounts.
func (e *Endpoint) Redirects(s *door.Session, message []byte) error {
	q, err := wire.Decode[wire.Redirects](message)
	if err != nil {
		return err
	}
	publisher, err := id.ParsePublisherID(q.ID)
	switch {
	case q.Type != wire.TypePublisher:
		return &door.Refusal{Text: "Wrong format in your message: REDIRECTS is for TYPE PUBLISHER"}
	case err != nil:
		return &door.Refusal{Text: "Wrong format in your message: ID: " + err.Error()}
	case !s.Features.Has(wire.FeatureTraffic):
		return &door.Refusal{Text: "REDIRECTS is for sessions whose SEARCH named the feature traffic"}
	case len(q.Boxes) > wire.MaxRedirects:
		return &door.Refusal{Text: fmt.Sprintf("Wrong format in your message: BOXES has more than %d entries", wire.MaxRedirects)}
	}
	if err := q.Check(); err != nil {
		return &door.Refusal{Text: "Wrong format in your message: " + err.Error()}
	}
	reply := wire.Counted{Peer: s.Own, Command: wire.CommandCounted, Mark: q.Mark}
	e.accounts.Redirects(publisher, q.Mark, q.Boxes, func() { _ = s.Reply(reply) })
	return nil
}

// flat is a box as an old publisher stores it with HMSET: a flat map of texts, never empty.
func flat(box *registry.Box) map[string]wire.Text {
	texts := make(map[string]wire.Text, 40)
	box.EachFlat(func(name, value string) { texts[name] = wire.Text(value) })
	return texts
}
