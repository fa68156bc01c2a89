package placement

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"dandelion/pkg/geo"
	"dandelion/pkg/id"
	"dandelion/pkg/saving"
	"dandelion/publisher/internal/fleet"
	"dandelion/publisher/internal/push"
	"dandelion/publisher/internal/ranking"
)

const (
	maxWaiting        = 64      // live segments that wait for one box; beyond, the oldest goes elsewhere
	pipelined         = 2       // pushes of a box under way at once: one is written while another waits for its answer
	assumedThroughput = 0.625e6 // bytes/s of a box that was not measured, 5 Mbit/s
	slowFor           = 30 * time.Second
)

// member is a box with a link. Its fields behind box are guarded by Placement.mu.
type member struct {
	id     id.BoxID
	link   *push.Link
	cancel context.CancelFunc
	wake   chan struct{}

	box     fleet.Box
	place   *geo.Place // nil: unknown
	record  ranking.Record
	failed  time.Time // the latest failure
	down    time.Time // since when, while its link is down
	slow    time.Time // until then it counts as slower than viewers need
	queue   []queued  // by deadline
	waiting int64     // bytes queued or under way
	passing int64     // bytes that it is to pass on to others
	doubts  doubts
	parent  parenthood
	trials  trials
	denied  map[id.StreamName]time.Time // streams that it does not take, and when it said so
	missed  int                         // copies that should have been passed on to it, since the last one that it got

	distance float64 // km from all viewers; NaN: unknown

	pushing map[*delivery]struct{} // under way
	cannot  map[id.BoxID]time.Time // boxes that it could not pass on to, and when
	wanted  atomic.Int64           // bytes/s of its upload that could be used
	doubted chan id.Path           // asks for a probe

	viewers viewerLoad // has its own lock
}

// queued is a push that waits for its box.
type queued struct {
	*delivery
	since time.Time
}

// enqueue adds a push and returns the one that has to leave because too many wait.
func (m *member) enqueue(d *delivery, now time.Time) (late *delivery) {
	at, _ := slices.BinarySearchFunc(m.queue, d, func(a queued, b *delivery) int { return a.Deadline.Compare(b.Deadline) })
	m.queue = slices.Insert(m.queue, at, queued{d, now})
	m.waiting += d.Size
	if len(m.queue) > maxWaiting {
		late = m.take(0)
		m.waiting -= late.Size
	}
	select {
	case m.wake <- struct{}{}:
	default:
	}
	return late
}

// take takes a push out of the queue.
func (m *member) take(i int) *delivery {
	d := m.queue[i].delivery
	m.queue = slices.Delete(m.queue, i, i+1)
	return d
}

// urgent returns where in the queue, which must have one, the most urgent push is: of those that
// no box holds yet, else of all, the one with the earliest deadline. So a further copy of a segment
// does not delay the first copy of the next.
func (m *member) urgent() int {
	return max(slices.IndexFunc(m.queue, func(q queued) bool { return q.copies == 0 }), 0)
}

// late takes out of the queue what waited for as long as a push may take.
func (m *member) late(now time.Time) []*delivery {
	var late []*delivery
	for i := 0; i < len(m.queue); {
		if q := m.queue[i]; now.Sub(q.since) < pushWithin(q.job) {
			i++
			continue
		}
		j := m.take(i)
		m.waiting -= j.Size
		late = append(late, j)
	}
	return late
}

func (m *member) empty() []*delivery {
	var waiting []*delivery
	for len(m.queue) > 0 {
		j := m.take(0)
		m.waiting -= j.Size
		waiting = append(waiting, j)
	}
	return waiting
}

// pace notes a box that takes segments hardly faster than they play: viewers are better off with
// another one.
func (m *member) pace(now time.Time, plays, took time.Duration, err error) {
	if errors.Is(err, errTooSlow) || err == nil && isSlow(plays, took) {
		m.slow = now.Add(slowFor)
	}
}

// slowNow reports whether viewers are better off with another box, as pushes to it or viewers themselves say.
func (m *member) slowNow(now time.Time) bool { return now.Before(m.slow) || m.doubts.suspected(now) }

func isSlow(plays, took time.Duration) bool { return plays > 0 && took > plays/2 }

// throughput is what the box's pushes came to so far, bytes/s.
func (m *member) throughput() float64 {
	if m.record.Throughput == 0 {
		return assumedThroughput
	}
	return m.record.Throughput
}

// note takes the outcome of a push into the box's record.
func (m *member) note(size int64, took time.Duration, err error) {
	m.waiting -= size
	switch {
	case err == nil:
		m.record = m.record.Succeeded(size, took)
	case !errors.Is(err, push.ErrSource) && !isDenied(err):
		m.record = m.record.Failed()
		m.failed = time.Now()
	}
}

func (m *member) ranking() ranking.Box {
	b := rankingBox(m.box, m.record)
	b.Distance = m.distance
	b.Down = !m.link.Up()
	b.Deaf = m.doubts.deaf
	b.Paused = m.record.Pause() - time.Since(m.failed)
	b.Busy = time.Duration(float64(m.waiting) / m.throughput() * float64(time.Second))
	return b
}

func rankingBox(b fleet.Box, r ranking.Record) ranking.Box {
	return ranking.Box{
		ID: b.ID, Household: b.Household, System: b.Exchange.System, Distance: math.NaN(),
		Known: time.Since(b.FirstSeen), Pushes: r,
	}
}

// work pushes what waits for the box, most urgent first, until ctx ends.
func (p *Placement) work(ctx context.Context, m *member) {
	var group sync.WaitGroup
	defer group.Wait()
	slots := make(chan struct{}, pipelined)
	for {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		d := p.next(ctx, m)
		if d == nil {
			return
		}
		group.Go(func() {
			defer func() { <-slots }()
			p.push(ctx, m, d)
		})
	}
}

// next takes the most urgent push, waiting for one; nil when ctx ends.
func (p *Placement) next(ctx context.Context, m *member) *delivery {
	for {
		p.mu.Lock()
		if len(m.queue) > 0 {
			d := m.take(m.urgent())
			m.pushing[d] = struct{}{}
			p.mu.Unlock()
			return d
		}
		p.mu.Unlock()
		select {
		case <-m.wake:
		case <-ctx.Done():
			return nil
		}
	}
}

func (p *Placement) push(ctx context.Context, m *member, d *delivery) {
	if p.cfg.Uplink > 0 {
		if err := p.awaitTurn(ctx, d); err != nil {
			p.finished(m, d, liveFile(d.Live), time.Now(), 0, err)
			return
		}
		defer p.turns.give()
	}
	p.moved(d)
	limit := min(pushWithin(d.job), time.Until(d.Expires))
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errTooSlow)
	defer cancel()
	start, file := time.Now(), liveFile(d.Live)
	count := p.countPlacing(d.Path)
	file.Relay, file.Sent = d.nodes, func(n int) {
		count(n)
		if p.cfg.Uplink > 0 {
			p.moved(d) // it is our limit that it waits for, until all is written
		}
	}
	receipt, err := m.link.Push(ctx, push.Live, file)
	took := receipt.Took
	if err != nil {
		took = time.Since(start)
	}
	p.finished(m, d, file, start, took, err)
}

// countPlacing returns what counts the bytes of a file that are sent to a box.
func (p *Placement) countPlacing(path id.Path) func(n int) {
	meter := p.cfg.Saving.Of(path)
	return func(n int) { meter.Add(saving.Bytes{Placing: int64(n)}, time.Now()) }
}

// awaitTurn waits until the publisher's upload is free for a push, at most for as long as its segment is of
// use.
func (p *Placement) awaitTurn(ctx context.Context, d *delivery) error {
	ctx, cancel := context.WithDeadlineCause(ctx, d.Expires, errTooSlow)
	defer cancel()
	p.mu.Lock()
	copies := d.copies
	p.mu.Unlock()
	err := p.turns.take(ctx, d, copies)
	switch {
	case errors.Is(err, errTooSlow):
		return fmt.Errorf("%w in time: the publisher's upload was busy with others", push.ErrSource)
	case err != nil:
		return fmt.Errorf("%w: %w", push.ErrClosed, err)
	}
	return nil
}

// pushWithin is how long a live segment may wait for a box, and then its push take.
func pushWithin(j *job) time.Duration { return min(max(2*j.Duration, leastPush), mostPush) }

func liveFile(s Live) push.File {
	return push.File{
		Path: s.Path, Digest: s.Digest, Size: s.Size, Plays: s.Duration,
		TTL:  max(time.Until(s.Expires).Truncate(time.Second)+time.Second, time.Second),
		Open: func() (io.ReadCloser, error) { return os.Open(s.File) },
	}
}
