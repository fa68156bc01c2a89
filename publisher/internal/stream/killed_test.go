package stream

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"dandelion/pkg/playlist"
)

// childDir in the environment makes the test binary a stream that TestKilled kills.
const childDir = "DANDELION_TEST_STREAM"

// placedAtOnce is boxes that hold everything at once.
type placedAtOnce struct{ s *Stream }

func (p *placedAtOnce) Place(seg Segment) { go p.s.Placed(seg.Path) }

// runChild runs a stream with all its goroutines and prints each playlist when it is shown.
func runChild(dir string) {
	boxes := &placedAtOnce{}
	s, err := New(Config{
		Name: "demo", Source: "dir:" + filepath.Join(dir, "source"), Dir: filepath.Join(dir, "state"), Boxes: func() int { return 1 },
	}, boxes, slog.New(slog.NewTextHandler(os.Stderr, nil)))
	if err != nil {
		panic(err)
	}
	boxes.s = s
	if err := s.Load(time.Now()); err != nil {
		panic(err)
	}
	go func() {
		if err := s.Run(context.Background()); err != nil {
			panic(err)
		}
	}()
	out := json.NewEncoder(os.Stdout)
	last := ""
	for ticker := time.NewTicker(200 * time.Microsecond); ; <-ticker.C {
		page, ok := s.Playlist("video/index.m3u8")
		if !ok || string(page.Body) == last {
			continue
		}
		last = string(page.Body)
		if out.Encode(last) != nil {
			return
		}
	}
}

// A real process with a real disk, killed (-9) at any moment while an encoder works: what was
// shown before holds after, and nothing that the encoder wrote is shown twice or as another.
func TestKilled(t *testing.T) {
	if dir := os.Getenv(childDir); dir != "" {
		runChild(dir)
	}
	t.Parallel()
	r := newRig(t)
	r.dir, r.state = filepath.Join(t.TempDir(), "source"), ""
	r.mtime = time.Now().UnixNano()
	next := 0
	var names []string
	produce := func() {
		names = append(names, fmt.Sprintf("%d.ts", next))
		r.write(names[next], fmt.Sprintf("segment %d", next))
		next++
		first := max(next-6, 0)
		r.media("video.m3u8", first, names[first:]...)
	}
	produce()
	var all []*playlist.Media
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	for run := range 6 {
		child := exec.Command(os.Args[0], "-test.run=^TestKilled$")
		child.Env = append(os.Environ(), childDir+"="+filepath.Dir(r.dir))
		stdout, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(stdout)
		killAfter := 2 + rng.IntN(8) // playlists, and a moment
		for shown := 0; lines.Scan(); shown++ {
			if shown == killAfter {
				time.AfterFunc(time.Duration(rng.IntN(3000))*time.Microsecond, func() { _ = child.Process.Kill() })
			}
			var text string
			if err := json.Unmarshal(lines.Bytes(), &text); err != nil {
				break // cut off by the kill: nobody saw it whole
			}
			media, err := playlist.ParseMedia([]byte(text))
			if err != nil {
				t.Fatalf("run %d: %v in\n%s", run, err, text)
			}
			for _, old := range all {
				if err := playlist.CheckReload(old, media); err != nil {
					t.Errorf("run %d: %v\nwas\n%s\nis\n%s", run, err, old.AppendTo(nil), text)
				}
			}
			all = append(all, media)
			produce()
		}
		_ = child.Wait() // it was killed
	}
	last := all[len(all)-1]
	if len(all) < 12 || last.Sequence == 0 {
		t.Errorf("%d playlists were shown, the last one from %d on", len(all), last.Sequence)
	}
	if n := discontinuities(last); n > 0 {
		t.Errorf("%d discontinuities, and the encoder went on all the time", n)
	}
}
