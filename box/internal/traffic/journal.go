package traffic

import (
	"cmp"
	"crypto/rand"
	"encoding/binary"
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
	"time"

	"dandelion/pkg/wire"
)

// maxBatch is what a batch takes in an EXCHANGE at most; the rest of MaxExchange is for the box's other
// fields. One table always fits into an empty batch.
const maxBatch = 192 << 10

const _ = uint(maxBatch - maxTable)

// block is what file systems hand out: a file takes a whole number of them.
const block = 4 << 10

// doneSuffix marks a file whose deliveries are acknowledged; it stays for its position.
const doneSuffix = ".done"

// batch is one file of the journal, named <boot>-<seq as 8 hex digits>.
type batch struct {
	mark  wire.Mark
	n     int64 // its place among all batches, from 1
	size  int64 // bytes of whole lines
	cost  int   // in an EXCHANGE, at most
	lines int   // entries
	made  time.Time

	count, bytes int64 // deliveries
}

func (b *batch) name() string { return fmt.Sprintf("%s-%08x", b.mark.Boot, b.mark.Seq) }

// charge is what the file takes on the disk.
func (b *batch) charge() int64 { return (b.size + block - 1) / block * block }

func (b *batch) take(l *line) {
	b.lines += len(l.Entries)
	for i := range l.Entries {
		e := &l.Entries[i]
		b.cost += e.cost()
		b.count, b.bytes = b.count+e.Count, b.bytes+e.Bytes
	}
}

// journal is the batches on disk. It is not safe for concurrent use.
type journal struct {
	dir  string
	sync bool
	boot string // of this life
	seq  int64  // of its last batch

	batches      []*batch // the oldest first
	n            int64    // of the last one
	used         int64    // what all of them take on the disk
	open         *os.File // of the last one, while it may grow
	position     string   // the last one that was written
	positionFile string   // the name of the file that it stands in; "": there is none
	before       string   // the file of the position before, kept until the open batch, which has a later one, is finished
	torn         int      // lines that were cut off, found at the start
}

// openJournal reads what earlier lives left. The caller has the directory for itself.
func openJournal(dir string, sync bool, now time.Time) (*journal, error) {
	j := &journal{dir: dir, sync: sync}
	files, err := os.ReadDir(dir) // by name, which is by age
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("traffic journal: %w", err)
	}
	var latest uint32 // the beginning of the last boot
	for _, f := range files {
		mark, done, ok := parseName(f.Name())
		if !ok || !f.Type().IsRegular() {
			continue // not ours
		}
		start, _ := strconv.ParseUint(mark.Boot[:8], 16, 32)
		latest = max(latest, uint32(start))
		if err := j.adopt(f.Name(), mark, done); err != nil {
			return nil, fmt.Errorf("traffic journal: %w", err)
		}
	}
	j.boot = newBoot(now, latest)
	return j, nil
}

// newBoot names this life. Names sort by age, also where the clock went back.
func newBoot(now time.Time, latest uint32) string {
	start := uint32(max(now.Unix(), 0))
	if latest >= start {
		start = latest + 1
	}
	var b [8]byte
	rand.Read(b[4:])
	binary.BigEndian.PutUint32(b[:], start)
	return hex.EncodeToString(b[:])
}

func parseName(name string) (mark wire.Mark, done, ok bool) {
	name, done = strings.CutSuffix(name, doneSuffix)
	boot, seq, _ := strings.Cut(name, "-")
	n, err := strconv.ParseInt(seq, 16, 64)
	b := batch{mark: wire.Mark{Boot: boot, Seq: n}}
	return b.mark, done, err == nil && b.mark.Check() == nil && b.name() == name
}

// adopt takes a file of an earlier life.
func (j *journal) adopt(name string, mark wire.Mark, done bool) error {
	content, err := j.read(name)
	if err != nil {
		return err
	}
	b := &batch{mark: mark, made: time.Now()}
	if info, err := os.Stat(j.path(name)); err == nil {
		b.made = info.ModTime()
	}
	position := ""
	b.size = int64(readLines(content, func(l line) bool {
		b.take(&l)
		position = cmp.Or(l.Position, position)
		return true
	}))
	if b.size < int64(len(content)) {
		j.torn++
	}
	if b.lines > 0 && !done {
		j.append(b)
	}
	if position != "" {
		if err := j.forget(j.positionFile); err != nil {
			return err
		}
		j.position, j.positionFile = position, name
	}
	switch {
	case b.lines > 0 && !done:
		return nil
	case position == "":
		return os.Remove(j.path(name))
	case !done:
		j.positionFile += doneSuffix
		return os.Rename(j.path(name), j.path(j.positionFile))
	}
	return nil
}

// maxFile is more than any file of ours has.
const maxFile = 2 * maxBatch

// read returns a file's content, maxFile bytes at most.
func (j *journal) read(name string) ([]byte, error) {
	f, err := os.Open(j.path(name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxFile))
}

func (j *journal) path(name string) string { return filepath.Join(j.dir, name) }

// append makes b the last batch.
func (j *journal) append(b *batch) {
	j.n++
	b.n = j.n
	j.batches = append(j.batches, b)
	j.used += b.charge()
}

// write adds a line to the open batch, or to a new one where that has no room; cost is what its entries
// take in an EXCHANGE. When it fails nothing of the line counts, now and after a restart.
func (j *journal) write(l *line, cost int, now time.Time) error {
	encoded, err := l.encode()
	if err != nil {
		return err
	}
	if j.open != nil && j.last().cost+cost > maxBatch {
		j.finish()
	}
	if j.open == nil {
		if err := j.begin(now); err != nil {
			return err
		}
	}
	b := j.last()
	if _, err := j.open.Write(encoded); err != nil {
		// What was written of it has no end. When it cannot be taken back, nothing may follow it.
		if b.size == 0 || j.open.Truncate(b.size) != nil {
			j.finish()
		}
		return err
	}
	j.used -= b.charge()
	b.size += int64(len(encoded))
	b.take(l)
	j.used += b.charge()
	if l.Position != "" {
		if j.positionFile != b.name() {
			j.before = j.positionFile
		}
		j.position, j.positionFile = l.Position, b.name()
	}
	return nil
}

func (j *journal) last() *batch { return j.batches[len(j.batches)-1] }

func (j *journal) begin(now time.Time) error {
	if err := os.MkdirAll(j.dir, 0o700); err != nil {
		return err
	}
	b := &batch{mark: wire.Mark{Boot: j.boot, Seq: j.seq + 1}, made: now}
	f, err := os.OpenFile(j.path(b.name()), os.O_WRONLY|os.O_APPEND|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	j.seq++
	j.open = f
	j.append(b)
	return nil
}

// finish ends the open batch: from now on it never changes.
func (j *journal) finish() {
	b := j.last()
	if j.sync {
		_ = j.open.Sync() // at worst as without
	}
	_ = j.open.Close()
	j.open = nil
	_ = j.forget(j.before) // else the next start does it
	j.before = ""
	if b.size == 0 {
		j.batches = j.batches[:len(j.batches)-1]
		_ = os.Remove(j.path(b.name()))
	}
}

// load returns the entries of a finished batch.
func (j *journal) load(b *batch) ([]entry, error) {
	content, err := j.read(b.name())
	if err != nil {
		return nil, err
	}
	if int64(len(content)) < b.size {
		return nil, fmt.Errorf("traffic journal: %s is shorter than it was", b.name())
	}
	entries := make([]entry, 0, b.lines)
	whole := readLines(content[:b.size], func(l line) bool {
		entries = append(entries, l.Entries...)
		return true
	})
	if int64(whole) != b.size || len(entries) != b.lines {
		return nil, fmt.Errorf("traffic journal: %s is damaged", b.name())
	}
	return entries, nil
}

// remove takes a finished batch away. Its file stays where it has the position to start from.
func (j *journal) remove(b *batch) error {
	i := slices.Index(j.batches, b)
	if i < 0 {
		return nil
	}
	j.batches = slices.Delete(j.batches, i, i+1)
	j.used -= b.charge()
	for _, needed := range []*string{&j.positionFile, &j.before} {
		if *needed == b.name() {
			*needed += doneSuffix
			return os.Rename(j.path(b.name()), j.path(*needed))
		}
	}
	return os.Remove(j.path(b.name()))
}

// forget removes the file of an earlier position, unless its deliveries still wait.
func (j *journal) forget(name string) error {
	if !strings.HasSuffix(name, doneSuffix) {
		return nil
	}
	return os.Remove(j.path(name))
}
