package segstore

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"dandelion/pkg/id"
	"dandelion/pkg/wire"
)

// inNamespace says that a test runs in a process with namespaces of its own.
const inNamespace = "SEGSTORE_TEST_NAMESPACE"

// mounting runs the calling test again in a process with namespaces of its own, where it may mount
// and leaves no mount behind. It returns true there.
func mounting(t *testing.T) bool {
	t.Helper()
	if os.Getenv(inNamespace) != "" {
		return true
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), inNamespace+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, syscall.EPERM) {
		t.Fatal("cannot make a mount namespace: sysctl -w kernel.unprivileged_userns_clone=1, or run as root outside a container")
	}
	if err != nil || !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
		t.Fatalf("%v\n%s", err, out)
	}
	return false
}

// smallDisk mounts a tmpfs.
func smallDisk(t *testing.T, options string) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Fatalf("cannot mount a tmpfs: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	return dir
}

// filler is somebody else's file, which takes all room that is left.
func filler(t *testing.T, dir string) (remove func()) {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "filler"))
	for ; err == nil; _, err = f.Write(make([]byte, 4096)) {
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	f.Close()
	return func() { os.Remove(f.Name()) }
}

func wantFull(t *testing.T, what string, err error) {
	t.Helper()
	if kindOf(err) != wire.KindFull {
		t.Errorf("%s: %v, want a refusal of kind full", what, err)
	}
}

// TestDiskFull fills a small disk whose store has a limit that promises more than it has: what does not
// fit is refused, what was promised stays whole, and when room comes back files are taken again.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	if !mounting(t) {
		return
	}
	dir := smallDisk(t, "size=4m")
	cfg := Config{DataDir: filepath.Join(dir, "store"), StorageLimit: 1 << 30}
	var advanced time.Duration
	system := systemClock()
	clock := func() (time.Time, time.Duration) {
		wall, mono := system()
		return wall.Add(advanced), mono + advanced
	}
	s, err := openAt(cfg, slog.New(slog.DiscardHandler), clock)
	if err != nil {
		t.Fatal(err)
	}
	promised := 0
	for ; promised < 30; promised++ { // 15 MB in all
		if _, err = put(s, pubA, fmt.Sprint("/d/f", promised), time.Hour, content(promised, 500_000)); err != nil {
			break
		}
	}
	wantFull(t, "the file that does not fit", err)
	whole := func(when string) {
		t.Helper()
		for i := range promised {
			if !bytes.Equal(get(t, s, pubA, fmt.Sprint("/d/f", i)), content(i, 500_000)) {
				t.Errorf("%s: file %d is not whole", when, i)
			}
		}
		checkDisk(t, s)
		if t.Failed() {
			t.FailNow()
		}
	}
	whole("on a full disk")
	if promised < 6 || s.Usage().Data.NoSpace != 0 {
		t.Errorf("%d files of 500 kB on a disk of 4 MB, %+v", promised, s.Usage().Data)
	}

	// In the middle: a file whose size nobody said, and one whose room others took meanwhile.
	_, err = s.receiveAll(Meta{Publisher: pubA, Path: "/unsaid", TTL: time.Hour, Size: -1}, content(1, 1<<20))
	wantFull(t, "a file of unknown size", err)
	s.Delete(pubA, id.Path(fmt.Sprint("/d/f", promised-1)))
	promised--
	w, err := s.Create(Meta{Publisher: pubA, Path: "/overtaken", TTL: time.Hour, Size: 400_000})
	if err != nil {
		t.Fatal(err)
	}
	empty := filler(t, dir)
	_, err = w.ReadFrom(bytes.NewReader(content(1, 400_000)))
	wantFull(t, "a file whose room went", err)
	w.Cancel()
	whole("after files that broke off")

	// It starts on a disk that is full to the last byte.
	s.Close()
	if s, err = openAt(cfg, slog.New(slog.DiscardHandler), clock); err != nil {
		t.Fatal(err)
	}
	whole("after a restart on the full disk")
	_, err = put(s, pubA, "/no", time.Hour, content(1, 1))
	wantFull(t, "one byte", err)

	// Room comes back: by others, by files that may go, by files that have expired.
	empty()
	if _, err := put(s, pubA, "/kept", 0, content(1, 300_000)); err != nil {
		t.Errorf("room came back, and it says %v", err)
	}
	filler(t, dir)
	if _, err := put(s, pubA, "/instead", time.Minute, content(2, 250_000)); err != nil || get(t, s, pubA, "/kept") != nil {
		t.Errorf("a file without a TTL did not give way: %v", err)
	}
	advanced = 2 * time.Minute // nobody has looked for expired files since
	if _, err := put(s, pubA, "/next", time.Hour, content(3, 240_000)); err != nil {
		t.Errorf("a file that had expired did not give way: %v", err)
	}
	whole("at the end")
	s.Close()
}

// receiveAll is put without a digest.
func (s *Store) receiveAll(m Meta, b []byte) (Entry, error) {
	w, err := s.Create(m)
	if err != nil {
		return Entry{}, err
	}
	defer w.Cancel()
	if _, err := w.ReadFrom(bytes.NewReader(b)); err != nil {
		return Entry{}, err
	}
	return w.Commit()
}

// TestNamesFull: a disk may have bytes and no room for names. Whichever step of a commit fails for
// that, the file is refused, and nothing is left of it; an older file at its path stays.
func TestNamesFull(t *testing.T) {
	t.Parallel()
	if !mounting(t) {
		return
	}
	dir := smallDisk(t, "size=4m,nr_inodes=100")
	s := open(t, Config{DataDir: filepath.Join(dir, "store"), StorageLimit: 1 << 30})
	mustPut(t, s, pubA, "/old", time.Hour, content(1, 100))
	others := filepath.Join(dir, "others")
	if err := os.Mkdir(others, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/old", "/new/deep/file"} {
		refused := 0
		for left := 0; ; left++ {
			var names []string
			for i := 0; ; i++ {
				name := filepath.Join(others, fmt.Sprint(i))
				if err := os.WriteFile(name, nil, 0o600); err != nil {
					break
				}
				names = append(names, name)
			}
			if len(names) < left {
				t.Fatalf("%s was never stored", path)
			}
			for _, name := range names[:left] {
				os.Remove(name)
			}
			_, err := put(s, pubA, path, 2*time.Hour, content(2, 100))
			for _, name := range names {
				os.Remove(name)
			}
			checkDisk(t, s)
			if err == nil {
				break
			}
			refused++
			wantFull(t, fmt.Sprintf("%s with room for %d names", path, left), err)
			if !bytes.Equal(get(t, s, pubA, "/old"), content(1, 100)) && path == "/old" {
				t.Errorf("the older file is gone with room for %d names", left)
			}
			if t.Failed() {
				return
			}
		}
		if refused < 2 || !bytes.Equal(get(t, s, pubA, path), content(2, 100)) {
			t.Errorf("%s: refused %d times", path, refused)
		}
	}
}

// TestStepFails: no room at a step of a commit where no disk at hand has it.
func TestStepFails(t *testing.T) {
	t.Parallel()
	for _, at := range []string{"received", "renamed into .committed"} {
		s := open(t, testConfig(t))
		mustPut(t, s, pubA, "/a/old", time.Hour, []byte("old"))
		times := 0
		s.hook = func(step string) error {
			if step == at {
				times++
				return &os.LinkError{Op: "renameat", Err: syscall.ENOSPC}
			}
			return nil
		}
		for _, path := range []string{"/a/old", "/new/deep/file"} {
			_, err := put(s, pubA, path, time.Hour, []byte("new"))
			wantFull(t, at, err)
		}
		if times < 2 || string(get(t, s, pubA, "/a/old")) != "old" || len(checkDisk(t, s)) != 1 {
			t.Errorf("%s: not as before", at)
		}
		s.hook = nil
		mustPut(t, s, pubA, "/new/deep/file", time.Hour, []byte("new"))
		checkDisk(t, s)
	}
}

// TestRemoveEmpty: a file that has come where a directory was empty is not taken for it.
func TestRemoveEmpty(t *testing.T) {
	t.Parallel()
	s := open(t, testConfig(t))
	mustPut(t, s, pubA, "/a", time.Hour, []byte("x"))
	s.data.removeEmpty(visible(pubA, "/a"))
	if len(checkDisk(t, s)) != 1 {
		t.Error("the file is gone")
	}
}
