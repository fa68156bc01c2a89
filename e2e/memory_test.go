//go:build e2e

package e2e

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"dandelion/pkg/id"
	"dandelion/pkg/netaddr"
	"dandelion/pkg/wire"
	"dandelion/pkg/wsconn"
)

// A household's device is small: docs/performance.md has the limits.
const (
	idleMemory  = 20e6 // bytes resident
	heldMemory  = 40e6 // with heldFiles
	heldFiles   = 10_000
	publisherID = "publisher-00112233445566778899aabbccddeeff"
)

// TestBoxMemory: a box stays small when it is idle and when it holds 10,000 segments, and serves
// them soon after a start.
func TestBoxMemory(t *testing.T) {
	dir := t.TempDir()
	b := newDaemon(t, "run_box", "box", dir, fmt.Sprintf("box:\n  data_dir: %q\n  live_dir: %q\n  upload_capacity: 1Gbit/s\n  upload_limit: 1Gbit/s\n", filepath.Join(dir, "data"), filepath.Join(dir, "live")))
	if idle := resident(t, b); idle > idleMemory {
		t.Errorf("idle: %.1f MB resident", idle/1e6)
	} else {
		t.Logf("idle: %.1f MB resident", idle/1e6)
	}

	conn, err := wsconn.Dial(t.Context(), b.url()+"/dandelion/"+b.id+"/ws/", wsconn.Dialing{Least: netaddr.Loopback, Files: true})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Abort()
	own := wire.Peer{ID: publisherID, IP: "127.0.0.1", Type: wire.TypePublisher}
	if err := conn.WriteText(wire.Encode(wire.Publish{Peer: own, Command: wire.CommandPublish})); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.ReadText(wire.MaxMessage); err != nil {
		t.Fatal(err)
	}
	content := make([]byte, 1000)
	var last string
	for i := range heldFiles {
		last = fmt.Sprintf("/live/demo/v/%012x/seg-%d.ts", i, i)
		h := wire.FileHeader{Path: id.Path(last), TTL: 10 * time.Minute}
		if err := conn.WriteFile(t.Context(), h.AppendTo(nil), bytes.NewReader(content), int64(len(content))); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, patience, func() error {
		_, _, err := get(t, b.url()+"/"+publisherID+last)
		return err
	})
	if held := resident(t, b); held > heldMemory {
		t.Errorf("%d segments: %.1f MB resident", heldFiles, held/1e6)
	} else {
		t.Logf("%d segments: %.1f MB resident", heldFiles, held/1e6)
	}

	conn.Abort()
	b.signal(os.Interrupt)
	b.exit(t, leave)
	start := time.Now()
	b.start()
	if resp, err := http.Get(b.url() + "/" + publisherID + last); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("after a restart: %v, %v", resp, err)
	} else {
		resp.Body.Close()
	}
	t.Logf("serving %d segments %v after the start of the process", heldFiles, time.Since(start).Round(time.Millisecond))
}

// resident is what proc(5) calls VmRSS, in bytes.
func resident(t *testing.T, d *daemon) float64 {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		if text, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(text), " kB"))
			if err != nil {
				t.Fatal(err)
			}
			return float64(kb) * 1024
		}
	}
	t.Fatal("no VmRSS")
	return 0
}
