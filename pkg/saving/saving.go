// Package saving counts, per stream, what viewers got and who sent it, over the last minute, the last
// hour and since the start, and reckons the saving from it (docs/architecture.md, "The saving"). It is
// told of each event by the front and by placement; it knows neither.
package saving

import (
	"sync"
	"time"

	"dandelion/pkg/id"
	"dandelion/pkg/wire"
)

// Bytes are bytes of files, without playlists. Each only grows.
type Bytes struct {
	Redirected int64 // sizes of what viewers were sent to boxes for
	Returned   int64 // those of Redirected that viewers came back without
	Origin     int64 // that the origin sent to viewers
	Placing    int64 // that the publisher sent to boxes, failed attempts included
	Relayed    int64 // that boxes passed on to boxes
}

func (b Bytes) plus(o Bytes) Bytes {
	return Bytes{b.Redirected + o.Redirected, b.Returned + o.Returned, b.Origin + o.Origin, b.Placing + o.Placing, b.Relayed + o.Relayed}
}

func (b Bytes) minus(o Bytes) Bytes {
	return b.plus(Bytes{-o.Redirected, -o.Returned, -o.Origin, -o.Placing, -o.Relayed})
}

// Figures are the saving over some time. The ratios are nil while there were no viewers. The names of
// their JSON are an interface.
type Figures struct {
	BoxBytes        int64    `json:"box_bytes"` // that viewers were sent to boxes for, and did not come back without
	OriginBytes     int64    `json:"origin_bytes"`
	PlacingBytes    int64    `json:"placing_bytes"`
	RelayedBytes    int64    `json:"relayed_bytes"`
	Offload         *float64 `json:"offload"`
	CasterOffload   *float64 `json:"caster_offload"`   // below 0 where placing took more than viewers
	PlacingOverhead *float64 `json:"placing_overhead"` // may be above 1
}

// Figures reckons.
func (b Bytes) Figures() Figures {
	// Who comes back just after the minute in which it was sent away leaves that minute less than nothing.
	f := Figures{BoxBytes: max(b.Redirected-b.Returned, 0), OriginBytes: b.Origin, PlacingBytes: b.Placing, RelayedBytes: b.Relayed}
	if viewers := float64(f.BoxBytes + f.OriginBytes); viewers > 0 {
		ratio := func(v float64) *float64 { return &v }
		f.Offload = ratio(1 - float64(f.OriginBytes)/viewers)
		f.CasterOffload = ratio(1 - float64(f.OriginBytes+f.PlacingBytes)/viewers)
		f.PlacingOverhead = ratio(float64(f.PlacingBytes+f.RelayedBytes) / viewers)
	}
	return f
}

// Windows are a stream's figures.
type Windows struct {
	Minute Figures `json:"minute"` // the second that runs, and the 59 before
	Hour   Figures `json:"hour"`   // the minute that runs, and the 59 before
	Start  Figures `json:"start"`  // since the publisher's
}

// Limits of what is remembered of the boxes that the viewers of one stream were sent to.
const (
	mostBoxes = 10_000
	idleFor   = 10 * time.Minute // after which a box is forgotten
)

// Meter counts for one stream. Its methods may be called from any goroutine; now must not go back by
// more than a moment.
type Meter struct {
	start time.Time

	mu      sync.Mutex
	total   Bytes
	seconds ring
	minutes ring
	boxes   map[id.BoxID]*route
	lost    int64 // redirects to more boxes than are remembered
}

// route is what viewers were sent to one box for since it was last told. Both are below zero where a box
// sent back what was told already.
type route struct {
	count, bytes int64
	used         time.Time
}

func newMeter(start time.Time) *Meter {
	return &Meter{start: start, boxes: map[id.BoxID]*route{}}
}

// Redirected notes that a viewer was sent to a box for so many bytes.
func (m *Meter) Redirected(box id.BoxID, bytes int64, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.add(Bytes{Redirected: bytes}, now)
	m.note(box, 1, bytes, now)
}

// Bounced notes that a viewer came back whom the box had sent back: it got nothing there.
func (m *Meter) Bounced(box id.BoxID, bytes int64, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.add(Bytes{Returned: bytes}, now)
	m.note(box, -1, -bytes, now)
}

// Repeated notes that a viewer asks again for so many bytes that it was sent to a box for. What the box was
// asked for stays: it may have sent a part.
func (m *Meter) Repeated(bytes int64, now time.Time) { m.Add(Bytes{Returned: bytes}, now) }

// Add notes bytes.
func (m *Meter) Add(b Bytes, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.add(b, now)
}

func (m *Meter) add(b Bytes, now time.Time) {
	age := now.Sub(m.start)
	m.total = m.total.plus(b)
	m.seconds.add(b, int64(age/time.Second))
	m.minutes.add(b, int64(age/time.Minute))
}

func (m *Meter) note(box id.BoxID, count, bytes int64, now time.Time) {
	r := m.boxes[box]
	if r == nil {
		if len(m.boxes) >= mostBoxes {
			m.lost += max(count, 0)
			return
		}
		r = &route{}
		m.boxes[box] = r
	}
	r.count += count
	r.bytes += bytes
	r.used = now
}

// take appends what viewers were sent to boxes for since the last call. Boxes that owe something, because
// more was sent back since, come when that is made up for.
func (m *Meter) take(list []wire.Redirected, stream id.StreamName, now time.Time) []wire.Redirected {
	m.mu.Lock()
	defer m.mu.Unlock()
	for box, r := range m.boxes {
		if r.count > 0 && r.bytes >= 0 {
			list = append(list, wire.Redirected{Box: box, Stream: stream, Count: r.count, Bytes: r.bytes})
			r.count, r.bytes = 0, 0
		}
		if now.Sub(r.used) > idleFor {
			delete(m.boxes, box)
		}
	}
	return list
}

// Total returns what was counted since the start.
func (m *Meter) Total() Bytes {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.total
}

// Windows returns the figures as they are now.
func (m *Meter) Windows(now time.Time) Windows {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.add(Bytes{}, now)
	return Windows{m.seconds.sum.Figures(), m.minutes.sum.Figures(), m.total.Figures()}
}

// ring sums up what came in the last slots. The zero value is at slot 0.
type ring struct {
	slots [60]Bytes
	last  int64 // the newest slot's number
	sum   Bytes // of all of them
}

// add takes bytes into a slot; into the newest one where that is newer.
func (r *ring) add(b Bytes, slot int64) {
	if slot-r.last >= int64(len(r.slots)) {
		*r = ring{last: slot}
	}
	for r.last < slot {
		r.last++
		at := &r.slots[r.last%int64(len(r.slots))]
		r.sum = r.sum.minus(*at)
		*at = Bytes{}
	}
	at := &r.slots[r.last%int64(len(r.slots))]
	*at = at.plus(b)
	r.sum = r.sum.plus(b)
}
