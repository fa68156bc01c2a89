//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// format is what the encoder writes.
type format struct {
	name string
	// renditions are the folders with a media playlist, "." for the source itself.
	renditions []string
	args       []string // of ffmpeg, behind the inputs and the options that all have in common
}

const segmentSeconds = 2

var (
	// ts is one rendition, its playlist rewritten in place.
	ts = format{"ts", []string{"."}, []string{
		"-map", "0:v", "-map", "1:a", "-b:v", "400k", "-hls_segment_filename", "seg-%d.ts", "index.m3u8",
	}}
	// fmp4 is two renditions and alternate audio in folders of their own, each with an init segment.
	fmp4 = format{"fmp4", []string{"high", "low", "sound"}, []string{
		"-filter_complex", "[0:v]split=2[a][b];[b]scale=160:90[c]", "-map", "[a]", "-map", "[c]", "-map", "1:a",
		"-b:v:0", "400k", "-b:v:1", "120k", "-hls_segment_type", "fmp4", "-hls_fmp4_init_filename", "init.mp4",
		"-master_pl_name", "master.m3u8",
		"-var_stream_map", "v:0,agroup:sound,name:high v:1,agroup:sound,name:low a:0,agroup:sound,name:sound,default:yes",
		"-hls_segment_filename", "%v/seg-%d.m4s", "%v/index.m3u8",
	}}
	formats = []format{ts, fmp4}
)

// scenes counts encoders, so that each has another picture and tone.
var scenes atomic.Int32

// encode starts ffmpeg as a live encoder into dir: a test picture with a running clock and a
// tone, segments of 2 s, the last six of them in the playlist. flags are more of -hls_flags.
func encode(t *testing.T, dir string, f format, flags string) *process {
	t.Helper()
	return encodeScene(t, dir, f, flags, int(scenes.Add(1)))
}

// encodeScene encodes the same bytes for the same scene.
func encodeScene(t *testing.T, dir string, f format, flags string, scene int) *process {
	t.Helper()
	ffmpeg := needs(t, "ffmpeg", "sudo apt-get install ffmpeg")
	args := append([]string{
		"-hide_banner", "-loglevel", "error", "-nostdin", "-y", "-re",
		"-f", "lavfi", "-i", fmt.Sprintf("testsrc2=size=320x180:rate=25,hue=h=%d", 25*scene%360),
		"-re", "-f", "lavfi", "-i", fmt.Sprintf("sine=frequency=%d:beep_factor=4:sample_rate=48000,volume=0.1", 440+20*scene),
		"-c:v", "libx264", "-preset", "ultrafast", "-tune", "zerolatency", "-pix_fmt", "yuv420p",
		"-g", "50", "-keyint_min", "50", "-sc_threshold", "0", "-c:a", "aac", "-b:a", "64k",
		"-f", "hls", "-hls_time", fmt.Sprint(segmentSeconds), "-hls_list_size", "6",
		"-hls_flags", "independent_segments+program_date_time" + flags,
	}, f.args...)
	cmd := exec.Command(ffmpeg, args...)
	cmd.Dir = dir
	return begin(t, "encoder", cmd, nil)
}

// finish ends the encoder as its user would; it then closes its playlists.
func finish(t *testing.T, encoder *process) {
	t.Helper()
	encoder.signal(syscall.SIGTERM)
	encoder.exit(t, soon)
}

// ffmpegNotes are lines that ffmpeg 5 writes at its level error although nothing is wrong: it
// tries the connection of the last box for the next request, sees that the hosts differ, and
// opens another.
var ffmpegNotes = []string{"Cannot reuse HTTP connection for different host", "Last message repeated"}

// complaints are the lines of ffmpeg's log that are not notes.
func complaints(log string) []string {
	var list []string
	for line := range lines(log) {
		if !slices.ContainsFunc(ffmpegNotes, func(note string) bool { return strings.Contains(line, note) }) {
			list = append(list, line)
		}
	}
	return list
}

// decode plays a URL with ffmpeg, all tracks, for a time of media, and fails the test on any
// line that it writes at its level error.
func decode(t *testing.T, url string, length time.Duration) {
	t.Helper()
	ffmpeg := needs(t, "ffmpeg", "sudo apt-get install ffmpeg")
	cmd := exec.Command(ffmpeg, "-hide_banner", "-loglevel", "error", "-nostdin", "-i", url,
		"-map", "0:v", "-map", "0:a", "-t", fmt.Sprint(length.Seconds()), "-f", "null", "-")
	player := begin(t, "ffmpeg as player", cmd, nil)
	if status := player.exit(t, patience+length); status != 0 || len(complaints(player.log.String())) > 0 {
		t.Errorf("ffmpeg as player of %s: status %d\n%s", url, status, player.log.String())
	}
}

// probe returns the kinds of the streams that ffprobe finds at a URL: "video", "audio".
func probe(t *testing.T, url string) map[string]int {
	t.Helper()
	ffprobe := needs(t, "ffprobe", "sudo apt-get install ffmpeg")
	cmd := exec.Command(ffprobe, "-hide_banner", "-loglevel", "error", "-show_entries", "stream=codec_type", "-of", "csv=p=0", url)
	p := begin(t, "ffprobe", cmd, nil)
	if status := p.exit(t, patience); status != 0 || len(complaints(p.log.String())) > 0 {
		t.Errorf("ffprobe of %s: status %d\n%s", url, status, p.log.String())
	}
	found := map[string]int{}
	for line := range lines(p.out.String()) {
		found[line]++
	}
	return found
}

// segments returns the names of the segments that the encoder wrote into a folder.
func segments(t *testing.T, dir string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "seg-*"))
	if err != nil {
		t.Fatal(err)
	}
	for i, name := range names {
		names[i] = filepath.Base(name)
	}
	return names
}

func read(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
