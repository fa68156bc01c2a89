//go:build e2e

package e2e

import (
	"errors"
	"strings"
	"testing"
	"time"

	"dandelion/pkg/watch"
)

// TestMachineBehind: a pause, waiting and stolen time count where they lie near, and not elsewhere.
func TestMachineBehind(t *testing.T) {
	t.Parallel()
	zero := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	at := func(seconds float64) time.Time { return zero.Add(time.Duration(seconds * float64(time.Second))) }
	m := &machine{}
	m.pulse(pause{at(10), at(10.19)}) // short enough
	m.pulse(pause{at(12), at(12.3)})
	l := machineLook{at: zero}
	for i := range 60 {
		m.look(l)
		l.at = at(float64(i + 1))
		l.ticks += 200
		switch {
		case i >= 20 && i < 30:
			l.waiting += 900 * time.Millisecond
		case i >= 40 && i < 50:
			l.stolen += 40
		default:
			l.waiting += 600 * time.Millisecond
			l.stolen += 10
		}
	}
	for _, c := range []struct {
		from, until float64
		want        string
	}{
		{0, 11, ""},
		{11, 12.1, "pause of 300ms"},
		{12.2, 19, "pause of 300ms"},
		{13, 19, ""},
		{21, 29, "waited for a processor in 90%"},
		{32, 38, ""},
		{42, 48, "took 20%"},
		{52, 58, ""},
		{58, 70, ""},
	} {
		got := m.behind(at(c.from), at(c.until))
		if c.want == "" && got != "" || !strings.Contains(got, c.want) {
			t.Errorf("from %v to %v: %q, want %q", c.from, c.until, got, c.want)
		}
	}

	// A stall is excused by what was shortly before it, and a long one by nothing.
	stall := func(second, length float64) seenEvent {
		return seenEvent{Event: watch.Event{Time: at(second), Event: watch.EventStall, Seconds: length}}
	}
	for _, c := range []struct {
		at, length float64
		judged     bool
	}{{5, 1, true}, {15, 1, false}, {19, 0.5, true}, {15, 10.5, true}} {
		if why := m.excuses(stall(c.at, c.length)); (why == "") != c.judged && !overloaded() {
			t.Errorf("a stall of %v s at %v: not judged for %q", c.length, c.at, why)
		}
	}
}

// TestMachineLooks: the kernel's own counters are found where they are.
func TestMachineLooks(t *testing.T) {
	t.Parallel()
	m := watchMachine(t)
	eventually(t, soon, func() error {
		m.mu.Lock()
		defer m.mu.Unlock()
		if len(m.looks) == 0 || m.longest.length() < pulseEvery/2 {
			return errors.New("nothing was noted")
		}
		if m.looks[0].ticks <= 0 || m.looks[0].stolen > m.looks[0].ticks {
			t.Errorf("the first look is %+v", m.looks[0])
		}
		return nil
	})
}
