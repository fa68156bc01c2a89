//go:build e2e

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestOffload: over the first minute of a stream, its first seconds counted, boxes send nine
// tenths of what three viewers receive.
func TestOffload(t *testing.T) {
	t.Parallel()
	fleet := newFleet(t, plan{})
	viewers := watching(t, fleet.index(), 3)
	began := time.Now()
	encode(t, fleet.source, ts, "+delete_segments")
	awaitPlayed(t, viewers, time.Minute-3*segmentSeconds*time.Second)
	boxes, own := share(viewers, fleet.publisher.addr)
	if got := offload(boxes, own); got < 0.9 {
		t.Errorf("offload is %.3f, want 0.9: boxes sent %d bytes and the origin %d", got, boxes, own)
	} else {
		t.Logf("offload %.3f over %v: %d bytes by boxes, %d by the origin", got, time.Since(began), boxes, own)
	}
	smooth(t, viewers)
}

// TestHousehold: viewers who share an address and the same player, as those of a campus do, are
// as many viewers, and not one who fails.
func TestHousehold(t *testing.T) {
	t.Parallel()
	fleet := newFleet(t, plan{})
	encode(t, fleet.source, ts, "+delete_segments")
	fleet.awaitMore(4)
	viewers := watchingAs(t, fleet.index(), 8, func() string { return "one browser" })
	awaitPlayed(t, viewers, 12*time.Second)
	smooth(t, viewers)
	boxes, own := share(viewers, fleet.publisher.addr)
	if got := offload(boxes, own); got < 0.9 {
		t.Errorf("offload is %.3f, want 0.9: boxes sent %d bytes and the origin %d", got, boxes, own)
	}
}

// demonstration is the JSON at the end of `dandelion demo --json`.
type demonstration struct {
	SegmentsPlaced     *int64   `json:"segments_placed"`
	Boxes              *int     `json:"boxes"`
	ViewerBytes        *int64   `json:"viewer_bytes"`
	BoxBytes           *int64   `json:"box_bytes"`
	OriginBytes        *int64   `json:"origin_bytes"`
	CasterPlacingBytes *int64   `json:"caster_placing_bytes"`
	Offload            *float64 `json:"offload"`
	CasterOffload      *float64 `json:"caster_offload"`
	Stalls             *int     `json:"stalls"`
	StartupMS          *int64   `json:"startup_ms"`
}

// TestDemoMeasured: the demonstration measures itself, with ffmpeg and where there is none.
func TestDemoMeasured(t *testing.T) {
	t.Parallel()
	for name, length := range map[string]time.Duration{"ffmpeg": time.Minute, "clip": 30 * time.Second} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			env := []string{"TMPDIR=" + t.TempDir()}
			if name == "clip" {
				env = append(env, "PATH="+t.TempDir())
			} else {
				needs(t, "ffmpeg", "sudo apt-get install ffmpeg")
			}
			status, stdout, stderr := run(t, length+patience, env, program("dandelion"), "demo", "--for", length.String(), "--json", "--listen", "127.0.0.1:0")
			if status != 0 {
				t.Fatalf("status %d: %s%s", status, stdout, stderr)
			}
			var d demonstration
			decoder := json.NewDecoder(strings.NewReader(stdout))
			decoder.DisallowUnknownFields()
			if err := decoder.Decode(&d); err != nil || decoder.More() {
				t.Fatalf("not one JSON object with the documented fields: %v\n%s", err, stdout)
			}
			t.Logf("load %s: %s", load(), strings.Join(strings.Fields(stdout), " "))
			d.check(t, length)
		})
	}
}

func (d *demonstration) check(t *testing.T, length time.Duration) {
	t.Helper()
	if d.SegmentsPlaced == nil || d.Boxes == nil || d.ViewerBytes == nil || d.BoxBytes == nil || d.OriginBytes == nil ||
		d.CasterPlacingBytes == nil || d.Offload == nil || d.CasterOffload == nil || d.Stalls == nil || d.StartupMS == nil {
		t.Fatal("a field is missing or null")
	}
	if *d.Offload < 0.9 {
		t.Errorf("offload is %.3f, want 0.9", *d.Offload)
	}
	if *d.ViewerBytes != *d.BoxBytes+*d.OriginBytes || *d.ViewerBytes == 0 {
		t.Errorf("viewers received %d bytes, %d from boxes and %d from the origin", *d.ViewerBytes, *d.BoxBytes, *d.OriginBytes)
	}
	if want := 1 - float64(*d.OriginBytes)/float64(*d.ViewerBytes); *d.Offload-want > 1e-9 || want-*d.Offload > 1e-9 {
		t.Errorf("offload is %v, its bytes say %v", *d.Offload, want)
	}
	if want := 1 - float64(*d.OriginBytes+*d.CasterPlacingBytes)/float64(*d.ViewerBytes); *d.CasterOffload-want > 1e-9 || want-*d.CasterOffload > 1e-9 {
		t.Errorf("caster_offload is %v, its bytes say %v", *d.CasterOffload, want)
	}
	if *d.Boxes != 5 {
		t.Errorf("%d boxes, want 5", *d.Boxes)
	}
	if least := int64(length/time.Second)/segmentSeconds - 5; *d.SegmentsPlaced < least {
		t.Errorf("%d segments placed, want %d", *d.SegmentsPlaced, least)
	}
	judgeStalls(t, "the demonstration's viewer", *d.Stalls, 0)
	if *d.StartupMS < 0 || *d.StartupMS > 10_000 {
		t.Errorf("startup took %d ms", *d.StartupMS)
	}
}

// TestDemoInterrupted: the demonstration shows a URL that plays, and a status line; Ctrl-C ends
// it within 10 s, with status 0 and nothing left behind.
func TestDemoInterrupted(t *testing.T) {
	t.Parallel()
	temp := t.TempDir()
	cmd := exec.Command(program("dandelion"), "demo", "--listen", "127.0.0.1:0")
	cmd.Env = append(os.Environ(), "TMPDIR="+temp)
	demo := begin(t, "demo", cmd, nil)
	url := regexp.MustCompile(`http://127\.0\.0\.1:\d+/`)
	var page string
	eventually(t, soon, func() error {
		if page = url.FindString(demo.out.String()); page == "" {
			return errors.New("no URL was printed")
		}
		return nil
	})
	eventually(t, patience, func() error {
		if _, _, err := get(t, page); err != nil {
			return err
		}
		_, err := mediaURLs(t, page+"live/demo/index.m3u8")
		return err
	})
	players := watching(t, page+"live/demo/index.m3u8", 1)
	awaitPlayed(t, players, 2*time.Second)
	eventually(t, soon, func() error {
		for _, words := range []string{"segments placed", "boxes 5", "from boxes", "origin", "offload"} {
			if !strings.Contains(demo.out.String(), words) {
				return fmt.Errorf("no status line with %q: %s", words, demo.out.String())
			}
		}
		return nil
	})
	demo.signal(syscall.SIGINT)
	if status := demo.exit(t, 10*time.Second); status != 0 {
		t.Errorf("status %d after Ctrl-C, want 0: %s", status, demo.log.String())
	}
	if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if demo.log.String() != "" {
		t.Errorf("it wrote to stderr: %s", demo.log.String())
	}
}
