package placement

import (
	"context"
	"slices"
	"sync"
)

// turns lets one push go at a time where the publisher's own upload is limited: two at once would both take
// twice as long, and no box could pass on what it does not have yet. The first copies come first, of them the
// newest: what is behind the live edge is worth less each second. It is for any goroutine.
type turns struct {
	mu      sync.Mutex
	busy    bool
	waiting []*turn
}

type turn struct {
	*delivery
	copies int // of its segment, when it began to wait
	begin  chan struct{}
}

// take waits for the turn of a push, until ctx ends. The caller gives it back.
func (t *turns) take(ctx context.Context, d *delivery, copies int) error {
	t.mu.Lock()
	if !t.busy {
		t.busy = true
		t.mu.Unlock()
		return nil
	}
	own := &turn{d, copies, make(chan struct{})}
	t.waiting = append(t.waiting, own)
	t.mu.Unlock()
	select {
	case <-own.begin:
		return nil
	case <-ctx.Done():
	}
	t.mu.Lock()
	i := slices.Index(t.waiting, own)
	if i >= 0 {
		t.waiting = slices.Delete(t.waiting, i, i+1)
	}
	t.mu.Unlock()
	if i < 0 { // it came just now
		t.give()
	}
	return context.Cause(ctx)
}

// give lets the next push go.
func (t *turns) give() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.waiting) == 0 {
		t.busy = false
		return
	}
	next := 0
	for i, w := range t.waiting {
		if w.before(t.waiting[next]) {
			next = i
		}
	}
	close(t.waiting[next].begin)
	t.waiting = slices.Delete(t.waiting, next, next+1)
}

func (w *turn) before(other *turn) bool {
	if (w.copies == 0) != (other.copies == 0) {
		return w.copies == 0
	}
	return w.Complete.After(other.Complete)
}
