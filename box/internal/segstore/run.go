package segstore

import (
	"context"
	"crypto/sha256"
	"io"
	"sync"
	"time"

	"dandelion/pkg/id"
)

const (
	// sweepAfter is how long expired files may wait for others, so that a thousand files that
	// expire in one second do not wake the device a thousand times. They are not served meanwhile.
	sweepAfter = 250 * time.Millisecond
	// lookEvery is how often the wall clock is looked at.
	lookEvery = 30 * time.Second
	// jump is how far the wall clock may run from the monotonic one before names follow it.
	jump = 2 * time.Second
)

// Run removes files within one second of their TTL and verifies what a restart of the machine
// made doubtful, until ctx ends. It returns nil then.
func (s *Store) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { s.verifyAll(ctx) })

	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
		case <-timer.C:
		}
		timer.Reset(s.look())
	}
}

// look follows the wall clock where it jumped, removes what has expired, and returns the time until
// the next look. It is Run's.
func (s *Store) look() time.Duration {
	now := s.instant()
	if moved := wallOffset(now) - s.offset; moved > jump || moved < -jump {
		s.log.Info("the wall clock jumped; files keep their remaining time", "by", moved)
		s.rename(now)
		s.offset += moved
	}
	return s.sweep()
}

// wallOffset is the wall clock less the monotonic one: constant but for jumps.
func wallOffset(now instant) time.Duration {
	return time.Duration(now.wall.UnixNano() - now.mono)
}

// sweep removes what has expired and returns the time until the next look.
func (s *Store) sweep() time.Duration {
	const batch = 128
	for {
		now := s.instant()
		s.mu.Lock()
		var victims []*entry
		next := lookEvery
		for _, d := range s.dirs() {
			for _, q := range []int{queueMono, queueWall} {
				for len(d.queues[q]) > 0 && len(victims) < batch {
					e := d.queues[q][0]
					if left, timed := e.left(now); !timed || left > 0 {
						if timed {
							next = min(next, left+sweepAfter)
						}
						break
					}
					s.detach(e)
					d.expired++
					victims = append(victims, e)
				}
			}
		}
		s.wakeAt = now.mono + int64(next)
		s.mu.Unlock()
		if len(victims) == 0 {
			return next
		}
		for _, e := range victims {
			s.remove(e)
		}
	}
}

// wakeFor tells Run of an entry that expires before its next look. s.mu is held.
func (s *Store) wakeFor(e *entry) {
	if e.queue != queueMono { // the others have no end, or come from the scan, before Run
		return
	}
	at := e.key + int64(sweepAfter)
	if at >= s.wakeAt {
		return
	}
	s.wakeAt = at
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// requeue moves e within its directory's queues. s.mu is held.
func (e *entry) requeue(queue uint8, key int64) {
	e.dir.dequeue(e)
	e.queue, e.key = queue, key
	e.dir.enqueue(e)
}

// rename writes the expiry times of files stored by this process into their names again, after
// the wall clock was set: the next process has nothing else to go by.
func (s *Store) rename(now instant) {
	s.mu.Lock()
	var all []*entry
	for _, d := range s.dirs() {
		all = append(all, d.queues[queueMono]...)
	}
	s.mu.Unlock()
	for _, e := range all {
		if err := s.renameOne(e, now); err != nil {
			s.log.Warn("cannot note a file's new expiry time", "dir", e.dir.path, "path", e.path, "err", err)
		}
	}
}

func (s *Store) renameOne(e *entry, now instant) error {
	lock := s.pathLock(e.pub.id, e.path)
	lock.Lock()
	defer lock.Unlock()
	s.mu.Lock()
	from := e.name()
	left, timed := e.left(now)
	in := e.pos >= 0
	s.mu.Unlock()
	if !in || !timed {
		return nil
	}
	expires := now.expiry(left)
	if err := e.dir.committed.Rename(from, committedName(expires, e.digest, e.unique)); err != nil {
		return err
	}
	s.step("renamed within .committed")
	s.mu.Lock()
	e.expires = expires
	s.mu.Unlock()
	return nil
}

// verifyAll reads what was found after a restart of the machine, one file at a time.
func (s *Store) verifyAll(ctx context.Context) {
	for _, e := range s.toVerify {
		if ctx.Err() != nil {
			return
		}
		s.verify(e)
	}
	s.toVerify = nil
	for _, d := range s.dirs() {
		if d.unclean {
			s.endUnclean(d)
		}
	}
}

// verify reads an unverified file and reports whether it is what its name says; if not, it is
// removed. Two calls for one file at once only do the work twice.
func (s *Store) verify(e *entry) bool {
	s.mu.Lock()
	in, unverified, name := e.pos >= 0, e.unverified, e.name()
	s.mu.Unlock()
	if !in || !unverified {
		return in
	}
	digest, err := e.dir.digest(name)
	if err == nil && digest == e.digest {
		s.mu.Lock()
		e.unverified = false
		s.mu.Unlock()
		return true
	}
	s.log.Warn("a file lost its content when the machine stopped; it is removed", "dir", e.dir.path, "path", e.path, "err", err)
	s.drop(e)
	return false
}

func (d *dir) digest(committed string) (sum id.Digest, err error) {
	f, err := d.committed.Open(committed)
	if err != nil {
		return sum, err
	}
	defer f.Close()
	h := sha256.New()
	buf := copyBuffers.Get().(*[copyBuffer]byte)
	defer copyBuffers.Put(buf)
	if _, err := io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{f}, buf[:]); err != nil {
		return sum, err
	}
	h.Sum(sum[:0])
	return sum, nil
}
