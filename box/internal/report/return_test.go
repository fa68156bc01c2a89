package report

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"dandelion/pkg/wire"
)

// TestThousandBoxesReturn: a restarted entrance gets its boxes back, and no box dials twice. It tells
// how long that took, which is 5 s, and how many came in a second, at most 400, where the machine
// does nothing else; TestReturnWithoutStampede calculates both. These are 1,000 Services on real
// sockets; only the system information is not read again for each. It is not parallel: they need
// the machine.
func TestThousandBoxesReturn(t *testing.T) {
	const boxes = 1000
	e := newEntrance(t, "e", nil)
	var running sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	services := make([]*Service, boxes)
	for i := range services {
		s := newService(t, slog.New(slog.DiscardHandler), func(c *Config) {
			c.Entrances, c.Interval = []string{e.url}, 5*time.Second
		})
		s.collector.minAge, s.collector.at, s.collector.last = time.Hour, time.Now(), wire.UnknownSystem()
		services[i] = s
		running.Go(func() { _ = s.Run(ctx) })
	}
	// count returns how many boxes' links are so. It looks at them rarely: they need the CPU.
	count := func(what string, least int, is func(l *link) bool) {
		t.Helper()
		tick := time.NewTicker(25 * time.Millisecond)
		defer tick.Stop()
		limit := time.After(time.Minute)
		for n := 0; n < least; {
			select {
			case <-tick.C:
			case <-limit:
				t.Fatalf("%s: %d within a minute, want %d", what, n, least)
			}
			n = 0
			for _, s := range services {
				s.mu.Lock()
				for _, l := range s.links {
					if is(l) {
						n++
					}
				}
				s.mu.Unlock()
			}
		}
	}
	connected := func(l *link) bool { return l.connected }
	count("connected", boxes, connected)

	addr := e.srv.Listener.Addr().String()
	e.srv.Listener.Close()
	e.cut()
	// About the worst moment to return: half of them wait for their first attempt, and those that
	// tried early come for the second time.
	count("tried in vain", boxes/2, func(l *link) bool { return strings.Contains(l.lastError, "refused") })
	var mu sync.Mutex
	var dials []time.Duration
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	late := lateness(t)
	back := time.Now()
	again := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		dials = append(dials, time.Since(back))
		mu.Unlock()
		e.serve(w, r)
	})}
	running.Go(func() { _ = again.Serve(ln) })
	t.Cleanup(func() { again.Close() })
	count("connected again", boxes, connected)
	took, slack := time.Since(back), late()

	mu.Lock()
	defer mu.Unlock()
	busiest, total := inAnySecond(dials), len(dials)
	t.Logf("all back after %v, %d in the busiest second, timers up to %v late", took, busiest, slack)
	if total != boxes {
		t.Errorf("%d dials for %d boxes", total, boxes)
	}
}

// lateness measures by how much this machine's timers are late until the returned function is
// called, so that who reads the log tells a busy machine from a slow return.
func lateness(t *testing.T) (worst func() time.Duration) {
	const every = 10 * time.Millisecond
	stop, result := make(chan struct{}), make(chan time.Duration, 1)
	go func() {
		var most time.Duration
		for due := time.Now().Add(every); ; due = time.Now().Add(every) {
			select {
			case <-time.After(time.Until(due)):
				most = max(most, time.Since(due))
			case <-stop:
				result <- most
				return
			}
		}
	}()
	once := sync.OnceValue(func() time.Duration { close(stop); return <-result })
	t.Cleanup(func() { once() })
	return once
}
