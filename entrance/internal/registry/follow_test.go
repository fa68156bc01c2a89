package registry

import (
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"dandelion/pkg/id"
	"dandelion/pkg/state"
	"dandelion/pkg/state/redistest"
)

func redisZ(box id.BoxID, score float64) redis.Z { return redis.Z{Score: score, Member: string(box)} }

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

// TestReachabilityReachesOtherProcesses: one that has read the report before the dial-back ended
// learns how it ended from the next look, not from the next report.
func TestReachabilityReachesOtherProcesses(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, st *state.State) {
		one, two := newRegistry(st), newRegistry(st)
		b := put(t, one, testBox(1, "127.0.0.1"))
		one.flush(t)
		two.look(t.Context())
		if got, held := two.Held(b.ID); !held || got.Reach.State != ReachUnknown {
			t.Fatalf("%+v, %v", got, held)
		}
		one.SetReach(b, Reach{State: ReachYes}, b.Seen)
		one.flush(t)
		two.look(t.Context())
		if got, held := two.Held(b.ID); !held || got.Reach.State != ReachYes {
			t.Errorf("%+v, %v", got, held)
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
