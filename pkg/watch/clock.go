package watch

import (
	"slices"
	"time"
)

// maxHoles bounds the holes that are remembered ahead of what plays; further ones are played
// like media.
const maxHoles = 100

// clock is the buffer model of a player: it plays while each track has media ahead, jumps over
// what is missing, and stalls where nothing follows. A stall ends as soon as each track has
// anything ahead again.
type clock struct {
	ends     []time.Duration // how far each track reaches, holes included
	finished []bool          // tracks that have all
	holes    []hole          // where a track has nothing; in order, apart

	begin    time.Time
	at       time.Time     // up to when it was played
	position time.Duration // of what plays now
	playing  bool          // false before the start, while stalled, and at the end
	started  bool
	complete bool // all was played

	startup time.Duration
	played  time.Duration // of media
	stalls  int
	stalled time.Duration // by stalls that are over
	longest time.Duration
	stallAt time.Time // of the one that runs; zero: none
}

type hole struct{ from, to time.Duration }

// turn is what a call changed for the viewer: it started, or a stall is over.
type turn struct {
	event  string // EventStart, EventStall; "": nothing
	since  time.Time
	length time.Duration
}

func newClock(tracks int, begin time.Time) clock {
	return clock{ends: make([]time.Duration, tracks), finished: make([]bool, tracks), begin: begin, at: begin}
}

// ahead is where the first track ends.
func (c *clock) ahead() time.Duration {
	if len(c.ends) == 0 {
		return 0
	}
	return slices.Min(c.ends)
}

// jump moves over a hole that begins here.
func (c *clock) jump() {
	for len(c.holes) > 0 && c.holes[0].from <= c.position {
		if end := c.ahead(); end < c.holes[0].to {
			c.position = max(c.position, end)
			return
		}
		c.position = max(c.position, c.holes[0].to)
		c.holes = c.holes[1:]
	}
}

// advance plays up to now. Between two calls nothing was received, so that the time at which
// the buffer ran empty is known exactly.
func (c *clock) advance(now time.Time) {
	for c.playing {
		c.jump()
		next := c.ahead()
		if len(c.holes) > 0 {
			next = min(next, max(c.holes[0].from, c.position))
		}
		passed, left := max(now.Sub(c.at), 0), next-c.position
		if passed < left {
			c.played += passed
			c.position += passed
			c.at = now
			return
		}
		c.played += left
		c.position = next
		c.at = c.at.Add(left)
		c.jump()
		if c.position >= c.ahead() {
			c.playing = false
			c.complete = !slices.Contains(c.finished, false)
			if !c.complete {
				c.stalls++
				c.stallAt = c.at
			}
		}
	}
}

// receive adds media to a track, and starts or resumes playing when all tracks have some.
func (c *clock) receive(track int, d time.Duration, now time.Time) turn {
	c.advance(now)
	c.ends[track] += d
	return c.resume(now)
}

// miss adds a hole to a track.
func (c *clock) miss(track int, d time.Duration, now time.Time) turn {
	c.advance(now)
	from := c.ends[track]
	c.ends[track] += d
	if d > 0 {
		c.dig(hole{from, from + d})
	}
	return c.resume(now)
}

func (c *clock) dig(h hole) {
	if len(c.holes) == maxHoles {
		return
	}
	c.holes = append(c.holes, h)
	slices.SortFunc(c.holes, func(a, b hole) int { return int(a.from - b.from) })
	merged := c.holes[:1]
	for _, next := range c.holes[1:] {
		last := &merged[len(merged)-1]
		if next.from <= last.to {
			last.to = max(last.to, next.to)
		} else {
			merged = append(merged, next)
		}
	}
	c.holes = merged
}

func (c *clock) resume(now time.Time) turn {
	if c.playing || c.complete {
		return turn{}
	}
	c.jump()
	if c.position >= c.ahead() {
		return turn{}
	}
	c.playing, c.at = true, now
	if !c.started {
		c.started, c.startup = true, now.Sub(c.begin)
		return turn{EventStart, c.begin, c.startup}
	}
	return c.stallOver(now)
}

func (c *clock) stallOver(now time.Time) turn {
	if c.stallAt.IsZero() {
		return turn{}
	}
	over := turn{EventStall, c.stallAt, now.Sub(c.stallAt)}
	c.stalled += over.length
	c.longest = max(c.longest, over.length)
	c.stallAt = time.Time{}
	return over
}

// finish notes that nothing follows on a track. A player that waits for more is then at the end.
func (c *clock) finish(track int, now time.Time) turn {
	c.advance(now)
	c.finished[track] = true
	if slices.Contains(c.finished, false) || c.playing {
		return turn{}
	}
	c.complete = true
	return c.stallOver(now)
}

// stop ends the watching: a stall that runs is over.
func (c *clock) stop(now time.Time) turn {
	c.advance(now)
	c.playing = false
	return c.stallOver(now)
}

// buffered is how much media of a track lies ahead of what plays.
func (c *clock) buffered(track int) time.Duration { return c.media(c.ends[track]) }

// left is how long what was received still plays.
func (c *clock) left() time.Duration { return c.media(c.ahead()) }

// media is how much there is up to a position, without the holes.
func (c *clock) media(end time.Duration) time.Duration {
	total := end - c.position
	for _, h := range c.holes {
		total -= max(0, min(h.to, end)-max(h.from, c.position))
	}
	return max(total, 0)
}
