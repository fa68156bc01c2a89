package segstore

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"dandelion/pkg/id"
)

// startRun runs the store in a bubble, until stop or the end of the test.
func startRun(t *testing.T, s *Store) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	synctest.Wait()
	return stop
}

// sane moves a bubble's clock, which begins in 2000, to where it may decide something.
func sane() { time.Sleep(time.Until(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC))) }

func TestExpiry(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cfg := Config{LiveDir: filepath.Join(dir, "live"), DataDir: filepath.Join(dir, "data"), LiveLimit: 1 << 20, StorageLimit: 1 << 20}
	synctest.Test(t, func(t *testing.T) {
		sane()
		s := open(t, cfg)
		startRun(t, s)
		ttls := []time.Duration{time.Hour, 3 * time.Second, 5 * time.Minute, time.Second, time.Minute, 0, 61 * time.Second}
		for i, ttl := range ttls {
			mustPut(t, s, pubA, fmt.Sprint("/f", i), ttl, content(i, 10))
		}
		start := time.Now()
		for time.Since(start) < 2*time.Hour {
			time.Sleep(500 * time.Millisecond)
			synctest.Wait()
			age := time.Since(start)
			for i, ttl := range ttls {
				served := get(t, s, pubA, fmt.Sprint("/f", i)) != nil
				if want := ttl == 0 || age < ttl; served != want {
					t.Fatalf("TTL %v is served: %v after %v", ttl, served, age)
				}
				var onDisk bool
				for _, d := range []string{cfg.LiveDir, cfg.DataDir} {
					_, err := os.Stat(filepath.Join(d, string(pubA), fmt.Sprint("f", i)))
					onDisk = onDisk || err == nil
				}
				if ttl > 0 && onDisk && age > ttl+time.Second {
					t.Fatalf("TTL %v is on disk after %v", ttl, age)
				}
			}
			if age > 2*time.Minute { // the rest of the hour in larger steps
				time.Sleep(29*time.Second + 500*time.Millisecond)
			}
		}
		if u := s.Usage(); u.Live.Expired != 5 || u.Data.Expired != 1 || u.Live.Used != 0 || u.Data.Files != 1 {
			t.Errorf("usage %+v", u)
		}
		checkDisk(t, s)
	})
}

func TestExpiryAfterRestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cfg := Config{DataDir: dir, StorageLimit: 1 << 20}
	synctest.Test(t, func(t *testing.T) {
		sane()
		s := open(t, cfg)
		for i := range 3 {
			mustPut(t, s, pubA, fmt.Sprint("/f", i), time.Duration(i+1)*time.Minute, content(i, 10))
		}
		s.Close()
		time.Sleep(90 * time.Second)
		s = open(t, cfg)
		if len(checkDisk(t, s)) != 2 {
			t.Error("a file that expired while nobody ran is still there")
		}
		startRun(t, s)
		mustPut(t, s, pubA, "/f2", 10*time.Minute, content(2, 10)) // a scanned file, extended
		time.Sleep(31 * time.Second)
		synctest.Wait()
		if got := s.Have(pubA, "", 10); len(got) != 1 || got[0].Path != "/f2" {
			t.Errorf("after two minutes: %v", got)
		}
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if got := checkDisk(t, s); len(got) != 0 {
			t.Errorf("after twelve minutes: %v", got)
		}
	})
}

// A device without a battery for its clock boots in the past: nothing that was there before
// expires until the clock is right, and what comes meanwhile lives as long as it should.
func TestUnsetClock(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cfg := Config{DataDir: dir, StorageLimit: 1 << 20}
	before := committedName(firstSane.Add(30*time.Minute).UnixMilli(), id.DigestOf([]byte("x")), 1)
	s := open(t, cfg)
	mustPut(t, s, pubA, "/before", time.Hour, []byte("x"))
	names, _ := filepath.Glob(filepath.Join(dir, committedDir, "*"))
	if err := os.Rename(names[0], filepath.Join(dir, committedDir, before)); err != nil {
		t.Fatal(err)
	}
	s.Close()
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Until(firstSane.Add(-2 * time.Hour)))
		s := open(t, cfg)
		stop := startRun(t, s)
		mustPut(t, s, pubA, "/new", time.Minute, []byte("y"))
		time.Sleep(59 * time.Second)
		synctest.Wait()
		if len(checkDisk(t, s)) != 2 {
			t.Error("a file is gone too early")
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if got := s.Have(pubA, "", 10); len(got) != 1 || got[0].Path != "/before" {
			t.Errorf("before the clock is set: %v", got)
		}
		stop()
		s.Close()
		sane()
		time.Sleep(24 * time.Hour)
		if got := checkDisk(t, open(t, cfg)); len(got) != 0 {
			t.Errorf("after the clock was set: %v", got)
		}
	})
}

// When the wall clock is set, names on disk follow, so that the next process knows the time left.
func TestClockJump(t *testing.T) {
	t.Parallel()
	s := open(t, testConfig(t))
	mustPut(t, s, pubA, "/a", 10*time.Minute, []byte("x"))
	mustPut(t, s, pubA, "/kept", 0, []byte("x"))
	for _, by := range []time.Duration{30 * 365 * 24 * time.Hour, -time.Hour} {
		now := s.instant()
		now.wall = now.wall.Round(0).Add(by)
		s.rename(now)
		s.mu.Lock()
		e := s.lookup(pubA, "/a")
		left := time.UnixMilli(e.expires).Sub(now.wall)
		s.mu.Unlock()
		if left < 9*time.Minute || left > 10*time.Minute {
			t.Errorf("after a jump by %v the name on disk says %v left", by, left)
		}
		if get(t, s, pubA, "/a") == nil || len(checkDisk(t, s)) != 2 {
			t.Error("the file is gone")
		}
	}
}

// After a crash of the machine content may be missing behind a right name.
func TestUncleanBoot(t *testing.T) {
	t.Parallel()
	for _, run := range []bool{false, true} {
		cfg := testConfig(t)
		cfg.LiveDir, cfg.LiveLimit = "", 0
		s := open(t, cfg)
		for i := range 4 {
			mustPut(t, s, pubA, fmt.Sprint("/f", i), time.Hour, content(i, 10_000))
		}
		s.Close()
		truncate := filepath.Join(cfg.DataDir, string(pubA), "f1")
		if err := os.WriteFile(truncate, make([]byte, 10_000), 0o644); err != nil { // in place: same inode
			t.Fatal(err)
		}
		boot := filepath.Join(cfg.DataDir, bootFile)
		if err := os.WriteFile(boot, []byte("another boot"), 0o600); err != nil {
			t.Fatal(err)
		}
		// A restart of the process before everything was verified does not make it trusted.
		open(t, cfg).Close()
		s = open(t, cfg)
		if got := s.Have(pubA, "", 10); len(got) != 0 {
			t.Errorf("unverified files are listed: %v", got)
		}
		if run {
			s.verifyAll(t.Context())
			if got := s.Have(pubA, "", 10); len(got) != 3 {
				t.Errorf("after verification %d files are listed, want 3", len(got))
			}
			if now, _ := os.ReadFile(boot); string(now) != s.data.bootID {
				t.Errorf("the boot noted is %q", now)
			}
		}
		for i := range 4 {
			if got := get(t, s, pubA, fmt.Sprint("/f", i)); (got != nil) != (i != 1) {
				t.Errorf("Run %v: file %d is served: %v", run, i, got != nil)
			}
		}
		if _, ok := s.Get(pubA, "/f2"); !ok {
			t.Error("a verified file is not listed")
		}
		checkDisk(t, s)
		// The same boot: trusted.
		s.Close()
		s = open(t, cfg)
		if got := s.Have(pubA, "", 10); run && len(got) != 3 {
			t.Errorf("after a restart in the same boot %d files are listed, want 3", len(got))
		}
	}
}
