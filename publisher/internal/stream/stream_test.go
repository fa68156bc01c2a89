package stream

import (
	"testing"
	"time"
)

func TestSegmentsAreShownWhenABoxHoldsThem(t *testing.T) {
	t.Parallel()
	r := newRig(t).start()
	r.segments("a", "0.ts", "1.ts", "2.ts")
	r.media("index.m3u8", 0, "0.ts", "1.ts", "2.ts")
	r.look()
	if len(r.placed) != 3 {
		t.Fatalf("%d segments offered, want 3", len(r.placed))
	}
	first := r.placed[0]
	if want := r.now.Add(time.Second); !first.Deadline.Equal(want) || first.Duration != 2*time.Second || !first.Complete.Equal(r.now) {
		t.Errorf("%+v, want a deadline of %v", first, want)
	}
	if first.TTL != 14*time.Second || !first.Expires.Equal(r.now.Add(first.TTL)) {
		t.Errorf("TTL %v, want twice the window of 6 s and a segment", first.TTL)
	}
	r.s.Placed(first.Path)
	if _, ok := r.s.Playlist("index/index.m3u8"); ok {
		t.Fatal("shown before its state was on disk")
	}
	r.save()
	r.want("index", "a 0.ts")
	r.s.Placed(r.placed[2].Path) // out of order: waits for the one before it
	r.want("index", "a 0.ts")
	r.s.Placed(r.placed[1].Path)
	r.want("index", "a 0.ts a 1.ts a 2.ts")
	r.s.Placed(r.placed[1].Path) // again
	r.s.Placed("/live/demo/index/000000000000/none.ts")
	r.want("index", "a 0.ts a 1.ts a 2.ts")
}

func TestSegmentsDoNotWaitLong(t *testing.T) {
	t.Parallel()
	r := newRig(t).start()
	r.segments("a", "0.ts", "1.ts", "2.ts")
	r.media("index.m3u8", 0, "0.ts")
	r.look()
	r.save()
	if next := r.s.tick(r.now); next > time.Second {
		t.Errorf("the next thing to do is in %v", next)
	}
	r.now = r.now.Add(999 * time.Millisecond)
	r.s.tick(r.now)
	if _, ok := r.s.Playlist("index/index.m3u8"); ok {
		t.Fatal("shown before a box holds it")
	}
	r.now = r.now.Add(time.Millisecond)
	r.s.tick(r.now)
	r.want("index", "a 0.ts")
	r.boxes = 0 // nothing to wait for
	r.media("index.m3u8", 0, "0.ts", "1.ts")
	r.look()
	r.save()
	r.want("index", "a 0.ts a 1.ts")
}
