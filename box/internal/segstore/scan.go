package segstore

import (
	"errors"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"

	"dandelion/pkg/id"
)

// inode names a file within one machine.
type inode struct{ dev, ino uint64 }

func inodeOf(fi fs.FileInfo) inode {
	st := fi.Sys().(*syscall.Stat_t)
	return inode{uint64(st.Dev), uint64(st.Ino)}
}

// scan rebuilds the index of one directory and removes what is not a whole, committed file. It
// runs before the store has users and so takes no locks.
func (s *Store) scan(d *dir) error {
	committed, err := d.readCommitted()
	if err != nil {
		return err
	}
	top, err := readDir(d.root)
	if err != nil {
		return err
	}
	now := s.instant()
	for _, sub := range top {
		pub, err := id.ParsePublisherID(sub.Name())
		if err != nil || !sub.IsDir() {
			continue // not the store's: an operator may keep other things here
		}
		if err := s.scanTree(d, d.root, pub, "", sub.Name(), committed, now); err != nil {
			return err
		}
	}
	for _, e := range committed {
		if e.pub == nil { // committed, but the crash came before it got its path
			if err := d.committed.Remove(e.name()); err != nil {
				return err
			}
		}
	}
	if d.unclean && len(s.toVerify) == 0 {
		s.endUnclean(d)
	}
	for _, victim := range s.overLimit(d) {
		s.remove(victim)
	}
	return nil
}

// readCommitted returns an entry without publisher and path for each name in .committed.
func (d *dir) readCommitted() (map[inode]*entry, error) {
	names, err := readDir(d.committed)
	if err != nil {
		return nil, err
	}
	committed := make(map[inode]*entry, len(names))
	for _, n := range names {
		e, ok := parseCommittedName(n.Name())
		var fi fs.FileInfo
		if ok {
			if fi, err = d.committed.Lstat(n.Name()); err != nil {
				return nil, err
			}
		}
		// A second name for one inode is what nothing here makes; one of them is enough.
		if !ok || !fi.Mode().IsRegular() || committed[inodeOf(fi)] != nil {
			if err := d.committed.RemoveAll(n.Name()); err != nil {
				return nil, err
			}
			continue
		}
		e.dir, e.size, e.stored = d, fi.Size(), fi.ModTime().UnixNano()
		committed[inodeOf(fi)] = e
	}
	return committed, nil
}

// parseCommittedName is the inverse of committedName.
func parseCommittedName(name string) (*entry, bool) {
	expires, rest, _ := strings.Cut(name, ".")
	sum, unique, _ := strings.Cut(rest, ".")
	var e entry
	var errs [3]error
	e.expires, errs[0] = strconv.ParseInt(expires, 10, 64)
	e.digest, errs[1] = id.ParseDigest(sum)
	e.unique, errs[2] = strconv.ParseUint(unique, 16, 64)
	return &e, errors.Join(errs[:]...) == nil && e.expires >= 0 && e.name() == name
}

// scanTree takes the committed files below one directory of a publisher into the index and
// removes everything else, directories left empty included.
func (s *Store) scanTree(d *dir, parent *os.Root, pub id.PublisherID, prefix, name string, committed map[inode]*entry, now instant) error {
	root, err := parent.OpenRoot(name)
	if err != nil {
		return err
	}
	defer root.Close()
	entries, err := readDir(root)
	if err != nil {
		return err
	}
	kept := len(entries)
	for _, n := range entries {
		full := prefix + "/" + n.Name()
		if n.IsDir() && len(full) < id.MaxPath {
			if err := s.scanTree(d, root, pub, full, n.Name(), committed, now); err != nil {
				return err
			}
			if _, err := root.Lstat(n.Name()); errors.Is(err, fs.ErrNotExist) {
				kept--
			}
			continue
		}
		took := false
		if n.Type().IsRegular() {
			fi, err := root.Lstat(n.Name())
			if err != nil {
				return err
			}
			took = s.adopt(d, pub, full, committed[inodeOf(fi)], now)
		}
		if !took {
			kept--
			if err := root.RemoveAll(n.Name()); err != nil {
				return err
			}
		}
	}
	if kept == 0 {
		return parent.Remove(name)
	}
	return nil
}

// adopt puts a scanned file into the index; false: it is to be removed.
func (s *Store) adopt(d *dir, pub id.PublisherID, full string, e *entry, now instant) bool {
	p, err := id.ParsePath(full)
	if err != nil || e == nil || e.pub != nil {
		return false
	}
	e.timed(now)
	if e.expired(now) {
		return false
	}
	// A path can be in both directories when a crash came between a commit to one and the
	// removal from the other: the later one is what was acknowledged last.
	if other := s.lookup(pub, p); other != nil {
		if other.stored > e.stored {
			return false
		}
		s.detach(other)
		s.remove(other)
	}
	if e.queue == queueMono && now.sane {
		// Or each start from now on would give it its time anew.
		if err := e.dir.renameExpiry(e, now); err != nil {
			s.log.Warn("cannot note a file's expiry time", "dir", d.path, "path", p, "err", err)
		}
	}
	e.pub = s.publisher(pub)
	e.path = p
	s.insert(e)
	if d.unclean {
		e.unverified = true
		s.toVerify = append(s.toVerify, e)
	}
	return true
}

// renameExpiry writes into the name of a scanned file when it expires.
func (d *dir) renameExpiry(e *entry, now instant) error {
	left, _ := e.left(now)
	expires := now.expiry(left)
	if err := d.committed.Rename(e.name(), committedName(expires, e.digest, e.unique)); err != nil {
		return err
	}
	e.expires = expires
	return nil
}

// overLimit detaches what is beyond a limit that was lowered since the files were stored.
func (s *Store) overLimit(d *dir) []*entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	var victims []*entry
	now := s.instant()
	for d.used > d.limit || d.files > maxFiles {
		v := d.nextVictim(true, now)
		if v == nil {
			break
		}
		s.detach(v)
		d.evicted++
		victims = append(victims, v)
	}
	return victims
}

func readDir(root *os.Root) ([]os.DirEntry, error) {
	f, err := root.Open(".")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.ReadDir(-1)
}

// endUnclean notes that nothing unverified is left in d.
func (s *Store) endUnclean(d *dir) {
	err := d.writeBoot()
	if err != nil {
		// The old note stays: the next start verifies again, which costs time only.
		s.log.Warn("cannot note the boot of the machine; the next start verifies all files again",
			"dir", d.path, "err", err)
	}
	d.unclean = err != nil
}
