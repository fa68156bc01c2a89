package uplink

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// grant is what one Take got.
type grant struct {
	at time.Duration // since the beginning
	n  int64
}

// load runs flows against a limiter and notes what they get.
type load struct {
	began time.Time

	mu     sync.Mutex
	grants []grant
	group  sync.WaitGroup
}

func newLoad() *load { return &load{began: time.Now()} }

func (l *load) note(n int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.grants = append(l.grants, grant{time.Since(l.began), n})
}

// run takes until ctx ends, each time what want says, rests between as pause says, and returns in
// *got how much it was.
func (l *load) run(ctx context.Context, f *Flow, got *int64, want func() int64, pause func() time.Duration) {
	l.group.Go(func() {
		defer f.Close()
		for {
			n, err := f.Take(ctx, want())
			if err != nil {
				return
			}
			l.note(n)
			if got != nil {
				*got += n
			}
			if d := pause(); d > 0 {
				select {
				case <-time.After(d):
				case <-ctx.Done():
					return
				}
			}
		}
	})
}

// most is the most that was given out in any window.
func (l *load) most(window time.Duration) (most int64) {
	var sum int64
	first := 0
	for _, g := range l.grants {
		sum += g.n
		for l.grants[first].at <= g.at-window {
			sum -= l.grants[first].n
			first++
		}
		most = max(most, sum)
	}
	return most
}

// between is what was given out from one time until before another.
func (l *load) between(from, to time.Duration) (sum int64) {
	for _, g := range l.grants {
		if g.at >= from && g.at < to {
			sum += g.n
		}
	}
	return sum
}

func always(n int64) func() int64       { return func() int64 { return n } }
func never() (none time.Duration)       { return 0 }
func within(got, want, by float64) bool { return math.Abs(got-want) <= by*want }

// TestRate: under many flows that want anything, each second has the rate within 5 %, at a rate
// below one packet a turn and at 10 Gbit/s.
func TestRate(t *testing.T) {
	t.Parallel()
	for _, rate := range []int64{12_500, 125_000, 2_500_000, 125_000_000, 1_250_000_000} {
		for _, flows := range []int{1, 3, 100} {
			t.Run(fmt.Sprintf("%d/%d", rate, flows), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					l, load := New(rate), newLoad()
					time.Sleep(time.Hour) // nothing is saved up
					load.began = time.Now()
					ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
					defer cancel()
					rng := rand.New(rand.NewPCG(1, uint64(rate)))
					var mu sync.Mutex
					want := func() int64 {
						mu.Lock()
						defer mu.Unlock()
						return 1 + rng.Int64N(max(rate/20, 2000))
					}
					for range flows {
						load.run(ctx, l.Open(1), nil, want, never)
					}
					load.group.Wait()
					if most := load.most(time.Second); float64(most) > 1.05*float64(rate) {
						t.Errorf("%d bytes in one second", most)
					}
					for s := range 9 {
						from := time.Duration(s) * time.Second
						if sum := load.between(from, from+time.Second); float64(sum) < 0.95*float64(rate) {
							t.Errorf("%d bytes in second %d", sum, s)
						}
					}
					if peak := l.Peak(); float64(peak) > 1.05*float64(rate) || float64(peak) < 0.95*float64(rate) {
						t.Errorf("peak %d", peak)
					}
					if l.Flows() != 0 || len(l.waiting) != 0 {
						t.Errorf("%d flows, %d wait at the end", l.Flows(), len(l.waiting))
					}
				})
			})
		}
	}
}

// TestFair: flows that want everything share by weight; those that want less than that get it, and
// leave the rest to the others.
func TestFair(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const rate = 1_000_000
		l, load := New(rate), newLoad()
		const lasts = 20 * time.Second
		ctx, cancel := context.WithTimeout(t.Context(), lasts)
		defer cancel()
		weights := []int{1, 1, 1, 4, 4, 2}
		got := make([]int64, len(weights))
		for i, w := range weights {
			load.run(ctx, l.Open(w), &got[i], always(int64(500+3000*i)), never)
		}
		var modest int64 // 10 kB/s, far less than its share
		load.run(ctx, l.Open(1), &modest, always(1000), func() time.Duration { return 100 * time.Millisecond })
		silent := l.Open(100)
		load.group.Wait()
		silent.Close()
		if float64(modest) < 0.85*10_000*lasts.Seconds() { // its turns take a moment too
			t.Errorf("one that wants little got %d", modest)
		}
		each := (rate*lasts.Seconds() - float64(modest)) / 13
		for i, w := range weights {
			if want := each * float64(w); !within(float64(got[i]), want, 0.05) {
				t.Errorf("flow %d of weight %d got %d, want %.0f", i, w, got[i], want)
			}
		}
		if most := load.most(time.Second); most > rate*105/100 {
			t.Errorf("%d bytes in one second", most)
		}
	})
}

// TestSmallWants: a flow that asks for little at a time gets as much as one that asks for much.
func TestSmallWants(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l, load := New(1_000_000), newLoad()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		var small, large int64
		load.run(ctx, l.Open(1), &small, always(2_000), never)
		load.run(ctx, l.Open(1), &large, always(1<<40), never)
		load.group.Wait()
		if !within(float64(small), float64(large), 0.05) {
			t.Errorf("%d and %d", small, large)
		}
	})
}

// TestTurnsOfFastLines: they are short, so that nobody waits long for a first byte.
func TestTurnsOfFastLines(t *testing.T) {
	t.Parallel()
	for rate, want := range map[int64]int64{125_000_000: 64 << 10, 1_000_000: 25_000} {
		if n, err := New(rate).Open(1).Take(t.Context(), 1<<30); n != want || err != nil {
			t.Errorf("at %d bytes/s a turn is %d (%v), want %d", rate, n, err, want)
		}
	}
}

// TestFewWakeups: small wants at a high rate do not wake anybody for each of them.
func TestFewWakeups(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l, load := New(125_000_000), newLoad()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		load.run(ctx, l.Open(1), nil, always(1400), never)
		load.group.Wait()
		moments := make(map[time.Duration]bool)
		for _, g := range load.grants {
			moments[g.at] = true
		}
		if len(moments) > 100 {
			t.Errorf("%d grants at %d different times", len(load.grants), len(moments))
		}
	})
}

func TestSetRate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l, load := New(1000), newLoad()
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Second)
		defer cancel()
		for range 5 {
			load.run(ctx, l.Open(1), nil, always(1<<20), never)
		}
		rates := []int64{1000, 10_000_000, 20_000, 4_000_000, 100_000}
		for _, rate := range rates {
			l.SetRate(rate)
			if l.Rate() != rate {
				t.Errorf("rate %d, want %d", l.Rate(), rate)
			}
			time.Sleep(10 * time.Second)
		}
		load.group.Wait()
		for i, rate := range rates {
			for s := range 10 {
				from := time.Duration(10*i+s) * time.Second
				if sum := load.between(from+time.Nanosecond, from+time.Second); !within(float64(sum), float64(rate), 0.05) {
					t.Errorf("%d bytes in the second from %v at %d", sum, from, rate)
				}
			}
		}
	})
}

// TestUnlimited: without a limit everything is given at once, to those who wait too when it goes.
func TestUnlimited(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := New(0)
		f := l.Open(1)
		began := time.Now()
		for range 3 {
			if n, err := f.Take(t.Context(), 1<<40); n != 1<<40 || err != nil {
				t.Fatal(n, err)
			}
		}
		if n, err := f.Take(t.Context(), 0); n != 0 || err != nil {
			t.Error(n, err)
		}
		if l.Within(1<<40) != 0 || l.Sent() != 3<<40 || l.Peak() != 3<<40 || l.Now() != 3<<40 {
			t.Errorf("within %v, sent %d, peak %d, now %d", l.Within(1<<40), l.Sent(), l.Peak(), l.Now())
		}
		l.SetRate(1000)
		got := make(chan int64)
		go func() {
			n, _ := f.Take(t.Context(), 1) // the limit begins without anything saved
			m, _ := f.Take(t.Context(), 1<<30)
			got <- n
			got <- m
		}()
		synctest.Wait()
		l.SetRate(0)
		if n, m := <-got, <-got; n != 1 || m != 1<<30 {
			t.Errorf("got %d, %d", n, m)
		}
		if time.Since(began) != 0 {
			t.Errorf("took %v", time.Since(began))
		}
		time.Sleep(time.Minute)
		if l.Peak() != 0 || l.Now() != 0 {
			t.Errorf("peak %d after a minute, %d now", l.Peak(), l.Now())
		}
	})
}

func TestContextAndClose(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := New(40_000) // a chunk is 1000
		first := l.Open(1)
		if n, err := first.Take(t.Context(), 5000); n != 1000 || err != nil {
			t.Fatal(n, err)
		}
		began := time.Now()
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := first.Take(ended, 1); !errors.Is(err, context.Canceled) {
			t.Errorf("with a context that has ended: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, err := first.Take(ctx, 1000); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != time.Millisecond {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		second := l.Open(1)
		errs := make(chan error)
		go func() {
			_, err := second.Take(t.Context(), 1000)
			errs <- err
		}()
		synctest.Wait()
		second.Close()
		second.Close()
		if err := <-errs; !errors.Is(err, ErrClosed) {
			t.Errorf("closed while it waits: %v", err)
		}
		if _, err := second.Take(t.Context(), 1); !errors.Is(err, ErrClosed) {
			t.Errorf("closed before: %v", err)
		}
		if l.Flows() != 1 || len(l.waiting) != 0 || l.Sent() != 1000 {
			t.Errorf("%d flows, %d wait, %d sent", l.Flows(), len(l.waiting), l.Sent())
		}
		// Who waits behind one that leaves need not wait for what that one wanted.
		large, small := l.Open(1), l.Open(1)
		go large.Take(t.Context(), 1000)
		synctest.Wait()
		took := make(chan time.Duration)
		go func() {
			small.Take(t.Context(), 50) // 1 ms has brought 80
			took <- time.Since(began)
		}()
		synctest.Wait()
		large.Close()
		if d := <-took; d != time.Millisecond {
			t.Errorf("took until %v", d)
		}
	})
}

// TestReturn: what was not sent goes to others at once, and counts for nobody.
func TestReturn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := New(80_000)
		a, b := l.Open(1), l.Open(1)
		a.Take(t.Context(), 1000)
		a.Take(t.Context(), 1000)
		began := time.Now()
		got := make(chan int64)
		go func() {
			n, _ := b.Take(t.Context(), 600)
			got <- n
		}()
		synctest.Wait()
		a.Close()
		a.Return(600)
		if n := <-got; n != 600 || time.Since(began) != 0 {
			t.Errorf("%d after %v", n, time.Since(began))
		}
		if l.Sent() != 2000 || l.Peak() != 2000 {
			t.Errorf("sent %d, peak %d", l.Sent(), l.Peak())
		}
		time.Sleep(time.Second)
		b.Return(600)
		time.Sleep(time.Hour)
		b.Return(0)
		if l.Sent() != 1400 || l.tokens > float64(l.burst()) {
			t.Errorf("sent %d, %v tokens", l.Sent(), l.tokens)
		}
	})
}

// TestSpend: what is sent beside the limit is counted and takes nothing from the others.
func TestSpend(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := New(80_000)
		f := l.Open(1)
		f.Spend(1 << 20)
		if n, err := f.Take(t.Context(), 1000); n != 1000 || err != nil {
			t.Error(n, err)
		}
		if l.Sent() != 1000+1<<20 || l.Now() != l.Sent() || l.Peak() != l.Sent() {
			t.Errorf("sent %d, now %d, peak %d", l.Sent(), l.Now(), l.Peak())
		}
	})
}

// TestDebit: what others sent over the line makes turns wait, for a second at most.
func TestDebit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := New(80_000)
		f := l.Open(1)
		for debit, wait := range map[int64]time.Duration{0: 0, 40_000: 450 * time.Millisecond, 10 << 20: time.Second} {
			time.Sleep(10 * time.Second)
			before, began := l.Sent(), time.Now()
			l.Debit(debit)
			l.Debit(-1)
			if got := l.Sent() - before; got != debit {
				t.Errorf("%d bytes count, want %d", got, debit)
			}
			if _, err := f.Take(t.Context(), 1000); err != nil {
				t.Error(err)
			}
			if took := time.Since(began); took < wait || took > wait+50*time.Millisecond {
				t.Errorf("waited %v after %d bytes, want %v", took, debit, wait)
			}
		}
		unlimited := New(0)
		unlimited.Debit(1000)
		if n, err := unlimited.Open(1).Take(t.Context(), 5); n != 5 || err != nil || unlimited.Sent() != 1005 {
			t.Error(n, err, unlimited.Sent())
		}
	})
}

// TestPeak: the peak is of one second, and is forgotten after a minute.
func TestPeak(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := New(0)
		f := l.Open(1)
		for i := range 30 {
			f.Take(t.Context(), int64(i))
			time.Sleep(100 * time.Millisecond)
		}
		if peak := l.Peak(); peak != 20+21+22+23+24+25+26+27+28+29 {
			t.Errorf("peak %d", peak)
		}
		time.Sleep(58 * time.Second)
		if peak := l.Peak(); peak == 0 {
			t.Error("forgotten too soon")
		}
		time.Sleep(3 * time.Second)
		if peak := l.Peak(); peak != 0 {
			t.Errorf("peak %d", peak)
		}
		f.Take(t.Context(), 7)
		if l.Now() != 7 || l.Peak() != 7 {
			t.Errorf("now %d, peak %d", l.Now(), l.Peak())
		}
	})
}

// TestSchedules: whatever flows do, no window of a second has more than the rate allows, what is given
// out adds up, nobody starves, and nothing is left behind.
func TestSchedules(t *testing.T) {
	t.Parallel()
	for seed := range uint64(60) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { schedule(t, rand.New(rand.NewPCG(seed, 7))) })
		})
	}
}

func schedule(t *testing.T, rng *rand.Rand) {
	rate := int64(math.Exp(math.Log(10_000) + rng.Float64()*math.Log(10_000)))
	l, load := New(rate), newLoad()
	var mu sync.Mutex // of rng
	random := func(n int64) int64 {
		mu.Lock()
		defer mu.Unlock()
		return rng.Int64N(n)
	}
	var sent, refused int64
	for range 1 + random(40) {
		load.group.Go(func() {
			time.Sleep(time.Duration(random(int64(3 * time.Second))))
			f := l.Open(int(1 + random(5)))
			defer f.Close()
			ctx := t.Context()
			for range 1 + random(60) {
				cancel := func() {}
				if random(4) == 0 {
					ctx, cancel = context.WithTimeout(t.Context(), time.Duration(random(int64(100*time.Millisecond))))
				}
				want := 1 + random(1+rate/10)
				asked := time.Now()
				n, err := f.Take(ctx, want)
				cancel()
				ctx = t.Context()
				if took := time.Since(asked); took > 6*time.Second { // 40 flows of weight 5 have five turns each of 25 ms meanwhile
					t.Errorf("waited for %v", took)
				}
				if err == nil && (n < 1 || n > want) || err != nil && n != 0 {
					t.Errorf("wanted %d, got %d, %v", want, n, err)
				}
				back := int64(0)
				if n > 0 && random(5) == 0 {
					back = random(n + 1)
					f.Return(back)
				}
				if n > back {
					load.note(n - back)
				}
				mu.Lock()
				sent += n - back
				if err != nil {
					refused++
				}
				mu.Unlock()
				switch random(20) {
				case 0:
					time.Sleep(time.Duration(random(int64(5 * time.Second))))
				case 1:
					if random(10) == 0 {
						time.AfterFunc(time.Duration(random(int64(50*time.Millisecond))), f.Close)
					}
				}
			}
		})
	}
	load.group.Wait()
	if most := load.most(time.Second); float64(most) > 1.05*float64(rate) {
		t.Errorf("%d bytes in one second at %d", most, rate)
	}
	if peak := l.Peak(); float64(peak) > 1.05*float64(rate) {
		t.Errorf("peak %d at %d", peak, rate)
	}
	if l.Sent() != sent || l.Flows() != 0 || len(l.waiting) != 0 {
		t.Errorf("sent %d (want %d), %d flows, %d wait", l.Sent(), sent, l.Flows(), len(l.waiting))
	}
}

// BenchmarkTake: what a chunk costs without a limit, and with one that is far above.
func BenchmarkTake(b *testing.B) {
	for name, rate := range map[string]int64{"unlimited": 0, "limited": 1 << 50} {
		b.Run(name, func(b *testing.B) {
			l := New(rate)
			b.RunParallel(func(pb *testing.PB) {
				f := l.Open(1)
				defer f.Close()
				for pb.Next() {
					f.Take(b.Context(), 1000)
				}
			})
		})
	}
}

// TestWithin: what open flows still expect to send, for as long as they take it.
func TestWithin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(1000)
		if got := l.Within(500); got != 500*time.Millisecond {
			t.Errorf("alone: %v", got)
		}
		busy, stuck := l.Open(8), l.Open(1)
		busy.Expect(3000)
		stuck.Expect(2000)
		if got := l.Within(500); got != 5500*time.Millisecond {
			t.Errorf("beside two: %v", got)
		}
		for left := int64(1000); left > 0; {
			n, err := busy.Take(t.Context(), left)
			if err != nil {
				t.Fatal(err)
			}
			left -= n
		}
		if got := l.Within(500); got != 4500*time.Millisecond {
			t.Errorf("a second later: %v", got)
		}
		time.Sleep(silence)
		busy.Expect(2000)
		if got := l.Within(500); got != 2500*time.Millisecond {
			t.Errorf("when one takes nothing any more: %v", got)
		}
		busy.Close()
		stuck.Close()
		if got := l.Within(0); got != 0 {
			t.Errorf("alone again: %v", got)
		}
	})
}
