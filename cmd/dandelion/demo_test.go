package main

import (
	"strings"
	"testing"
	"time"

	"dandelion/cmd/dandelion/internal/demo"
)

func TestStatusText(t *testing.T) {
	t.Parallel()
	for want, s := range map[string]demo.Status{
		"00:00  segments placed 0  boxes 0  from boxes 0 B  origin 0 B  no viewer yet":      {},
		"01:05  segments placed 7  boxes 5  from boxes 3.0 MB  origin 1.0 MB  offload 75 %": {Running: 65 * time.Second, SegmentsPlaced: 7, BoxesUp: 5, BoxBytes: 3e6, OriginBytes: 1e6},
		"100:00  segments placed 7  boxes 5  from boxes 0 B  origin 999 B  offload 0 %":     {Running: 100 * time.Minute, SegmentsPlaced: 7, BoxesUp: 5, OriginBytes: 999},
		"00:01  segments placed 0  boxes 0  from boxes 1.0 kB  origin 0 B  offload 100 %":   {Running: time.Second, BoxBytes: 1000},
		"00:01  segments placed 0  boxes 0  from boxes 12.3 PB  origin 0 B  offload 100 %":  {Running: time.Second, BoxBytes: 12345e12},
	} {
		if got := statusText(s); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// TestStatusLine: a terminal has one line, everything else one in ten seconds.
func TestStatusLine(t *testing.T) {
	t.Parallel()
	for terminal, want := range map[bool]int{true: 1, false: 3} {
		var out strings.Builder
		line := &statusLine{out: &out, terminal: terminal}
		for s := range 25 {
			line.show(demo.Status{Running: time.Duration(s) * time.Second})
		}
		line.end()
		if got := strings.Count(out.String(), "\n"); got != want {
			t.Errorf("terminal %v: %d lines, want %d", terminal, got, want)
		}
	}
}

func TestDemoRefuses(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"--for", "-3s"}, {"--boxes", "0"}, {"--boxes", "1000"}, {"--viewers", "-1"}} {
		cmd := newRoot()
		cmd.SetArgs(append([]string{"demo"}, args...))
		if err := cmd.Execute(); err == nil || !strings.Contains(err.Error(), "want --for") {
			t.Errorf("%v: %v", args, err)
		}
	}
}
