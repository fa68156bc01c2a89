package segstore

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dandelion/pkg/id"
	"dandelion/pkg/wire"
)

var (
	pubA = id.PublisherIDOf([]byte("a"))
	pubB = id.PublisherIDOf([]byte("b"))
)

func testConfig(t testing.TB) Config {
	base := t.TempDir()
	return Config{
		LiveDir: filepath.Join(base, "live"), DataDir: filepath.Join(base, "data"),
		LiveLimit: 64 << 20, StorageLimit: 64 << 20,
	}
}

func open(t testing.TB, cfg Config) *Store {
	t.Helper()
	s, err := Open(cfg, slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelError})))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func put(s *Store, pub id.PublisherID, path string, ttl time.Duration, content []byte) (Entry, error) {
	w, err := s.Create(Meta{Publisher: pub, Path: id.Path(path), TTL: ttl, Size: int64(len(content)), Digest: id.DigestOf(content)})
	if err != nil {
		return Entry{}, err
	}
	defer w.Cancel()
	if _, err := w.ReadFrom(bytes.NewReader(content)); err != nil {
		return Entry{}, err
	}
	return w.Commit()
}

func mustPut(t testing.TB, s *Store, pub id.PublisherID, path string, ttl time.Duration, content []byte) Entry {
	t.Helper()
	e, err := put(s, pub, path, ttl, content)
	if err != nil {
		t.Fatalf("storing %s: %v", path, err)
	}
	return e
}

// get returns the content at a path, nil where there is none, and fails where entry and bytes
// do not belong together.
func get(t testing.TB, s *Store, pub id.PublisherID, path string) []byte {
	t.Helper()
	f, e, err := s.Open(pub, id.Path(path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		t.Fatalf("opening %s: %v", path, err)
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	if id.DigestOf(b) != e.Digest || int64(len(b)) != e.Size {
		t.Fatalf("%s: %d bytes with digest %s, the entry says %d and %s", path, len(b), id.DigestOf(b), e.Size, e.Digest)
	}
	return b
}

func content(seed, size int) []byte {
	b := make([]byte, size)
	rand.NewChaCha8(sha256.Sum256(fmt.Append(nil, seed))).Read(b)
	return b
}

func kindOf(err error) wire.Kind {
	var refusal *Refusal
	if errors.As(err, &refusal) {
		return refusal.Kind
	}
	return wire.Kind(fmt.Sprintf("no refusal: %v", err))
}

// checkDisk fails unless exactly the index's files are on disk, each with its two names, and
// returns their paths.
func checkDisk(t testing.TB, s *Store) map[string]bool {
	t.Helper()
	paths := make(map[string]bool)
	for _, d := range s.dirs() {
		want := make(map[string]*entry)
		var used int64
		s.mu.Lock()
		for _, p := range s.publishers {
			for _, e := range p.files {
				if e.dir == d {
					want[visible(p.id, e.path)] = e
					used += charge(e.size)
				}
			}
		}
		if d.used != used || d.files != len(want) || d.reserved != 0 {
			t.Errorf("%s: accounts say %d bytes, %d files, %d incoming; the index %d and %d", d.path, d.used, d.files, d.reserved, used, len(want))
		}
		s.mu.Unlock()
		committed, err := os.ReadDir(filepath.Join(d.path, committedDir))
		if err != nil {
			t.Fatal(err)
		}
		if len(committed) != len(want) {
			t.Errorf("%s: %d names in .committed, %d files in the index", d.path, len(committed), len(want))
		}
		incoming, _ := os.ReadDir(filepath.Join(d.path, incomingDir))
		if len(incoming) != 0 {
			t.Errorf("%s: left in .incoming: %v", d.path, incoming)
		}
		err = filepath.WalkDir(d.path, func(name string, n fs.DirEntry, err error) error {
			rel, _ := filepath.Rel(d.path, name)
			switch {
			case err != nil:
				return err
			case strings.HasPrefix(rel, "."):
				if n.IsDir() && rel != "." {
					return fs.SkipDir
				}
				return nil
			case n.IsDir():
				if inside, _ := os.ReadDir(name); len(inside) == 0 {
					t.Errorf("%s: empty directory %s", d.path, rel)
				}
				return nil
			}
			e := want[rel]
			if e == nil {
				t.Errorf("%s: %s is on disk and not in the index", d.path, rel)
				return nil
			}
			delete(want, rel)
			b, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			if id.DigestOf(b) != e.digest {
				t.Errorf("%s: %s has other bytes than its digest says", d.path, rel)
			}
			viaName, err := os.ReadFile(filepath.Join(d.path, committedDir, e.name()))
			if err != nil || !bytes.Equal(b, viaName) {
				t.Errorf("%s: %s and its name in .committed differ: %v", d.path, rel, err)
			}
			paths[rel] = true
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		for rel := range want {
			t.Errorf("%s: %s is in the index and not on disk", d.path, rel)
		}
	}
	return paths
}

func TestStoreAndRestart(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	s := open(t, cfg)
	live, vod := content(1, 300_000), content(2, 5)
	segment := "/live/demo/720p/" + id.DigestOf(live).Short() + "/seg-0.ts"
	e := mustPut(t, s, pubA, segment, time.Minute, live)
	if left := time.Until(e.Expires); left < 55*time.Second || left > time.Minute {
		t.Errorf("expires in %v, want about a minute", left)
	}
	if e := mustPut(t, s, pubA, "/vod/film.mp4", 0, vod); !e.Expires.IsZero() {
		t.Errorf("a file without TTL expires at %v", e.Expires)
	}
	mustPut(t, s, pubB, "/vod/film.mp4", time.Hour, vod)
	for range 2 {
		if !bytes.Equal(get(t, s, pubA, segment), live) || !bytes.Equal(get(t, s, pubB, "/vod/film.mp4"), vod) {
			t.Error("other bytes than were stored")
		}
		u := s.Usage()
		if u.Live.Files != 1 || u.Data.Files != 2 || u.Live.Used != charge(300_000) || u.Data.Used != 8192 || u.Data.DiskTotal == 0 {
			t.Errorf("usage %+v", u)
		}
		if got := len(checkDisk(t, s)); got != 3 {
			t.Errorf("%d files on disk, want 3", got)
		}
		s.Close()
		s = open(t, cfg)
	}
	again, _ := s.Get(pubA, id.Path(segment))
	if d := again.Expires.Sub(e.Expires).Abs(); d > 10*time.Millisecond {
		t.Errorf("expiry moved by %v over a restart", d)
	}
	if !s.Delete(pubA, id.Path(segment)) || s.Delete(pubA, id.Path(segment)) {
		t.Error("Delete is not true once, then false")
	}
	if get(t, s, pubA, segment) != nil || len(checkDisk(t, s)) != 2 {
		t.Error("a deleted file is still there")
	}
}

func TestReplace(t *testing.T) {
	t.Parallel()
	s := open(t, testConfig(t))
	mustPut(t, s, pubA, "/seg-0.ts", time.Minute, []byte("old"))
	f, _, err := s.Open(pubA, "/seg-0.ts")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for i, ttl := range []time.Duration{time.Minute, time.Hour, 0, time.Second * 30} { // through both directories
		next := fmt.Append(nil, "new", i)
		mustPut(t, s, pubA, "/seg-0.ts", ttl, next)
		if got := get(t, s, pubA, "/seg-0.ts"); !bytes.Equal(got, next) {
			t.Errorf("TTL %v: got %q, want %q", ttl, got, next)
		}
		if len(checkDisk(t, s)) != 1 {
			t.Error("not one file on disk")
		}
	}
	if old, err := io.ReadAll(f); string(old) != "old" || err != nil {
		t.Errorf("a reader of the replaced file got %q, %v", old, err)
	}
}

func TestSameBytesAgainExtend(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	s := open(t, cfg)
	b := content(1, 1000)
	steps := []struct {
		ttl, want time.Duration // want 0: no end
		live      bool
	}{
		{time.Minute, time.Minute, true},
		{2 * time.Minute, 2 * time.Minute, true},
		{30 * time.Second, 2 * time.Minute, true}, // never shorter
		{time.Hour, time.Hour, false},
		{time.Minute, time.Hour, false},
		{2 * time.Hour, 2 * time.Hour, false},
		{0, 0, false},
		{time.Minute, 0, false},
	}
	for _, st := range steps {
		e := mustPut(t, s, pubA, "/seg.ts", st.ttl, b)
		left := time.Until(e.Expires)
		if st.want == 0 && !e.Expires.IsZero() || st.want != 0 && (left > st.want || left < st.want-10*time.Second) {
			t.Errorf("after TTL %v: %v left, want %v", st.ttl, left, st.want)
		}
		if got := s.Usage().Live.Files == 1; got != st.live {
			t.Errorf("after TTL %v: live is %v", st.ttl, got)
		}
		if !bytes.Equal(get(t, s, pubA, "/seg.ts"), b) || len(checkDisk(t, s)) != 1 {
			t.Error("not exactly one whole file")
		}
	}
}

// TestRoom: what has no TTL goes for new files, the oldest first; what was promised until its TTL
// stays, and the file that does not fit is refused.
func TestRoom(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.LiveLimit, cfg.StorageLimit = 4*4096, 4*4096
	s := open(t, cfg)
	block := func(i int) []byte { return content(i, 4096) }
	mustPut(t, s, pubA, "/hour2", 2*time.Hour, block(1))
	mustPut(t, s, pubA, "/kept1", 0, block(2))
	mustPut(t, s, pubA, "/hour1", time.Hour, block(3))
	mustPut(t, s, pubA, "/kept2", 0, block(4))
	for i, goes := range []string{"/kept1", "/kept2"} {
		if get(t, s, pubA, goes) == nil {
			t.Fatalf("%s went before its turn", goes)
		}
		mustPut(t, s, pubA, fmt.Sprint("/new", i), time.Duration(3+i)*time.Hour, block(10+i))
		if get(t, s, pubA, goes) != nil {
			t.Errorf("%s is still there after file %d", goes, i)
		}
		if u := s.Usage().Data; u.Used > u.Limit || u.Evicted != int64(i+1) {
			t.Errorf("%d of %d bytes used, %d evicted", u.Used, u.Limit, u.Evicted)
		}
	}
	for _, ttl := range []time.Duration{0, time.Minute, 24 * time.Hour} {
		s.live.limit = 0 // nowhere else either
		if _, err := s.Create(Meta{Publisher: pubA, Path: "/more", TTL: ttl, Size: 4096}); kindOf(err) != wire.KindFull && kindOf(err) != wire.KindTooLarge {
			t.Errorf("TTL %v, and all room promised: %v, want full", ttl, err)
		}
	}
	if got := checkDisk(t, s); len(got) != 4 {
		t.Errorf("something went for a file that was refused: %v", got)
	}
	// A lowered limit is kept to: what expires first goes.
	s.Close()
	cfg.StorageLimit = 2 * 4096
	s = open(t, cfg)
	if get(t, s, pubA, "/hour1") != nil || get(t, s, pubA, "/hour2") != nil || get(t, s, pubA, "/new0") == nil || get(t, s, pubA, "/new1") == nil {
		t.Errorf("after a restart with half the limit: %v", checkDisk(t, s))
	}
}

// TestLiveSpills: live segments go to the data directory where they do not fit among live ones.
func TestLiveSpills(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.LiveLimit, cfg.StorageLimit = 4*4096, 4*4096
	s := open(t, cfg)
	mustPut(t, s, pubA, "/live1", time.Minute, content(20, 3*4096))
	if _, err := s.Create(Meta{Publisher: pubA, Path: "/live2", TTL: time.Minute, Size: 5 * 4096}); kindOf(err) != wire.KindTooLarge {
		t.Errorf("larger than both limits: %v", err)
	}
	spilled, err := s.Create(Meta{Publisher: pubA, Path: "/live3", TTL: time.Minute, Size: 3 * 4096})
	if err != nil || spilled.d != s.data || get(t, s, pubA, "/live1") == nil {
		t.Fatalf("a live segment did not spill to the data directory: %v", err)
	}
	if _, err := s.Create(Meta{Publisher: pubA, Path: "/live4", TTL: time.Minute, Size: 2 * 4096}); kindOf(err) != wire.KindFull {
		t.Errorf("with all room promised: %v, want full", err)
	}
	spilled.Cancel()
	checkDisk(t, s)
}

func TestHave(t *testing.T) {
	t.Parallel()
	s := open(t, testConfig(t))
	var want []string
	for i := range 50 {
		p := fmt.Sprintf("/d%d/f%03d", i%3, i)
		want = append(want, p)
		mustPut(t, s, pubA, p, time.Minute, content(i, 10))
	}
	mustPut(t, s, pubB, "/other", time.Minute, content(1, 10))
	for _, limit := range []int{1, 7, 50, 100} {
		var got []string
		var after id.Path
		for {
			page := s.Have(pubA, after, limit)
			if len(page) > limit {
				t.Fatalf("%d entries, limit %d", len(page), limit)
			}
			if len(page) == 0 {
				break
			}
			for _, e := range page {
				got = append(got, string(e.Path))
			}
			after = page[len(page)-1].Path
		}
		if len(got) != len(want) {
			t.Errorf("limit %d: %d paths, want %d", limit, len(got), len(want))
		}
		for i := 1; i < len(got); i++ {
			if got[i-1] >= got[i] {
				t.Errorf("limit %d: %s before %s", limit, got[i-1], got[i])
			}
		}
	}
}

func TestOpenErrors(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	open(t, cfg)
	log := slog.New(slog.DiscardHandler)
	if _, err := Open(cfg, log); err == nil || !strings.Contains(err.Error(), "in use by another process") || !strings.Contains(err.Error(), cfg.DataDir) {
		t.Errorf("a directory in use: %v", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	os.WriteFile(file, nil, 0o600)
	for name, bad := range map[string]Config{
		"no data directory": {StorageLimit: 1},
		"both the live and": {LiveDir: "x", DataDir: "x", LiveLimit: 1, StorageLimit: 1},
		"storage limit":     {DataDir: "x"},
		"live limit":        {LiveDir: "x", DataDir: "y", StorageLimit: 1},
		"choose another":    {DataDir: file + "/sub", StorageLimit: 1},
	} {
		if _, err := Open(bad, log); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("Open said %v, want something about %q", err, name)
		}
	}
}

// TestPlays: how long a file plays is known until the store is opened again, and once it is told anew.
func TestPlays(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	const plays = 1500 * time.Millisecond
	again := func(s *Store) Entry {
		w, err := s.Create(Meta{Publisher: pubA, Path: "/a", TTL: time.Minute, Size: 1, Plays: plays})
		if err != nil {
			t.Fatal(err)
		}
		w.Write([]byte("a"))
		e, err := w.Commit()
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	s := open(t, cfg)
	if e := again(s); e.Plays != plays {
		t.Errorf("stored: plays %v", e.Plays)
	}
	s.Close()
	s = open(t, cfg)
	if e, ok := s.Get(pubA, "/a"); !ok || e.Plays != 0 {
		t.Errorf("opened again: %v, plays %v", ok, e.Plays)
	}
	if e := again(s); e.Plays != plays {
		t.Errorf("stored again: plays %v", e.Plays)
	}
	f, e, err := s.Open(pubA, "/a")
	if err != nil || e.Plays != plays {
		t.Fatalf("opened: plays %v, %v", e.Plays, err)
	}
	f.Close()
}
