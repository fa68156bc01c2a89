package testfleet

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"dandelion/pkg/id"
)

// Encoder writes a live HLS stream as encoders do, a segment at each call; its segments are
// bytes of no picture that tests can compare.
type Encoder struct {
	tb       testing.TB
	dir      string
	Window   int // segments in the playlist
	Size     int // bytes of a segment
	Seconds  float64
	Keep     int // segments that stay in the directory and in Segments; 0: all
	stream   int
	next     int
	run      int // counts restarts; other bytes come under the same names
	Segments []Segment
}

// Segment is what the encoder wrote.
type Segment struct {
	Name    string
	Content []byte
}

// Digest is the segment's.
func (s Segment) Digest() id.Digest { return id.DigestOf(s.Content) }

// Path is where the publisher places and serves it.
func (s Segment) Path() id.Path {
	p, err := id.NewSegmentPath("demo", "video", s.Digest(), s.Name)
	if err != nil {
		panic(err)
	}
	return p.Path()
}

// Encoder returns an encoder that writes the fleet's first stream.
func (f *Fleet) Encoder() *Encoder { return f.EncoderOf(1) }

// EncoderOf returns an encoder that writes one of the fleet's streams, counted from 1.
func (f *Fleet) EncoderOf(stream int) *Encoder {
	return f.encoder(f.sourceDir(stream), stream)
}

func (f *Fleet) encoder(dir string, stream int) *Encoder {
	f.tb.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		f.tb.Fatal(err)
	}
	return &Encoder{tb: f.tb, dir: dir, stream: stream, Window: 20, Size: 50_000, Seconds: 2}
}

// Write writes n more segments, the playlist after each.
func (e *Encoder) Write(n int) {
	e.tb.Helper()
	for range n {
		s := Segment{Name: fmt.Sprintf("seg-%d.ts", e.next), Content: e.content()}
		e.put(s.Name, s.Content)
		e.next++
		e.Segments = append(e.Segments, s)
		e.put("video.m3u8", e.playlist(false))
		for e.Keep > 0 && len(e.Segments) > e.Keep {
			if err := os.Remove(filepath.Join(e.dir, e.Segments[0].Name)); err != nil {
				e.tb.Fatal(err)
			}
			e.Segments = e.Segments[1:]
		}
	}
}

// Restart makes the encoder begin again with the same names and other bytes.
func (e *Encoder) Restart() { e.next, e.run = 0, e.run+1 }

// End writes the end of the stream.
func (e *Encoder) End() { e.put("video.m3u8", e.playlist(true)) }

func (e *Encoder) content() []byte {
	seed := sha256.Sum256(fmt.Appendf(nil, "%d/%d/%d", e.stream, e.run, e.next))
	return bytes.Repeat(seed[:], e.Size/len(seed)+1)[:e.Size]
}

func (e *Encoder) playlist(ended bool) []byte {
	first := max(e.next-e.Window, 0)
	var b bytes.Buffer
	fmt.Fprintf(&b, "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:%d\n#EXT-X-MEDIA-SEQUENCE:%d\n", int(e.Seconds+0.5), first)
	for n := first; n < e.next; n++ {
		fmt.Fprintf(&b, "#EXTINF:%.3f,\nseg-%d.ts\n", e.Seconds, n)
	}
	if ended {
		b.WriteString("#EXT-X-ENDLIST\n")
	}
	return b.Bytes()
}

// put replaces a file by renaming, as encoders with temp_file do.
func (e *Encoder) put(name string, b []byte) {
	e.tb.Helper()
	temp := filepath.Join(e.dir, name+".tmp")
	if err := os.WriteFile(temp, b, 0o644); err != nil {
		e.tb.Fatal(err)
	}
	if err := os.Rename(temp, filepath.Join(e.dir, name)); err != nil {
		e.tb.Fatal(err)
	}
}
