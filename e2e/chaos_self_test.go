//go:build e2e

package e2e

import (
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"dandelion/pkg/watch"
)

// TestChaosSchedule: the same seed gives the same faults, each kind comes, no two meet at a box, and
// the publisher is not killed while Redis is away.
func TestChaosSchedule(t *testing.T) {
	t.Parallel()
	for seed := range uint64(50) {
		for _, total := range []time.Duration{75 * time.Second, 10 * time.Minute} {
			list := schedule(seed, total, chaosBoxes)
			if again := schedule(seed, total, chaosBoxes); !slices.Equal(list, again) {
				t.Fatalf("seed %d gives %v and then %v", seed, list, again)
			}
			times := map[string]int{}
			for i, in := range list {
				times[in.fault]++
				for _, other := range list[i+1:] {
					if in.box >= 0 && in.meets(other.box)(other) && in.box == other.box {
						t.Errorf("seed %d: %v meets %v", seed, in, other)
					}
				}
				if in.fault == faultPublisher && slices.ContainsFunc(list, func(r injection) bool {
					return r.fault == faultRedis && in.at > r.at-time.Second && in.at < r.at+r.length+time.Second
				}) {
					t.Errorf("seed %d: the publisher is killed at %v while Redis is away", seed, in.at)
				}
			}
			kills, others := 55, 5
			if total < shortChaos {
				kills, others = 1, 1
			}
			for _, name := range faultNames {
				least := others
				if name == faultKill {
					least = kills
				}
				if times[name] < least {
					t.Errorf("seed %d, %v: %s comes %d times, want %d", seed, total, name, times[name], least)
				}
			}
		}
	}
	if slices.Equal(schedule(1, 10*time.Minute, chaosBoxes), schedule(2, 10*time.Minute, chaosBoxes)) {
		t.Error("two seeds give the same")
	}
}

// TestChaosAttribution: what viewers noticed is told of the faults that it lies near.
func TestChaosAttribution(t *testing.T) {
	t.Parallel()
	zero := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	at := func(seconds float64) time.Time { return zero.Add(time.Duration(seconds * float64(time.Second))) }
	faults := []*injected{
		{injection: injection{fault: faultKill}, who: "a:1", from: at(10), healed: at(15)},
		{injection: injection{fault: faultStop}, who: "b:1", from: at(50), healed: at(70), comparison: comparison{compared: 3, lost: 1}},
		{injection: injection{fault: faultPublisher}, who: "p:1", from: at(100), healed: at(101)},
	}
	event := func(viewer int, second float64, kind, from string, cause watch.Cause, length float64) seenEvent {
		return seenEvent{policy: "dandelion", viewer: viewer, Event: watch.Event{Time: at(second), Event: kind, From: from, Cause: cause, Seconds: length}}
	}
	reset, silent := watch.CauseReset, watch.CauseSilent
	events := []seenEvent{
		event(1, 9.9, watch.EventStall, "", "", 1),              // before the kill
		event(2, 10.5, watch.EventStall, "", "", 1),             // the kill's
		event(2, 12, watch.EventStall, "", "", 1),               // the same session
		event(3, 71, watch.EventStall, "", "", 1),               // behind a long silence
		event(4, 73, watch.EventStall, "", "", 1),               // too late for it
		event(5, 104, watch.EventStall, "", "", 2.5),            // the publisher's
		event(1, 9.5, watch.EventFailover, "a:1", reset, 0.1),   // its answer broke at the kill
		event(1, 9.5, watch.EventFailover, "a:1", silent, 1.1),  // a packet was lost before it
		event(1, 10.5, watch.EventFailover, "a:1", silent, 1.2), // and one after
		event(1, 15.5, watch.EventFailover, "a:1", silent, 1.3), // its successor's line
		event(1, 11, watch.EventFailover, "b:1", reset, 9),      // from another
		event(1, 49.5, watch.EventFailover, "b:1", silent, 1.3), // began before the silence
		event(1, 48, watch.EventFailover, "b:1", silent, 9),     // too long before
		event(1, 69, watch.EventMissed, "", "", 2),              // the silence's
	}
	other := event(9, 11, watch.EventStall, "", "", 1)
	other.policy = "hlsjs"
	events = append(events, other)
	kill := outcomeOf(faults, events, "dandelion", 50, faultKill)
	if kill.without() != 49 || !slices.Equal(kill.failovers, []float64{0.1, 1.2}) || kill.missed != 0 || kill.times != 1 {
		t.Errorf("kill: %+v", kill)
	}
	stop := outcomeOf(faults, events, "dandelion", 50, faultStop)
	if stop.without() != 49 || !slices.Equal(stop.failovers, []float64{1.3}) || stop.missed != 1 || stop.lost != 1 || stop.compared != 3 {
		t.Errorf("stop: %+v", stop)
	}
	if both := outcomeOf(faults, events, "dandelion", 50, faultKill, faultStop); both.without() != 48 || len(both.failovers) != 3 || both.times != 2 {
		t.Errorf("both: %+v", both)
	}
	if stalled := stalledBesides(faults, events, "dandelion"); len(stalled) != 4 || stalled[5] {
		t.Errorf("stalled besides the publisher's kill: %v", stalled)
	}
	late := event(6, 104, watch.EventStall, "", "", 0.5)
	late.policy = "hlsjs"
	if list := stallsBesides(faults, append(slices.Clone(events), late, event(7, 100.5, watch.EventStall, "", "", 1)), "dandelion"); len(list) != 6 ||
		!slices.ContainsFunc(list, func(e seenEvent) bool { return e.viewer == 5 }) {
		t.Errorf("stalls besides those of the publisher's kill that are over in time: %v", list)
	}
	if got := resumed(faults, events, "dandelion"); got != 5500*time.Millisecond {
		t.Errorf("resumed after %v, want 5.5 s", got)
	}
	if got := table(faults, events, map[string]int{"dandelion": 50, "hlsjs": 10}); !strings.Contains(got, "| box: SIGSTOP | 1 | 49 of 50 | 1 | 1300 ms | 1300 ms | 1 | 1 of 3 | 10 of 10 |") {
		t.Errorf("the table is\n%s", got)
	}
}

func TestChaosPercentile(t *testing.T) {
	t.Parallel()
	var twenty []float64
	for i := range 20 {
		twenty = append(twenty, float64(i+1))
	}
	for _, c := range []struct {
		of      []float64
		p, want float64
	}{{nil, 95, 0}, {[]float64{3}, 50, 3}, {[]float64{3}, 95, 3}, {twenty, 50, 10}, {twenty, 95, 19}, {twenty, 100, 20}} {
		if got := (outcome{failovers: c.of}).percentile(c.p); math.Abs(got-c.want) > 1e-9 {
			t.Errorf("p%.0f of %v is %v, want %v", c.p, c.of, got, c.want)
		}
	}
}
