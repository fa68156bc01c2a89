//go:build e2e

package e2e

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"dandelion/pkg/watch"
)

// seriesLine is a line of what `dandelion watch --series` writes.
type seriesLine struct {
	Time  time.Time        `json:"time"`
	Bytes map[string]int64 `json:"bytes"`
}

type series []seriesLine

func readSeries(t *testing.T, name string) series {
	t.Helper()
	file, err := os.Open(name)
	if err != nil {
		ends(t, "%v", err)
	}
	defer file.Close()
	var list series
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var l seriesLine
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			ends(t, "%s: %v", name, err)
		}
		list = append(list, l)
	}
	if err := lines.Err(); err != nil || len(list) == 0 {
		ends(t, "%s: %d lines, %v", name, len(list), err)
	}
	return list
}

// received is how much had come from whom at a time, between two lines in proportion.
func (s series) received(at time.Time, from func(host string) bool) float64 {
	sum := func(l seriesLine) (bytes float64) {
		for host, n := range l.Bytes {
			if from(host) {
				bytes += float64(n)
			}
		}
		return bytes
	}
	i := slices.IndexFunc(s, func(l seriesLine) bool { return !l.Time.Before(at) })
	switch {
	case i == 0:
		return 0 // it had not begun
	case i < 0:
		return sum(s[len(s)-1])
	}
	before, after := s[i-1], s[i]
	share := at.Sub(before.Time).Seconds() / max(after.Time.Sub(before.Time).Seconds(), 1e-9)
	return sum(before) + share*(sum(after)-sum(before))
}

// sitting is how the sessions of a crowd went.
type sitting struct {
	viewers, playing   int
	startup            watch.Spread
	stalls             int
	seconds            float64
	free, freeLater    int // sessions without a stall; without one that began later than laterThan
	blameless          int // free, where stalls that may be the machine's do not count
	blamelessLater     int
	excuse             string // of the last of them
	corrupt, missed    int
	unanswered         int // segments that were missed because of HTTP statuses by who had played
	stillStalled       int // viewers who had not played for longer than excused when they were asked to leave
	summarySessionFree int // as the viewers' own summary counts free
}

func (s sitting) String() string {
	return fmt.Sprintf("%d of %d sessions without a stall, %d of stalls after the first %v; %d stalls (%.1f s); startup p50 %.2f s, p95 %.2f s; %d segments missed",
		s.free, s.viewers, s.freeLater, laterThan, s.stalls, s.seconds, s.startup.P50, s.startup.P95, s.missed)
}

// sittingOf reads what a crowd's viewers noticed. A viewer that never played has no session without a stall.
// excuses says why a stall may be the machine's; "": it is not.
func sittingOf(c *crowd, events []seenEvent, excuses func(seenEvent) string) sitting {
	s := sitting{
		viewers: c.size, playing: c.summary.Playing, startup: c.summary.Startup,
		corrupt: c.summary.Segments.Corrupt, missed: c.summary.Segments.Missed, summarySessionFree: c.summary.Stalls.SessionsWithout,
	}
	started, stalled, later := map[int]bool{}, map[int]bool{}, map[int]bool{}
	blamed, blamedLater := map[int]bool{}, map[int]bool{}
	for _, e := range events {
		switch e.Event.Event {
		case watch.EventStart:
			started[e.viewer] = true
		case watch.EventStall:
			s.stalls++
			s.seconds += e.Seconds
			late := e.Time.After(c.began.Add(laterThan))
			why := excuses(e)
			s.excuse = cmp.Or(why, s.excuse)
			stalled[e.viewer] = true
			later[e.viewer] = later[e.viewer] || late
			blamed[e.viewer] = blamed[e.viewer] || why == ""
			blamedLater[e.viewer] = blamedLater[e.viewer] || late && why == ""
			if e.end().After(c.left.Add(-look)) && e.end().Sub(e.Time) > excused {
				s.stillStalled++
			}
		case watch.EventMissed:
			// Who has not played yet may wait at the door while segments pass.
			if e.Cause == watch.CauseStatus && started[e.viewer] {
				s.unanswered++
			}
		}
	}
	for viewer := range started {
		for count, list := range map[*int]map[int]bool{&s.free: stalled, &s.freeLater: later, &s.blameless: blamed, &s.blamelessLater: blamedLater} {
			if !list[viewer] {
				*count++
			}
		}
	}
	return s
}

// window returns the readings of the steady state. Both ends are the last look before the encoder finished
// a segment: what it wrote between them, the caster had time to send.
func window(readings []reading, caster int, from, until time.Time) (first, last reading, ok bool) {
	for i, r := range readings[:max(len(readings)-1, 0)] {
		next := readings[i+1].casters[caster]
		if !r.casters[caster].ok || r.at.Before(from) || r.at.After(until) || next.encoded == r.casters[caster].encoded {
			continue
		}
		if !ok {
			first, ok = r, true
		}
		last = r
	}
	return first, last, ok && last.at.After(first.at)
}

// relayed is what boxes sent to boxes between two looks, in the looks between them.
func relayed(readings []reading, from, until time.Time) (bytes int64) {
	for i := 1; i < len(readings); i++ {
		if !readings[i].at.After(from) || readings[i].at.After(until) {
			continue
		}
		for box, now := range readings[i].boxes {
			_, n := now.since(last(readings[:i], box))
			bytes += n
		}
	}
	return bytes
}

// last is the last count that a box told; not ok: none.
func last(readings []reading, box int) boxCount {
	for i := len(readings) - 1; i >= 0; i-- {
		if n := readings[i].boxes[box]; n.ok {
			return n
		}
	}
	return boxCount{}
}

// since is what a box sent since an earlier count. One that was started again counts from 0, and what it had
// sent between its last count and its end is not seen.
func (n boxCount) since(before boxCount) (served, relayed int64) {
	switch {
	case !n.ok:
		return 0, 0
	case !before.ok || n.served < before.served || n.relayed < before.relayed:
		return n.served, n.relayed
	}
	return n.served - before.served, n.relayed - before.relayed
}

// peak is the most that a box sent in a second.
type peak struct {
	rate float64 // bytes/s
	box  int
	at   time.Time
}

func (p *peak) take(rate float64, box int, at time.Time) {
	if rate > p.rate {
		*p = peak{rate, box, at}
	}
}

// peaks are the worst seconds of all boxes between two times: as the kernel counts what left on connections
// to them, with what they say that they relayed; as they count themselves (a delivery when it is over); and
// as they judge themselves. seen is whether the kernel could be asked nearly always.
func peaks(readings []reading, addrs []string, from, until time.Time) (kernel, counted, own peak, seen bool) {
	looks, answers := 0, 0
	for i := 1; i < len(readings); i++ {
		r, before := readings[i], readings[i-1]
		if r.at.Before(from) || r.at.After(until) {
			continue
		}
		if looks++; r.kernel.sent != nil {
			answers++
		}
		for box, n := range r.boxes {
			own.take(float64(n.peak), box, r.at)
			sent, from, until := r.kernel.sent[addrs[box]], r.kernel.from, r.kernel.until
			if was := before.boxes[box]; n.ok && was.ok {
				served, relayed := n.since(was)
				counted.take(perSecond(served+relayed, was.from, n.until), box, r.at)
				sent += relayed // in a time of its own: what is certain is the rate over both
				if was.from.Before(from) || from.IsZero() {
					from = was.from
				}
				if n.until.After(until) {
					until = n.until
				}
			}
			kernel.take(perSecond(sent, from, until), box, r.at)
		}
	}
	return kernel, counted, own, answers > looks*9/10
}

// holders are how many boxes hold the newest segment but one, over a time.
func holders(readings []reading, caster int, from, until time.Time) []int {
	var list []int
	for _, r := range readings {
		if n := r.casters[caster].holders; n >= 0 && !r.at.Before(from) && r.at.Before(until) {
			list = append(list, n)
		}
	}
	return list
}

func median(list []int) int {
	if len(list) == 0 {
		return 0
	}
	list = slices.Clone(list)
	slices.Sort(list)
	return list[len(list)/2]
}
