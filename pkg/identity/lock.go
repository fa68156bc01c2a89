package identity

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrInUse is what Open's error wraps when somebody else holds the data_dir.
var ErrInUse = errors.New("in use")

// takeLock locks the data_dir. The kernel ties the lock to the open file: it ends with the
// process, also at kill -9, and child processes do not inherit it (close-on-exec). The lock file
// stays when the lock ends: removing it could remove that of the next holder.
func takeLock(dataDir string) (*os.File, error) {
	if err := unix.Faccessat(unix.AT_FDCWD, dataDir, unix.W_OK|unix.X_OK, unix.AT_EACCESS); err != nil {
		return nil, cannotUse(dataDir, err)
	}
	f, err := os.OpenFile(filepath.Join(dataDir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, cannotUse(dataDir, err)
	}
	if err := flock(f); err != nil {
		defer f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("data_dir %s is %w by %s: stop that one, or give this one a data_dir of its own",
				dataDir, ErrInUse, holder(f))
		}
		return nil, fmt.Errorf("data_dir %s cannot be locked (%w): use a directory on a local file system", dataDir, err)
	}
	// The PID is for people only, so failing to write it is no reason not to start; but a
	// full disk is worth saying now.
	if err := writePID(f); err != nil {
		dropLock(f)
		return nil, cannotUse(dataDir, err)
	}
	return f, nil
}

func flock(f *os.File) error {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// dropLock ends the lock. Not by closing alone: a child that is just being forked holds the file
// open too, until it is exec'ed.
func dropLock(f *os.File) error {
	_ = unix.Flock(int(f.Fd()), unix.LOCK_UN)
	return f.Close()
}

func writePID(f *os.File) error {
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err := f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return err
}

// holder names the process whose PID stands in the lock file.
func holder(f *os.File) string {
	buf := make([]byte, 16)
	n, _ := f.ReadAt(buf, 0)
	pid, err := strconv.Atoi(strings.TrimSpace(string(buf[:n])))
	if err != nil || pid <= 0 { // it has just started
		return "another process"
	}
	if pid == os.Getpid() {
		return "another part of this process"
	}
	return "process " + strconv.Itoa(pid)
}

// cannotUse says in one line why the data_dir cannot be used and what to do.
func cannotUse(dataDir string, err error) error {
	cure := "set data_dir to a directory on a disk that can be written"
	if errors.Is(err, fs.ErrPermission) {
		cure = fmt.Sprintf("give it to the user that runs this (chown -R %d %s), or set data_dir to another directory",
			os.Geteuid(), dataDir)
	}
	var pathErr *fs.PathError
	if errors.As(err, &pathErr) && pathErr.Path != dataDir {
		return fmt.Errorf("data_dir %s cannot be used (%s: %w): %s", dataDir, pathErr.Path, pathErr.Err, cure)
	}
	if pathErr != nil {
		err = pathErr.Err
	}
	return fmt.Errorf("data_dir %s cannot be used (%w): %s", dataDir, err, cure)
}
