package segstore

import (
	"errors"
	"io/fs"

	"dandelion/pkg/wire"
)

// noSpaceFiles is how many files a full disk may cost for one file that comes in. The disk may be
// full of what is not the store's, and then removing everything would help nobody.
const noSpaceFiles = 64

// reserve promises need bytes of d to a file, removing for it files without a TTL, the oldest first,
// and what has expired where that is not enough. What was promised until its TTL stays: a publisher that is refused goes
// elsewhere, viewers of a file that vanished have nowhere to go. The caller gives the promise back, or
// turns it into a committed file.
func (s *Store) reserve(d *dir, need int64) *Refusal {
	if need > d.limit {
		return refuse(wire.KindTooLarge, "a file of %d bytes is larger than the whole limit of %d bytes", need, d.limit)
	}
	victims, ok := s.makeRoom(d, need)
	if !ok {
		s.sweep() // it runs by itself too, but not at each file
		if victims, ok = s.makeRoom(d, need); !ok {
			return refuse(wire.KindFull, "no room for %d bytes within the limit of %d bytes", need, d.limit)
		}
	}
	for _, v := range victims {
		s.remove(v)
		s.gone(v)
	}
	return nil
}

// makeRoom reserves need bytes and returns what has to be removed for it; nothing goes for a file
// that would not fit even then.
func (s *Store) makeRoom(d *dir, need int64) (victims []*entry, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	stays, staying := d.used-d.kept, d.files-len(d.queues[queueKept])
	if stays+d.reserved+need > d.limit || staying >= maxFiles {
		return nil, false
	}
	for d.used+d.reserved+need > d.limit || d.files >= maxFiles {
		v := d.queues[queueKept][0]
		s.detach(v)
		d.evicted++
		victims = append(victims, v)
	}
	d.reserved += need
	return victims, true
}

// release gives a promise back.
func (s *Store) release(d *dir, n int64) {
	s.mu.Lock()
	d.reserved -= n
	s.mu.Unlock()
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
	var victims []*entry
	for bytes := int64(0); !freed && bytes < need && len(victims) < noSpaceFiles && len(d.queues[queueKept]) > 0; {
		v := d.queues[queueKept][0]
		s.detach(v)
		d.noSpace++
		bytes += charge(v.size)
		victims = append(victims, v)
	}
	s.mu.Unlock()
	for _, v := range victims {
		s.remove(v)
		s.gone(v)
	}
	if len(victims) > 0 {
		s.log.Warn("the disk is full before the limit is reached; removed files for new ones",
			"dir", d.path, "files", len(victims), "limit", d.limit)
	}
	return freed || len(victims) > 0
}

// gone tells that a file went before its time. The caller holds no lock.
func (s *Store) gone(e *entry) {
	if s.tellGone != nil {
		s.tellGone(e.pub.id, e.path)
	}
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
