//go:build e2e

package e2e

import (
	"math"
	"slices"
	"testing"
	"time"

	"dandelion/pkg/watch"
)

// What the crowd's figures are made of, upon counts that were made up.

var crowdZero = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func second(s float64) time.Time { return crowdZero.Add(time.Duration(s * float64(time.Second))) }

func TestCrowdKillings(t *testing.T) {
	t.Parallel()
	const total = 80 * time.Second
	for seed := range uint64(30) {
		list := killings(seed, 100, 20, total)
		if !slices.Equal(list, killings(seed, 100, 20, total)) {
			t.Fatalf("seed %d gives two lists", seed)
		}
		most := 0
		for i, k := range list {
			down := 0
			for _, other := range list[:i+1] {
				if k.at <= other.at+other.length {
					down++
					if other.box == k.box && other != k {
						t.Errorf("seed %d: box %d is killed while it is down", seed, k.box)
					}
				}
			}
			most = max(most, down)
			if k.at+k.length > total {
				t.Errorf("seed %d: %+v ends behind the run", seed, k)
			}
		}
		if most > 20 || most < 10 || len(list) < 40 {
			t.Errorf("seed %d: %d kills, %d boxes down at once", seed, len(list), most)
		}
	}
	if list := killings(1, 30, 0, total); len(list) > 0 {
		t.Errorf("without kills: %v", list)
	}
}

func TestCrowdSeries(t *testing.T) {
	t.Parallel()
	s := series{
		{second(10), map[string]int64{}},
		{second(11), map[string]int64{"o": 100, "a": 300}},
		{second(13), map[string]int64{"o": 100, "a": 700, "b": 200}},
	}
	origin, all := func(h string) bool { return h == "o" }, func(string) bool { return true }
	for _, c := range []struct {
		at, origin, all float64
	}{{9, 0, 0}, {10, 0, 0}, {10.5, 50, 200}, {11, 100, 400}, {12, 100, 700}, {13, 100, 1000}, {20, 100, 1000}} {
		if o, a := s.received(second(c.at), origin), s.received(second(c.at), all); math.Abs(o-c.origin) > 1e-6 || math.Abs(a-c.all) > 1e-6 {
			t.Errorf("at %v: %v of the origin and %v of all, want %v and %v", c.at, o, a, c.origin, c.all)
		}
	}
}

// TestCrowdWindow: the steady state begins and ends just before the encoder finishes a segment.
func TestCrowdWindow(t *testing.T) {
	t.Parallel()
	var list []reading
	for i := range 20 { // segments of 100 bytes are finished at 1.5, 3.5, …
		list = append(list, reading{at: second(float64(i)), casters: []casterCount{{ok: i != 7, encoded: int64(i / 2 * 100)}}})
	}
	first, last, ok := window(list, 0, second(4.5), second(16.5))
	if !ok || !first.at.Equal(second(5)) || !last.at.Equal(second(15)) || last.casters[0].encoded-first.casters[0].encoded != 500 {
		t.Errorf("from %v to %v, %v", first.at, last.at, ok)
	}
	if first, _, ok := window(list, 0, second(5.5), second(16.5)); !ok || !first.at.Equal(second(9)) {
		t.Errorf("without the look at 7: from %v, %v", first.at, ok)
	}
	if _, _, ok := window(list, 0, second(4.5), second(6.5)); ok {
		t.Error("a window of one look")
	}
	if _, _, ok := window(nil, 0, second(4.5), second(6.5)); ok {
		t.Error("a window of no look")
	}
}

func TestCrowdSockets(t *testing.T) {
	t.Parallel()
	sent := sentBySocket([]byte("0      0      127.77.1.2:40 127.0.0.1:50 cubic rto:204 bytes_sent:1000 bytes_acked:900 segs_out:2\n" +
		"0 0 127.77.1.2:40 127.0.0.1:51 cubic bytes_sent:7\n0 0 127.77.2.2:41 127.0.0.1:50 cubic bytes_received:3\n\nx\n"))
	now := socketCount{sent: sent}
	if got := now.since(socketCount{sent: map[[2]string]int64{{"127.77.1.2:40", "127.0.0.1:50"}: 400, {"127.77.9.2:1", "127.0.0.1:9"}: 5}}); len(got.sent) != 1 || got.sent["127.77.1.2:40"] != 607 {
		t.Errorf("sent since: %v", got)
	}
	// A connection from a port that was used before counts from its own beginning.
	if got := now.since(socketCount{sent: map[[2]string]int64{{"127.77.1.2:40", "127.0.0.1:50"}: 4000}}); got.sent["127.77.1.2:40"] != 1007 {
		t.Errorf("after a new connection: %v", got)
	}
	if got := now.since(socketCount{}); got.sent != nil {
		t.Errorf("since nothing: %v", got)
	}
}

// TestCrowdPeaks: the worst second is found, at its box, and a box that was started again is not blamed.
func TestCrowdPeaks(t *testing.T) {
	t.Parallel()
	addrs := []string{"a:1", "b:1"}
	count := func(s float64, served, relayed int64) boxCount {
		return boxCount{ok: true, from: second(s), until: second(s + 0.1), served: served, relayed: relayed, peak: 70}
	}
	look := func(s float64, a, b boxCount, kernelA, kernelB int64) reading {
		return reading{at: second(s), boxes: []boxCount{a, b}, kernel: sentCount{second(s - 1), second(s), map[string]int64{"a:1": kernelA, "b:1": kernelB}}}
	}
	list := []reading{
		look(0, count(0, 0, 0), count(0, 0, 0), 0, 0),
		look(1, count(1, 100, 0), count(1, 50, 0), 90, 50),
		look(2, count(2, 310, 100), count(2, 60, 0), 200, 10), // a: 310 in at most 1.1 s, the kernel 200 and 100/1.1
		look(3, count(3, 310, 100), boxCount{}, 0, 0),
		look(4, count(4, 310, 100), count(4, 30, 10), 0, 30), // b was started again
		look(9, count(9, 9310, 100), count(9, 30, 10), 9000, 0),
	}
	kernel, told, own, seen := peaks(list, addrs, second(0.5), second(5))
	if !seen || kernel.box != 0 || math.Abs(kernel.rate-300/1.1) > 1e-6 || !kernel.at.Equal(second(2)) {
		t.Errorf("the kernel's worst second: %+v", kernel)
	}
	if told.box != 0 || math.Abs(told.rate-310/1.1) > 1e-6 || own.rate != 70 {
		t.Errorf("the boxes' worst second: %+v, by themselves %+v", told, own)
	}
	list[1].kernel.sent = nil // of two
	if _, _, _, seen := peaks(list[:3], addrs, second(0.5), second(5)); seen {
		t.Error("the kernel did not answer, and is said to have")
	}
	if got := relayed(list, second(1), second(4)); got != 110 {
		t.Errorf("relayed %d, want 110", got)
	}
	if got := perSecond(100, second(0), second(0.5)); got != 100 {
		t.Errorf("half a second counts as %v/s, want 100", got)
	}
}

func TestCrowdSittings(t *testing.T) {
	t.Parallel()
	c := &crowd{size: 5, began: second(0), left: second(60)}
	event := func(viewer int, at float64, kind string, length float64, cause watch.Cause) seenEvent {
		return seenEvent{viewer: viewer, left: second(60), Event: watch.Event{Time: second(at), Event: kind, Seconds: length, Cause: cause}}
	}
	got := sittingOf(c, []seenEvent{
		event(1, 0, watch.EventStart, 1, ""), event(2, 0, watch.EventStart, 1, ""), event(3, 0, watch.EventStart, 1, ""), event(4, 0, watch.EventStart, 1, ""),
		event(1, 5, watch.EventStall, 1, ""),
		event(2, 30, watch.EventStall, 1, ""), event(2, 40, watch.EventStall, 2, ""),
		event(3, 49, watch.EventStall, 11, ""), // does not play when asked to leave
		event(4, 20, watch.EventMissed, 2, watch.CauseStatus), event(4, 22, watch.EventMissed, 2, watch.CauseSilent),
	}, func(e seenEvent) string {
		if e.Time.Equal(second(30)) || e.Time.Equal(second(49)) {
			return "busy"
		}
		return ""
	})
	if got.blameless != 2 || got.blamelessLater != 3 || got.excuse != "busy" {
		t.Errorf("with excuses: %+v", got)
	}
	if got.free != 1 || got.freeLater != 2 || got.stalls != 4 || got.seconds != 15 || got.stillStalled != 1 || got.unanswered != 1 {
		t.Errorf("%+v", got)
	}
}
