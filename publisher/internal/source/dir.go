package source

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"dandelion/pkg/id"

	"github.com/fsnotify/fsnotify"
)

// Periods of a directory.
const (
	rescanEvery = time.Second            // finds what no event told: inotify queues overflow, network file systems have none
	pollEvery   = 200 * time.Millisecond // instead, where there are no events at all
	settleAfter = 2 * time.Second        // a playlist that stays as it is so long is not being written
)

// dir is the source "dir:": a directory into which ffmpeg, nginx-rtmp or OBS writes HLS.
type dir struct {
	path   string
	log    *slog.Logger
	every  time.Duration // rescanEvery, but for tests
	settle time.Duration // settleAfter, but for tests

	mu   sync.Mutex // guards root
	root *os.Root   // nil while the directory is not there

	// Owned by Run.
	watcher   *fsnotify.Watcher // nil where there are no events
	playlists map[string]*listed
	multiPath string // of the multivariant playlist in use
	said      string // the problem that was logged last
	came      bool   // there was something to publish
	saidMore  map[string]bool
}

func newDir(name string, log *slog.Logger) (*dir, error) {
	if !filepath.IsAbs(name) {
		return nil, fmt.Errorf(`source directory %s: want an absolute path, such as "dir:/var/hls/demo"`, id.Quote(name))
	}
	return &dir{
		path: filepath.Clean(name), log: log, every: rescanEvery, settle: settleAfter,
		playlists: map[string]*listed{}, saidMore: map[string]bool{},
	}, nil
}

func (d *dir) Run(ctx context.Context, update func(Update)) error {
	defer d.detach()
	every := d.every
	var events chan fsnotify.Event
	var failures chan error
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		d.log.Warn("no file events from the system, looking every time instead", "every", pollEvery, "err", err)
		every = pollEvery
	} else {
		defer watcher.Close()
		d.watcher, events, failures = watcher, watcher.Events, watcher.Errors
	}
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	update(d.rescan())
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			update(d.rescan())
		case <-failures: // an overflow: anything can have happened
			update(d.rescan())
		case event := <-events:
			if names := d.drain(event, events); len(names) > 0 {
				update(d.reread(names))
			}
		}
	}
}

// drain takes the events that are there already, and returns the playlists that they name.
func (d *dir) drain(event fsnotify.Event, more chan fsnotify.Event) map[string]bool {
	names := map[string]bool{}
	for range 1000 {
		if strings.HasSuffix(event.Name, ".m3u8") && event.Op != fsnotify.Chmod {
			if name, err := filepath.Rel(d.path, event.Name); err == nil {
				names[filepath.ToSlash(name)] = true
			}
		}
		select {
		case event = <-more:
		default:
			return names
		}
	}
	return names
}

// reread is the short way after an event: only what it names is read again.
func (d *dir) reread(names map[string]bool) Update {
	for name := range names {
		known := d.playlists[name]
		if known == nil {
			return d.rescan()
		}
		d.read(known, true)
	}
	return d.collect()
}

// rescan looks at everything.
func (d *dir) rescan() Update {
	if problem := d.attach(); problem != "" {
		return Update{Problem: d.say(problem)}
	}
	for name := range d.find() {
		if d.playlists[name] == nil {
			d.playlists[name] = &listed{path: name}
		}
	}
	for name, known := range d.playlists {
		if d.read(known, false); known.gone && name != d.multiPath {
			delete(d.playlists, name)
		}
	}
	return d.collect()
}

// attach opens the directory, again if it was replaced, and returns what is wrong with it.
func (d *dir) attach() string {
	now, err := os.Stat(d.path)
	if d.root != nil && err == nil {
		if was, rootErr := d.root.Stat("."); rootErr == nil && os.SameFile(was, now) {
			d.watch(d.path)
			return ""
		}
	}
	d.detach()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Sprintf("source directory %s does not exist; waiting for the encoder to make it", d.path)
	case err != nil:
		return fmt.Sprintf("source directory %s cannot be read: %v", d.path, err)
	case !now.IsDir():
		return fmt.Sprintf("source %s is not a directory", d.path)
	}
	root, err := os.OpenRoot(d.path)
	if err != nil {
		return fmt.Sprintf("source directory %s cannot be read: %v", d.path, err)
	}
	d.mu.Lock()
	d.root = root
	d.mu.Unlock()
	d.watch(d.path)
	return ""
}

func (d *dir) detach() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.root != nil {
		d.root.Close()
		d.root = nil
	}
	clear(d.playlists)
}

// watch asks for the events of a directory. To ask again is cheap, and needed: the directory
// may have been replaced by another of the same name. Without events rescans still work.
func (d *dir) watch(name string) {
	if d.watcher == nil {
		return
	}
	if err := d.watcher.Add(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		d.sayMore("cannot watch a directory, looking once a second instead", "directory", name, "err", err)
	}
}

// find returns the playlists to read: those in the directory itself and, where it has none,
// those one level below, as nginx-rtmp nests them. What a multivariant playlist names is
// added by collect, at any depth.
func (d *dir) find() map[string]bool {
	names := map[string]bool{}
	folders := d.list(".", names)
	if len(names) > 0 {
		return names
	}
	for _, folder := range folders {
		d.watch(filepath.Join(d.path, folder))
		d.list(folder, names)
	}
	return names
}

// list adds the playlists in one folder to names and returns the folders in it.
func (d *dir) list(folder string, names map[string]bool) (folders []string) {
	f, err := d.root.Open(folder)
	if err != nil {
		return nil
	}
	defer f.Close()
	for {
		entries, err := f.ReadDir(1000)
		for _, entry := range entries {
			switch {
			case entry.IsDir() && len(folders) < MaxListings:
				folders = append(folders, entry.Name())
			case strings.HasSuffix(entry.Name(), ".m3u8") && len(names) < MaxListings:
				names[path.Join(folder, entry.Name())] = true
			}
		}
		if err != nil {
			return folders
		}
	}
}

func (d *dir) Open(base, uri string) (*File, error) {
	names, err := candidates(base, uri)
	if err != nil {
		return nil, err
	}
	var first error
	for _, name := range names {
		f, err := d.open(name)
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return f, err
		}
		if first == nil {
			first = err
		}
	}
	return nil, first
}

func (d *dir) open(name string) (*File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.root == nil {
		return nil, fmt.Errorf("%s: %w", d.path, fs.ErrNotExist)
	}
	// A name that is a pipe must not hold us up.
	f, err := d.root.OpenFile(filepath.FromSlash(name), os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		if escapes(err) {
			return nil, fmt.Errorf("%w: %s leads out of %s", ErrRefused, name, d.path)
		}
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%w: %s is not a file", ErrRefused, name)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &File{File: f, Name: name, Was: statOf(info)}, nil
}

// escapes reports whether os.Root refused a link that leads out. It has no exported error
// for that: what it says is a PathError around an error that is not of the system.
func escapes(err error) bool {
	var pathErr *fs.PathError
	var errno syscall.Errno
	return errors.As(err, &pathErr) && !errors.As(err, &errno) && !errors.Is(err, fs.ErrNotExist)
}
