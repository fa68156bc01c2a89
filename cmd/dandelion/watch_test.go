package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/go-json-experiment/json"

	"dandelion/pkg/watch"
)

// recording is a short stream of the origin alone.
func recording(t *testing.T) string {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, ".m3u8") {
			fmt.Fprint(w, "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:0.1,\n1.ts\n#EXTINF:0.1,\n2.ts\n#EXT-X-ENDLIST\n")
			return
		}
		fmt.Fprint(w, r.URL.Path)
	}))
	t.Cleanup(srv.Close)
	return srv.URL + "/x.m3u8"
}

// watched runs the command.
func watched(args ...string) (out, errOut string, err error) {
	var o, e strings.Builder
	cmd := newRoot()
	cmd.SetArgs(append([]string{"watch"}, args...))
	cmd.SetOut(&o)
	cmd.SetErr(&e)
	err = cmd.Execute()
	return o.String(), e.String(), err
}

func TestWatchJSON(t *testing.T) {
	t.Parallel()
	events, series := filepath.Join(t.TempDir(), "events.jsonl"), filepath.Join(t.TempDir(), "series.jsonl")
	u := recording(t)
	out, _, err := watched(u, "--json", "--viewers", "2", "--policy", "hlsjs", "--events", events, "--series", series)
	if err != nil {
		t.Fatal(err)
	}
	var s watch.Summary
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if s.URL != u || s.Policy != "hlsjs" || s.Viewers != 2 || s.Playing != 2 || s.Segments.Received != 4 || s.Failovers.ByCause["reset"].Count != 0 {
		t.Errorf("%s", out)
	}
	b, err := os.ReadFile(events)
	if err != nil || strings.Count(string(b), `"event":"start"`) != 2 {
		t.Errorf("%v: %s", err, b)
	}
	b, err = os.ReadFile(series)
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	var last noted
	if err == nil {
		err = json.Unmarshal([]byte(lines[len(lines)-1]), &last)
	}
	if err != nil || last.Time.IsZero() || last.Segments != s.Segments || len(last.Bytes) != 1 || len(lines) < 2 {
		t.Errorf("the series: %v: %s", err, b)
	}
}

func TestWatchText(t *testing.T) {
	t.Parallel()
	out, errOut, err := watched(recording(t), "--events", "-")
	if err != nil || !strings.Contains(out, "All right from here: no stall, nothing missing.") || !strings.Contains(out, "100 % from the origin") && !strings.Contains(out, "0 % from boxes") {
		t.Errorf("%v\n%s", err, out)
	}
	for line := range strings.Lines(errOut) {
		if !strings.HasPrefix(line, `{"time":`) {
			t.Errorf("%s is no event", line)
		}
	}
}

func TestWatchRefuses(t *testing.T) {
	t.Parallel()
	for want, args := range map[string][]string{
		`there is no policy "vlc"`:                                  {"--policy", "vlc", "http://127.0.0.1:1/x.m3u8"},
		"no URL of a stream":                                        {"x.m3u8"},
		"0 viewers: want 1 to":                                      {"--viewers", "0", "http://127.0.0.1:1/x.m3u8"},
		"the events cannot be written: open":                        {"--events", "/does/not/exist", "http://127.0.0.1:1/x.m3u8"},
		"the series cannot be written: open":                        {"--series", "/does/not/exist", "http://127.0.0.1:1/x.m3u8"},
		"http://127.0.0.1:1/x.m3u8 gave no playlist within 100ms: ": {"--for", "100ms", "http://127.0.0.1:1/x.m3u8"},
		"usage: dandelion watch URL":                                {},
	} {
		if _, _, err := watched(args...); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v: %v, want %s", args, err, want)
		}
	}
}

// TestWatchPicture: each line fits, and says what a caster wants to know.
func TestWatchPicture(t *testing.T) {
	t.Parallel()
	v := &watchView{origin: "o:1"}
	s := watch.Summary{
		URL: "http://o:1/live/demo/index.m3u8", Policy: "hlsjs", Viewers: 50, Seconds: 61, Playing: 49,
		Startup: watch.Spread{P50: 0.25, P95: 1.26}, Retries: 1, PlaylistFailures: 3,
		Stalls:   watch.Stalls{Count: 2, Seconds: 3.5, Longest: 2, SessionsWithout: 47, ShareWithout: .94},
		Segments: watch.Segments{Received: 1500, Missed: 2, Unverified: 4},
		Bytes:    map[string]int64{"o:1": 100, "a:1": 500, "b:1": 300, "c:1": 50, "d:1": 30, "e:1": 20},
		Failovers: watch.AllFailovers{
			Counted: watch.Counted{Count: 3, Spread: watch.Spread{P50: .05, P95: 1.04}},
			ByCause: map[watch.Cause]watch.Counted{watch.CauseReset: {Count: 2}, watch.CauseSilent: {Count: 1}},
		},
		Now: map[watch.State]int{watch.Playing: 48, watch.Stalled: 1, watch.Starting: 1},
	}
	text := strings.Join(v.picture(s), "\n")
	for _, want := range []string{
		"01:01       50 viewers, as hls.js plays by default",
		"now         48 playing, 1 stalled, 1 starting\n",
		"started in  250 ms, 95 of 100 viewers within 1.3 s",
		"stalls      2, together 3.5 s, the longest 2.0 s; 94.0 % of viewers had none",
		"segments    1500 received, 2 missed, 0 corrupt, 0 twice, 4 not checked",
		"failovers   2 reset, 1 silent: half within 50 ms, 95 of 100 within 1.0 s",
		"errors      1 segment asked for again, 3 playlists not loaded",
		"bytes       90 % from boxes (900 B), 100 B from the origin",
		"box     a:1                           500 B",
		"origin  o:1                           100 B",
		"and 1 more",
		"Not all right: the picture stood still for 2 of 50 viewers.",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
	for line := range strings.Lines(text) {
		if utf8.RuneCountInString(line) > usualColumns {
			t.Errorf("too long: %s", line)
		}
	}
	if line := v.line(s); line != "01:01  playing 48/50  stalled now 1  stall-free 94 %  failovers 3  missed 2  90 % from boxes (900 B), 100 B from the origin" {
		t.Error(line)
	}
}

func TestWatchVerdict(t *testing.T) {
	t.Parallel()
	for want, s := range map[string]watch.Summary{
		"Nothing plays yet.":                                                              {Viewers: 1},
		"Nothing plays yet: no such box":                                                  {Viewers: 1, Trouble: "no such box"},
		"All right from here: no stall, nothing missing.":                                 {Viewers: 1, Playing: 1},
		"All right from here: 1 load failed on the way, and no viewer noticed.":           {Viewers: 1, Playing: 1, Failovers: watch.AllFailovers{Counted: watch.Counted{Count: 1}}},
		"All right from here: 2 loads failed on the way, and no viewer noticed.":          {Viewers: 1, Playing: 1, Failovers: watch.AllFailovers{Counted: watch.Counted{Count: 2}}},
		"Not all right: the picture stood still once, 500 ms in all.":                     {Viewers: 1, Playing: 1, Stalls: watch.Stalls{Count: 1, Seconds: .5}},
		"Not all right: the picture stood still 2 times, 3.0 s in all.":                   {Viewers: 1, Playing: 1, Stalls: watch.Stalls{Count: 2, Seconds: 3}},
		"Nearly all right: nobody waited, but the picture jumped over 1 missing segment.": {Viewers: 1, Playing: 1, Segments: watch.Segments{Missed: 1}},
		"Not all right: 1 segment had other bytes than the publisher promised.":           {Viewers: 1, Playing: 1, Segments: watch.Segments{Corrupt: 1}},
		"2 of 3 viewers play, none of them with a stall.":                                 {Viewers: 3, Playing: 2},
	} {
		if got := verdict(s); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// TestWatchDraws: a picture is drawn over the one before, and no higher than the terminal.
func TestWatchDraws(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	v := &watchView{out: &out, origin: "o:1"}
	v.draw(watch.Summary{Viewers: 1, URL: strings.Repeat("x", 200)})
	first := strings.Count(out.String(), "\n")
	for line := range strings.Lines(out.String()) {
		if n := utf8.RuneCountInString(strings.TrimPrefix(strings.TrimSuffix(line, "\n"), "\r\x1b[K")); n >= usualColumns {
			t.Errorf("%d columns: %s", n, line)
		}
	}
	out.Reset()
	v.draw(watch.Summary{Viewers: 1})
	if want := fmt.Sprintf("\x1b[%dA\r\x1b[K", first); !strings.HasPrefix(out.String(), want) || first > usualRows-1 {
		t.Errorf("%d lines, then %q", first, out.String()[:20])
	}
}
