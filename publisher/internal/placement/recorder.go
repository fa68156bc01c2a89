package placement

import (
	"context"
	"errors"
	"math"
	"slices"
	"strconv"
	"strings"
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
	lease        = 7 * 24 * time.Hour // that what boxes keep for ever stays in Redis; renewed
	maxNamed     = 1000               // keys that cannot be written that are remembered
)

// Messages in PROCESSED_FILES, as the old publisher writes them.
const (
	msgSuccess = "Success"
	msgError   = "Error: "
)

// Fields of PROCESSED_FILES beyond those of the old publisher. They tell the publisher after a
// restart which bytes it placed, whatever boxes say then.
const (
	fieldDigest = "SHA256"
	fieldSize   = "SIZE"
)

// run writes what changed to Redis until ctx ends, and once more then. It asks Redis about what
// only boxes vouch for, and looks whether Redis still has what it was given.
func (r *Records) run(ctx context.Context) {
	ticker := time.NewTicker(markerInterval)
	defer ticker.Stop()
	for {
		err := r.follow(ctx)
		if ctx.Err() != nil {
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastFlush)
			_ = r.flush(last)
			cancel()
			return
		}
		var retry <-chan time.Time
		if err != nil {
			r.outage.failed(r.log, "records are not in Redis yet; trying again", err)
			retry = time.After(flushRetry)
			select { // and not at every change
			case <-ctx.Done():
			case <-retry:
			}
			continue
		}
		r.outage.over(r.log, "records are in Redis again")
		select {
		case <-ctx.Done():
		case <-r.wake:
		case <-ticker.C:
			_ = r.checkMarker(ctx) // an error is the end of ctx
		}
	}
}

func (r *Records) follow(ctx context.Context) error {
	if err := r.ask(ctx); err != nil {
		return err
	}
	return r.flush(ctx)
}

// flush writes the records that changed, a batch at a time, those that somebody else is writing
// now included: when it returns nil, all changes made before the call are in Redis or were given
// up because their keys cannot be written. What it could not write otherwise stays dirty.
func (r *Records) flush(ctx context.Context) error {
	release, err := r.token(ctx)
	if err != nil {
		return err
	}
	defer release()
	for {
		batch := r.takeDirty()
		if len(batch) == 0 {
			return nil
		}
		if err := r.write(ctx, batch); err != nil {
			r.mu.Lock()
			for _, e := range batch {
				r.dirty[e.path] = true
				if f := r.files[e.path]; f != nil {
					f.stale = append(e.stale, f.stale...)
				}
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
			f.stale, f.written = nil, time.Now()
		}
	}
	return batch
}

// write writes a batch. The caller holds the token. Keys that cannot be written, because somebody
// made something else of them, are named in the log and are no error.
func (r *Records) write(ctx context.Context, batch []entry) error {
	ctx, cancel := context.WithTimeout(ctx, flushTimeout)
	defer cancel()
	k := keys.Publisher(r.own)
	next := r.marker.next()
	var before *redis.StringCmd
	cmds, err := r.redis.Pipelined(ctx, func(p redis.Pipeliner) error {
		before = p.HGet(ctx, k.SelfInfo(), markerField)
		for _, e := range batch {
			e.write(ctx, p, k)
		}
		p.HSet(ctx, k.SelfInfo(), markerField, next)
		return nil
	})
	if err != nil {
		for _, cmd := range cmds {
			if err := cmd.Err(); err != nil && !errors.Is(err, redis.Nil) && !keyTrouble(err) {
				return err
			}
		}
		r.name(cmds)
	}
	r.compare(before)
	if cmds[len(cmds)-1].Err() == nil {
		r.marker.written = r.marker.tried
	}
	return nil
}

// write adds the commands that make Redis say what the entry does.
func (e *entry) write(ctx context.Context, p redis.Pipeliner, k keys.Publisher) {
	holders, processed := k.Holders(e.path, e.digest), k.ProcessedFile(e.path)
	for _, d := range e.stale {
		p.Del(ctx, k.Holders(e.path, d))
	}
	p.Del(ctx, holders)
	if len(e.holders) == 0 {
		p.Del(ctx, processed)
		return
	}
	members := make([]redis.Z, 0, len(e.holders))
	for _, h := range e.holders {
		members = append(members, redis.Z{Member: string(h.box), Score: expiryScore(h.expires)})
	}
	last := lastExpiry(e.holders)
	if last.IsZero() {
		last = time.Now().Add(lease) // and forget renews it
	}
	p.ZAdd(ctx, holders, members...)
	p.HSet(ctx, processed, e.fields())
	p.ExpireAt(ctx, holders, last)
	p.ExpireAt(ctx, processed, last)
}

// keyTrouble reports whether an error is about one key, so that trying again does not help and other
// keys are not concerned.
func keyTrouble(err error) bool {
	var answer redis.Error
	return err != nil && errors.As(err, &answer) && (strings.HasPrefix(answer.Error(), "WRONGTYPE") || strings.HasPrefix(answer.Error(), "NOPERM"))
}

// name names keys that could not be written in the log, each once.
func (r *Records) name(cmds []redis.Cmder) {
	bad := map[string]bool{}
	for _, cmd := range cmds {
		args := cmd.Args()
		if !keyTrouble(cmd.Err()) || len(args) < 2 {
			continue
		}
		key, _ := args[1].(string)
		if bad[key] {
			continue
		}
		bad[key] = true
		r.unwritten.Add(1)
		if !r.named[key] && len(r.named) < maxNamed {
			r.named[key] = true
			r.log.Warn("a key in Redis cannot be written: somebody else made it; delete it, and it will be written with the next change", "key", key, "reason", cmd.Err())
		}
	}
}

func (e *entry) fields() map[string]any {
	fields := map[string]any{}
	for name, value := range e.task.extra {
		fields[name] = value
	}
	fields["ID"] = string(e.first)
	fields["MSG"] = msgSuccess
	fields["FILE_PATH"] = string(e.path)
	if e.sure {
		fields[fieldDigest], fields[fieldSize] = e.digest.String(), strconv.FormatInt(e.size, 10)
	}
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
