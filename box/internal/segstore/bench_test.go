package segstore

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"dandelion/pkg/id"
)

// benchDir is on tmpfs where there is one, as live directories are.
func benchDir(b *testing.B) string {
	dir, err := os.MkdirTemp("/dev/shm", "segstore")
	if err != nil {
		return b.TempDir()
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func benchStore(b *testing.B, cfg Config) *Store {
	s, err := Open(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(s.Close)
	return s
}

// BenchmarkCommit receives and commits files, each beside a plain copy of the same bytes into a
// file that is then renamed: the ratio is what digest, two names and index cost.
func BenchmarkCommit(b *testing.B) {
	for _, mb := range []int{1, 6} {
		b.Run(fmt.Sprintf("%dMB", mb), func(b *testing.B) {
			dir := benchDir(b)
			s := benchStore(b, Config{LiveDir: filepath.Join(dir, "live"), DataDir: filepath.Join(dir, "data"), LiveLimit: 256 << 20, StorageLimit: 1 << 20})
			body := content(1, mb<<20)
			digest := id.DigestOf(body)
			var ours, plain, hashing time.Duration
			i := 0
			b.SetBytes(int64(len(body)))
			for b.Loop() {
				i++
				start := time.Now()
				w, err := s.Create(Meta{Publisher: pubA, Path: id.Path(fmt.Sprintf("/live/s/r/%012x/seg-%d.ts", i, i)), TTL: time.Minute, Size: int64(len(body)), Digest: digest})
				if err != nil {
					b.Fatal(err)
				}
				if _, err := w.ReadFrom(onlyReader{bytes.NewReader(body)}); err != nil {
					b.Fatal(err)
				}
				if _, err := w.Commit(); err != nil {
					b.Fatal(err)
				}
				ours += time.Since(start)

				start = time.Now()
				if err := plainCopy(filepath.Join(dir, fmt.Sprint("plain", i%8)), body); err != nil {
					b.Fatal(err)
				}
				plain += time.Since(start)

				start = time.Now()
				id.DigestOf(body)
				hashing += time.Since(start)
			}
			b.ReportMetric(float64(ours)/float64(plain), "time/plain-copy")
			b.ReportMetric(float64(ours)/float64(plain+hashing), "time/copy-and-sha256")
		})
	}
}

type onlyReader struct{ io.Reader }

func plainCopy(name string, body []byte) error {
	f, err := os.Create(name + ".tmp")
	if err != nil {
		return err
	}
	buf := copyBuffers.Get().(*[copyBuffer]byte)
	defer copyBuffers.Put(buf)
	_, err = io.CopyBuffer(struct{ io.Writer }{f}, onlyReader{bytes.NewReader(body)}, buf[:])
	return errors.Join(err, f.Close(), os.Rename(name+".tmp", name))
}

func fillStore(b *testing.B, cfg Config, files int) {
	s := benchStore(b, cfg)
	for i := range files {
		p := fmt.Sprintf("/live/demo/720p/%012x/seg-%d.ts", i, i)
		if _, err := put(s, pubA, p, 10*time.Minute, fmt.Append(nil, i)); err != nil {
			b.Fatal(err)
		}
	}
	s.Close()
}

// BenchmarkScan starts on 10,000 segments, each in a directory of its own, as live ones are
// (docs/performance.md: serving within 1 s; the whole box within 40 MB).
func BenchmarkScan(b *testing.B) {
	const files = 10_000
	dir := benchDir(b)
	cfg := Config{LiveDir: filepath.Join(dir, "live"), DataDir: filepath.Join(dir, "data"), LiveLimit: 256 << 20, StorageLimit: 1 << 20}
	fillStore(b, cfg, files)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var s *Store
	for b.Loop() {
		if s != nil {
			s.Close()
		}
		var err error
		if s, err = Open(cfg, slog.New(slog.DiscardHandler)); err != nil {
			b.Fatal(err)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if n := s.Usage().Live.Files; n != files {
		b.Fatalf("%d files found", n)
	}
	s.Close()
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/files, "heap-B/file")
	b.ReportMetric(b.Elapsed().Seconds()/float64(b.N), "s/start")
}

// BenchmarkOpen finds and opens one of 10,000 files, beside opening it by its path.
func BenchmarkOpen(b *testing.B) {
	const files = 10_000
	dir := benchDir(b)
	cfg := Config{LiveDir: filepath.Join(dir, "live"), DataDir: filepath.Join(dir, "data"), LiveLimit: 256 << 20, StorageLimit: 1 << 20}
	fillStore(b, cfg, files)
	s := benchStore(b, cfg)
	var ours, plain time.Duration
	i := 0
	for b.Loop() {
		i = (i + 7919) % files
		p := id.Path(fmt.Sprintf("/live/demo/720p/%012x/seg-%d.ts", i, i))
		start := time.Now()
		f, _, err := s.Open(pubA, p)
		if err != nil {
			b.Fatal(err)
		}
		f.Close()
		ours += time.Since(start)
		name := filepath.Join(cfg.LiveDir, string(pubA), p.Rel())
		start = time.Now()
		if f, err = os.Open(name); err != nil {
			b.Fatal(err)
		}
		f.Close()
		plain += time.Since(start)
	}
	b.ReportMetric(float64(ours)/float64(plain), "time/os.Open")
}

// BenchmarkHave lists a page of 500 out of 10,000.
func BenchmarkHave(b *testing.B) {
	dir := benchDir(b)
	cfg := Config{DataDir: filepath.Join(dir, "data"), StorageLimit: 256 << 20}
	fillStore(b, cfg, 10_000)
	s := benchStore(b, cfg)
	for b.Loop() {
		s.Have(pubA, "/live/demo/720p/000000001000", 500)
	}
}
