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

// TestThousandBoxesReturn: a restarted entrance gets its boxes back within 5 s, at most 400 in any
// second, and no box dials twice. These are 1,000 Services on real sockets; only the system
// information is not read again for each.
func TestThousandBoxesReturn(t *testing.T) {
	t.Parallel()
	const boxes, most = 1000, 400
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
	connected := func() (n int) {
		for _, s := range services {
			if s.Entrances()[0].Connected {
				n++
			}
		}
		return n
	}
	eventually(t, "all boxes connected", func() bool { return connected() == boxes })

	addr := e.srv.Listener.Addr().String()
	e.srv.Listener.Close()
	e.cut()
	// About the worst moment to return: half of them wait for their first attempt, and those that
	// tried early come for the second time.
	eventually(t, "half of the boxes have tried in vain", func() bool {
		vain := 0
		for _, s := range services {
			if strings.Contains(s.Entrances()[0].Sentence, "refused") {
				vain++
			}
		}
		return vain >= boxes/2
	})
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
	eventually(t, "all boxes connected again", func() bool { return connected() == boxes })
	took, slack := time.Since(back), late()

	mu.Lock()
	defer mu.Unlock()
	busiest, total := inAnySecond(dials), len(dials)
	t.Logf("all back after %v, %d in the busiest second, timers up to %v late", took, busiest, slack)
	if total != boxes {
		t.Errorf("%d dials for %d boxes", total, boxes)
	}
	if busiest > most {
		t.Errorf("%d boxes returned within one second, at most %d should", busiest, most)
	}
	if took > 5*time.Second+slack {
		t.Errorf("the last box was back after %v, with timers up to %v late", took, slack)
	}
}

// lateness measures by how much this machine's timers are late until the returned function is
// called, so that a busy machine is told from a slow return.
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
