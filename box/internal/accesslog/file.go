package accesslog

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Position is how far a log was taken. It finds its file again after the file was renamed, and, by
// Head, after it was copied and truncated. The zero Position is the beginning of the log.
type Position struct {
	Inode  uint64
	Offset int64  // bytes, behind the last line that was taken
	Head   string // hex digits of a digest of the first 1024 bytes, of Offset where it is less
}

const headSize = 1024

const (
	// bufferSize is how much is read, and given on, at once.
	bufferSize = 256 << 10
	// maxLine is more than nginx writes: it takes request lines of 8 KiB, and JSON makes at most 6 bytes
	// of one.
	maxLine = 64 << 10
)

// log is one file of the log, open for reading.
type log struct {
	f      *os.File
	inode  uint64
	buf    []byte // what was read and not taken
	read   int64  // up to where the file was read
	taken  int64  // behind the last line that was taken
	skip   bool   // what comes up to the next end of a line is a line too long for buf
	head   []byte // the first bytes of the file, as far as they were taken
	digest string // of head
	closed bool   // nothing is appended any more
}

// openLog opens a file to be read on from the offset. The caller has made sure that it is the right one.
func openLog(name string, offset int64) (*log, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New(name + " is no file")
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	l := &log{f: f, inode: inode(info), buf: make([]byte, 0, bufferSize), read: offset, taken: offset}
	if err := l.noteHead(); err != nil {
		f.Close()
		return nil, err
	}
	return l, nil
}

func inode(info fs.FileInfo) uint64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return uint64(st.Ino)
	}
	return 0
}

func (l *log) position() Position { return Position{Inode: l.inode, Offset: l.taken, Head: l.digest} }

// noteHead reads the head again while it may still grow.
func (l *log) noteHead() error {
	want := min(l.taken, headSize)
	if int64(len(l.head)) >= want {
		return nil
	}
	head, err := readHead(l.f, want)
	if err != nil {
		return err
	}
	l.head, l.digest = head, digest(head)
	return nil
}

func readHead(f *os.File, n int64) ([]byte, error) {
	head := make([]byte, n)
	_, err := f.ReadAt(head, 0)
	return head, err
}

func digest(head []byte) string {
	if len(head) == 0 {
		return ""
	}
	sum := sha256.Sum256(head)
	return hex.EncodeToString(sum[:16])
}

// truncated reports whether the file lost what was read of it, also where it has grown beyond that since.
func (l *log) truncated() (bool, error) {
	info, err := l.f.Stat()
	if err != nil {
		return false, err
	}
	if info.Size() < l.read {
		return true, nil
	}
	if len(l.head) == 0 {
		return false, nil
	}
	head, err := readHead(l.f, int64(len(l.head)))
	if errors.Is(err, io.EOF) {
		return true, nil // between the two looks
	}
	return err == nil && !bytes.Equal(head, l.head), err
}

// fill reads what fits into the buffer and returns the whole lines in it, their ends included; nil: there is
// no more of them now.
func (l *log) fill() ([]byte, error) {
	have := len(l.buf)
	n, err := l.f.ReadAt(l.buf[have:cap(l.buf)], l.read)
	if err != nil && err != io.EOF {
		return nil, err
	}
	l.buf = l.buf[:have+n]
	l.read += int64(n)
	if end := bytes.LastIndexByte(l.buf[have:], '\n'); end >= 0 {
		return l.buf[:have+end+1], nil
	}
	if len(l.buf) == cap(l.buf) {
		l.buf, l.skip = l.buf[:0], true
	}
	return nil, nil
}

// took drops lines that fill returned.
func (l *log) took(lines []byte) error {
	l.buf = l.buf[:copy(l.buf, l.buf[len(lines):])]
	l.taken = l.read - int64(len(l.buf))
	l.skip = false
	return l.noteHead()
}

func (l *log) pending() bool { return len(l.buf) > 0 || l.skip }

// older is a file that the log was before: renamed, or copied.
type older struct {
	name    string
	inode   uint64
	size    int64
	changed time.Time
}

// olders lists the files beside the log whose names a rotation makes, by their last change.
func olders(name string) []older {
	dir, base := filepath.Split(name)
	entries, err := os.ReadDir(filepath.Clean(dir + "."))
	if err != nil {
		return nil
	}
	var list []older
	for _, e := range entries {
		if rest, ok := strings.CutPrefix(e.Name(), base); !ok || rest == "" || rest[0] != '.' && rest[0] != '-' || compressed(rest) {
			continue
		}
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() {
			list = append(list, older{filepath.Join(dir, e.Name()), inode(info), info.Size(), info.ModTime()})
		}
	}
	slices.SortFunc(list, func(a, b older) int { return a.changed.Compare(b.changed) })
	return list
}

func compressed(name string) bool {
	return slices.Contains([]string{".gz", ".bz2", ".xz", ".zst", ".lz4"}, filepath.Ext(name))
}

// holds reports whether a file begins as the one of the position did, and has all that was taken of it.
func holds(name string, at Position) bool {
	info, err := os.Stat(name)
	return err == nil && info.Size() >= at.Offset && begins(name, at)
}

// begins reports whether a file begins as the one of the position did.
func begins(name string, at Position) bool {
	f, err := os.Open(name)
	if err != nil {
		return false
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return false
	}
	head, err := readHead(f, min(at.Offset, headSize))
	return err == nil && digest(head) == at.Head
}

// String returns the position as text, for a journal; ParsePosition reads it.
func (p Position) String() string {
	if p == (Position{}) {
		return ""
	}
	return fmt.Sprintf("%d %d %s", p.Inode, p.Offset, p.Head)
}

// ParsePosition reads what String wrote. What it did not write is the zero Position.
func ParsePosition(text string) (p Position) {
	fields := strings.Split(text, " ")
	if len(fields) != 3 {
		return Position{}
	}
	var errs [2]error
	p.Inode, errs[0] = strconv.ParseUint(fields[0], 10, 64)
	p.Offset, errs[1] = strconv.ParseInt(fields[1], 10, 64)
	if p.Head = fields[2]; errors.Join(errs[:]...) != nil || p.Offset < 0 {
		return Position{}
	}
	return p
}
