package stream

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"testing"
	"time"
)

// From the moment at which an encoder's playlist lists a segment to the moment at which it is
// offered to placement, and a viewer's playlist shows it: events, copying and hashing of 1 MB
// included. The copy of the same file alone stands beside it.
func BenchmarkSegment(b *testing.B) {
	segment := bytes.Repeat([]byte("segment "), 1<<17)
	b.Run("copied", func(b *testing.B) {
		dir := b.TempDir()
		for i := range b.N {
			if err := os.WriteFile(fmt.Sprintf("%s/%d.ts", dir, i%10), segment, 0o644); err != nil {
				b.Fatal(err)
			}
		}
	})
	for name, shown := range map[string]bool{"offered": false, "shown": true} {
		b.Run(name, func(b *testing.B) {
			dir := b.TempDir()
			offered := make(placerFunc, 1)
			s, err := New(Config{Name: "demo", Source: "dir:" + dir, Dir: b.TempDir() + "/demo"}, offered, slog.New(slog.NewTextHandler(io.Discard, nil)))
			if err != nil {
				b.Fatal(err)
			}
			if err := s.Load(time.Now()); err != nil {
				b.Fatal(err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan error)
			go func() { done <- s.Run(ctx) }()
			defer func() { cancel(); <-done }()
			for i := range b.N {
				b.StopTimer()
				name := fmt.Sprintf("%d.ts", i)
				if err := os.WriteFile(dir+"/"+name, append(segment, name...), 0o644); err != nil {
					b.Fatal(err)
				}
				text := mediaText(i, name)
				if err := os.WriteFile(dir+"/tmp", []byte(text), 0o644); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				if err := os.Rename(dir+"/tmp", dir+"/index.m3u8"); err != nil {
					b.Fatal(err)
				}
				seg := <-offered
				for shown {
					if page, ok := s.Playlist("index/index.m3u8"); ok && bytes.Contains(page.Body, []byte(seg.Digest.Short())) {
						break
					}
				}
				b.StopTimer()
				os.Remove(dir + "/" + name)
				b.StartTimer()
			}
		})
	}
}

type placerFunc chan Segment

func (p placerFunc) Place(seg Segment) { p <- seg }

func BenchmarkPlaylist(b *testing.B) {
	s, err := New(Config{Name: "demo", Source: "dir:/var/hls", Dir: b.TempDir()}, nil, slog.Default())
	if err != nil {
		b.Fatal(err)
	}
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			s.Playlist("720p/index.m3u8")
		}
	})
}
