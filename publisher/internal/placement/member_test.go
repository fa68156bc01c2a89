package placement

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"dandelion/pkg/id"
	"dandelion/pkg/wire"
	"dandelion/publisher/internal/stream"
)

func waitingJob(n int, now time.Time) *job {
	return &job{Live: Live{Segment: stream.Segment{
		Path: id.Path("/" + string(rune('a'+n))), Size: 10, Duration: 2 * time.Second, Deadline: now.Add(time.Duration(n) * time.Second),
	}}}
}

// TestMostUrgentFirst: by deadline, but no further copy before a first one.
func TestMostUrgentFirst(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_800_000_000, 0)
	m := &member{wake: make(chan struct{}, 1)}
	jobs := []*job{waitingJob(0, now), waitingJob(1, now), waitingJob(2, now), waitingJob(3, now)}
	for _, n := range []int{2, 0, 3, 1} {
		m.enqueue(&delivery{job: jobs[n]}, now)
	}
	jobs[0].copies, jobs[1].copies = 1, 1 // elsewhere, meanwhile
	var order []id.Path
	for len(m.queue) > 0 {
		order = append(order, m.take(m.urgent()).Path)
	}
	if want := []id.Path{"/c", "/d", "/a", "/b"}; !slices.Equal(order, want) {
		t.Errorf("%v, want %v", order, want)
	}
}

// TestTheOldestLeaveASlowBoxFirst: when too many wait, and when one waited for too long.
func TestTheOldestLeaveASlowBoxFirst(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_800_000_000, 0)
	m := &member{wake: make(chan struct{}, 1)}
	for n := range maxWaiting {
		if late := m.enqueue(&delivery{job: waitingJob(n, now)}, now.Add(time.Duration(n)*time.Millisecond)); late != nil {
			t.Fatalf("%s left with %d waiting", late.Path, n+1)
		}
	}
	if late := m.enqueue(&delivery{job: waitingJob(maxWaiting, now)}, now); late == nil || late.Path != "/a" || len(m.queue) != maxWaiting {
		t.Errorf("%v left and %d wait", late, len(m.queue))
	}
	late := m.late(now.Add(4*time.Second + 10*time.Millisecond)) // 4 s are twice what a segment plays
	if len(late) != 11 || late[0].Path != "/b" || len(m.queue) != maxWaiting-11 || m.waiting != int64(10*len(m.queue)) {
		t.Errorf("%d left, %d wait with %d bytes", len(late), len(m.queue), m.waiting)
	}
}

func TestPace(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		took time.Duration
		err  error
		slow bool
	}{
		"fast":       {900 * time.Millisecond, nil, false},
		"slow":       {1100 * time.Millisecond, nil, true},
		"given up":   {4 * time.Second, errTooSlow, true},
		"refused":    {4 * time.Second, errNoBox, false},
		"broken off": {time.Millisecond, errors.Join(errTooSlow), true},
	} {
		var m member
		now := time.Now()
		m.pace(now, 2*time.Second, tt.took, tt.err)
		if got := now.Before(m.slow); got != tt.slow {
			t.Errorf("%s: slow %v", name, got)
		}
	}
}

// TestDrain: what is on its way arrives, nothing new is begun, and the wait has an end.
func TestDrain(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	arrived, answer := make(chan struct{}, 10), make(chan struct{})
	r.box(1, nil, func(h wire.FileHeader) any {
		arrived <- struct{}{}
		<-answer
		return stores(0)(h)
	})
	s := r.segment(1, 1)
	r.Place(s)
	<-arrived
	short, cancel := context.WithCancelCause(t.Context())
	cancel(errTooSlow)
	if err := r.Drain(short); !errors.Is(err, errTooSlow) {
		t.Errorf("did not wait: %v", err)
	}
	done := make(chan error)
	go func() { done <- r.Drain(t.Context()) }()
	later := r.segment(2, 1)
	r.Place(later)
	close(answer)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if r.copies1(s) != 1 || r.copies1(later) != 0 {
		t.Errorf("%d copies of what was under way, %d of what came later", r.copies1(s), r.copies1(later))
	}
}

// TestSilentBoxHoldsNothingUp: a segment on its way to a box that falls silent goes to one other at
// once, and to no third when the silent one fails in the end.
func TestSilentBoxHoldsNothingUp(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	arrived, answer := make(chan struct{}, 1), make(chan struct{})
	first := r.box(1, nil, func(h wire.FileHeader) any {
		arrived <- struct{}{}
		<-answer // its session reads nothing meanwhile: no pong
		return wire.Refused{Kind: wire.KindFull}
	})
	s := r.segment(1, 1)
	s.Duration = 10 * time.Second // patience enough
	r.Place(s)
	<-arrived
	var asked atomic.Int64
	hold := make(chan struct{})
	for n := range 3 {
		r.box(n+2, nil, counted(&asked, func(h wire.FileHeader) any { <-hold; return stores(0)(h) }))
	}
	r.await("another is asked", func() bool { return asked.Load() > 0 })
	if r.up()[first] {
		t.Error("the box is not silent")
	}
	for range 3 {
		r.unblock(time.Now()) // as at each tick
	}
	close(hold)
	r.await("a copy", func() bool { return r.copies1(s) == 1 })
	close(answer)
	r.await("all settled", r.idle)
	if asked.Load() != 1 || r.copies1(s) != 1 {
		t.Errorf("%d boxes were sent it beside the silent one, %d copies", asked.Load(), r.copies1(s))
	}
}

// TestAssignedOnce: a job that overflows the queue it is put into waits in no other queue twice.
func TestAssignedOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	silent := func(wire.FileHeader) any { return nil }
	full, other := r.box(1, nil, silent), r.box(2, nil, silent)
	now := time.Now()
	r.Placement.mu.Lock()
	defer r.Placement.mu.Unlock() // nobody takes from the queues before
	a, b := r.members[full], r.members[other]
	for n := range maxWaiting {
		j := waitingJob(n, now.Add(time.Hour))
		j.flying, j.Expires, j.tried = 1, now.Add(time.Hour), map[id.BoxID]bool{full: true, other: true}
		a.queue = append(a.queue, queued{&delivery{job: j}, now})
	}
	j := waitingJob(0, now) // older than all that waits
	j.Path, j.Expires, j.tried, j.relays = "/j", now.Add(time.Hour), map[id.BoxID]bool{}, map[id.BoxID]*flight{}
	r.jobs[j.Path] = j
	j.Replicas = 2
	r.spread(j)
	n := 0
	for _, q := range slices.Concat(a.queue, b.queue) {
		if q.job == j {
			n++
		}
	}
	if n != j.flying || n != 1 || r.jobs[j.Path] != j {
		t.Errorf("it waits %d times, flying %d, known %v", n, j.flying, r.jobs[j.Path] == j)
	}
	j.flying = 0
	for _, q := range a.queue {
		q.flying = 0
	}
	clear(r.jobs)
	a.queue, b.queue = nil, nil
}
