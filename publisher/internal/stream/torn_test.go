package stream

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"dandelion/pkg/playlist"
)

// Numbers that fall in one listing alone are a half-written playlist, also where nothing of
// what it lists was ever taken.
func TestHalfAPlaylistOfUnknownSegments(t *testing.T) {
	t.Parallel()
	r := newRig(t).start()
	r.boxes = 0
	r.segments("a", "2.ts", "3.ts")
	r.media("index.m3u8", 0, "0.ts", "1.ts", "2.ts")
	r.step(0)
	r.want("index", "a 2.ts")
	r.media("index.m3u8", 0, "0.ts", "1.ts")
	r.step(0)
	r.media("index.m3u8", 0, "0.ts", "1.ts", "2.ts", "3.ts")
	r.step(0)
	r.want("index", "a 2.ts a 3.ts")
}

// A file that changes while it is copied is not kept.
func TestFileChangesWhileItIsCopied(t *testing.T) {
	t.Parallel()
	r := newRig(t).start()
	r.segments("a", "0.ts")
	f, err := r.s.src.Open("index.m3u8", "0.ts")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r.segments("b", "0.ts")
	if _, _, err := r.s.copyFile(f, nil); !errors.Is(err, errNotYet) {
		t.Errorf("%v, want %v", err, errNotYet)
	}
	if files := r.files(); len(files) > 0 {
		t.Errorf("%q are left in the window", files)
	}
}

// A process that dies right after it found its state damaged does not begin at the bottom.
func TestKilledAfterDamage(t *testing.T) {
	t.Parallel()
	r := newRig(t).start()
	r.boxes = 0
	r.segments("a", "5.ts", "6.ts")
	r.media("index.m3u8", 5, "5.ts", "6.ts")
	r.step(0)
	if err := os.WriteFile(r.state+"/state.json", []byte(`{"version":1`), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, media := range r.seen { // its numbers stay above, all else may change
		r.seen[name] = &playlist.Media{Sequence: media.Sequence + 2, DiscontinuitySequence: media.DiscontinuitySequence}
	}
	r.start()
	r.start()
	r.step(0)
	if got := r.shown("index.m3u8"); got.Sequence != uint64(r.now.Unix()) || got.DiscontinuitySequence != got.Sequence {
		t.Errorf("begins with %d, discontinuity %d; want %d, far above what was shown", got.Sequence, got.DiscontinuitySequence, r.now.Unix())
	}
}

// The index waits for all renditions that come, but not longer than for the first.
func TestIndexWaitsForTheFirstAlone(t *testing.T) {
	t.Parallel()
	r := newRig(t).start()
	r.boxes = 0
	r.segments("a", "v.ts", "w.ts")
	r.write("master.m3u8", "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\nv.m3u8\n#EXT-X-STREAM-INF:BANDWIDTH=2\nw.m3u8\n")
	r.media("v.m3u8", 0, "v.ts")
	r.step(0)
	r.media("w.m3u8", 0, "w.ts")
	r.step(3 * time.Second)
	if _, ok := r.s.Playlist("index.m3u8"); ok {
		t.Error("shown with one segment of each after 3 s")
	}
	r.step(time.Second)
	if page, _ := r.s.Playlist("index.m3u8"); !strings.Contains(string(page.Body), "w/index.m3u8") {
		t.Errorf("after two target durations of the first: %q", page.Body)
	}
}
