package placement

import (
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"dandelion/pkg/id"
	"dandelion/publisher/internal/push"
)

// Records says which boxes hold which bytes. Memory is the truth while the publisher runs; a
// box's HAVE restores it after a restart; Redis follows for other programs. Its methods may be
// called from any goroutine.
type Records struct {
	own   id.PublisherID
	redis redis.UniversalClient
	log   *slog.Logger

	mu    sync.RWMutex
	files map[id.Path]*record
	dirty map[id.Path]bool // not in Redis as they are here
	asks  map[id.Path]bool // boxes hold them; whether Redis knows their digest is not known yet
	boxes map[id.BoxID]acquaintance
	wake  chan struct{}

	writing chan struct{} // holds a token while somebody writes to Redis: of two writers the later has the newer facts
	marker  marker
	named   map[string]bool // keys that could not be written, so that each is named once
	outage  outage

	forgotten, aged, unwritten, contradicted atomic.Int64 // see RecordTotals
}

// Limits of the records.
const (
	maxDirty   = 100_000        // that wait for Redis before those that nobody holds are forgotten
	maxRecords = 250_000        // before those that no box which is up holds are forgotten, and boxes' claims are not taken up
	absence    = 24 * time.Hour // after which a box that was not seen holds nothing
)

type record struct {
	digest  id.Digest
	size    int64
	first   id.BoxID // that stored it
	holders []holding
	task    taskFacts

	// sure: the digest is what the publisher pushed or what Redis has; otherwise it is what most
	// boxes say.
	sure   bool
	asked  bool    // Redis was asked for it
	looked bool    // at the publisher's own file too
	rivals []claim // what other boxes say, while it is not sure

	yielded time.Time // when a box let it go for room

	stale   []id.Digest // of bytes that it replaced: their holders are still in Redis
	written time.Time   // to Redis, the latest attempt
}

// acquaintance is what is remembered of a box.
type acquaintance struct {
	seen time.Time // when it was up, or when its name was read in Redis
	told bool      // it said itself what it holds: nothing in Redis counts beside that
}

// taskFacts is what a record keeps of the task that its file came with; zero for a live segment.
type taskFacts struct {
	extra map[string]string // other keys of the task
	local LocalFile
}

type holding struct {
	box     id.BoxID
	expires time.Time // zero: until the box needs the room
}

func newRecords(own id.PublisherID, client redis.UniversalClient, log *slog.Logger) *Records {
	return &Records{
		own: own, redis: client, log: log,
		files: map[id.Path]*record{}, dirty: map[id.Path]bool{}, asks: map[id.Path]bool{}, boxes: map[id.BoxID]acquaintance{},
		wake: make(chan struct{}, 1), writing: make(chan struct{}, 1), marker: newMarker(), named: map[string]bool{},
	}
}

// holders returns the boxes that hold these bytes and have not let go of them.
func (r *Records) holders(path id.Path, d id.Digest) []id.BoxID {
	return r.holdersAt(path, d, time.Now())
}

func (r *Records) holdersAt(path id.Path, d id.Digest, at time.Time) []id.BoxID {
	r.mu.RLock()
	defer r.mu.RUnlock()
	f := r.files[path]
	if f == nil || f.digest != d {
		return nil
	}
	boxes := make([]id.BoxID, 0, len(f.holders))
	for _, h := range f.holders {
		if h.expires.IsZero() || h.expires.After(at) {
			boxes = append(boxes, h.box)
		}
	}
	return boxes
}

// holdersFor returns the boxes that hold these bytes for long enough that somebody who is sent
// there now still finds them.
func (r *Records) holdersFor(path id.Path, d id.Digest) []id.BoxID {
	return r.holdersAt(path, d, time.Now().Add(leastUseful))
}

// holdersUntil returns the boxes that hold these bytes at least until then; the zero time: until
// they need the room.
func (r *Records) holdersUntil(path id.Path, d id.Digest, until time.Time) []id.BoxID {
	r.mu.RLock()
	defer r.mu.RUnlock()
	f := r.files[path]
	if f == nil || f.digest != d {
		return nil
	}
	var boxes []id.BoxID
	for _, h := range f.holders {
		if h.expires.IsZero() || !until.IsZero() && !h.expires.Before(until) {
			boxes = append(boxes, h.box)
		}
	}
	return boxes
}

// Placed is what the records say of a file.
type Placed struct {
	Digest id.Digest
	Size   int64
	Local  LocalFile // zero for a live segment, and after a restart
}

// LocalFile is the publisher's own file behind a path, as it was when it was placed.
type LocalFile struct {
	Name     string
	Modified time.Time
	Size     int64
}

// Open opens the file; fs.ErrNotExist where it is not there any more or was changed since.
func (l LocalFile) Open() (*os.File, error) {
	file, err := os.Open(l.Name)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err != nil || info.Size() != l.Size || !info.ModTime().Equal(l.Modified) {
		file.Close()
		return nil, fs.ErrNotExist
	}
	return file, nil
}

// Lookup returns what is known of a path.
func (r *Records) Lookup(path id.Path) (Placed, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	f := r.files[path]
	if f == nil {
		return Placed{}, false
	}
	return Placed{f.digest, f.size, f.task.local}, true
}

// add notes that a box stored a file, and reports whether it is the first to hold these bytes.
// Other bytes than the record has begin a new record. The box keeps the file for the TTL that it
// was sent with at begin; its own clock, which its answer tells, may be off by years.
func (r *Records) add(f push.File, box id.BoxID, begin time.Time, task taskFacts) (first bool) {
	h := holding{box: box}
	if f.TTL > 0 {
		h.expires = begin.Add(f.TTL)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	known := r.files[f.Path]
	record := r.addHolding(f.Path, f.Digest, f.Size, h)
	record.task = task
	return record != known
}

// addHolding notes a holding of bytes that are sure.
func (r *Records) addHolding(path id.Path, d id.Digest, size int64, h holding) *record {
	f := r.files[path]
	if f == nil || f.digest != d {
		replaced := f
		f = &record{digest: d, size: size, first: h.box}
		if replaced != nil {
			f.stale = append(replaced.stale[max(0, len(replaced.stale)-maxStale):], replaced.digest)
		}
		r.files[path] = f
	}
	f.certain()
	r.seen(h.box, time.Now())
	f.hold(h)
	r.soil(path)
	return f
}

// maxStale is how many earlier contents of a path are remembered, so that their keys can be
// deleted; those beyond go by their time.
const maxStale = 8

func (f *record) certain() {
	f.sure, f.rivals = true, nil
}

func (f *record) hold(h holding) {
	if i := f.holdingOf(h.box); i >= 0 {
		f.holders[i] = h
	} else {
		f.holders = append(f.holders, h)
	}
}

func (f *record) holdingOf(box id.BoxID) int {
	return slices.IndexFunc(f.holders, func(h holding) bool { return h.box == box })
}

// seen notes that a box was there. The caller holds the lock.
func (r *Records) seen(box id.BoxID, now time.Time) {
	a := r.boxes[box]
	a.seen = now
	r.boxes[box] = a
}

// describe adds what a task said of a file that boxes hold already, and that these are its bytes.
func (r *Records) describe(f push.File, task taskFacts) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if known := r.files[f.Path]; known != nil && known.digest == f.Digest {
		known.task = task
		known.certain()
		r.soil(f.Path)
	}
}

// facts returns what the task of a file said.
func (r *Records) facts(path id.Path) taskFacts {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if f := r.files[path]; f != nil {
		return f.task
	}
	return taskFacts{}
}

// thin returns the files of tasks that fewer than so many of the boxes hold, with what is left of
// their TTL, for as long as the publisher has them.
func (r *Records) thin(replicas int, up map[id.BoxID]bool, now time.Time) []push.File {
	r.mu.RLock()
	defer r.mu.RUnlock()
	var files []push.File
	for path, f := range r.files {
		local, last := f.task.local, lastExpiry(f.holders)
		left := time.Duration(0)
		if !last.IsZero() {
			left = last.Sub(now).Truncate(time.Second)
		}
		if local.Name == "" || !last.IsZero() && left < leastUseful || now.Sub(f.yielded) < yieldRest {
			continue
		}
		copies := 0
		for _, h := range f.holders {
			// One that lets go much earlier than the last is no copy to rely on.
			if up[h.box] && (h.expires.IsZero() || !last.IsZero() && h.expires.After(now.Add(left/2))) {
				copies++
			}
		}
		if copies < min(replicas, len(up)) {
			files = append(files, push.File{
				Path: path, Digest: f.digest, Size: f.size, TTL: left,
				Open: func() (io.ReadCloser, error) { return local.Open() },
			})
		}
	}
	return files
}

// sweep forgets what no box holds any more: at once what is in Redis as it is here, and when too
// much waits for Redis the rest too.
func (r *Records) sweep(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for path, f := range r.files {
		f.holders = slices.DeleteFunc(f.holders, func(h holding) bool { return h.over(now) })
		f.rivals = slices.DeleteFunc(f.rivals, func(c claim) bool { return c.over(now) })
		r.succeed(path, f)
		if len(f.holders) > 0 {
			continue
		}
		waits := r.dirty[path]
		if waits && len(r.dirty) > maxDirty {
			r.forgotten.Add(1)
			waits = false
		}
		if !waits {
			r.drop(path) // its keys in Redis expire by themselves
		}
	}
}

func (h holding) over(now time.Time) bool { return !h.expires.IsZero() && !h.expires.After(now) }

func (r *Records) drop(path id.Path) {
	delete(r.files, path)
	delete(r.dirty, path)
	delete(r.asks, path)
}

// forget lets go of what boxes held that were not seen for long, and of the records that only
// such boxes hold as are not up while there are too many. What boxes hold for ever is written
// again from time to time, because in Redis nothing stays for ever.
func (r *Records) forget(up map[id.BoxID]bool, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for box := range up {
		r.seen(box, now)
	}
	gone := func(box id.BoxID) bool { return now.Sub(r.boxes[box].seen) > absence }
	excess := len(r.files) - maxRecords
	for path, f := range r.files {
		before := len(f.holders)
		f.holders = slices.DeleteFunc(f.holders, func(h holding) bool { return gone(h.box) })
		f.rivals = slices.DeleteFunc(f.rivals, func(c claim) bool { return gone(c.box) })
		switch {
		case len(f.holders) < before:
			r.aged.Add(int64(before - len(f.holders)))
			r.soil(path)
		case excess > 0 && !slices.ContainsFunc(f.holders, func(h holding) bool { return up[h.box] }):
			r.forgotten.Add(1)
			r.drop(path)
			excess--
		case lastExpiry(f.holders).IsZero() && now.Sub(f.written) > lease/4:
			r.soil(path)
		}
	}
	maps.DeleteFunc(r.boxes, func(_ id.BoxID, a acquaintance) bool { return now.Sub(a.seen) > absence })
}

// soil notes that the record is not in Redis as it is here. A digest that only boxes vouch for is
// not written before Redis was asked for a better one.
func (r *Records) soil(path id.Path) {
	if f := r.files[path]; f != nil && !f.sure && !f.asked {
		r.asks[path] = true
	} else {
		r.dirty[path] = true
	}
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Count returns how many files have a record.
func (r *Records) Count() int {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return len(r.files)
}

// RecordTotals counts since the start.
type RecordTotals struct {
	Forgotten    int64 `json:"forgotten_records"`    // dropped because too many waited for Redis or were kept
	Aged         int64 `json:"aged_holdings"`        // of boxes that were not seen for a day
	Unwritten    int64 `json:"unwritten_records"`    // whose key in Redis cannot be written; the log names it
	Contradicted int64 `json:"contradicted_records"` // what boxes said they hold, and the publisher's own file or Redis says otherwise
}

// Totals returns what was let go since the start.
func (r *Records) Totals() RecordTotals {
	return RecordTotals{r.forgotten.Load(), r.aged.Load(), r.unwritten.Load(), r.contradicted.Load()}
}

// yieldRest is for how long a file that a box let go for room is not placed again for the sake of its
// replicas: where room is short, each would drive out another.
const yieldRest = time.Hour

// yielded notes that a box let files go: those without a TTL, for room.
func (r *Records) yielded(box id.BoxID, paths []id.Path) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, path := range paths {
		f := r.files[path]
		if f == nil {
			continue
		}
		if i := f.holdingOf(box); i >= 0 && f.holders[i].expires.IsZero() {
			f.yielded = time.Now()
		}
		r.unhold(box, path, f)
	}
}

// lacks notes that a box does not hold a file.
func (r *Records) lacks(box id.BoxID, path id.Path) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if f := r.files[path]; f != nil {
		r.unhold(box, path, f)
	}
}

// unhold takes a box's holding out of a record. The caller holds the lock.
func (r *Records) unhold(box id.BoxID, path id.Path, f *record) {
	i := f.holdingOf(box)
	if i < 0 {
		return
	}
	f.holders = slices.Delete(f.holders, i, i+1)
	r.soil(path)
	r.succeed(path, f)
}
