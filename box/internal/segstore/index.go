package segstore

import (
	"encoding/hex"
	"strconv"
	"time"

	"dandelion/pkg/id"
)

// entry is one committed file. Fields below mu change under Store.mu only; those that make up
// the name in .committed change under the path's lock as well, so either lock is enough to
// read them.
type entry struct {
	pub    *publisher
	path   id.Path
	digest id.Digest
	size   int64
	stored int64 // unix ns
	dir    *dir
	unique uint64

	// mu:
	expires    int64 // as in the name, see instant.expiry
	queue      uint8 // which of dir.queues holds it
	key        int64 // its place there
	pos        int32 // index in that heap; -1: no longer in the store
	plays      time.Duration
	unverified bool // may hold other bytes than the name says (see dir.unclean)
}

// publisher holds the files of one publisher, so that its ID is stored once.
type publisher struct {
	id    id.PublisherID
	files map[id.Path]*entry
}

// name is the file's name in .committed.
func (e *entry) name() string { return committedName(e.expires, e.digest, e.unique) }

func committedName(expires int64, d id.Digest, unique uint64) string {
	b := make([]byte, 0, 128)
	b = strconv.AppendInt(b, expires, 10)
	b = append(b, '.')
	b = hex.AppendEncode(b, d[:])
	b = append(b, '.')
	return string(strconv.AppendUint(b, unique, 16))
}

// charge is what a file of that size takes from the limit: whole blocks of 4 KiB, as file
// systems hold it, so that many tiny files are not free.
func charge(size int64) int64 {
	const block = 4096
	return max(block, (size+block-1)/block*block)
}

// The queues of a directory, by which clock orders them. A file stored by this process is timed
// by the monotonic clock, so that a jump of the wall clock neither ends nor prolongs it; one
// that the scan found has only the wall clock's expiry; the rest has none.
const (
	queueKept = iota // key: unix ns when it was stored
	queueMono        // key: monotonic ns at which it expires
	queueWall        // key: unix ms at which it expires
	queues
)

// queue is a heap of entries, the first to go on top.
type queue []*entry

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].key < q[j].key }
func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].pos, q[j].pos = int32(i), int32(j)
}

func (q *queue) Push(x any) {
	e := x.(*entry)
	e.pos = int32(len(*q))
	*q = append(*q, e)
}

func (q *queue) Pop() any {
	last := len(*q) - 1
	e := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	e.pos = -1
	return e
}

// firstSane is the time before which a wall clock is obviously unset: small devices boot in
// 1970, or at the date of their firmware.
var firstSane = time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)

// instant is one reading of both clocks.
type instant struct {
	mono int64 // ns
	wall time.Time
	sane bool // whether the wall clock may decide anything
}

// clock reads the wall clock and the monotonic one, which counts from any moment.
type clock func() (wall time.Time, mono time.Duration)

func systemClock() clock {
	began := time.Now()
	return func() (time.Time, time.Duration) {
		now := time.Now()
		return now, now.Sub(began)
	}
}

func (s *Store) instant() instant {
	wall, mono := s.clock()
	return instant{mono: int64(mono), wall: wall, sane: wall.After(firstSane)}
}

// expiry is what the name of a file says that has so much time left: unix ms; while the clock is not
// set, when no date means anything, that time itself in ms. The two cannot be mistaken for each
// other: before firstSane lie 54 years.
func (now instant) expiry(left time.Duration) int64 {
	if !now.sane {
		return max(1, left.Milliseconds())
	}
	return max(firstSane.UnixMilli(), now.wall.Add(left).UnixMilli())
}

// timed sets queue and key of a scanned entry by its name. One that was stored before the clock was
// set has its time left anew, rather than too little of it.
func (e *entry) timed(now instant) {
	switch {
	case e.expires == 0:
		e.queue, e.key = queueKept, e.stored
	case e.expires < firstSane.UnixMilli():
		e.queue, e.key = queueMono, now.mono+e.expires*int64(time.Millisecond)
	default:
		e.queue, e.key = queueWall, e.expires
	}
}

// left is the time until the entry expires; timed is false where nothing ends it now.
func (e *entry) left(now instant) (left time.Duration, timed bool) {
	switch e.queue {
	case queueMono:
		return time.Duration(e.key - now.mono), true
	case queueWall:
		return time.UnixMilli(e.key).Sub(now.wall), now.sane
	}
	return 0, false
}

func (e *entry) expired(now instant) bool {
	left, timed := e.left(now)
	return timed && left <= 0
}

// public is the entry as callers see it. Expires is by the wall clock of now.
func (e *entry) public(now instant) Entry {
	p := Entry{Publisher: e.pub.id, Path: e.path, Digest: e.digest, Size: e.size, Stored: time.Unix(0, e.stored), Plays: e.plays}
	switch e.queue {
	case queueMono:
		p.Expires = now.wall.Add(time.Duration(e.key - now.mono))
	case queueWall:
		p.Expires = time.UnixMilli(e.key)
	}
	return p
}

// lookup finds an entry that is in the store, expired or not. s.mu is held.
func (s *Store) lookup(pub id.PublisherID, path id.Path) *entry {
	if p := s.publishers[pub]; p != nil {
		return p.files[path]
	}
	return nil
}

// insert puts e into index, queue and accounts, and takes out what was at its path. s.mu is held.
func (s *Store) insert(e *entry) (replaced *entry) {
	if replaced = e.pub.files[e.path]; replaced != nil {
		s.detach(replaced)
	}
	if s.publishers[e.pub.id] != e.pub {
		s.publishers[e.pub.id] = e.pub // detach may have dropped it with its last file
	}
	e.pub.files[e.path] = e
	e.dir.used += charge(e.size)
	e.dir.files++
	e.dir.enqueue(e)
	s.wakeFor(e)
	return replaced
}

// detach takes e out of index, queue and accounts; its names on disk are the caller's to
// remove. s.mu is held, and e is in the store.
func (s *Store) detach(e *entry) {
	e.dir.dequeue(e)
	e.dir.used -= charge(e.size)
	e.dir.files--
	delete(e.pub.files, e.path)
	if len(e.pub.files) == 0 {
		delete(s.publishers, e.pub.id)
	}
}

// publisher returns the index of one publisher, made where there is none. s.mu is held.
func (s *Store) publisher(pub id.PublisherID) *publisher {
	p := s.publishers[pub]
	if p == nil {
		p = &publisher{id: pub, files: make(map[id.Path]*entry)}
		s.publishers[pub] = p
	}
	return p
}

// schedule sets when e goes, ttl from now (0: when room is needed). s.mu is held, or e is not
// in the store yet; it is not in a queue.
func (e *entry) schedule(ttl time.Duration, now instant) {
	if ttl == 0 {
		e.queue, e.key, e.expires = queueKept, now.wall.UnixNano(), 0
		return
	}
	e.queue, e.key = queueMono, now.mono+int64(ttl)
	e.expires = now.expiry(ttl)
}
