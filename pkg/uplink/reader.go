package uplink

import (
	"context"
	"fmt"
	"io"
	"time"
)

// Reader lets through what a limit has room for, as one transfer. It is for one goroutine.
type Reader struct {
	// Ahead, where it is set, says how many of the next want bytes go ahead of the limit, 0 to want.
	Ahead func(want int64) int64

	ctx    context.Context
	r      io.Reader
	flow   *Flow
	waited time.Duration
}

// Reader returns a reader of r, of size bytes, that count as a transfer of the limit, with a weight as Open takes
// it. The caller closes it. When ctx ends reading fails with its cause.
func (l *Limiter) Reader(ctx context.Context, r io.Reader, size int64, weight int) *Reader {
	flow := l.Open(weight)
	flow.Expect(size)
	return &Reader{ctx: ctx, r: r, flow: flow}
}

// Read reads, and then waits until what it read may be sent.
func (p *Reader) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	if ended := p.Wait(int64(n)); ended != nil {
		return 0, ended
	}
	return n, err
}

// Wait waits until n bytes more, which are not read from below, may be sent, such as a header.
func (p *Reader) Wait(n int64) error {
	began := time.Now()
	if p.Ahead != nil && n > 0 {
		ahead := p.Ahead(n)
		p.flow.Spend(ahead)
		n -= ahead
	}
	for n > 0 {
		may, err := p.flow.Take(p.ctx, n)
		if err != nil {
			return fmt.Errorf("given up: %w", context.Cause(p.ctx))
		}
		n -= may
	}
	p.waited += time.Since(began)
	return nil
}

// Waited is how long reading waited for the limit.
func (p *Reader) Waited() time.Duration { return p.waited }

// Close ends the transfer. It does not close the reader below.
func (p *Reader) Close() { p.flow.Close() }
