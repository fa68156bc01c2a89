package report

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"strings"
	"testing"
	"time"

	"dandelion/box/internal/traffic"
	"dandelion/pkg/id"
	"dandelion/pkg/wire"
)

// accounts is a traffic service with so many batches; the i-th has one delivery of i+1 bytes.
func accounts(t *testing.T, batches int) *traffic.Service {
	t.Helper()
	s, err := traffic.Open(traffic.Config{Box: boxID, Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	first, other := s.Feed("holds them"), s.Feed("makes them")
	for i := range batches {
		deliver(t, s, i+1)
		b, ok := other.Next()
		if !ok {
			t.Fatal("no batch")
		}
		other.Counted(b.Traffic.Mark)
	}
	other.Close()
	t.Cleanup(first.Close)
	return s
}

func deliver(t *testing.T, s *traffic.Service, size int) {
	t.Helper()
	s.Record(traffic.Delivery{
		Time: time.Now(), URL: fmt.Sprintf("/%s/film", id.PublisherIDOf(nil)), Status: 200, Bytes: int64(size), Viewer: netip.MustParseAddr("203.0.113.7"),
	})
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
}

// withTraffic receives the next report that has deliveries.
func withTraffic(t *testing.T, e *entrance) wire.Exchange {
	t.Helper()
	for {
		if x := receive(t, e.exchanges, "report with deliveries"); len(x.Deliveries) > 0 {
			return x
		}
	}
}

func only(t *testing.T, x wire.Exchange) wire.Delivery {
	t.Helper()
	if len(x.Deliveries) != 1 {
		t.Fatalf("%d deliveries", len(x.Deliveries))
	}
	for _, d := range x.Deliveries {
		return d
	}
	panic("unreachable")
}

// TestBacklog: what waits goes at the speed of replies, in order, and not before the entrance has said what
// it understands.
func TestBacklog(t *testing.T) {
	t.Parallel()
	const batches = 30
	s := accounts(t, batches)
	e := newEntrance(t, "e", nil)
	e.set(func() { e.counts = func(wire.Exchange) bool { return true } })
	r := run(t, func(c *Config) { c.Entrances, c.Traffic, c.Interval = []string{e.url}, s, time.Minute })
	if x := receive(t, e.exchanges, "report"); len(x.Deliveries) > 0 {
		t.Error("the first report has deliveries")
	}
	for i := range batches {
		x := withTraffic(t, e)
		d := only(t, x)
		if x.Traffic == nil || x.Traffic.Seq != int64(i+1) || string(d.Size) != fmt.Sprint(i+1) || d.Network != "203.0.113.0/24" {
			t.Fatalf("batch %d: %+v, %+v", i, x.Traffic, d)
		}
	}
	eventually(t, "all are acknowledged", func() bool { return r.status(e.url).Waiting == 0 })
}

// TestCutBeforeCounted: a session that ends between report and acknowledgement brings the same batch again.
func TestCutBeforeCounted(t *testing.T) {
	t.Parallel()
	s := accounts(t, 2)
	e := newEntrance(t, "e", nil)
	r := run(t, func(c *Config) { c.Entrances, c.Traffic = []string{e.url}, s })
	first := withTraffic(t, e)
	for range 3 {
		if x := receive(t, e.exchanges, "report"); len(x.Deliveries) > 0 {
			t.Error("a batch goes twice in one session")
		}
	}
	e.cut()
	again := withTraffic(t, e)
	if *again.Traffic != *first.Traffic || !maps.Equal(again.Deliveries, first.Deliveries) {
		t.Errorf("%+v became %+v", first.Traffic, again.Traffic)
	}
	e.set(func() { e.counts = func(wire.Exchange) bool { return true } })
	e.cut()
	if x := withTraffic(t, e); *x.Traffic != *first.Traffic {
		t.Errorf("%+v became %+v", first.Traffic, x.Traffic)
	}
	if x := withTraffic(t, e); x.Traffic.Seq != 2 {
		t.Errorf("then comes %+v", x.Traffic)
	}
	eventually(t, "all are acknowledged", func() bool { return r.status(e.url).Waiting == 0 })
}

// TestUnnumbered: an entrance without the feature gets the four old fields, and its reply acknowledges; one
// without any gets them in every other report at most.
func TestUnnumbered(t *testing.T) {
	t.Parallel()
	for name, features := range map[string]wire.Features{"old": nil, "without traffic": {wire.FeatureAck}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const batches = 4
			s := accounts(t, batches)
			e := newEntrance(t, "e", nil)
			e.set(func() { e.answer = func(r *wire.ExchangeReply) { r.Features = features } })
			r := run(t, func(c *Config) { c.Entrances, c.Traffic = []string{e.url}, s })
			before := true // the first must have none
			for got := 0; got < batches; {
				x := receive(t, e.exchanges, "report")
				if len(x.Deliveries) == 0 {
					before = false
					continue
				}
				got++
				d := only(t, x)
				if x.Traffic != nil || d.Count != 0 || d.Network != "" || string(d.Size) != fmt.Sprint(got) || d.Status != "200" || d.Datetime == "" {
					t.Errorf("%+v %+v", x.Traffic, d)
				}
				if before {
					t.Error("deliveries at once, or twice in a row")
				}
				before = features == nil
			}
			eventually(t, "all are acknowledged", func() bool { return r.status(e.url).Waiting == 0 })
		})
	}
}

// TestSettlesBeforeGoodbye: what was recorded until the end arrives, and then the goodbye; where nobody
// acknowledges, the goodbye waits for a second and not for the drain's end.
func TestSettlesBeforeGoodbye(t *testing.T) {
	t.Parallel()
	for _, counts := range []bool{true, false} {
		s := accounts(t, 0)
		e := newEntrance(t, "e", nil)
		e.set(func() { e.counts = func(wire.Exchange) bool { return counts } })
		r := run(t, func(c *Config) { c.Entrances, c.Traffic, c.Interval = []string{e.url}, s, time.Minute })
		eventually(t, "connected", func() bool { return r.status(e.url).Connected })
		s.Record(traffic.Delivery{Time: time.Now(), URL: fmt.Sprintf("/%s/film", id.PublisherIDOf(nil)), Status: 200, Bytes: 7})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		began := time.Now()
		r.Drain(ctx, "the end")
		receive(t, e.goodbyes, "goodbye")
		x := withTraffic(t, e)
		if d := only(t, x); d.Size != "7" {
			t.Errorf("%+v", d)
		}
		if took := time.Since(began); took > 30*time.Second {
			t.Errorf("acknowledged: %v; it took %v", counts, took)
		}
		if left := r.status(e.url).Waiting; (left == 0) != counts {
			t.Errorf("acknowledged: %v; %d wait", counts, left)
		}
		r.stop()
	}
}

// TestOneEntranceTwice: two URLs of one entrance wait for one session alone.
func TestOneEntranceTwice(t *testing.T) {
	t.Parallel()
	s := accounts(t, 3)
	e := newEntrance(t, "e", nil)
	e.set(func() { e.counts = func(wire.Exchange) bool { return true } })
	other := strings.Replace(e.url, "127.0.0.1", "localhost", 1)
	r := run(t, func(c *Config) { c.Entrances, c.Traffic = []string{e.url, other}, s })
	eventually(t, "one is parked and nothing waits", func() bool {
		a, b := r.status(e.url), r.status(other)
		return a.Connected != b.Connected && a.Waiting == 0 && b.Waiting == 0 && strings.Contains(a.Sentence+b.Sentence, "one session is enough")
	})
}

// TestMarksThatCannotBe: an entrance that acknowledges what it never got ends nothing.
func TestMarksThatCannotBe(t *testing.T) {
	t.Parallel()
	s := accounts(t, 2)
	e := newEntrance(t, "e", nil)
	e.set(func() {
		e.verbatim = wire.Encode(wire.Counted{Peer: wire.Peer{ID: string(e.id)}, Command: wire.CommandCounted, Mark: wire.Mark{Boot: "x", Seq: -1}})
	})
	r := run(t, func(c *Config) { c.Entrances, c.Traffic = []string{e.url}, s })
	for range 3 {
		receive(t, e.exchanges, "report")
	}
	if got := r.status(e.url).Waiting; got != 2 {
		t.Errorf("%d wait", got)
	}
}
