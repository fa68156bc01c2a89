package ledger

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"dandelion/pkg/id"
	"dandelion/pkg/keys"
	"dandelion/pkg/state"
	"dandelion/pkg/state/redistest"
	"dandelion/pkg/wire"
)

func copyDir(t *testing.T, from, to string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}

// TestOldBoxSendsEachDeliveryTwice: an old box keeps a delivery for twice its ping interval; it is known by its
// key.
func TestOldBoxSendsEachDeliveryTwice(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, st *state.State) {
		b := newBook(t, st)
		lines := func(from, to int) map[string]wire.Delivery {
			m := make(map[string]wire.Delivery)
			for i := from; i < to; i++ {
				status := 200
				if i%2 == 1 {
					status = 404
				}
				m[keys.Box(boxID(1)).TrafficFlow(fmt.Sprintf("%032x", i))] = delivery(path(1, "s"), status, 10, time.Unix(0, 0))
			}
			return m
		}
		for ping := range 10 {
			b.Deliveries(boxID(1), lines(ping*4, ping*4+8), nil, nil)
			if ping%3 == 0 { // else they wait together
				b.idle()
			}
		}
		b.idle()
		same(t, "totals", b.totals(), Sums{Bytes: 440, Deliveries: 44, Failed: 22, FailedBytes: 220})
		same(t, "metric", valueOf(b.metrics.deliveries), 44)
		same(t, "metric", valueOf(b.metrics.bytes), 440)
		if n := st.ZCard(t.Context(), b.keys.AccountSeen(boxID(1))).Val(); n != 44 {
			t.Errorf("%d keys are remembered", n)
		}
		if left := st.TTL(t.Context(), b.keys.AccountSeen(boxID(1))).Val(); left < 9*time.Minute || left > 10*time.Minute {
			t.Errorf("they are remembered for %v", left)
		}
	})
}

func TestHostileLines(t *testing.T) {
	t.Parallel()
	b := newBook(t, open(t, state.Config{URL: redistest.Start(t)}, ""))
	b.running()
	now := time.Now()
	bad := func(change func(*wire.Delivery)) wire.Delivery {
		d := delivery(path(1, "s"), 200, 10, now)
		change(&d)
		return d
	}
	b.send(boxID(1), mark(1, 1),
		bad(func(d *wire.Delivery) { d.Size = "-1" }),
		bad(func(d *wire.Delivery) { d.Size = "9223372036854775807" }),
		bad(func(d *wire.Delivery) { d.Size = "1e9" }),
		bad(func(d *wire.Delivery) { d.Size = "" }),
		bad(func(d *wire.Delivery) { d.Status = "OK" }),
		bad(func(d *wire.Delivery) { d.Status = "99" }),
		bad(func(d *wire.Delivery) { d.Count = -1 }),
		bad(func(d *wire.Delivery) { d.Count = 1 << 60 }),
		bad(func(d *wire.Delivery) { d.URL = "/publisher-../../x|y|z/live/s/" }),
		bad(func(d *wire.Delivery) { d.URL = "/" + string(publisherID(1)) + "/live/a|b/x" }),
		bad(func(d *wire.Delivery) { d.URL = "/" + string(publisherID(1)) + "/live/s" }),
		bad(func(d *wire.Delivery) { d.Datetime = "yesterday" }),
		bad(func(d *wire.Delivery) { d.Size = "-" }))
	same(t, "totals", b.totals(), Sums{Bytes: 40, Deliveries: 5})
	same(t, "size", valueOf(b.metrics.refused[refusedSize]), 4)
	same(t, "status", valueOf(b.metrics.refused[refusedStatus]), 2)
	same(t, "count", valueOf(b.metrics.refused[refusedCount]), 2)
	same(t, "no publisher", b.traffic(Query{By: ByPublisher}).Rows[1], Row{Sums: Sums{Bytes: 10, Deliveries: 1}})
	same(t, "no stream", b.traffic(Query{By: ByStream}).Rows[0], Row{Publisher: string(publisherID(1)), Stream: "", Sums: Sums{Bytes: 20, Deliveries: 2}})

	// Sums do not overflow.
	most := bad(func(d *wire.Delivery) { d.Size = wire.Text(fmt.Sprint(int64(maxLineBytes))); d.Count = maxLineCount })
	list := make([]wire.Delivery, 2000)
	for i := range list {
		list[i] = most
	}
	for seq := 2; seq < 12; seq++ {
		b.send(boxID(1), &wire.Traffic{Mark: mark(1, seq).Mark, DroppedBytes: 1<<63 - 1, DroppedCount: -5}, list...)
	}
	got := b.traffic(Query{By: ByStream, Stream: "s"}).Totals
	same(t, "most", got.Bytes, int64(maxSum))
	same(t, "dropped", b.totals().DroppedBytes, int64(maxSum))
	b.send(boxID(2), mark(1, 1<<62), most) // no number is too high
	b.send(boxID(2), mark(1, 1<<62), most)
	same(t, "of the other", b.traffic(Query{Box: boxID(2)}).Totals.Deliveries, int64(maxLineCount))
}

// TestOneBoxCannotFillRedis: fields of a day are bounded, and so are sources and remembered keys; what is
// beyond counts, under another name.
func TestOneBoxCannotFillRedis(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, st *state.State) {
		b := newBook(t, st)
		noon := time.Now().Truncate(24 * time.Hour).Add(12*time.Hour + time.Minute)
		b.now = func() time.Time { return noon }
		day := b.keys.AccountDay(boxID(1), noon.UTC().Format("20060102"))
		seq, sent := 0, int64(0)
		for range 4 {
			var list []wire.Delivery
			for i := range 1000 {
				list = append(list, delivery(path(1, fmt.Sprintf("s%d-%d", seq, i)), 200, 10, noon.Add(-time.Duration(i%12)*time.Hour)))
				sent += 10
			}
			seq++
			b.Deliveries(boxID(1), deliveries(boxID(1), list...), mark(1, seq), nil)
			b.idle()
		}
		same(t, "bytes", b.totals().Bytes, sent)
		same(t, "deliveries", b.totals().Deliveries, sent/10)
		if n := st.HLen(t.Context(), day).Val(); n > fieldsPerDay+24*8 {
			t.Errorf("%d fields", n)
		}
		other := b.traffic(Query{By: ByPublisher, Publisher: Other}).Totals
		if other.Bytes < sent/3 {
			t.Errorf("%d bytes are other's", other.Bytes)
		}

		// A publisher makes no new ones there, but has its sums.
		b.Redirects(publisherID(2), mark(1, 1).Mark, []wire.Redirected{{Box: boxID(1), Stream: "new", Count: 1, Bytes: 5}}, nil)
		b.idle()
		same(t, "redirects", b.traffic(Query{By: ByPublisher, Publisher: Other}).Totals.RedirectedBytes, 5)

		// Boots of boxes and of publishers.
		for i := range boxBoots + 10 {
			b.now = func() time.Time { return noon.Add(time.Duration(i) * time.Second) }
			b.Deliveries(boxID(1), deliveries(boxID(1), delivery("/", 200, 1, noon)), mark(1000+i, 1), nil)
			b.idle()
		}
		for i := range 3 * fullMarks {
			b.Redirects(publisherID(i), mark(i, 1).Mark, []wire.Redirected{{Box: boxID(1), Count: 1, Bytes: 5}}, nil)
		}
		b.idle()
		marks := st.HKeys(t.Context(), b.keys.AccountMarks(boxID(1))).Val()
		boots := 0
		for _, source := range marks {
			if !strings.HasPrefix(source, "publisher-") {
				boots++
			}
		}
		if boots < boxBoots || len(marks) > fullMarks {
			t.Errorf("%d sources are known, %d boots of the box", len(marks), boots)
		}
		// The last ones are those that stay.
		before := b.totals().Deliveries
		b.Deliveries(boxID(1), deliveries(boxID(1), delivery("/", 200, 1, noon)), mark(1000+boxBoots+9, 1), nil)
		b.Deliveries(boxID(1), deliveries(boxID(1), delivery("/", 200, 1, noon)), mark(1000+11, 1), nil)
		b.idle()
		same(t, "of remembered boots", b.totals().Deliveries, before)
	})
}

func TestSeenKeysAreBounded(t *testing.T) {
	t.Parallel()
	b := newBook(t, open(t, state.Config{URL: redistest.Start(t)}, ""))
	for round := range 12 {
		m := make(map[string]wire.Delivery)
		for i := range 2000 {
			m[keys.Box(boxID(1)).TrafficFlow(fmt.Sprintf("%d-%d", round, i))] = delivery("/", 200, 1, time.Now())
		}
		m[keys.Box(boxID(1)).TrafficFlow(strings.Repeat("x", longestKey+1))] = delivery("/", 200, 1, time.Now())
		b.Deliveries(boxID(1), m, nil, nil)
		b.idle()
	}
	same(t, "deliveries", b.totals().Deliveries, 24_000)
	same(t, "keys", b.state.ZCard(t.Context(), b.keys.AccountSeen(boxID(1))).Val(), seenKeys)
	same(t, "refused", valueOf(b.metrics.refused[refusedKey]), 12)
}

// TestTheQueueIsBounded: who is turned away is counted, and one box does not take the room of all.
func TestTheQueueIsBounded(t *testing.T) {
	t.Parallel()
	b := newBook(t, open(t, state.Config{}, t.TempDir()))
	var list []wire.Delivery
	for i := range 2000 {
		list = append(list, delivery(path(i, "s"), 200, 1, time.Now()))
	}
	batch := deliveries(boxID(1), list...)
	for seq := 1; seq < 200; seq++ {
		b.Deliveries(boxID(1), batch, mark(1, seq), nil)
		b.Deliveries(boxID(2), batch, nil, nil)
	}
	if n := b.queue.numbers(); n > 2*3*2000+2*keyedLines {
		t.Errorf("two boxes have %d numbers waiting", n)
	}
	for n := range 200 {
		b.Deliveries(boxID(n), batch, mark(1, 1), nil)
	}
	if n := b.queue.numbers(); n > queueSize || n < queueSize*9/10 {
		t.Errorf("%d numbers wait", n)
	}
	if valueOf(b.metrics.dropped[dropFull]) < 100 {
		t.Error("what was turned away is not counted")
	}
	for !b.queue.empty() {
		b.queue.take(1)
	}
	same(t, "waiting", b.queue.numbers(), 0)
}

// TestHoursOfDeliveries: a delivery counts in its own hour, where that can be.
func TestHoursOfDeliveries(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, st *state.State) {
		b := newBook(t, st)
		now := time.Now()
		b.Deliveries(boxID(1), deliveries(boxID(1),
			delivery("/", 200, 1, now.Add(-30*time.Hour)),
			delivery("/", 200, 10, now.Add(-91*24*time.Hour)), // too old
			delivery("/", 200, 100, now.Add(time.Hour)),       // too new
			delivery("/", 200, 1000, now.Add(-89*24*time.Hour))), mark(1, 1), nil)
		b.idle()
		same(t, "today", b.totals().Bytes, 110)
		same(t, "the days before", b.traffic(Query{From: now.Add(-48 * time.Hour), To: now.Add(-24 * time.Hour)}).Totals.Bytes, 1)
		same(t, "all", b.traffic(Query{From: now.Add(-90*24*time.Hour + time.Hour), To: now}).Totals.Bytes, 1111)
		life := func(key string) time.Duration { return st.TTL(t.Context(), key).Val().Round(24 * time.Hour) }
		same(t, "today's life", life(b.keys.AccountDay(boxID(1), now.UTC().Format("20060102"))) >= 91*24*time.Hour, true)
		same(t, "old day's life", life(b.keys.AccountDay(boxID(1), now.Add(-89*24*time.Hour).UTC().Format("20060102"))) <= 3*24*time.Hour, true)
		same(t, "marks' life", life(b.keys.AccountMarks(boxID(1))), 92*24*time.Hour)

		for _, q := range []struct {
			from, to time.Duration
			want     string
		}{
			{-91 * 24 * time.Hour, 0, "accounts are kept for 90 days (entrance.accounts_keep), so from must not be before "},
			{0, -time.Hour * 2, "from must be before to"},
		} {
			_, err := b.Traffic(t.Context(), Query{By: ByBox, From: now.Add(q.from), To: now.Add(q.to)})
			if err == nil || !strings.Contains(err.Error(), q.want) {
				t.Errorf("%v", err)
			}
		}

		// The list of boxes forgets them.
		b.sweep(t.Context(), now.Add(92*24*time.Hour))
		same(t, "list", st.ZCard(t.Context(), b.keys.Accounts()).Val(), 1)
		b.sweep(t.Context(), now.Add(94*24*time.Hour))
		same(t, "list", st.ZCard(t.Context(), b.keys.Accounts()).Val(), 0)
	})
}

func TestRedirectsToUnknownBoxes(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, st *state.State) {
		b := newBook(t, st)
		b.known.Store(boxID(1), true)
		b.known.Store(boxID(2), true)
		b.Deliveries(boxID(2), deliveries(boxID(2), delivery("/", 200, 1, time.Now())), nil, nil)
		b.idle()
		counted := false
		b.Redirects(publisherID(1), mark(1, 1).Mark, []wire.Redirected{
			{Box: boxID(1), Count: 3, Bytes: 1},
			{Box: boxID(2), Count: 5, Bytes: 10},  // left, with accounts
			{Box: boxID(3), Count: 7, Bytes: 100}, // here
			{Box: "box-x", Count: 9, Bytes: 1000},
			{Box: boxID(3), Stream: "../x", Count: 9, Bytes: 1000},
			{Box: boxID(3), Count: -9, Bytes: 1000},
			{Box: boxID(3), Count: 9, Bytes: -1},
		}, func() { counted = true })
		b.idle()
		same(t, "counted", counted, true)
		same(t, "totals", b.totals(), Sums{Bytes: 1, Deliveries: 1, Redirects: 12, RedirectedBytes: 110})
		same(t, "unknown", valueOf(b.metrics.refused[refusedBox]), 3)
		same(t, "names", valueOf(b.metrics.refused[refusedName]), 2)
		same(t, "keys of the unknown", st.Exists(t.Context(), b.keys.AccountMarks(boxID(1))).Val(), 0)
		same(t, "list", st.ZCard(t.Context(), b.keys.Accounts()).Val(), 2)
	})
}

// TestAForeignKeyStopsNobodyElse: another program made a key of another type.
func TestAForeignKeyStopsNobodyElse(t *testing.T) {
	t.Parallel()
	b := newBook(t, open(t, state.Config{URL: redistest.Start(t)}, ""))
	b.state.Set(t.Context(), b.keys.AccountDay(boxID(1), time.Now().UTC().Format("20060102")), "x", 0)
	b.running()
	b.Deliveries(boxID(1), deliveries(boxID(1), delivery("/", 200, 1, time.Now())), mark(1, 1), func() { t.Error("it was counted") })
	b.send(boxID(2), mark(1, 1), delivery("/", 200, 1, time.Now()))
	b.send(boxID(2), mark(1, 2), delivery("/", 200, 1, time.Now()))
	same(t, "dropped", valueOf(b.metrics.dropped[dropError]), 1)
	same(t, "totals", b.traffic(Query{Box: boxID(2)}).Totals.Deliveries, 2)
	same(t, "no mark is left", b.state.Exists(t.Context(), b.keys.AccountMarks(boxID(1))).Val(), 0)
}

// TestCluster: each script touches keys of one slot alone.
func TestCluster(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	address := redistest.Start(t, "--cluster-enabled", "yes")
	node := open(t, state.Config{URL: address}, "")
	if err := node.ClusterAddSlotsRange(ctx, 0, 16383).Err(); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool { return node.Set(ctx, "a", 1, 0).Err() == nil })
	st := open(t, state.Config{URL: address, Cluster: true}, "")
	if _, ok := st.UniversalClient.(*redis.ClusterClient); !ok {
		t.Fatalf("the client is a %T", st.UniversalClient)
	}
	b := newBook(t, st)
	b.running()
	now := time.Now()
	for n := range 20 {
		b.Deliveries(boxID(n), deliveries(boxID(n), delivery("/", 200, 1, now)), nil, nil)
		b.send(boxID(n), mark(1, 1), delivery(path(1, "s"), 200, 1, now), delivery(path(1, "s"), 200, 1, now.Add(-48*time.Hour)))
		b.redirect(1, 1, n+1, wire.Redirected{Box: boxID(n), Count: 1, Bytes: 2}, wire.Redirected{Box: boxID(n + 1), Count: 1, Bytes: 2})
	}
	eventually(t, b.queue.empty)
	got := b.traffic(Query{From: now.Add(-72 * time.Hour), To: now})
	same(t, "totals", got.Totals, Sums{Bytes: 60, Deliveries: 60, Redirects: 40, RedirectedBytes: 80, LateBytes: 20})
	same(t, "rows", len(got.Rows), 21)
}

// FuzzFields: whatever a box says becomes a field that is read back as the same.
func FuzzFields(f *testing.F) {
	f.Add(path(1, "show"), "27/Sep/2017:03:20:10", "5", "200")
	f.Add("/"+string(publisherID(1))+"/live/", "", "-1", "x")
	f.Add("//|", "31/Feb/2026:25:61:61", "1e3", "-")
	f.Fuzz(func(t *testing.T, url, datetime, size, status string) {
		publisher, stream := placeOf(url)
		if publisher != "" {
			if _, err := id.ParsePublisherID(publisher); err != nil {
				t.Fatal(err)
			}
		}
		now := time.Unix(1_800_000_000, 0)
		at := hours{arrived: now, keep: 48 * time.Hour}
		c := cell{at.of(datetime), publisher, stream}
		if d := now.Sub(hourTime(c.hour)); d < -time.Hour || d > 49*time.Hour {
			t.Fatalf("hour %v", hourTime(c.hour))
		}
		sums, why := sumsOf(&wire.Delivery{URL: url, Size: wire.Text(size), Status: wire.Text(status)}, true)
		if why != "" {
			return
		}
		c.fields(&sums, func(field string, sum int64) {
			back, kind, ok := parseField(dayOf(c.hour), field)
			if !ok || back != c || new(Sums).of(kind) == nil || sum < 1 {
				t.Fatalf("%q is read as %+v %q %v", field, back, kind, ok)
			}
		})
	})
}
