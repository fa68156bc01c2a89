package watch

import (
	"testing"
	"time"
)

// step is a call of a clock at some second.
type step struct {
	at     float64
	do     string // "receive", "miss", "finish", "stop", "look"
	track  int
	length float64 // seconds of media
	// What it must tell.
	event         string
	since, lasted float64
}

func TestClock(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		tracks                            int
		steps                             []step
		stalls                            int
		startup, played, stalled, longest float64
		playing, complete                 bool
	}{
		"plays when each track has some": {
			tracks:  2,
			steps:   []step{{at: 1, do: "receive", length: 2}, {at: 1.5, do: "receive", track: 1, length: 4, event: EventStart, lasted: 1.5}, {at: 2.5, do: "look"}},
			startup: 1.5, played: 1, playing: true,
		},
		"stalls where the shorter track ends": {
			tracks: 2,
			steps: []step{
				{at: 1, do: "receive", length: 2},
				{at: 1, do: "receive", track: 1, length: 4, event: EventStart, lasted: 1},
				{at: 5, do: "receive", length: 1, event: EventStall, since: 3, lasted: 2},
				{at: 5.5, do: "look"},
			},
			stalls: 1, startup: 1, played: 2.5, stalled: 2, longest: 2, playing: true,
		},
		"a stall that runs at the end is over then": {
			tracks: 1,
			steps:  []step{{do: "receive", length: 1, event: EventStart}, {at: 4, do: "stop", event: EventStall, since: 1, lasted: 3}},
			stalls: 1, played: 1, stalled: 3, longest: 3,
		},
		"the end is no stall": {
			tracks: 1,
			steps:  []step{{do: "receive", length: 1, event: EventStart}, {at: 0.5, do: "finish"}, {at: 9, do: "stop"}},
			played: 1, complete: true,
		},
		"a stall ends with the stream": {
			tracks: 1,
			steps:  []step{{do: "receive", length: 1, event: EventStart}, {at: 3, do: "finish", event: EventStall, since: 1, lasted: 2}, {at: 9, do: "stop"}},
			stalls: 1, played: 1, stalled: 2, longest: 2, complete: true,
		},
		"a hole is jumped over": {
			tracks: 1,
			steps: []step{
				{do: "receive", length: 1, event: EventStart}, {do: "miss", length: 5}, {do: "receive", length: 2}, {at: 2.5, do: "look"},
			},
			played: 2.5, playing: true,
		},
		"a hole at the end is waited in": {
			tracks: 1,
			steps: []step{
				{do: "receive", length: 1, event: EventStart},
				{do: "miss", length: 5},
				{at: 3, do: "receive", length: 2, event: EventStall, since: 1, lasted: 2},
				{at: 4, do: "look"},
			},
			stalls: 1, played: 2, stalled: 2, longest: 2, playing: true,
		},
		"a hole in the middle of a stall does not end it": {
			tracks: 1,
			steps:  []step{{do: "receive", length: 1, event: EventStart}, {at: 2, do: "miss", length: 5}, {at: 3, do: "miss", length: 5}, {at: 4, do: "stop", event: EventStall, since: 1, lasted: 3}},
			stalls: 1, played: 1, stalled: 3, longest: 3,
		},
		"holes of both tracks at the same place are one": {
			tracks: 2,
			steps: []step{
				{do: "miss", length: 2}, {do: "miss", track: 1, length: 3}, {do: "receive", length: 4}, {do: "receive", track: 1, length: 3, event: EventStart}, {at: 2, do: "look"},
			},
			played: 2, playing: true,
		},
		"begins behind a hole": {
			tracks:  1,
			steps:   []step{{do: "miss", length: 2}, {at: 3, do: "receive", length: 2, event: EventStart, lasted: 3}, {at: 4, do: "look"}},
			startup: 3, played: 1, playing: true,
		},
		"counts each stall and the longest": {
			tracks: 1,
			steps: []step{
				{do: "receive", length: 1, event: EventStart},
				{at: 4, do: "receive", length: 1, event: EventStall, since: 1, lasted: 3},
				{at: 6, do: "receive", length: 1, event: EventStall, since: 5, lasted: 1},
				{at: 6.5, do: "look"},
			},
			stalls: 2, played: 2.5, stalled: 4, longest: 3, playing: true,
		},
		"is not over while it plays": {
			tracks: 1,
			steps:  []step{{do: "receive", length: 2, event: EventStart}, {at: 0.5, do: "finish"}, {at: 1, do: "look"}},
			played: 1, playing: true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			zero := time.Unix(0, 0)
			length := func(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
			c := newClock(tt.tracks, zero)
			for i, s := range tt.steps {
				now, got := zero.Add(length(s.at)), turn{}
				switch s.do {
				case "receive":
					got = c.receive(s.track, length(s.length), now)
				case "miss":
					got = c.miss(s.track, length(s.length), now)
				case "finish":
					got = c.finish(s.track, now)
				case "stop":
					got = c.stop(now)
				default:
					c.advance(now)
				}
				if got.event != s.event || got.length != length(s.lasted) || got.event != "" && !got.since.Equal(zero.Add(length(s.since))) {
					t.Errorf("step %d tells %+v, want %s since %v for %v", i, got, s.event, s.since, s.lasted)
				}
			}
			if c.stalls != tt.stalls || c.startup != length(tt.startup) || c.played != length(tt.played) || c.stalled != length(tt.stalled) ||
				c.longest != length(tt.longest) || c.playing != tt.playing || c.complete != tt.complete {
				t.Errorf("%+v", c)
			}
		})
	}
}

func TestClockLeft(t *testing.T) {
	t.Parallel()
	c := newClock(1, time.Unix(0, 0))
	c.receive(0, 2*time.Second, time.Unix(0, 0))
	c.miss(0, 3*time.Second, time.Unix(0, 0))
	c.receive(0, 4*time.Second, time.Unix(0, 0))
	c.advance(time.Unix(1, 0))
	if c.left() != 5*time.Second || c.buffered(0) != 5*time.Second {
		t.Errorf("%v left and %v buffered, want 5 s of both", c.left(), c.buffered(0))
	}
}

// TestClockLeftOfTwo: holes of two tracks that overlap count once.
func TestClockLeftOfTwo(t *testing.T) {
	t.Parallel()
	zero := time.Unix(0, 0)
	c := newClock(2, zero)
	for track, steps := range [][3]time.Duration{{1, 4, 5}, {3, 4, 3}} { // holes from 1 to 5 and from 3 to 7
		c.receive(track, steps[0]*time.Second, zero)
		c.miss(track, steps[1]*time.Second, zero)
		c.receive(track, steps[2]*time.Second, zero)
	}
	if c.left() != 4*time.Second {
		t.Errorf("%v left, want 4 s", c.left())
	}
}

// TestClockHoles: what remembers them is bounded.
func TestClockHoles(t *testing.T) {
	t.Parallel()
	c := newClock(1, time.Unix(0, 0))
	for range 3 * maxHoles {
		c.receive(0, time.Second, time.Unix(0, 0))
		c.miss(0, time.Second, time.Unix(0, 0))
	}
	if len(c.holes) > maxHoles {
		t.Errorf("%d holes", len(c.holes))
	}
}
