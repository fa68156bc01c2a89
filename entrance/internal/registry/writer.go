package registry

import (
	"context"
	"errors"
	"hash/maphash"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"dandelion/pkg/id"
)

// Reports are written in batches: a round trip for each would cost more than all else that is
// done with it.
const (
	batchSize    = 512
	batchWait    = 5 * time.Millisecond
	writeTimeout = 3 * time.Second
	firstPause   = 50 * time.Millisecond // after a failure, doubling
	longestPause = time.Second
	finalWrites  = 2 * time.Second // at the end, for what is left

	// hashLife is how long a hash outlives its last refresh: the sweep deletes it with its box, and
	// this is for those of a process that died between the two.
	hashLife    = time.Hour
	hashRefresh = hashLife / 2
)

// writer holds which boxes have changes that Redis does not have. What is written is read from
// the index at the time of writing, so that waiting changes of one box become one, and what
// waits is bounded by the number of boxes.
type writer struct {
	wake chan struct{}

	mu       sync.Mutex
	waiting  map[id.BoxID]bool
	inFlight map[id.BoxID]bool
	queue    []id.BoxID

	leases map[id.BoxID]*lease // runWriter's alone
	seed   maphash.Seed
}

// lease is what this process wrote to Redis for a box.
type lease struct {
	written   float64 // the score that Redis confirmed; 0: none
	attempted float64 // one that it may have; 0: none
	fields    uint64  // which fields the hash has
	refreshed time.Time
}

func (w *writer) init() {
	w.wake = make(chan struct{}, 1)
	w.waiting = make(map[id.BoxID]bool)
	w.inFlight = make(map[id.BoxID]bool)
	w.leases = make(map[id.BoxID]*lease)
	w.seed = maphash.MakeSeed()
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
	return len(w.waiting) + len(w.inFlight)
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

// runWriter writes batches until ctx ends, and what is left then.
func (r *Registry) runWriter(ctx context.Context) {
	pause := time.Duration(0)
	for {
		select {
		case <-ctx.Done():
			r.writeRest()
			return
		case <-r.writer.wake:
		}
		for r.writer.queued() > 0 && ctx.Err() == nil {
			r.gather(ctx, pause)
			if failed := r.writeBatch(context.WithoutCancel(ctx)); failed {
				pause = min(max(2*pause, firstPause), longestPause)
			} else {
				pause = 0
			}
		}
	}
}

// gather waits until a batch is full, or is old enough; after a failure, for the whole pause.
func (r *Registry) gather(ctx context.Context, pause time.Duration) {
	timer := time.NewTimer(max(pause, batchWait))
	defer timer.Stop()
	for {
		if pause == 0 && r.writer.queued() >= batchSize {
			return
		}
		select {
		case <-timer.C:
			return
		case <-ctx.Done():
			return
		case <-r.writer.wake:
		}
	}
}

func (r *Registry) writeRest() {
	ctx, cancel := context.WithTimeout(context.Background(), finalWrites)
	defer cancel()
	for r.writer.queued() > 0 && ctx.Err() == nil {
		if r.writeBatch(ctx) {
			return // Redis is down: the leases end by themselves
		}
	}
}

// writeBatch writes one batch and reports whether any of it failed; that part waits again.
func (r *Registry) writeBatch(ctx context.Context) (failed bool) {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	batch := r.writer.take()
	var renewed []*Box
	var ended []id.BoxID
	r.mu.RLock()
	for _, box := range batch {
		switch b := r.boxes[box]; {
		case b != nil && b.Own:
			renewed = append(renewed, b)
		case r.writer.leases[box] != nil:
			ended = append(ended, box)
		}
	}
	r.mu.RUnlock()
	again := append(r.writeRenewed(ctx, renewed), r.writeEnded(ctx, ended)...)
	r.writer.done(again)
	r.metrics.batches.Inc()
	if len(again) > 0 {
		r.metrics.writeErrors.Inc()
	}
	return len(again) > 0
}

// writeRenewed writes hashes and leases in one pipeline, the leases last: who sees a lease finds
// its hash. It returns the boxes that must be written again.
func (r *Registry) writeRenewed(ctx context.Context, boxes []*Box) (again []id.BoxID) {
	if len(boxes) == 0 {
		return nil
	}
	type attempt struct {
		box    *Box
		lease  *lease
		fields uint64
		hash   *redis.IntCmd
		fresh  bool
	}
	attempts := make([]attempt, len(boxes))
	members := make([]redis.Z, len(boxes))
	pipe := r.state.Pipeline()
	now := time.Now()
	for i, b := range boxes {
		l := r.writer.leases[b.ID]
		if l == nil {
			l = &lease{}
			r.writer.leases[b.ID] = l
		}
		key := r.keys.Exchange(b.ID)
		flat := b.flat(&r.clock)
		a := attempt{box: b, lease: l, fields: r.writer.fieldsOf(flat), fresh: now.Sub(l.refreshed) > hashRefresh}
		a.hash = pipe.HSet(ctx, key, args(flat)...)
		if absent := missing(flat); a.fields != l.fields && len(absent) > 0 {
			pipe.HDel(ctx, key, absent...)
		}
		if a.fresh {
			pipe.Expire(ctx, key, hashLife)
		}
		l.attempted = b.score
		attempts[i] = a
		members[i] = redis.Z{Score: b.score, Member: string(b.ID)}
	}
	leases := pipe.ZAdd(ctx, r.keys.BoxSet(), members...)
	_, _ = pipe.Exec(ctx) // each command has its own error
	if err := leases.Err(); err != nil {
		r.redisFailed("writing leases", err)
		for _, b := range boxes {
			again = append(again, b.ID)
		}
		return again
	}
	for _, a := range attempts {
		a.lease.written, a.lease.attempted = a.box.score, 0
		if err := a.hash.Err(); err != nil {
			r.redisFailed("writing a report", err)
			if strings.HasPrefix(err.Error(), "WRONGTYPE") {
				r.state.Del(ctx, r.keys.Exchange(a.box.ID)) // another program's doing; the key is ours
			}
			again = append(again, a.box.ID)
			continue
		}
		a.lease.fields = a.fields
		if a.fresh {
			a.lease.refreshed = now
		}
		r.metrics.written.Inc()
	}
	return again
}

// writeEnded ends the leases that this process wrote, as far as they are still the ones in Redis.
func (r *Registry) writeEnded(ctx context.Context, boxes []id.BoxID) (again []id.BoxID) {
	var claims []claim
	for _, box := range boxes {
		l := r.writer.leases[box]
		for _, score := range []float64{l.written, l.attempted} {
			if score != 0 {
				claims = append(claims, claim{box, score})
			}
		}
	}
	ended, err := r.endLeases(ctx, claims)
	if err != nil {
		r.redisFailed("ending leases", err)
		return boxes
	}
	for _, box := range boxes {
		delete(r.writer.leases, box)
	}
	r.metrics.ended.Add(float64(len(ended)))
	r.follow.doom(ended)
	return nil
}

// redisFailed says so in the log, once for each time that Redis goes away.
func (r *Registry) redisFailed(doing string, err error) {
	if errors.Is(err, context.Canceled) {
		return
	}
	if r.follow.failing.CompareAndSwap(false, true) {
		r.log.Warn("Redis fails; boxes are kept in memory and written when it is back", "doing", doing, "error", err)
	}
}

// args is a hash as the arguments of HSET.
func args(flat map[string]string) []any {
	list := make([]any, 0, 2*len(flat))
	for name, value := range flat {
		list = append(list, name, value)
	}
	return list
}

func missing(flat map[string]string) (names []string) {
	for _, name := range optionalFields {
		if _, ok := flat[name]; !ok {
			names = append(names, name)
		}
	}
	return names
}

// fieldsOf identifies a set of field names, whatever their order. Never 0.
func (w *writer) fieldsOf(flat map[string]string) uint64 {
	sum := uint64(1)
	for name := range flat {
		sum += maphash.String(w.seed, name)
	}
	return max(sum, 1)
}
