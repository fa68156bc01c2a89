package placement

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"dandelion/pkg/id"
	"dandelion/pkg/keys"
	"dandelion/publisher/internal/push"
)

// Times of the queue.
const (
	takeTimeout     = 5 * time.Second
	reclaimInterval = 3 * time.Second
	queueRetry      = time.Second
	settleTime      = 5 * time.Second // after the start, for boxes that hold files already to come back
	recordedError   = 24 * time.Hour  // a task that was given up is on record for so long
)

// Queue serves FILES_SENDING_QUEUE: what other programs and uploads ask to be placed. A task
// is moved to a list of its own while it is worked on, goes to the queue's tail when no box takes its
// file now, and leaves both only when it is on record as placed or as given up, so that a crash
// loses none. A task may be served twice, after a crash or a lost answer of Redis; the second
// time finds the copies of the first.
//
// A file has at most Replicas copies on boxes that are up, except: a push that was under way
// when the publisher was killed may be stored beside its successor; a box that was away, or that
// did not come back within settleTime after a start, still has the copy that was replaced; a box
// that refuses to keep its copy longer, when a task asks for that, has it until its time is over.
type Queue struct {
	Placement *Placement
	Redis     redis.UniversalClient
	// Sync returns when earlier writes to Redis are durable.
	Sync     func(context.Context) error
	Replicas int
	Workers  int
	// Roots are the directories that tasks may name files of; empty: any.
	Roots []string
	// LocalFile returns the file behind a path of the publisher's own uploads, or "".
	LocalFile func(id.Path) string
	Log       *slog.Logger

	started time.Time
	trouble outage
	ended   tally[Outcome]

	mu      sync.Mutex
	working map[string]int     // tasks in work or at rest, as they came
	idle    map[string]int     // taken tasks that nobody worked on at the last look
	efforts map[string]*effort // what is remembered of tasks that are not finished
	resting []rested
	weight  int // of the efforts
}

// Run serves the queue until ctx ends. Tasks of an earlier run that were not finished come
// first.
func (q *Queue) Run(ctx context.Context) error {
	q.started = time.Now()
	q.persist(ctx, "tasks of an earlier run cannot be taken up yet", func(ctx context.Context) error { return q.reclaim(ctx, true) })
	var group sync.WaitGroup
	group.Go(func() { q.reclaimAll(ctx) })
	group.Go(func() { q.keepAll(ctx) })
	group.Go(func() { q.wakeAll(ctx) })
	for range q.Workers {
		group.Go(func() {
			for ctx.Err() == nil {
				q.persist(ctx, "the queue cannot be read; trying again", q.one)
			}
		})
	}
	group.Wait()
	return nil
}

// persist repeats f until it succeeds or ctx ends.
func (q *Queue) persist(ctx context.Context, complaint string, f func(context.Context) error) {
	for failed := false; ; failed = true {
		err := f(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil && failed: // who did not fail cannot know that it is over
			q.trouble.over(q.Log, "the queue goes on")
			return
		case err == nil:
			return
		}
		if keyTrouble(err) {
			err = fmt.Errorf("%s or %s is no list; delete what is there: %w", q.keys().SendingQueue(), q.keys().Taken(), err)
		}
		q.trouble.failed(q.Log, complaint, err)
		pause(ctx, queueRetry)
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func (q *Queue) keys() keys.Publisher { return keys.Publisher(q.Placement.cfg.Own.ID) }

// one takes a task and serves it. An error means that Redis failed; the task is then still in one
// of the two lists.
func (q *Queue) one(ctx context.Context) error {
	k := q.keys()
	raw, err := q.Redis.BLMove(ctx, k.SendingQueue(), k.Taken(), "LEFT", "RIGHT", takeTimeout).Result()
	if errors.Is(err, redis.Nil) {
		return nil
	}
	if err != nil {
		return err
	}
	e := q.begin(raw)
	t, err := q.parse(raw)
	if err == nil {
		err = q.serve(ctx, &t, e)
	}
	var later *postponed
	switch {
	case ctx.Err() != nil:
		q.end(raw, false)
		return ctx.Err() // unfinished: the next run takes it up
	case errors.As(err, &later):
		q.postpone(ctx, raw, &t, e, later)
		return nil
	case err != nil:
		q.Log.Warn("a task is given up", "path", t.name, "reason", err)
		q.persist(ctx, "a task that was given up is not on record yet", func(ctx context.Context) error { return q.recordFailure(ctx, t, err) })
	}
	q.finish(ctx, raw, outcomeOf(err))
	return nil
}

// finish takes a task that is on record out of TAKEN.
func (q *Queue) finish(ctx context.Context, raw string, outcome Outcome) {
	finished := false
	q.persist(ctx, "a finished task cannot leave the queue yet", func(ctx context.Context) error {
		if err := q.Sync(ctx); err != nil {
			return err
		}
		err := q.Redis.LRem(ctx, q.keys().Taken(), 1, raw).Err()
		finished = err == nil
		return err
	})
	q.end(raw, finished)
	if finished {
		q.ended.add(outcome)
	}
}

// serve places the task's file, as far as boxes take it now. Errors say why the task is given up;
// *postponed: that it should be served again.
func (q *Queue) serve(ctx context.Context, t *task, e *effort) error {
	if e.over(t) {
		return giveUp(GivenUpTTL, fmt.Errorf("TTL over before a box held it: %w", e.why()))
	}
	file, err := q.open(t)
	if err != nil {
		return q.withoutFile(ctx, t, e, err)
	}
	defer file.Close()
	f, err := e.describe(file, t)
	if err != nil {
		return later(err)
	}
	if !e.recalled {
		q.persist(ctx, "who holds a file is not known yet", func(ctx context.Context) error {
			err := q.Placement.records.recall(ctx, f.Path, f.Digest, f.Size)
			e.recalled = err == nil
			return err
		})
	}
	if q.early(f, e) {
		return soon(errEarly)
	}
	release := q.Placement.placing(f.Path)
	if release == nil {
		return soon(errSame)
	}
	defer release()
	if err := q.place(ctx, t, e, f); err != nil {
		return err
	}
	q.persist(ctx, "a placed file is not on record yet", q.Placement.records.flush)
	return ctx.Err()
}

// place asks each box once.
func (q *Queue) place(ctx context.Context, t *task, e *effort, f push.File) error {
	facts := taskFacts{t.extra, t.local}
	round := round{File: f, replicas: q.Replicas, since: e.since, facts: facts}
	if f.TTL > 0 {
		round.until = e.since.Add(f.TTL - time.Second) // expiry times are whole seconds
		if e.earlier {
			round.until = time.Now().Add(f.TTL / 2) // most likely it is this task that these copies were made for
		}
	}
	q.Placement.askBoxes(ctx, &round)
	switch e.refused += round.refused; {
	case round.copies > 0:
		q.Placement.records.describe(f, facts)
		return nil
	case e.refused >= mostRefusals:
		return giveUp(GivenUpRefused, round.last)
	}
	return later(round.last)
}

// early reports whether copies that an earlier run made may still turn up, with their boxes.
func (q *Queue) early(f push.File, e *effort) bool {
	if time.Since(q.started) >= settleTime {
		return false
	}
	p := q.Placement
	up, here, away := p.up(), 0, 0
	for _, box := range p.records.holders(f.Path, f.Digest) {
		if up[box] {
			here++
		} else {
			away++
		}
	}
	switch {
	case here >= q.Replicas:
		return false
	case away > 0:
		return true
	}
	return e.earlier && !p.allUp() // its push may have ended before it was on record
}

// withoutFile decides about a task whose file cannot be opened. Who placed a file may delete it:
// a task that was placed before a crash, and could only not leave the queue, is finished.
func (q *Queue) withoutFile(ctx context.Context, t *task, e *effort, why error) error {
	if !e.earlier || outcomeOf(why) != GivenUpGone {
		return why
	}
	placed := false
	q.persist(ctx, "whether a task was finished is not known yet", func(ctx context.Context) (err error) {
		placed, err = q.Placement.records.onRecord(ctx, t.head.Path)
		return err
	})
	if placed {
		return nil
	}
	return why
}

func (q *Queue) recordFailure(ctx context.Context, t task, why error) error {
	ctx, cancel := context.WithTimeout(ctx, flushTimeout)
	defer cancel()
	fields := map[string]any{}
	for name, value := range t.extra {
		fields[name] = value
	}
	fields["FILE_PATH"], fields["MSG"] = t.name, msgError+why.Error()
	key := q.keys().ProcessedFile(id.Path(t.name))
	err := q.Redis.HSet(ctx, key, fields).Err()
	if keyTrouble(err) {
		q.Log.Warn("a task that was given up cannot be put on record: somebody else made the key", "key", key, "reason", err)
		return nil
	}
	if err != nil {
		return err
	}
	return q.Redis.Expire(ctx, key, recordedError).Err()
}

// moveBack puts a task from TAKEN back to the head of the queue if it is still there.
var moveBack = redis.NewScript(`if redis.call('LREM', KEYS[1], -1, ARGV[1]) == 1 then redis.call('LPUSH', KEYS[2], ARGV[1]) end`)

// reclaimAll looks again and again for tasks that nobody works on, until ctx ends: one whose
// move was carried out but whose answer never arrived, to this process or to one that died.
func (q *Queue) reclaimAll(ctx context.Context) {
	ticker := time.NewTicker(reclaimInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			if err := q.reclaim(ctx, false); err != nil && ctx.Err() == nil {
				q.Log.Debug("taken tasks cannot be looked through", "reason", err)
			}
		}
	}
}

// reclaim moves tasks that were taken and are not worked on back to the queue: all of them, as
// those of an earlier run, or those that were found so at the last look too, because an answer may be on its way.
func (q *Queue) reclaim(ctx context.Context, all bool) error {
	k := q.keys()
	taken, err := q.Redis.LRange(ctx, k.Taken(), 0, -1).Result()
	if err != nil {
		return err
	}
	idle := map[string]int{}
	for _, raw := range taken {
		idle[raw]++
	}
	q.mu.Lock()
	for raw, n := range q.working {
		idle[raw] -= n
	}
	before := q.idle
	q.idle = idle
	q.mu.Unlock()
	// From the end, so that the head of the queue has them in their order.
	for _, raw := range slices.Backward(taken) {
		if idle[raw] > 0 && (all || before[raw] > 0) {
			idle[raw]--
			q.fromEarlierRun(raw)
			if err := moveBack.Run(ctx, q.Redis, []string{k.Taken(), k.SendingQueue()}, raw).Err(); err != nil && !errors.Is(err, redis.Nil) {
				return err
			}
		}
	}
	return nil
}
