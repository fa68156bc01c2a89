package segstore

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"dandelion/pkg/id"
	"dandelion/pkg/wire"
)

// seedsEnv and stepsEnv make TestProperties longer; seedEnv runs one seed, as a failure prints it.
const (
	seedEnv  = "SEGSTORE_TEST_SEED"
	seedsEnv = "SEGSTORE_TEST_SEEDS"
	stepsEnv = "SEGSTORE_TEST_STEPS"
)

func number(t *testing.T, env string, or int) int {
	text := os.Getenv(env)
	if text == "" {
		return or
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("%s is %q: want a number", env, text)
	}
	return n
}

// TestProperties does whatever can happen to a store in random order, beside a model of what it
// must hold: files of all kinds that come whole, short, long or wrong, limits that are reached,
// time, wall clocks that are set or lost, removals, ends, and crashes between any two steps that
// change the disk.
func TestProperties(t *testing.T) {
	t.Parallel()
	first, seeds := 1, number(t, seedsEnv, 8)
	if one := number(t, seedEnv, 0); one != 0 {
		first, seeds = one, 1
	}
	for seed := first; seed < first+seeds; seed++ {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			t.Parallel()
			newRig(t, uint64(seed)).run(number(t, stepsEnv, 400))
		})
	}
}

func (g *rig) run(steps int) {
	acked, refused, evicted, crashes := 0, 0, 0, 0
	for range steps {
		g.wall, g.mono = g.wall.Add(time.Second), g.mono+time.Second
		g.age()
		path := propertyPaths[g.r.IntN(len(propertyPaths))]
		switch g.r.IntN(16) {
		case 0, 1, 2, 3, 4, 5:
			ok, gone := g.store(path)
			if ok {
				acked++
			} else {
				refused++
			}
			evicted += gone
		case 6, 7:
			crashes++
			g.storeAndCrash(path)
		case 8:
			_, had := g.held[path]
			g.note("delete %s", path)
			_, unswept := g.ghosts[path]
			if got := g.s.Delete(pubA, id.Path(path)); got != had && !unswept {
				g.fail("Delete(%s) = %v", path, got)
			}
			delete(g.held, path)
		case 9:
			crashes++
			g.note("crash in delete %s", path)
			done := crashWithin(g.s, g.r.IntN(4), func() { g.s.Delete(pubA, id.Path(path)) })
			if done {
				delete(g.held, path)
			}
			g.afterCrash(nil, func(p string) bool { return p == path })
		case 10, 11:
			g.pass()
			g.look()
		case 12:
			crashes++
			g.pass()
			g.jump()
			g.lookAndCrash()
		case 13:
			g.jump()
			if g.r.IntN(2) == 0 {
				g.look()
			}
		case 14:
			crashes++
			g.note("crash while a file comes in")
			if w, err := g.s.Create(Meta{Publisher: pubA, Path: id.Path(path), Size: -1}); err == nil {
				w.Write(content(1, 1000))
			}
			g.forgetEvicted(nil, 0)
			g.reopen()
		case 15:
			g.note("end and start")
			g.reopen()
		}
		g.verify()
		if g.r.IntN(8) == 0 {
			checkDisk(g.t, g.s)
		}
		if g.t.Failed() {
			g.fail("see above")
		}
	}
	g.look()
	checkDisk(g.t, g.s)
	if acked < steps/20 || refused == 0 || evicted == 0 || crashes == 0 {
		g.t.Errorf("proves little: %d files acknowledged, %d refused, %d evicted, %d crashes", acked, refused, evicted, crashes)
	}
}

// pass lets time go by.
func (g *rig) pass() {
	d := []time.Duration{time.Second, time.Minute, 20 * time.Minute, 2 * time.Hour}[g.r.IntN(4)]
	g.wall, g.mono = g.wall.Add(d), g.mono+d
	g.age()
	g.note("%v go by", d)
}

// jump sets the wall clock, to 1970 and back too. What it ends is a matter of scanned files alone.
func (g *rig) jump() {
	switch g.r.IntN(4) {
	case 0:
		g.wall = time.Unix(int64(g.r.IntN(100_000)), 0)
	case 1, 2:
		g.wall = firstSane.Add(1000*time.Hour + g.mono)
	case 3:
		g.wall = g.wall.Add(time.Duration(g.r.IntN(7200)-3600) * time.Second)
	}
	g.awake()
	g.age()
	g.note("the clock is set")
}

// look is what Run does.
func (g *rig) look() {
	g.note("look")
	g.s.look()
	for path, b := range g.renamed() {
		g.held[path] = b
	}
	g.offset = time.Duration(g.wall.UnixNano()) - g.mono
}

func (g *rig) lookAndCrash() {
	g.t.Helper()
	g.note("crash in look")
	next := g.renamed()
	done := crashWithin(g.s, g.r.IntN(6), func() { g.s.look() })
	if done {
		for path, b := range next {
			g.held[path] = b
		}
		next = nil
	}
	g.afterCrash(next, func(string) bool { return false })
}

// store sends a file, right or wrong, and reports whether it was acknowledged and how many went
// for it.
func (g *rig) store(path string) (acked bool, evicted int) {
	g.t.Helper()
	b, ttl := g.anyFile()
	m := Meta{Publisher: pubA, Path: id.Path(path), TTL: ttl, Size: int64(len(b)), Digest: id.DigestOf(b)}
	before := g.s.Usage()
	w, err := g.s.Create(m)
	if err != nil {
		g.note("store %s, %d bytes for %v: %v", path, len(b), ttl, err)
		if kind := kindOf(err); kind != wire.KindFull && kind != wire.KindTooLarge {
			g.fail("refused: %v", err)
		}
		if gone := g.forgetEvicted(nil, 0); gone > 0 {
			g.fail("%d files went for one that was refused", gone)
		}
		return false, 0
	}
	used := before.Data
	if w.d == g.s.live {
		used = before.Live
	}
	evicted = g.forgetEvicted(w, used.Used)
	defer w.Cancel()
	send, want := b, wire.Kind("")
	switch g.r.IntN(8) {
	case 0:
		send, want = b[:len(b)-1], wire.KindSize
	case 1:
		send, want = append(slices.Clone(b), 1), wire.KindSize
	case 2:
		send, want = append(slices.Clone(b[:len(b)-1]), b[len(b)-1]+1), wire.KindDigest
	case 3:
		g.note("store %s and cancel", path)
		w.Write(b[:len(b)/2])
		return false, evicted
	}
	g.note("store %s, %d of %d bytes for %v", path, len(send), len(b), ttl)
	_, err = w.ReadFrom(bytes.NewReader(send))
	if err == nil {
		_, err = w.Commit()
	}
	if want != "" {
		if kindOf(err) != want {
			g.fail("%v, want a refusal of kind %s", err, want)
		}
		return false, evicted
	}
	if err != nil {
		g.fail("%v", err)
	}
	g.held[path] = g.stored(path, b, ttl)
	return true, evicted
}

func (g *rig) anyFile() ([]byte, time.Duration) {
	ttls := []time.Duration{0, 10 * time.Second, 5 * time.Minute, 14 * time.Minute, time.Hour, 5 * time.Hour}
	return bodyNumber(g.r.IntN(bodies)), ttls[g.r.IntN(len(ttls))]
}

// forgetEvicted takes out of the model what the store has removed for w, and checks that it had to go,
// and by the rules. used is what w's directory held before.
func (g *rig) forgetEvicted(w *Writer, used int64) (gone int) {
	g.t.Helper()
	var victims, stay []body
	freed, largest := int64(0), int64(0)
	for _, path := range propertyPaths {
		b, ok := g.held[path]
		if !ok {
			continue
		}
		e, there := g.s.Get(pubA, id.Path(path))
		if there && e.Digest == id.DigestOf(b.bytes) {
			g.s.mu.Lock()
			if w != nil && g.s.lookup(pubA, id.Path(path)).dir == w.d {
				stay = append(stay, b)
			}
			g.s.mu.Unlock()
			continue
		}
		gone++
		victims = append(victims, b)
		freed, largest = freed+charge(int64(len(b.bytes))), max(largest, charge(int64(len(b.bytes))))
		delete(g.held, path)
	}
	if w == nil || gone == 0 {
		return gone
	}
	// Files that had expired and that nobody had swept yet are in used, and not in freed.
	if used-freed+largest+w.reserved <= w.d.limit {
		g.fail("%d bytes went for %d, with %d of %d used", freed, w.reserved, used, w.d.limit)
	}
	for _, v := range victims {
		left, timed := g.left(v)
		for _, other := range stay {
			otherLeft, otherTimed := g.left(other)
			switch {
			case v.kind != queueKept && (w.m.TTL == 0 || other.kind == queueKept):
				g.fail("a file with a TTL went before one without, or for one")
			case v.kind != queueKept && timed && otherTimed && left > otherLeft+near:
				g.fail("a file with %v left went before one with %v", left, otherLeft)
			}
		}
	}
	return gone
}

// storeAndCrash crashes within a commit, or the eviction for it.
func (g *rig) storeAndCrash(path string) {
	g.t.Helper()
	b, ttl := g.anyFile()
	u := g.s.Usage().Data
	if ttl > 0 && ttl <= LiveTTL {
		u = g.s.Usage().Live
	}
	fits := u.Used+charge(int64(len(b))) <= u.Limit
	next := g.stored(path, b, ttl)
	old := g.held[path]
	again := !fits && bytes.Equal(old.bytes, b)
	if again { // the old one may go for itself
		next = g.until(body{bytes: b}, ttl)
	}
	g.note("crash in storing %s, %d bytes for %v", path, len(b), ttl)
	var err error
	done := crashWithin(g.s, g.r.IntN(9), func() { _, err = put(g.s, pubA, path, ttl, b) })
	if done && err == nil && !again {
		g.held[path] = next
		g.afterCrash(nil, func(p string) bool { return p != path && !fits })
		return
	}
	acked := done && err == nil
	g.afterCrash(map[string]body{path: next}, func(p string) bool { return !fits && !(acked && p == path) })
}

// afterCrash starts the store again and takes over what it holds: each file is as it was, or as in
// next; or gone, where it had expired or mayGo says so.
func (g *rig) afterCrash(next map[string]body, mayGo func(path string) bool) {
	g.t.Helper()
	g.reopen()
	for _, path := range propertyPaths {
		old, had := g.held[path]
		now, will := next[path]
		now = g.revived(now)
		f, e, err := g.s.Open(pubA, id.Path(path))
		if errors.Is(err, fs.ErrNotExist) {
			if had && !mayGo(path) && !g.ended(old) && !(will && g.ended(now)) {
				g.fail("%s is gone after a crash", path)
			}
			delete(g.held, path)
			continue
		}
		if err != nil {
			g.fail("%s: %v", path, err)
		}
		f.Close()
		switch {
		case had && g.is(path, e, old):
		case will && g.is(path, e, now):
			g.held[path] = now
		case !had && e.Digest == id.DigestOf(g.ghosts[path].bytes):
			g.held[path], _ = g.found(path)
		default:
			found, _ := g.found(path)
			g.fail("%s is after a crash %v; neither as before (%v), %v, nor as stored last (%v), %v", path, found, had, old, will, now)
		}
	}
}
