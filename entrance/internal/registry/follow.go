package registry

import (
	"context"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"dandelion/pkg/id"
	"dandelion/pkg/wire"
)

const (
	fetchChunk   = 256              // hashes in one pipeline
	ownInfoEvery = 10 * time.Second // OWN_INFO
	lookTimeout  = 15 * time.Second // many round trips, each of which has its own deadline
	maxDoomed    = 10_000
)

// follower is the chore that looks at Redis: for what other processes of this entrance and
// operators wrote there, and for what has expired.
type follower struct {
	answers atomic.Bool // the last look succeeded
	failing atomic.Bool // a failure was logged and no success since

	// These are runFollower's alone.
	seeded  bool // the configured other_urls are in Redis
	ownInfo time.Time

	mu     sync.Mutex
	doomed map[id.BoxID]bool // boxes whose lease was ended and whose hash may have to go
}

func (f *follower) init() { f.doomed = make(map[id.BoxID]bool) }

// doom marks hashes for the next look.
func (f *follower) doom(boxes []id.BoxID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, box := range boxes {
		if len(f.doomed) < maxDoomed { // the others expire
			f.doomed[box] = true
		}
	}
}

func (f *follower) takeDoomed() map[id.BoxID]bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	doomed := f.doomed
	f.doomed = make(map[id.BoxID]bool)
	return doomed
}

func (r *Registry) runFollower(ctx context.Context) {
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	for {
		r.sweep(time.Now())
		r.look(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// sweep takes boxes out of the index whose lease is over, whether Redis is there or not.
func (r *Registry) sweep(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, b := range r.boxes {
		if !b.Expires.After(now) {
			r.lose(b, "no report came in time")
		}
	}
	for box, b := range r.gone {
		if now.Sub(b.Expires) > goneFor {
			delete(r.gone, box)
		}
	}
}

// look reads Redis' time, BOX_SET and ENTRANCE_URLS, and does what follows from them.
func (r *Registry) look(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	doomed := r.follow.takeDoomed()
	leases, err := r.read(ctx)
	if err == nil {
		err = r.followOthers(ctx, leases)
	}
	if err == nil {
		err = r.sweepRedis(ctx, leases, doomed)
	}
	if err == nil {
		err = r.seed(ctx)
	}
	r.follow.answers.Store(err == nil)
	if err != nil {
		for box := range doomed {
			r.follow.doom([]id.BoxID{box})
		}
		r.redisFailed("looking at BOX_SET", err)
		return
	}
	if r.follow.failing.CompareAndSwap(true, false) {
		r.log.Info("Redis is back", "unwritten", r.writer.count())
	}
}

// read returns BOX_SET, and takes over the time and the URLs of other entrances.
func (r *Registry) read(ctx context.Context) (map[id.BoxID]float64, error) {
	before := time.Now()
	redisTime, err := r.state.Now(ctx)
	if err != nil {
		return nil, err
	}
	after := time.Now()
	r.clock.start(before.Add(after.Sub(before)/2), redisTime)

	pipe := r.state.Pipeline()
	set := pipe.ZRangeWithScores(ctx, r.keys.BoxSet(), 0, 2*MaxBoxes)
	urls := pipe.SMembers(ctx, r.keys.EntranceURLs())
	ownInfo := pipe.Exists(ctx, r.keys.OwnInfo())
	if _, err := pipe.Exec(ctx); err != nil {
		return nil, err
	}
	others := urls.Val()
	if ownInfo.Val() == 0 { // new, or wiped
		r.follow.seeded = false
	}
	if !r.follow.seeded {
		others = append(others, r.cfg.OtherURLs...)
	}
	r.setOthers(others)
	leases := make(map[id.BoxID]float64, len(set.Val()))
	for _, z := range set.Val() {
		if member, ok := z.Member.(string); ok {
			if box, err := id.ParseBoxID(member); err == nil {
				leases[box] = z.Score
			}
		}
	}
	return leases, nil
}

// followOthers brings the boxes of other processes into the index, and takes those out whose
// lease is gone.
func (r *Registry) followOthers(ctx context.Context, leases map[id.BoxID]float64) error {
	now := r.clock.at(time.Now())
	var fetch []claim
	var missing []id.BoxID
	kept := 0
	r.mu.Lock()
	for box, score := range leases {
		if b := r.boxes[box]; timeOf(score).After(now) && (b == nil || b.score != score) && r.mayFollow(b, box) {
			fetch = append(fetch, claim{box, score})
		}
	}
	for _, b := range r.boxes {
		_, there := leases[b.ID]
		switch {
		case !b.Own && !there:
			r.lose(b, "another process of this entrance lost it")
		case b.Own && there:
			kept++
		case b.Own && b.Persistent && !r.writer.busy(b.ID):
			missing = append(missing, b.ID)
		}
	}
	r.mu.Unlock()
	if kept == 0 {
		// Not one of ours is there: Redis was wiped. A single one may have moved to another process
		// and left from there, before its old connection here was seen to be dead.
		for _, box := range missing {
			r.writer.add(box)
		}
	}
	for chunk := range slices.Chunk(fetch, fetchChunk) {
		if err := r.fetch(ctx, chunk); err != nil {
			return err
		}
	}
	return nil
}

// mayFollow reports whether what Redis says of a box counts more than what the index says (b, or
// nil): not while the box has its connection here, nor while a report that came here is still on
// its way to Redis. Called with mu held.
func (r *Registry) mayFollow(b *Box, box id.BoxID) bool {
	if b != nil && b.Own && b.Persistent {
		return false
	}
	return !r.writer.busy(box)
}

func (r *Registry) fetch(ctx context.Context, claims []claim) error {
	pipe := r.state.Pipeline()
	hashes := make([]*redis.MapStringStringCmd, len(claims))
	for i, c := range claims {
		hashes[i] = pipe.HGetAll(ctx, r.keys.Exchange(c.box))
	}
	_, err := pipe.Exec(ctx)
	if err != nil && !isAnswer(err) {
		return err
	}
	// No lease of another process is taken for longer than one of ours would be, by much: clocks
	// differ, and BOX_SET can be written by anyone.
	latest := time.Now().Add(4 * r.cfg.LeaseTTL)
	for i, c := range claims {
		flat, err := hashes[i].Result()
		if err != nil || len(flat) == 0 {
			continue // being written, or another program's: looked at again the next time
		}
		b, err := boxFromFlat(c.box, flat, c.score, &r.clock)
		if err != nil {
			r.log.Debug("the hash of a box cannot be read", "box", c.box, "error", err)
			continue
		}
		if b.Expires.After(latest) {
			b.Expires = latest
		}
		r.mu.Lock()
		if old := r.boxes[c.box]; r.mayFollow(old, c.box) && (old != nil || len(r.boxes) < MaxBoxes) {
			delete(r.gone, c.box)
			r.set(b)
			if old != nil && old.Own {
				r.writer.add(c.box) // only to forget that it was ours
			}
		}
		r.mu.Unlock()
	}
	return nil
}

// isAnswer reports whether Redis itself said no, so that the connection is good.
func isAnswer(err error) bool {
	_, ok := err.(redis.Error)
	return ok
}

// sweepRedis ends leases that are over, whoever wrote them, and deletes the hashes of boxes whose
// lease was ended at least one look ago. The delay leaves a box that comes back at another process
// its hash: the two keys cannot change together on a Redis Cluster.
func (r *Registry) sweepRedis(ctx context.Context, leases map[id.BoxID]float64, doomed map[id.BoxID]bool) error {
	now := r.clock.at(time.Now())
	if now.Before(unset) {
		return nil
	}
	var hashes []string
	for box := range doomed {
		_, leased := leases[box]
		if _, here := r.Held(box); !leased && !here {
			hashes = append(hashes, r.keys.Exchange(box))
		}
	}
	if err := r.deleteKeys(ctx, hashes); err != nil {
		return err
	}
	var over []claim
	for box, score := range leases {
		if timeOf(score).Before(now) {
			over = append(over, claim{box, score})
		}
	}
	ended, err := r.endLeases(ctx, over)
	r.metrics.ended.Add(float64(len(ended)))
	r.follow.doom(ended)
	return err
}

// deleteKeys deletes each key by its own command: on a Redis Cluster they are in many slots.
func (r *Registry) deleteKeys(ctx context.Context, names []string) error {
	for chunk := range slices.Chunk(names, fetchChunk) {
		pipe := r.state.Pipeline()
		for _, name := range chunk {
			pipe.Del(ctx, name)
		}
		if _, err := pipe.Exec(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Held returns the box if it has a lease now.
func (r *Registry) Held(box id.BoxID) (*Box, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	b := r.boxes[box]
	return b, b != nil
}

// seed writes the configured URLs of other entrances, at the start and when Redis was wiped, and
// OWN_INFO again and again.
func (r *Registry) seed(ctx context.Context) error {
	pipe := r.state.Pipeline()
	if !r.follow.seeded {
		for _, u := range r.cfg.OtherURLs {
			pipe.SAdd(ctx, r.keys.EntranceURLs(), u)
		}
		if r.cfg.OwnURL != "" {
			pipe.SRem(ctx, r.keys.EntranceURLs(), r.cfg.OwnURL)
		}
	}
	if now := time.Now(); !r.follow.seeded || now.Sub(r.follow.ownInfo) >= ownInfoEvery {
		pipe.HSet(ctx, r.keys.OwnInfo(), args(r.cfg.OwnInfo)...)
		r.follow.ownInfo = now
	}
	if pipe.Len() == 0 {
		return nil
	}
	_, err := pipe.Exec(ctx)
	r.follow.seeded = err == nil
	return err
}

// setOthers takes URLs of other entrances, from the configuration or from Redis, where anybody
// may have put them.
func (r *Registry) setOthers(urls []string) {
	others := make([]string, 0, len(urls))
	for _, u := range urls {
		if _, err := wire.ParseURL(u); err == nil && !sameURL(u, r.cfg.OwnURL) {
			others = append(others, u)
		}
	}
	slices.Sort(others)
	others = slices.Compact(others)
	others = others[:min(len(others), maxOthers)]
	if old := r.others.Load(); old == nil || !slices.Equal(*old, others) {
		r.others.Store(&others)
	}
}

func sameURL(a, b string) bool { return strings.TrimSuffix(a, "/") == strings.TrimSuffix(b, "/") }
