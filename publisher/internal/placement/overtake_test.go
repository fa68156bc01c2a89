package placement

import (
	"bytes"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"dandelion/pkg/front"
	"dandelion/pkg/id"
	"dandelion/pkg/wire"
	"dandelion/publisher/internal/plan"
)

// TestSlowBoxIsOvertaken: a segment that one box takes too slowly goes to one other, and to no third. When that
// is slow too, boxes are not blamed for a while.
func TestSlowBoxIsOvertaken(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var mu sync.Mutex
	sent, quick := map[id.Path]int{}, true
	answer := func(willing bool) func(wire.FileHeader) any {
		return func(h wire.FileHeader) any {
			mu.Lock()
			defer mu.Unlock()
			if sent[h.Path]++; !willing || !quick {
				return nil // it is there, and does not say that it has the file
			}
			return stores(0)(h)
		}
	}
	times := func(s Live) int {
		mu.Lock()
		defer mu.Unlock()
		return sent[s.Path]
	}
	slow := r.box(1, nil, answer(false))
	first, second, third := r.segment(1, 1), r.segment(2, 1), r.segment(3, 1)
	r.Place(first)
	r.await("it is sent", func() bool { return times(first) == 1 })
	r.box(2, nil, answer(true))
	r.box(3, nil, answer(true))
	r.await("a copy", func() bool { return r.copies1(first) == 1 })
	if n := times(first); n != 2 {
		t.Errorf("it was sent to %d boxes, want two", n)
	}
	r.Placement.mu.Lock()
	if m := r.members[slow]; !time.Now().Before(m.slow) || !m.planBox().Slow {
		t.Error("the box does not count as slow")
	}
	r.Placement.mu.Unlock()

	mu.Lock()
	quick = false
	mu.Unlock()
	r.Place(second)
	r.await("both are slow, and so it is the publisher's own line", func() bool {
		r.Placement.mu.Lock()
		defer r.Placement.mu.Unlock()
		return time.Now().Before(r.ownSlow)
	})
	if n := times(second); n != 2 {
		t.Errorf("it was sent to %d boxes, want two", n)
	}
	r.Place(third)
	r.await("a box is slow", func() bool {
		r.unblock(time.Now()) // as at each tick
		r.Placement.mu.Lock()
		defer r.Placement.mu.Unlock()
		for _, m := range r.members {
			for d := range m.pushing {
				if d.Path == third.Path && m.behind(d, time.Now()) {
					return true
				}
			}
		}
		return false
	})
	r.unblock(time.Now())
	r.Placement.mu.Lock()
	defer r.Placement.mu.Unlock()
	for _, m := range r.members {
		if time.Now().Before(m.slow) {
			t.Errorf("%s counts as slow", m.id)
		}
		for d := range m.pushing {
			if d.doubled && d.Path == third.Path {
				t.Error("others are sent it beside the box")
			}
		}
	}
}

// TestBehind: slow is who takes more than half of what a segment plays, and clearly longer than before. Who
// waits for its turn is not.
func TestBehind(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for name, tt := range map[string]struct {
		since      time.Duration
		throughput float64 // bytes/s; 0: not measured
		want       bool
	}{
		"quick":                        {900 * time.Millisecond, 10e6, false},
		"slow":                         {1100 * time.Millisecond, 10e6, true},
		"as slow as ever":              {1100 * time.Millisecond, 500e3, false},
		"much slower than ever":        {2100 * time.Millisecond, 500e3, true},
		"slow, and was never measured": {1700 * time.Millisecond, 0, true},
		"waits for its turn":           {0, 10e6, false},
	} {
		var m member
		m.record.Throughput = tt.throughput
		d := &delivery{job: &job{}}
		d.Size, d.Duration = 250e3, 2*time.Second
		if tt.since > 0 {
			d.began = now.Add(-tt.since)
		}
		if got := m.behind(d, now); got != tt.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// TestSlowBoxesHaveNoRoom: a segment that only slow boxes hold is not ready for viewers, as long as others are to
// get it.
func TestSlowBoxesHaveNoRoom(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	box := r.boxAt(1, wire.GeoIP{}, &wire.Terms{Rate: 1e6, Seconds: 60}, nil, stores(0))
	s := r.segment(1, 1)
	r.Place(s)
	r.await("a copy", func() bool { return r.copies1(s) == 1 && r.idle() })
	r.Placement.mu.Lock()
	defer r.Placement.mu.Unlock()
	r.viewers = map[string]int{renditionOf(s.Path): 1}
	j := &job{Live: s, flying: 1}
	if !r.ready(j) {
		t.Error("not ready, and a box has room")
	}
	r.members[box].slow = time.Now().Add(time.Minute)
	if r.ready(j) {
		t.Error("ready, and the only box is slow")
	}
	r.members[box].slow = time.Time{}
	r.members[box].doubts.suspect = time.Now().Add(time.Minute)
	if r.ready(j) {
		t.Error("ready, and viewers do not get it of the only box")
	}
	j.flying = 0
	if !r.ready(j) {
		t.Error("not ready, and no other box is to get it")
	}
}

// TestComplaintsAreSaidOnce: however many viewers complain of a box.
func TestComplaintsAreSaidOnce(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	p := &Placement{log: slog.New(slog.NewTextHandler(&log, nil)), members: map[id.BoxID]*member{boxID(1): {doubted: make(chan id.Path, 1)}}}
	for n := range byte(100) {
		p.Complained(boxID(1), "/file", netip.AddrFrom4([4]byte{192, 0, 2, n}))
	}
	if n := strings.Count(log.String(), "did not get"); n != 1 {
		t.Errorf("said %d times", n)
	}
}

// TestHurry: boxes that wait too long for a segment to be passed on get it from the publisher, once, when those that
// hold it have no room for all who watch; what was to be passed on counts all the same.
func TestHurry(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	grant := &wire.Terms{Rate: 1e6, Seconds: 60}
	var pushed atomic.Int64
	box := func(n int) id.BoxID {
		return r.boxAt(n, wire.GeoIP{}, grant, nil, counted(&pushed, stores(0)))
	}
	first := box(1)
	s := r.segment(1, 1)
	r.Place(s)
	r.await("a copy", func() bool { return r.copies1(s) == 1 && r.idle() })
	second, third := box(2), box(3)

	r.Placement.mu.Lock()
	defer r.Placement.mu.Unlock()
	j := &job{Live: s, tried: map[id.BoxID]bool{first: true}, relays: map[id.BoxID]*flight{}, lost: map[id.BoxID]int{}, copies: 1}
	now := time.Now()
	r.fly(j, first, first, []plan.Node{{Box: second, Below: []plan.Node{{Box: third}}}}, now)
	requests := map[id.BoxID]string{second: j.relays[second].request, third: j.relays[third].request}
	r.viewers = map[string]int{renditionOf(s.Path): 1}
	late := now.Add(s.Duration/2 + time.Second)
	r.hurry(j, now)
	r.hurry(j, late)
	if j.slow || len(j.tried) > 1 {
		t.Error("sent to a box although the first one has room for all")
	}
	r.viewers[renditionOf(s.Path)] = 1e6
	r.hurry(j, now)
	if j.slow || len(j.tried) > 1 {
		t.Error("sent at once, without waiting for the first to pass it on")
	}
	j.passed = true
	r.hurry(j, late)
	if j.slow || len(j.tried) > 1 {
		t.Error("sent although boxes pass it on, some to come later")
	}
	j.passed = false
	r.members[first].doubts.suspect = late.Add(time.Second)
	r.hurry(j, late)
	if !j.slow || len(j.tried) != 2 {
		t.Fatalf("sent to other boxes than one that waits: %v", j.tried)
	}
	for box, request := range requests {
		if f := r.flights[request]; j.tried[box] && (j.relays[box] != nil || f == nil || f.given.IsZero()) {
			t.Errorf("what was to be passed on to %s is awaited, or would not count: %+v", box, f)
		}
	}
	if !late.Before(r.members[first].slow) {
		t.Error("viewers complain of the box and so does who should get it passed on: it counts as slow")
	}
	tried := len(j.tried)
	if r.hurry(j, late.Add(time.Second)); len(j.tried) != tried {
		t.Error("a second time")
	}
}

// TestSlowBoxOrOrigin: of a segment that only a slow box holds viewers get the publisher's own copy, as long as it
// has upload left.
func TestSlowBoxOrOrigin(t *testing.T) {
	t.Parallel()
	p := &Placement{members: map[id.BoxID]*member{}}
	slow := candidate{member: &member{id: boxID(1)}, slow: true, grant: 1e6, fraction: 0.1}
	quick := candidate{member: &member{id: boxID(2)}, grant: 1e6, fraction: 0.1}
	for _, c := range []candidate{slow, quick} {
		p.members[c.id] = c.member
	}
	for name, tt := range map[string]struct {
		candidates []candidate
		origin     bool
		room       int
		first      id.BoxID
	}{
		"only a slow one":                     {[]candidate{slow}, true, 0, boxID(1)},
		"only a slow one, origin full":        {[]candidate{slow}, false, 1, boxID(1)},
		"another one":                         {[]candidate{slow, quick}, true, 1, boxID(2)},
		"another one, and the origin is full": {[]candidate{slow, quick}, false, 2, boxID(2)},
	} {
		found := p.order(Found{Origin: tt.origin}, tt.candidates, front.Asker{}, 1000, false)
		if found.Room != tt.room || found.Holders[0].Box != tt.first {
			t.Errorf("%s: room %d, %v", name, found.Room, found.Holders)
		}
	}
}
