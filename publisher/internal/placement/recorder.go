package placement

import (
	"context"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"dandelion/pkg/id"
	"dandelion/pkg/keys"
)

// Times and limits of the writing to Redis.
const (
	flushBatch   = 256
	flushTimeout = 3 * time.Second
	flushRetry   = time.Second
	lastFlush    = 2 * time.Second
)

// Messages in PROCESSED_FILES, as the old publisher writes them.
const (
	msgSuccess = "Success"
	msgError   = "Error: "
)

// flush writes the records that changed, a batch at a time. What it could not write stays
// dirty.
func (r *Records) flush(ctx context.Context) error {
	for {
		batch := r.takeDirty()
		if len(batch) == 0 {
			return nil
		}
		if err := r.write(ctx, batch); err != nil {
			r.mu.Lock()
			for _, e := range batch {
				r.dirty[e.path] = true
			}
			r.mu.Unlock()
			return err
		}
	}
}

// entry is a record as it is written: a copy, so that no lock is held while Redis answers.
type entry struct {
	path id.Path
	record
}

func (r *Records) takeDirty() []entry {
	r.mu.Lock()
	defer r.mu.Unlock()
	var batch []entry
	for path := range r.dirty {
		if len(batch) == flushBatch {
			break
		}
		delete(r.dirty, path)
		if f := r.files[path]; f != nil {
			e := entry{path, *f}
			e.holders = slices.Clone(f.holders)
			batch = append(batch, e)
		}
	}
	return batch
}

func (r *Records) write(ctx context.Context, batch []entry) error {
	ctx, cancel := context.WithTimeout(ctx, flushTimeout)
	defer cancel()
	k := keys.Publisher(r.own)
	_, err := r.redis.Pipelined(ctx, func(p redis.Pipeliner) error {
		for _, e := range batch {
			holders, processed := k.Holders(e.path, e.digest), k.ProcessedFile(e.path)
			p.Del(ctx, holders)
			if len(e.holders) == 0 {
				p.Del(ctx, processed)
				continue
			}
			var members []redis.Z
			for _, h := range e.holders {
				members = append(members, redis.Z{Member: string(h.box), Score: expiryScore(h.expires)})
			}
			p.ZAdd(ctx, holders, members...)
			p.HSet(ctx, processed, e.fields())
			if last := lastExpiry(e.holders); !last.IsZero() {
				p.ExpireAt(ctx, holders, last)
				p.ExpireAt(ctx, processed, last)
			} else {
				p.Persist(ctx, processed) // an earlier record may have had its time
			}
		}
		return nil
	})
	return err
}

func (e *entry) fields() map[string]any {
	fields := map[string]any{}
	for name, value := range e.task.extra {
		fields[name] = value
	}
	fields["ID"] = string(e.first)
	fields["MSG"] = msgSuccess
	fields["FILE_PATH"] = string(e.path)
	if fields["TTL"] == nil {
		fields["TTL"] = "0"
		if last := lastExpiry(e.holders); !last.IsZero() {
			fields["TTL"] = strconv.Itoa(max(int(math.Ceil(time.Until(last).Seconds())), 1))
		}
	}
	return fields
}

// expiryScore is unix seconds; +inf for what stays until its room is needed.
func expiryScore(expires time.Time) float64 {
	if expires.IsZero() {
		return math.Inf(1)
	}
	return float64(expires.UnixMilli()) / 1000
}

// lastExpiry is when the last holder lets go; the zero time where one never does.
func lastExpiry(holders []holding) time.Time {
	var last time.Time
	for _, h := range holders {
		if h.expires.IsZero() {
			return time.Time{}
		}
		if h.expires.After(last) {
			last = h.expires
		}
	}
	return last
}

// publishRankings writes BOX_RANKING and BOX_LIST for other programs at every tick until ctx ends.
func (p *Placement) publishRankings(ctx context.Context) {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			p.publishRanking(ctx)
		}
	}
}

func (p *Placement) publishRanking(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, flushTimeout)
	defer cancel()
	p.mu.Lock()
	ranked := p.ranked()
	p.mu.Unlock()
	k := keys.Publisher(p.cfg.Own.ID)
	_, err := p.cfg.Redis.TxPipelined(ctx, func(t redis.Pipeliner) error {
		t.Del(ctx, k.BoxRanking())
		for _, r := range ranked {
			t.ZAdd(ctx, k.BoxRanking(), redis.Z{Member: string(r.ID), Score: r.Score})
		}
		return nil
	})
	if err == nil {
		_, err = p.cfg.Redis.TxPipelined(ctx, func(t redis.Pipeliner) error {
			t.Del(ctx, k.BoxList())
			for _, r := range ranked {
				if r.Excluded == "" {
					t.SAdd(ctx, k.BoxList(), string(r.ID))
				}
			}
			return nil
		})
	}
	if err != nil && ctx.Err() == nil {
		p.log.Debug("the ranking is not in Redis", "reason", err)
	}
}
