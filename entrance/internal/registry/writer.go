package registry

import (
	"context"
	"errors"
	"strings"
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
				r.forgetLeases()
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

// forgetLeases forgets, when there are very many, what was written for boxes that have left.
func (r *Registry) forgetLeases() {
	if len(r.writer.leases) < r.writer.most {
		return
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	for box := range r.writer.leases {
		if r.boxes[box] == nil {
			delete(r.writer.leases, box)
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
	again, failed := r.writeRenewed(ctx, renewed)
	if r.writeEnded(ctx, ended) != nil {
		again, failed = append(again, ended...), true
	}
	r.writer.done(again)
	r.metrics.batches.Inc()
	if failed {
		r.metrics.writeErrors.Inc()
	}
	return failed
}

// attempt is the renewal of one lease in a batch.
type attempt struct {
	box     *Box
	lease   *lease
	set     *redis.IntCmd
	appears int64 // fields that the hash gets with it, by what this process knows
	expires bool
}

// writeRenewed writes hashes and leases in one pipeline, the leases last: who sees a lease finds
// its hash. It returns the boxes that must be written again, and whether Redis failed.
//
// Of a hash that this process has written before, only what changed is written. Redis tells how
// many fields are new to it: another number than expected means that the hash is not the one
// that was written (a wiped Redis, another process), and all of it is written again.
func (r *Registry) writeRenewed(ctx context.Context, boxes []*Box) (again []id.BoxID, failed bool) {
	if len(boxes) == 0 {
		return nil, false
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
		if !b.Persistent {
			l.hash = nil // it may have reported to another process since
		}
		attempts[i] = r.attempt(ctx, pipe, b, l, now)
		members[i] = redis.Z{Score: b.score, Member: string(b.ID)}
	}
	leases := pipe.ZAdd(ctx, r.keys.BoxSet(), members...)
	_, _ = pipe.Exec(ctx) // each command has its own error
	if err := leases.Err(); err != nil {
		r.redisFailed("writing leases", err)
		for _, a := range attempts {
			a.lease.hash = nil
			again = append(again, a.box.ID)
		}
		return again, true
	}
	for i := range attempts {
		whole, err := r.attempted(ctx, &attempts[i], now)
		if !whole {
			again = append(again, attempts[i].box.ID)
		}
		failed = failed || err != nil
	}
	return again, failed
}

func (r *Registry) attempt(ctx context.Context, pipe redis.Pipeliner, b *Box, l *lease, now time.Time) attempt {
	// A hash that is written as a whole may be new.
	a := attempt{box: b, lease: l, expires: l.hash == nil || now.Sub(l.refreshed) > hashRefresh}
	key := r.keys.Exchange(b.ID)
	set := make([]any, 2, 96)
	set[0], set[1] = "hset", key
	var absent []string
	b.eachChange(l.hash, &r.clock, func(name, value string, appears bool) {
		if value == "" {
			absent = append(absent, name)
			return
		}
		set = append(set, name, value)
		if appears {
			a.appears++
		}
	})
	if l.hash == nil {
		absent = missing(set[2:])
	}
	// Built here and not by HSet, which would copy the list.
	a.set = redis.NewIntCmd(ctx, set...)
	_ = pipe.Process(ctx, a.set)
	if len(absent) > 0 {
		pipe.HDel(ctx, key, absent...)
	}
	if a.expires {
		pipe.Expire(ctx, key, hashLife)
	}
	l.attempted = b.score
	return a
}

// attempted takes over how a renewal went, and reports whether the hash is now what it should be.
func (r *Registry) attempted(ctx context.Context, a *attempt, now time.Time) (whole bool, err error) {
	l := a.lease
	l.written, l.attempted = a.box.score, 0
	appeared, err := a.set.Result()
	if err != nil {
		l.hash = nil
		r.redisFailed("writing a report", err)
		if strings.HasPrefix(err.Error(), "WRONGTYPE") {
			r.state.Del(ctx, r.keys.Exchange(a.box.ID)) // another program's doing; the key is ours
		}
		return false, err
	}
	if l.hash != nil && appeared != a.appears {
		l.hash = nil
		return false, nil
	}
	l.hash = a.box
	if a.expires {
		l.refreshed = now
	}
	r.metrics.written.Inc()
	return true, nil
}

// writeEnded ends the leases that this process wrote, as far as they are still the ones in Redis.
func (r *Registry) writeEnded(ctx context.Context, boxes []id.BoxID) error {
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
		return err
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

// missing returns the optional fields that a list of names and values does not have.
func missing(fields []any) (names []string) {
	there := make(map[any]bool, len(fields)/2)
	for i := 0; i < len(fields); i += 2 {
		there[fields[i]] = true
	}
	for _, name := range optionalFields {
		if !there[name] {
			names = append(names, name)
		}
	}
	return names
}
