package ledger

import "sync"

// Bounds of what waits to be counted. Who is turned away sends it again with its next report, but for old
// boxes, which do not.
const (
	queueSize = 250_000 // numbers, about 30 MB
	// Redirects take no more than half: they are worth less than deliveries.
	redirectShare = queueSize / 2
	keyedLines    = 4_096 // deliveries of one old box that wait
)

// drop says why a batch was not taken. It is a metric label.
type drop string

const (
	dropFull  drop = "queue_full"
	dropClock drop = "clock"       // the clock of this machine is not set
	dropError drop = "redis_error" // Redis refuses it: a key of another type
)

var drops = []drop{dropFull, dropClock, dropError}

// queue is the jobs that wait, each peer's at most once, the oldest first. It may be used concurrently.
type queue struct {
	wake chan struct{} // has a value when there is something

	mu    sync.Mutex
	order []*job
	byKey map[string]*job
	size  int
}

func (q *queue) init() { q.wake, q.byKey = make(chan struct{}, 1), make(map[string]*job) }

// put takes a job in the place of one of the same peer that still waits: a peer sends the same batch
// until it is counted. false: there is no room.
func (q *queue) put(j *job, redirects bool) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	limit, size := queueSize, j.size()
	if redirects {
		limit = redirectShare
	}
	old := q.byKey[j.key]
	if old != nil {
		size -= old.size()
	}
	if size > 0 && q.size+size > limit {
		return false
	}
	q.size += size
	if old != nil {
		*old = *j
	} else {
		q.append(j)
	}
	return true
}

// putLines takes deliveries of an old box, to those of it that wait. It returns how many it did not take.
func (q *queue) putLines(j *job) (left int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	lines := &j.parts[0].lines
	room := keyedLines
	old := q.byKey[j.key]
	if old != nil {
		room -= len(old.parts[0].lines)
	}
	room = max(0, min(room, (queueSize-q.size)/2))
	if left = len(*lines) - room; left > 0 {
		*lines = (*lines)[:room]
	}
	if len(*lines) == 0 {
		return max(left, 0)
	}
	if old != nil {
		q.size -= old.size()
		old.parts[0].lines = append(old.parts[0].lines, *lines...)
		q.size += old.size()
	} else {
		q.size += j.size()
		q.append(j)
	}
	return max(left, 0)
}

// again takes a job back that was not counted. One that the peer sent since goes before it.
func (q *queue) again(j *job) (taken bool) {
	if j.parts != nil && j.parts[0].source == "" {
		return q.putLines(j) == 0
	}
	q.mu.Lock()
	newer := q.byKey[j.key] != nil
	q.mu.Unlock()
	return newer || q.put(j, false) // who comes between the two is replaced, and sends it again
}

// append is called with mu held.
func (q *queue) append(j *job) {
	q.order = append(q.order, j)
	q.byKey[j.key] = j
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// take returns the oldest jobs, at least one where there is any, up to about size numbers.
func (q *queue) take(size int) (jobs []*job) {
	q.mu.Lock()
	defer q.mu.Unlock()
	taken := 0
	for len(q.order) > 0 && taken < size {
		j := q.order[0]
		q.order[0] = nil
		q.order = q.order[1:]
		delete(q.byKey, j.key)
		taken += j.size()
		jobs = append(jobs, j)
	}
	q.size -= taken
	if len(q.order) == 0 {
		q.order = nil
	}
	return jobs
}

// empty reports whether nothing waits.
func (q *queue) empty() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.order) == 0
}

// numbers returns how much waits.
func (q *queue) numbers() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.size
}
