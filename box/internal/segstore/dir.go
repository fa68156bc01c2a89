package segstore

import (
	"container/heap"
	"errors"
	"fmt"
	"hash/maphash"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"dandelion/pkg/id"
	"dandelion/pkg/wire"
)

// Names below a base directory, besides the publishers' directories.
const (
	committedDir = ".committed"
	incomingDir  = ".incoming"
	bootFile     = ".boot"
	lockFile     = ".lock"
)

// dir is one base directory with its limit.
type dir struct {
	path      string
	root      *os.Root
	committed *os.Root
	lock      *os.File
	sync      bool
	bootID    string
	unclean   bool // the machine restarted since files here were written, without a clean end

	// Below: under Store.mu.
	limit    int64
	used     int64 // of committed files
	kept     int64 // of them, those without a TTL
	reserved int64 // of files being received
	files    int
	queues   [queues]queue
	evicted  int64
	noSpace  int64
	expired  int64
}

func openDir(name string, limit int64, sync bool) (_ *dir, err error) {
	if err := os.MkdirAll(name, 0o755); err != nil {
		return nil, fmt.Errorf("segment store: %w: make the directory writable or choose another", err)
	}
	root, err := os.OpenRoot(name)
	if err != nil {
		return nil, fmt.Errorf("segment store: %w", err)
	}
	d := &dir{path: name, root: root, limit: limit, sync: sync}
	defer func() {
		if err != nil {
			d.release()
		}
	}()
	if err := d.takeLock(); err != nil {
		return nil, err
	}
	for _, sub := range []string{committedDir, incomingDir} {
		if err := root.MkdirAll(sub, 0o700); err != nil {
			return nil, fmt.Errorf("segment store: %s: %w: make the directory writable or choose another", name, err)
		}
	}
	if d.committed, err = root.OpenRoot(committedDir); err != nil {
		return nil, fmt.Errorf("segment store: %s: %w", name, err)
	}
	if err := d.clearIncoming(); err != nil {
		return nil, fmt.Errorf("segment store: %s: %w", name, err)
	}
	if err := d.probeLinks(); err != nil {
		return nil, err
	}
	return d, d.readBoot()
}

// takeLock makes this process the only one that writes below the directory.
func (d *dir) takeLock() error {
	f, err := d.root.OpenFile(lockFile, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("segment store: %s: %w: make the directory writable or choose another", d.path, err)
	}
	d.lock = f
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("segment store: %s is in use by another process (%w): stop that one or choose another directory", d.path, err)
	}
	return nil
}

func (d *dir) clearIncoming() error {
	if err := d.root.RemoveAll(incomingDir); err != nil {
		return err
	}
	return d.root.Mkdir(incomingDir, 0o700)
}

// probeLinks checks that the file system has hard links. FAT and exFAT, common on cards and
// sticks, have none.
func (d *dir) probeLinks() error {
	const from, to = incomingDir + "/probe", incomingDir + "/probe-link"
	f, err := d.root.Create(from)
	if isNoSpace(err) {
		return nil // a full disk says nothing about links, and must not keep the box from serving
	}
	if err != nil {
		return fmt.Errorf("segment store: %s: %w: make the directory writable or choose another", d.path, err)
	}
	f.Close()
	defer d.root.Remove(from)
	err = d.root.Link(from, to)
	if err == nil {
		return d.root.Remove(to)
	}
	if isNoSpace(err) {
		return nil
	}
	return fmt.Errorf("segment store: %s: its file system has no hard links (%w): choose a directory on ext4, xfs, btrfs or tmpfs, not on FAT or exFAT", d.path, err)
}

// readBoot finds out whether files may have lost bytes: without fsync a crash of the machine
// (not of the process) can leave a file with its name but not its content. A clean shutdown of
// the machine looks the same from here, and then the check only costs a read.
func (d *dir) readBoot() error {
	raw, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return fmt.Errorf("segment store: which boot of the machine this is: %w", err)
	}
	d.bootID = strings.TrimSpace(string(raw))
	was, err := d.root.ReadFile(bootFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("segment store: %s: %w", d.path, err)
	}
	d.unclean = string(was) != d.bootID
	return nil
}

// writeBoot notes that all files here were written or verified in this boot. Until then the note
// of the earlier boot stays, so that a crash on the way does not make unverified files trusted.
func (d *dir) writeBoot() error {
	const next = incomingDir + "/boot"
	f, err := d.root.Create(next)
	if err != nil {
		return err
	}
	_, err = f.WriteString(d.bootID)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return d.root.Rename(next, bootFile)
}

func (d *dir) release() {
	if d.committed != nil {
		d.committed.Close()
	}
	if d.lock != nil {
		// Not by closing alone: a process that is just being forked holds the file open too.
		unix.Flock(int(d.lock.Fd()), unix.LOCK_UN)
		d.lock.Close()
	}
	d.root.Close()
}

// disk returns the size of the file system and what of it this process can still use, in bytes.
func (d *dir) disk() (total, free int64) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(d.lock.Fd()), &st); err != nil {
		return 0, 0
	}
	return int64(st.Blocks) * int64(st.Bsize), int64(st.Bavail) * int64(st.Bsize)
}

// enqueue and dequeue change the queue that e.queue names. Store.mu is held.
func (d *dir) enqueue(e *entry) {
	heap.Push(&d.queues[e.queue], e)
	if e.queue == queueKept {
		d.kept += charge(e.size)
	}
}

func (d *dir) dequeue(e *entry) {
	heap.Remove(&d.queues[e.queue], int(e.pos))
	if e.queue == queueKept {
		d.kept -= charge(e.size)
	}
}

// visible is where the file of a path stands, relative to the base directory.
func visible(pub id.PublisherID, p id.Path) string { return string(pub) + string(p) }

// linkVisible gives the committed file its path, in one step where another file has it. The
// path's lock is held.
func (d *dir) linkVisible(committed string, pub id.PublisherID, p id.Path, unique uint64) error {
	from, to := committedDir+"/"+committed, visible(pub, p)
	const tries = 1000 // each lost to another removal: far more than there are path locks
	var err error
	for range tries {
		linking := false
		err = d.root.MkdirAll(path.Dir(to), 0o755)
		if err == nil {
			linking = true
			err = d.root.Link(from, to)
		}
		switch {
		case err == nil:
			return nil
		case errors.Is(err, fs.ErrExist) && linking:
			return d.replaceVisible(from, to, p, unique)
		case errors.Is(err, fs.ErrExist), errors.Is(err, syscall.ENOTDIR):
			return refuse(wire.KindPath, "%s: a part of the path is a file", id.Quote(string(p)))
		case errors.Is(err, fs.ErrNotExist) && d.holds(from):
			continue // a removal took the empty directory between the two steps
		}
		return err
	}
	return err
}

func (d *dir) holds(name string) bool {
	_, err := d.root.Lstat(name)
	return err == nil
}

func (d *dir) replaceVisible(from, to string, p id.Path, unique uint64) error {
	tmp := incomingDir + "/" + strconv.FormatUint(unique, 16) + ".link"
	if err := d.root.Link(from, tmp); err != nil {
		return err
	}
	err := d.root.Rename(tmp, to)
	if err == nil {
		return nil
	}
	fi, statErr := d.root.Lstat(to)
	isDir := statErr == nil && fi.IsDir()
	if isDir && d.removeDir(to) == nil { // empty: its last file has just gone
		if err = d.root.Rename(tmp, to); err == nil {
			return nil
		}
	}
	d.root.Remove(tmp)
	if isDir {
		return refuse(wire.KindPath, "%s is a directory: it holds other files", id.Quote(string(p)))
	}
	return err
}

// removeVisible removes the file at a path and the directories that it leaves empty.
func (d *dir) removeVisible(pub id.PublisherID, p id.Path) error {
	name := visible(pub, p)
	if err := d.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	d.removeEmpty(path.Dir(name))
	return nil
}

// removeEmpty removes a directory where it is there and empty, and then those that held nothing else.
func (d *dir) removeEmpty(name string) {
	for ; name != "."; name = path.Dir(name) {
		if err := d.removeDir(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return // not empty
		}
	}
}

// removeDir removes an empty directory and nothing else: another commit may have put a file where the
// directory was.
func (d *dir) removeDir(name string) error {
	parent, err := d.root.Open(path.Dir(name))
	if err != nil {
		return err
	}
	defer parent.Close()
	return unix.Unlinkat(int(parent.Fd()), path.Base(name), unix.AT_REMOVEDIR)
}

// syncNames makes a commit's names durable.
func (d *dir) syncNames(pub id.PublisherID, p id.Path) error {
	for _, name := range []string{path.Dir(visible(pub, p)), committedDir} {
		f, err := d.root.Open(name)
		if err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return err
		}
	}
	return nil
}

var pathSeed = maphash.MakeSeed()

// pathLock returns the lock under which a path's names on disk change.
func (s *Store) pathLock(pub id.PublisherID, p id.Path) *sync.Mutex {
	var h maphash.Hash
	h.SetSeed(pathSeed)
	h.WriteString(string(pub))
	h.WriteString(string(p))
	return &s.paths[h.Sum64()%uint64(len(s.paths))]
}
