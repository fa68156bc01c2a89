//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// learnt is what a box says of its line.
type learnt struct {
	Upload struct {
		Capacity int64 `json:"capacity"` // bytes/s
		Learned  bool  `json:"capacity_learned"`
		Limit    int64 `json:"limit"`
	} `json:"upload"`
	Totals struct {
		ServedBytes int64 `json:"served_bytes"`
	} `json:"totals"`
}

// TestBoxesLearnTheirLines: boxes that nobody told what their lines carry begin with 1 Mbit/s, which no viewer of a
// stream of 2.5 Mbit/s can be sent to. They learn from each other, and then serve such viewers.
func TestBoxesLearnTheirLines(t *testing.T) {
	t.Parallel()
	const lineRate = 20e6 // bits/s
	network, err := newInternet(t)
	if err != nil {
		t.Fatal(err)
	}
	core, err := network.join(0, time.Millisecond, 0, 0, 1)
	if err != nil {
		fmt.Println("NOT RUN: TestBoxesLearnTheirLines:", err)
		return
	}
	f := &fleet{t: t, dir: t.TempDir(), client: core.client(soon)}
	f.source = filepath.Join(f.dir, "source")
	if err := os.Mkdir(f.source, 0o700); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(f.dir, "entrance")
	f.entrance = newDaemonAt(t, core, "run_entrance", "entrance", dir, fmt.Sprintf("entrance:\n  data_dir: %q\n", filepath.Join(dir, "data")))
	for i := range byte(2) {
		at, err := network.joinAt([3]byte{11, 77, i + 1}, 5*time.Millisecond, 0, lineRate, 1) // an address of the public Internet
		if err != nil {
			t.Fatal(err)
		}
		name := fmt.Sprintf("box%d", i+1)
		dir := filepath.Join(f.dir, name)
		b := newDaemonAt(t, at, "run_box", name, dir, fmt.Sprintf("box:\n  public_address: %q\n  data_dir: %q\n  live_dir: %q\n  entrances: [%q]\n",
			at.ip, filepath.Join(dir, "data"), filepath.Join(dir, "live"), f.entrance.url()))
		b.public = b.addr
		f.boxes = append(f.boxes, b)
	}
	dir = filepath.Join(f.dir, "publisher")
	f.publisher = newDaemonAt(t, core, "run_publisher", "publisher", dir, fmt.Sprintf(
		"publisher:\n  data_dir: %q\n  entrances: [%q]\n  streams:\n    - name: %s\n      source: %q\n",
		filepath.Join(dir, "data"), f.entrance.url(), stream, "dir:"+f.source))
	says := func(b *daemon) (learnt, error) {
		return fetchJSON[learnt](t.Context(), b.at.client(soon), b.at.ownURL(b.addr)+"/api/v1/box")
	}
	f.awaitBoxes(len(f.boxes))
	for _, b := range f.boxes {
		if is, err := says(b); err != nil || is.Upload.Learned || is.Upload.Limit != 125_000 {
			t.Fatalf("%s at first: %+v, %v", b.name, is, err)
		}
	}
	encode(t, f.source, format{"2.5 Mbit/s", []string{"."}, []string{
		"-map", "0:v", "-map", "1:a", "-b:v", "2400k", "-minrate", "2400k", "-maxrate", "2400k", "-bufsize", "2400k",
		"-x264-params", "nal-hrd=cbr:force-cfr=1", "-hls_segment_filename", "seg-%d.ts", "index.m3u8",
	}}, "+delete_segments")
	f.awaitMore(4)
	began := time.Now()
	for _, b := range f.boxes {
		eventually(t, 5*time.Minute, func() error {
			is, err := says(b)
			if err == nil && !is.Upload.Learned {
				err = fmt.Errorf("%s has not learned what its line carries: %+v", b.name, is)
			}
			return err
		})
		is, err := says(b)
		t.Logf("%s after %v: %+v", b.name, time.Since(began).Round(time.Second), is.Upload)
		if mbits := float64(8*is.Upload.Capacity) / 1e6; err != nil || mbits < 8 || mbits > 30 {
			t.Errorf("%s takes its line of 20 Mbit/s for one of %.1f, %v", b.name, mbits, err)
		}
	}

	home, err := network.join(101, 5*time.Millisecond, 0, 0, 1)
	if err != nil {
		t.Fatal(err)
	}
	viewers := startCrowd(t, home, 1, f.dir, f.index(), "dandelion", 2)
	eventually(t, patience, func() error {
		served := int64(0)
		for _, b := range f.boxes {
			is, err := says(b)
			if err != nil {
				return err
			}
			served += is.Totals.ServedBytes
		}
		if served < 5e6 { // half a minute of one viewer
			return fmt.Errorf("boxes have served %d bytes", served)
		}
		return nil
	})
	viewers.leave(t)
	if n := viewers.summary.Stalls.Count; n > 0 {
		t.Errorf("%d stalls", n)
	}
}
