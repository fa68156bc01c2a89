package registry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
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

// TestWaitingChangesOfABoxBecomeOne: what waits for Redis is bounded by the number of boxes.
func TestWaitingChangesOfABoxBecomeOne(t *testing.T) {
	t.Parallel()
	st := openState(t, state.Config{})
	r := newRegistry(st)
	for i := range 1000 {
		b := testBox(i%3, "127.0.0.1")
		b.System.Load1 = float64(i)
		put(t, r, b)
	}
	if n := r.Unwritten(); n != 3 {
		t.Fatalf("%d changes wait", n)
	}
	r.flush(t)
	for i := range 3 {
		b := testBox(i, "127.0.0.1")
		want := fmt.Sprint(997 + (i+2)%3)
		if load := st.HGet(t.Context(), r.keys.Exchange(b.ID), "LOADAVG-1").Val(); load != want {
			t.Errorf("box %d: LOADAVG-1 is %s, want %s", i, load, want)
		}
	}
}

func TestBatchesAreBounded(t *testing.T) {
	t.Parallel()
	r := newRegistry(openState(t, state.Config{}))
	for i := range batchSize + 100 {
		put(t, r, testBox(i, "127.0.0.1"))
	}
	if n := len(r.writer.take()); n != batchSize {
		t.Errorf("a batch of %d", n)
	}
	r.writer.done(nil)
	r.flush(t)
	if n := r.state.ZCard(t.Context(), r.keys.BoxSet()).Val(); n != 100 {
		t.Errorf("%d leases in Redis", n)
	}
}

// TestAKeyOfAnotherTypeDoesNotStopTheOthers: some program wrote a string where a hash belongs.
func TestAKeyOfAnotherTypeDoesNotStopTheOthers(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, st *state.State) {
		r := newRegistry(st)
		bad, good := testBox(1, "127.0.0.1"), testBox(2, "127.0.0.1")
		st.Set(t.Context(), r.keys.Exchange(bad.ID), "x", 0)
		put(t, r, bad)
		put(t, r, good)
		if !r.writeBatch(t.Context()) {
			t.Error("the batch is said to have succeeded")
		}
		if n := r.Unwritten(); n != 1 {
			t.Errorf("%d boxes wait", n)
		}
		r.flush(t)
		for _, b := range []Box{bad, good} {
			if got := st.HGet(t.Context(), r.keys.Exchange(b.ID), "ID").Val(); got != string(b.ID) {
				t.Errorf("%s: %q", b.ID, got)
			}
		}
	})
}

// TestOnlyChangesAreWritten, and everything where the hash is not the one that was written.
func TestOnlyChangesAreWritten(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, st *state.State) {
		r := newRegistry(st)
		ctx := t.Context()
		b := testBox(1, "127.0.0.1")
		key := r.keys.Exchange(b.ID)
		check := func(when string) {
			t.Helper()
			held, _ := r.Held(b.ID)
			want := held.flat(&r.clock)
			if got := st.HGetAll(ctx, key).Val(); !maps.Equal(got, want) {
				t.Errorf("%s: %v, want %v", when, got, want)
			}
		}
		report := func(change func(*Box)) {
			b := testBox(1, "127.0.0.1")
			b.Session, b.Persistent = 1, true
			b.System.CPUIdle, b.System.NetUp = 50, 1e6
			if change != nil {
				change(&b)
			}
			put(t, r, b)
			r.flush(t)
		}
		report(nil)
		check("at first")
		st.HSet(ctx, key, "NET-UP", "7", "ANOTHER", "program's")
		report(func(b *Box) { b.System.CPUIdle = 60 })
		if got := st.HMGet(ctx, key, "CPU-IDLE", "NET-UP").Val(); got[0] != "60" || got[1] != "7" {
			t.Errorf("more than the change was written: %v", got)
		}
		st.HDel(ctx, key, "ANOTHER")
		report(func(b *Box) { b.System.NetUp = 2e6 })
		check("after changes")
		report(func(b *Box) { b.System.CPUIdle, b.System.Load1, b.EdgeURL = math.NaN(), 1, "http://127.0.0.1:1" })
		check("after fields came and went")
		held, _ := r.Held(b.ID)
		r.SetReach(held, Reach{State: ReachYes, Reason: "reachable"}, held.Address)
		r.flush(t)
		check("after the dial-back")

		st.Del(ctx, key)
		report(func(b *Box) { b.System.CPUIdle = 70 })
		check("after the hash was lost")
		st.HDel(ctx, key, "CPU-IDLE")
		report(func(b *Box) { b.System.CPUIdle = 80 })
		check("after a field was lost")
		r.lease(b.ID).hash = nil
		st.HSet(ctx, key, "NET-DOWN", "5")
		report(nil)
		check("after another process wrote it")
	})
}

func (r *Registry) lease(box id.BoxID) *lease { return r.writer.leases[box] }

// TestSweepOfRedis: leases of processes that died end, and the hashes go with them.
func TestSweepOfRedis(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, st *state.State) {
		ctx := t.Context()
		dead := newRegistry(st)
		b := testBox(1, "127.0.0.1")
		put(t, dead, b)
		dead.flush(t)
		r := newRegistry(st)
		r.look(ctx)
		if _, held := r.Held(b.ID); !held {
			t.Fatal("the box of another process is not known")
		}
		// Time passes, in Redis.
		z := st.ZAddXX(ctx, dead.keys.BoxSet(), redisZ(b.ID, scoreOf(time.Now().Add(-time.Second))))
		if z.Err() != nil {
			t.Fatal(z.Err())
		}
		st.ZAdd(ctx, r.keys.BoxSet(), redisZ("not a box", 1))
		r.look(ctx)
		if score := r.scoreInRedis(b.ID); score != 0 {
			t.Errorf("the lease is still in Redis: %v", score)
		}
		if n := st.Exists(ctx, r.keys.Exchange(b.ID)).Val(); n != 1 {
			t.Error("the hash went in the same look as the lease")
		}
		r.look(ctx)
		if n := st.Exists(ctx, r.keys.Exchange(b.ID)).Val(); n != 0 {
			t.Error("the hash is still there")
		}
		if _, held := r.Held(b.ID); held {
			t.Error("the box is still in the index")
		}
	})
}

// TestABoxThatComesBackKeepsItsHash: the hash of an ended lease is not deleted when there is a new
// lease by then.
func TestABoxThatComesBackKeepsItsHash(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, st *state.State) {
		one, two := newRegistry(st), newRegistry(st)
		b := testBox(1, "127.0.0.1")
		b.Session, b.Persistent = 1, true
		put(t, one, b)
		one.flush(t)
		one.End(b.ID, 1, "moved")
		one.flush(t)
		put(t, two, b)
		two.flush(t)
		one.look(t.Context())
		one.look(t.Context())
		if n := st.Exists(t.Context(), one.keys.Exchange(b.ID)).Val(); n != 1 {
			t.Error("the hash was deleted")
		}
	})
}

// TestClocksOfProcessesDiffer: a lease lasts as long at every process, whatever its clock says.
func TestClocksOfProcessesDiffer(t *testing.T) {
	t.Parallel()
	st := openState(t, state.Config{URL: redistest.Start(t)})
	one, two := newRegistry(st), newRegistry(st)
	one.clock.start(time.Now(), time.Now().Add(-1000*time.Hour))
	one.look(t.Context())
	b := testBox(1, "127.0.0.1")
	put(t, one, b)
	one.flush(t)
	two.look(t.Context())
	got, held := two.Held(b.ID)
	if !held {
		t.Fatal("not known at the other process")
	}
	if left := time.Until(got.Expires); left < testTTL-5*time.Second || left > testTTL+time.Second {
		t.Errorf("at the other process the lease lasts %v", left)
	}
	if age := time.Since(got.Reported); age < -2*time.Second || age > 5*time.Second {
		t.Errorf("at the other process the report is %v old", age)
	}
}

func TestHashesOfOthersAreChecked(t *testing.T) {
	t.Parallel()
	st := openState(t, state.Config{})
	r := newRegistry(st)
	ctx := t.Context()
	good := testBox(1, "127.0.0.1")
	far := time.Now().Add(1000 * time.Hour)
	for n, flat := range []map[string]string{
		good.flat(&r.clock),
		{},
		{"ID": "nonsense"},
		testBoxFlat(r, 9), // another box's
	} {
		box := testBox(n+1, "127.0.0.1").ID
		for name, value := range flat {
			st.HSet(ctx, r.keys.Exchange(box), name, value)
		}
		st.ZAdd(ctx, r.keys.BoxSet(), redisZ(box, scoreOf(far)))
	}
	r.look(ctx)
	boxes := r.Boxes()
	if len(boxes) != 1 || boxes[0].ID != good.ID {
		t.Fatalf("%d boxes", len(boxes))
	}
	if left := time.Until(boxes[0].Expires); left > 5*testTTL {
		t.Errorf("a lease of %v was taken from Redis", left)
	}
}

func testBoxFlat(r *Registry, n int) map[string]string {
	b := testBox(n, "127.0.0.1")
	return b.flat(&r.clock)
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
