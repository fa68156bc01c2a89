package segstore

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"dandelion/pkg/id"
	"dandelion/pkg/wire"
)

// Hard links are what a commit is made of.
func TestNoHardLinks(t *testing.T) {
	t.Parallel()
	s := open(t, testConfig(t))
	d := &dir{path: "/media/stick", root: s.data.root}
	if err := os.Symlink("nowhere", filepath.Join(s.data.path, incomingDir, "probe-link")); err != nil { // a link cannot be made there
		t.Fatal(err)
	}
	err := d.probeLinks()
	if err == nil || !bytes.Contains([]byte(err.Error()), []byte("/media/stick: its file system has no hard links")) {
		t.Errorf("probe: %v", err)
	}
	os.Remove(filepath.Join(s.data.path, incomingDir, "probe-link"))
}

// Many writers, readers and removals at once on few paths: what is read always belongs together
// (get checks it), and in the end index, accounts and disk agree.
func TestConcurrent(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.LiveLimit, cfg.StorageLimit = 300_000, 300_000 // evictions too
	s := open(t, cfg)
	bodies := make([][]byte, 20)
	for i := range bodies {
		bodies[i] = content(i, 1000*(1+i))
	}
	var wg sync.WaitGroup
	for worker := range 12 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(worker), 7))
			for range 300 {
				path := fmt.Sprintf("/d%d/e/f%d", r.IntN(4), r.IntN(4))
				switch r.IntN(10) {
				case 0, 1, 2, 3:
					ttl := []time.Duration{0, time.Minute, 2 * time.Minute, time.Hour}[r.IntN(4)]
					_, err := put(s, pubA, path, ttl, bodies[r.IntN(len(bodies))])
					if err != nil && kindOf(err) != wire.KindFull {
						t.Errorf("storing: %v", err)
					}
				case 4:
					s.Delete(pubA, id.Path(path))
				case 5:
					s.Have(pubA, "/d1", 5)
					s.Usage()
				case 6:
					s.sweep()
					s.rename(s.instant())
				default:
					get(t, s, pubA, path)
				}
			}
		})
	}
	wg.Wait()
	checkDisk(t, s)
	for _, d := range s.dirs() {
		if d.used > d.limit {
			t.Errorf("%s: %d bytes used, limit %d", d.path, d.used, d.limit)
		}
	}
	s.Close()
	checkDisk(t, open(t, cfg))
}

// Two writers of one path at once: both end, and the later commit's bytes are there.
func TestSamePathAtOnce(t *testing.T) {
	t.Parallel()
	s := open(t, testConfig(t))
	first, err := s.Create(Meta{Publisher: pubA, Path: "/a", TTL: time.Hour, Size: 3})
	if err != nil {
		t.Fatal(err)
	}
	second, err := s.Create(Meta{Publisher: pubA, Path: "/a", TTL: time.Minute, Size: 3})
	if err != nil {
		t.Fatal(err)
	}
	second.Write([]byte("two"))
	first.Write([]byte("one"))
	for _, w := range []*Writer{second, first} {
		if _, err := w.Commit(); err != nil {
			t.Error(err)
		}
	}
	if got := get(t, s, pubA, "/a"); string(got) != "one" {
		t.Errorf("got %q, want what was committed last", got)
	}
	if _, err := first.Commit(); err == nil {
		t.Error("a second Commit succeeded")
	}
	checkDisk(t, s)
}

func TestSyncData(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.SyncData = true
	s := open(t, cfg)
	mustPut(t, s, pubA, "/d/a", time.Hour, []byte("x"))
	mustPut(t, s, pubA, "/d/a", 0, []byte("y"))
	mustPut(t, s, pubA, "/d/b", time.Minute, []byte("z"))
	if len(checkDisk(t, s)) != 2 {
		t.Error("not what was stored")
	}
}

func TestUnknownPublisher(t *testing.T) {
	t.Parallel()
	s := open(t, testConfig(t))
	if _, _, err := s.Open(pubB, "/a"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open: %v", err)
	}
	if s.Have(pubB, "", 10) != nil || s.Delete(pubB, "/a") {
		t.Error("holds files of a publisher that never came")
	}
}
