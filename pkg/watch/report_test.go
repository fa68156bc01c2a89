package watch

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
)

func TestPercentile(t *testing.T) {
	t.Parallel()
	hundred := make([]time.Duration, 100)
	for i := range hundred {
		hundred[i] = time.Duration(i + 1)
	}
	for _, tt := range []struct {
		of      []time.Duration
		percent int
		want    time.Duration
	}{
		{nil, 50, 0},
		{[]time.Duration{7}, 50, 7},
		{[]time.Duration{7}, 95, 7},
		{[]time.Duration{1, 2}, 50, 1},
		{[]time.Duration{1, 2, 3}, 50, 2},
		{hundred, 50, 50},
		{hundred, 95, 95},
		{hundred[:20], 95, 19},
		{hundred[:19], 95, 19},
		{hundred, 0, 1},
		{hundred, 100, 100},
	} {
		if got := percentile(tt.of, tt.percent); got != tt.want {
			t.Errorf("percentile %d of %d values is %d, want %d", tt.percent, len(tt.of), got, tt.want)
		}
	}
}

func TestFailoversAreBounded(t *testing.T) {
	t.Parallel()
	var f Failovers
	for n := range 5 * maxFailovers {
		f.add(CauseReset, time.Duration(n))
	}
	l := f[CauseReset]
	if l.Count != 5*maxFailovers || len(l.Sample) != maxFailovers {
		t.Errorf("%d counted, %d kept", l.Count, len(l.Sample))
	}
	slices.Sort(l.Sample)
	if middle := percentile(l.Sample, 50); middle < 2*maxFailovers || middle > 3*maxFailovers {
		t.Errorf("the middle of the sample is %d of %d", middle, l.Count)
	}
}

func TestHostsAreBounded(t *testing.T) {
	t.Parallel()
	to := map[string]int64{}
	for range 2 {
		for n := range maxHosts + 10 {
			addBytes(to, fmt.Sprint(n), 3)
		}
	}
	if len(to) != maxHosts+1 || to["0"] != 6 || to[otherHosts] != 60 {
		t.Errorf("%d hosts, %d of the first, %d of others", len(to), to["0"], to[otherHosts])
	}
}

// TestSummary: the JSON's names are an interface.
func TestSummary(t *testing.T) {
	t.Parallel()
	lengths := func(d ...time.Duration) *Lengths { return &Lengths{Count: len(d), Sample: d} }
	s := summarize([]Report{
		{
			Startup: time.Second, Stalls: 2, Stalled: 3 * time.Second, Longest: 2 * time.Second, Segments: 10, Missed: 1, Duplicated: 2, Corrupt: 3, Unverified: 4,
			Redirects: 5, Retries: 6, PlaylistFailures: 7, Bytes: map[string]int64{"a:1": 10, "b:2": 1}, ControlBytes: 8, State: Playing,
			Failovers: Failovers{CauseReset: lengths(100*time.Millisecond, 300*time.Millisecond), CauseSilent: lengths(1200 * time.Millisecond)},
		},
		{Startup: 2 * time.Second, Segments: 1, Bytes: map[string]int64{"a:1": 5}, State: Playing, Failovers: Failovers{CauseReset: lengths(200 * time.Millisecond)}},
		{State: Starting},
		{State: Starting}, // has not begun
	}, 3)
	s.URL, s.Policy, s.Viewers, s.Seconds = "http://h/x.m3u8", "hlsjs", 4, 1.5
	got, err := json.Marshal(s, json.Deterministic(true))
	if err != nil {
		t.Fatal(err)
	}
	want := `{"url":"http://h/x.m3u8","policy":"hlsjs","viewers":4,"seconds":1.5,"playing":2,"startup":{"p50":1,"p95":2},` +
		`"stalls":{"count":2,"seconds":3,"sessions_without":1,"share_without":0.3333333333333333,"longest":2},` +
		`"segments":{"received":11,"missed":1,"duplicated":2,"corrupt":3,"unverified":4},` +
		`"bytes":{"a:1":15,"b:2":1},"control_bytes":8,"redirects":5,"retries":6,"playlist_failures":7,` +
		`"failovers":{"count":4,"p50":0.2,"p95":1.2,"by_cause":{"reset":{"count":3,"p50":0.2,"p95":0.3},"silent":{"count":1,"p50":1.2,"p95":1.2},"slow":{"count":0,"p50":0,"p95":0},"status":{"count":0,"p50":0,"p95":0}}}}`
	if string(got) != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if s.Now[Playing] != 2 || s.Now[Starting] != 2 {
		t.Errorf("%v", s.Now)
	}
}

// TestEventLog: a line each, written at once; after a failure no more, and it is told.
func TestEventLog(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	l := &eventLog{out: &out}
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	l.write(Event{Time: at, Viewer: 3, Event: EventFailover, Seconds: 0.25, Cause: CauseReset, From: "a:1", To: "b:2", URL: "http://h/1.ts"})
	want := `{"time":"2026-01-02T03:04:05.000000006Z","viewer":3,"event":"failover","seconds":0.25,"cause":"reset","from":"a:1","to":"b:2","url":"http://h/1.ts"}` + "\n"
	if out.String() != want {
		t.Errorf("got %s, want %s", &out, want)
	}
	l.write(Event{Time: at, Event: EventStall})
	if strings.Count(out.String(), "\n") != 2 || l.failure() != nil {
		t.Errorf("%s, %v", &out, l.failure())
	}
	full := &full{}
	l = &eventLog{out: full}
	l.write(Event{})
	l.write(Event{})
	if full.writes != 1 || l.failure() == nil || !strings.Contains(l.failure().Error(), "the events could not be written: no space") {
		t.Errorf("%d writes, %v", full.writes, l.failure())
	}
}

// full is a full disk.
type full struct{ writes int }

func (f *full) Write([]byte) (int, error) {
	f.writes++
	return 0, fmt.Errorf("no space")
}
