package placement

import (
	"context"
	"crypto/rand"
	"errors"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"dandelion/pkg/id"
	"dandelion/pkg/keys"
)

// markerField of SELF_INFO holds what the last batch of records left there.
const (
	markerField    = "RUN"
	markerInterval = 3 * time.Second
)

// marker tells whether Redis still has what it was given: a wiped one does not know the marker of
// the last batch, one that was restored from an older state has an earlier one. Whoever has the
// token for writing may use it.
type marker struct {
	run     string
	tried   uint64 // number of the last batch
	written uint64 // of the last batch that is known to be there; 0: none
}

func newMarker() marker { return marker{run: rand.Text()[:8]} }

func (m *marker) next() string {
	m.tried++
	return m.run + "-" + strconv.FormatUint(m.tried, 10)
}

// lost reports whether a Redis that has this marker has lost a batch.
func (m *marker) lost(got string) bool {
	if m.written == 0 {
		return false
	}
	run, number, _ := strings.Cut(got, "-")
	n, err := strconv.ParseUint(number, 10, 64)
	return err != nil || run != m.run || n < m.written
}

// token waits for the right to write to Redis.
func (r *Records) token(ctx context.Context) (release func(), err error) {
	select {
	case r.writing <- struct{}{}:
		return func() { <-r.writing }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// checkMarker makes all records dirty when Redis has lost what was written.
func (r *Records) checkMarker(ctx context.Context) error {
	release, err := r.token(ctx)
	if err != nil {
		return err
	}
	defer release()
	ctx, cancel := context.WithTimeout(ctx, flushTimeout)
	defer cancel()
	r.compare(r.redis.HGet(ctx, keys.Publisher(r.own).SelfInfo(), markerField))
	return nil
}

// compare looks at the marker in Redis. The caller holds the token.
func (r *Records) compare(got *redis.StringCmd) {
	if err := got.Err(); err != nil && !errors.Is(err, redis.Nil) || !r.marker.lost(got.Val()) {
		return // or nobody knows
	}
	r.marker.written = 0
	r.mu.Lock()
	defer r.mu.Unlock()
	for path, f := range r.files {
		f.asked = false // nobody but boxes may have told Redis what it knows now
		r.soil(path)
	}
	r.log.Warn("Redis lost what was written to it; all records are written again", "records", len(r.files))
}

// ask asks Redis which bytes the paths have that only boxes vouch for.
func (r *Records) ask(ctx context.Context) error {
	for {
		paths := r.unasked()
		if len(paths) == 0 {
			return nil
		}
		known, err := r.processed(ctx, paths)
		if err != nil {
			return err
		}
		r.mu.Lock()
		for i, path := range paths {
			r.answered(path, known[i])
		}
		r.mu.Unlock()
	}
}

func (r *Records) unasked() []id.Path {
	r.mu.RLock()
	defer r.mu.RUnlock()
	var paths []id.Path
	for path := range r.asks {
		if len(paths) == flushBatch {
			break
		}
		paths = append(paths, path)
	}
	return paths
}

// processed reads PROCESSED_FILES; nil where it cannot be read because it is something else.
func (r *Records) processed(ctx context.Context, paths []id.Path) ([]map[string]string, error) {
	ctx, cancel := context.WithTimeout(ctx, flushTimeout)
	defer cancel()
	k := keys.Publisher(r.own)
	replies := make([]*redis.MapStringStringCmd, len(paths))
	_, _ = r.redis.Pipelined(ctx, func(p redis.Pipeliner) error {
		for i, path := range paths {
			replies[i] = p.HGetAll(ctx, k.ProcessedFile(path))
		}
		return nil
	})
	fields := make([]map[string]string, len(paths))
	for i, reply := range replies {
		if err := reply.Err(); err != nil && !keyTrouble(err) {
			return nil, err
		}
		fields[i] = reply.Val()
	}
	return fields, nil
}

// answered takes what Redis knows of a path. The caller holds the lock.
func (r *Records) answered(path id.Path, fields map[string]string) {
	delete(r.asks, path)
	f := r.files[path]
	if f == nil || f.sure {
		return
	}
	f.asked = true
	digest, err := id.ParseDigest(fields[fieldDigest])
	size, sizeErr := strconv.ParseInt(fields[fieldSize], 10, 64)
	if err != nil || sizeErr != nil || fields["MSG"] != msgSuccess {
		r.soil(path) // Redis knows nothing: what most boxes say, for now
		return
	}
	f.task.extra = map[string]string{}
	for name, value := range fields {
		switch name {
		case "ID", "MSG", "FILE_PATH", fieldDigest, fieldSize:
		default:
			f.task.extra[name] = value
		}
	}
	r.certify(path, f, digest, size)
	if first, err := id.ParseBoxID(fields["ID"]); err == nil {
		f.first = first
	}
}

// recall reads in Redis who held these bytes when an earlier run wrote it. What boxes have told
// since counts more: only of those that did not, being down or old, Redis is believed.
func (r *Records) recall(ctx context.Context, path id.Path, d id.Digest, size int64) error {
	ctx, cancel := context.WithTimeout(ctx, flushTimeout)
	defer cancel()
	members, err := r.redis.ZRangeWithScores(ctx, keys.Publisher(r.own).Holders(path, d), 0, -1).Result()
	if err != nil {
		if keyTrouble(err) {
			return nil // flush names it
		}
		return err
	}
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if f := r.files[path]; f != nil && f.sure && f.digest != d {
		return nil // nobody placed these bytes since
	}
	for _, z := range members {
		h := holding{}
		if !math.IsInf(z.Score, 1) {
			h.expires = time.UnixMilli(int64(z.Score * 1000))
		}
		name, _ := z.Member.(string)
		if h.box, err = id.ParseBoxID(name); err != nil || h.over(now) || r.boxes[h.box].told {
			continue
		}
		if f := r.files[path]; f != nil && f.digest == d && f.holdingOf(h.box) >= 0 {
			continue
		}
		r.addHolding(path, d, size, h)
	}
	return nil
}

// onRecord reports whether Redis says that the path was placed.
func (r *Records) onRecord(ctx context.Context, path id.Path) (bool, error) {
	fields, err := r.processed(ctx, []id.Path{path})
	return err == nil && fields[0]["MSG"] == msgSuccess, err
}
