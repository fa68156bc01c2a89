package segstore

import (
	"bytes"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"testing"
	"time"

	"dandelion/pkg/id"
)

// body is a file that the store acknowledged, or may hold after a crash.
type body struct {
	bytes []byte
	// The time that ends it: kept without one, by the monotonic clock, or by the wall's.
	kind int // queueKept, queueMono, queueWall
	mono time.Duration
	wall time.Time
	// What the name on disk says; while the clock was not set, the time left.
	named time.Time
	left  time.Duration
}

func (b body) String() string {
	return fmt.Sprintf("%d bytes, until %d %v %v, named %v %v", len(b.bytes), b.kind, b.mono, b.wall, b.named, b.left)
}

// rig is a store, its clocks, and the model.
type rig struct {
	t    *testing.T
	r    *rand.Rand
	cfg  Config
	s    *Store
	wall time.Time
	mono time.Duration
	// offset is the wall clock less the other when Run last looked.
	offset time.Duration
	held   map[string]body
	// ghosts have expired, and nobody has looked since. Where the clock was set, or the process started
	// again without one, they may have got more time.
	ghosts map[string]body
	awoken map[string]bool
	log    []string
}

var propertyPaths = []string{"/a", "/b/c", "/b/d", "/b/e/f", "/live/s/r/0123456789ab/0.ts", "/live/s/r/123456789abc/1.ts", "/x/y/z", "/x/y/w", "/k"}

func newRig(t *testing.T, seed uint64) *rig {
	g := &rig{t: t, r: rand.New(rand.NewPCG(seed, 2)), cfg: testConfig(t), held: make(map[string]body), ghosts: make(map[string]body), awoken: make(map[string]bool)}
	g.cfg.LiveLimit, g.cfg.StorageLimit = 9*4096, 11*4096
	g.wall = firstSane.Add(1000 * time.Hour)
	if g.r.IntN(2) == 0 {
		g.wall = time.Unix(3600, 0) // a device without a battery for its clock
	}
	g.open()
	return g
}

func (g *rig) fail(format string, args ...any) {
	g.t.Helper()
	for _, line := range g.log[max(0, len(g.log)-12):] {
		g.t.Log(line)
	}
	g.t.Fatalf(format, args...)
}

func (g *rig) note(format string, args ...any) {
	g.log = append(g.log, fmt.Sprintf("%v %v: ", g.wall.UTC().Format(time.DateTime), g.mono)+fmt.Sprintf(format, args...))
}

func (g *rig) sane() bool { return g.wall.After(firstSane) }

func (g *rig) open() {
	g.t.Helper()
	var err error
	g.s, err = openAt(g.cfg, slog.New(slog.DiscardHandler), func() (time.Time, time.Duration) { return g.wall, g.mono })
	if err != nil {
		g.fail("open: %v", err)
	}
	g.t.Cleanup(g.s.Close)
	g.offset = time.Duration(g.wall.UnixNano()) - g.mono
}

// reopen starts the store again and makes the model what a new process knows.
func (g *rig) reopen() {
	g.t.Helper()
	g.s.Close() // does nothing to files
	for path, b := range g.held {
		g.held[path] = g.revived(b)
	}
	g.awake()
	g.open()
	checkDisk(g.t, g.s)
}

// revived is what a new process knows of a file.
func (g *rig) revived(b body) body {
	switch {
	case b.kind == queueKept:
	case b.named.IsZero():
		b.kind, b.mono = queueMono, g.mono+b.left
		if g.sane() {
			b = g.name(b)
		}
	default:
		b.kind, b.wall = queueWall, b.named
	}
	return b
}

// near is how close to its end a file may be there or not: names have milliseconds.
const near = 5 * time.Millisecond

// left is how much time a file has; timed is false where nothing ends it now.
func (g *rig) left(b body) (left time.Duration, timed bool) {
	switch b.kind {
	case queueMono:
		return b.mono - g.mono, true
	case queueWall:
		return b.wall.Sub(g.wall), g.sane()
	}
	return 0, false
}

// until sets the end of a file that is stored or extended now.
func (g *rig) until(b body, ttl time.Duration) body {
	b.kind, b.named, b.left = queueKept, time.Time{}, 0
	if ttl > 0 {
		b.kind, b.mono = queueMono, g.mono+ttl
		b = g.name(b)
	}
	return b
}

// name sets what the disk says of a file that this process times.
func (g *rig) name(b body) body {
	b.named, b.left = time.Time{}, b.mono-g.mono
	if g.sane() {
		b.named = g.wall.Add(b.left)
	}
	return b
}

// age moves files that have expired from held to ghosts, and back where a clock was set back.
func (g *rig) age() {
	for path, b := range g.held {
		if left, timed := g.left(b); timed && left <= 0 {
			g.ghosts[path] = b
			delete(g.held, path)
		}
	}
	for path, b := range g.ghosts {
		_, replaced := g.held[path]
		found, there := g.found(path)
		switch {
		case replaced || !there || !bytes.Equal(found.bytes, b.bytes):
			delete(g.ghosts, path)
			delete(g.awoken, path)
		case g.awoken[path] && !g.ended(found):
			g.held[path] = found
		}
	}
}

// awake says that ghosts may be there again from now on.
func (g *rig) awake() {
	for path := range g.ghosts {
		g.awoken[path] = true
	}
}

// found is what the store says of a path, expired or not.
func (g *rig) found(path string) (body, bool) {
	g.s.mu.Lock()
	defer g.s.mu.Unlock()
	e := g.s.lookup(pubA, id.Path(path))
	if e == nil {
		return body{}, false
	}
	b := body{bytes: bodyOf[e.digest], kind: int(e.queue)}
	switch b.kind {
	case queueMono:
		b.mono, b.left = time.Duration(e.key), time.Duration(e.expires)*time.Millisecond
		if named := time.UnixMilli(e.expires); named.After(firstSane) {
			b.named, b.left = named, 0
		}
	case queueWall:
		b.wall, b.named = time.UnixMilli(e.key), time.UnixMilli(e.key)
	}
	return b, true
}

// bodyOf is every file that anyFile makes, by its digest.
var bodyOf = func() map[id.Digest][]byte {
	all := make(map[id.Digest][]byte)
	for i := range bodies {
		b := bodyNumber(i)
		all[id.DigestOf(b)] = b
	}
	return all
}()

const bodies = 12

func bodyNumber(i int) []byte { return content(i, 100+i%4*5000) }

// verify compares the store with the model.
func (g *rig) verify() {
	g.t.Helper()
	g.age()
	for _, path := range propertyPaths {
		b, ok := g.held[path]
		ghost := g.ghosts[path]
		if g.awoken[path] {
			ghost, _ = g.found(path)
		}
		if ok && g.ended(b) || !ok && g.ended(ghost) && !g.longEnded(ghost) {
			continue
		}
		if got := get(g.t, g.s, pubA, path); !bytes.Equal(got, b.bytes) || (got == nil) == ok {
			g.fail("%s has %d bytes, want %d (%v)", path, len(got), len(b.bytes), b.kind)
		}
	}
	u := g.s.Usage()
	for _, d := range []DirUsage{u.Live, u.Data} {
		if d.Used+d.Incoming > d.Limit {
			g.fail("%s: %d bytes used and %d promised, limit %d", d.Path, d.Used, d.Incoming, d.Limit)
		}
	}
}

// renamed are the files whose names a look changes, with what they say then.
func (g *rig) renamed() map[string]body {
	changed := make(map[string]body)
	if moved := time.Duration(g.wall.UnixNano()) - g.mono - g.offset; moved.Abs() <= jump {
		return nil
	}
	for path, b := range g.held {
		if b.kind == queueMono {
			changed[path] = g.name(b)
		}
	}
	return changed
}

// stored is the model of a path after a commit there: the same bytes again keep the later end.
func (g *rig) stored(path string, b []byte, ttl time.Duration) body {
	old, had := g.held[path]
	if had && bytes.Equal(old.bytes, b) {
		left, timed := g.left(old)
		if old.kind == queueKept || !timed && ttl > 0 || timed && ttl > 0 && left >= ttl {
			return old
		}
	}
	return g.until(body{bytes: b}, ttl)
}

// ended reports whether a file may have expired, longEnded whether it must have.
func (g *rig) ended(b body) bool {
	left, timed := g.left(b)
	return timed && left < near
}

func (g *rig) longEnded(b body) bool {
	left, timed := g.left(b)
	return timed && left < -near
}

// is reports whether the store has that file at a path, with that end.
func (g *rig) is(path string, e Entry, b body) bool {
	g.s.mu.Lock()
	found := g.s.lookup(pubA, id.Path(path))
	kind, key := int(found.queue), found.key
	g.s.mu.Unlock()
	if e.Digest != id.DigestOf(b.bytes) || kind != b.kind {
		return false
	}
	switch kind {
	case queueMono:
		return (time.Duration(key) - b.mono).Abs() < near
	case queueWall:
		return time.UnixMilli(key).Sub(b.wall).Abs() < near
	}
	return true
}
