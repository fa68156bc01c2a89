package registry

import (
	"fmt"
	"maps"
	"math"
	"testing"

	"dandelion/pkg/id"
	"dandelion/pkg/state"
)

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
