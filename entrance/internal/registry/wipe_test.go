package registry

import (
	"net/url"
	"testing"
	"time"

	"dandelion/entrance/internal/nettest"
	"dandelion/pkg/state"
	"dandelion/pkg/state/redistest"
)

// TestWipedRedisIsFilledAgain: by the next look, and not only by the next report, with hashes that
// expire should this process die.
func TestWipedRedisIsFilledAgain(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, st *state.State) {
		ctx := t.Context()
		r, other := newRegistry(st), newRegistry(st)
		b, dials := testBox(1, "127.0.0.1"), testBox(2, "127.0.0.1")
		b.Session, b.Persistent = 1, true
		put(t, r, b)
		put(t, r, dials)
		r.flush(t)
		other.look(ctx)
		r.look(ctx)
		if n := r.Unwritten(); n != 0 {
			t.Fatalf("%d boxes wait although all is there", n)
		}

		st.FlushAll(ctx)
		other.look(ctx)
		r.look(ctx)
		r.flush(t)
		other.look(ctx)
		if _, held := other.Held(b.ID); !held {
			t.Error("another process does not know the box that is connected")
		}
		put(t, r, dials) // a box that dials may be anywhere: its report decides
		r.flush(t)
		for _, box := range []Box{b, dials} {
			held, _ := r.Held(box.ID)
			key := r.keys.Exchange(box.ID)
			if got := st.HGetAll(ctx, key).Val(); len(got) != len(held.flat(&r.clock)) || got["ID"] != string(box.ID) {
				t.Errorf("the hash is %v", got)
			}
			if life := st.TTL(ctx, key).Val(); life <= hashRefresh || life > hashLife {
				t.Errorf("the hash lives for %v more", life)
			}
		}
	})
}

// TestALeaseEndedElsewhereIsNotWrittenAgain: a box may have moved to another process and left from
// there before its old connection is seen to be dead.
func TestALeaseEndedElsewhereIsNotWrittenAgain(t *testing.T) {
	t.Parallel()
	st := openState(t, state.Config{})
	one, two := newRegistry(st), newRegistry(st)
	stays, moves := testBox(1, "127.0.0.1"), testBox(2, "127.0.0.1")
	stays.Session, stays.Persistent = 1, true
	moves.Session, moves.Persistent = 2, true
	put(t, one, stays)
	put(t, one, moves)
	one.flush(t)
	put(t, two, moves)
	two.flush(t)
	two.End(moves.ID, 2, "goodbye")
	two.flush(t)
	one.look(t.Context())
	one.flush(t)
	if score := one.scoreInRedis(moves.ID); score != 0 {
		t.Errorf("the lease is back: %v", score)
	}
}

// TestWithoutRedisLittleIsKept: boxes that come and go while Redis is away do not pile up.
func TestWithoutRedisLittleIsKept(t *testing.T) {
	t.Parallel()
	st := openState(t, state.Config{})
	r := newRegistry(st)
	r.writer.most = 20
	stays := testBox(0, "127.0.0.1")
	stays.Session, stays.Persistent = 1, true
	put(t, r, stays)
	r.flush(t)
	st.Close() // for good: every command fails from now on
	for i := range 1000 {
		b := testBox(1+i, "127.0.0.1")
		b.Session, b.Persistent = uint64(1+i), true
		put(t, r, b)
		if !r.writeBatch(t.Context()) {
			t.Fatal("a batch succeeded without Redis")
		}
		r.forgetLeases()
		r.End(b.ID, b.Session, "test")
	}
	for i := range 1000 { // faster than batches fail
		b := testBox(1+i, "127.0.0.1")
		b.Session, b.Persistent = uint64(1+i), true
		put(t, r, b)
		r.End(b.ID, b.Session, "test")
	}
	if n := r.Unwritten(); n > 20+1 {
		t.Errorf("%d boxes wait", n)
	}
	if n := len(r.writer.leases); n > 20+1 {
		t.Errorf("%d leases are kept", n)
	}
	if r.lease(stays.ID) == nil || r.lease(stays.ID).written == 0 {
		t.Error("the lease of a box that is connected is forgotten")
	}
	put(t, r, stays)
	if !r.writer.busy(stays.ID) {
		t.Error("the report of a box that is connected does not wait for Redis")
	}
}

// TestSlowRedis: with 100 ms for each round trip 1,000 boxes are written and followed in a few of
// them, and nothing is done for each box alone: that would take 100 s.
func TestSlowRedis(t *testing.T) {
	t.Parallel()
	const boxes, delay = 1000, 100 * time.Millisecond
	redisURL, err := url.Parse(redistest.Start(t))
	if err != nil {
		t.Fatal(err)
	}
	line := nettest.New(t, redisURL.Host)
	line.Delay(delay)
	redisURL.Host = line.Addr()
	st := openState(t, state.Config{URL: redisURL.String()})
	one, two := newRegistry(st), newRegistry(st)
	begin := time.Now()
	for i := range boxes {
		b := testBox(i, "127.0.0.1")
		b.Session, b.Persistent = uint64(i+1), true
		put(t, one, b)
	}
	if took := time.Since(begin); took > boxes*delay/4 {
		t.Errorf("reports waited for Redis: %v for %d", took, boxes)
	}
	timed := func(what string, f func()) {
		t.Helper()
		begin := time.Now()
		f()
		if took := time.Since(begin); took > boxes*delay/4 {
			t.Errorf("%s took %v", what, took)
		}
	}
	timed("writing", func() { one.flush(t) })
	timed("following", func() { two.look(t.Context()) })
	if n := len(two.Boxes()); n != boxes {
		t.Errorf("%d boxes followed", n)
	}
	for _, b := range one.Boxes() {
		one.End(b.ID, b.Session, "test")
	}
	timed("ending", func() { one.flush(t) })
	timed("sweeping", func() { one.look(t.Context()) })
	if n := st.DBSize(t.Context()).Val(); n != 1 { // OWN_INFO
		t.Errorf("%d keys left", n)
	}
}
