//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// From which on what viewers notice may be the machine's.
const (
	pulseEvery  = 10 * time.Millisecond
	latePulse   = 200 * time.Millisecond // a pause of the test's own process, which carries the fleet's packets
	mostWaiting = 0.75                   // share of the time in which some process waits for a processor
	mostStolen  = 0.1                    // share of the processors' time that other machines took
)

// machine notes whether this machine kept up. The load average is of a minute, and a stall of a
// moment.
type machine struct {
	mu      sync.Mutex
	pauses  []pause
	longest pause
	looks   []machineLook // one each second
}

type pause struct{ from, until time.Time }

func (p pause) length() time.Duration { return p.until.Sub(p.from) }

// machineLook is what the kernel has counted since it started.
type machineLook struct {
	at      time.Time
	waiting time.Duration // some process waited for a processor; 0 where it is not counted
	stolen  float64       // ticks of all processors
	ticks   float64
}

// watchMachine notes until the test ends.
func watchMachine(t *testing.T) *machine {
	m := &machine{}
	stop := make(chan struct{})
	var group sync.WaitGroup
	t.Cleanup(func() {
		close(stop)
		group.Wait()
	})
	group.Go(func() {
		ticker := time.NewTicker(pulseEvery)
		defer ticker.Stop()
		last := time.Now()
		for {
			select {
			case <-ticker.C:
			case <-stop:
				return
			}
			now := time.Now()
			m.pulse(pause{last, now})
			last = now
		}
	})
	group.Go(func() {
		ticker := time.NewTicker(time.Second)
		defer ticker.Stop()
		for {
			m.look(lookAtMachine())
			select {
			case <-ticker.C:
			case <-stop:
				return
			}
		}
	})
	return m
}

func (m *machine) pulse(p pause) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p.length() > m.longest.length() {
		m.longest = p
	}
	if p.length() >= latePulse {
		m.pauses = append(m.pauses, p)
	}
}

func (m *machine) look(l machineLook) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.looks = append(m.looks, l)
}

func lookAtMachine() machineLook {
	l := machineLook{at: time.Now()}
	if b, err := os.ReadFile("/proc/pressure/cpu"); err == nil {
		if _, total, ok := strings.Cut(strings.SplitN(string(b), "\n", 2)[0], "total="); ok {
			var us int64
			_, _ = fmt.Sscan(total, &us)
			l.waiting = time.Duration(us) * time.Microsecond
		}
	}
	if b, err := os.ReadFile("/proc/stat"); err == nil {
		// user, nice, system, idle, iowait, irq, softirq, steal
		for i, field := range strings.Fields(strings.SplitN(string(b), "\n", 2)[0]) {
			var ticks float64
			if _, err := fmt.Sscan(field, &ticks); i == 0 || i > 8 || err != nil {
				continue
			}
			if l.ticks += ticks; i == 8 {
				l.stolen = ticks
			}
		}
	}
	return l
}

// behind says how the machine did not keep up between two times; "": it did.
func (m *machine) behind(from, until time.Time) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var why []string
	var worst pause
	for _, p := range m.pauses {
		if p.from.Before(until) && p.until.After(from) && p.length() > worst.length() {
			worst = p
		}
	}
	if worst.length() > 0 {
		why = append(why, "a pause of "+worst.String())
	}
	waiting, stolen := m.shares(from, until)
	if waiting > mostWaiting {
		why = append(why, fmt.Sprintf("processes waited for a processor in %.0f%% of the time", 100*waiting))
	}
	if stolen > mostStolen {
		why = append(why, fmt.Sprintf("other machines took %.0f%% of the processors' time", 100*stolen))
	}
	return strings.Join(why, ", ")
}

// shares are of the time between the looks around two times. m.mu is held.
func (m *machine) shares(from, until time.Time) (waiting, stolen float64) {
	var first, last machineLook
	for _, l := range m.looks {
		if first.at.IsZero() || !l.at.After(from) {
			first = l
		}
		if last = l; !l.at.Before(until) {
			break
		}
	}
	if length := last.at.Sub(first.at); length > 0 {
		waiting = float64(last.waiting-first.waiting) / float64(length)
	}
	if ticks := last.ticks - first.ticks; ticks > 0 {
		stolen = (last.stolen - first.stolen) / ticks
	}
	return waiting, stolen
}

func (p pause) String() string {
	return fmt.Sprintf("%v at %s", p.length().Round(time.Millisecond), p.from.Format("15:04:05.000"))
}

// String is for reports.
func (m *machine) String() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.looks) == 0 {
		return "not looked at"
	}
	waiting, stolen := m.shares(m.looks[0].at, m.looks[len(m.looks)-1].at)
	return fmt.Sprintf("%d pauses of %v and more, the longest %v; processes waited for a processor in %.0f%% of the time, other machines took %.0f%%",
		len(m.pauses), latePulse, m.longest, 100*waiting, 100*stolen)
}
