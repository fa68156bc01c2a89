package placement

import (
	"context"
	"errors"
	"io"
	"math"
	"os"
	"slices"
	"sync"
	"time"

	"dandelion/pkg/id"
	"dandelion/publisher/internal/fleet"
	"dandelion/publisher/internal/push"
	"dandelion/publisher/internal/ranking"
)

const (
	maxWaiting        = 64      // live segments that wait for one box; beyond, the oldest goes elsewhere
	pipelined         = 2       // pushes of a box under way at once: one is written while another waits for its answer
	assumedThroughput = 0.625e6 // bytes/s of a box that was not measured, 5 Mbit/s
)

// member is a box with a link. Its fields behind box are guarded by Placement.mu.
type member struct {
	id     id.BoxID
	link   *push.Link
	cancel context.CancelFunc
	wake   chan struct{}

	box     fleet.Box
	record  ranking.Record
	failed  time.Time // the latest failure
	down    time.Time // since when, while its link is down
	queue   []*job    // by deadline
	waiting int64     // bytes queued or under way

	viewers viewerLoad // has its own lock
}

// enqueue adds a job and returns the one that has to leave because too many wait.
func (m *member) enqueue(j *job) (late *job) {
	at, _ := slices.BinarySearchFunc(m.queue, j, func(a, b *job) int { return a.Deadline.Compare(b.Deadline) })
	m.queue = slices.Insert(m.queue, at, j)
	m.waiting += j.Size
	if len(m.queue) > maxWaiting {
		late = m.queue[0]
		m.queue = m.queue[1:]
		m.waiting -= late.Size
	}
	select {
	case m.wake <- struct{}{}:
	default:
	}
	return late
}

func (m *member) empty() []*job {
	waiting := m.queue
	m.queue = nil
	for _, j := range waiting {
		m.waiting -= j.Size
	}
	return waiting
}

// note takes the outcome of a push into the box's record.
func (m *member) note(size int64, took time.Duration, err error) {
	m.waiting -= size
	switch {
	case err == nil:
		m.record = m.record.Succeeded(size, took)
	case !errors.Is(err, push.ErrSource):
		m.record = m.record.Failed()
		m.failed = time.Now()
	}
}

func (m *member) ranking() ranking.Box {
	b := rankingBox(m.box, m.record)
	b.Down = !m.link.Up()
	b.Paused = m.record.Pause() - time.Since(m.failed)
	throughput := m.record.Throughput
	if throughput == 0 {
		throughput = assumedThroughput
	}
	b.Busy = time.Duration(float64(m.waiting) / throughput * float64(time.Second))
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
		j := p.next(ctx, m)
		if j == nil {
			return
		}
		group.Go(func() {
			defer func() { <-slots }()
			p.push(ctx, m, j)
		})
	}
}

// next takes the most urgent job, waiting for one; nil when ctx ends.
func (p *Placement) next(ctx context.Context, m *member) *job {
	for {
		p.mu.Lock()
		if len(m.queue) > 0 {
			j := m.queue[0]
			m.queue = m.queue[1:]
			p.mu.Unlock()
			return j
		}
		p.mu.Unlock()
		select {
		case <-m.wake:
		case <-ctx.Done():
			return nil
		}
	}
}

func (p *Placement) push(ctx context.Context, m *member, j *job) {
	limit := min(max(2*j.Duration, leastPush), mostPush, time.Until(j.Expires))
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errTooSlow)
	defer cancel()
	start, file := time.Now(), liveFile(j.Live)
	_, err := m.link.Push(ctx, push.Live, file)
	p.finished(m, j, file, start, err)
}

func liveFile(s Live) push.File {
	return push.File{
		Path: s.Path, Digest: s.Digest, Size: s.Size,
		TTL:  max(time.Until(s.Expires).Truncate(time.Second)+time.Second, time.Second),
		Open: func() (io.ReadCloser, error) { return os.Open(s.File) },
	}
}
