// Package search answers publishers: which boxes are best for this one (wire.md "SEARCH"). It
// reads the registry's index in memory and nothing else.
//
// Filtering, scoring and choosing are pure functions over plain values (choose.go); it must not
// know how boxes report or how leases are kept.
package search

import (
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

// usual is how many boxes a publisher is told of that does not say how many it wants (wire.md SEARCH).
const usual = 20

// Endpoint answers SEARCH.
type Endpoint struct {
	registry *registry.Registry
	places   *geo.DB
	most     int
	log      *slog.Logger
}

// New returns an endpoint that offers at most so many boxes. places may be nil.
func New(reg *registry.Registry, places *geo.DB, most int, log *slog.Logger) *Endpoint {
	return &Endpoint{registry: reg, places: places, most: most, log: log}
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

// flat is a box as an old publisher stores it with HMSET: a flat map of texts, never empty.
func flat(box *registry.Box) map[string]wire.Text {
	texts := make(map[string]wire.Text, 40)
	box.EachFlat(func(name, value string) { texts[name] = wire.Text(value) })
	return texts
}
