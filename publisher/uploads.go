package publisher

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"dandelion/pkg/id"
)

const (
	uploadPrefix   = "/uploads/"
	incomingPrefix = ".incoming-" // of files at the top of the directory that are not whole yet
	sweepUploads   = time.Minute
	abandoned      = 24 * time.Hour // after which an incoming file is what a crash left
)

// uploads keeps the files that were handed in, for boxes that ask again and for viewers whom
// no box can serve, until their TTL: a file's modification time is the time at which it goes;
// keptForEver stands for never. Every file system and word size can hold it.
type uploads struct {
	dir   string
	limit int64
}

var keptForEver = time.Unix(1, 0)

func openUploads(dir string, limit int64) (*uploads, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("directory for uploads: %w: make it writable, or choose another data_dir", err)
	}
	if err := syncDirs(filepath.Dir(dir), filepath.Dir(dir)); err != nil {
		return nil, err
	}
	return &uploads{dir: dir, limit: limit}, nil
}

// errTooLarge says that an upload is over the limit.
var errTooLarge = errors.New("larger than publisher.max_upload")

// add stores a file under a name and returns the path that it is placed and served at.
func (u *uploads) add(name string, ttl time.Duration, body io.Reader) (id.Path, error) {
	if _, err := uploadPath(id.Digest{}, name); err != nil {
		return "", err // before a long body is read
	}
	temp, err := os.CreateTemp(u.dir, incomingPrefix+"*")
	if err != nil {
		return "", err
	}
	defer os.Remove(temp.Name())
	defer temp.Close()
	hash := sha256.New()
	n, err := io.Copy(io.MultiWriter(temp, hash), io.LimitReader(body, u.limit+1))
	switch {
	case err != nil:
		return "", err
	case n > u.limit:
		return "", errTooLarge
	}
	path, err := uploadPath(id.Digest(hash.Sum(nil)), name)
	if err != nil {
		return "", err
	}
	// What is acknowledged must outlive a crash.
	if err := temp.Sync(); err != nil {
		return "", err
	}
	goes := keptForEver
	if ttl > 0 {
		goes = time.Now().Add(ttl)
	}
	if err := os.Chtimes(temp.Name(), goes, goes); err != nil {
		return "", err
	}
	final := u.local(path)
	for {
		if err := os.MkdirAll(filepath.Dir(final), 0o700); err != nil {
			return "", err
		}
		err := os.Rename(temp.Name(), final)
		if errors.Is(err, fs.ErrNotExist) {
			continue // the sweep took the directory while it was empty
		}
		if err != nil {
			return "", err
		}
		return path, syncDirs(filepath.Dir(final), u.dir)
	}
}

// syncDirs makes the entries of dir, and of those above it up to top, outlive a crash of the
// machine.
func syncDirs(dir, top string) error {
	for {
		d, err := os.Open(dir)
		if err != nil {
			return err
		}
		if err := errors.Join(d.Sync(), d.Close()); err != nil {
			return fmt.Errorf("syncing directory %s: %w", dir, err)
		}
		if dir == top || len(dir) < len(top) {
			return nil
		}
		dir = filepath.Dir(dir)
	}
}

// uploadPath is where an upload is placed: its digest tells files of one name apart.
func uploadPath(d id.Digest, name string) (id.Path, error) {
	return id.ParsePath(uploadPrefix + d.Short() + "/" + name)
}

func (u *uploads) local(path id.Path) string {
	return filepath.Join(u.dir, strings.TrimPrefix(string(path), uploadPrefix))
}

// file returns the local file of an upload's path; "" where the path is no upload that is here.
func (u *uploads) file(path id.Path) string {
	if !strings.HasPrefix(string(path), uploadPrefix) {
		return ""
	}
	local := u.local(path)
	if info, err := os.Lstat(local); err != nil || !info.Mode().IsRegular() {
		return ""
	}
	return local
}

// run removes files whose time is over, until ctx ends.
func (u *uploads) run(ctx context.Context) error {
	ticker := time.NewTicker(sweepUploads)
	defer ticker.Stop()
	for {
		u.sweep(time.Now())
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

func (u *uploads) sweep(now time.Time) {
	_ = filepath.WalkDir(u.dir, func(name string, entry fs.DirEntry, err error) error {
		if err != nil || name == u.dir {
			return nil
		}
		if entry.IsDir() {
			_ = os.Remove(name) // only an empty one goes
			return nil
		}
		info, err := entry.Info()
		if err == nil && over(info, filepath.Dir(name) == u.dir, now) {
			_ = os.Remove(name)
		}
		return nil
	})
}

// over reports whether a file has no reason to stay: incoming ones are at the top.
func over(info fs.FileInfo, incoming bool, now time.Time) bool {
	if incoming {
		return info.ModTime().Before(now.Add(-abandoned))
	}
	return !info.ModTime().Equal(keptForEver) && info.ModTime().Before(now)
}
