package fleet

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/quick"
	"time"

	"dandelion/pkg/id"
	"dandelion/pkg/netaddr"
	"dandelion/pkg/wire"
	"dandelion/pkg/wsconn"
)

// accounting is an entrance with FeatureTraffic. It answers each REDIRECTS as the test says.
type accounting struct {
	url      string
	features string
	// answer returns what is said to a batch: "" is nothing, "cut" ends the session.
	answer func(n int, r wire.Redirects) string

	mu       sync.Mutex
	batches  [][]byte
	searches int
	conn     *wsconn.Conn // of the latest session
}

func newAccounting(t *testing.T, features string, answer func(n int, r wire.Redirects) string) *accounting {
	a := &accounting{features: features, answer: answer}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := wsconn.Accept(w, r, netaddr.Addr(nil))
		if err == nil {
			go a.serve(t, c)
		}
	}))
	t.Cleanup(srv.Close)
	a.url = srv.URL
	return a
}

func (a *accounting) serve(t *testing.T, c *wsconn.Conn) {
	defer c.Abort()
	a.mu.Lock()
	a.conn = c
	a.mu.Unlock()
	for {
		raw, err := c.ReadText(wire.MaxMessage)
		if err != nil {
			return
		}
		e, err := wire.DecodeEnvelope(raw)
		if err != nil {
			t.Errorf("%v: %s", err, raw)
			return
		}
		said := ""
		a.mu.Lock()
		switch e.Command {
		case wire.CommandSearch:
			a.searches++
			said = strings.Replace(reply(entranceA, offer(boxA, "127.0.0.1")), `"BOX_SET"`, `"FEATURES":[`+a.features+`],"BOX_SET"`, 1)
		case wire.CommandRedirects:
			r, err := wire.Decode[wire.Redirects](raw)
			if err != nil || r.Check() != nil {
				t.Errorf("%v, %v: %s", err, r.Check(), raw)
			}
			a.batches = append(a.batches, raw)
			said = a.answer(len(a.batches), r)
		}
		a.mu.Unlock()
		if said == "cut" || said != "" && c.WriteText([]byte(said)) != nil {
			return
		}
	}
}

func counted(m wire.Mark) string {
	return fmt.Sprintf(`{"ID":%q,"IP":"127.0.0.1","PORT":"7070","TYPE":"ENTRANCE","COMMAND":"COUNTED","BOOT":%q,"SEQ":%d}`, entranceA, m.Boot, m.Seq)
}

// seen returns the batches so far, as "<seq>: <box> <stream> <count> <bytes>".
func (a *accounting) seen() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var list []string
	for _, raw := range a.batches {
		r, _ := wire.Decode[wire.Redirects](raw)
		text := fmt.Sprintf("%d:", r.Seq)
		for _, b := range r.Boxes {
			text += fmt.Sprintf(" %s %s %d %d", b.Box[:6], b.Stream, b.Count, b.Bytes)
		}
		list = append(list, text)
	}
	return list
}

// cut ends the session.
func (a *accounting) cut() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.conn.Abort()
}

// viewers are redirects that the fleet may take.
type viewers struct {
	mu   sync.Mutex
	list []wire.Redirected
}

func (v *viewers) come(box id.BoxID, count int64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.list = append(v.list, wire.Redirected{Box: box, Stream: "demo", Count: count, Bytes: 10 * count})
}

func (v *viewers) take() []wire.Redirected {
	v.mu.Lock()
	defer v.mu.Unlock()
	list := v.list
	v.list = nil
	return list
}

// TestRedirectsAreTold: a batch for each search with redirects since, once each, of boxes that the entrance
// named.
func TestRedirectsAreTold(t *testing.T) {
	t.Parallel()
	a := newAccounting(t, `"ack","traffic"`, func(_ int, r wire.Redirects) string { return counted(r.Mark) })
	f, v := newFleet(t, a.url), &viewers{}
	f.cfg.Redirects = v.take
	run(t, f)
	await(t, "a box", func() bool { return len(f.Boxes()) > 0 })
	v.come(boxA, 1)
	v.come(boxA, 2)
	v.come(boxB, 5)
	await(t, "a batch", func() bool { return len(a.seen()) == 1 })
	await(t, "its acknowledgement", func() bool { return f.Untold().Waiting == 0 })
	v.come(boxA, 4)
	await(t, "another batch", func() bool { return len(a.seen()) == 2 })
	if want := []string{"1: box-01 demo 3 30", "2: box-01 demo 4 40"}; !slices.Equal(a.seen(), want) {
		t.Errorf("%q, want %q", a.seen(), want)
	}
}

// TestBatchIsToldAgain, as it was, until it is acknowledged; what came meanwhile follows.
func TestBatchIsToldAgain(t *testing.T) {
	t.Parallel()
	a := newAccounting(t, `"traffic"`, func(n int, r wire.Redirects) string {
		switch n {
		case 1:
			return "cut"
		case 2:
			return counted(wire.Mark{Boot: r.Boot, Seq: r.Seq + 1}) // of none that was sent
		case 3:
			return `{"ID":"` + entranceA + `","IP":"a","PORT":"1","TYPE":"ENTRANCE","ERROR":"Redis does not answer"}`
		}
		return counted(r.Mark)
	})
	f, v := newFleet(t, a.url), &viewers{}
	f.cfg.Redirects = v.take
	run(t, f)
	await(t, "a box", func() bool { return len(f.Boxes()) > 0 })
	v.come(boxA, 1)
	await(t, "the batch again", func() bool { return len(a.seen()) == 2 })
	v.come(boxA, 2)
	searches := func() int { a.mu.Lock(); defer a.mu.Unlock(); return a.searches }
	before := searches()
	await(t, "more searches", func() bool { return searches() >= before+2 })
	v.come(boxA, 3)
	if n := len(a.seen()); n != 2 {
		t.Errorf("%d batches: one was sent again in the same session, or another one before it was acknowledged", n)
	}
	a.cut()
	await(t, "it again", func() bool { return len(a.seen()) == 3 })
	before = searches()
	await(t, "searches after an ERROR", func() bool { return searches() >= before+2 })
	if n := f.Untold().Waiting; n != 6 || len(a.seen()) != 3 {
		t.Errorf("%d redirects wait, %q", n, a.seen())
	}
	a.cut()
	await(t, "all is told", func() bool { return f.Untold().Waiting == 0 })
	one := "1: box-01 demo 1 10"
	if want := []string{one, one, one, one, "2: box-01 demo 5 50"}; !slices.Equal(a.seen(), want) {
		t.Errorf("%q, want %q", a.seen(), want)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, again := range a.batches[1:4] {
		if !bytes.Equal(again, a.batches[0]) {
			t.Errorf("a batch changed:\n%s\n%s", a.batches[0], again)
		}
	}
}

// TestOldEntrancesAreToldNothing, and nothing is kept for them.
func TestOldEntrancesAreToldNothing(t *testing.T) {
	t.Parallel()
	for _, features := range []string{``, `"ack","grant"`} {
		a := newAccounting(t, features, func(_ int, r wire.Redirects) string { return counted(r.Mark) })
		f, v := newFleet(t, a.url), &viewers{}
		f.cfg.Redirects = v.take
		run(t, f)
		await(t, "a box", func() bool { return len(f.Boxes()) > 0 })
		v.come(boxA, 1)
		await(t, "the redirects are taken", func() bool { v.mu.Lock(); defer v.mu.Unlock(); return v.list == nil })
		if n := f.Untold().Waiting; n != 0 || len(a.seen()) != 0 {
			t.Errorf("features %s: %d redirects wait, %q", features, n, a.seen())
		}
	}
}

// TestOutbox: whatever is lost on the way and in whatever order all happens, each redirect is in one batch
// that is acknowledged in the end, batches come in order, and one that was sent does not change.
func TestOutbox(t *testing.T) {
	t.Parallel()
	check := func(seed uint64) bool {
		rng := rand.New(rand.NewPCG(seed, 1))
		o, now := newOutbox(), time.Unix(1e9, 0)
		var boxes []Box
		for n := range 40 {
			boxes = append(boxes, Box{ID: id.BoxID(fmt.Sprintf("box-%032x", n))})
		}
		o.offers(boxes, now)
		var added, accepted, last int64
		sent := map[int64]string{}
		take := func() *wire.Redirects {
			r := o.next(wire.Peer{}, now)
			if r == nil {
				return nil
			}
			text := string(wire.Encode(r))
			if before, again := sent[r.Seq]; r.Seq != last+1 || again && before != text || len(r.Boxes) == 0 || len(r.Boxes) > wire.MaxRedirects {
				t.Logf("batch %d after %d, sent before: %v, with %d boxes", r.Seq, last, again, len(r.Boxes))
				return &wire.Redirects{}
			}
			sent[r.Seq] = text
			return r
		}
		accept := func(r *wire.Redirects) bool {
			if r != nil && r.Seq == 0 {
				return false
			}
			if r != nil {
				for _, b := range r.Boxes {
					accepted += b.Count
				}
				last = r.Seq
				o.counted(r.Mark)
				o.counted(r.Mark) // twice
			}
			return true
		}
		for range 200 {
			now = now.Add(time.Duration(rng.IntN(20)) * time.Second)
			switch rng.IntN(5) {
			case 0, 1:
				r := wire.Redirected{Box: boxes[rng.IntN(40)].ID, Stream: id.StreamName(fmt.Sprint("s", rng.IntN(100))), Count: 1 + rng.Int64N(5)}
				o.add([]wire.Redirected{r, {Box: "box-unknown", Count: 1}}, now)
				added += r.Count
			case 2:
				o.opened()
				o.offers(boxes, now)
			case 3: // lost on the way, or its answer is
				if r := take(); r != nil && r.Seq == 0 {
					return false
				}
			case 4:
				if !accept(take()) {
					return false
				}
			}
			if accepted+o.left() != added {
				t.Logf("%d acknowledged, %d wait, of %d", accepted, o.left(), added)
				return false
			}
		}
		for o.left() > 0 {
			o.opened()
			if !accept(take()) {
				return false
			}
		}
		return accepted == added
	}
	if err := quick.Check(check, &quick.Config{MaxCount: 100}); err != nil {
		t.Error(err)
	}
}

// TestCrowdedOutbox: what waits is bounded, what finds no room is counted, and the largest batch fits into a
// message to an entrance.
func TestCrowdedOutbox(t *testing.T) {
	t.Parallel()
	o, now := newOutbox(), time.Unix(1e9, 0)
	o.offers([]Box{{ID: boxA}}, now)
	var dropped int64
	for n := range mostRoutes + 7 {
		dropped += o.add([]wire.Redirected{{Box: boxA, Stream: id.StreamName(fmt.Sprintf("%064d", n)), Count: 1 << 40, Bytes: 1 << 62}}, now)
	}
	if dropped != 7<<40 || len(o.waiting) != mostRoutes || o.left() != mostRoutes<<40 {
		t.Errorf("%d are dropped, %d wait", dropped, len(o.waiting))
	}
	if n := len(wire.Encode(o.next(wire.Peer{ID: string(publisher), IP: "2001:db8:1111:2222:3333:4444:5555:6666", Type: wire.TypePublisher}, now))); n > wire.MaxExchange {
		t.Errorf("a batch has %d bytes", n)
	}
	var many []Box
	for n := range mostOffered + 10 {
		many = append(many, Box{ID: id.BoxID(fmt.Sprintf("box-%032x", n))})
	}
	if o.offers(many, now); len(o.offered) != mostOffered {
		t.Errorf("%d boxes are remembered", len(o.offered))
	}
	if o.offers(nil, now.Add(2*offeredFor)); len(o.offered) != 0 {
		t.Errorf("%d boxes are remembered for ever", len(o.offered))
	}
}

// TestBusyBoxStaysOffered: an entrance names no box whose upload is used up, and yet is told of its viewers.
func TestBusyBoxStaysOffered(t *testing.T) {
	t.Parallel()
	o, now := newOutbox(), time.Unix(1e9, 0)
	o.offers([]Box{{ID: boxA}, {ID: boxB}}, now)
	for range 5 {
		now = now.Add(offeredFor / 2)
		o.offers(nil, now)
		o.add([]wire.Redirected{{Box: boxA, Count: 1}}, now)
	}
	if o.left() != 5 {
		t.Errorf("%d redirects to a busy box are told, want 5", o.left())
	}
	if _, idle := o.offered[boxB]; idle {
		t.Error("a box that is neither named nor used is remembered")
	}
}

// TestManyEntrances: one that takes another ID each time does not fill the memory.
func TestManyEntrances(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	name := func(n int) id.EntranceID { return id.EntranceID(fmt.Sprintf("entrance-%032x", n)) }
	f.claim(name(0), "talking")
	for n := range wire.MaxEntranceURLs {
		f.outbox(name(n)).offers([]Box{{ID: boxA}}, time.Now())
	}
	f.cfg.Redirects = func() []wire.Redirected { return []wire.Redirected{{Box: boxA, Count: 3}} }
	f.collect()
	first, again := f.outbox(name(0)), f.outbox(name(1000))
	if len(f.outboxes) != wire.MaxEntranceURLs || first.left() != 3 || again.left() != 0 || f.Untold().Dropped[DropEntrance] != 3 {
		t.Errorf("%d outboxes, %+v", len(f.outboxes), f.Untold())
	}
	if first.boot == again.boot || (wire.Mark{Boot: first.boot, Seq: 1}).Check() != nil {
		t.Errorf("boots %s and %s", first.boot, again.boot)
	}
}
