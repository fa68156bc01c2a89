package stream

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"
	"time"
)

// Segments that were known before a restart of ours are not published twice.
func TestRestart(t *testing.T) {
	t.Parallel()
	r := newRig(t).start()
	r.boxes = 0
	r.segments("a", "0.ts", "1.ts", "2.ts", "3.ts", "4.ts", "8.ts", "9.ts")
	r.media("index.m3u8", 0, "0.ts", "1.ts", "2.ts")
	r.step(0)
	before := r.placed
	r.now = r.now.Add(time.Second)
	r.start()
	r.want("index", "a 0.ts a 1.ts a 2.ts")
	if got := r.s.Segments(); len(got) != 3 || got[0].Path != before[0].Path || !got[0].Expires.Equal(before[0].Expires) || got[0].File != before[0].File {
		t.Errorf("%+v\nwant\n%+v", got, before)
	}
	r.media("index.m3u8", 0, "0.ts", "1.ts", "2.ts", "3.ts")
	r.step(0)
	r.want("index", "a 0.ts a 1.ts a 2.ts a 3.ts")
	if len(r.placed) != 1 {
		t.Errorf("%d offered, want the new one", len(r.placed))
	}
	// Nothing of what we know is listed any more: there may be something in between.
	r.start()
	r.media("index.m3u8", 4, "4.ts")
	r.step(0)
	if got := r.contents("index"); !strings.HasSuffix(got, "a 3.ts | a 4.ts") {
		t.Error(got)
	}
	r.start()
	r.media("index.m3u8", 8, "8.ts", "9.ts")
	r.step(0)
	if got := r.contents("index"); !strings.HasSuffix(got, "a 4.ts | a 8.ts a 9.ts") {
		t.Error(got)
	}
}

func TestCrashBeforeTheStateIsWritten(t *testing.T) {
	t.Parallel()
	r := newRig(t).start()
	r.boxes = 0
	r.segments("a", "0.ts", "1.ts", "2.ts")
	r.media("index.m3u8", 0, "0.ts", "1.ts")
	r.step(0)
	r.media("index.m3u8", 0, "0.ts", "1.ts", "2.ts")
	r.look() // copied, offered, not yet on disk
	r.want("index", "a 0.ts a 1.ts")
	if n := len(r.files()); n != 3 {
		t.Fatalf("%d files", n)
	}
	r.start()
	if n := len(r.files()); n != 2 {
		t.Errorf("%d files; one belongs to nothing", n)
	}
	r.step(0)
	r.want("index", "a 0.ts a 1.ts a 2.ts")
}

// A segment that waited for a box when the process died was perhaps shown.
func TestCrashBeforeTheRelease(t *testing.T) {
	t.Parallel()
	r := newRig(t).start()
	r.segments("a", "0.ts", "1.ts")
	r.media("index.m3u8", 0, "0.ts", "1.ts")
	r.look()
	r.save()
	r.s.Placed(r.placed[0].Path)
	r.want("index", "a 0.ts")
	r.start()
	r.want("index", "a 0.ts a 1.ts")
	if got := r.s.Segments(); len(got) != 2 {
		t.Errorf("%d segments to offer again", len(got))
	}
}

func TestWindowFilesGoneOrChangedOnDisk(t *testing.T) {
	t.Parallel()
	r := newRig(t).start()
	r.boxes = 0
	r.segments("a", "0.ts", "1.ts", "2.ts", "3.ts")
	r.media("index.m3u8", 0, "0.ts", "1.ts", "2.ts")
	r.step(0)
	paths := r.placed
	if err := os.Remove(paths[0].File); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(paths[1].File, []byte("cut"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.start() // the playlist is what it was: check compares
	if got := r.s.Segments(); len(got) != 1 || got[0].Path != paths[2].Path {
		t.Errorf("%+v; want only what is whole", got)
	}
	for _, seg := range paths[:2] {
		if _, _, err := r.s.Open(seg.Path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%v", err)
		}
	}
	r.media("index.m3u8", 0, "0.ts", "1.ts", "2.ts", "3.ts")
	r.step(0)
	if got := r.shown("index.m3u8"); len(got.Entries) != 4 {
		t.Errorf("%d entries", len(got.Entries))
	}
}

// After a crash of the machine the sizes may be right and the bytes not.
func TestMachineRestarted(t *testing.T) {
	t.Parallel()
	r := newRig(t).start()
	r.boxes = 0
	r.segments("a", "0.ts", "1.ts")
	r.media("index.m3u8", 0, "0.ts", "1.ts")
	r.step(0)
	first := r.placed[0]
	if err := os.WriteFile(first.File, make([]byte, first.Size), 0o600); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(r.state + "/state.json")
	if err != nil {
		t.Fatal(err)
	}
	b = []byte(strings.Replace(string(b), `"boot":"`, `"boot":"other`, 1))
	if err := os.WriteFile(r.state+"/state.json", b, 0o600); err != nil {
		t.Fatal(err)
	}
	r.start()
	if got := r.s.Segments(); len(got) != 1 {
		t.Errorf("%+v; want only the one whose bytes are right", got)
	}
}

func TestBadState(t *testing.T) {
	t.Parallel()
	r := newRig(t).start()
	r.boxes = 0
	r.segments("a", "0.ts", "1.ts")
	r.media("index.m3u8", 0, "0.ts", "1.ts")
	r.step(0)
	if err := os.WriteFile(r.state+"/state.json", []byte(`{"version":`), 0o600); err != nil {
		t.Fatal(err)
	}
	clear(r.seen)
	r.start()
	r.step(0)
	r.want("index", "a 0.ts a 1.ts")
	if _, err := os.Stat(r.state + "/state.json.bad"); err != nil || !strings.Contains(r.logs.String(), "put aside") {
		t.Errorf("%v; log:\n%s", err, r.logs)
	}
	if err := os.WriteFile(r.state+"/state.json", []byte(`{"version":2}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.s.Load(r.now); err == nil || !strings.Contains(err.Error(), "layout 2") {
		t.Errorf("a state of another version: %v", err)
	}
}

// While the state cannot be written nothing new is shown, and it is said why.
func TestStateCannotBeWritten(t *testing.T) {
	t.Parallel()
	r := newRig(t).start()
	r.boxes = 0
	r.segments("a", "0.ts", "1.ts")
	r.media("index.m3u8", 0, "0.ts", "1.ts")
	if err := os.Mkdir(r.state+"/state.json.tmp", 0o755); err != nil {
		t.Fatal(err)
	}
	r.look()
	for range 3 {
		if r.s.save(r.now) {
			t.Fatal("written")
		}
	}
	if _, ok := r.s.Playlist("index/index.m3u8"); ok || !strings.Contains(r.s.Status().Problem, "cannot be written") {
		t.Errorf("shown: %v; problem %q", ok, r.s.Status().Problem)
	}
	if n := strings.Count(r.logs.String(), "level=ERROR"); n != 1 {
		t.Errorf("logged %d times", n)
	}
	if err := os.Remove(r.state + "/state.json.tmp"); err != nil {
		t.Fatal(err)
	}
	r.save()
	r.want("index", "a 0.ts a 1.ts")
	if problem := r.s.Status().Problem; problem != "" {
		t.Error(problem)
	}
}

// The window on a full disk: segments are taken when there is room again.
func TestWindowCannotBeWritten(t *testing.T) {
	t.Parallel()
	r := newRig(t).start()
	r.boxes = 0
	r.segments("a", "0.ts", "1.ts")
	r.media("index.m3u8", 0, "0.ts", "1.ts")
	if err := os.Rename(r.state+"/window", r.state+"/away"); err != nil {
		t.Fatal(err)
	}
	r.step(0)
	r.step(time.Second)
	if problem := r.s.Status().Problem; !strings.Contains(problem, "window cannot be written") {
		t.Errorf("problem %q", problem)
	}
	if err := os.Rename(r.state+"/away", r.state+"/window"); err != nil {
		t.Fatal(err)
	}
	r.step(time.Second)
	r.want("index", "a 0.ts a 1.ts")
	if problem := r.s.Status().Problem; problem != "" {
		t.Error(problem)
	}
}
