package stream

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"dandelion/pkg/id"
)

// window is the directory with the copies, one file per content, named by its digest: the
// same bytes listed twice are one file. Files appear whole or not at all.
type window struct {
	dir    string
	create func() (*os.File, error) // a temporary file in dir, but for tests
	buf    []byte                   // of put, which one goroutine calls

	mu    sync.Mutex
	files map[id.Digest]*stored
	total int64 // bytes of all files
}

type stored struct {
	size int64
	refs int // paths that stand for it
}

// copyBuffer keeps the number of calls per segment low.
const copyBuffer = 256 << 10

func newWindow(dir string) *window {
	return &window{
		dir: dir, files: map[id.Digest]*stored{},
		create: func() (*os.File, error) { return os.CreateTemp(dir, "tmp-*") },
	}
}

func (w *window) name(d id.Digest) string { return filepath.Join(w.dir, d.String()) }

// errOwnDisk is what failures to write the copy wrap: trouble of ours, not of the source.
var errOwnDisk = errors.New("cannot write into the window")

// put copies r into the window and returns its digest and size. whole says, when all is read,
// whether the source is still what it was at the start; its error is returned and nothing is
// kept. The caller then calls keep or discard.
func (w *window) put(r io.Reader, whole func() error) (digest id.Digest, size int64, err error) {
	tmp, err := w.create()
	if err != nil {
		return digest, 0, fmt.Errorf("%w: %w", errOwnDisk, err)
	}
	defer func() {
		tmp.Close()
		if err != nil {
			os.Remove(tmp.Name())
		}
	}()
	if w.buf == nil {
		w.buf = make([]byte, copyBuffer)
	}
	hash := sha256.New()
	for {
		n, readErr := r.Read(w.buf)
		hash.Write(w.buf[:n])
		if _, err := tmp.Write(w.buf[:n]); err != nil {
			return digest, 0, fmt.Errorf("%w: %w", errOwnDisk, err)
		}
		size += int64(n)
		if readErr == io.EOF {
			break
		}
		if readErr != nil {
			return digest, 0, readErr
		}
	}
	if err := whole(); err != nil {
		return digest, 0, err
	}
	digest = id.Digest(hash.Sum(nil))
	if err := tmp.Close(); err != nil {
		return digest, 0, fmt.Errorf("%w: %w", errOwnDisk, err)
	}
	if err := os.Rename(tmp.Name(), w.name(digest)); err != nil {
		return digest, 0, fmt.Errorf("%w: %w", errOwnDisk, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.files[digest] == nil {
		w.files[digest] = &stored{size: size}
		w.total += size
	}
	return digest, size, nil
}

// keep counts one more path that stands for the file.
func (w *window) keep(d id.Digest) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if f := w.files[d]; f != nil {
		f.refs++
	}
}

// drop is the reverse of keep; with the last one the file is deleted.
func (w *window) drop(d id.Digest) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if f := w.files[d]; f != nil {
		f.refs--
	}
	return w.removeUnkept(d)
}

// discard deletes a file that was put and that nobody kept.
func (w *window) discard(d id.Digest) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.removeUnkept(d)
}

func (w *window) removeUnkept(d id.Digest) error {
	f := w.files[d]
	if f == nil || f.refs > 0 {
		return nil
	}
	delete(w.files, d)
	w.total -= f.size
	return os.Remove(w.name(d))
}

func (w *window) bytes() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.total
}

// adopt takes up a file of an earlier run: it must be there with that size and, with verify,
// with that digest.
func (w *window) adopt(d id.Digest, size int64, verify bool) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.files[d] != nil {
		return nil
	}
	info, err := os.Lstat(w.name(d))
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() || info.Size() != size {
		return fmt.Errorf("%s: %w with its %d bytes", w.name(d), fs.ErrNotExist, size)
	}
	if verify {
		if err := checkDigest(w.name(d), d); err != nil {
			return err
		}
	}
	w.files[d] = &stored{size: size}
	w.total += size
	return nil
}

func checkDigest(name string, want id.Digest) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	hash := sha256.New()
	if _, err := io.Copy(hash, f); err != nil {
		return err
	}
	if id.Digest(hash.Sum(nil)) != want {
		return fmt.Errorf("%s: %w: its bytes are others", name, fs.ErrNotExist)
	}
	return nil
}

// clean deletes every file of the directory that no path stands for: leftovers of a process
// that was killed.
func (w *window) clean() error {
	entries, err := os.ReadDir(w.dir)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, entry := range entries {
		if d, err := id.ParseDigest(entry.Name()); err == nil {
			if f := w.files[d]; f != nil && f.refs > 0 {
				continue
			}
			if f := w.files[d]; f != nil {
				w.total -= f.size
				delete(w.files, d)
			}
		}
		if err := os.Remove(filepath.Join(w.dir, entry.Name())); err != nil {
			return err
		}
	}
	return nil
}
