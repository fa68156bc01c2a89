// Package uplink shares a limit of upload among transfers: each gets its part of the rate, by weight,
// and what one does not want goes to the others. It owns the rate and the turns. It must not know
// what is sent, nor to whom.
package uplink

import (
	"container/heap"
	"context"
	"errors"
	"math"
	"sync"
	"time"
)

// ErrClosed is what Take returns once its flow is closed.
var ErrClosed = errors.New("uplink: the flow is closed")

// silence is how long a flow may take nothing before Within leaves it out.
const silence = 2 * time.Second

// Limiter is a limit of upload. Its methods may be called concurrently.
//
// Turns are those of start-time fair queueing: each flow has a virtual time, which goes on by what it
// gets, divided by its weight, and who is furthest behind comes next. A flow that wanted nothing for
// a while begins where the others are, less one turn at most, so nothing is saved up.
type Limiter struct {
	mu      sync.Mutex
	rate    int64     // bytes/s; 0: unlimited
	tokens  float64   // bytes that may be given out now, as of at
	at      time.Time // see tokens
	virtual float64   // the virtual time: the start of who was served last
	arrived uint64    // flows that waited so far
	waiting queue
	timer   *time.Timer // calls wake; nil before somebody waited
	armed   bool        // the timer runs
	open    map[*Flow]struct{}
	meter   meter
}

// New returns a limiter of rate bytes per second. 0 is no limit.
func New(rate int64) *Limiter {
	now := time.Now()
	l := &Limiter{rate: max(0, rate), at: now, open: map[*Flow]struct{}{}, meter: meter{began: now}}
	l.tokens = float64(l.burst())
	return l
}

// lot is what is waited for before turns are given: what the rate allows in 25 ms. However little each flow
// wants, there are no more than 40 wake-ups in a second; each costs far more than the bytes that it sends.
func (l *Limiter) lot() int64 { return max(1, l.rate/40) }

// chunk is the most that one turn gives: a lot, or of fast lines a part of it, for many share them and nobody
// should wait long for its first byte.
func (l *Limiter) chunk() int64 { return min(l.lot(), 64<<10) }

// burst is how much may be given out at once after a pause. It is what a window of any length can
// have above the rate: 3.5 % in a second, which of 5 % leaves room for what is not counted here, such as
// headers and reports. It is more than a lot, so that a timer that fires late loses nothing.
func (l *Limiter) burst() int64 { return max(1, l.rate*7/200) }

// SetRate changes the limit, for those who wait too. 0 is no limit.
func (l *Limiter) SetRate(rate int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	l.refill(now)
	l.rate = max(0, rate)
	l.tokens = min(l.tokens, float64(l.burst()))
	if l.armed {
		l.timer.Stop() // it was set by the old rate
		l.armed = false
	}
	l.serve(now)
}

// Rate returns the limit in bytes/s, 0: none.
func (l *Limiter) Rate() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rate
}

// Sent returns the bytes that were given out since New, less those that were returned.
func (l *Limiter) Sent() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.meter.total
}

// Flows returns how many flows are open.
func (l *Limiter) Flows() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.open)
}

// Within returns the time in which n bytes more could be sent beside all that open flows expect to send; 0
// without a limit. A flow that has taken nothing for a while, because its peer takes nothing, does not
// count.
func (l *Limiter) Within(n int64) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rate == 0 {
		return 0
	}
	now := time.Now()
	for f := range l.open {
		if f.place >= 0 || now.Sub(f.last) < silence {
			n += f.left
		}
	}
	return time.Duration(float64(n) / float64(l.rate) * float64(time.Second))
}

// Now returns the bytes that were given out in the last second, to within 100 ms.
func (l *Limiter) Now() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.meter.lately(time.Now())
}

// Peak returns the most bytes that were given out in one second of the last 60, to within 100 ms.
func (l *Limiter) Peak() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.meter.peak(time.Now())
}

// refill adds what the time since l.at brought. l.mu is held.
func (l *Limiter) refill(now time.Time) {
	l.tokens = min(float64(l.burst()), l.tokens+now.Sub(l.at).Seconds()*float64(l.rate))
	l.at = now
}

// serve gives to those who wait as much as may be given now, and sets the timer for the rest. l.mu is
// held.
func (l *Limiter) serve(now time.Time) {
	l.refill(now)
	for len(l.waiting) > 0 {
		f := l.waiting[0]
		n := f.want
		if l.rate > 0 {
			n = min(n, l.chunk())
			if l.tokens < float64(n) {
				l.arm()
				return
			}
			l.tokens -= float64(n)
		}
		heap.Pop(&l.waiting)
		l.virtual = f.start
		f.start += float64(n) / float64(f.weight)
		l.meter.add(now, n)
		f.left, f.last = max(f.left-n, 0), now
		f.answer(n)
	}
}

// arm sets the timer for when there is a lot to give. l.mu is held.
func (l *Limiter) arm() {
	if l.armed {
		return
	}
	l.armed = true
	wait := time.Duration(math.Ceil((float64(l.lot())-l.tokens)/float64(l.rate)*1e9)) + time.Microsecond
	if l.timer == nil {
		l.timer = time.AfterFunc(wait, l.wake)
		return
	}
	l.timer.Reset(wait)
}

func (l *Limiter) wake() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.armed = false
	l.serve(time.Now())
}

// Flow is one transfer. Take and Return are for one goroutine at a time; Close may be called from any.
type Flow struct {
	l      *Limiter
	weight int64

	// Below: under Limiter.mu.
	start  float64       // virtual time at which it is served next, if it wants something by then
	order  uint64        // of those with the same start the first to wait comes first
	want   int64         // while it waits
	place  int           // in Limiter.waiting; -1: does not wait
	got    int64         // the answer to who waits
	parked bool          // somebody receives from ready
	ready  chan struct{} // the answer is there; nil before somebody was parked
	closed bool
	left   int64     // bytes that it expects to take
	last   time.Time // it took some, or was opened
}

// Open begins a transfer that gets weight times what one of weight 1 does. The caller closes it.
func (l *Limiter) Open(weight int) *Flow {
	f := &Flow{l: l, weight: max(1, int64(weight)), place: -1, last: time.Now()}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open[f] = struct{}{}
	return f
}

// Expect says how many bytes the flow will take from now on, for Within.
func (f *Flow) Expect(n int64) {
	f.l.mu.Lock()
	defer f.l.mu.Unlock()
	f.left, f.last = max(n, 0), time.Now()
}

// Take waits for the flow's turn and returns how many bytes it may send now, 1 to want: what the
// rate allows in 25 ms at most, and of fast lines 64 KiB, all of them without a limit. The error is that of ctx, or
// ErrClosed; then nothing was given out. A want of 0 or less is answered with 0.
func (f *Flow) Take(ctx context.Context, want int64) (int64, error) {
	if err := ctx.Err(); err != nil || want <= 0 {
		return 0, err
	}
	l := f.l
	l.mu.Lock()
	defer l.mu.Unlock()
	if f.closed {
		return 0, ErrClosed
	}
	// Those who ask for less than a chunk are overtaken while they come back: they may make up for
	// one.
	f.start = max(f.start, l.virtual-float64(l.chunk())/float64(f.weight))
	f.want, f.got, f.order = want, 0, l.arrived
	l.arrived++
	heap.Push(&l.waiting, f)
	l.serve(time.Now())
	if f.got > 0 {
		return f.got, nil
	}
	if f.ready == nil {
		f.ready = make(chan struct{}, 1)
	}
	f.parked = true
	l.mu.Unlock()
	var err error
	select {
	case <-f.ready:
		err = ErrClosed
	case <-ctx.Done():
		err = ctx.Err()
	}
	l.mu.Lock()
	if f.parked { // not answered
		f.parked = false
		f.leave()
		return 0, err
	}
	select {
	case <-f.ready: // answered while ctx ended
	default:
	}
	if f.got > 0 {
		return f.got, nil
	}
	return 0, err
}

// answer tells who waits in Take what it got; 0: nothing, and it never will. l.mu is held.
func (f *Flow) answer(n int64) {
	f.got = n
	if f.parked {
		f.parked = false
		f.ready <- struct{}{}
	}
}

// leave takes the flow out of those who wait; who was behind it may want less. l.mu is held.
func (f *Flow) leave() {
	if f.place < 0 {
		return
	}
	heap.Remove(&f.l.waiting, f.place)
	f.l.serve(time.Now())
}

// Spend counts n bytes that are sent whatever the limit is: Sent, Now and Peak have them, and the turns
// of others do not change.
func (f *Flow) Spend(n int64) {
	l := f.l
	l.mu.Lock()
	defer l.mu.Unlock()
	l.meter.add(time.Now(), max(0, n))
}

// Debit counts n bytes that others sent over the same line: Sent, Now and Peak have them, and turns wait
// until time has made up for them, but not for longer than a second.
func (l *Limiter) Debit(n int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	l.refill(now)
	l.tokens = max(l.tokens-float64(max(0, n)), min(l.tokens, -float64(l.rate)))
	l.meter.add(now, max(0, n))
}

// Return gives back n bytes that Take gave and that were not sent: others may send them, within
// what may be given out at once. It may be called after Close.
func (f *Flow) Return(n int64) {
	if n <= 0 {
		return
	}
	l := f.l
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	l.meter.takeBack(now, n)
	f.start -= float64(n) / float64(f.weight)
	l.refill(now)
	l.tokens = min(float64(l.burst()), l.tokens+float64(n))
	l.serve(now)
}

// Close ends the transfer. A Take that waits returns ErrClosed. A second call does nothing.
func (f *Flow) Close() {
	l := f.l
	l.mu.Lock()
	defer l.mu.Unlock()
	if f.closed {
		return
	}
	f.closed = true
	delete(l.open, f)
	if f.place >= 0 {
		f.answer(0)
		f.leave()
	}
}

// queue is a heap of the flows that wait, the next one on top.
type queue []*Flow

func (q queue) Len() int { return len(q) }
func (q queue) Less(i, j int) bool {
	if q[i].start != q[j].start {
		return q[i].start < q[j].start
	}
	return q[i].order < q[j].order
}

func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].place, q[j].place = i, j
}

func (q *queue) Push(x any) {
	f := x.(*Flow)
	f.place = len(*q)
	*q = append(*q, f)
}

func (q *queue) Pop() any {
	last := len(*q) - 1
	f := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	f.place = -1
	return f
}
