package front

import (
	"maps"
	"sync"
	"time"

	"dandelion/pkg/geo"
	"dandelion/pkg/id"
)

// Audience counts who watches what, and where each was sent last: a viewer has a seat, at a box or at
// the origin, for as long as it asks for segments. What a seat costs is the bitrate of its rendition. It
// is for any goroutine.
//
// A viewer is known by address and player; of a household's viewers who share both, each that asks for a
// segment that another one asked for already has a seat of its own.
type Audience struct {
	mu     sync.Mutex
	groups map[string]map[uint64]seat // by rendition and viewer
	boxes  map[id.BoxID]map[string]int
	seats  int
	grown  chan struct{}
}

// seat is where a viewer was sent last. Of one who found no place it is nowhere.
type seat struct {
	at    id.BoxID  // origin; nowhere; or a box
	last  time.Time // it asked for a segment
	place *geo.Place
}

// Watchers are the viewers of a rendition.
type Watchers struct {
	All   int
	Areas map[string]Area // of those whose place is known, by its Area
}

// Area is how many viewers are in one area.
type Area struct {
	Viewers int
	Place   *geo.Place // in their middle
	sum     geo.Point
}

const (
	atOrigin  id.BoxID = ""
	nowhere   id.BoxID = "-"
	mostSeats          = 200_000 // more viewers are not counted, and are sent on without a seat
)

// NewAudience returns one without viewers.
func NewAudience() *Audience {
	return &Audience{groups: map[string]map[uint64]seat{}, boxes: map[id.BoxID]map[string]int{}, grown: make(chan struct{}, 1)}
}

// Grown gets a value when there is a viewer more.
func (a *Audience) Grown() <-chan struct{} { return a.grown }

// Sits returns the box where the viewer of a rendition was sent last; watching is false where it has no
// seat, and box is "" at the origin.
func (a *Audience) Sits(rendition string, viewer uint64) (box id.BoxID, watching bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s, ok := a.groups[rendition][viewer]
	if !ok || s.at == nowhere {
		return "", false
	}
	return s.at, true
}

// sit notes where a viewer, who is at place, is sent now.
func (a *Audience) sit(rendition string, viewer uint64, place *geo.Place, at id.BoxID, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	g := a.groups[rendition]
	s, ok := g[viewer]
	switch {
	case !ok && a.seats >= mostSeats:
		return
	case g == nil:
		g = map[uint64]seat{}
		a.groups[rendition] = g
	}
	if !ok {
		a.seats++
		select {
		case a.grown <- struct{}{}:
		default:
		}
	}
	if ok && s.at != at {
		a.count(s.at, rendition, -1)
	}
	if !ok || s.at != at {
		a.count(at, rendition, 1)
	}
	s.at, s.last, s.place = at, now, place
	g[viewer] = s
}

// count changes how many seats of a rendition a box has. a.mu is held.
func (a *Audience) count(at id.BoxID, rendition string, n int) {
	b := a.boxes[at]
	if b == nil {
		b = map[string]int{}
		a.boxes[at] = b
	}
	if b[rendition] += n; b[rendition] == 0 {
		delete(b, rendition)
	}
	if len(b) == 0 {
		delete(a.boxes, at)
	}
}

// Load is what the seats at a box take, at the origin for "", bytes/s. rate tells that of one viewer of a
// rendition; it must not call the Audience.
func (a *Audience) Load(box id.BoxID, rate func(rendition string) float64) (load float64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for rendition, n := range a.boxes[box] {
		load += float64(n) * rate(rendition)
	}
	return load
}

// Seats returns how many viewers of each rendition sit at a box, at the origin for "".
func (a *Audience) Seats(box id.BoxID) map[string]int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return maps.Clone(a.boxes[box])
}

// Seated returns how many viewers of a rendition sit at boxes.
func (a *Audience) Seated(rendition string) (n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	n = len(a.groups[rendition])
	for _, at := range []id.BoxID{atOrigin, nowhere} {
		n -= a.boxes[at][rendition]
	}
	return n
}

// Viewers counts the viewers of each rendition, those without a place too, and forgets who has not asked
// for a segment for as long as patience says.
func (a *Audience) Viewers(now time.Time, patience func(rendition string) time.Duration) map[string]Watchers {
	a.mu.Lock()
	defer a.mu.Unlock()
	viewers := map[string]Watchers{}
	for rendition, g := range a.groups {
		gone := now.Add(-patience(rendition))
		w := Watchers{Areas: map[string]Area{}}
		for viewer, s := range g {
			switch {
			case s.last.Before(gone):
				delete(g, viewer)
				a.seats--
				a.count(s.at, rendition, -1)
			case s.place != nil && s.place.Area != "":
				area := w.Areas[s.place.Area]
				w.Areas[s.place.Area] = Area{area.Viewers + 1, s.place, area.sum.Add(s.place.At())}
			}
		}
		if w.All = len(g); w.All == 0 {
			delete(a.groups, rendition)
			continue
		}
		for name, area := range w.Areas {
			area.Place = area.Place.InArea(area.sum)
			w.Areas[name] = area
		}
		viewers[rendition] = w
	}
	return viewers
}
