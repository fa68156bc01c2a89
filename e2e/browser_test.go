//go:build e2e

package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// measured is what the page tells of its playing.
type measured struct {
	Player       string           `json:"player"`
	Origin       string           `json:"origin"`
	Played       float64          `json:"played_seconds"`
	StartupMS    *float64         `json:"startup_ms"`
	Stalls       int              `json:"stalls"`
	StallSeconds float64          `json:"stall_seconds"`
	Errors       []string         `json:"errors"`
	FatalErrors  []string         `json:"fatal_errors"`
	BytesByHost  map[string]int64 `json:"bytes_by_host"`
}

// share sums the bytes of segments by who sent them.
func (m *measured) share() (boxes, own int64) {
	for from, n := range m.BytesByHost {
		if from == m.Origin {
			own += n
		} else {
			boxes += n
		}
	}
	return boxes, own
}

// errors are those that tell of more than missing data, which stalls count.
func (m *measured) serious() []string {
	var list []string
	for _, e := range m.Errors {
		if !strings.HasPrefix(e, "bufferStalledError") {
			list = append(list, e)
		}
	}
	return list
}

// browse opens the publisher's page in headless Chromium, which plays for seconds with hls.js.
func browse(t *testing.T, url string, seconds int, more ...string) *process {
	t.Helper()
	node := needs(t, "node", "sudo apt-get install nodejs")
	if os.Getenv("CHROMIUM") == "" {
		needs(t, "chromium", "sudo apt-get install chromium")
	}
	for file, cure := range map[string]string{
		"web/node_modules/playwright-core": "cd web && npm ci",
		"web/dist/index.html":              "make web",
	} {
		if _, err := os.Stat(filepath.Join(root, file)); err != nil {
			t.Fatalf("%s is missing: %s", file, cure)
		}
	}
	cmd := exec.Command(node, append([]string{"e2e/play.mjs", "--url", url, "--seconds", strconv.Itoa(seconds), "--start-within", "60"}, more...)...)
	cmd.Dir = filepath.Join(root, "web")
	return begin(t, "browser", cmd, nil)
}

// seen waits for the end of the playing and returns what was measured.
func seen(t *testing.T, browser *process, seconds int) measured {
	t.Helper()
	status := browser.exit(t, 2*patience+2*time.Duration(seconds)*time.Second)
	var m measured
	if err := json.Unmarshal([]byte(browser.out.String()), &m); status != 0 || err != nil {
		t.Fatalf("the browser did not play: status %d, %v: %s", status, err, browser.log.String())
	}
	t.Logf("%s, load %s: %s", m.Player, load(), strings.TrimSpace(browser.out.String()))
	if m.Player != "hls.js" {
		t.Errorf("played by %q, want hls.js", m.Player)
	}
	if m.Played < float64(seconds) {
		t.Errorf("played %v s, want %d", m.Played, seconds)
	}
	if len(m.FatalErrors) > 0 {
		t.Errorf("fatal errors: %q", m.FatalErrors)
	}
	return m
}

// TestBrowser: the page that the publisher serves plays in Chromium, mostly from boxes. These
// tests run one after the other: a browser that decodes in software needs the machine.
func TestBrowser(t *testing.T) {
	for _, f := range formats {
		t.Run(f.name, func(t *testing.T) {
			const seconds = 15
			fleet := newFleet(t, plan{})
			encode(t, fleet.source, f, "+delete_segments")
			fleet.awaitMore(4) // a stream that has just begun has nothing to buffer
			m := seen(t, browse(t, fleet.publisher.url()+"/", seconds), seconds)
			judgeStalls(t, "the browser", m.Stalls, time.Duration(m.StallSeconds*float64(time.Second)))
			if list := m.serious(); len(list) > 0 {
				t.Errorf("errors: %q", list)
			}
			if boxes, own := m.share(); offload(boxes, own) < 0.9 {
				t.Errorf("boxes sent %d bytes and the origin %d", boxes, own)
			}
		})
	}
}
