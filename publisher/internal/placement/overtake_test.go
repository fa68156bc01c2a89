package placement

import (
	"sync"
	"testing"
	"time"

	"dandelion/pkg/id"
	"dandelion/pkg/wire"
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
	// looked at with the lock that overtake has, before anything else can happen
	late := func(s Live, want int, sentTo int) func() bool {
		return func() bool {
			r.Placement.mu.Lock()
			defer r.Placement.mu.Unlock()
			n := 0
			for _, m := range r.members {
				for d := range m.pushing {
					if d.Path == s.Path && d.doubled {
						n++
					}
				}
			}
			if n == want && times(s) != sentTo {
				t.Errorf("%s was sent to %d boxes, want %d", s.Path.Name(), times(s), sentTo)
			}
			return n == want
		}
	}
	r.Place(second)
	r.await("both are slow", late(second, 2, 2))
	r.Place(third)
	r.await("one is, and it is the publisher's own line", late(third, 1, 1))
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
