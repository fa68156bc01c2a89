// Package stream is the stream model (docs/architecture.md, "The stream model"): per stream a
// set of renditions, each a persisted window of entries with sequence numbers of its own that
// never fall, and the playlists that viewers see, rendered from it. It takes what a source
// lists, copies each segment once into the window, offers it to placement and shows it when
// a box holds it or when waiting longer would hurt. It owns the window's files. It knows
// nothing of boxes, sockets or HTTP.
package stream

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"dandelion/pkg/id"
	"dandelion/publisher/internal/source"

	"golang.org/x/sync/errgroup"
)

// Config says what a stream is.
type Config struct {
	Name        id.StreamName
	Source      string        // "dir:/var/hls/demo"
	SegmentTTL  time.Duration // how long boxes keep a segment; 0: auto, twice the window and the longest segment
	Dir         string        // of this stream alone: state.json and window/
	WindowLimit int64         // bytes of the window on disk, oldest out first; 0: 1 GiB
	Boxes       func() int    // boxes that segments can be placed on now; 0 or nil: entries do not wait for one
	// Patience is how long an entry waits for boxes that hold it before it is shown, in target durations; nil:
	// half of one.
	Patience func() float64
}

const defaultWindowLimit = 1 << 30

// Placer places segments on boxes. Place is called from one goroutine, in the order in which
// viewers need the segments, and must not block. It may be called again with a segment that
// it knows: the window recovers it after a restart, and an encoder may list the same bytes twice.
type Placer interface {
	Place(Segment)
}

// Segment is one complete segment in the window. It never changes.
type Segment struct {
	Path     id.Path
	Digest   id.Digest
	Size     int64
	File     string // name of the window's copy; gone when the window has dropped it
	Duration time.Duration
	TTL      time.Duration
	Complete time.Time // when the source had it whole
	Deadline time.Time // when viewers see it even if no box holds it
	Expires  time.Time // Complete + TTL: of no use on a box afterwards
}

// Rendered is a playlist as viewers get it.
type Rendered struct {
	Body     []byte // not to be changed
	ETag     string // with its quotes
	Modified time.Time
	MaxAge   time.Duration // how long a cache may serve it without asking
}

// Info says what Open opened.
type Info struct {
	Digest    id.Digest
	Size      int64
	Expires   time.Time // of its copies on boxes; zero where it is not placed
	Placeable bool      // a segment; init segments and keys are not placed, the front serves them
}

// Stream is one stream. Load comes first, once; then all methods but Run may be called from any
// goroutine, before, while and after Run runs.
type Stream struct {
	cfg    Config
	log    *slog.Logger
	placer Placer
	src    source.Source
	window *window
	write  func(name string, state *stateFile) error // writeState, but for tests
	dirty  chan struct{}                             // has an element when the state changed since it was written

	pages atomic.Pointer[map[string]Rendered] // by name, see Playlist

	mu         sync.Mutex // guards what is below and all renditions; never held while files are copied or synced
	renditions []*rendition
	files      map[id.Path]*file
	pending    map[id.Path][]*entry // entries that wait for a box
	index      index
	version    uint64 // of the state in memory; counts up
	saved      uint64 // of the state on disk
	floor      floor  // of the numbers of new renditions
	checked    bool   // the configured TTL was long enough for the first listings
	problems   [problemKinds]string
}

// What can be wrong with a stream, the most telling first.
const (
	problemTTL = iota
	problemDisk
	problemState
	problemSource
	problemLimit
	problemKinds
)

// file is what stands behind a path: a segment, an init segment or a key.
type file struct {
	digest  id.Digest
	size    int64
	asset   bool // an init segment or a key
	refs    int  // entries that need it
	expires time.Time
}

// New makes a stream. An error says what is wrong with cfg. It touches nothing before Load.
func New(cfg Config, p Placer, log *slog.Logger) (*Stream, error) {
	if _, err := id.ParseStreamName(string(cfg.Name)); err != nil {
		return nil, err
	}
	if cfg.SegmentTTL < 0 {
		return nil, fmt.Errorf("stream %s: segment_ttl %v is negative: want auto or a duration", cfg.Name, cfg.SegmentTTL)
	}
	if cfg.WindowLimit <= 0 {
		cfg.WindowLimit = defaultWindowLimit
	}
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("stream %s: %w", cfg.Name, err)
	}
	cfg.Dir = dir
	log = log.With("stream", cfg.Name)
	src, err := source.New(cfg.Source, log)
	if err != nil {
		return nil, fmt.Errorf("stream %s: %w", cfg.Name, err)
	}
	s := &Stream{
		cfg: cfg, log: log, placer: p, src: src,
		window: newWindow(filepath.Join(dir, "window")),
		write:  writeState,
		dirty:  make(chan struct{}, 1),
		files:  map[id.Path]*file{}, pending: map[id.Path][]*entry{},
	}
	s.pages.Store(&map[string]Rendered{})
	return s, nil
}

// Run offers the live segments that Load found again and follows the source until ctx ends.
// Trouble with the source is logged and shown by Status, never returned.
func (s *Stream) Run(ctx context.Context) error {
	now := time.Now()
	for _, seg := range s.Segments() {
		if seg.Expires.After(now) {
			s.placer.Place(seg)
		}
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		return s.src.Run(ctx, func(u source.Update) { s.update(ctx, time.Now(), u) })
	})
	group.Go(func() error { s.keep(ctx); return nil })
	return group.Wait()
}

// keep writes the state when it changed and shows entries whose time has come. One goroutine
// for both: what is shown waits for what is written anyway.
func (s *Stream) keep(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			s.save(time.Now())
			return
		case <-s.dirty:
		case <-timer.C:
		}
		saved := s.save(time.Now())
		next := s.tick(time.Now())
		if !saved {
			next = time.Second
		}
		timer.Reset(next)
	}
}

// Placed says that a box holds the segment, so that viewers may see it.
func (s *Stream) Placed(path id.Path) { s.placed(time.Now(), path) }

func (s *Stream) placed(now time.Time, path id.Path) {
	s.mu.Lock()
	defer s.mu.Unlock()
	waiting := s.pending[path]
	if len(waiting) == 0 {
		return
	}
	delete(s.pending, path)
	for _, e := range waiting {
		e.released = true
	}
	s.show(now)
}

// Playlist returns a playlist by its name below the stream: "index.m3u8" or
// "<rendition>/index.m3u8". It takes no lock.
func (s *Stream) Playlist(name string) (Rendered, bool) {
	page, ok := (*s.pages.Load())[name]
	return page, ok
}

// Lookup returns what the window holds at a path, without touching the disk.
func (s *Stream) Lookup(path id.Path) (Info, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	held := s.files[path]
	if held == nil {
		return Info{}, false
	}
	return Info{Digest: held.digest, Size: held.size, Expires: held.expires, Placeable: !held.asset}, true
}

// Open opens a file of the window: a segment, init segment or key. The error is
// fs.ErrNotExist where the window does not hold it.
func (s *Stream) Open(path id.Path) (*os.File, Info, error) {
	info, ok := s.Lookup(path)
	if !ok {
		return nil, Info{}, fmt.Errorf("%s: %w", path, fs.ErrNotExist)
	}
	f, err := os.Open(s.window.name(info.Digest))
	if err != nil {
		return nil, Info{}, err
	}
	return f, info, nil
}

// Segments returns the segments of the live window, also those that viewers do not see yet,
// oldest first.
func (s *Stream) Segments() []Segment {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []Segment
	for _, r := range s.renditions {
		for _, e := range r.entries[r.start:] {
			if s.files[e.Path] != nil {
				all = append(all, s.segment(e))
			}
		}
	}
	slices.SortStableFunc(all, func(a, b Segment) int { return a.Complete.Compare(b.Complete) })
	return all
}

func (s *Stream) segment(e *entry) Segment {
	return Segment{
		Path: e.Path, Digest: e.Digest, Size: e.Size, File: s.window.name(e.Digest),
		Duration: e.Listed.Duration.Value, TTL: e.TTL,
		Complete: e.Complete, Deadline: e.deadline, Expires: e.Complete.Add(e.TTL),
	}
}

// setProblem notes what is wrong, or with "" that it is not any more, and reports whether
// that is new.
func (s *Stream) setProblem(kind int, problem string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.problems[kind]
	s.problems[kind] = problem
	return problem != was
}

// report is setProblem for what must be in the log, once.
func (s *Stream) report(kind int, problem string) {
	if s.setProblem(kind, problem) {
		s.log.Error("stream has a problem", "problem", problem)
	}
}

// changed makes the state newer than what is on disk. Called with mu held.
func (s *Stream) changed() uint64 {
	s.version++
	select {
	case s.dirty <- struct{}{}:
	default:
	}
	return s.version
}

// hold counts one more entry that needs the file at path. Called with mu held.
func (s *Stream) hold(path id.Path, digest id.Digest, size int64, asset bool) *file {
	held := s.files[path]
	if held == nil {
		held = &file{digest: digest, size: size, asset: asset}
		s.files[path] = held
		s.window.keep(digest)
	}
	held.refs++
	return held
}

// release is the reverse of hold; the last one lets the window delete the bytes.
func (s *Stream) release(path id.Path) {
	held := s.files[path]
	if held == nil {
		return
	}
	if held.refs--; held.refs > 0 {
		return
	}
	delete(s.files, path)
	if err := s.window.drop(held.digest); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log.Warn("a file of the window cannot be deleted", "path", path, "err", err)
	}
}
