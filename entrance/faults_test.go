package entrance

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"dandelion/entrance/internal/nettest"
	"dandelion/pkg/id"
	"dandelion/pkg/keys"
	"dandelion/pkg/state"
	"dandelion/pkg/state/redistest"
	"dandelion/pkg/wire"
)

// startProcess starts an entrance in a process of its own, for faults that a test cannot do to
// itself. Only what needs no more than its URL may be called on it.
func startProcess(t *testing.T, redisURL string, variables ...string) (*running, *benchServer) {
	t.Helper()
	s := startBenchServer(t, "entrance", redisURL, variables...)
	return &running{t: t, base: "http://" + s.addr}, s
}

// through returns the entrance as it is reached over a line.
func (r *running) through(line *nettest.Line) *running {
	return &running{t: r.t, base: "http://" + line.Addr()}
}

func (r *running) host() string { return strings.TrimPrefix(r.base, "http://") }

// throughLine returns the URL of a Redis behind a line, and the line.
func throughLine(t *testing.T, redisURL string) (string, *nettest.Line) {
	t.Helper()
	u, err := url.Parse(redisURL)
	if err != nil {
		t.Fatal(err)
	}
	line := nettest.New(t, u.Host)
	u.Host = line.Addr()
	return u.String(), line
}

// alive reads what comes, and so answers pings, until the session ends.
func (p *peer) alive() {
	_ = p.ws.SetReadDeadline(time.Time{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			if _, _, err := p.ws.ReadMessage(); err != nil {
				return
			}
		}
	}()
	p.t.Cleanup(func() { p.ws.Close(); <-ended })
}

// leaves measures for how long SEARCH goes on to offer the box, and checks that the API agrees.
func (r *running) leaves(b *box) time.Duration {
	r.t.Helper()
	begin := time.Now()
	r.offered(b, false)
	took := time.Since(begin)
	if got := r.api("/api/v1/boxes/" + string(b.id)); got["searchable"] != false {
		r.t.Errorf("SEARCH does not offer the box, and the API says %v", got)
	}
	return took
}

// TestDeadBoxLeavesEveryEntrance: two processes of one entrance, and another entrance.
func TestDeadBoxLeavesEveryEntrance(t *testing.T) {
	t.Parallel()
	redisConfig := state.Config{URL: redistest.Start(t)}
	one := start(t, redisConfig, nil)
	two := start(t, redisConfig, one.sibling())
	other := start(t, embedded, nil)
	toOne, toOther := nettest.New(t, one.host()), nettest.New(t, other.host())
	b := newBox(t, 1)
	come := func() (sessions []*peer) {
		for _, e := range []*running{one.through(toOne), other.through(toOther)} {
			p := e.connect(b)
			p.alive()
			sessions = append(sessions, p)
		}
		for _, e := range []*running{one, other, two} {
			e.offered(b, true)
		}
		return sessions
	}
	gone := func(what, why string) {
		var looking sync.WaitGroup
		for e, name := range map[*running]string{one: "its process", two: "another process", other: "another entrance"} {
			looking.Go(func() { t.Logf("%s: out of SEARCH at %s after %v", what, name, e.leaves(b)) })
		}
		looking.Wait()
		for _, e := range []*running{one, other} {
			if got := e.api("/api/v1/boxes/" + string(b.id))["why_not"]; got != "it left: "+why {
				t.Errorf("%s: %v", what, got)
			}
		}
	}
	for _, p := range come() {
		p.ws.UnderlyingConn().Close()
	}
	gone("connection gone", "its connection was lost")
	come()
	toOne.Die()
	toOther.Die()
	gone("host gone", "it gave no sign of life")
	// As after a pulled plug: the old connections are never heard of again.
	toOne, toOther = nettest.New(t, one.host()), nettest.New(t, other.host())
	come()
}

// TestKilledEntranceOnTheSameRedis: leases survive the process. A box that comes back is offered
// all the time; one that does not is offered until its lease is over, and leaves nothing behind.
func TestKilledEntranceOnTheSameRedis(t *testing.T) {
	t.Parallel()
	const lease = 4 * time.Second
	redisURL := redistest.Start(t)
	client := redisClient(t, redisURL)
	dir := dirVariable + "=" + t.TempDir()
	first, process := startProcess(t, redisURL, dir, leaseVariable+"="+lease.String())
	stays, dies := newBox(t, 1), newBox(t, 2)
	reporting := first.connect(stays)
	first.connect(dies)
	first.offered(stays, true)
	first.offered(dies, true)
	k := keys.Entrance(id.EntranceID(first.api("/api/v1/entrance")["id"].(string)))
	stays.reportOn(reporting)
	var end time.Time // of the lease of the one that dies
	eventually(t, func() string {
		if unwritten := first.api("/api/v1/entrance")["unwritten"]; unwritten != 0.0 {
			return "not written yet"
		}
		score := client.ZScore(t.Context(), k.BoxSet(), string(dies.id)).Val()
		end = time.UnixMilli(int64(score * 1000))
		return ""
	})
	process.kill()
	if n := client.ZCard(t.Context(), k.BoxSet()).Val(); n != 2 {
		t.Errorf("%d leases after the kill", n)
	}

	again, _ := startProcess(t, redisURL, dir, leaseVariable+"="+lease.String(), listenVariable+"="+first.host())
	if left := time.Until(end); left < time.Second {
		t.Fatalf("this machine is too slow: the lease ends in %v", left)
	}
	again.offered(stays, true)
	again.offered(dies, true)
	reporting = again.connect(stays)
	again.offered(dies, false)
	if early := time.Until(end); early > 10*time.Millisecond {
		t.Errorf("the lease was ended %v too early", early)
	}
	stays.reportOn(reporting)
	if _, offered := again.search()[string(stays.id)]; !offered {
		t.Errorf("the box that came back is not offered: %v", again.api("/api/v1/boxes/"+string(stays.id)))
	}
	eventually(t, func() string {
		stays.reportOn(reporting)
		set := client.ZRange(t.Context(), k.BoxSet(), 0, -1).Val()
		hashes := client.Exists(t.Context(), k.Exchange(dies.id)).Val()
		if !slices.Equal(set, []string{string(stays.id)}) || hashes != 0 {
			return fmt.Sprintf("BOX_SET %v, %d hashes of the box that died", set, hashes)
		}
		return ""
	})
}

func redisClient(t *testing.T, redisURL string) *redis.Client {
	t.Helper()
	options, err := redis.ParseURL(redisURL)
	if err != nil {
		t.Fatal(err)
	}
	client := redis.NewClient(options)
	t.Cleanup(func() { client.Close() })
	return client
}

// crowd is boxes that report for as long as a test needs them, and how that went.
type crowd struct {
	mu      sync.Mutex
	replies []time.Duration // how long each took
	errs    []error
	stop    func()
}

// startCrowd connects so many boxes, each of which reports every second.
func (r *running) startCrowd(n int) *crowd {
	r.t.Helper()
	c := &crowd{}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	c.stop = sync.OnceFunc(func() { cancel(); running.Wait() })
	r.t.Cleanup(c.stop)
	for i := range n {
		b := newBox(r.t, i)
		p := r.connect(b)
		running.Go(func() {
			defer p.ws.Close()
			tick := time.NewTicker(time.Second)
			defer tick.Stop()
			for {
				select {
				case <-tick.C:
				case <-ctx.Done():
					return
				}
				begin := time.Now()
				_ = p.ws.SetReadDeadline(begin.Add(10 * time.Second))
				err := p.ws.WriteMessage(1, b.report(nil))
				if err == nil {
					_, _, err = p.ws.ReadMessage()
				}
				c.mu.Lock()
				c.replies = append(c.replies, time.Since(begin))
				if err != nil {
					c.errs = append(c.errs, err)
				}
				c.mu.Unlock()
				if err != nil {
					return
				}
			}
		})
	}
	r.offeredCount(min(n, 20))
	return c
}

// since forgets what was slow before.
func (c *crowd) since() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.replies = nil
}

// check holds that no session was lost and that replies did not wait for Redis.
func (c *crowd) check(t *testing.T, what string) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	prompt(t, what+": replies to reports", c.replies)
	if len(c.errs) > 0 {
		t.Errorf("%s: %v", what, c.errs)
	}
}

// prompt holds that half of them took less than the 100 ms that one command to a slow Redis takes:
// had they waited for it, none would. The other half is for a busy machine.
func prompt(t *testing.T, what string, took []time.Duration) {
	t.Helper()
	if len(took) == 0 {
		t.Errorf("%s: none", what)
		return
	}
	slices.Sort(took)
	median, slowest := took[len(took)/2], took[len(took)-1]
	t.Logf("%s: median %v, slowest %v", what, median, slowest)
	if median >= 100*time.Millisecond {
		t.Errorf("%s: median %v, slowest %v", what, median, slowest)
	}
}

// TestRedisHangs for longer than leases last: SEARCH is answered from memory with the boxes that
// are connected, their reports are answered, nothing piles up, and all is in Redis again when it
// is back.
func TestRedisHangs(t *testing.T) {
	t.Parallel()
	const boxes, lease, hang = 20, 4 * time.Second, 6 * time.Second // as 20 s and 30 s
	redisURL := redistest.Start(t)
	client := redisClient(t, redisURL)
	throughURL, line := throughLine(t, redisURL)
	e, _ := startProcess(t, throughURL, leaseVariable+"="+lease.String())
	c := e.startCrowd(boxes)
	p := e.dial(wire.EntranceWSPath)
	p.boxes()
	c.since()
	before := e.goroutines()
	line.Die()
	var searches []time.Duration
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for begin := time.Now(); time.Since(begin) < hang; <-tick.C {
		asked := time.Now()
		if n := len(p.boxes()); n != boxes {
			t.Fatalf("%v after Redis hung, %d of %d boxes are offered", time.Since(begin), n, boxes)
		}
		searches = append(searches, time.Since(asked))
	}
	during := e.goroutines()
	if got := e.api("/api/v1/entrance"); got["redis_answers"] != false || got["unwritten"].(float64) > boxes {
		t.Errorf("while Redis hangs: %v", got)
	}
	c.check(t, "Redis hangs")
	prompt(t, "Redis hangs: SEARCH", searches)
	if during > before+10 {
		t.Errorf("%d goroutines, %d before Redis hung", during, before)
	}

	line.Live()
	k := keys.Entrance(id.EntranceID(e.api("/api/v1/entrance")["id"].(string)))
	full := func() string {
		now, n := time.Now(), 0
		for _, z := range client.ZRangeWithScores(t.Context(), k.BoxSet(), 0, -1).Val() {
			if z.Score > float64(now.Unix()) {
				n++
			}
		}
		if got := e.api("/api/v1/entrance"); n != boxes || got["redis_answers"] != true {
			return fmt.Sprintf("%d leases of %d are good; %v", n, boxes, got)
		}
		return ""
	}
	eventually(t, full)
	if got := e.api("/api/v1/entrance"); got["sessions"] != boxes+1.0 {
		t.Errorf("sessions were lost: %v", got)
	}

	// Wiped: everything is there again within a report, which is one second here.
	client.FlushAll(t.Context())
	begin := time.Now()
	eventually(t, full)
	t.Logf("wiped: full again after %v", time.Since(begin))
	if n := len(p.boxes()); n != boxes {
		t.Errorf("%d of %d boxes are offered", n, boxes)
	}
	c.stop()
	c.check(t, "in all")
}

// goroutines returns how many the process has.
func (r *running) goroutines() (n int) {
	r.t.Helper()
	if _, err := fmt.Sscan(r.metric("go_goroutines"), &n); err != nil {
		r.t.Fatal(err)
	}
	return n
}

// TestRedisIsSlow: with 100 ms for each command no reply waits for one.
func TestRedisIsSlow(t *testing.T) {
	t.Parallel()
	throughURL, line := throughLine(t, redistest.Start(t))
	line.Delay(100 * time.Millisecond)
	e := start(t, state.Config{URL: throughURL}, nil)
	c := e.startCrowd(200)
	p := e.dial(wire.EntranceWSPath)
	p.boxes()
	c.since()
	var searches []time.Duration
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for begin := time.Now(); time.Since(begin) < 3*time.Second; <-tick.C {
		asked := time.Now()
		if n := len(p.boxes()); n != 20 {
			t.Fatalf("%d boxes are offered", n)
		}
		searches = append(searches, time.Since(asked))
	}
	c.check(t, "slow Redis")
	prompt(t, "slow Redis: SEARCH", searches)
	if got := e.api("/api/v1/entrance"); got["searchable"] != 200.0 || got["redis_answers"] != true {
		t.Errorf("%v", got)
	}
}
