package report

import (
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"dandelion/pkg/id"
)

// TestRetryWaits: every wait stays within what retry promises.
func TestRetryWaits(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name        string
		interval    time.Duration
		next        func(r *retry) time.Duration
		least, most time.Duration
	}{
		{"after a session", 5 * time.Second, func(r *retry) time.Duration { return r.ended(time.Hour) }, 0, 4 * time.Second},
		{"an interval shorter than the window", time.Second, func(r *retry) time.Duration { return r.ended(time.Hour) }, 0, time.Second},
		{"a very long interval", time.Hour, func(r *retry) time.Duration { return r.ended(time.Hour) }, 0, 4 * time.Second},
		{"a dial that failed", 5 * time.Second, (*retry).unreachable, 3 * time.Second, 4500 * time.Millisecond},
		{"the thousandth dial that failed", 5 * time.Second, func(r *retry) time.Duration {
			for range 1000 {
				r.unreachable()
			}
			return r.unreachable()
		}, 3 * time.Second, 4500 * time.Millisecond},
		{"restarted twice", 5 * time.Second, func(r *retry) time.Duration { r.ended(time.Hour); return r.ended(time.Second) }, 0, 4 * time.Second},
		{"refused again and again", 5 * time.Second, func(r *retry) time.Duration {
			for range 1000 {
				r.ended(0)
			}
			return r.ended(0)
		}, 0, 16 * time.Second},
		{"refused, then accepted for long", 5 * time.Second, func(r *retry) time.Duration {
			for range 1000 {
				r.ended(0)
			}
			return r.ended(steady)
		}, 0, 4 * time.Second},
		{"the second name of an entrance", 5 * time.Second, (*retry).turn, 4 * time.Second, 8 * time.Second},
		{"the second name, in vain", 5 * time.Second, func(r *retry) time.Duration { r.turn(); return r.unreachable() }, 6 * time.Second, 9 * time.Second},
		{"the second name, once it was the first", 5 * time.Second, func(r *retry) time.Duration {
			r.turn()
			r.ended(time.Minute)
			return r.unreachable()
		}, 3 * time.Second, 4500 * time.Millisecond},
	} {
		lowest, highest := time.Duration(1<<62), time.Duration(0)
		for range 1000 {
			wait := tt.next(newRetry(tt.interval))
			lowest, highest = min(lowest, wait), max(highest, wait)
		}
		// The slack above and below is what a thousand uniform draws stay inside of.
		slack := (tt.most - tt.least) / 50
		if lowest < tt.least || highest > tt.most || lowest > tt.least+slack || highest < tt.most-slack {
			t.Errorf("%s: %v to %v, want %v to %v and all between", tt.name, lowest, highest, tt.least, tt.most)
		}
	}
}

// TestReturnWithoutStampede: 1,000 boxes whose entrance goes at one moment are all back within
// 4.5 s of its return, and at most 400 dial in any second, however long it was away.
func TestReturnWithoutStampede(t *testing.T) {
	t.Parallel()
	const boxes, most = 1000, 400
	for _, away := range []time.Duration{0, time.Second, 2 * time.Second, 3 * time.Second, 3500 * time.Millisecond, 5 * time.Second, 30 * time.Second, time.Hour} {
		returns := make([]time.Duration, boxes)
		for i := range returns {
			r := newRetry(5 * time.Second)
			at := r.ended(time.Hour)
			for at < away {
				at += r.unreachable()
			}
			returns[i] = at
		}
		if busiest := inAnySecond(returns); busiest > most {
			t.Errorf("away for %v: %d boxes return within one second, at most %d should", away, busiest, most)
		}
		if last := slices.Max(returns) - away; last > 4500*time.Millisecond {
			t.Errorf("away for %v: the last box is back %v later", away, last)
		}
	}
}

// inAnySecond returns the largest number of events within one second. It sorts them.
func inAnySecond(events []time.Duration) (most int) {
	slices.Sort(events)
	first := 0
	for i, at := range events {
		for at-events[first] >= time.Second {
			first++
		}
		most = max(most, i-first+1)
	}
	return most
}

// TestSecondNameWaits: when the session with an entrance is lost, the link that had it has the
// first try; another link to the same entrance comes when that one is away for longer.
func TestSecondNameWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newService(t, slog.New(slog.DiscardHandler), nil)
		entrance := id.EntranceIDOf([]byte("e"))
		first, second := &link{s: s, entrance: entrance}, &link{s: s, entrance: entrance}
		own := func(l *link) {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.owners[entrance] = l; l == nil {
				delete(s.owners, entrance)
			}
			s.notify()
		}
		own(first)
		turn := make(chan bool, 1)
		go func() { turn <- second.awaitTurn(t.Context(), newRetry(5*time.Second)) }()
		own(nil)
		time.Sleep(3 * time.Second)
		own(first)
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(turn) != 0 {
			t.Fatal("it came between although the first link was back within 3 s")
		}
		own(nil)
		lost := time.Now()
		if !<-turn {
			t.Error("it gave up")
		}
		if took := time.Since(lost); took < 4*time.Second || took > 8*time.Second {
			t.Errorf("it came after %v", took)
		}
	})
}
