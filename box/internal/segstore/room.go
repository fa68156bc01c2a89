package segstore

import (
	"errors"
	"io/fs"
	"time"

	"dandelion/pkg/wire"
)

// noSpaceFiles is how many files a full disk may cost for one file that comes in. The disk may be
// full of what is not the store's, and then removing everything would help nobody.
const noSpaceFiles = 64

// reserve promises need bytes of d to a file, removing for it what goes first. timed says that
// the file has a TTL: one without takes no room from those that have. The caller gives the
// promise back, or turns it into a committed file.
func (s *Store) reserve(d *dir, need int64, timed bool) *Refusal {
	now := s.instant()
	s.mu.Lock()
	if need > d.limit {
		s.mu.Unlock()
		return refuse(wire.KindTooLarge, "a file of %d bytes is larger than the whole limit of %d bytes", need, d.limit)
	}
	// What stays whatever is removed: nothing goes for a file that does not fit then either.
	stays, staying := int64(0), 0
	if !timed {
		stays, staying = d.used-d.kept, d.files-len(d.queues[queueKept])
	}
	if stays+d.reserved+need > d.limit || staying >= maxFiles {
		s.mu.Unlock()
		return refuse(wire.KindFull, "no room for %d bytes within the limit of %d bytes", need, d.limit)
	}
	var victims []*entry
	for d.used+d.reserved+need > d.limit || d.files >= maxFiles {
		v := d.nextVictim(timed, now)
		s.detach(v)
		d.evicted++
		victims = append(victims, v)
	}
	d.reserved += need
	s.mu.Unlock()
	for _, v := range victims {
		s.remove(v)
	}
	return nil
}

// release gives a promise back.
func (s *Store) release(d *dir, n int64) {
	s.mu.Lock()
	d.reserved -= n
	s.mu.Unlock()
}

// nextVictim is what goes first when room is needed: files without a TTL, the oldest first, then,
// if timed, those that expire first. Store.mu is held.
func (d *dir) nextVictim(timed bool, now instant) *entry {
	if q := d.queues[queueKept]; len(q) > 0 {
		return q[0]
	}
	if !timed {
		return nil
	}
	mono, wall := d.queues[queueMono], d.queues[queueWall]
	switch {
	case len(mono) == 0 && len(wall) == 0:
		return nil
	case len(mono) == 0:
		return wall[0]
	case len(wall) == 0:
		return mono[0]
	}
	// With an unset clock nobody knows which is first; the scanned one is older.
	if left, known := wall[0].left(now); !known || left < time.Duration(mono[0].key-now.mono) {
		return wall[0]
	}
	return mono[0]
}

// freeDisk removes files for need bytes after the disk, not the limit, said that it is full: what
// has expired, then files without a TTL. What was promised until its TTL stays: it is others who fill
// the disk. It reports whether it made any room.
func (s *Store) freeDisk(d *dir, need int64) bool {
	s.mu.Lock()
	expired := d.expired
	s.mu.Unlock()
	s.sweep()
	s.mu.Lock()
	freed := d.expired > expired
	now := s.instant()
	var victims []*entry
	for bytes := int64(0); bytes < need && len(victims) < noSpaceFiles; {
		v := d.nextVictim(false, now)
		if v == nil {
			break
		}
		s.detach(v)
		d.noSpace++
		bytes += charge(v.size)
		victims = append(victims, v)
	}
	s.mu.Unlock()
	for _, v := range victims {
		s.remove(v)
	}
	if len(victims) > 0 {
		s.log.Warn("the disk is full before the limit is reached; removed files for new ones",
			"dir", d.path, "files", len(victims), "limit", d.limit)
	}
	return freed || len(victims) > 0
}

// remove takes a detached entry's names from the disk. The caller holds no lock.
func (s *Store) remove(e *entry) {
	lock := s.pathLock(e.pub.id, e.path)
	lock.Lock()
	defer lock.Unlock()
	s.removeLocked(e)
}

// removeLocked is remove with the path's lock held.
func (s *Store) removeLocked(e *entry) {
	s.mu.Lock()
	successor := s.lookup(e.pub.id, e.path)
	s.mu.Unlock()
	var err error
	if successor == nil || successor.dir != e.dir { // else the path is the successor's already
		err = e.dir.removeVisible(e.pub.id, e.path)
		s.step("removed path")
	}
	if err == nil {
		err = e.dir.committed.Remove(e.name())
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log.Error("cannot remove a file; the next start tries again", "dir", e.dir.path, "path", e.path, "err", err)
	}
}

// step lets tests stop a goroutine between two steps, as a crash would, and make the next one fail
// where the caller minds.
func (s *Store) step(name string) error {
	if s.hook == nil {
		return nil
	}
	return s.hook(name)
}
