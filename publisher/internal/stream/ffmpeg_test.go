package stream

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"dandelion/pkg/id"
	"dandelion/pkg/playlist"
)

// live is a running stream on a directory into which a real ffmpeg writes.
type live struct {
	t      *testing.T
	dir    string
	s      *Stream
	logs   *lockedBuffer
	stop   func()
	mu     sync.Mutex
	placed []Segment
	seen   map[string]*playlist.Media
}

func newLive(t *testing.T, dir, state string) *live {
	t.Helper()
	l := &live{t: t, dir: dir, logs: &lockedBuffer{}, seen: map[string]*playlist.Media{}}
	s, err := New(Config{Name: "demo", Source: "dir:" + dir, Dir: state, Boxes: func() int { return 1 }}, l,
		slog.New(slog.NewTextHandler(l.logs, nil)))
	if err != nil {
		t.Fatal(err)
	}
	l.s = s
	if err := s.Load(time.Now()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	l.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(l.stop)
	return l
}

// Place is a box that takes everything at once.
func (l *live) Place(seg Segment) {
	l.mu.Lock()
	l.placed = append(l.placed, seg)
	l.mu.Unlock()
	l.s.Placed(seg.Path)
}

// wait polls as a player does, compares each reload with the one before, and returns when
// the condition holds.
func (l *live) wait(what string, holds func() bool) {
	l.t.Helper()
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	deadline := time.After(60 * time.Second)
	for {
		for name, page := range *l.s.pages.Load() {
			media, _, err := playlist.Parse(page.Body)
			if err != nil {
				l.t.Fatalf("%s: %v", name, err)
			}
			if old := l.seen[name]; old != nil && media != nil {
				if err := playlist.CheckReload(old, media); err != nil {
					l.t.Fatalf("%s: %v\nwas:\n%s\nis:\n%s", name, err, old.AppendTo(nil), page.Body)
				}
			}
			if media != nil {
				l.seen[name] = media
			}
		}
		if holds() {
			return
		}
		select {
		case <-poll.C:
		case <-deadline:
			l.t.Fatalf("never: %s; log:\n%s", what, l.logs)
		}
	}
}

// shows waits until a rendition lists so many segments behind its last discontinuity.
func (l *live) shows(name string, n int) {
	l.t.Helper()
	l.wait(name+" goes on", func() bool {
		media := l.seen[name+"/index.m3u8"]
		return media != nil && afterBreak(media) >= n
	})
}

func afterBreak(media *playlist.Media) (n int) {
	for _, e := range media.Entries {
		if n++; e.Discontinuity {
			n = 1
		}
	}
	return n
}

// encoding starts ffmpeg on a moving picture and a tone, at twice its speed, until stop or kill.
func encoding(t *testing.T, args ...string) (stop func(os.Signal)) {
	t.Helper()
	input := []string{
		"-hide_banner", "-loglevel", "error", "-nostdin",
		"-readrate", "2", "-f", "lavfi", "-i", "testsrc2=size=160x90:rate=20", "-readrate", "2", "-f", "lavfi", "-i", "sine=frequency=440:sample_rate=44100",
	}
	cmd := exec.Command("ffmpeg", append(input, args...)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatalf("ffmpeg is needed: apt-get install ffmpeg (%v)", err)
	}
	stopped := false
	stop = func(sig os.Signal) {
		if stopped {
			return
		}
		stopped = true
		cmd.Process.Signal(sig)
		cmd.Wait()
		if out.Len() > 0 {
			t.Logf("ffmpeg: %s", out.Bytes())
		}
	}
	t.Cleanup(func() { stop(os.Kill) })
	return stop
}

// decode lets ffmpeg read what a viewer reads: the playlists and files, written out as they
// are served.
func (l *live) decode(index string) {
	l.t.Helper()
	out := l.t.TempDir()
	write := func(name string, b []byte) {
		full := filepath.Join(out, name)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			l.t.Fatal(err)
		}
		if err := os.WriteFile(full, b, 0o644); err != nil {
			l.t.Fatal(err)
		}
	}
	for name, page := range *l.s.pages.Load() {
		body := page.Body
		if media, _, err := playlist.Parse(body); err == nil && media != nil {
			media.Ended = true // for a reader that is to stop
			body = media.AppendTo(nil)
		}
		write(name, body)
	}
	l.s.mu.Lock()
	var paths []id.Path
	for path := range l.s.files {
		paths = append(paths, path)
	}
	l.s.mu.Unlock()
	for _, path := range paths {
		f, _, err := l.s.Open(path)
		if err != nil {
			continue // dropped meanwhile
		}
		b, err := io.ReadAll(f)
		f.Close()
		if err != nil {
			l.t.Fatal(err)
		}
		write(strings.TrimPrefix(string(path), "/live/demo/"), b)
	}
	b, err := exec.Command("ffmpeg", "-hide_banner", "-loglevel", "error", "-nostdin", "-allowed_extensions", "ALL",
		"-i", filepath.Join(out, index), "-map", "0", "-f", "null", "-").CombinedOutput()
	if err != nil || len(b) > 0 && !onlyTimestamps(b) {
		l.t.Errorf("ffmpeg cannot play %s: %v\n%s", index, err, b)
	}
}

// onlyTimestamps: across a discontinuity ffmpeg's null output complains of timestamps, and of nothing else.
func onlyTimestamps(b []byte) bool {
	for line := range strings.SplitSeq(strings.TrimSpace(string(b)), "\n") {
		if !strings.Contains(line, "timestamp") && !strings.Contains(line, "dts") && !strings.Contains(line, "DTS") {
			return false
		}
	}
	return true
}

var video = []string{"-c:v", "libx264", "-preset", "ultrafast", "-g", "10", "-keyint_min", "10", "-sc_threshold", "0", "-c:a", "aac"}

func args(parts ...[]string) (all []string) {
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

// variants are two pictures and an audio rendition of their own, each in its folder.
func variants(dir string, flags ...string) []string {
	return args([]string{"-map", "0:v", "-map", "0:v", "-map", "1:a", "-b:v:0", "300k", "-b:v:1", "100k"}, video, []string{
		"-f", "hls", "-hls_time", "0.5", "-hls_list_size", "4",
		"-var_stream_map", "v:0,agroup:aud,name:high v:1,agroup:aud,name:low a:0,agroup:aud,default:yes,name:sound",
		"-master_pl_name", "master.m3u8",
	}, flags, []string{dir + "/%v/index.m3u8"})
}

func TestFFmpegVariants(t *testing.T) {
	t.Parallel()
	for name, flags := range map[string][]string{
		"ts, renamed": {"-hls_flags", "delete_segments+temp_file+independent_segments+program_date_time", "-hls_segment_filename", "%v/seg-%d.ts"},
		"fmp4, in place": {
			"-hls_flags", "delete_segments", "-hls_segment_type", "fmp4", "-hls_fmp4_init_filename", "init.mp4",
			"-hls_segment_filename", "%v/seg-%d.m4s",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			for i := range flags {
				flags[i] = strings.Replace(flags[i], "%v/", dir+"/%v/", 1)
			}
			l := newLive(t, dir, t.TempDir()+"/demo")
			stop := encoding(t, variants(dir, flags...)...)
			names := []string{"high", "low", "sound"}
			for _, name := range names {
				l.shows(name, 4)
			}
			stop(os.Kill)
			encoding(t, variants(dir, flags...)...) // the same names again
			for _, name := range names {
				l.wait(name+" has a discontinuity", func() bool {
					for _, e := range l.seen[name+"/index.m3u8"].Entries {
						if e.Discontinuity {
							return true
						}
					}
					return false
				})
			}
			for _, name := range names {
				l.shows(name, 3)
				media := l.seen[name+"/index.m3u8"]
				if name == "high" && strings.Contains(flags[1], "program_date_time") && media.Entries[0].DateTime == "" {
					t.Error("the date of the segments is gone")
				}
				for i, e := range media.Entries {
					if e.Gap {
						t.Errorf("%s: entry %d is a gap; log:\n%s", name, i, l.logs)
					}
				}
			}
			index, ok := l.s.Playlist("index.m3u8")
			for _, want := range []string{"high/index.m3u8", "low/index.m3u8", `URI="sound/index.m3u8"`, "CODECS=", "RESOLUTION=160x90"} {
				if !ok || !strings.Contains(string(index.Body), want) {
					t.Errorf("no %s in\n%s", want, index.Body)
				}
			}
			l.decode("index.m3u8")
			if problem := l.s.Status().Problem; problem != "" {
				t.Error(problem)
			}
		})
	}
}

// One playlist, whose encoder ends and starts again while the publisher restarts, too.
func TestFFmpegSingle(t *testing.T) {
	t.Parallel()
	for name, flags := range map[string][]string{
		"ts in a ring of names": {"-hls_list_size", "4", "-hls_segment_filename", "DIR/seg-%d.ts", "-hls_flags", "delete_segments"},
		"one file, byte ranges": {"-hls_list_size", "0", "-hls_flags", "single_file", "-hls_segment_type", "fmp4"},
		"encrypted, ts":         {"-hls_list_size", "4", "-hls_key_info_file", "DIR/keyinfo", "-hls_segment_filename", "DIR/seg-%d.ts"},
		"appended to what was":  {"-hls_list_size", "6", "-hls_flags", "append_list+omit_endlist", "-hls_segment_filename", "DIR/seg-%d.ts"},
		"event, all is kept":    {"-hls_list_size", "0", "-hls_playlist_type", "event", "-hls_segment_filename", "DIR/seg-%d.ts"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, state := t.TempDir(), t.TempDir()+"/demo"
			for i := range flags {
				flags[i] = strings.Replace(flags[i], "DIR", dir, 1)
			}
			for file, content := range map[string]string{"live.key": "0123456789abcdef", "keyinfo": "live.key\n" + dir + "/live.key\n"} {
				if err := os.WriteFile(dir+"/"+file, []byte(content), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			all := args([]string{"-map", "0:v", "-map", "1:a"}, video, []string{"-f", "hls", "-hls_time", "0.5"}, flags, []string{dir + "/live.m3u8"})
			l := newLive(t, dir, state)
			stop := encoding(t, all...)
			l.shows("live", 3)
			l.stop()
			seen := l.seen
			l = newLive(t, dir, state) // while the encoder works
			l.seen = seen
			before := seen["live/index.m3u8"].Sequence + uint64(len(seen["live/index.m3u8"].Entries))
			l.wait("it goes on", func() bool {
				m := l.seen["live/index.m3u8"]
				return m.Sequence+uint64(len(m.Entries)) >= before+2
			})
			stop(os.Interrupt)
			encoding(t, all...)
			l.wait("a discontinuity", func() bool {
				for _, e := range l.seen["live/index.m3u8"].Entries {
					if e.Discontinuity {
						return true
					}
				}
				return false
			})
			l.shows("live", 3)
			if _, ok := l.s.Playlist("index.m3u8"); !ok {
				t.Error("no index")
			}
			l.decode("live/index.m3u8")
			l.decode("index.m3u8")
			if problem := l.s.Status().Problem; problem != "" {
				t.Error(problem)
			}
		})
	}
}
