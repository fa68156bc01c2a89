package watch

import (
	"context"
	"net/url"
	"slices"
	"time"
)

// clock is the buffer model of a player: it plays while each track has media ahead of it.
type clock struct {
	buffered []time.Duration // media received of each track
	finished []bool          // tracks that have all

	start    time.Time
	playing  bool // false before the start and while stalled
	at       time.Time
	startup  time.Duration // 0 until it plays
	played   time.Duration
	stalls   int
	stalled  time.Duration
	stallAt  time.Time
	complete bool // all was played
}

func (c *clock) begin(now time.Time) { c.start, c.at = now, now }

// ahead is what may be played: the shortest track.
func (c *clock) ahead() time.Duration {
	if len(c.buffered) == 0 {
		return 0
	}
	return slices.Min(c.buffered)
}

// advance plays up to now. Between two calls nothing was received, so that the time at which
// the buffer ran empty is known exactly.
func (c *clock) advance(now time.Time) {
	if !c.playing {
		return
	}
	left := c.ahead() - c.played
	if passed := now.Sub(c.at); passed < left {
		c.played += passed
		c.at = now
		return
	}
	c.played += left
	c.playing = false
	if !slices.Contains(c.finished, false) {
		c.complete = true
		return
	}
	c.stalls++
	c.stallAt = c.at.Add(left)
}

// receive adds media to a track and starts or resumes playing when all tracks have some.
func (c *clock) receive(track int, d time.Duration, now time.Time) {
	c.advance(now)
	c.buffered[track] += d
	if c.playing || c.ahead() <= c.played {
		return
	}
	if c.startup == 0 {
		c.startup = now.Sub(c.start)
	} else {
		c.stalled += now.Sub(c.stallAt)
	}
	c.playing, c.at = true, now
}

func (p *Player) buffer(track int, d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clock.receive(track, d, time.Now())
}

func (p *Player) finish(track int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clock.finished[track] = true
}

// waitForRoom waits while a track has enough ahead.
func (p *Player) waitForRoom(ctx context.Context, track int) error {
	p.mu.Lock()
	p.clock.advance(time.Now())
	excess := p.clock.buffered[track] - p.clock.played - bufferAhead
	p.mu.Unlock()
	if excess <= 0 {
		return nil
	}
	return sleep(ctx, excess)
}

func (p *Player) missed(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.report.Missed += n
}

func (p *Player) corrupt() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.report.Corrupt++
}

func (p *Player) retried() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.report.Retries++
}

func (p *Player) received(asked string, from *url.URL, n int64, whole bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.report.Bytes[from.Host] += n
	if whole {
		p.report.Segments++
	}
	if asked != from.String() {
		p.report.Redirects++
	}
}
