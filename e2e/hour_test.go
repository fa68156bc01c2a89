//go:build e2e

package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"dandelion/pkg/playlist"
)

// TestHour: an hour of fMP4, 1800 segments of 2 s, written as fast as the publisher follows. At
// the end the init segment of the beginning is still named and served, the end of the stream
// plays, and what left the window has left the disk.
func TestHour(t *testing.T) {
	t.Parallel()
	film := t.TempDir()
	whole := encodeHour(t, film)
	fleet := newFleet(t, plan{})
	init := read(t, filepath.Join(film, whole.Entries[0].Map.URI))
	write(t, filepath.Join(fleet.source, whole.Entries[0].Map.URI), string(init))

	const window = 6
	began := time.Now()
	for n := range whole.Entries {
		name := whole.Entries[n].URI
		if err := os.Rename(filepath.Join(film, name), filepath.Join(fleet.source, name)); err != nil {
			t.Fatal(err)
		}
		first := max(n-window+1, 0)
		list := playlist.Media{
			Version: whole.Version, TargetDuration: whole.TargetDuration, Sequence: uint64(first),
			Header: whole.Header, Entries: whole.Entries[first : n+1],
		}
		replace(t, filepath.Join(fleet.source, "index.m3u8"), list.AppendTo(nil))
		if n >= 2*window {
			if err := os.Remove(filepath.Join(fleet.source, whole.Entries[n-2*window].URI)); err != nil {
				t.Fatal(err)
			}
		}
		if n%window == window-1 { // the encoder is faster than life, and must not run away
			awaitEnd(t, fleet, uint64(n+1))
		}
	}
	t.Logf("%d segments in %v", len(whole.Entries), time.Since(began))
	awaitEnd(t, fleet, uint64(len(whole.Entries)))

	media, err := mediaURLs(t, fleet.index())
	if err != nil {
		t.Fatal(err)
	}
	body, _, err := get(t, media[0])
	if err != nil {
		t.Fatal(err)
	}
	m, err := playlist.ParseMedia(body)
	if err != nil {
		t.Fatal(err)
	}
	last := m.Entries[len(m.Entries)-1]
	if last.Map == nil || m.Sequence < uint64(len(whole.Entries)-3*window) || len(m.Entries) > 2*window {
		t.Errorf("the playlist at the end:\n%s", body)
	}
	if slices.ContainsFunc(m.Entries, func(e playlist.Entry) bool { return e.Gap || e.Discontinuity }) {
		t.Errorf("a gap or discontinuity although nothing was lost:\n%s", body)
	}
	got, _, err := get(t, fleet.publisher.url()+pathOf(t, media[0], last.Map.URI))
	if err != nil || !bytes.Equal(got, init) {
		t.Errorf("the init segment: %v, %d bytes of %d", err, len(got), len(init))
	}
	decode(t, fleet.index(), 2*segmentSeconds*time.Second)

	// What left the playlist stays for those who still ask, as long as the window is, and no longer.
	eventually(t, patience, func() error {
		kept, err := os.ReadDir(filepath.Join(fleet.publisher.dir, "data", "streams", stream, "window"))
		if err == nil && len(kept) > 2*window+1 {
			err = fmt.Errorf("%d files are still in the window", len(kept))
		}
		return err
	})
	boxesForget(t, fleet, 2*window)
}

// encodeHour makes an hour of a small picture and returns its playlist.
func encodeHour(t *testing.T, dir string) *playlist.Media {
	t.Helper()
	ffmpeg := needs(t, "ffmpeg", "sudo apt-get install ffmpeg")
	cmd := exec.Command(ffmpeg, "-hide_banner", "-loglevel", "error", "-nostdin",
		"-f", "lavfi", "-i", "testsrc2=size=64x48:rate=2", "-f", "lavfi", "-i", "sine=frequency=440:sample_rate=8000", "-t", "3600",
		"-c:v", "libx264", "-preset", "ultrafast", "-tune", "zerolatency", "-pix_fmt", "yuv420p", "-g", "4", "-keyint_min", "4", "-sc_threshold", "0",
		"-c:a", "aac", "-b:a", "16k", "-f", "hls", "-hls_time", fmt.Sprint(segmentSeconds), "-hls_list_size", "0",
		"-hls_segment_type", "fmp4", "-hls_fmp4_init_filename", "init.mp4", "-hls_segment_filename", "seg-%d.m4s", "hour.m3u8")
	cmd.Dir = dir
	encoder := begin(t, "encoder of an hour", cmd, nil)
	if status := encoder.exit(t, 2*patience); status != 0 {
		t.Fatalf("ffmpeg: status %d: %s", status, encoder.log.String())
	}
	m, err := playlist.ParseMedia(read(t, filepath.Join(dir, "hour.m3u8")))
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Entries) < 1800 || m.Entries[len(m.Entries)-1].Map == nil {
		t.Fatalf("ffmpeg made %d segments, want 1800 with an init segment", len(m.Entries))
	}
	return m
}

// awaitEnd waits until viewers see the segment before number end.
func awaitEnd(t *testing.T, fleet *fleet, end uint64) {
	t.Helper()
	eventually(t, patience, func() error {
		n, err := fleet.end()
		if err == nil && n < end {
			err = fmt.Errorf("viewers see %d segments of %d", n, end)
		}
		return err
	})
}

// boxesForget waits until the boxes hold at most so many files: what left the window expires.
func boxesForget(t *testing.T, fleet *fleet, most int) {
	t.Helper()
	for _, b := range fleet.boxes {
		eventually(t, patience, func() error {
			is, err := getJSON[struct {
				Totals struct {
					Taken int `json:"taken_files"`
					Files int `json:"files"`
				} `json:"totals"`
			}](t, b.url()+"/api/v1/box")
			switch {
			case err != nil:
				return err
			case is.Totals.Taken == 0:
				return fatal{fmt.Errorf("%s was given nothing", b.name)}
			case is.Totals.Files > most:
				return fmt.Errorf("%s still holds %d of the %d files that it took", b.name, is.Totals.Files, is.Totals.Taken)
			}
			return nil
		})
	}
}

// replace writes a file as careful encoders do.
func replace(t *testing.T, name string, content []byte) {
	t.Helper()
	write(t, name+".tmp", string(content))
	if err := os.Rename(name+".tmp", name); err != nil {
		t.Fatal(err)
	}
}
