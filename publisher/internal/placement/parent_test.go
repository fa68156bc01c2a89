package placement

import (
	"testing"
	"time"
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
