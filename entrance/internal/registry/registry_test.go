package registry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"dandelion/pkg/id"
	"dandelion/pkg/state"
	"dandelion/pkg/state/redistest"
	"dandelion/pkg/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var quietLog = slog.New(slog.DiscardHandler)

const testTTL = 20 * time.Second

func newRegistry(st *state.State) *Registry {
	return New(Config{
		ID: id.EntranceIDOf([]byte("test")), LeaseTTL: testTTL, OwnInfo: map[string]string{"ID": "test"},
	}, st, quietLog, prometheus.NewRegistry())
}

func openState(t testing.TB, cfg state.Config) *state.State {
	t.Helper()
	st, err := state.Open(t.Context(), cfg, t.TempDir(), quietLog)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	return st
}

func onBoth(t *testing.T, f func(t *testing.T, st *state.State)) {
	t.Run("embedded", func(t *testing.T) {
		t.Parallel()
		f(t, openState(t, state.Config{}))
	})
	t.Run("redis", func(t *testing.T) {
		t.Parallel()
		f(t, openState(t, state.Config{URL: redistest.Start(t)}))
	})
}

// testBox is a report of box n from an address, as checkin makes it.
func testBox(n int, addr string) Box {
	box := id.BoxIDOf(fmt.Appendf(nil, "box %d", n))
	b := Box{ID: box, Seen: netip.MustParseAddr(addr), Address: netip.MustParseAddr(addr)}
	b.Exchange = wire.Exchange{
		Peer:      wire.Peer{ID: string(box), IP: addr, Port: "7072", Type: wire.TypeBox},
		ConnectWS: "http://" + addr + ":7072" + wire.BoxWSPath(box),
		System:    wire.UnknownSystem(),
	}
	return b
}

func put(t testing.TB, r *Registry, b Box) *Box {
	t.Helper()
	if err := r.Put(&b); err != nil {
		t.Fatal(err)
	}
	return &b
}

// flush writes what waits, as runWriter would.
func (r *Registry) flush(t testing.TB) {
	t.Helper()
	for r.writer.queued() > 0 {
		if r.writeBatch(t.Context()) {
			t.Fatal("a batch failed")
		}
	}
}

func (r *Registry) scoreInRedis(box id.BoxID) float64 {
	return r.state.ZScore(context.Background(), r.keys.BoxSet(), string(box)).Val()
}

// TestALeaseIsEndedOnlyByWhoHoldsIt: process one loses a box that process two has renewed.
func TestALeaseIsEndedOnlyByWhoHoldsIt(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, st *state.State) {
		one, two := newRegistry(st), newRegistry(st)
		b := testBox(1, "127.0.0.1")
		b.Session, b.Persistent = 1, true
		put(t, one, b)
		one.flush(t)
		first := one.scoreInRedis(b.ID)
		if first == 0 {
			t.Fatal("the lease is not in Redis")
		}
		two.clock.start(time.Now(), time.Now().Add(2*time.Second)) // so that the leases differ for certain
		put(t, two, b)
		two.flush(t)
		second := two.scoreInRedis(b.ID)
		if second == first {
			t.Fatal("the lease was not renewed")
		}
		one.End(b.ID, 1, "test")
		one.flush(t)
		if now := one.scoreInRedis(b.ID); now != second {
			t.Fatalf("process one ended the lease of process two: %v, was %v", now, second)
		}
		two.End(b.ID, 1, "test")
		two.flush(t)
		if now := one.scoreInRedis(b.ID); now != 0 {
			t.Errorf("the lease is still there: %v", now)
		}
	})
}

// TestOnlyTheLatestSessionEndsTheLease is the same within one process.
func TestOnlyTheLatestSessionEndsTheLease(t *testing.T) {
	t.Parallel()
	r := newRegistry(nil)
	b := testBox(1, "127.0.0.1")
	b.Session, b.Persistent = 1, true
	put(t, r, b)
	b.Session = 2
	put(t, r, b)
	r.End(b.ID, 1, "the old connection died")
	if _, held := r.Held(b.ID); !held {
		t.Fatal("the end of an older session ended the lease")
	}
	r.End(b.ID, 2, "unplugged")
	if got, known := r.Get(b.ID); !known || got.GoneWhy != "unplugged" {
		t.Errorf("%+v, %v", got, known)
	}
	if _, held := r.Held(b.ID); held {
		t.Error("the lease goes on")
	}
}

func TestAdmit(t *testing.T) {
	t.Parallel()
	verified := testBox(1, "203.0.113.1")
	verified.Reach.State = ReachYes
	claimed := testBox(1, "203.0.113.1")
	elsewhere := testBox(1, "198.51.100.1")
	sameURLs := testBox(1, "203.0.113.1")
	sameURLs.Seen = netip.MustParseAddr("198.51.100.1")
	movedPort := testBox(1, "203.0.113.1")
	movedPort.ConnectWS = strings.Replace(movedPort.ConnectWS, "7072", "7073", 1)
	for _, test := range []struct {
		name       string
		old, claim Box
		refused    bool
	}{
		{"reconnect", verified, claimed, false},
		{"another port at the same address", verified, movedPort, false},
		{"another way out to the same place", verified, sameURLs, false},
		{"another place", verified, elsewhere, true},
		{"another place, the first was never reached", claimed, elsewhere, false},
	} {
		test.old.Expires = time.Now().Add(time.Second)
		if err := admit(&test.old, &test.claim); errors.Is(err, ErrTaken) != test.refused {
			t.Errorf("%s: %v", test.name, err)
		}
	}
	r := newRegistry(nil)
	put(t, r, verified)
	r.SetReach(&verified, Reach{State: ReachYes}, netip.Addr{})
	if err := r.Put(&elsewhere); !errors.Is(err, ErrTaken) {
		t.Errorf("Put: %v", err)
	}
	r.sweep(time.Now().Add(testTTL + time.Second))
	put(t, r, elsewhere)
}

func TestReachabilityIsKeptOnlyForTheSamePlace(t *testing.T) {
	t.Parallel()
	r := newRegistry(nil)
	first := put(t, r, testBox(1, "127.0.0.1"))
	r.SetReach(first, Reach{State: ReachYes}, netip.MustParseAddr("127.0.0.9"))
	again := put(t, r, testBox(1, "127.0.0.1"))
	if again.Reach.State != ReachYes || again.Address.String() != "127.0.0.9" || !again.FirstSeen.Equal(first.FirstSeen) {
		t.Errorf("after another report: %+v", again)
	}
	moved := testBox(1, "127.0.0.1")
	moved.EdgeURL = "http://127.0.0.1:9"
	if kept := put(t, r, moved); kept.Reach.State != ReachUnknown || !kept.FirstSeen.Equal(first.FirstSeen) {
		t.Errorf("at another URL: %+v", kept)
	}
	// What a dial-back of the old URLs finds is late.
	r.SetReach(first, Reach{State: ReachYes}, netip.Addr{})
	if b, _ := r.Held(moved.ID); b.Reach.State != ReachUnknown {
		t.Errorf("a late result was taken: %+v", b.Reach)
	}
	// A box that left is asked again when it comes back, but is not new.
	r.SetReach(&moved, Reach{State: ReachYes}, netip.Addr{})
	r.sweep(time.Now().Add(testTTL + time.Second))
	if kept := put(t, r, moved); kept.Reach.State != ReachUnknown || !kept.FirstSeen.Equal(first.FirstSeen) {
		t.Errorf("after it left: %+v", kept)
	}
}

func TestLimits(t *testing.T) {
	t.Parallel()
	r := newRegistry(nil)
	for i := range MaxPerNetwork {
		put(t, r, testBox(i, "203.0.113.7"))
	}
	more := testBox(-1, "203.0.113.200")
	if err := r.Put(&more); !errors.Is(err, ErrFull) {
		t.Errorf("one more of the same network: %v", err)
	}
	put(t, r, testBox(0, "203.0.113.7")) // a renewal needs no room
	put(t, r, testBox(-1, "203.0.114.1"))
	for i := range MaxPerNetwork + 1 {
		put(t, r, testBox(10_000+i, "192.168.1.1"))
	}
	for round := range 4 {
		r.sweep(time.Now().Add(testTTL + time.Second))
		if len(r.boxes) != 0 || len(r.networks) != 0 {
			t.Fatalf("%d boxes, %v after the sweep", len(r.boxes), r.networks)
		}
		for i := range MaxPerNetwork {
			put(t, r, testBox(20_000+round*1000+i, "203.0.113.7"))
		}
	}
	if n := len(r.Gone()); n > maxGone {
		t.Errorf("%d boxes that left are kept", n)
	}
	r.sweep(time.Now().Add(testTTL + goneFor + time.Minute))
	r.sweep(time.Now().Add(testTTL + 2*goneFor + 2*time.Minute))
	if n := len(r.Gone()); n != 0 {
		t.Errorf("%d boxes that left are kept for ever", n)
	}
}

func TestFlatRoundTrip(t *testing.T) {
	t.Parallel()
	r := newRegistry(nil)
	b := testBox(1, "2001:db8::7")
	b.Exchange.IP, b.EdgeURL, b.Features = "192.0.2.1", "http://box.example:7072", wire.Ours()
	b.GeoIP = wire.GeoIP{City: "Cologne", Loc: "50.9,6.9"}
	b.System.CPUIdle = 97.5
	b.Persistent = true
	b.Reach = Reach{State: ReachNo, Reason: "not reachable"}
	b.Address, b.Answered = netip.MustParseAddr("192.0.2.9"), true
	b.FirstSeen, b.Reported = time.Now().Add(-time.Hour).Truncate(time.Second), time.Now().Truncate(time.Second)
	score := scoreOf(time.Now().Add(time.Minute))
	got, err := boxFromFlat(b.ID, b.flat(&r.clock), score, &r.clock)
	if err != nil {
		t.Fatal(err)
	}
	if got.EdgeURL != b.EdgeURL || got.GeoIP != b.GeoIP || got.System.CPUIdle != 97.5 || !got.Persistent || got.Seen != b.Seen ||
		got.Reach.State != ReachNo || got.Reach.Reason != b.Reach.Reason || got.Address != b.Address || !got.Answered || got.score != score || got.Own {
		t.Errorf("%+v", got)
	}
	if d := got.FirstSeen.Sub(b.FirstSeen).Abs(); d > 2*time.Second {
		t.Errorf("FirstSeen differs by %v", d)
	}
	if d := got.Reported.Sub(b.Reported).Abs(); d > 2*time.Second {
		t.Errorf("Reported differs by %v", d)
	}
}
