package placement

import (
	"context"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"dandelion/pkg/id"
	"dandelion/pkg/wire"
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
	wake  chan struct{}
}

// maxDirty is how many records wait for Redis before those that nobody holds are forgotten.
const maxDirty = 100_000

type record struct {
	digest  id.Digest
	size    int64
	first   id.BoxID // that stored it
	holders []holding
	task    taskFacts
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
	return &Records{own: own, redis: client, log: log, files: map[id.Path]*record{}, dirty: map[id.Path]bool{}, wake: make(chan struct{}, 1)}
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

func (r *Records) addHolding(path id.Path, d id.Digest, size int64, h holding) *record {
	f := r.files[path]
	if f == nil || f.digest != d {
		f = &record{digest: d, size: size, first: h.box}
		r.files[path] = f
	}
	if i := slices.IndexFunc(f.holders, func(o holding) bool { return o.box == h.box }); i >= 0 {
		f.holders[i] = h
	} else {
		f.holders = append(f.holders, h)
	}
	r.soil(path)
	return f
}

// describe adds what a task said of a file that boxes hold already.
func (r *Records) describe(f push.File, task taskFacts) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if known := r.files[f.Path]; known != nil && known.digest == f.Digest {
		known.task = task
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
		if local.Name == "" || !last.IsZero() && left < leastUseful {
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

// replaceHoldings makes the records of a box what the box itself says that it holds.
func (r *Records) replaceHoldings(box id.BoxID, have []wire.HaveFile) {
	held := make(map[id.Path]wire.HaveFile, len(have))
	for _, f := range have {
		held[f.FilePath] = f
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for path, f := range r.files {
		i := slices.IndexFunc(f.holders, func(h holding) bool { return h.box == box })
		if i < 0 {
			continue
		}
		if h, ok := held[path]; !ok || h.SHA256 != f.digest {
			f.holders = slices.Delete(f.holders, i, i+1)
			r.soil(path)
		}
	}
	for path, h := range held {
		switch f := r.files[path]; {
		case !mayHold(path, h.SHA256):
			continue // no honest box says so
		case f == nil:
		case f.digest != h.SHA256:
			continue // bytes that were replaced since
		case slices.ContainsFunc(f.holders, func(o holding) bool { return o.box == box }):
			continue // until when is known by our own clock
		}
		var expires time.Time
		if h.Expires > 0 {
			expires = time.Unix(h.Expires, 0)
		}
		r.addHolding(path, h.SHA256, h.Size, holding{box, expires})
	}
}

// mayHold reports whether the path can have these bytes: some paths carry their digest.
func mayHold(path id.Path, d id.Digest) bool {
	seg, ok := id.ParseSegmentPath(path)
	return !ok || seg.Short == d.Short()
}

// sweep forgets what no box holds any more: at once what is in Redis as it is here, and when too
// much waits for Redis the rest too.
func (r *Records) sweep(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for path, f := range r.files {
		f.holders = slices.DeleteFunc(f.holders, func(h holding) bool { return !h.expires.IsZero() && !h.expires.After(now) })
		if len(f.holders) == 0 && (!r.dirty[path] || len(r.dirty) > maxDirty) {
			delete(r.files, path) // its keys in Redis expire by themselves
			delete(r.dirty, path)
		}
	}
}

func (r *Records) soil(path id.Path) {
	r.dirty[path] = true
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

// run writes what changed to Redis until ctx ends, and once more then.
func (r *Records) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastFlush)
			_ = r.flush(last)
			cancel()
			return
		case <-r.wake:
		}
		for ctx.Err() == nil {
			err := r.flush(ctx)
			if err == nil {
				break
			}
			r.log.Warn("records are not in Redis yet; trying again", "reason", err)
			select {
			case <-ctx.Done():
			case <-time.After(flushRetry):
			}
		}
	}
}

// lacks notes that a box does not hold a file.
func (r *Records) lacks(box id.BoxID, path id.Path) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if f := r.files[path]; f != nil {
		f.holders = slices.DeleteFunc(f.holders, func(h holding) bool { return h.box == box })
		r.soil(path)
	}
}
