package placement

import (
	"log/slog"
	"testing"
	"time"

	"dandelion/pkg/front"
	"dandelion/pkg/id"
)

// TestParenthood: one failure is no reason, two in a row are; the pause doubles to its limit, and is forgotten after
// a long time without.
func TestParenthood(t *testing.T) {
	t.Parallel()
	var h parenthood
	now := time.Now()
	step := func(d time.Duration) { now = now.Add(d) }
	fail := func() bool { step(time.Millisecond); return h.failed(ReasonLagging, now) }

	if fail() || h.unfitNow(now) != "" {
		t.Error("unfit after one failure")
	}
	h.passed()
	if fail() {
		t.Error("unfit after a success between two failures")
	}
	step(cannotFor + time.Second)
	if fail() {
		t.Error("unfit after two failures far from each other")
	}
	for i, want := range []time.Duration{leastUnfit, 2 * leastUnfit, 4 * leastUnfit, 8 * leastUnfit, 16 * leastUnfit, longestUnfit, longestUnfit} {
		if i > 0 {
			fail()
		}
		if !fail() || h.unfitNow(now) != ReasonLagging || h.pause != want {
			t.Fatalf("time %d: %v, want %v", i, h.pause, want)
		}
		if fail(); fail() {
			t.Error("unfit again while it is")
		}
		h.passed()
		step(want)
		if h.unfitNow(now) != "" {
			t.Error("unfit for longer than it should be")
		}
	}
	step(fitAgain + time.Second)
	if fail(); !fail() || h.pause != leastUnfit {
		t.Errorf("after a long time: %v", h.pause)
	}
}

// TestBlameIsForgotten: a box that fails many over the weeks does not fill the memory.
func TestBlameIsForgotten(t *testing.T) {
	t.Parallel()
	long := time.Now().Add(-cannotFor)
	parent := &member{cannot: map[id.BoxID]time.Time{boxID(2): long, boxID(3): long}}
	p := &Placement{log: slog.New(slog.DiscardHandler), members: map[id.BoxID]*member{boxID(1): parent, boxID(4): {}, boxID(5): {}}}
	p.blame(boxID(1), boxID(4), ReasonLagging)
	p.blame(boxID(1), boxID(5), ReasonLagging)
	if len(parent.cannot) != 2 || !p.apart(boxID(1), boxID(4)) || !p.apart(boxID(1), boxID(5)) {
		t.Errorf("%v", parent.cannot)
	}
}

// TestAreasOfManyViewers: their number times another one is more than an int of 32 bits holds.
func TestAreasOfManyViewers(t *testing.T) {
	t.Parallel()
	w := front.Watchers{All: 100_000, Areas: map[string]front.Area{"TW": {Viewers: 60_000}}}
	if areas := areasOf(w, 150_000); len(areas) != 1 || areas[0].Viewers != 90_000 {
		t.Errorf("%+v", areas)
	}
}
