package placement

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/redis/go-redis/v9"

	"dandelion/pkg/id"
	"dandelion/pkg/keys"
	"dandelion/pkg/wire"
	"dandelion/publisher/internal/push"
	"dandelion/publisher/internal/ranking"
)

// Times and limits of the queue.
const (
	maxTask         = 64 << 10 // bytes of a task
	maxExtra        = 32       // other keys of a task that are kept
	takeTimeout     = 5 * time.Second
	reclaimInterval = 3 * time.Second
	keepInterval    = 3 * time.Second
	queueRetry      = time.Second
	bulkWait        = time.Second      // between two looks for boxes while there is none…
	longestRest     = 5 * time.Minute  // …doubling to this while boxes fail or refuse
	slowestBulk     = 64 << 10         // bytes/s that a bulk push must reach on the whole…
	bulkGrace       = 30 * time.Second // …after so long
	recordedError   = 24 * time.Hour   // a task that was given up is on record for so long
)

// Queue serves FILES_SENDING_QUEUE: what other programs and uploads ask to be placed. A task
// is moved to a list of its own while it is worked on and leaves it only when it is on record
// as placed or as given up, so that a crash loses none.
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

	mu      sync.Mutex
	working map[string]int // tasks in work, as they came
	idle    map[string]int // taken tasks that nobody worked on at the last look
}

// Run serves the queue until ctx ends. Tasks of an earlier run that were not finished come
// first.
func (q *Queue) Run(ctx context.Context) error {
	q.persist(ctx, "tasks of an earlier run cannot be taken up yet", func(ctx context.Context) error { return q.reclaim(ctx, true) })
	var group sync.WaitGroup
	group.Go(func() { q.reclaimAll(ctx) })
	group.Go(func() { q.keepAll(ctx) })
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
	for {
		err := f(ctx)
		if err == nil || ctx.Err() != nil {
			return
		}
		q.Log.Warn(complaint, "reason", err)
		select {
		case <-ctx.Done():
		case <-time.After(queueRetry):
		}
	}
}

func (q *Queue) keys() keys.Publisher { return keys.Publisher(q.Placement.cfg.Own.ID) }

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

// keepAll places files of finished tasks again when boxes that held them are gone, until ctx ends.
func (q *Queue) keepAll(ctx context.Context) {
	ticker := time.NewTicker(keepInterval)
	defer ticker.Stop()
	rests := map[id.Path]rest{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		p := q.Placement
		up := p.up()
		if len(up) == 0 {
			continue // nobody could take a file
		}
		still := map[id.Path]rest{}
		for _, f := range p.records.thin(q.Replicas, up, time.Now()) {
			if p.isPlacing(f.Path) {
				continue // its copies are on their way
			}
			r := rests[f.Path]
			if !r.due(up, time.Now()) {
				still[f.Path] = r
				continue
			}
			if err := p.placeOnce(ctx, f, q.Replicas, p.records.facts(f.Path)); err != nil && ctx.Err() == nil {
				q.Log.Warn("a file that lost a holder cannot be placed again yet", "path", f.Path, "reason", err)
			}
			still[f.Path] = r.after(up, time.Now())
		}
		rests = still
	}
}

// rest is how long a file that too few boxes hold is left alone after it was tried on all that
// were up: those that refused it would refuse it again.
type rest struct {
	until time.Time
	wait  time.Duration
	asked map[id.BoxID]bool // that were up
}

// due reports whether the file should be tried: the time is over, or there is a new box.
func (r rest) due(up map[id.BoxID]bool, now time.Time) bool {
	if !now.Before(r.until) {
		return true
	}
	for box := range up {
		if !r.asked[box] {
			return true
		}
	}
	return false
}

func (r rest) after(up map[id.BoxID]bool, now time.Time) rest {
	wait := min(max(2*r.wait, keepInterval), longestRest)
	return rest{until: now.Add(wait), wait: wait, asked: up}
}

// moveBack puts a task from TAKEN back to the head of the queue if it is still there.
var moveBack = redis.NewScript(`if redis.call('LREM', KEYS[1], -1, ARGV[1]) == 1 then redis.call('LPUSH', KEYS[2], ARGV[1]) end`)

// reclaim moves tasks that were taken and are not worked on back to the queue: all of them, or
// those that were found so at the last look too, because an answer may be on its way.
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
			if err := moveBack.Run(ctx, q.Redis, []string{k.Taken(), k.SendingQueue()}, raw).Err(); err != nil && !errors.Is(err, redis.Nil) {
				return err
			}
		}
	}
	return nil
}

// work notes that a task is worked on; the returned function that it is not any more.
func (q *Queue) work(raw string) (done func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.working == nil {
		q.working = map[string]int{}
	}
	q.working[raw]++
	return func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		if q.working[raw]--; q.working[raw] == 0 {
			delete(q.working, raw)
		}
	}
}

// one takes a task and finishes it. An error means that Redis failed; the task is then still
// in one of the two lists.
func (q *Queue) one(ctx context.Context) error {
	k := q.keys()
	raw, err := q.Redis.BLMove(ctx, k.SendingQueue(), k.Taken(), "LEFT", "RIGHT", takeTimeout).Result()
	if errors.Is(err, redis.Nil) {
		return nil
	}
	if err != nil {
		return err
	}
	defer q.work(raw)()
	t, err := q.parse(raw)
	if err == nil {
		err = q.serve(ctx, &t)
	}
	if ctx.Err() != nil {
		return ctx.Err() // unfinished: the next run takes it up
	}
	if err != nil {
		q.Log.Warn("a task is given up", "path", t.name, "reason", err)
		q.persist(ctx, "a task that was given up is not on record yet", func(ctx context.Context) error { return q.recordFailure(ctx, t, err) })
	}
	q.persist(ctx, "a finished task cannot leave the queue yet", func(ctx context.Context) error {
		if err := q.Sync(ctx); err != nil {
			return err
		}
		return q.Redis.LRem(ctx, k.Taken(), 1, raw).Err()
	})
	return nil
}

// task is one entry of the queue.
type task struct {
	name  string // for PROCESSED_FILES, also when the rest cannot be read
	head  wire.FileHeader
	extra map[string]string
	local LocalFile
	taken time.Time
}

// parse reads a task: the FILE_PATH and TTL of a file's headers and any other keys.
func (q *Queue) parse(raw string) (task, error) {
	t := task{name: "/malformed/" + id.DigestOf([]byte(raw)).Short(), taken: time.Now(), extra: map[string]string{}}
	if len(raw) > maxTask {
		return t, fmt.Errorf("malformed: a task of %d bytes, at most %d are read", len(raw), maxTask)
	}
	var fields map[string]jsontext.Value
	if err := json.Unmarshal([]byte(raw), &fields, jsontext.AllowDuplicateNames(true)); err != nil {
		t.extra["TASK"] = strings.ToValidUTF8(raw[:min(len(raw), wire.MaxEcho)], "\uFFFD")
		return t, fmt.Errorf("malformed: not a JSON object: %w", err)
	}
	for name, value := range fields {
		if name != "FILE_PATH" && len(t.extra) < maxExtra {
			t.extra[name] = plain(value)
		}
	}
	head, err := wire.ParseFileHeader([]byte(raw))
	t.head = head
	if path := plain(fields["FILE_PATH"]); path != "" && len(path) <= id.MaxPath {
		t.name = path
	}
	if err != nil {
		return t, fmt.Errorf("malformed: %w", err)
	}
	t.name = string(head.Path)
	return t, nil
}

// plain is a JSON string's text, or the JSON itself.
func plain(v jsontext.Value) string {
	var s string
	if v.Kind() == '"' && json.Unmarshal(v, &s) == nil {
		return s
	}
	return string(v)
}

// serve places the task's file. Errors say why the task is given up.
func (q *Queue) serve(ctx context.Context, t *task) error {
	file, err := q.open(t)
	if err != nil {
		return err
	}
	defer file.Close()
	f, err := describe(file, t)
	if err != nil {
		return err
	}
	facts := taskFacts{t.extra, t.local}
	if err := q.Placement.placeBulk(ctx, f, q.Replicas, t.taken, facts); err != nil {
		return err
	}
	q.Placement.records.describe(f, facts)
	q.persist(ctx, "a placed file is not on record yet", q.Placement.records.flush)
	return ctx.Err()
}

// open opens the regular file that the task names.
func (q *Queue) open(t *task) (*os.File, error) {
	name := q.LocalFile(t.head.Path)
	if name == "" {
		resolved, err := filepath.EvalSymlinks(string(t.head.Path))
		if err != nil {
			return nil, gone(err)
		}
		below := func(root string) bool {
			rel, err := filepath.Rel(root, resolved)
			return err == nil && filepath.IsLocal(rel)
		}
		if len(q.Roots) > 0 && !slices.ContainsFunc(q.Roots, below) {
			return nil, fmt.Errorf("%s is below none of publisher.file_roots", t.head.Path)
		}
		name = resolved
	}
	// O_NONBLOCK: a named pipe must not hold the queue.
	file, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, gone(err)
	}
	info, err := file.Stat()
	if err != nil || !info.Mode().IsRegular() {
		file.Close()
		return nil, fmt.Errorf("%s is not a regular file", t.head.Path)
	}
	t.local = LocalFile{Name: name, Modified: info.ModTime(), Size: info.Size()}
	return file, nil
}

func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("file gone: %w", err)
	}
	return err
}

// describe reads the file once for its digest. Each push reads the bytes again over a handle
// of its own; should they have changed, the box refuses them by their digest.
func describe(file *os.File, t *task) (push.File, error) {
	hash := sha256.New()
	size, err := io.Copy(hash, file)
	if err != nil {
		return push.File{}, err
	}
	local := t.local
	if size != local.Size {
		return push.File{}, fmt.Errorf("%s changed while it was read", t.head.Path)
	}
	return push.File{
		Path: t.head.Path, Digest: id.Digest(hash.Sum(nil)), Size: size, TTL: t.head.TTL,
		Open: func() (io.ReadCloser, error) { return local.Open() },
	}, nil
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
	_, err := q.Redis.Pipelined(ctx, func(p redis.Pipeliner) error {
		p.HSet(ctx, key, fields)
		p.Expire(ctx, key, recordedError)
		return nil
	})
	return err
}

// placeBulk places a file on up to replicas boxes and returns when so many hold it, or when at
// least one does and no other will. While no box can be asked it waits, until the file's TTL,
// counted from since, is over. Errors say why no box holds it.
func (p *Placement) placeBulk(ctx context.Context, f push.File, replicas int, since time.Time, facts taskFacts) error {
	var last error
	tried, wait := map[id.BoxID]bool{}, bulkWait // boxes that failed or refused, and for how long they are left alone
	again := time.Now().Add(wait)
	for f.TTL == 0 || time.Since(since) < f.TTL {
		copies, err := p.bulkRound(ctx, f, replicas, since, facts, tried)
		switch {
		case copies > 0:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case refusedForGood(err):
			return err
		}
		last = cmp.Or(err, last)
		if err := p.waitForBoxes(ctx); err != nil {
			return err
		}
		if now := time.Now(); !now.Before(again) {
			if len(tried) > 0 {
				wait = min(2*wait, longestRest)
			}
			clear(tried)
			again = now.Add(wait)
		}
	}
	return fmt.Errorf("TTL over before a box held it: %w", cmp.Or(last, errNoBox))
}

// placeOnce asks each box at most once.
func (p *Placement) placeOnce(ctx context.Context, f push.File, replicas int, facts taskFacts) error {
	copies, err := p.bulkRound(ctx, f, replicas, time.Now(), facts, map[id.BoxID]bool{})
	if copies > 0 {
		return nil
	}
	return cmp.Or(err, ctx.Err(), errNoBox)
}

// bulkRound asks boxes that do not hold the file and are not among the tried, each once, until
// replicas hold it. It returns how many do and the last error, and adds whom it asked to tried.
func (p *Placement) bulkRound(ctx context.Context, f push.File, replicas int, since time.Time, facts taskFacts, tried map[id.BoxID]bool) (copies int, last error) {
	defer p.placing(f.Path)()
	var until time.Time
	if f.TTL > 0 {
		until = since.Add(f.TTL - time.Second) // expiry times are whole seconds
	}
	up := p.up()
	for _, box := range p.records.holdersUntil(f.Path, f.Digest, until) {
		tried[box] = true
		if up[box] {
			copies++
		}
	}
	for copies < replicas && ctx.Err() == nil && (f.TTL == 0 || time.Since(since) < f.TTL) {
		m := p.chooseBulk(tried)
		if m == nil {
			break
		}
		tried[m.id] = true
		if err := p.pushBulk(ctx, m, f, since, facts); err != nil {
			last = err
			if refusedForGood(err) {
				break
			}
			if ctx.Err() == nil {
				p.log.Info("a push failed; another box is asked", "box", m.id, "path", f.Path, "reason", err)
			}
			continue
		}
		copies++
	}
	return copies, last
}

// placing notes that a file from the queue is being placed; the returned function that it is not.
func (p *Placement) placing(path id.Path) (done func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.bulk[path]++
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.bulk[path]--; p.bulk[path] == 0 {
			delete(p.bulk, path)
		}
	}
}

func (p *Placement) isPlacing(path id.Path) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.bulk[path] > 0
}

// refusedForGood: no other box will take it either.
func refusedForGood(err error) bool {
	return errors.Is(err, push.ErrSource) || isRefusal(err, wire.KindDigest, wire.KindSize, wire.KindPath, wire.KindMalformed, wire.KindTTL)
}

var errNoBox = errors.New("no box could be asked")

func isRefusal(err error, kinds ...wire.Kind) bool {
	var r *push.Refusal
	return errors.As(err, &r) && slices.Contains(kinds, r.Kind)
}

func (p *Placement) chooseBulk(tried map[id.BoxID]bool) *member {
	p.mu.Lock()
	defer p.mu.Unlock()
	chosen := ranking.Choose(p.ranked(), 1, tried, p.rng)
	if len(chosen) == 0 {
		return nil
	}
	return p.members[chosen[0]]
}

func (p *Placement) waitForBoxes(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(bulkWait):
		return nil
	}
}

func (p *Placement) pushBulk(ctx context.Context, m *member, f push.File, since time.Time, facts taskFacts) error {
	limit := bulkGrace + time.Duration(f.Size/slowestBulk)*time.Second
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errTooSlow)
	defer cancel()
	if f.TTL > 0 {
		f.TTL = max((f.TTL - time.Since(since)).Truncate(time.Second), time.Second)
	}
	start := time.Now()
	_, err := m.link.Push(ctx, push.Bulk, f)
	if err != nil {
		p.undelivered.add(reasonOf(err))
	} else {
		p.records.add(f, m.id, start, facts)
	}
	var refusal *push.Refusal
	if !errors.As(err, &refusal) { // that a box wants no such file says nothing about segments
		p.mu.Lock()
		m.waiting += f.Size // note takes it off again
		m.note(f.Size, time.Since(start), err)
		p.mu.Unlock()
	}
	return err
}
