package ledger

import (
	"fmt"
	"testing"
	"time"

	"dandelion/pkg/id"
	"dandelion/pkg/state"
	"dandelion/pkg/state/redistest"
	"dandelion/pkg/wire"
)

// BenchmarkCount: deliveries counted per second, from the report's map to the acknowledgement, of 100 boxes that
// each hand in a batch of 100 deliveries of 20 segments; beside two bare pipelined HINCRBY for each
// delivery, in the same Redis.
func BenchmarkCount(b *testing.B) {
	const boxes, lines = 100, 100
	st := open(b, state.Config{URL: redistest.Start(b)}, "")
	l := newBook(b, st)
	now := time.Now()
	list := make([]wire.Delivery, lines)
	for i := range list {
		list[i] = delivery(path(i%2, fmt.Sprint("s", i%5)), 200, int64(1000+i), now)
	}
	batches := make([]map[string]wire.Delivery, boxes)
	for n := range batches {
		batches[n] = deliveries(boxID(n), list...)
	}
	var counting, bare time.Duration
	counted := make(chan id.BoxID, boxes)
	seq := 0
	for b.Loop() {
		seq++
		begin := time.Now()
		for n := range boxes {
			l.Deliveries(boxID(n), batches[n], mark(1, seq), func() { counted <- boxID(n) })
		}
		l.idle()
		for range boxes {
			<-counted
		}
		counting += time.Since(begin)

		begin = time.Now()
		pipe := st.Pipeline()
		for n := range boxes {
			key := "bare:" + string(boxID(n))
			for i := range lines {
				field := fmt.Sprintf("12|%s|s%d|", publisherID(i%2), i%5)
				pipe.HIncrBy(b.Context(), key, field+"n", 1)
				pipe.HIncrBy(b.Context(), key, field+"b", 1000)
			}
		}
		if _, err := pipe.Exec(b.Context()); err != nil {
			b.Fatal(err)
		}
		bare += time.Since(begin)
	}
	n := float64(seq * boxes * lines)
	b.ReportMetric(n/counting.Seconds(), "deliveries/s")
	b.ReportMetric(n/bare.Seconds(), "bare-deliveries/s")
	b.ReportMetric(bare.Seconds()/counting.Seconds(), "x-bare")
}

// BenchmarkRead: the accounts of 200 boxes for 30 days.
func BenchmarkRead(b *testing.B) {
	const boxes, days = 200, 30
	l := newBook(b, open(b, state.Config{URL: redistest.Start(b)}, ""))
	now := time.Now()
	for n := range boxes {
		var list []wire.Delivery
		for day := range days {
			for hour := range 24 {
				list = append(list, delivery(path(hour%2, "s"), 200, 1000, now.Add(-time.Duration(day*24+hour)*time.Hour)))
			}
		}
		l.Deliveries(boxID(n), deliveries(boxID(n), list...), mark(1, 1), nil)
		l.idle()
	}
	for b.Loop() {
		got := l.traffic(Query{By: ByStream, From: now.Add(-29 * 24 * time.Hour), To: now})
		if got.Totals.Deliveries < boxes*(days-1)*24 {
			b.Fatal(got.Totals)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N), "ms/question")
}
