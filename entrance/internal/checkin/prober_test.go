package checkin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"dandelion/entrance/internal/registry"
	"dandelion/pkg/id"
	"dandelion/pkg/wire"
)

// bench is a prober in a bubble, its network replaced by answers.
type bench struct {
	*Prober
	t        *testing.T
	registry *registry.Registry

	mu      sync.Mutex
	answers map[id.BoxID]registry.Reachability
	takes   time.Duration
	asked   map[id.BoxID][]time.Duration // since the start
	most    int                          // probes at a time
	current int
	begin   time.Time
}

func newBench(t *testing.T) *bench {
	metrics := prometheus.NewRegistry()
	log := slog.New(slog.DiscardHandler)
	b := &bench{
		t: t, begin: time.Now(),
		registry: registry.New(registry.Config{LeaseTTL: 24 * time.Hour}, nil, log, metrics),
		answers:  map[id.BoxID]registry.Reachability{},
		asked:    map[id.BoxID][]time.Duration{},
	}
	b.Prober = NewProber(b.registry, log, metrics)
	b.Prober.probe = b.answer
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		b.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return b
}

func (b *bench) answer(ctx context.Context, box *registry.Box, _ string) (registry.Reach, netip.Addr) {
	b.mu.Lock()
	b.asked[box.ID] = append(b.asked[box.ID], time.Since(b.begin))
	b.current++
	b.most = max(b.most, b.current)
	answer := b.answers[box.ID]
	takes := b.takes
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		b.current--
		b.mu.Unlock()
	}()
	if takes > 0 {
		select {
		case <-time.After(takes):
		case <-ctx.Done():
		}
	}
	if answer == registry.ReachUnknown {
		answer = registry.ReachNo
	}
	return registry.Reach{State: answer, Reason: answer.String()}, netip.Addr{}
}

func (b *bench) set(box *registry.Box, answer registry.Reachability) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.answers[box.ID] = answer
}

// times is when the box was asked, what is due at this moment included.
func (b *bench) times(box *registry.Box) []time.Duration {
	synctest.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]time.Duration(nil), b.asked[box.ID]...)
}

func (b *bench) state(box *registry.Box) registry.Reachability {
	synctest.Wait()
	held, _ := b.registry.Held(box.ID)
	return held.Reach.State
}

func (b *bench) put(n int, addr string) *registry.Box { return b.putAt(n, addr, "1") }

func (b *bench) putAt(n int, addr, port string) *registry.Box {
	b.t.Helper()
	box := id.BoxIDOf(fmt.Appendf(nil, "box %d", n))
	from := netip.MustParseAddr(addr)
	kept := &registry.Box{
		ID: box, Seen: from, Address: from, Session: uint64(n) + 1, Persistent: true,
		Exchange: wire.Exchange{
			Peer: wire.Peer{ID: string(box), IP: addr}, ConnectWS: "http://" + addr + ":" + port + wire.BoxWSPath(box), EdgeURL: "http://" + addr + ":" + port,
		},
	}
	if err := b.registry.Put(kept); err != nil {
		b.t.Fatal(err)
	}
	return kept
}

func TestReachableBoxIsAskedAtOnceAndEveryFiveMinutes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		box := b.put(1, "203.0.113.1")
		b.set(box, registry.ReachYes)
		b.Consider(box, "nonce")
		synctest.Wait()
		if b.state(box) != registry.ReachYes {
			t.Fatal("not asked at once")
		}
		for range 120 { // reports go on and change nothing
			time.Sleep(5 * time.Second)
			b.Consider(b.put(1, "203.0.113.1"), "nonce")
		}
		synctest.Wait()
		if n := len(b.times(box)); n < 3 || n > 4 {
			t.Errorf("asked at %v in 10 minutes", b.times(box))
		}
	})
}

func TestUnreachableBoxIsAskedAgainWithBackoff(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		box := b.put(1, "203.0.113.1")
		b.Consider(box, "nonce")
		time.Sleep(20 * time.Minute)
		times := b.times(box)
		if len(times) < 20 || len(times) > 40 {
			t.Errorf("asked %d times in 20 minutes", len(times))
		}
		for i, d := range times[1:] {
			want := min(time.Second<<min(i, 10), time.Minute)
			if gap := d - times[i]; gap > want || gap < want*3/4 {
				t.Errorf("pause %d was %v, want about %v", i, gap, want)
			}
		}
		b.set(box, registry.ReachYes)
		time.Sleep(time.Minute)
		synctest.Wait()
		if b.state(box) != registry.ReachYes {
			t.Error("its recovery was not seen within a minute")
		}
	})
}

func TestOneLostProbeIsForgiven(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		box := b.put(1, "203.0.113.1")
		b.set(box, registry.ReachYes)
		b.Consider(box, "nonce")
		synctest.Wait()
		b.set(box, registry.ReachNo)
		for len(b.times(box)) < 2 {
			time.Sleep(100 * time.Millisecond)
		}
		if b.state(box) != registry.ReachYes {
			t.Error("one lost probe made it unreachable")
		}
		time.Sleep(2 * time.Second)
		if b.state(box) != registry.ReachNo {
			t.Error("the second one did not")
		}
	})
}

func TestOtherURLsAreTriedAtOnceAndNoncesSoon(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		box := b.put(1, "203.0.113.1")
		b.set(box, registry.ReachYes)
		b.Consider(box, "nonce")
		time.Sleep(time.Second)
		// One box with two sessions: its nonce is another one at each report.
		for i := range 60 {
			b.Consider(b.put(1, "203.0.113.1"), fmt.Sprint("nonce ", i%2))
			time.Sleep(time.Second)
		}
		if n := len(b.times(box)); n < 2 || n > 3 {
			t.Errorf("with other nonces asked at %v", b.times(box))
		}
		before := len(b.times(box))
		b.Consider(b.putAt(1, "203.0.113.1", "2"), "nonce")
		time.Sleep(time.Second)
		if n := len(b.times(box)); n != before+1 {
			t.Errorf("with another URL asked at %v", b.times(box))
		}
	})
}

// TestUnreachableBoxThatReconnectsIsTriedAtOnce: its owner may have forwarded the port.
func TestUnreachableBoxThatReconnectsIsTriedAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		box := b.put(1, "203.0.113.1")
		b.Consider(box, "nonce")
		time.Sleep(10 * time.Minute)
		b.set(box, registry.ReachYes)
		before := len(b.times(box))
		b.Consider(b.put(1, "203.0.113.1"), "another nonce")
		synctest.Wait()
		if n := len(b.times(box)); n != before+1 || b.state(box) != registry.ReachYes {
			t.Errorf("asked %d times more, %v", n-before, b.state(box))
		}
	})
}

// TestChangeDuringAProbe: the result for the old place does not count, the new one is tried.
func TestChangeDuringAProbe(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.takes = time.Second
		box := b.put(1, "203.0.113.1")
		b.set(box, registry.ReachYes)
		b.Consider(box, "nonce")
		time.Sleep(500 * time.Millisecond)
		b.Consider(b.put(1, "203.0.113.2"), "nonce")
		time.Sleep(700 * time.Millisecond)
		if b.state(box) != registry.ReachUnknown {
			t.Error("the result for the old place was taken for the new one's")
		}
		time.Sleep(time.Second)
		if n := len(b.times(box)); n != 2 || b.state(box) != registry.ReachYes {
			t.Errorf("asked %d times, %v", n, b.state(box))
		}
	})
}

// TestManySlowBoxesDoNotDelayOthers: thousands that never answer, many of them from one network.
func TestManySlowBoxesDoNotDelayOthers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.takes = time.Hour // until the timeout
		for i := range 500 {
			b.Consider(b.put(i, "203.0.113.66"), "nonce")
		}
		for i := range 1000 {
			b.Consider(b.put(1000+i, fmt.Sprintf("198.51.%d.1", i%250)), "nonce")
		}
		time.Sleep(time.Minute)
		b.mu.Lock()
		if b.most > firstPlaces+laterPlaces {
			t.Errorf("%d probes at a time", b.most)
		}
		b.takes = 0
		b.mu.Unlock()
		box := b.put(5000, "192.0.2.1")
		b.set(box, registry.ReachYes)
		before := time.Since(b.begin)
		b.Consider(box, "nonce")
		time.Sleep(time.Second)
		if times := b.times(box); len(times) == 0 || times[0]-before > 500*time.Millisecond {
			t.Errorf("a good box was asked after %v", times)
		}
	})
}

func TestBoxesThatLeftAreForgotten(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		for i := range 10 {
			box := b.put(i, "203.0.113.1")
			b.set(box, registry.ReachYes)
			b.Consider(box, "nonce")
		}
		time.Sleep(time.Second)
		for i := range 10 {
			b.registry.End(id.BoxIDOf(fmt.Appendf(nil, "box %d", i)), uint64(i)+1, "left")
		}
		time.Sleep(2 * forgetEvery)
		b.Prober.mu.Lock()
		defer b.Prober.mu.Unlock()
		if len(b.targets) != 0 || len(b.queue) != 0 || len(b.perNet) != 0 {
			t.Errorf("%d targets, %d queued, %v", len(b.targets), len(b.queue), b.perNet)
		}
	})
}

func TestExplain(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		base string
		err  error
		want string
	}{
		{"http://203.0.113.7:7072", context.DeadlineExceeded, "not reachable at http://203.0.113.7:7072 (connection timed out): forward TCP port 7072 to this box"},
		{"http://203.0.113.7:7072", &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}, "not reachable at http://203.0.113.7:7072 (connection refused): forward TCP port 7072 to this box"},
		{"https://box.example", &wrongAnswer{"HTTP status 404"}, "not reachable at https://box.example (HTTP status 404): another program answers there: forward TCP port 443 to this box"},
		{"http://box.example", &net.DNSError{Err: "no such host", Name: "box.example"}, "not reachable at http://box.example (its name has no address): correct public_address or the name's DNS entry"},
		{"http://10.0.0.1", &net.OpError{Op: "dial", Err: syscall.EHOSTUNREACH}, "not reachable at http://10.0.0.1 (no route to it): give an address that others can reach"},
		{"http://10.0.0.1:80", errors.New(strings.Repeat("x", 1000)), "not reachable at http://10.0.0.1:80 (" + strings.Repeat("x", 200) + "…): forward TCP port 80 to this box"},
	} {
		if got := explain(test.base, test.err); got != test.want {
			t.Errorf("got  %q\nwant %q", got, test.want)
		}
	}
}
