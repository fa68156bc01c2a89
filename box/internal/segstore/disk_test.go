package segstore

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"dandelion/pkg/id"
	"dandelion/pkg/wire"
)

const tmpfsDir = "SEGSTORE_TEST_TMPFS"

// TestDiskFull fills a small tmpfs whose limit promises more than it has. It runs in a child
// process with namespaces of its own, so that it needs no rights and leaves no mount.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), tmpfsDir+"="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, syscall.EPERM) {
		t.Fatal("cannot make a mount namespace: sysctl -w kernel.unprivileged_userns_clone=1, or run as root outside a container")
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func runOnTmpfs(dir string) int {
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=4m"); err != nil {
		fmt.Println("cannot mount a tmpfs:", err)
		return 1
	}
	s, err := Open(Config{DataDir: dir, StorageLimit: 1 << 30}, slog.New(slog.DiscardHandler))
	if err != nil {
		fmt.Println(err)
		return 1
	}
	failed := false
	check := func(ok bool, format string, args ...any) {
		if !ok {
			failed = true
			fmt.Printf(format+"\n", args...)
		}
	}
	for i := range 30 { // 15 MB in all
		_, err := put(s, pubA, fmt.Sprint("/d/f", i), time.Hour, content(i, 500_000))
		check(err == nil, "file %d: %v", i, err)
	}
	check(s.Usage().Data.NoSpace > 0, "nothing was removed for a full disk: %+v", s.Usage().Data)
	_, ok := s.Get(pubA, "/d/f29")
	check(ok, "the newest file was removed")
	held := s.Have(pubA, "", 100)
	check(len(held) >= 4, "only %d files are left on a disk with room for 8", len(held))

	// Larger than the disk: refused, and the store goes on.
	_, err = put(s, pubA, "/big", time.Hour, content(1, 6<<20))
	check(kindOf(err) == wire.KindFull, "a file larger than the disk: %v, want full", err)
	// Without a TTL it may take no room from those that have one.
	for i := range 30 {
		put(s, pubA, fmt.Sprint("/d/g", i), time.Hour, content(i, 500_000))
	}
	_, err = put(s, pubA, "/kept", 0, content(1, 3<<20))
	check(kindOf(err) == wire.KindFull, "a file without TTL on a full disk: %v, want full", err)
	for _, e := range s.Have(pubA, "", 100) {
		f, _, err := s.Open(pubA, e.Path)
		if err != nil {
			check(false, "%s: %v", e.Path, err)
			continue
		}
		sum := make([]byte, e.Size+1)
		n, _ := f.Read(sum)
		f.Close()
		check(id.DigestOf(sum[:n]) == e.Digest, "%s is damaged", e.Path)
	}

	// A disk that others filled to the last byte: a store still starts, and serves.
	for f, err := os.Create(filepath.Join(dir, "filler")); err == nil; {
		_, err = f.Write(make([]byte, 4096))
	}
	before := len(s.Have(pubA, "", 100))
	s.Close()
	s, err = Open(Config{DataDir: dir, StorageLimit: 1 << 30}, slog.New(slog.DiscardHandler))
	if err != nil {
		fmt.Println("start on a full disk:", err)
		return 1
	}
	check(before > 0 && len(s.Have(pubA, "", 100)) == before, "%d files before a restart on a full disk, %d after", before, len(s.Have(pubA, "", 100)))
	if failed {
		return 1
	}
	return 0
}

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
