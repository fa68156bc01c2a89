package placement

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"

	"dandelion/pkg/id"
	"dandelion/publisher/internal/push"
)

// Times and limits of tasks that no box takes now.
const (
	firstRest    = time.Second
	longestRest  = 5 * time.Minute // a rest doubles up to this while boxes fail or refuse
	shortRest    = 250 * time.Millisecond
	wakeInterval = 100 * time.Millisecond
	mostRefusals = 3       // answers that no box will take the file; one box alone may be wrong
	mostWeight   = 4 << 20 // bytes of tasks that rest, effortWeight added to each; beyond, they rest in the queue
	effortWeight = 512
	lostEffort   = time.Hour // beyond its rest, after which a task has left the queue by other hands
)

// effort is what is remembered of a task that is not finished. Its worker alone uses it, but for
// the fields that Queue.mu guards.
type effort struct {
	since    time.Time // when it was first taken: its TTL counts from there
	earlier  bool      // an earlier run took it first
	recalled bool      // Redis was asked who holds its file
	refused  int       // answers that no box will take it
	last     error     // why no box held it at the last attempt

	local  LocalFile // whose digest it is
	digest id.Digest

	rest   rest
	weight int

	// Guarded by Queue.mu.
	used    time.Time
	renewed time.Time // when a twin of the task gave way to it
}

// over reports whether the task's TTL is.
func (e *effort) over(t *task) bool {
	return t.head.TTL > 0 && time.Since(e.since) >= t.head.TTL
}

func (e *effort) why() error { return cmp.Or(e.last, errNoBox) }

// describe reads the file once for its digest, and again only when it changed. Each push reads the
// bytes over a handle of its own; should they have changed, the box refuses them by their digest.
func (e *effort) describe(file *os.File, t *task) (push.File, error) {
	local := t.local
	if e.local != local || e.refused > 0 {
		hash := sha256.New()
		size, err := io.Copy(hash, file)
		if err != nil {
			return push.File{}, err
		}
		if size != local.Size {
			return push.File{}, errChanges
		}
		e.local, e.digest = local, id.Digest(hash.Sum(nil))
	}
	return push.File{
		Path: t.head.Path, Digest: e.digest, Size: local.Size, TTL: t.head.TTL,
		Open: func() (io.ReadCloser, error) { return local.Open() },
	}, nil
}

// postponed says that a task cannot be finished now, and why.
type postponed struct {
	why  error
	soon bool // nothing was tried: it need not rest for long
}

func (p *postponed) Error() string { return "not now: " + p.why.Error() }
func (p *postponed) Unwrap() error { return p.why }

func later(why error) error { return &postponed{why: cmp.Or(why, errNoBox)} }
func soon(why error) error  { return &postponed{why: why, soon: true} }

var (
	errNoBox   = errors.New("no box could be asked")
	errEarly   = errors.New("boxes that hold it may still come back")
	errSame    = errors.New("another task places this file now")
	errChanges = errors.New("the file changes while it is read")
)

// rested is a task that is left alone for a while. It stays in TAKEN meanwhile.
type rested struct {
	raw string
	*effort
}

// begin notes that a task is worked on.
func (q *Queue) begin(raw string) *effort {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.working == nil {
		q.working = map[string]int{}
	}
	q.working[raw]++
	e := q.efforts[raw]
	if e == nil || q.working[raw] > 1 { // a twin is in work: this one has an effort of its own
		e = &effort{since: time.Now()}
	}
	if e.since.IsZero() {
		e.since = time.Now()
	}
	if e.renewed.After(e.since) {
		e.since = e.renewed
	}
	e.used = time.Now()
	return e
}

// end notes that a task is not worked on any more, for good when it is finished.
func (q *Queue) end(raw string, finished bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.working[raw]--; q.working[raw] == 0 {
		delete(q.working, raw)
		if finished {
			q.lose(raw)
		}
	}
}

// keep remembers a task's effort, as far as there is room. The caller holds the lock.
func (q *Queue) keep(raw string, e *effort) bool {
	if q.efforts[raw] == e {
		return true
	}
	weight := len(raw) + effortWeight
	if q.weight+weight > mostWeight {
		return false
	}
	if q.efforts == nil {
		q.efforts = map[string]*effort{}
	}
	e.weight, q.efforts[raw] = weight, e
	q.weight += weight
	return true
}

func (q *Queue) lose(raw string) {
	if e := q.efforts[raw]; e != nil {
		q.weight -= e.weight
		delete(q.efforts, raw)
	}
}

func (q *Queue) fromEarlierRun(raw string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.efforts[raw] == nil {
		q.keep(raw, &effort{earlier: true, used: time.Now()})
	}
}

// postpone lets a task rest, and others have their turn meanwhile. Where too many rest already it
// goes to the queue's tail at once, and its worker rests in its stead. Of twins, tasks that are the
// same to the last byte, one stays.
func (q *Queue) postpone(ctx context.Context, raw string, t *task, e *effort, why *postponed) {
	now := time.Now()
	if why.soon {
		e.rest.until, e.rest.asked = now.Add(shortRest), nil
	} else {
		e.last = why.why
		e.rest = e.rest.after(q.Placement.up(), now)
	}
	if end := e.since.Add(t.head.TTL); t.head.TTL > 0 && end.Before(e.rest.until) {
		e.rest.until = end
	}
	q.mu.Lock()
	twin := q.efforts[raw]
	if twin == e {
		twin = nil
	}
	room := twin == nil && q.keep(raw, e)
	switch {
	case twin != nil:
		twin.renewed = now
	case room:
		e.used = now
		q.resting = append(q.resting, rested{raw, e})
	}
	q.mu.Unlock()
	switch {
	case twin != nil:
		q.finish(ctx, raw, TaskMerged)
	case !room:
		q.persist(ctx, "a task that no box takes cannot go to the queue's tail yet", func(ctx context.Context) error { return q.requeue(ctx, raw) })
		q.end(raw, false)
		pause(ctx, queueRetry)
	}
}

// toTail puts a task from TAKEN to the tail of the queue. It does so also when it is not in TAKEN
// any more: then Redis was wiped, or carried out an earlier call whose answer was lost, and a task
// that is served twice does less harm than one that is lost.
var toTail = redis.NewScript(`redis.call('LREM', KEYS[1], 1, ARGV[1]) return redis.call('RPUSH', KEYS[2], ARGV[1])`)

func (q *Queue) requeue(ctx context.Context, raw string) error {
	return toTail.Run(ctx, q.Redis, []string{q.keys().Taken(), q.keys().SendingQueue()}, raw).Err()
}

// wakeAll moves tasks that have rested to the queue's tail, until ctx ends.
func (q *Queue) wakeAll(ctx context.Context) {
	ticker := time.NewTicker(wakeInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		for _, r := range q.due(q.Placement.up(), time.Now()) {
			q.end(r.raw, false) // before a worker can take it, or it would look like its own twin
			q.persist(ctx, "a task that has rested cannot go to the queue's tail yet", func(ctx context.Context) error { return q.requeue(ctx, r.raw) })
		}
	}
}

// due takes out the tasks that have rested, the longest waiting first, and forgets efforts whose tasks
// have not been seen for long.
func (q *Queue) due(up map[id.BoxID]bool, now time.Time) []rested {
	q.mu.Lock()
	defer q.mu.Unlock()
	var due []rested
	q.resting = slices.DeleteFunc(q.resting, func(r rested) bool {
		is := r.rest.due(up, now)
		if is {
			due = append(due, r)
		}
		return is
	})
	slices.SortStableFunc(due, func(a, b rested) int { return a.rest.until.Compare(b.rest.until) })
	for raw, e := range q.efforts {
		if q.working[raw] == 0 && now.Sub(e.used) > lostEffort+longestRest {
			q.lose(raw)
		}
	}
	return due
}

// rest is how long a file that too few boxes hold is left alone after it was tried on all that
// were up: those that refused it would refuse it again.
type rest struct {
	until time.Time
	wait  time.Duration
	asked map[id.BoxID]bool // that were up; nil: new ones make no difference
}

// due reports whether the file should be tried: the time is over, or there is a new box.
func (r rest) due(up map[id.BoxID]bool, now time.Time) bool {
	if !now.Before(r.until) {
		return true
	}
	for box := range up {
		if r.asked != nil && !r.asked[box] {
			return true
		}
	}
	return false
}

func (r rest) after(up map[id.BoxID]bool, now time.Time) rest {
	wait := min(max(2*r.wait, firstRest), longestRest)
	return rest{until: now.Add(wait), wait: wait, asked: up}
}
