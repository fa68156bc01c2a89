package entrance

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"dandelion/pkg/state/redistest"
	"dandelion/pkg/wire"
)

// TestThousandBoxesAtARestart: an entrance that is killed and started again gets the sessions of its
// 1,000 boxes back, refuses none, and can offer all of them. It tells how long that took, which is
// 5 s, and how many came in a second, at most 400, where the machine does nothing else. It is not
// parallel: the boxes need the machine, and others would wait for them.
func TestThousandBoxesAtARestart(t *testing.T) {
	const boxes = 1000
	redisURL, h := redistest.Start(t), newHome(t)
	dir := dirVariable + "=" + t.TempDir()
	e, process := startProcess(t, redisURL, dir)
	m := &multitude{url: "ws://" + e.host() + wire.EntranceWSPath, home: h}
	m.start(t, boxes)
	all := func() string {
		got := e.api("/api/v1/entrance")
		if got["searchable"] != float64(boxes) || got["sessions"] != float64(boxes) {
			return fmt.Sprint(got)
		}
		return ""
	}
	eventuallyWithin(t, 2*time.Minute, all)

	process.kill()
	killed := time.Now()
	eventually(t, func() string { // about the worst moment
		if failed, _ := m.sofar(); failed < boxes/2 {
			return fmt.Sprintf("%d of %d boxes tried in vain", failed, boxes)
		}
		return ""
	})
	late := lateness(t)
	startProcess(t, redisURL, dir, listenVariable+"="+e.host())
	back := time.Now()
	m.forget()
	eventuallyWithin(t, 2*time.Minute, all)
	took, slack := time.Since(back), late()
	failed, dials := m.sofar()
	busiest := inAnySecond(dials)
	t.Logf("away for %v; all back after %v, %d in the busiest second, timers up to %v late", back.Sub(killed), took, busiest, slack)
	if failed > 0 {
		t.Errorf("%d dials or reports were refused", failed)
	}
}

// multitude is bare boxes that come back as ours do (box/internal/report: within 4 s at first, then
// every 3 to 4.5 s).
type multitude struct {
	url  string
	home *home

	mu     sync.Mutex
	begin  time.Time
	dials  []time.Duration
	failed int
}

func (m *multitude) start(t *testing.T, n int) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	t.Cleanup(func() { cancel(); running.Wait() })
	for i := range n {
		running.Go(func() { m.live(ctx, i) })
	}
}

func (m *multitude) live(ctx context.Context, n int) {
	wait := rand.N(2 * time.Second)
	for {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
		wait = 3*time.Second + rand.N(1500*time.Millisecond)
		if m.session(ctx, n) {
			wait = rand.N(4 * time.Second)
		}
	}
}

// session reports every 5 s until the connection ends; accepted: there was a reply.
func (m *multitude) session(ctx context.Context, n int) (accepted bool) {
	begin := time.Now()
	dialer := websocket.Dialer{ReadBufferSize: 1024, WriteBufferSize: 2048, HandshakeTimeout: 10 * time.Second}
	ws, _, err := dialer.DialContext(ctx, m.url, nil)
	if err == nil {
		defer ws.Close()
		err = ws.WriteMessage(websocket.TextMessage, m.home.report(n, 0))
	}
	var reply []byte
	if err == nil {
		_, reply, err = ws.ReadMessage()
	}
	m.mu.Lock()
	if err != nil {
		m.failed++
	} else if begin.After(m.begin) {
		m.dials = append(m.dials, begin.Sub(m.begin))
	}
	m.mu.Unlock()
	if err != nil {
		return false
	}
	m.home.learn(reply)
	defer context.AfterFunc(ctx, func() { ws.Close() })()
	gone := make(chan struct{})
	defer close(gone)
	go func() {
		tick := time.NewTicker(5 * time.Second)
		defer tick.Stop()
		for round := 1; ; round++ {
			select {
			case <-tick.C:
				_ = ws.WriteMessage(websocket.TextMessage, m.home.report(n, round))
			case <-gone:
				return
			}
		}
	}()
	for {
		if _, _, err := ws.ReadMessage(); err != nil {
			return true
		}
	}
}

// forget begins to count anew.
func (m *multitude) forget() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.begin, m.dials, m.failed = time.Now(), nil, 0
}

func (m *multitude) sofar() (failed int, dials []time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.failed, slices.Clone(m.dials)
}

// inAnySecond returns the largest number of events within one second. It sorts them.
func inAnySecond(events []time.Duration) (most int) {
	slices.Sort(events)
	first := 0
	for i, at := range events {
		for at-events[first] >= time.Second {
			first++
		}
		most = max(most, i-first+1)
	}
	return most
}

// lateness measures by how much this machine's timers are late until the returned function is
// called, so that who reads the log tells a busy machine from a slow entrance.
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
