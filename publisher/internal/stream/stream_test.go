package stream

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"dandelion/publisher/internal/source"
)

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	for want, cfg := range map[string]Config{
		"is not a stream name":  {Name: "a/b", Source: "dir:/var/hls"},
		`want "dir:"`:           {Name: "demo", Source: "/var/hls"},
		"want an absolute path": {Name: "demo", Source: "dir:hls"},
		"is negative":           {Name: "demo", Source: "dir:/var/hls", SegmentTTL: -1},
	} {
		if _, err := New(cfg, nil, slog.Default()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", cfg, err, want)
		}
	}
}

func TestSegmentsAreShownWhenABoxHoldsThem(t *testing.T) {
	t.Parallel()
	r := newRig(t).start()
	r.segments("a", "0.ts", "1.ts", "2.ts")
	r.media("index.m3u8", 0, "0.ts", "1.ts", "2.ts")
	r.look()
	if len(r.placed) != 3 {
		t.Fatalf("%d segments offered, want 3", len(r.placed))
	}
	first := r.placed[0]
	if want := r.now.Add(time.Second); !first.Deadline.Equal(want) || first.Duration != 2*time.Second || !first.Complete.Equal(r.now) {
		t.Errorf("%+v, want a deadline of %v", first, want)
	}
	if first.TTL != 14*time.Second || !first.Expires.Equal(r.now.Add(first.TTL)) {
		t.Errorf("TTL %v, want twice the window of 6 s and a segment", first.TTL)
	}
	if b, err := os.ReadFile(first.File); err != nil || string(b) != "a 0.ts" {
		t.Errorf("%q, %v", b, err)
	}
	r.s.Placed(first.Path)
	if _, ok := r.s.Playlist("index/index.m3u8"); ok {
		t.Fatal("shown before its state was on disk")
	}
	r.save()
	r.want("index", "a 0.ts")
	r.s.Placed(r.placed[2].Path) // out of order: waits for the one before it
	r.want("index", "a 0.ts")
	r.s.Placed(r.placed[1].Path)
	r.want("index", "a 0.ts a 1.ts a 2.ts")
	r.s.Placed(r.placed[1].Path) // again
	r.s.Placed("/live/demo/index/000000000000/none.ts")
	r.want("index", "a 0.ts a 1.ts a 2.ts")
}

func TestSegmentsDoNotWaitLong(t *testing.T) {
	t.Parallel()
	r := newRig(t).start()
	r.segments("a", "0.ts", "1.ts", "2.ts")
	r.media("index.m3u8", 0, "0.ts")
	r.look()
	r.save()
	if next := r.s.tick(r.now); next > time.Second {
		t.Errorf("the next thing to do is in %v", next)
	}
	r.now = r.now.Add(999 * time.Millisecond)
	r.s.tick(r.now)
	if _, ok := r.s.Playlist("index/index.m3u8"); ok {
		t.Fatal("shown before a box holds it")
	}
	r.now = r.now.Add(time.Millisecond)
	r.s.tick(r.now)
	r.want("index", "a 0.ts")
	r.boxes = 0 // nothing to wait for
	r.media("index.m3u8", 0, "0.ts", "1.ts")
	r.look()
	r.save()
	r.want("index", "a 0.ts a 1.ts")
}

func TestWindowFollowsTheEncoders(t *testing.T) {
	t.Parallel()
	r := newRig(t).start()
	r.boxes = 0
	r.segments("a", "7.ts", "8.ts", "9.ts", "10.ts", "11.ts", "12.ts")
	r.media("index.m3u8", 7, "7.ts", "8.ts", "9.ts")
	r.step(0)
	if got := r.shown("index/index.m3u8"); got.Sequence != 7 || got.TargetDuration != 2 || got.Version != 3 {
		t.Errorf("%+v; want the encoder's number", got)
	}
	r.media("index.m3u8", 9, "9.ts", "10.ts", "11.ts")
	r.step(2 * time.Second)
	r.want("index", "a 9.ts a 10.ts a 11.ts")
	r.media("index.m3u8", 11, "11.ts", "12.ts") // a window shorter than three target durations
	r.step(2 * time.Second)
	r.want("index", "a 10.ts a 11.ts a 12.ts")

	// What has left is there for as long as RFC 8216 asks: its duration and the playlist's.
	left := r.placed[0]
	if got := r.read("index", strings.TrimPrefix(string(left.Path), "/live/demo/index/")); got != "a 7.ts" {
		t.Error(got)
	}
	r.step(5 * time.Second)
	if _, _, err := r.s.Open(left.Path); err != nil {
		t.Errorf("7 s after it left: %v", err)
	}
	r.step(time.Second)
	if _, _, err := r.s.Open(left.Path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("8 s after it left: %v", err)
	}
	if n := len(r.files()); n != 4 { // of 8.ts to 12.ts, without 8.ts, which left with 7.ts
		t.Errorf("%d files in the window: %v", n, r.files())
	}
}

func TestEncoderRestartsWithTheSameNames(t *testing.T) {
	t.Parallel()
	r := newRig(t).start()
	r.boxes = 0
	r.segments("a", "0.ts", "1.ts", "2.ts")
	r.media("index.m3u8", 0, "0.ts", "1.ts", "2.ts")
	r.step(0)
	r.segments("b", "0.ts") // not listed yet: the old playlist is still there
	r.step(time.Second)
	r.want("index", "a 0.ts a 1.ts a 2.ts")
	r.media("index.m3u8", 0, "0.ts")
	r.step(time.Second)
	r.want("index", "a 1.ts a 2.ts | b 0.ts")
	r.segments("b", "1.ts", "2.ts", "3.ts")
	r.media("index.m3u8", 0, "0.ts", "1.ts", "2.ts")
	r.step(4 * time.Second)
	r.want("index", "| b 0.ts b 1.ts b 2.ts")
	if got := r.shown("index/index.m3u8"); got.Sequence != 3 || got.DiscontinuitySequence != 0 {
		t.Errorf("sequence %d, discontinuities %d", got.Sequence, got.DiscontinuitySequence)
	}
	r.media("index.m3u8", 1, "1.ts", "2.ts", "3.ts")
	r.step(2 * time.Second)
	r.want("index", "b 1.ts b 2.ts b 3.ts")
	if got := r.shown("index/index.m3u8"); got.Sequence != 4 || got.DiscontinuitySequence != 1 {
		t.Errorf("sequence %d, discontinuities %d; the one that left must be counted", got.Sequence, got.DiscontinuitySequence)
	}
	// A playlist of one segment, written again with the same text by another encoder.
	r.segments("c", "0.ts")
	r.media("index.m3u8", 0, "0.ts")
	r.step(2 * time.Second)
	r.segments("d", "0.ts")
	r.media("index.m3u8", 0, "0.ts")
	r.step(2 * time.Second)
	if got := r.contents("index"); !strings.HasSuffix(got, "| c 0.ts | d 0.ts") {
		t.Error(got)
	}
}

func TestFilesTouchedAreNotARestart(t *testing.T) {
	t.Parallel()
	r := newRig(t).start()
	r.boxes = 0
	r.segments("a", "0.ts", "1.ts", "2.ts", "3.ts")
	r.media("index.m3u8", 0, "0.ts", "1.ts", "2.ts")
	r.step(0)
	r.segments("a", "0.ts", "1.ts", "2.ts") // the same bytes again, as after a restore
	r.media("index.m3u8", 0, "0.ts", "1.ts", "2.ts", "3.ts")
	r.step(time.Second)
	r.want("index", "a 0.ts a 1.ts a 2.ts a 3.ts")
}

func TestSegmentsThatWereMissed(t *testing.T) {
	t.Parallel()
	r := newRig(t).start()
	r.boxes = 0
	r.segments("a", "0.ts", "1.ts", "2.ts", "5.ts", "6.ts", "7.ts")
	r.media("index.m3u8", 0, "0.ts", "1.ts", "2.ts")
	r.step(0)
	r.media("index.m3u8", 5, "5.ts", "6.ts", "7.ts")
	r.step(0)
	if got := r.contents("index"); !strings.HasSuffix(got, "| a 5.ts a 6.ts a 7.ts") {
		t.Error(got)
	}
	if got := r.shown("index/index.m3u8"); got.Sequence+uint64(len(got.Entries)) != 6 {
		t.Errorf("the number jumped to %d", got.Sequence)
	}
}

func TestSameBytesTwice(t *testing.T) {
	t.Parallel()
	r := newRig(t).start()
	r.write("loop.ts", "clip")
	r.media("index.m3u8", 0, "loop.ts", "loop.ts")
	r.step(0)
	r.s.Placed(r.placed[0].Path)
	r.want("index", "clip clip")
	if len(r.files()) != 1 || len(r.placed) != 2 {
		t.Errorf("%d files, %d offered", len(r.files()), len(r.placed))
	}
	for i := range 20 {
		r.media("index.m3u8", i+1, "loop.ts", "loop.ts", "loop.ts")
		r.step(2 * time.Second)
	}
	r.want("index", "clip clip clip")
	if entries := len(r.s.renditions[0].entries); entries > 10 {
		t.Errorf("%d entries are kept", entries)
	}
}

func TestEnd(t *testing.T) {
	t.Parallel()
	r := newRig(t).start()
	r.boxes = 0
	r.segments("a", "0.ts", "1.ts", "2.ts")
	r.media("index.m3u8", 0, "0.ts", "1.ts", "2.ts")
	r.step(0)
	r.media("index.m3u8", 0, "0.ts", "1.ts", "2.ts", "#EXT-X-ENDLIST")
	r.step(time.Second)
	if r.shown("index.m3u8").Ended {
		t.Error("ended at once: an encoder that restarts must have time to come back")
	}
	if !r.s.Status().Ended {
		t.Error("the status does not say that it ended")
	}
	if next := r.s.tick(r.now); next != 6*time.Second {
		t.Errorf("the next thing to do is in %v, want in three target durations", next)
	}
	r.now = r.now.Add(6 * time.Second)
	r.s.tick(r.now)
	if !r.shown("index.m3u8").Ended || !r.shown("index/index.m3u8").Ended {
		t.Error("not ended")
	}
	r.start() // a viewer who comes after a restart of ours
	if !r.shown("index.m3u8").Ended {
		t.Error("not ended after a restart")
	}
	r.segments("b", "0.ts")
	r.media("index.m3u8", 0, "0.ts")
	r.step(time.Second)
	r.want("index", "a 1.ts a 2.ts | b 0.ts")
	if r.shown("index.m3u8").Ended {
		t.Error("still ended when the encoder is back")
	}
}

func TestEndBeforeTheStart(t *testing.T) {
	t.Parallel()
	r := newRig(t).start()
	r.boxes = 0
	r.segments("a", "0.ts")
	r.media("index.m3u8", 0, "#EXT-X-PLAYLIST-TYPE:VOD", "0.ts", "#EXT-X-ENDLIST")
	r.step(0)
	if got := r.shown("index.m3u8"); !got.Ended || got.Type != "" {
		t.Errorf("%+v; want an ended playlist at once, without a promise that nothing ever leaves", got)
	}
}

func TestTags(t *testing.T) {
	t.Parallel()
	r := newRig(t).start()
	r.boxes = 0
	r.segments("a", "0 a.ts", "1.ts")
	r.media("index.m3u8", 0, "#EXT-X-INDEPENDENT-SEGMENTS", "#EXT-X-SERVER-CONTROL:CAN-BLOCK-RELOAD=YES",
		"#EXT-X-PROGRAM-DATE-TIME:2026-01-02T03:04:05.678+0000", "#EXT-X-CUE-OUT:30", "0 a.ts", "#EXT-X-DISCONTINUITY", "1.ts")
	r.step(0)
	page, _ := r.s.Playlist("index.m3u8")
	short := func(i int) string { return r.placed[i].Digest.Short() }
	want := "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n#EXT-X-MEDIA-SEQUENCE:0\n#EXT-X-INDEPENDENT-SEGMENTS\n" +
		"#EXT-X-PROGRAM-DATE-TIME:2026-01-02T03:04:05.678+0000\n#EXT-X-CUE-OUT:30\n#EXTINF:2.000000,\nindex/" + short(0) + "/0%20a.ts\n" +
		"#EXT-X-DISCONTINUITY\n#EXTINF:2.000000,\nindex/" + short(1) + "/1.ts\n"
	if string(page.Body) != want {
		t.Errorf("got\n%s\nwant\n%s", page.Body, want)
	}
	if page.ETag == "" || page.ETag[0] != '"' || !page.Modified.Equal(r.now) || page.MaxAge != time.Second {
		t.Errorf("%+v", page)
	}
	// The target duration grows with the segments, and never shrinks.
	r.write("2.ts", "long")
	r.write("index.m3u8", mediaText(0, "0 a.ts", "1.ts")+"#EXTINF:3.6,\n2.ts\n")
	r.step(0)
	if got := r.shown("index.m3u8"); got.TargetDuration != 4 {
		t.Errorf("target duration %d", got.TargetDuration)
	}
}

func TestStatus(t *testing.T) {
	t.Parallel()
	r := newRig(t).start()
	r.boxes = 0
	r.write("0.ts", strings.Repeat("x", 1000))
	r.write("1.ts", strings.Repeat("y", 1000))
	r.media("index.m3u8", 3, "0.ts", "1.ts")
	r.step(0)
	got := r.s.Status()
	if len(got.Renditions) != 1 || got.Problem != "" || got.Ended || got.Name != "demo" {
		t.Fatalf("%+v", got)
	}
	want := RenditionStatus{Name: "index", MediaSequence: 3, Entries: 2, TargetDuration: 2, LastSegment: r.now, BitRate: 4000, Longest: 2 * time.Second, TTL: 14 * time.Second}
	if got.Renditions[0] != want {
		t.Errorf("%+v, want %+v", got.Renditions[0], want)
	}
}

// While the encoder's directory is away viewers keep what they have, and it goes on after.
func TestDirectoryVanishes(t *testing.T) {
	t.Parallel()
	r := newRig(t).start()
	r.boxes = 0
	r.segments("a", "0.ts", "1.ts", "2.ts")
	r.media("index.m3u8", 0, "0.ts", "1.ts", "2.ts")
	r.step(0)
	if err := os.RemoveAll(r.dir); err != nil {
		t.Fatal(err)
	}
	r.s.update(context.Background(), r.now, source.Update{Problem: "it is away"})
	r.want("index", "a 0.ts a 1.ts a 2.ts")
	if st := r.s.Status(); st.Problem != "it is away" || len(st.Renditions) != 1 {
		t.Errorf("%+v", st)
	}
	clear(r.parsed)
	r.segments("a", "2.ts", "3.ts") // as it was, by its bytes
	r.media("index.m3u8", 2, "2.ts", "3.ts")
	r.step(time.Minute)
	if got := r.contents("index"); !strings.HasSuffix(got, "a 2.ts a 3.ts") {
		t.Error(got)
	}
	if st := r.s.Status(); st.Problem != "" {
		t.Errorf("%+v", st)
	}
}

// The same with one playlist: for viewers it is one stream that goes on.
func TestTheOnlyPlaylistChangesItsName(t *testing.T) {
	t.Parallel()
	r := newRig(t).start()
	r.boxes = 0
	r.segments("a", "0.ts", "1.ts", "2.ts")
	r.media("a.m3u8", 0, "0.ts", "1.ts", "2.ts")
	r.step(0)
	r.start()
	r.remove("a.m3u8")
	r.segments("b", "0.ts", "1.ts")
	r.media("b.m3u8", 0, "0.ts", "1.ts")
	r.step(time.Second)
	r.want("a", "a 2.ts | b 0.ts b 1.ts")
	if got := r.shown("index.m3u8"); got.Sequence != 2 {
		t.Errorf("sequence %d", got.Sequence)
	}
}
