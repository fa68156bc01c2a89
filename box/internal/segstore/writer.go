package segstore

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"

	"dandelion/pkg/id"
	"dandelion/pkg/wire"
)

const (
	copyBuffer = 256 << 10
	// growBy is how the promise of room grows for a file whose size nobody said.
	growBy = 256 << 10
)

var copyBuffers = sync.Pool{New: func() any { return new([copyBuffer]byte) }}

// Writer receives one file. Nothing of it is visible before Commit. It is for one goroutine, and
// ends with Commit or Cancel.
type Writer struct {
	s        *Store
	m        Meta
	d        *dir
	f        *os.File
	unique   uint64
	name     string // below the base directory
	hash     hash.Hash
	n        int64
	reserved int64
	retried  bool // files were removed for a full disk already
	ended    bool
	arrival  *arrival // nil: nobody follows
}

// Create begins to receive a file and reserves its room, removing for it what expires first. The
// error is a *Refusal where the file cannot be stored.
func (s *Store) Create(m Meta) (*Writer, error) {
	if m.TTL < 0 {
		return nil, refuse(wire.KindTTL, "the TTL is negative: want seconds, 0 or more")
	}
	if err := s.checkAncestors(m); err != nil {
		return nil, err
	}
	w := &Writer{s: s, m: m, hash: sha256.New(), unique: s.unique.Add(1)}
	w.reserved = charge(max(0, m.Size))
	var refusal *Refusal
	for _, d := range s.dirsFor(m) {
		err := s.room(d, w.reserved, m)
		if err == nil {
			w.d = d
			break
		}
		if refusal == nil || err.Kind == wire.KindFull {
			refusal = err
		}
	}
	if w.d == nil {
		return nil, refusal
	}
	w.name = incomingDir + "/" + strconv.FormatUint(w.unique, 16)
	err := w.retryNoSpace(func() (err error) {
		w.f, err = w.d.root.OpenFile(w.name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		return err
	})
	if err != nil {
		w.Cancel()
		return nil, err
	}
	return w, nil
}

// room reserves need bytes of d for a file, if the disk has them too: better to say so before the
// bytes have come.
func (s *Store) room(d *dir, need int64, m Meta) *Refusal {
	if err := s.reserve(d, need); err != nil {
		return err
	}
	lacks := func() bool { total, free := d.disk(); return total > 0 && free < m.Size }
	if lacks() && (!s.freeDisk(d, m.Size) || lacks()) {
		s.release(d, need)
		return refuse(wire.KindFull, "the box's disk is full")
	}
	return nil
}

// dirsFor returns where a file may go, the best first: live segments where memory cards are not
// worn, and where they do not fit there, with the rest.
func (s *Store) dirsFor(m Meta) []*dir {
	if s.live != nil && m.TTL > 0 && m.TTL <= LiveTTL {
		return []*dir{s.live, s.data}
	}
	return []*dir{s.data}
}

// checkAncestors refuses early what Commit would have to refuse late: a path through a file.
func (s *Store) checkAncestors(m Meta) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.publishers[m.Publisher]
	if p == nil {
		return nil
	}
	for i := 1; i < len(m.Path); i++ {
		if m.Path[i] == '/' && p.files[m.Path[:i]] != nil {
			return refuse(wire.KindPath, "%s: %s is a file", id.Quote(string(m.Path)), id.Quote(string(m.Path[:i])))
		}
	}
	return nil
}

// Write appends b to the file. After an error the file can only be cancelled.
func (w *Writer) Write(b []byte) (int, error) {
	n, err := w.write(b)
	w.hash.Write(b[:n])
	return n, err
}

// write is Write without the digest.
func (w *Writer) write(b []byte) (int, error) {
	if w.ended {
		return 0, os.ErrClosed
	}
	if err := w.admit(int64(len(b))); err != nil {
		return 0, err
	}
	n, err := w.f.Write(b)
	if isNoSpace(err) && w.freeDisk() {
		var more int
		more, err = w.f.Write(b[n:])
		n += more
	}
	w.n += int64(n)
	if w.arrival != nil {
		w.arrival.reached(w.n)
	}
	return n, w.asRefusal(err)
}

// ReadFrom appends everything that r yields, through two buffers that all writers share in turn:
// while one is read and written, the other's digest is taken, which costs as much. The error is
// r's or the store's; io.EOF is none.
func (w *Writer) ReadFrom(r io.Reader) (total int64, err error) {
	buf, other := copyBuffers.Get().(*[copyBuffer]byte), copyBuffers.Get().(*[copyBuffer]byte)
	defer func() { copyBuffers.Put(buf); copyBuffers.Put(other) }()
	var hashing sync.WaitGroup
	for {
		n, readErr := w.fill(r, buf[:])
		n, err := w.write(buf[:n])
		total += int64(n)
		hashing.Wait()
		switch {
		case err != nil:
			return total, err
		case readErr != nil:
			w.hash.Write(buf[:n])
			if readErr == io.EOF {
				readErr = nil
			}
			return total, readErr
		}
		full := buf[:n]
		hashing.Go(func() { w.hash.Write(full) })
		buf, other = other, buf
	}
}

// fill reads until buf is full or r ends, or takes what is there at once where somebody follows. Unlike io.ReadFull it keeps r's io.ErrUnexpectedEOF, a
// connection that broke, apart from its io.EOF, the end of the file.
func (w *Writer) fill(r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil && (n == 0 || w.arrival == nil) {
		var m int
		m, err = r.Read(buf[n:])
		n += m
	}
	return n, err
}

// admit checks that n more bytes are within what the sender said and what the limit allows.
func (w *Writer) admit(n int64) error {
	if w.m.Size >= 0 {
		if w.n+n > w.m.Size {
			return refuse(wire.KindSize, "more than the %d bytes that were announced", w.m.Size)
		}
		return nil
	}
	short := charge(w.n+n) - w.reserved
	if short <= 0 {
		return nil
	}
	if w.reserved+short > w.d.limit {
		return refuse(wire.KindTooLarge, "the file is larger than the whole limit of %d bytes", w.d.limit)
	}
	short = min(max(short, growBy), w.d.limit-w.reserved)
	if err := w.s.reserve(w.d, short); err != nil {
		return err
	}
	w.reserved += short
	return nil
}

// freeDisk makes room on a full disk, once for each file.
func (w *Writer) freeDisk() bool {
	if w.retried {
		return false
	}
	w.retried = true
	need := max(w.m.Size-w.n, copyBuffer)
	return w.s.freeDisk(w.d, need)
}

func (w *Writer) retryNoSpace(do func() error) error {
	err := do()
	if isNoSpace(err) && w.freeDisk() {
		err = do()
	}
	return w.asRefusal(err)
}

// asRefusal gives errors of the disk their kind. The log has the rest: directories of this
// machine are not the publisher's business.
func (w *Writer) asRefusal(err error) error {
	var refusal *Refusal
	switch {
	case err == nil || errors.As(err, &refusal):
		return err
	case isNoSpace(err):
		return &Refusal{wire.KindFull, errors.New("the box's disk is full")}
	}
	w.s.log.Error("cannot store a file", "dir", w.d.path, "publisher", w.m.Publisher, "path", w.m.Path, "err", err)
	return &Refusal{wire.KindInternal, errors.New("the box cannot write to its disk")}
}

// Cancel drops what was received. It does nothing after Commit or Cancel.
func (w *Writer) Cancel() {
	if w.ended {
		return
	}
	w.ended = true
	w.arrive(errCancelled)
	if w.f != nil {
		w.f.Close()
		w.d.root.Remove(w.name)
	}
	w.s.release(w.d, w.reserved)
}

// Commit makes the file visible, in place of an older one at its path, if it has the size and the
// digest that were announced. What the store holds already only gets the later of both expiry
// times. On return the file is served, also by the next process; the error is a *Refusal, and
// then nothing has changed.
func (w *Writer) Commit() (Entry, error) {
	if w.ended {
		return Entry{}, os.ErrClosed
	}
	e, err := w.commit()
	if err != nil {
		w.Cancel()
		return Entry{}, w.asRefusal(err)
	}
	return e, nil
}

func (w *Writer) commit() (Entry, error) {
	if w.m.Size >= 0 && w.n != w.m.Size {
		return Entry{}, refuse(wire.KindSize, "%d bytes instead of the %d that were announced", w.n, w.m.Size)
	}
	var digest id.Digest
	w.hash.Sum(digest[:0])
	if !w.m.Digest.IsZero() && digest != w.m.Digest {
		return Entry{}, refuse(wire.KindDigest, "the bytes' SHA-256 is %s, announced was %s", digest, w.m.Digest)
	}
	if e, ok := w.s.extend(w.m, digest, w.d); ok {
		w.arrive(nil)
		w.Cancel()
		return e, nil
	}
	if w.d.sync {
		if err := w.f.Sync(); err != nil {
			return Entry{}, fmt.Errorf("sync: %w", err)
		}
	}
	e := &entry{path: w.ownPath(), digest: digest, size: w.n, dir: w.d, unique: w.unique, plays: w.m.Plays}
	err := w.retryNoSpace(func() error { return w.publish(e) })
	if err != nil {
		return Entry{}, err
	}
	w.ended = true
	w.arrive(nil)
	w.f.Close()
	now := w.s.instant()
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	return e.public(now), nil
}

// ownPath copies the path, so that the index does not keep a whole message alive with it.
func (w *Writer) ownPath() id.Path { return id.Path(strings.Clone(string(w.m.Path))) }

// publish gives the received file its two names and its place in the index. When it fails, it
// can be called again.
func (w *Writer) publish(e *entry) error {
	s, d := w.s, w.d
	lock := s.pathLock(w.m.Publisher, e.path)
	lock.Lock()
	defer lock.Unlock()

	now := s.instant()
	e.stored = now.wall.UnixNano()
	e.schedule(w.m.TTL, now)
	name := e.name()
	if err := s.step("received"); err != nil {
		return err
	}
	if err := d.root.Rename(w.name, committedDir+"/"+name); err != nil {
		return err
	}
	err := s.step("renamed into .committed")
	if err == nil {
		err = d.linkVisible(name, w.m.Publisher, e.path, w.unique)
	}
	if err != nil {
		d.removeEmpty(path.Dir(visible(w.m.Publisher, e.path)))
		if back := d.root.Rename(committedDir+"/"+name, w.name); back != nil {
			return errors.Join(err, back, d.committed.Remove(name))
		}
		return err
	}
	s.step("linked at its path")
	if d.sync {
		if err := d.syncNames(w.m.Publisher, e.path); err != nil {
			return errors.Join(err, d.removeVisible(w.m.Publisher, e.path), d.root.Rename(committedDir+"/"+name, w.name))
		}
	}

	s.mu.Lock()
	e.pub = s.publisher(w.m.Publisher)
	d.reserved -= w.reserved
	replaced := s.insert(e)
	s.mu.Unlock()
	if replaced != nil {
		s.removeLocked(replaced)
	}
	return nil
}

// extend gives a file that the store holds already the later of its own and the new expiry time.
// ok is false where the bytes that were received are needed: the store holds other ones or none,
// or would keep these in another directory now.
func (s *Store) extend(m Meta, digest id.Digest, d *dir) (_ Entry, ok bool) {
	lock := s.pathLock(m.Publisher, m.Path)
	lock.Lock()
	defer lock.Unlock()
	now := s.instant()
	next := &entry{digest: digest}
	next.schedule(m.TTL, now)

	s.mu.Lock()
	e := s.lookup(m.Publisher, m.Path)
	if e == nil || e.digest != digest || e.unverified || e.expired(now) {
		s.mu.Unlock()
		return Entry{}, false
	}
	if m.Plays > 0 {
		e.plays = m.Plays // found by the scan, it had none
	}
	if !e.outlivedBy(m.TTL, now) {
		defer s.mu.Unlock()
		return e.public(now), true
	}
	from := e.name()
	s.mu.Unlock()
	if e.dir != d {
		return Entry{}, false
	}
	if err := d.committed.Rename(from, committedName(next.expires, digest, e.unique)); err != nil {
		return Entry{}, false
	}
	s.step("renamed within .committed")

	s.mu.Lock()
	defer s.mu.Unlock()
	e.expires = next.expires
	if e.pos < 0 { // evicted meanwhile: its removal waits for the path's lock, and finds the new name
		return Entry{}, false
	}
	e.requeue(next.queue, next.key)
	s.wakeFor(e)
	return e.public(now), true
}

// outlivedBy reports whether a file stored now with that TTL would stay longer than e.
func (e *entry) outlivedBy(ttl time.Duration, now instant) bool {
	if e.queue == queueKept {
		return false
	}
	left, timed := e.left(now)
	return ttl == 0 || timed && ttl > left
}
