package registry

import (
	"slices"
	"sync"
	"time"

	"dandelion/pkg/id"
)

// maxUnwritten bounds what is kept for a Redis that is away, beyond what the index holds anyway.
const maxUnwritten = 2 * MaxBoxes

// writer holds which boxes have changes that Redis does not have. What is written is read from
// the index at the time of writing, so that waiting changes of one box become one, and what
// waits is bounded by the number of boxes and of those that left while Redis was away.
type writer struct {
	wake chan struct{}
	most int // maxUnwritten; less in tests

	mu       sync.Mutex
	waiting  map[id.BoxID]bool
	inFlight map[id.BoxID]bool
	queue    []id.BoxID

	leases map[id.BoxID]*lease // runWriter's alone
}

// lease is what this process wrote to Redis for a box.
type lease struct {
	written   float64 // the score that Redis confirmed; 0: none
	attempted float64 // one that it may have; 0: none
	hash      *Box    // what the hash says; nil: not known, all of it must be written
	refreshed time.Time
}

func (w *writer) init() {
	w.wake = make(chan struct{}, 1)
	w.most = maxUnwritten
	w.waiting = make(map[id.BoxID]bool)
	w.inFlight = make(map[id.BoxID]bool)
	w.leases = make(map[id.BoxID]*lease)
}

func (w *writer) add(box id.BoxID) {
	w.mu.Lock()
	if !w.waiting[box] {
		w.waiting[box] = true
		w.queue = append(w.queue, box)
	}
	// The goroutine is woken for the first of a batch and for a full one, not for each.
	n := len(w.queue)
	w.mu.Unlock()
	if n == 1 || n == batchSize {
		w.signal()
	}
}

// crowded reports whether more waits than the index can hold boxes: boxes that left while Redis
// was away are among it.
func (w *writer) crowded() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.queue) >= w.most
}

// keep drops what waits for other boxes than those: their leases in Redis end by themselves.
func (w *writer) keep(here func(id.BoxID) bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.queue = slices.DeleteFunc(w.queue, func(box id.BoxID) bool {
		if here(box) {
			return false
		}
		delete(w.waiting, box)
		return true
	})
}

func (w *writer) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// busy reports whether the box has changes that Redis may not have yet.
func (w *writer) busy(box id.BoxID) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.waiting[box] || w.inFlight[box]
}

func (w *writer) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := len(w.waiting)
	for box := range w.inFlight { // a batch at most
		if !w.waiting[box] {
			n++
		}
	}
	return n
}

func (w *writer) queued() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.queue)
}

func (w *writer) take() []id.BoxID {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := min(len(w.queue), batchSize)
	batch := append([]id.BoxID(nil), w.queue[:n]...)
	if w.queue = w.queue[n:]; len(w.queue) == 0 {
		w.queue = nil
	}
	for _, box := range batch {
		delete(w.waiting, box)
		w.inFlight[box] = true
	}
	return batch
}

// done ends a batch; what failed waits again.
func (w *writer) done(failed []id.BoxID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, box := range failed {
		if !w.waiting[box] {
			w.waiting[box] = true
			w.queue = append(w.queue, box)
		}
	}
	clear(w.inFlight)
}
