package segstore

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"dandelion/pkg/id"
)

// LiveTTL is the longest TTL of a live segment; what stays longer goes to the data directory.
const LiveTTL = 15 * time.Minute

// maxFiles bounds the index of one directory, and so its memory: about 400 bytes a file.
const maxFiles = 100_000

// Config says where files go and how much of them there may be.
type Config struct {
	LiveDir      string // files with a TTL up to LiveTTL; empty: the data directory takes them too
	DataDir      string // everything else
	LiveLimit    int64  // bytes below LiveDir, in blocks of 4 KiB
	StorageLimit int64  // bytes below DataDir, likewise
	SyncData     bool   // fsync files of the data directory before they count as stored
	// Gone is called after a file went before its time: for room, or because the disk lost or spoilt
	// it. It must not block, and is called from any goroutine; nil: nobody asks.
	Gone func(pub id.PublisherID, path id.Path)
}

// Meta says what is about to be stored.
type Meta struct {
	Publisher id.PublisherID
	Path      id.Path
	TTL       time.Duration // 0: until room is needed
	Size      int64         // bytes; -1: unknown
	Digest    id.Digest     // zero: unknown
	Plays     time.Duration // how long it plays; 0: unknown
}

// Entry is a file in the store.
type Entry struct {
	Publisher id.PublisherID
	Path      id.Path
	Digest    id.Digest
	Size      int64     // bytes
	Expires   time.Time // zero: kept until room is needed
	Stored    time.Time
	Plays     time.Duration // as in Meta; 0 of files that Open found
}

// Store is the segment store of one box. All methods may be called concurrently.
type Store struct {
	log      *slog.Logger
	tellGone func(id.PublisherID, id.Path)
	clock    clock
	offset   time.Duration // of the wall clock from the monotonic one when it was last looked at: Run's
	live     *dir          // nil: no live directory
	data     *dir

	unique atomic.Uint64 // the last part of names in .committed and .incoming
	paths  [64]sync.Mutex
	wake   chan struct{}           // something expires earlier than Run knows
	hook   func(step string) error // a test's, see step

	mu         sync.Mutex
	publishers map[id.PublisherID]*publisher
	wakeAt     int64 // monotonic ns at which Run looks next
	toVerify   []*entry
}

// Open takes the two directories, removes what a crash left there, and rebuilds the index. Only
// one process can have a directory open. Errors name the directory and what to do. The caller
// closes the store; nothing expires until Run runs, though expired files are not served.
func Open(cfg Config, log *slog.Logger) (*Store, error) { return openAt(cfg, log, systemClock()) }

func openAt(cfg Config, log *slog.Logger, clock clock) (*Store, error) {
	switch {
	case cfg.DataDir == "":
		return nil, errors.New("segment store: no data directory given")
	case cfg.DataDir == cfg.LiveDir:
		return nil, fmt.Errorf("segment store: %s is both the live and the data directory: choose two", cfg.DataDir)
	case cfg.StorageLimit <= 0:
		return nil, fmt.Errorf("segment store: the storage limit is %d bytes: want more than 0", cfg.StorageLimit)
	case cfg.LiveDir != "" && cfg.LiveLimit <= 0:
		return nil, fmt.Errorf("segment store: the live limit is %d bytes: want more than 0", cfg.LiveLimit)
	}
	s := &Store{
		log:        log,
		tellGone:   cfg.Gone,
		clock:      clock,
		wake:       make(chan struct{}, 1),
		publishers: make(map[id.PublisherID]*publisher),
	}
	s.offset = wallOffset(s.instant())
	var seed [8]byte
	rand.Read(seed[:])
	s.unique.Store(binary.NativeEndian.Uint64(seed[:]))

	var err error
	if s.data, err = openDir(cfg.DataDir, cfg.StorageLimit, cfg.SyncData); err != nil {
		return nil, err
	}
	if cfg.LiveDir != "" {
		if s.live, err = openDir(cfg.LiveDir, cfg.LiveLimit, false); err != nil {
			s.data.release()
			return nil, err
		}
	}
	for _, d := range s.dirs() {
		if err := s.scan(d); err != nil {
			s.Close()
			return nil, fmt.Errorf("segment store: scan of %s: %w", d.path, err)
		}
	}
	return s, nil
}

// Close releases the directories. Nothing else may be called after it; Run must have returned.
// Files that Open gave out stay readable.
func (s *Store) Close() {
	for _, d := range s.dirs() {
		d.release()
	}
}

func (s *Store) dirs() []*dir {
	if s.live == nil {
		return []*dir{s.data}
	}
	return []*dir{s.live, s.data}
}

// Get returns what the store holds at a path.
func (s *Store) Get(pub id.PublisherID, path id.Path) (Entry, bool) {
	now := s.instant()
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.lookup(pub, path)
	if e == nil || e.unverified || e.expired(now) {
		return Entry{}, false
	}
	return e.public(now), true
}

// Open opens a file for reading; the caller closes it. It stays readable when the store replaces
// or removes it, and entry and bytes always belong together. The error is fs.ErrNotExist where
// the store does not hold the path, or holds other bytes than were committed.
func (s *Store) Open(pub id.PublisherID, path id.Path) (*os.File, Entry, error) {
	now := s.instant()
	f, e, err := s.openCommitted(pub, path, now)
	if errors.Is(err, errMoved) {
		// Its TTL was extended between the two steps. Nobody can do that under the path's lock.
		lock := s.pathLock(pub, path)
		lock.Lock()
		f, e, err = s.openCommitted(pub, path, now)
		lock.Unlock()
	}
	if errors.Is(err, errMoved) {
		s.log.Error("a stored file vanished from disk; it is no longer offered", "publisher", pub, "path", path)
		s.drop(e)
		return nil, Entry{}, fs.ErrNotExist
	}
	if err != nil {
		return nil, Entry{}, err
	}
	s.mu.Lock()
	unverified, public := e.unverified, e.public(now)
	s.mu.Unlock()
	if unverified && !s.verify(e) {
		f.Close()
		return nil, Entry{}, fs.ErrNotExist
	}
	return f, public, nil
}

var errMoved = errors.New("the file is not where the index says")

func (s *Store) openCommitted(pub id.PublisherID, path id.Path, now instant) (*os.File, *entry, error) {
	s.mu.Lock()
	e := s.lookup(pub, path)
	if e == nil || e.expired(now) {
		s.mu.Unlock()
		return nil, nil, fs.ErrNotExist
	}
	name := e.name()
	s.mu.Unlock()

	f, err := e.dir.committed.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, e, errMoved
	}
	return f, e, err
}

// Have lists what the store holds of a publisher, ordered by path, beginning behind the path
// after (empty: at the start), at most limit entries.
func (s *Store) Have(pub id.PublisherID, after id.Path, limit int) []Entry {
	now := s.instant()
	s.mu.Lock()
	p := s.publishers[pub]
	if p == nil || limit <= 0 {
		s.mu.Unlock()
		return nil
	}
	list := make([]Entry, 0, min(len(p.files), 4*limit))
	for path, e := range p.files {
		if path > after && !e.unverified && !e.expired(now) {
			list = append(list, e.public(now))
			// Keep memory and time bounded by the page, not by the store.
			if len(list) == cap(list) && len(list) > limit {
				slices.SortFunc(list, byPath)
				list = list[:limit]
			}
		}
	}
	s.mu.Unlock()
	slices.SortFunc(list, byPath)
	return list[:min(limit, len(list))]
}

func byPath(a, b Entry) int {
	switch {
	case a.Path < b.Path:
		return -1
	case a.Path > b.Path:
		return 1
	}
	return 0
}

// Delete removes a file and reports whether there was one.
func (s *Store) Delete(pub id.PublisherID, path id.Path) bool {
	s.mu.Lock()
	e := s.lookup(pub, path)
	if e != nil {
		s.detach(e)
	}
	s.mu.Unlock()
	if e == nil {
		return false
	}
	s.remove(e)
	return true
}

// drop removes e if it is still in the store.
func (s *Store) drop(e *entry) {
	s.mu.Lock()
	in := e.pos >= 0
	if in {
		s.detach(e)
	}
	s.mu.Unlock()
	if in {
		s.remove(e)
		s.gone(e)
	}
}

// DirUsage is the state of one directory. Sizes are bytes.
type DirUsage struct {
	Path      string
	Used      int64 // by files, in blocks of 4 KiB
	Incoming  int64 // promised to files that are being received
	Limit     int64
	Files     int
	DiskTotal int64 // of the file system; 0 where it does not say
	DiskFree  int64 // likewise, for this process
	Evicted   int64 // files removed for room within the limit, since Open
	NoSpace   int64 // files removed because the disk was full, since Open
	Expired   int64 // files removed at their TTL, since Open
}

// Usage is the state of the store.
type Usage struct {
	Live DirUsage // zero without a live directory
	Data DirUsage
}

// Usage returns the store's state now.
func (s *Store) Usage() Usage {
	var u Usage
	for _, d := range s.dirs() {
		s.mu.Lock()
		usage := DirUsage{
			Path: d.path, Used: d.used, Incoming: d.reserved, Limit: d.limit, Files: d.files,
			Evicted: d.evicted, NoSpace: d.noSpace, Expired: d.expired,
		}
		s.mu.Unlock()
		usage.DiskTotal, usage.DiskFree = d.disk()
		if d == s.data {
			u.Data = usage
		} else {
			u.Live = usage
		}
	}
	return u
}
