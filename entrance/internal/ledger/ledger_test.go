package ledger

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"dandelion/pkg/id"
	"dandelion/pkg/keys"
	"dandelion/pkg/state"
	"dandelion/pkg/state/redistest"
	"dandelion/pkg/wire"
)

const entranceID = id.EntranceID("entrance-0123456789abcdef0123456789abcdef")

func boxID(n int) id.BoxID             { return id.BoxIDOf(fmt.Appendf(nil, "box %d", n)) }
func publisherID(n int) id.PublisherID { return id.PublisherIDOf(fmt.Appendf(nil, "publisher %d", n)) }
func boot(n int) string                { return fmt.Sprintf("%016x", n) }

func path(publisher int, stream string) string {
	return fmt.Sprintf("/%s/live/%s/720p/0123456789ab/seg-1.ts", publisherID(publisher), stream)
}

func open(t testing.TB, cfg state.Config, dir string) *state.State {
	t.Helper()
	st, err := state.Open(t.Context(), cfg, dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	return st
}

// onBoth runs a test on the embedded state and on a real Redis.
func onBoth(t *testing.T, f func(t *testing.T, st *state.State)) {
	t.Run("embedded", func(t *testing.T) {
		t.Parallel()
		f(t, open(t, state.Config{}, t.TempDir()))
	})
	t.Run("redis", func(t *testing.T) {
		t.Parallel()
		f(t, open(t, state.Config{URL: redistest.Start(t)}, ""))
	})
}

// book is a ledger that a test uses.
type book struct {
	*Ledger
	t     testing.TB
	known sync.Map // boxes that the entrance does not know
}

func newBook(t testing.TB, st *state.State) *book {
	b := &book{t: t}
	b.Ledger = New(Config{ID: entranceID, Keep: 90 * 24 * time.Hour, Knows: func(box id.BoxID) bool {
		_, unknown := b.known.Load(box)
		return !unknown
	}}, st, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	return b
}

// running runs the ledger until the test ends or stop is called.
func (b *book) running() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		_ = b.Run(ctx)
		close(done)
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		<-done
	})
	b.t.Cleanup(stop)
	return stop
}

// a line of a batch.
func delivery(url string, status int, bytes int64, at time.Time) wire.Delivery {
	return wire.Delivery{URL: url, Status: wire.Text(fmt.Sprint(status)), Size: wire.Text(fmt.Sprint(bytes)), Datetime: at.UTC().Format(wire.DeliveryTime)}
}

func deliveries(box id.BoxID, list ...wire.Delivery) map[string]wire.Delivery {
	m := make(map[string]wire.Delivery)
	for i, d := range list {
		m[keys.Box(box).TrafficFlow(fmt.Sprintf("%032x", i))] = d
	}
	return m
}

func mark(b, seq int) *wire.Traffic {
	return &wire.Traffic{Mark: wire.Mark{Boot: boot(b), Seq: int64(seq)}}
}

// send hands in a batch and waits until it is counted.
func (b *book) send(box id.BoxID, traffic *wire.Traffic, list ...wire.Delivery) {
	b.t.Helper()
	b.await(func(counted func()) { b.Deliveries(box, deliveries(box, list...), traffic, counted) })
}

func (b *book) redirect(publisher, boot, seq int, boxes ...wire.Redirected) {
	b.t.Helper()
	b.await(func(counted func()) { b.Redirects(publisherID(publisher), mark(boot, seq).Mark, boxes, counted) })
}

func (b *book) await(do func(counted func())) {
	b.t.Helper()
	done := make(chan struct{})
	do(sync.OnceFunc(func() { close(done) }))
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		b.t.Fatal("not counted within 20 s")
	}
}

// idle waits until nothing waits to be counted any more. It counts itself, in place of Run.
func (b *book) idle() {
	b.t.Helper()
	for tries := 0; !b.queue.empty(); {
		if _, err := b.round(b.t.Context()); err != nil {
			if tries++; tries == 5 { // a machine that is too busy
				b.t.Fatal(err)
			}
		}
	}
	b.answers.Wait()
}

func (b *book) traffic(q Query) *Traffic {
	b.t.Helper()
	if q.To.IsZero() {
		q.From, q.To = b.now().Add(-24*time.Hour), b.now()
	}
	if q.By == "" {
		q.By = ByBox
	}
	got, err := b.Traffic(b.t.Context(), q)
	if err != nil {
		b.t.Fatal(err)
	}
	return got
}

func (b *book) totals() Sums { b.t.Helper(); return b.traffic(Query{}).Totals }

func same[T comparable](t testing.TB, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %+v, want %+v", what, got, want)
	}
}

// valueOf returns what a counter has counted.
func valueOf(c prometheus.Collector) float64 {
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(c)
	families, err := reg.Gather()
	if err != nil {
		panic(err)
	}
	return families[0].GetMetric()[0].GetCounter().GetValue()
}

func TestTrafficByBoxPublisherAndStream(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, st *state.State) {
		b := newBook(t, st)
		b.running()
		now := time.Now()
		b.send(boxID(1), mark(1, 1),
			delivery(path(1, "show"), 200, 1000, now),
			delivery(path(1, "show"), 206, 500, now),
			delivery(path(1, "other"), 404, 19, now),
			delivery("/"+string(publisherID(2))+"/films/a.mp4", 200, 70, now),
			delivery("/favicon.ico", 404, 3, now))
		twice := delivery(path(1, "show"), 200, 20, now)
		twice.Count = 2
		b.send(boxID(2), &wire.Traffic{Mark: mark(1, 1).Mark, DroppedBytes: 8, DroppedCount: 3}, twice)
		b.redirect(1, 1, 1, wire.Redirected{Box: boxID(1), Stream: "show", Count: 2, Bytes: 1500}, wire.Redirected{Box: boxID(2), Stream: "show", Count: 1, Bytes: 30})

		all := Sums{Bytes: 1612, Deliveries: 7, Failed: 2, FailedBytes: 22, Redirects: 3, RedirectedBytes: 1530, Dropped: 3, DroppedBytes: 8}
		for by, want := range map[By][]Row{
			ByBox: {
				{Box: string(boxID(1)), Sums: Sums{Bytes: 1592, Deliveries: 5, Failed: 2, FailedBytes: 22, Redirects: 2, RedirectedBytes: 1500}},
				{Box: string(boxID(2)), Sums: Sums{Bytes: 20, Deliveries: 2, Redirects: 1, RedirectedBytes: 30, Dropped: 3, DroppedBytes: 8}},
			},
			ByPublisher: {
				{Publisher: string(publisherID(1)), Sums: Sums{Bytes: 1539, Deliveries: 5, Failed: 1, FailedBytes: 19, Redirects: 3, RedirectedBytes: 1530}},
				{Publisher: string(publisherID(2)), Sums: Sums{Bytes: 70, Deliveries: 1}},
				{Sums: Sums{Bytes: 3, Deliveries: 1, Failed: 1, FailedBytes: 3, Dropped: 3, DroppedBytes: 8}},
			},
			ByStream: {
				{Publisher: string(publisherID(1)), Stream: "show", Sums: Sums{Bytes: 1520, Deliveries: 4, Redirects: 3, RedirectedBytes: 1530}},
				{Publisher: string(publisherID(2)), Sums: Sums{Bytes: 70, Deliveries: 1}},
				{Publisher: string(publisherID(1)), Stream: "other", Sums: Sums{Bytes: 19, Deliveries: 1, Failed: 1, FailedBytes: 19}},
				{Sums: Sums{Bytes: 3, Deliveries: 1, Failed: 1, FailedBytes: 3, Dropped: 3, DroppedBytes: 8}},
			},
		} {
			got := b.traffic(Query{By: by})
			same(t, string(by)+" totals", got.Totals, all)
			same(t, string(by), fmt.Sprintf("%+v", got.Rows), fmt.Sprintf("%+v", want))
		}
		got := b.traffic(Query{By: ByBox, Box: boxID(1), Publisher: string(publisherID(1)), Stream: "show"})
		same(t, "filtered", got.Totals, Sums{Bytes: 1500, Deliveries: 2, Redirects: 2, RedirectedBytes: 1500})
		same(t, "metric", valueOf(b.metrics.deliveries), 7)
		same(t, "metric", valueOf(b.metrics.redirects), 3)

		// What the box dropped is a total of its boot.
		b.send(boxID(2), &wire.Traffic{Mark: mark(1, 2).Mark, DroppedBytes: 10, DroppedCount: 4})
		b.send(boxID(2), &wire.Traffic{Mark: mark(2, 1).Mark, DroppedBytes: 1, DroppedCount: 1})
		same(t, "dropped", b.totals().DroppedBytes, 11)
		same(t, "dropped", b.totals().Dropped, 5)
	})
}

// TestEachBatchCountsOnce: two processes of one entrance, boxes that restart, send again, and send to
// either; each batch is in the totals once.
func TestEachBatchCountsOnce(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, st *state.State) {
		books := []*book{newBook(t, st), newBook(t, st)}
		for _, b := range books {
			b.running()
		}
		const boxes, boots, batches = 8, 4, 6
		var bytes, count atomic.Int64
		var wg sync.WaitGroup
		for n := range boxes {
			wg.Go(func() {
				random := rand.New(rand.NewPCG(1, uint64(n)))
				for k := range boots {
					for seq := 1; seq <= batches; seq++ {
						var list []wire.Delivery
						for range 1 + random.IntN(5) {
							size := random.Int64N(1 << 40)
							list = append(list, delivery(path(random.IntN(3), fmt.Sprint("s", random.IntN(3))), 200, size, time.Now()))
							bytes.Add(size)
							count.Add(1)
						}
						for range 1 + random.IntN(3) { // the acknowledgement is lost
							at := books[random.IntN(2)]
							at.Deliveries(boxID(n), deliveries(boxID(n), list...), mark(k, seq), func() {})
							if random.IntN(2) == 0 && seq > 1 { // one that was counted long ago
								at.Deliveries(boxID(n), deliveries(boxID(n), list...), mark(k, seq-1), func() {})
							}
						}
						books[random.IntN(2)].send(boxID(n), mark(k, seq), list...)
					}
				}
			})
		}
		wg.Wait()
		same(t, "totals", books[0].totals(), Sums{Bytes: bytes.Load(), Deliveries: count.Load()})
	})
}

// TestAnswersOfRedisAreLost: the script was carried out and nobody heard of it.
func TestAnswersOfRedisAreLost(t *testing.T) {
	t.Parallel()
	proxy := newProxy(t, redistest.Start(t))
	b := newBook(t, open(t, state.Config{URL: proxy.url}, ""))
	b.running()
	for seq := 1; seq <= 20; seq++ {
		if seq%3 == 0 {
			proxy.deaf.Store(1) // the next answers do not come through
		}
		b.send(boxID(1), mark(1, seq), delivery(path(1, "s"), 200, 100, time.Now()))
		b.redirect(1, 1, seq, wire.Redirected{Box: boxID(1), Stream: "s", Count: 1, Bytes: 100}, wire.Redirected{Box: boxID(2), Stream: "s", Count: 1, Bytes: 1})
	}
	if proxy.cut.Load() < 5 {
		t.Errorf("only %d connections were cut", proxy.cut.Load())
	}
	same(t, "totals", b.totals(), Sums{Bytes: 2000, Deliveries: 20, Redirects: 40, RedirectedBytes: 2020})
	if valueOf(b.metrics.duplicates) == 0 {
		t.Error("nothing was tried twice")
	}
}

// proxy stands before a Redis and can lose its answers.
type proxy struct {
	url  string
	deaf atomic.Int32 // how many answers to lose, with their connection
	cut  atomic.Int32
	away atomic.Bool // connections are cut
}

func newProxy(t *testing.T, redisURL string) *proxy {
	u, err := url.Parse(redisURL)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	p := &proxy{url: "redis://" + l.Addr().String() + "/0"}
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			if p.away.Load() {
				client.Close()
				continue
			}
			server, err := net.Dial("tcp", u.Host)
			if err != nil {
				client.Close()
				continue
			}
			var sawScript atomic.Bool
			go p.copy(client, server, func(b []byte) bool {
				if strings.Contains(strings.ToLower(string(b)), "evalsha") {
					sawScript.Store(true)
				}
				return !p.away.Load()
			})
			go p.copy(server, client, func([]byte) bool {
				if p.away.Load() {
					return false
				}
				if !sawScript.Load() || p.deaf.Load() == 0 {
					return true
				}
				p.deaf.Add(-1)
				p.cut.Add(1)
				return false
			})
		}
	}()
	return p
}

func (p *proxy) copy(from, to net.Conn, pass func([]byte) bool) {
	defer from.Close()
	defer to.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if err != nil || !pass(buf[:n]) {
			return
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

// TestRedisIsAwayForAWhile: batches wait, also when they are sent again and again, and count once.
func TestRedisIsAwayForAWhile(t *testing.T) {
	t.Parallel()
	proxy := newProxy(t, redistest.Start(t))
	b := newBook(t, open(t, state.Config{URL: proxy.url}, ""))
	proxy.away.Store(true)
	b.running()
	counted := make(chan struct{}, 100)
	line := delivery(path(1, "s"), 200, 7, time.Now())
	for range 10 { // the reports of 50 s
		for n := range 5 {
			b.Deliveries(boxID(n), deliveries(boxID(n), line), mark(1, 1), func() { counted <- struct{}{} })
			b.Deliveries(boxID(n), deliveries(boxID(n), line), nil, nil) // and an old one
		}
		b.Redirects(publisherID(1), mark(1, 1).Mark, []wire.Redirected{{Box: boxID(1), Count: 1, Bytes: 7}}, func() { counted <- struct{}{} })
	}
	eventually(t, func() bool { return valueOf(b.metrics.errors) > 0 })
	same(t, "counted", len(counted), 0)
	proxy.away.Store(false)
	eventually(t, func() bool { return b.queue.empty() && len(counted) >= 6 })
	same(t, "totals", b.totals(), Sums{Bytes: 70, Deliveries: 10, Redirects: 1, RedirectedBytes: 7})
}

func eventually(t *testing.T, check func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for !check() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("not within 20 s")
		}
	}
}

// TestTheScriptsAreForgotten: a Redis that restarts has no scripts.
func TestTheScriptsAreForgotten(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, st *state.State) {
		b := newBook(t, st)
		b.running()
		for seq := 1; seq <= 3; seq++ {
			b.send(boxID(1), mark(1, seq), delivery("/", 200, 1, time.Now()))
			if err := st.ScriptFlush(t.Context()).Err(); err != nil {
				t.Fatal(err)
			}
		}
		same(t, "totals", b.totals().Deliveries, 3)
	})
}

// TestWhatIsCountedIsDurable: when the box is told, what the disk has holds it.
func TestWhatIsCountedIsDurable(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b := newBook(t, open(t, state.Config{}, dir))
	b.running()
	b.send(boxID(1), mark(1, 1), delivery(path(1, "s"), 200, 100, time.Now()))
	copied := t.TempDir()
	copyDir(t, dir, copied)
	after := newBook(t, open(t, state.Config{}, copied))
	same(t, "totals", after.totals(), Sums{Bytes: 100, Deliveries: 1})
	after.running()
	after.send(boxID(1), mark(1, 1), delivery(path(1, "s"), 200, 100, time.Now()))
	same(t, "totals", after.totals(), Sums{Bytes: 100, Deliveries: 1})
}
