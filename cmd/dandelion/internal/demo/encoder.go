package demo

import (
	"bytes"
	"context"
	"embed"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
)

// Where ffmpeg is missing the demonstration plays this clip, made by
//
//	ffmpeg -f lavfi -i testsrc2=size=320x180:rate=25 -f lavfi -i "sine=frequency=440:sample_rate=48000,volume=0.1" -t 8 \
//	  -c:v libx264 -profile:v main -preset veryslow -crf 33 -g 50 -keyint_min 50 -sc_threshold 0 -pix_fmt yuv420p \
//	  -c:a aac -b:a 32k -ac 1 -f hls -hls_time 2 -hls_list_size 0 -hls_segment_filename 'clip-%d.ts' clip.m3u8
//
//go:embed clip/*.ts
var clip embed.FS

const (
	clipSegments   = 4
	segmentSeconds = 2
	windowSegments = 6
)

// newEncoder returns what writes a live HLS stream into dir until its context ends, and what
// its picture is.
func newEncoder(dir string, log *slog.Logger) (picture string, run func(context.Context) error) {
	ffmpeg, err := exec.LookPath("ffmpeg")
	if err != nil {
		return "a clip in a loop (ffmpeg is not installed)", func(ctx context.Context) error { return loopClip(ctx, dir) }
	}
	return "a live test picture from ffmpeg", func(ctx context.Context) error { return encode(ctx, ffmpeg, dir, log) }
}

// encode runs ffmpeg. It ends with ctx; should it end before, the demonstration fails with its
// last words.
func encode(ctx context.Context, ffmpeg, dir string, log *slog.Logger) error {
	cmd := exec.CommandContext(ctx, ffmpeg, "-hide_banner", "-loglevel", "error", "-nostdin", "-re",
		"-f", "lavfi", "-i", "testsrc2=size=640x360:rate=25",
		"-f", "lavfi", "-i", "sine=frequency=440:beep_factor=4:sample_rate=48000,volume=0.1",
		"-c:v", "libx264", "-preset", "veryfast", "-tune", "zerolatency", "-pix_fmt", "yuv420p", "-b:v", "800k", "-maxrate", "800k", "-bufsize", "800k",
		"-g", "50", "-keyint_min", "50", "-sc_threshold", "0",
		"-c:a", "aac", "-b:a", "64k",
		"-f", "hls", "-hls_time", fmt.Sprint(segmentSeconds), "-hls_list_size", fmt.Sprint(windowSegments),
		"-hls_flags", "delete_segments+independent_segments+program_date_time+temp_file",
		"-hls_segment_filename", filepath.Join(dir, "seg-%d.ts"), filepath.Join(dir, "video.m3u8"))
	var words bytes.Buffer
	cmd.Stderr = &words
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	// A process of its own group: the terminal's Ctrl-C is for the demonstration to handle. It does
	// not outlive the demonstration, however that ends; the kernel minds the thread that started it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := cmd.Run()
	if ctx.Err() != nil {
		return nil
	}
	log.Error("ffmpeg ended", "words", words.String())
	return fmt.Errorf("ffmpeg ended: %w: %s", err, bytes.TrimSpace(words.Bytes()))
}

// loopClip writes the clip as an encoder that never ends: each time around is a discontinuity.
func loopClip(ctx context.Context, dir string) error {
	ticker := time.NewTicker(segmentSeconds * time.Second)
	defer ticker.Stop()
	for n := 0; ; n++ {
		b, err := clip.ReadFile(fmt.Sprintf("clip/clip-%d.ts", n%clipSegments))
		if err != nil {
			return err
		}
		if err := os.WriteFile(segmentFile(dir, n), b, 0o600); err != nil {
			return err
		}
		if err := writePlaylist(dir, n); err != nil {
			return err
		}
		_ = os.Remove(segmentFile(dir, n-2*windowSegments))
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

func segmentFile(dir string, n int) string { return filepath.Join(dir, fmt.Sprintf("seg-%d.ts", n)) }

func writePlaylist(dir string, last int) error {
	first := max(last-windowSegments+1, 0)
	var b bytes.Buffer
	fmt.Fprintf(&b, "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:%d\n#EXT-X-MEDIA-SEQUENCE:%d\n", segmentSeconds, first)
	if loops := max(first-1, 0) / clipSegments; loops > 0 {
		fmt.Fprintf(&b, "#EXT-X-DISCONTINUITY-SEQUENCE:%d\n", loops)
	}
	for n := first; n <= last; n++ {
		if n > 0 && n%clipSegments == 0 {
			b.WriteString("#EXT-X-DISCONTINUITY\n")
		}
		fmt.Fprintf(&b, "#EXTINF:%d.000000,\n%s\n", segmentSeconds, filepath.Base(segmentFile(dir, n)))
	}
	temp := filepath.Join(dir, "video.m3u8.tmp")
	if err := os.WriteFile(temp, b.Bytes(), 0o600); err != nil {
		return err
	}
	return os.Rename(temp, filepath.Join(dir, "video.m3u8"))
}
