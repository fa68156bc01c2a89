package state

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Names below the state's directory.
const (
	snapshotFile = "state.snapshot"
	previousFile = "state.snapshot.prev" // a good one, up to a minute or so older
	tempFile     = "state.snapshot.tmp"
)

const (
	// lazyInterval is how soon writes that nobody waits for are saved.
	lazyInterval = time.Second
	// lazyRate, in bytes/s, bounds what saving them costs a memory card: a large state is saved
	// less often, but at least every lazyLimit.
	lazyRate  = 32 << 10
	lazyLimit = time.Minute
	// previousEvery is how often the snapshot that is replaced is kept.
	previousEvery = time.Minute
)

var errClosed = errors.New("the state is closed")

// saver writes snapshots: soon after changes, and at once when someone waits for it in sync.
type saver struct {
	dir    string
	dump   func(buf []byte) []byte // appends a snapshot
	writes *atomic.Uint64          // grows with each command that may change something
	log    *slog.Logger

	kick chan struct{} // has a value when a batch waits

	mu     sync.Mutex
	next   *batch // those who wait for a snapshot that was not begun yet; nil: nobody
	closed bool

	// Only the goroutine that saves uses these.
	size     int       // of the last snapshot
	failing  bool      // the last one could not be written
	previous time.Time // when previousFile was made
}

// batch is the callers of sync that one snapshot serves.
type batch struct {
	done chan struct{}
	err  error // read after done
}

func newSaver(dir string, writes *atomic.Uint64, dump func([]byte) []byte, log *slog.Logger) *saver {
	return &saver{dir: dir, dump: dump, writes: writes, log: log, kick: make(chan struct{}, 1)}
}

// sync waits for a snapshot that begins after the call. Whether anything changed is not asked:
// writes is counted before a command is carried out, so it cannot prove that one was saved.
func (s *saver) sync(ctx context.Context) error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return errClosed
	}
	if s.next == nil {
		s.next = &batch{done: make(chan struct{})}
	}
	b := s.next
	s.mu.Unlock()
	select {
	case s.kick <- struct{}{}:
	default:
	}
	select {
	case <-b.done:
		return b.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// run saves until ctx ends.
func (s *saver) run(ctx context.Context) {
	tick := time.NewTicker(clockStep)
	defer tick.Stop()
	var lazy lazySchedule
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.kick:
			s.save()
			lazy.saved()
		case now := <-tick.C:
			if lazy.due(now, s.writes.Load(), s.size) {
				s.save()
				lazy.saved()
			}
		}
	}
}

// lazySchedule decides when changes that nobody waits for are saved.
type lazySchedule struct {
	covered uint64    // writes that the last snapshot holds for certain
	seen    uint64    // writes at the last tick
	since   time.Time // when a write beyond covered was first seen; zero: none was
}

// due is asked at every tick, with the number of writes so far and the size of the last snapshot.
func (l *lazySchedule) due(now time.Time, writes uint64, size int) bool {
	before := l.seen
	l.seen = writes
	switch interval := max(lazyInterval, min(lazyLimit, time.Duration(size)*time.Second/lazyRate)); {
	case writes == l.covered:
		l.since = time.Time{}
	case l.since.IsZero():
		l.since = now
	case now.Sub(l.since) >= interval:
		// A write is counted before it is carried out, so those since the last tick may be missing.
		l.seen = before
		return true
	}
	return false
}

// saved is told of each snapshot.
func (l *lazySchedule) saved() { l.covered, l.since = l.seen, time.Time{} }

// close refuses further callers of sync and writes the last snapshot, which serves those who wait.
// run must have returned.
func (s *saver) close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	return s.save()
}

func (s *saver) save() error {
	s.mu.Lock()
	b := s.next
	s.next = nil
	s.mu.Unlock()

	data := s.dump(make([]byte, 0, s.size+s.size/8))
	s.size = len(data)
	err := s.write(data)
	switch {
	case err != nil && !s.failing:
		s.log.Error("The embedded state cannot be saved", "error", err)
	case err == nil && s.failing:
		s.log.Info("The embedded state can be saved again", "dir", s.dir)
	}
	s.failing = err != nil
	if b != nil {
		b.err = err
		close(b.done)
	}
	return err
}

// write makes data the snapshot. When it returns nil, that is so after a power cut, too.
func (s *saver) write(data []byte) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("the embedded state in %s cannot be saved (%s): make room and let this user write there; until then changes are only in memory",
				s.dir, shortCause(err))
		}
	}()
	temp := filepath.Join(s.dir, tempFile)
	if err := writeSynced(temp, data); err != nil {
		return err
	}
	snapshot := filepath.Join(s.dir, snapshotFile)
	if time.Since(s.previous) >= previousEvery {
		s.previous = time.Now()
		previous := filepath.Join(s.dir, previousFile)
		os.Remove(previous)
		os.Link(snapshot, previous) // as good as it gets: some file systems have no links
	}
	if err := os.Rename(temp, snapshot); err != nil {
		return err
	}
	return syncDir(s.dir)
}

func writeSynced(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOTSUP) {
		err = nil // a file system that has nothing to sync there
	}
	return errors.Join(err, d.Close())
}

// loadImage returns the newest good snapshot in dir, nil if there is none. Damaged ones are set
// aside under a name that says so, for whoever wants to look into them.
func loadImage(dir string, log *slog.Logger) (*image, error) {
	damaged := false
	for _, name := range []string{snapshotFile, previousFile} {
		path := filepath.Join(dir, name)
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if errors.Is(err, fs.ErrPermission) {
			return nil, fmt.Errorf("the embedded state %s cannot be read (%s): give it to the user that runs this", path, shortCause(err))
		}
		var img *image
		if err == nil {
			img, err = readImage(data)
		}
		if err == nil {
			if name == previousFile {
				log.Warn("The embedded state is the one before the last", "file", path, "taken", img.wall)
			}
			return img, nil
		}
		damaged = true
		aside := fmt.Sprintf("%s.damaged-%d", filepath.Join(dir, snapshotFile), time.Now().Unix())
		if name == previousFile {
			aside += "-prev"
		}
		if renameErr := os.Rename(path, aside); renameErr != nil {
			return nil, fmt.Errorf("the embedded state %s is damaged (%s) and cannot be set aside (%s): move it away", path, err, shortCause(renameErr))
		}
		log.Error("The embedded state is damaged and was set aside", "file", path, "now", aside, "error", err)
	}
	if damaged {
		log.Error("No good snapshot of the embedded state is left: starting empty", "dir", dir)
	}
	return nil, nil
}

// shortCause is the cause of a file error without the path.
func shortCause(err error) string {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno.Error()
	}
	return err.Error()
}
