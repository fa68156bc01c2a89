package stream

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"
	"time"
)

func TestShortTTL(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.cfg.SegmentTTL = 10 * time.Second
	r.start()
	r.segments("a", "0.ts", "1.ts", "2.ts", "3.ts")
	r.media("index.m3u8", 0, "0.ts", "1.ts", "2.ts")
	for range 3 {
		r.step(time.Second)
	}
	problem := r.s.Status().Problem
	if len(r.placed) > 0 || !strings.Contains(problem, "segment_ttl 10s") || !strings.Contains(problem, "14s or more") {
		t.Errorf("%d offered, problem %q", len(r.placed), problem)
	}
	if n := strings.Count(r.logs.String(), "level=ERROR"); n != 1 {
		t.Errorf("logged %d times:\n%s", n, r.logs)
	}
	r.cfg.SegmentTTL = 14 * time.Second
	r.start()
	r.step(0)
	if len(r.placed) != 3 || r.placed[0].TTL != 14*time.Second || r.s.Status().Problem != "" {
		t.Errorf("%d offered, problem %q", len(r.placed), r.s.Status().Problem)
	}
	// It grows while it runs: that stops nobody.
	r.media("index.m3u8", 0, "0.ts", "1.ts", "2.ts", "3.ts")
	r.step(0)
	if n := len(r.placed); n != 4 || r.placed[3].TTL != 18*time.Second || !strings.Contains(r.s.Status().Problem, "18s or more") {
		t.Errorf("%d offered, problem %q", n, r.s.Status().Problem)
	}
}

func TestWindowLimit(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.cfg.WindowLimit = 1000
	r.start()
	r.boxes = 0
	var names []string
	for i := range 20 {
		name := string(rune('a'+i)) + ".ts"
		r.write(name, strings.Repeat(string(rune('a'+i)), 200))
		names = append(names, name)
		r.media("index.m3u8", 0, names...) // the encoder never drops anything
		r.step(2 * time.Second)
		r.step(0)
		if got := r.s.window.bytes(); got > 1200 {
			t.Fatalf("%d bytes after %d segments", got, i+1)
		}
	}
	if got := len(r.shown("index.m3u8").Entries); got < 3 || got > 5 {
		t.Errorf("%d entries shown", got)
	}
	if problem := r.s.Status().Problem; problem != "" {
		t.Error(problem)
	}
	// Larger than all that may be kept, one and three.
	r.write("huge.ts", strings.Repeat("x", 1001))
	r.write("v.ts", strings.Repeat("v", 400))
	r.write("w.ts", strings.Repeat("w", 400))
	r.write("x.ts", strings.Repeat("x", 400))
	r.media("index.m3u8", 19, names[19], "huge.ts", "v.ts", "w.ts", "x.ts")
	r.step(2 * time.Second)
	r.step(time.Minute)
	r.step(time.Minute)
	if got := len(r.shown("index.m3u8").Entries); got != 3 {
		t.Errorf("%d entries shown, want the three target durations that must be", got)
	}
	if problem := r.s.Status().Problem; !strings.Contains(problem, "window_limit of 1000 bytes is too small") || !strings.Contains(problem, "1200") {
		t.Errorf("problem %q", problem)
	}
	if !strings.Contains(r.logs.String(), "1001 bytes are more than the whole window") {
		t.Errorf("log:\n%s", r.logs)
	}
}

func TestPlaylistNames(t *testing.T) {
	t.Parallel()
	r := newRig(t).start()
	for _, c := range []struct {
		path  string
		alone bool
		want  string
	}{
		{"stream_0.m3u8", true, "stream_0"},
		{"720p/index.m3u8", true, "720p"},
		{"720p/audio.m3u8", false, "720p_audio"},
		{"a/b/index.m3u8", true, "a_b"},
		{"a/b_index.m3u8", false, "a_b_index"},
		{"a b/ü.m3u8", true, "a-b"},
		{"_x.m3u8", true, "x"},
		{"x.m3u8", true, "x-2"},
		{".m3u8", true, "rendition"},
		{strings.Repeat("l", 80) + ".m3u8", true, strings.Repeat("l", 64)},
		{strings.Repeat("l", 81) + ".m3u8", true, strings.Repeat("l", 62) + "-2"},
	} {
		name := r.s.newName(c.path, c.alone)
		if string(name) != c.want {
			t.Errorf("%s: %q, want %q", c.path, name, c.want)
		}
		r.s.renditions = append(r.s.renditions, &rendition{path: c.path, name: name})
	}
}

// An encoder that gives its playlists new names at each start.
func TestMoreRenditionsThanFit(t *testing.T) {
	t.Parallel()
	r := newRig(t).start()
	r.boxes = 0
	for i := range 150 {
		for _, kind := range []string{"a", "v"} {
			name := fmt.Sprintf("%s-%d.m3u8", kind, i)
			r.segments(name, kind+"0.ts", kind+"1.ts")
			r.media(name, 0, kind+"0.ts", kind+"1.ts")
		}
		r.step(time.Second)
		r.remove(fmt.Sprintf("a-%d.m3u8", i))
		r.remove(fmt.Sprintf("v-%d.m3u8", i))
	}
	if n := len(r.s.renditions); n > 130 {
		t.Errorf("%d renditions are kept", n)
	}
	if n := len(*r.s.pages.Load()); n > 131 {
		t.Errorf("%d playlists are kept", n)
	}
}

func TestLostSegmentsAreGaps(t *testing.T) {
	t.Parallel()
	r := newRig(t).start()
	r.boxes = 0
	// What is gone at the very beginning is not missed by anybody.
	r.segments("a", "1.ts", "2.ts")
	r.media("index.m3u8", 0, "0.ts", "1.ts", "2.ts")
	r.step(0)
	r.want("index", "a 1.ts a 2.ts")
	// Gone, and a later one is there.
	r.segments("a", "4.ts")
	r.media("index.m3u8", 0, "0.ts", "1.ts", "2.ts", "3.ts", "4.ts")
	r.step(0)
	r.want("index", "a 1.ts a 2.ts - a 4.ts")
	if got := r.shown("index/index.m3u8"); got.Version != 8 || got.Entries[2].URI != "gap/3" {
		t.Errorf("version %d, %+v", got.Version, got.Entries[2])
	}
	if _, _, err := r.s.Open("/live/demo/index/gap/3"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("open of a gap: %v", err)
	}
	// The last one may still come, for a target duration.
	r.media("index.m3u8", 0, "0.ts", "1.ts", "2.ts", "3.ts", "4.ts", "5.ts")
	r.step(0)
	r.step(time.Second)
	r.want("index", "a 1.ts a 2.ts - a 4.ts")
	r.segments("a", "5.ts")
	r.media("index.m3u8", 0, "0.ts", "1.ts", "2.ts", "3.ts", "4.ts", "5.ts")
	r.step(500 * time.Millisecond)
	r.want("index", "a 1.ts a 2.ts - a 4.ts a 5.ts")
	r.media("index.m3u8", 0, "0.ts", "1.ts", "2.ts", "3.ts", "4.ts", "5.ts", "6.ts")
	r.step(0)
	r.step(2 * time.Second)
	r.want("index", "a 1.ts a 2.ts - a 4.ts a 5.ts -")
	// What the encoder itself marks as missing.
	r.segments("a", "8.ts")
	r.media("index.m3u8", 5, "5.ts", "6.ts", "#EXT-X-GAP", "7.ts", "8.ts")
	r.step(0)
	if got := r.contents("index"); !strings.HasSuffix(got, "a 5.ts - - a 8.ts") {
		t.Error(got)
	}
}

func TestURIsThatLeadOutAreGaps(t *testing.T) {
	t.Parallel()
	r := newRig(t).start()
	r.boxes = 0
	r.segments("a", "0.ts", "9.ts")
	r.media("index.m3u8", 0, "0.ts")
	r.step(0)
	for range 3 {
		r.media("index.m3u8", 0, "0.ts", "http://host/1.ts", "../../etc/passwd", "/etc/passwd", "file:///etc/passwd", "9.ts")
		r.step(time.Second)
	}
	r.want("index", "a 0.ts - - - - a 9.ts")
	if n := strings.Count(r.logs.String(), "segments are lost"); n != 1 || !strings.Contains(r.logs.String(), "not relative to its playlist") {
		t.Errorf("logged %d times, want once, with the reason:\n%s", n, r.logs)
	}
}

// A file that was written after the playlist that lists it is another one, half written.
func TestFilesNewerThanTheirPlaylistWait(t *testing.T) {
	t.Parallel()
	r := newRig(t).start()
	r.boxes = 0
	r.media("index.m3u8", 0, "0.ts")
	r.segments("half", "0.ts")
	r.step(0)
	r.step(20 * time.Second)
	if _, ok := r.s.Playlist("index/index.m3u8"); ok {
		t.Fatal("shown")
	}
	r.segments("whole", "0.ts")
	r.media("index.m3u8", 0, "0.ts")
	r.step(time.Second)
	r.want("index", "whole 0.ts")

	// In a copied directory the files have any order. They count when they stay as they are.
	r = newRig(t).start()
	r.boxes = 0
	r.media("index.m3u8", 0, "0.ts", "1.ts", "#EXT-X-ENDLIST")
	r.segments("a", "0.ts", "1.ts")
	r.step(0)
	r.step(4 * time.Second)
	r.step(4 * time.Second)
	r.want("index", "a 0.ts a 1.ts")
}
