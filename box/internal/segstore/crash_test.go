package segstore

import (
	"bufio"
	"bytes"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"dandelion/pkg/id"
)

// model is what a store must hold: content by path, and whether it may be gone.
type model map[string][]byte

// TestModel runs random operations against the store and a model of it, with crashes between any
// two steps that change the disk. No limit is reached here, so nothing may be lost.
func TestModel(t *testing.T) {
	t.Parallel()
	for seed := range uint64(16) {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			t.Parallel()
			runModel(t, rand.New(rand.NewPCG(seed, 1)))
		})
	}
}

func runModel(t *testing.T, r *rand.Rand) {
	cfg := testConfig(t)
	s := open(t, cfg)
	held := make(model)
	paths := []string{"/a", "/b/c", "/b/d", "/b/e/f", "/live/s/r/0123456789ab/seg-0.ts", "/x/y/z"}
	ttls := []time.Duration{0, time.Minute, 10 * time.Minute, time.Hour}
	for range 120 {
		path := paths[r.IntN(len(paths))]
		old := held[path]
		switch r.IntN(12) {
		case 0, 1, 2: // store
			b := content(r.IntN(8), 100+r.IntN(3)*5000)
			mustPut(t, s, pubA, path, ttls[r.IntN(len(ttls))], b)
			held[path] = b
		case 3: // receive, then leave it
			w, err := s.Create(Meta{Publisher: pubA, Path: id.Path(path), Size: -1})
			if err != nil {
				t.Fatal(err)
			}
			w.Write(content(1, 1000))
			if r.IntN(2) == 0 {
				w.Cancel()
				break
			}
			s = crash(t, cfg, s)
		case 4: // delete
			if got := s.Delete(pubA, id.Path(path)); got != (old != nil) {
				t.Fatalf("Delete(%s) = %v", path, got)
			}
			delete(held, path)
		case 5: // end and start again
			s.Close()
			s = open(t, cfg)
		case 6, 7, 8, 9: // crash while storing
			b := content(r.IntN(8), 100+r.IntN(3)*5000)
			ttl := ttls[r.IntN(len(ttls))]
			done := crashWithin(s, r.IntN(8), func() { put(s, pubA, path, ttl, b) })
			s = crash(t, cfg, s)
			got := get(t, s, pubA, path)
			switch {
			case bytes.Equal(got, b): // the commit was far enough
				held[path] = b
			case done || !bytes.Equal(got, old):
				t.Fatalf("%s: %d bytes after a crash; neither the old %d nor, if it was not acknowledged, the new %d", path, len(got), len(old), len(b))
			}
		case 10: // crash while deleting
			done := crashWithin(s, r.IntN(3), func() { s.Delete(pubA, id.Path(path)) })
			s = crash(t, cfg, s)
			got := get(t, s, pubA, path)
			if got == nil {
				delete(held, path)
			} else if done || !bytes.Equal(got, old) {
				t.Fatalf("%s: %d bytes after a crash in Delete", path, len(got))
			}
		case 11:
			checkDisk(t, s)
		}
		for _, p := range paths {
			if got := get(t, s, pubA, p); !bytes.Equal(got, held[p]) || (got == nil) != (held[p] == nil) {
				t.Fatalf("%s: %d bytes, want %d", p, len(got), len(held[p]))
			}
		}
		if got := s.Have(pubA, "", 100); len(got) != len(held) {
			t.Fatalf("Have lists %d files, want %d", len(got), len(held))
		}
		if t.Failed() {
			return
		}
	}
	checkDisk(t, s)
}

// crashWithin runs do and ends its goroutine at the step-th step that changes the disk, as a crash
// would. It reports whether do came to its end first.
func crashWithin(s *Store, step int, do func()) (done bool) {
	ended := make(chan struct{})
	s.hook = func(string) error {
		if step == 0 {
			runtime.Goexit()
		}
		step--
		return nil
	}
	go func() {
		defer close(ended)
		do()
		done = true
	}()
	<-ended
	s.hook = nil
	return done
}

// crash leaves a store as a killed process does, and opens its directories again.
func crash(t *testing.T, cfg Config, s *Store) *Store {
	t.Helper()
	s.Close() // does nothing to files
	s = open(t, cfg)
	checkDisk(t, s)
	return s
}

// Every step of a commit has a name, and each is a place to crash at.
func TestCrashAtEachStep(t *testing.T) {
	t.Parallel()
	for _, first := range []time.Duration{-1, time.Minute, time.Hour} { // what is there before: nothing, live, data
		for step := range 7 {
			cfg := testConfig(t)
			s := open(t, cfg)
			if first > 0 {
				mustPut(t, s, pubA, "/p/q", first, []byte("old"))
			}
			done := crashWithin(s, step, func() { put(s, pubA, "/p/q", 2*time.Minute, []byte("new")) })
			s = crash(t, cfg, s)
			switch got := string(get(t, s, pubA, "/p/q")); {
			case done && got != "new", first > 0 && got != "new" && got != "old", got != "" && got != "new" && got != "old":
				t.Errorf("first %v, step %d, done %v: got %q", first, step, done, got)
			}
			s.Close()
		}
	}
}

// The scan removes what no crash of ours leaves, too.
func TestScanRemovesStrangers(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	s := open(t, cfg)
	mustPut(t, s, pubA, "/d/good", time.Hour, []byte("good"))
	s.Close()
	pub := filepath.Join(cfg.DataDir, string(pubA))
	outside := filepath.Join(t.TempDir(), "outside")
	os.WriteFile(outside, []byte("mine"), 0o600)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.WriteFile(filepath.Join(pub, "stranger"), []byte("x"), 0o600))
	must(os.Symlink(outside, filepath.Join(pub, "link")))
	must(os.Symlink(filepath.Dir(outside), filepath.Join(pub, "dirlink")))
	must(os.MkdirAll(filepath.Join(pub, "e/m/p/t/y"), 0o755))
	must(os.Link(filepath.Join(pub, "d/good"), filepath.Join(pub, "d/second")))
	must(os.WriteFile(filepath.Join(cfg.DataDir, committedDir, "0.abc.1"), nil, 0o600))
	must(os.WriteFile(filepath.Join(cfg.DataDir, committedDir, committedName(0, id.DigestOf(nil), 7)), nil, 0o600))
	must(os.WriteFile(filepath.Join(cfg.DataDir, incomingDir, "rest"), nil, 0o600))
	must(os.WriteFile(filepath.Join(cfg.DataDir, "operators-note"), []byte("x"), 0o600))

	s = open(t, cfg)
	paths := s.Have(pubA, "", 10)
	if len(paths) != 1 || !strings.HasPrefix(string(paths[0].Path), "/d/") || string(get(t, s, pubA, string(paths[0].Path))) != "good" {
		t.Errorf("holds %v, want one of the two names of the good file", paths)
	}
	if _, err := os.Stat(outside); err != nil {
		t.Errorf("a symbolic link was followed: %v", err)
	}
	if err := os.Remove(filepath.Join(cfg.DataDir, "operators-note")); err != nil {
		t.Errorf("another's file was removed: %v", err)
	}
	checkDisk(t, s)
}

// A file whose disk entry somebody removed is not offered any longer.
func TestVanishedFile(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	s, err := Open(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	mustPut(t, s, pubA, "/a", time.Hour, []byte("x"))
	names, _ := filepath.Glob(filepath.Join(cfg.DataDir, committedDir, "*"))
	os.Remove(names[0])
	if get(t, s, pubA, "/a") != nil {
		t.Error("opened")
	}
	if _, ok := s.Get(pubA, "/a"); ok {
		t.Error("still in the index")
	}
	checkDisk(t, s)
}

const childDir = "SEGSTORE_TEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childDir) != "" {
		runChild(os.Getenv(childDir))
	}
	os.Exit(m.Run())
}

// runChild stores, replaces and deletes files as fast as it can, and says on standard output what
// was acknowledged, until it is killed.
func runChild(dir string) {
	s, err := Open(Config{
		LiveDir: filepath.Join(dir, "live"), DataDir: filepath.Join(dir, "data"), LiveLimit: 1 << 30, StorageLimit: 1 << 30,
	}, slog.New(slog.NewTextHandler(os.Stderr, nil)))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for worker := range 3 {
		go func() {
			for i := 0; ; i++ {
				path := fmt.Sprintf("/w%d/d%d/f%d", worker, i%7, i%40)
				ttl := []time.Duration{0, 10 * time.Minute, time.Hour}[i%3]
				b := content(i, 1000+(i%5)*100_000)
				fmt.Printf("begin %s %d\n", path, i)
				if _, err := put(s, pubA, path, ttl, b); err != nil {
					fmt.Println("error", err)
				}
				fmt.Printf("end %s %d\n", path, i)
				if i%11 == 0 {
					fmt.Printf("begin %s -1\n", path)
					s.Delete(pubA, id.Path(path))
					fmt.Printf("end %s -1\n", path)
				}
			}
		}()
	}
	select {}
}

// kill -9 at a random moment: what was acknowledged is there whole, and nothing else.
func TestKill(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	state := make(map[string][]int) // path: the generations that may be there; -1: absent
	for round := range 8 {
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), childDir+"="+dir)
		cmd.Stderr = t.Output()
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// The child runs through a random number of operations, then dies within the next ones.
		left := 20 + rand.IntN(400)
		in := bufio.NewScanner(stdout)
		for in.Scan() {
			fields := strings.Fields(in.Text())
			if len(fields) != 3 || fields[0] == "error" {
				t.Fatalf("the child said %q", in.Text())
			}
			generation, _ := strconv.Atoi(fields[2])
			if fields[0] == "begin" {
				if state[fields[1]] == nil {
					state[fields[1]] = []int{-1}
				}
				state[fields[1]] = append(state[fields[1]], generation)
			} else {
				state[fields[1]] = []int{generation}
			}
			if left--; left == 0 {
				cmd.Process.Kill()
			}
		}
		cmd.Wait()

		s := open(t, Config{LiveDir: filepath.Join(dir, "live"), DataDir: filepath.Join(dir, "data"), LiveLimit: 1 << 30, StorageLimit: 1 << 30})
		onDisk := checkDisk(t, s)
		for path, allowed := range state {
			got := get(t, s, pubA, path)
			ok := false
			for _, i := range allowed {
				ok = ok || i < 0 && got == nil || i >= 0 && bytes.Equal(got, content(i, 1000+(i%5)*100_000))
				if ok {
					state[path] = []int{i}
					break
				}
			}
			if !ok {
				t.Errorf("round %d: %s has %d bytes, want one of generations %v", round, path, len(got), allowed)
			}
		}
		for rel := range onDisk {
			if state[strings.TrimPrefix(rel, string(pubA))] == nil {
				t.Errorf("round %d: nobody stored %s", round, rel)
			}
		}
		s.Close()
	}
}

func TestSpecialFiles(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	s := open(t, cfg)
	mustPut(t, s, pubA, "/a", time.Hour, []byte("x"))
	fi, err := os.Stat(filepath.Join(cfg.DataDir, string(pubA), "a"))
	if err != nil || fi.Mode().Perm()&0o044 != 0o044 {
		t.Errorf("a web server cannot read the file: %v, %v", fi.Mode(), err)
	}
	if fi, err := os.Stat(filepath.Join(cfg.DataDir, committedDir)); err != nil || fi.Mode().Perm() != fs.FileMode(0o700) {
		t.Errorf("others can look into .committed: %v, %v", fi.Mode(), err)
	}
}
