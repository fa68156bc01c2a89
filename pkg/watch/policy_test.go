package watch

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestRetrying(t *testing.T) {
	t.Parallel()
	const s = time.Second
	for name, tt := range map[string]struct {
		retry   Retrying
		waits   []time.Duration // of the first retries
		endless bool
	}{
		"dandelion, errors":   {Dandelion.Segment.Errors, []time.Duration{10 * ms, 20 * ms, 40 * ms, 80 * ms, 160 * ms, 320 * ms, 640 * ms, s, s, s}, true},
		"dandelion, timeouts": {Dandelion.Segment.Timeouts, []time.Duration{0, 0, 0, 0, 0, 0}, true},
		"dandelion, playlist": {Dandelion.Playlist.Errors, []time.Duration{250 * ms, 500 * ms, s, s}, true},
		"hls.js, errors":      {HLSJS.Segment.Errors, []time.Duration{s, 2 * s, 4 * s, 8 * s, 8 * s, 8 * s}, false},
		"hls.js, timeouts":    {HLSJS.Segment.Timeouts, []time.Duration{0, 0, 0, 0}, false},
		"hls.js, playlist":    {HLSJS.Playlist.Errors, []time.Duration{s, 2 * s}, false},
		"none":                {Retrying{}, nil, false},
	} {
		var got []time.Duration
		n := 0
		for ; n < len(tt.waits); n++ {
			wait, again := tt.retry.next(n)
			if !again {
				break
			}
			got = append(got, wait)
		}
		if !slices.Equal(got, tt.waits) {
			t.Errorf("%s: waits %v, want %v", name, got, tt.waits)
		}
		if _, again := tt.retry.next(n); again != tt.endless {
			t.Errorf("%s: one more: %v", name, again)
		}
		if wait, again := tt.retry.next(1 << 20); again && wait > tt.retry.Longest {
			t.Errorf("%s: waits %v in the end", name, wait)
		}
	}
}

func TestNextLoad(t *testing.T) {
	t.Parallel()
	late, broken := &failure{timeout: true}, &failure{}
	for _, tt := range []struct {
		f      *failure
		before int
		wait   time.Duration
		fatal  bool
	}{
		{late, 0, 0, false},
		{broken, 0, time.Second, false},
		{broken, 3, 8 * time.Second, false}, // failures of both kinds count together
		{late, 4, time.Second, true},
		{broken, 6, time.Second, true},
	} {
		if wait, fatal := HLSJS.Segment.next(tt.f, tt.before, HLSJS.Restart); wait != tt.wait || fatal != tt.fatal {
			t.Errorf("after %d: %v, %v", tt.before, wait, fatal)
		}
	}
}

func TestLimits(t *testing.T) {
	t.Parallel()
	const s = time.Second
	for name, tt := range map[string]struct {
		loading          Loading
		patience         patience
		target           int
		firstByte, whole time.Duration
		silence          time.Duration
	}{
		"usual":                    {Dandelion.Segment, patience{}, 6, s, 12 * s, s},
		"no target duration":       {Dandelion.Segment, patience{}, 0, s, 2 * s, s},
		"two timeouts":             {Dandelion.Segment, patience{timeouts: 2}, 6, s, 12 * s, s},
		"three timeouts":           {Dandelion.Segment, patience{timeouts: 3}, 6, 2 * s, 12 * s, 2 * s},
		"five timeouts":            {Dandelion.Segment, patience{timeouts: 5}, 6, 8 * s, 12 * s, 8 * s},
		"many timeouts":            {Dandelion.Segment, patience{timeouts: 1 << 30}, 6, 8 * s, 12 * s, 8 * s},
		"a slow line":              {Dandelion.Segment, patience{took: 1500 * ms}, 6, 3 * s, 12 * s, s},
		"a very slow line":         {Dandelion.Segment, patience{took: 7 * s}, 6, 8 * s, 12 * s, s},
		"a quick line":             {Dandelion.Segment, patience{took: 80 * ms}, 6, s, 12 * s, s},
		"a slow line and timeouts": {Dandelion.Segment, patience{took: 1500 * ms, timeouts: 3}, 6, 6 * s, 12 * s, 2 * s},
		"playlists":                {Dandelion.Playlist, patience{}, 6, 3 * s, 10 * s, 0},
		"hls.js":                   {HLSJS.Segment, patience{timeouts: 9, took: 9 * s}, 6, 10 * s, 120 * s, 0},
		"hls.js, manifest":         {HLSJS.Manifest, patience{}, 6, 20 * s, 20 * s, 0},
	} {
		if firstByte, whole, silence := tt.loading.limits(tt.patience, tt.target); firstByte != tt.firstByte || whole != tt.whole || silence != tt.silence {
			t.Errorf("%s: %v, %v and %v, want %v, %v and %v", name, firstByte, whole, silence, tt.firstByte, tt.whole, tt.silence)
		}
	}
}

// TestPageAgrees: the page's figures are those of the policy.
func TestPageAgrees(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../web/src/policy.ts")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"const FIRST_BYTE_MS = 1000;",
		"const LONGEST_FIRST_BYTE_MS = 8000;",
		"const IMPATIENT_ATTEMPTS = 3;",
		"const SILENCE_MS = 1000;",
		"const PACE_AFTER_MS = 1000;",
		"const SHORTEST_MS = 1000;",
		"const PACE_GIVE_UPS = 2;",
		"const PACE_REST_MS = 30_000;",
		"return 2000 * targetDuration;",
		"errorRetry: { maxNumRetry: 13, retryDelayMs: 10, maxRetryDelayMs: 1000, shouldRetry },",
		"maxTimeToFirstByteMs: 3000,",
		"maxLoadTimeMs: 10_000,",
		"errorRetry: { maxNumRetry: 40, retryDelayMs: 250, maxRetryDelayMs: 1000, shouldRetry },",
	} {
		if !strings.Contains(string(page), line) {
			t.Errorf("web/src/policy.ts does not have %q; change both or none", line)
		}
	}
}

func TestPolicyNamed(t *testing.T) {
	t.Parallel()
	for _, want := range []Policy{Dandelion, HLSJS} {
		if got, err := PolicyNamed(want.Name); err != nil || got != want {
			t.Errorf("%+v, %v", got, err)
		}
	}
	if _, err := PolicyNamed("vlc"); err == nil || err.Error() != `there is no policy "vlc": want dandelion or hlsjs` {
		t.Error(err)
	}
}
