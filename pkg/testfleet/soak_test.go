package testfleet

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"dandelion/pkg/watch"
)

// soak is how long and how large. The short one is part of every test run.
type soak struct {
	length                  time.Duration
	streams, boxes, viewers int
	round                   time.Duration // viewers come, watch and go; then the publisher is restarted
	fault                   time.Duration // a box fails so often
}

const leastRounds = 6 // however slow the machine is: a line through fewer says nothing

func soakPlan(t *testing.T) soak {
	text := os.Getenv("SOAK_FOR")
	if text == "" {
		return soak{length: 15 * time.Second, streams: 4, boxes: 4, viewers: 4, round: 2500 * time.Millisecond, fault: time.Second}
	}
	length, err := time.ParseDuration(text)
	if err != nil {
		t.Fatalf("SOAK_FOR: %v: want a duration such as 10m", err)
	}
	return soak{length: length, streams: 20, boxes: 10, viewers: 20, round: 28 * time.Second, fault: 4 * time.Second}
}

// TestSoak runs streams and boxes, with viewers who come and go, while boxes die and return and
// the publisher is restarted. Each time when all is whole again and the viewers are gone, it
// looks at what all peers in this process use: nothing may grow. `make soak` does it for ten
// minutes.
//
// It is not parallel to others, whose goroutines it would count.
func TestSoak(t *testing.T) {
	plan := soakPlan(t)
	f := Start(t, Options{Boxes: plan.boxes, Streams: plan.streams, Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(t.Context())
	var encoding sync.WaitGroup
	encoding.Go(func() { f.encodeAll(ctx, plan.streams) })
	t.Logf("%d streams, %d boxes, %d viewers, %v", plan.streams, plan.boxes, plan.viewers, plan.length)
	t.Logf("%8s %10s %11s %9s %9s", "after", "goroutines", "descriptors", "heap MB", "RSS MB")
	var samples []sample
	var told time.Duration
	segments, corrupt := 0, 0
	began := time.Now()
	for round := 0; time.Since(began) < plan.length || round < leastRounds; round++ {
		stop := f.watchAll(plan)
		f.faults(plan, round)
		s, c := stop()
		segments, corrupt = segments+s, corrupt+c
		f.Publisher.Stop()
		f.Publisher.Start()
		f.AwaitBoxes(plan.boxes)
		is := f.sample(time.Since(began))
		samples = append(samples, is)
		if round == 0 || is.at-told >= time.Minute-plan.round/2 || is.at >= plan.length {
			told = is.at
			t.Logf("%8s %10.0f %11.0f %9.1f %9.1f", is.at.Round(time.Second), is.goroutines, is.descriptors, is.heap/1e6, is.rss/1e6)
		}
	}
	cancel()
	encoding.Wait()
	t.Logf("viewers got %d segments, %d of them corrupt", segments, corrupt)
	if segments < len(samples)*plan.viewers || corrupt > 0 {
		t.Errorf("viewers got %d segments (want one each of %d in %d rounds at least), %d of them corrupt", segments, plan.viewers, len(samples), corrupt)
	}
	// Within a minute boxes close no relaying session, and there may be four from each to each other: until they
	// are all there it is no growth yet, an end of it at each. Nor has the race detector's memory found its size.
	sessions, resident := 0, 10e6
	if plan.length < time.Minute {
		sessions, resident = 4*2*plan.boxes*(plan.boxes-1), 50e6
	}
	for _, g := range growths(samples[len(samples)/2:], sessions, resident) {
		t.Log(g)
		if g.tooMuch() {
			t.Errorf("not flat: %s", g)
		}
	}
}

// watchAll lets viewers watch, spread over the streams, until the returned function is called,
// which says how many segments they got and how many of them were corrupt.
func (f *Fleet) watchAll(plan soak) func() (segments, corrupt int) {
	ctx, cancel := context.WithCancel(f.tb.Context())
	var group sync.WaitGroup
	players := make([]*watch.Player, plan.viewers)
	for i := range players {
		name := "demo"
		if n := i%plan.streams + 1; n > 1 {
			name = fmt.Sprintf("demo-%d", n)
		}
		players[i] = watch.New(watch.Config{
			URL: f.Publisher.URL() + "/live/" + name + "/index.m3u8", UserAgent: fmt.Sprint("viewer ", i), Log: f.Log,
		})
		group.Go(func() {
			if err := players[i].Run(ctx); err != nil {
				f.tb.Errorf("viewer %d: %v", i, err)
			}
		})
	}
	return func() (segments, corrupt int) {
		cancel()
		group.Wait()
		for _, p := range players {
			r := p.Report()
			segments, corrupt = segments+r.Segments, corrupt+r.Corrupt
		}
		return segments, corrupt
	}
}

// faults breaks boxes and mends them, one after the other, for one round.
func (f *Fleet) faults(plan soak, round int) {
	f.tb.Helper()
	faults := []struct{ fail, cure func(*Box) }{
		{func(b *Box) { b.Stop() }, func(b *Box) { b.Start() }},
		{func(b *Box) { b.Link.Cut() }, func(b *Box) { b.Link.Mend() }},
		{func(b *Box) { b.Link.Unplug() }, func(b *Box) { b.Link.Mend() }},
	}
	ticker := time.NewTicker(plan.fault)
	defer ticker.Stop()
	began := time.Now()
	for n := round; time.Since(began) < plan.round; n++ {
		fault, b := faults[n%len(faults)], f.Boxes[n%len(f.Boxes)]
		fault.fail(b)
		f.AwaitBoxes(plan.boxes - 1)
		fault.cure(b)
		f.AwaitBoxes(plan.boxes)
		<-ticker.C
	}
}

// encodeAll writes a small segment of each stream every second.
func (f *Fleet) encodeAll(ctx context.Context, streams int) {
	encoders := make([]*Encoder, streams)
	for i := range encoders {
		e := f.EncoderOf(i + 1)
		e.Window, e.Keep, e.Size, e.Seconds = 6, 12, 5000, 1
		encoders[i] = e
	}
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		for _, e := range encoders {
			e.Write(1)
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// sample is what this process uses.
type sample struct {
	at                                 time.Duration
	goroutines, descriptors, heap, rss float64
}

// sample is the lowest of ten within a second: what is on its way passes.
func (f *Fleet) sample(at time.Duration) sample {
	f.tb.Helper()
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	low := sampleNow(f.tb, at)
	for range 9 {
		<-ticker.C
		s := sampleNow(f.tb, at)
		low.goroutines, low.descriptors = math.Min(low.goroutines, s.goroutines), math.Min(low.descriptors, s.descriptors)
		low.heap, low.rss = math.Min(low.heap, s.heap), math.Min(low.rss, s.rss)
	}
	return low
}

func sampleNow(tb testing.TB, at time.Duration) sample {
	tb.Helper()
	debug.FreeOSMemory() // collects garbage first
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		tb.Fatal(err)
	}
	statm, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		tb.Fatal(err)
	}
	pages, err := strconv.Atoi(strings.Fields(string(statm))[1])
	if err != nil {
		tb.Fatal(err)
	}
	return sample{at, float64(runtime.NumGoroutine()), float64(len(fds)), float64(m.HeapAlloc), float64(pages * os.Getpagesize())}
}

// growth is how much one of the figures grew over some samples, by the straight line through them.
type growth struct {
	what        string
	mean, grown float64
	bound       float64 // what is noise
}

func (g growth) tooMuch() bool { return g.grown > g.bound }

func (g growth) String() string {
	return fmt.Sprintf("%s: %.0f on average, grew by %.0f over the second half (bound %.0f)", g.what, g.mean, g.grown, g.bound)
}

// growths returns what grew over the samples. Noise is: 20 goroutines, 20 descriptors, 2 % or
// 2 MB of live heap, 5 % or so many bytes of resident memory, whichever is more; and so many ends of sessions.
func growths(samples []sample, sessions int, resident float64) []growth {
	grow := func(what string, bound, share float64, of func(sample) float64) growth {
		mean, grown := line(samples, of)
		return growth{what, mean, grown, math.Max(bound, share*mean)}
	}
	return []growth{
		grow("goroutines", float64(20+sessions), 0, func(s sample) float64 { return s.goroutines }),
		grow("descriptors", float64(20+sessions), 0, func(s sample) float64 { return s.descriptors }),
		grow("bytes of heap", 2e6, 0.02, func(s sample) float64 { return s.heap }),
		grow("bytes of RSS", resident, 0.05, func(s sample) float64 { return s.rss }),
	}
}

// line fits a straight line and returns the mean and how much the line rises over all.
func line(samples []sample, of func(sample) float64) (mean, rise float64) {
	var t, v float64
	n := float64(len(samples))
	for _, s := range samples {
		t += s.at.Seconds() / n
		v += of(s) / n
	}
	var above, below float64
	for _, s := range samples {
		d := s.at.Seconds() - t
		above += d * (of(s) - v)
		below += d * d
	}
	if below == 0 {
		return v, 0
	}
	return v, above / below * (samples[len(samples)-1].at - samples[0].at).Seconds()
}

// What grows is told from what only varies.
func TestGrowths(t *testing.T) {
	t.Parallel()
	flat, leaking := make([]sample, 60), make([]sample, 60)
	for i := range flat {
		at := time.Duration(i) * 5 * time.Second
		noise := float64(i % 7)
		flat[i] = sample{at, 500 + noise, 300 + noise, 50e6 + noise*1e5, 150e6 + noise*1e6}
		leak := float64(i)
		leaking[i] = sample{at, 500 + noise + leak/2, 300 + noise + leak/2, 50e6 + leak*1e5, 150e6 + leak*3e5}
	}
	for _, g := range growths(flat, 0, 10e6) {
		if g.tooMuch() {
			t.Errorf("%s", g)
		}
	}
	for _, g := range growths(leaking, 0, 10e6) {
		if !g.tooMuch() {
			t.Errorf("not found: %s", g)
		}
	}
}
