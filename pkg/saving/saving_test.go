package saving

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/quick"
	"time"

	"dandelion/pkg/id"
)

var start = time.Unix(1e9, 0)

func text(v *float64) string {
	if v == nil {
		return "none"
	}
	return fmt.Sprintf("%.3g", *v)
}

func TestFigures(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		bytes                      Bytes
		offload, caster, overheads string
	}{
		{Bytes{}, "none", "none", "none"},
		{Bytes{Placing: 100, Relayed: 100}, "none", "none", "none"},
		{Bytes{Redirected: 50, Returned: 50, Placing: 100}, "none", "none", "none"},
		{Bytes{Redirected: 100}, "1", "1", "0"},
		{Bytes{Origin: 100}, "0", "0", "0"},
		{Bytes{Redirected: 100, Placing: 100}, "1", "0", "1"},
		{Bytes{Redirected: 900, Returned: 100, Origin: 200, Placing: 100, Relayed: 400}, "0.8", "0.7", "0.5"},
		{Bytes{Redirected: 100, Placing: 300}, "1", "-2", "3"},
		{Bytes{Returned: 100, Origin: 10, Placing: 5}, "0", "-0.5", "0.5"}, // of a redirect before the time
	} {
		f := tt.bytes.Figures()
		if text(f.Offload) != tt.offload || text(f.CasterOffload) != tt.caster || text(f.PlacingOverhead) != tt.overheads {
			t.Errorf("%+v: offload %s, caster_offload %s, placing_overhead %s", tt.bytes, text(f.Offload), text(f.CasterOffload), text(f.PlacingOverhead))
		}
	}
}

// TestWindows: events at any times are in the windows that they belong to, as a list of all events says.
func TestWindows(t *testing.T) {
	t.Parallel()
	type event struct {
		at    time.Duration
		bytes Bytes
	}
	check := func(seed uint64) bool {
		rng := rand.New(rand.NewPCG(seed, 1))
		m, events, now := newMeter(start), []event(nil), time.Duration(0)
		for range 300 {
			// Moments, minutes, and now and then longer than all windows.
			now += time.Duration(math.Pow(rng.Float64(), 6) * float64(2*time.Hour))
			e := event{now, Bytes{rng.Int64N(100), 0, rng.Int64N(100), rng.Int64N(100), rng.Int64N(100)}}
			events = append(events, e)
			m.Add(e.bytes, start.Add(now))
			sum := func(width time.Duration) Figures {
				var b Bytes
				for _, e := range events {
					if now/width-e.at/width < 60 {
						b = b.plus(e.bytes)
					}
				}
				return b.Figures()
			}
			w := m.Windows(start.Add(now))
			for name, two := range map[string][2]Figures{
				"minute": {w.Minute, sum(time.Second)}, "hour": {w.Hour, sum(time.Minute)}, "start": {w.Start, sum(1000 * time.Hour)},
			} {
				if got, want := line(two[0]), line(two[1]); got != want {
					t.Logf("seed %d, %s at %v: %s, want %s", seed, name, now, got, want)
					return false
				}
			}
		}
		return true
	}
	if err := quick.Check(check, &quick.Config{MaxCount: 50}); err != nil {
		t.Error(err)
	}
}

func line(f Figures) string {
	return fmt.Sprint(f.BoxBytes, f.OriginBytes, f.PlacingBytes, f.RelayedBytes, " ", text(f.Offload), text(f.CasterOffload), text(f.PlacingOverhead))
}

// TestClockGoesBack: goroutines that race tell of events in another order; none is lost.
func TestClockGoesBack(t *testing.T) {
	t.Parallel()
	m := newMeter(start)
	for _, at := range []time.Duration{-time.Second, time.Hour, time.Hour - time.Millisecond, time.Hour - 2*time.Second} {
		m.Add(Bytes{Origin: 1}, start.Add(at))
	}
	if w := m.Windows(start.Add(time.Hour)); w.Minute.OriginBytes != 3 || w.Start.OriginBytes != 4 {
		t.Errorf("%+v", w)
	}
}

func taken(b *Book, at time.Duration) string {
	var lines []string
	for _, r := range b.TakeRedirects(start.Add(at)) {
		lines = append(lines, fmt.Sprintf("%s %q %d %d", r.Box, r.Stream, r.Count, r.Bytes))
	}
	slices.Sort(lines)
	return strings.Join(lines, "; ")
}

// TestRedirectsAreTakenOnce, and what a box sent back is not among them, also when it was taken before.
func TestRedirectsAreTakenOnce(t *testing.T) {
	t.Parallel()
	b := NewBook(start, "demo", "other")
	demo, files := b.Stream("demo"), b.OfRendition("")
	demo.Redirected("a", 10, start)
	demo.Redirected("a", 10, start)
	demo.Redirected("b", 5, start)
	b.OfRendition("other/v").Redirected("a", 1, start)
	files.Redirected("a", 0, start) // HEAD
	for _, want := range []string{`a "" 1 0; a "demo" 2 20; a "other" 1 1; b "demo" 1 5`, ""} {
		if got := taken(b, 0); got != want {
			t.Errorf("taken: %s, want %s", got, want)
		}
	}
	demo.Bounced("a", 10, start) // it was told
	demo.Bounced("b", 5, start)
	if got := taken(b, time.Second); got != "" {
		t.Errorf("less than nothing is told: %s", got)
	}
	demo.Redirected("a", 10, start)
	demo.Redirected("a", 20, start)
	demo.Repeated(20, start) // the box may have sent a part
	if got := taken(b, 2*time.Second); got != `a "demo" 1 20` {
		t.Errorf("what was sent back after it was told is not made up for: %s", got)
	}
	if got := taken(b, idleFor+time.Second); got != "" || len(demo.boxes)+len(files.boxes) != 0 {
		t.Errorf("%s, and %d boxes are remembered", got, len(demo.boxes)+len(files.boxes))
	}
	if want := (Bytes{Redirected: 56, Returned: 35}); b.Total() != want {
		t.Errorf("%+v, want %+v", b.Total(), want)
	}
}

func TestManyBoxes(t *testing.T) {
	t.Parallel()
	b := NewBook(start, "demo")
	for i := range mostBoxes + 10 {
		b.Stream("demo").Redirected(id.BoxID(fmt.Sprint(i)), 1, start)
	}
	if n := len(b.TakeRedirects(start)); n != mostBoxes || b.Lost() != 10 || b.Total().Redirected != mostBoxes+10 {
		t.Errorf("%d boxes, %d redirects lost, %+v", n, b.Lost(), b.Total())
	}
}

// TestWhichMeter: segments of the book's streams are their streams', all else is files.
func TestWhichMeter(t *testing.T) {
	t.Parallel()
	b := NewBook(start, "demo")
	for path, want := range map[id.Path]*Meter{
		"/live/demo/v/0123456789ab/1.ts":  b.streams["demo"],
		"/live/other/v/0123456789ab/1.ts": b.files,
		"/live/demo/film.mp4":             b.files,
		"/uploads/0123456789ab/film.mp4":  b.files,
	} {
		if b.Of(path) != want {
			t.Errorf("%s is counted elsewhere", path)
		}
	}
	if b.OfRendition("demo/v") != b.streams["demo"] || b.OfRendition("other/v") != b.files {
		t.Error("renditions are counted elsewhere")
	}
}

// TestRedirectAllocatesNothing: it is what a publisher does most.
func TestRedirectAllocatesNothing(t *testing.T) {
	b, now := NewBook(start, "demo"), start
	b.OfRendition("demo/v").Redirected("a", 1, now)
	if n := testing.AllocsPerRun(1000, func() {
		now = now.Add(100 * time.Millisecond)
		b.OfRendition("demo/v").Redirected("a", 1, now)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkRedirected(b *testing.B) {
	book := NewBook(start, "demo")
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			book.OfRendition("demo/v").Redirected("box-0123456789abcdef0123456789abcdef", 1, start)
		}
	})
}
