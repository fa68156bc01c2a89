package state

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
)

func reopen(t *testing.T, s *State, dir string) *State {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return open(t, Default(), dir)
}

func TestSnapshotHoldsEverything(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "made", "here")
	ctx := t.Context()
	s := open(t, Default(), dir)
	odd := "\x00\r\nü\xff"
	s.Set(ctx, "string", odd, 0)
	s.Set(ctx, "empty", "", 0)
	s.HSet(ctx, "hash", "a", "1", odd, odd, "", "")
	s.RPush(ctx, "list", "b", "a", "b", "")
	s.SAdd(ctx, "set", "x", odd)
	s.ZAdd(ctx, "zset", redis.Z{Score: 1750000000.123456, Member: "m"}, redis.Z{Score: -0.5, Member: odd})
	s.HSet(ctx, odd, "a", 1)
	s.Expire(ctx, "hash", time.Hour)
	s.Set(ctx, "short", "1", time.Hour)
	s.embedded.(*embedded).server.DB(3).Set("string", "of another database")

	s = reopen(t, s, dir)
	same(t, "string", s.Get(ctx, "string").Val(), odd)
	same(t, "empty string", must[string](t)(s.Get(ctx, "empty").Result()), "")
	same(t, "hash", s.HGetAll(ctx, "hash").Val(), map[string]string{"a": "1", odd: odd, "": ""})
	same(t, "list", s.LRange(ctx, "list", 0, -1).Val(), []string{"b", "a", "b", ""})
	same(t, "set", s.SMembersMap(ctx, "set").Val(), map[string]struct{}{"x": {}, odd: {}})
	same(t, "sorted set", s.ZRangeWithScores(ctx, "zset", 0, -1).Val(), []redis.Z{{Score: -0.5, Member: odd}, {Score: 1750000000.123456, Member: "m"}})
	same(t, "odd key", s.HGet(ctx, odd, "a").Val(), "1")
	for _, key := range []string{"hash", "short"} {
		if ttl := s.PTTL(ctx, key).Val(); ttl < time.Hour-time.Minute || ttl > time.Hour {
			t.Errorf("TTL of %s: got %v, want about an hour", key, ttl)
		}
	}
	same(t, "TTL of set", s.TTL(ctx, "set").Val(), time.Duration(-1))
	same(t, "keys", s.DBSize(ctx).Val(), int64(8))
	same(t, "another database", must[string](t)(s.embedded.(*embedded).server.DB(3).Get("string")), "of another database")

	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the directory: got %v %v, want mode 0700", info.Mode(), err)
	}
	if info, err := os.Stat(filepath.Join(dir, snapshotFile)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the snapshot: got %v %v, want mode 0600", info.Mode(), err)
	}
}

func TestSnapshotExpiryAcrossDowntime(t *testing.T) {
	t.Parallel()
	taken := time.Date(2026, time.May, 1, 12, 0, 0, 0, time.UTC)
	const life = time.Minute
	for _, test := range []struct {
		name        string
		wall        time.Time // of the system when the snapshot was taken
		wallAtStart time.Time
		want        time.Duration // TTL; 0: the key is gone
	}{
		{"a short stop", taken, taken.Add(10 * time.Second), 50 * time.Second},
		{"a long stop", taken, taken.Add(2 * time.Minute), 0},
		{"the clock was set back", taken, taken.Add(-time.Hour), life},
		{"the clock is unset after the stop", taken, time.Unix(100, 0), life},
		{"the clock was unset before the stop", time.Unix(100, 0), taken, life},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			w := newImageWriter(nil, taken, test.wall)
			w.key(kindString, 0, "a", taken.Add(life), 1)
			w.text("1")
			img, err := readImage(w.finish())
			if err != nil {
				t.Fatal(err)
			}
			server := newServer(t)
			keys, err := img.restore(server, test.wallAtStart)
			if err != nil {
				t.Fatal(err)
			}
			if ttl := server.TTL("a"); ttl != test.want || server.Exists("a") != (test.want > 0) || (keys == 1) != (test.want > 0) {
				t.Errorf("TTL %v, exists %v, keys %d; want TTL %v", ttl, server.Exists("a"), keys, test.want)
			}
		})
	}
}

func TestDamagedSnapshot(t *testing.T) {
	t.Parallel()
	cut := func(b []byte) []byte { return b[:len(b)-7] }
	flip := func(b []byte) []byte { b[len(b)/2] ^= 1; return b }
	nothing := func([]byte) []byte { return nil }
	for _, test := range []struct {
		name        string
		last, prev  func([]byte) []byte // how each file is damaged; nil: not at all
		want        string              // the value of "a" after
		wantDamaged int                 // files set aside
	}{
		{"none", nil, nil, "new", 0},
		{"cut short", cut, nil, "old", 1},
		{"a bit", flip, nil, "old", 1},
		{"empty", nothing, nil, "old", 1},
		{"only the previous one", nil, flip, "new", 0},
		{"both", cut, flip, "", 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			ctx := t.Context()
			s := open(t, Default(), dir)
			s.Set(ctx, "a", "old", 0)
			s = reopen(t, s, dir) // the first save of the next life keeps this one
			s.Set(ctx, "a", "new", 0)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			for name, damage := range map[string]func([]byte) []byte{snapshotFile: test.last, previousFile: test.prev} {
				if damage != nil {
					path := filepath.Join(dir, name)
					if err := os.WriteFile(path, damage(must[[]byte](t)(os.ReadFile(path))), 0o600); err != nil {
						t.Fatal(err)
					}
				}
			}
			var log logs
			s, err := Open(ctx, Default(), dir, log.logger())
			if err != nil {
				t.Fatal(err)
			}
			same(t, "value", s.Get(ctx, "a").Val(), test.want)
			damaged, _ := filepath.Glob(filepath.Join(dir, "*.damaged-*"))
			same(t, "files set aside", len(damaged), test.wantDamaged)
			if n := strings.Count(log.String(), "damaged and was set aside"); n != test.wantDamaged {
				t.Errorf("%d log lines about damage, want %d:\n%s", n, test.wantDamaged, log.String())
			}
			s.Set(ctx, "a", "newer", 0)
			s = reopen(t, s, dir)
			same(t, "value after another restart", s.Get(ctx, "a").Val(), "newer")
		})
	}
}

func TestUnwritableDirectory(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Open(t.Context(), Default(), filepath.Join(file, "state"), slog.New(slog.DiscardHandler))
	want := "(not a directory): let this user write there, or choose another data_dir, or set redis.url"
	if err == nil || !strings.HasSuffix(err.Error(), want) {
		t.Errorf("got %v, want …%s", err, want)
	}
}

func TestSavingFailsAndRecovers(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "state")
	var log logs
	s, err := Open(t.Context(), Default(), dir, log.logger())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	s.Set(t.Context(), "a", "1", 0)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Sync(t.Context()); err == nil || !strings.Contains(err.Error(), "cannot be saved (no such file or directory)") {
			t.Errorf("Sync without a directory: got %v", err)
		}
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := s.Sync(t.Context()); err != nil {
		t.Errorf("Sync with the directory back: %v", err)
	}
	for _, line := range []string{"The embedded state cannot be saved", "The embedded state can be saved again"} {
		if n := strings.Count(log.String(), line); n != 1 {
			t.Errorf("%q is in the log %d times, want once:\n%s", line, n, log.String())
		}
	}
}

// The whole of the embedded state runs on fake time, but for the files.
func TestLazySnapshot(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		saved := func() string {
			data, err := os.ReadFile(filepath.Join(dir, snapshotFile))
			if errors.Is(err, os.ErrNotExist) {
				return "nothing"
			}
			img, err := readImage(data)
			if err != nil {
				t.Fatal(err)
			}
			var keys []string
			for _, r := range img.records {
				keys = append(keys, r.key+"="+strings.Join(r.elements, ","))
			}
			return strings.Join(keys, " ")
		}
		s := open(t, Default(), dir)
		step := func(what string, wait time.Duration, want string) {
			t.Helper()
			time.Sleep(wait) // fake
			synctest.Wait()
			same(t, what, saved(), want)
		}
		s.Get(t.Context(), "a")
		step("a read changes nothing", 5*time.Second, "nothing")
		s.RPush(t.Context(), "a", "1")
		step("not at once", lazyInterval/2, "nothing")
		step("after the interval", lazyInterval, "a=1")
		if err := s.BLMove(t.Context(), "a", "b", "LEFT", "RIGHT", 0).Err(); err != nil {
			t.Error(err)
		}
		step("BLMOVE is a write", lazyInterval+2*clockStep, "b=1")
		before := must[os.FileInfo](t)(os.Stat(filepath.Join(dir, snapshotFile)))
		s.BLMove(t.Context(), "a", "b", "LEFT", "RIGHT", 3*time.Second)
		step("BLMOVE of nothing is not", lazyInterval+2*clockStep, "b=1")
		if after := must[os.FileInfo](t)(os.Stat(filepath.Join(dir, snapshotFile))); !os.SameFile(before, after) {
			t.Error("a snapshot was written though nothing changed")
		}
		s.Set(t.Context(), "b", "2", 0)
		if err := s.Sync(t.Context()); err != nil {
			t.Error(err)
		}
		same(t, "at once for Sync", saved(), "b=2")
		s.Do(t.Context(), "EVAL", "return redis.call('SET', KEYS[1], '3')", 1, "b")
		step("a script's write", lazyInterval+2*clockStep, "b=3")
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestLazySchedule(t *testing.T) {
	t.Parallel()
	start := time.Now()
	for _, test := range []struct {
		name  string
		size  int
		until time.Duration
		write func(tick int) bool
		want  int // snapshots
	}{
		{"no write", 0, time.Minute, func(int) bool { return false }, 0},
		{"one write", 0, time.Minute, func(tick int) bool { return tick == 7 }, 1},
		{"a report every 5 s", 0, time.Minute, func(tick int) bool { return tick%50 == 0 }, 12},
		{"writes all the time", 0, time.Minute, func(int) bool { return true }, 55}, // about one in 1.1 s
		{"of a state of 320 KB", 320 << 10, 5 * time.Minute, func(int) bool { return true }, 30},
		{"of a huge state", 1 << 30, 10 * time.Minute, func(int) bool { return true }, 10},
	} {
		var l lazySchedule
		writes, saves := uint64(0), 0
		for tick := range int(test.until / clockStep) {
			if test.write(tick) {
				writes++
			}
			if l.due(start.Add(time.Duration(tick)*clockStep), writes, test.size) {
				saves++
				l.saved()
			}
		}
		if saves < test.want-test.want/10 || saves > test.want+test.want/10 {
			t.Errorf("%s: %d snapshots in %v, want about %d", test.name, saves, test.until, test.want)
		}
	}
}

func TestSyncIsShared(t *testing.T) {
	t.Parallel()
	var writes, dumps int
	var mu sync.Mutex
	begun, proceed := make(chan struct{}), make(chan struct{})
	dir := t.TempDir()
	e := &embedded{}
	s := newSaver(dir, &e.writes, func(buf []byte) []byte {
		mu.Lock()
		dumps++
		first := dumps == 1
		taken := writes
		mu.Unlock()
		if first {
			close(begun)
			<-proceed
		}
		return append(buf, strconv.Itoa(taken)...)
	}, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	var done sync.WaitGroup
	done.Go(func() { s.run(ctx) })
	done.Go(func() { s.sync(ctx) })
	<-begun // the first snapshot has begun: whoever comes now needs another
	const callers = 50
	results := make(chan error, callers)
	for i := range callers {
		mu.Lock()
		writes = i + 1
		mu.Unlock()
		done.Go(func() {
			err := s.sync(ctx)
			if data, _ := os.ReadFile(filepath.Join(dir, snapshotFile)); err == nil && string(data) != strconv.Itoa(callers) {
				err = fmt.Errorf("the snapshot has %s of %d writes", data, callers)
			}
			results <- err
		})
	}
	gone, leave := context.WithCancel(ctx)
	leave()
	if err := s.sync(gone); !errors.Is(err, context.Canceled) {
		t.Errorf("a caller who left: got %v", err)
	}
	close(proceed)
	for range callers {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	cancel()
	done.Wait()
	// One for the first caller, one for all who came during it; those that were not yet waiting
	// when it ended, on a busy machine, need some more.
	if dumps < 2 || dumps > callers/3 {
		t.Errorf("%d snapshots for %d callers", dumps, callers+1)
	}
}
