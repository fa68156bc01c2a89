package accesslog

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"
	"time"
)

// BenchmarkFollow reads a log of 200,000 lines, or ACCESSLOG_LINES, beside a bare bufio.Scanner over the same file.
// lines/s should stay above 100,000, and the heap below some MB however many lines there are:
//
//	ACCESSLOG_LINES=5000000 go test -run '^$' -bench Follow -benchtime 1x ./box/internal/accesslog
func BenchmarkFollow(b *testing.B) {
	lines, err := strconv.Atoi(os.Getenv("ACCESSLOG_LINES"))
	if err != nil {
		lines = 200_000
	}
	path := filepath.Join(b.TempDir(), "access.log")
	writeLog(b, path, lines)
	var following, scanning time.Duration
	var heap uint64
	for b.Loop() {
		began := time.Now()
		heap = max(heap, followAll(b, path, lines))
		following += time.Since(began)
		began = time.Now()
		scanAll(b, path, lines)
		scanning += time.Since(began)
	}
	all := float64(lines) * float64(b.N)
	b.ReportMetric(all/following.Seconds(), "lines/s")
	b.ReportMetric(all/scanning.Seconds(), "scanner-lines/s")
	b.ReportMetric(float64(heap)/(1<<20), "heap-MiB")
}

func writeLog(b *testing.B, path string, lines int) {
	b.Helper()
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	w := bufio.NewWriterSize(f, 1<<20)
	for i := range lines {
		fmt.Fprintf(w, `{"time":%d.%03d,"viewer":"198.51.100.%d","method":"GET","uri":"/publisher-0123456789abcdef0123456789abcdef/live/show/720p/%012x/seg-%d.ts","status":"200","bytes":%d,"completion":"OK"}`+"\n",
			1512345678+i/60, i%1000, i%250, i/20, i/20, 400_000+i%1000)
	}
	if err := w.Flush(); err != nil {
		b.Fatal(err)
	}
	if err := f.Close(); err != nil {
		b.Fatal(err)
	}
}

// followAll returns the largest heap that was seen on the way.
func followAll(b *testing.B, path string, lines int) (heap uint64) {
	b.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	taken, portions := 0, 0
	var bytes int64
	f := New(Config{Path: path, Log: slog.New(slog.DiscardHandler), Take: func(list []Delivery, _ Position) error {
		for i := range list {
			bytes += list[i].Bytes
		}
		if portions++; portions%64 == 0 {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			heap = max(heap, m.HeapInuse)
		}
		if taken += len(list); taken == lines {
			cancel()
		}
		return nil
	}})
	if err := f.Run(ctx); err != nil || taken != lines || bytes < int64(lines)*400_000 {
		b.Fatalf("%d lines, %d bytes, %v", taken, bytes, err)
	}
	return heap
}

func scanAll(b *testing.B, path string, lines int) {
	b.Helper()
	f, err := os.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	n := 0
	for s := bufio.NewScanner(f); s.Scan(); {
		n++
	}
	if n != lines {
		b.Fatal(n)
	}
}
