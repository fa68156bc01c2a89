package state

import (
	"sync"
	"time"
)

const (
	// clockStep is how often the embedded clock moves: a TTL may end that much too early.
	clockStep = 100 * time.Millisecond
	// slew is the part of the time passed by which the embedded clock is brought nearer to the
	// system's: a lease of 20 s may become 1 s shorter or longer.
	slew = 1.0 / 20
)

// clockUnset is a time before which no clock that was ever set can be: small devices start in
// 1970 until the network tells them better.
var clockUnset = time.Date(2024, time.January, 1, 0, 0, 0, 0, time.UTC)

// clock is the time of the embedded state. It runs with the monotonic clock, so that a jump of the
// system's clock does not end every lease at once; a difference is made up for slowly. Only
// when the system's clock was unset at the start and is then set does it jump, once.
type clock struct {
	mono func() time.Duration // since some moment; never jumps
	wall func() time.Time     // the system's clock, without a monotonic part

	mu      sync.Mutex
	now     time.Time     // at mono == last
	last    time.Duration // of mono
	trusted bool          // the system's clock has been seen set
}

// newClock returns a clock that starts at the system's time, or at saved if that is unset:
// the time in the snapshot is then the better guess.
func newClock(saved time.Time) *clock {
	start := time.Now()
	c := &clock{
		mono: func() time.Duration { return time.Since(start) },
		wall: func() time.Time { return time.Now().Round(0).UTC() },
	}
	c.start(saved)
	return c
}

func (c *clock) start(saved time.Time) {
	c.last, c.now = c.mono(), c.wall()
	c.trusted = isSet(c.now)
	if !c.trusted && saved.After(c.now) {
		c.now = saved
	}
}

func isSet(t time.Time) bool { return !t.Before(clockUnset) }

// advance moves the clock to the present, and returns it and the time that has really passed
// since the last call.
func (c *clock) advance() (now time.Time, passed time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	mono, wall := c.mono(), c.wall()
	passed = mono - c.last
	c.last = mono
	c.now = c.now.Add(passed)
	switch most := time.Duration(float64(passed) * slew); {
	case c.trusted:
		c.now = c.now.Add(max(-most, min(most, wall.Sub(c.now))))
	case isSet(wall):
		c.trusted, c.now = true, wall
	}
	return c.now, passed
}

// current returns the time without moving the clock.
func (c *clock) current() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now.Add(c.mono() - c.last)
}

// moved returns the time to which advance moved the clock last: TTLs count from there.
func (c *clock) moved() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}
