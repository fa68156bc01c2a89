package traffic

import (
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"dandelion/pkg/id"
	"dandelion/pkg/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	boxID   = id.BoxIDOf([]byte("box"))
	pub     = string(id.PublisherIDOf([]byte("publisher")))
	segment = "/" + pub + "/live/demo/720p/0123456789ab/seg-1.ts"
	noon    = time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
)

// open opens a journal; nothing is written but by Flush.
func open(t testing.TB, dir string, change func(*Config)) *Service {
	t.Helper()
	cfg := Config{Box: boxID, Dir: dir, Log: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&cfg)
	}
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func flush(t testing.TB, s *Service) {
	t.Helper()
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
}

func sums(list map[string]wire.Delivery) (total loss) {
	for _, d := range list {
		size, _ := strconv.ParseInt(string(d.Size), 10, 64)
		total.count += max(1, d.Count)
		total.bytes += size
	}
	return total
}

// take acknowledges all batches and returns what was in them.
func take(t testing.TB, f *Feed) (total loss, batches int) {
	t.Helper()
	for {
		b, ok := f.Next()
		if !ok {
			return total, batches
		}
		if n := len(wire.Encode(&wire.Exchange{Deliveries: b.Deliveries, Traffic: &b.Traffic})); n > wire.MaxExchange-16<<10 {
			t.Errorf("an EXCHANGE of %d bytes", n)
		}
		got := sums(b.Deliveries)
		total.count, total.bytes = total.count+got.count, total.bytes+got.bytes
		batches++
		f.Counted(b.Traffic.Mark)
	}
}

func TestDelivery(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), nil)
	f := s.Feed("e")
	for _, d := range []Delivery{
		{noon, segment, 200, 1000, netip.MustParseAddr("203.0.113.77")},
		{noon, segment, 206, 10, netip.MustParseAddr("2001:db8:1:2::3")},
		{noon, "/" + pub + "/x\x01\"é?q=/", 404, 12, netip.MustParseAddr("::ffff:10.1.2.3")},
		{noon, segment, 200, 7, netip.Addr{}},
	} {
		s.Record(d)
	}
	for _, url := range []string{"/", "", "/favicon.ico", "/publisher-x/y", "/" + pub, "/dandelion/" + pub + "/"} {
		s.Record(Delivery{noon, url, 404, 10, netip.Addr{}})
	}
	if _, ok := f.Next(); ok {
		t.Error("something is sent that is not in the journal")
	}
	flush(t, s)
	b, ok := f.Next()
	if !ok || len(b.Deliveries) != 4 || b.Traffic.Seq != 1 || b.Traffic.Check() != nil {
		t.Fatalf("%+v", b)
	}
	const at = "29/Nov/2026:12:00:00"
	for i, want := range []wire.Delivery{
		{URL: segment, Status: "200", Size: "1000", Datetime: at, Network: "203.0.113.0/24"},
		{URL: segment, Status: "206", Size: "10", Datetime: at, Network: "2001:db8:1::/48"},
		{URL: "/" + pub + "/x%01%22%C3%A9", Status: "404", Size: "12", Datetime: at, Network: "10.1.2.0/24"},
		{URL: segment, Status: "200", Size: "7", Datetime: at},
	} {
		key := fmt.Sprintf("%s:TRAFFIC_FLOW:log-%s%08x%08x", boxID, b.Traffic.Boot, 1, i)
		if got := b.Deliveries[key]; got != want {
			t.Errorf("%s: %+v, want %+v", key, got, want)
		}
	}
	if st := s.State(); st.Deliveries != 4 || st.Bytes != 1029 || st.Unwritten != 0 || st.WaitingBatches != 1 || st.Waiting != 4 || s.ignored != 6 {
		t.Errorf("%+v, %d ignored", st, s.ignored)
	}
}

// TestInOrderOneAtATime: the next batch goes when the one before is acknowledged; another mark is none.
func TestInOrderOneAtATime(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir, nil)
	f, g := s.Feed("f"), s.Feed("g")
	for i := range 3 { // g takes each at once, so that there are three
		s.Record(Delivery{noon, segment, 200, int64(i + 1), netip.Addr{}})
		flush(t, s)
		if got, n := take(t, g); n != 1 || got.bytes != int64(i+1) {
			t.Errorf("%d batches, %+v", n, got)
		}
	}
	for seq := int64(1); seq <= 3; seq++ {
		b, ok := f.Next()
		if !ok || b.Traffic.Seq != seq {
			t.Fatalf("batch %d: %+v", seq, b.Traffic)
		}
		if _, ok := f.Next(); ok {
			t.Error("a second one at once")
		}
		wrong := b.Traffic.Mark
		wrong.Seq++
		if f.Counted(wrong) || f.Waiting() != int(4-seq) {
			t.Error("a mark that is not on its way counts")
		}
		f.Broken() // the session ends: it goes again, the same
		again, ok := f.Next()
		if !ok || again.Traffic != b.Traffic || !maps.Equal(again.Deliveries, b.Deliveries) {
			t.Errorf("%+v became %+v", b, again)
		}
		if more := f.Counted(b.Traffic.Mark); more != (seq < 3) {
			t.Errorf("batch %d: more is %v", seq, more)
		}
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("%d files are left", len(left))
	}
}

// TestAggregation: whatever comes in one second, the sums stay exact and the room bounded.
func TestAggregation(t *testing.T) {
	t.Parallel()
	for seed := range uint64(15) {
		r := rand.New(rand.NewPCG(seed, 1))
		pick := func(most int) int { return r.IntN(1 + r.IntN(most)) }
		var publishers []string
		for i := range 1 + pick(300) {
			publishers = append(publishers, string(id.PublisherIDOf(fmt.Append(nil, i))))
		}
		streams, names, networks, hours := 1+pick(2000), 1+pick(100_000), 1+pick(100_000), 1+pick(100)
		table := newTable()
		var all loss
		of := make(map[string]int64) // bytes by publisher
		hour := make(map[int64]int64)
		for range pick(20_000) {
			publisher := publishers[r.IntN(len(publishers))]
			url := fmt.Sprintf("/%s/live/s%d/720p/0123456789ab/seg-%d.ts", publisher, r.IntN(streams), r.IntN(names))
			switch r.IntN(10) {
			case 0:
				url = fmt.Sprintf("/%s/%s", publisher, strings.Repeat("long/", r.IntN(300)))
			case 1:
				url = fmt.Sprintf("/%s/\x00%d\xff", publisher, r.IntN(names))
			}
			e := entry{
				Time: noon.Unix() + int64(r.IntN(hours))*3600, URL: url, Status: []int{200, 206, 404, 999, 0}[r.IntN(5)], Bytes: r.Int64N(1 << 40), Count: 1,
				Network: networkOf(netip.AddrFrom4([4]byte{10, byte(r.IntN(networks) >> 8), byte(r.IntN(networks)), 0})),
			}
			if !table.add(e) {
				t.Fatalf("%s is not taken", e.URL)
			}
			all.count, all.bytes = all.count+1, all.bytes+e.Bytes
			of[publisher] += e.Bytes
			hour[e.Time/3600] += e.Bytes
		}
		if r.IntN(2) == 0 { // a write that failed
			earlier := table
			table = newTable()
			table.absorb(earlier)
		}
		var got loss
		cost, whole := 0, true
		for _, e := range table.entries() {
			if !e.valid() {
				t.Fatalf("seed %d: %+v", seed, e)
			}
			got.count, got.bytes = got.count+e.Count, got.bytes+e.Bytes
			cost += e.cost()
			if e.URL == "/" {
				whole = false
			} else {
				of[strings.Trim(publisherOf(e.URL), "/")] -= e.Bytes
				hour[e.Time/3600] -= e.Bytes
			}
		}
		if got != all || table.count != all.count || table.bytes != all.bytes || cost != table.cost || cost > maxTable {
			t.Errorf("seed %d: %+v, want %+v; cost %d, %d", seed, got, all, cost, table.cost)
		}
		for _, left := range []int64{slices.Max(append(slices.Collect(maps.Values(of)), 0)), slices.Max(append(slices.Collect(maps.Values(hour)), 0))} {
			if whole && left != 0 {
				t.Errorf("seed %d: a sum is short of %d bytes", seed, left)
			}
		}
		if len(table.single) > maxSingle {
			t.Errorf("seed %d: %d by themselves", seed, len(table.single))
		}
	}
}

func TestNetwork(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"203.0.113.9": "203.0.113.0/24", "0.0.0.1": "0.0.0.0/24", "::ffff:10.1.2.3": "10.1.2.0/24", "2001:db8:1:2::3": "2001:db8:1::/48", "::1": "::/48",
		"fe80::1%eth0": "fe80::/48", "": "",
	} {
		a, _ := netip.ParseAddr(in)
		n := networkOf(a)
		var back network
		if err := back.UnmarshalText([]byte(n.String())); n.String() != want || err != nil || back != n {
			t.Errorf("%s: %s, want %s; %v, %v", in, n, want, back, err)
		}
	}
	for _, bad := range []string{"x", "203.0.113.9/24", "203.0.113.0/25", "203.0.113.0", "2001:db8::/32", "::ffff:10.1.2.0/24", "::ffff:10.1.2.0/120"} {
		var n network
		if err := n.UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("%s is taken for %s", bad, n)
		}
	}
}

func TestSumURLs(t *testing.T) {
	t.Parallel()
	p := "/" + pub + "/"
	for url, want := range map[string]string{
		segment: p + "live/demo/720p/", p + "live/demo/720p/": p + "live/demo/720p/", p: p,
		p + "live/demo": p, p + "live/demo/720p": p, p + "live//720p/x": p, p + "live/-/720p/x": p, p + "film.mp4": p, p + "livex/a/b/c": p,
	} {
		if got := renditionOf(url); got != want {
			t.Errorf("%s: %s, want %s", url, got, want)
		}
	}
}

// TestLargest: the largest batch fits into an EXCHANGE beside the box's other fields.
func TestLargest(t *testing.T) {
	t.Parallel()
	e := entry{
		Time: lastSecond, URL: "/" + pub + "/", Status: 999, Bytes: 1<<60 - 1, Count: 1<<60 - 1, Network: networkOf(netip.MustParseAddr("2001:db8:ffff::")),
	}
	with := wire.Encode(&wire.Exchange{Deliveries: map[string]wire.Delivery{
		string(boxID) + ":TRAFFIC_FLOW:log-" + LogID(wire.Mark{Boot: "0123456789abcdef", Seq: 1 << 30}, 1000): e.delivery(),
	}})
	without := wire.Encode(&wire.Exchange{})
	if got := len(with) - len(without); got > e.cost() {
		t.Errorf("an entry takes %d bytes, not %d", got, e.cost())
	}
	s := open(t, t.TempDir(), nil)
	f := s.Feed("e")
	var want loss
	for i := range 40_000 {
		s.Record(Delivery{noon, fmt.Sprintf("/%s/live/%d/%d/&%s%d", pub, i%500, i%7, strings.Repeat("'", i%600), i), 200, 1 << 30, netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 1})})
		want.count, want.bytes = want.count+1, want.bytes+1<<30
		if i%2000 == 0 {
			flush(t, s)
		}
	}
	flush(t, s)
	if got, n := take(t, f); got != want || n < 5 {
		t.Errorf("%d batches, %+v, want %+v", n, got, want)
	}
}

// TestCutAnywhere: a journal whose last file ends anywhere is what was written whole, and its position
// covers just that; whoever opens it again finds the same.
func TestCutAnywhere(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir, nil)
	ends := map[int64]int{0: 0}
	name := ""
	for i := range 3 {
		for j := range i + 1 {
			s.RecordAll([]Delivery{{noon, fmt.Sprint(segment, j), 200, 1, netip.Addr{}}}, "")
		}
		s.RecordAll(nil, fmt.Sprint("position ", i+1))
		flush(t, s)
		ends[s.journal.last().size] = i + 1
		name = s.journal.last().name()
	}
	content, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	lines := 0
	for cut := range int64(len(content) + 1) {
		if n, ok := ends[cut]; ok {
			lines = n
		}
		_, whole := ends[cut]
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, name), content[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		var first Batch
		for life := range 2 {
			s := open(t, dir, nil)
			wantPosition := ""
			if lines > 0 {
				wantPosition = fmt.Sprint("position ", lines)
			}
			st := s.State()
			torn := !whole && (life == 0 || lines > 0) // else its file went
			if s.Position() != wantPosition || st.Waiting != int64(lines*(lines+1)/2) || (s.journal.torn == 1) != torn {
				t.Fatalf("cut at %d, life %d: position %q, %+v, %d torn", cut, life, s.Position(), st, s.journal.torn)
			}
			b, ok := s.Feed("e").Next()
			if ok != (lines > 0) {
				t.Fatalf("cut at %d: a batch: %v", cut, ok)
			}
			if life == 1 && (b.Traffic != first.Traffic || !maps.Equal(b.Deliveries, first.Deliveries)) {
				t.Fatalf("cut at %d: %+v became %+v", cut, first, b)
			}
			first = b
			s.Close()
		}
	}
}

// TestLives: batches of earlier lives go first and as they were, and names sort by age where the clock
// does not.
func TestLives(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for i, now := range []time.Time{noon, noon.Add(-time.Hour), time.Unix(3, 0), noon} {
		s := open(t, dir, nil)
		j, err := openJournal(dir, false, now)
		if err != nil {
			t.Fatal(err)
		}
		s.journal = j
		s.Feed("e")
		s.Record(Delivery{noon, segment, 200, int64(i + 1), netip.Addr{}})
		flush(t, s)
		s.Close()
	}
	s := open(t, dir, func(c *Config) { c.Sync = true })
	f := s.Feed("e")
	s.Record(Delivery{noon, segment, 200, 5, netip.Addr{}})
	flush(t, s)
	for i := range 5 {
		b, ok := f.Next()
		if got := sums(b.Deliveries); !ok || got.bytes != int64(i+1) || b.Traffic.Seq != 1 || (b.Traffic.Boot == s.journal.boot) != (i == 4) {
			t.Fatalf("batch %d: %+v", i, b)
		}
		f.Counted(b.Traffic.Mark)
	}
}

// TestPosition: it is that of the last line, also when its deliveries are acknowledged and their files gone.
func TestPosition(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := []Delivery{{noon, segment, 200, 5, netip.Addr{}}}
	for i := range 6 {
		s := open(t, dir, nil)
		if want := fmt.Sprint(i); i > 0 && s.Position() != want {
			t.Errorf("position %q, want %q", s.Position(), want)
		}
		f := s.Feed("e")
		s.RecordAll(d, "lost")
		s.RecordAll(d, fmt.Sprint(i+1))
		flush(t, s)
		if s.Position() != fmt.Sprint(i+1) {
			t.Errorf("position %q, want %d", s.Position(), i+1)
		}
		s.RecordAll(nil, "passes over nothing")
		flush(t, s)
		if i%3 != 0 {
			if got, _ := take(t, f); got.count == 0 {
				t.Error("nothing to acknowledge")
			}
			if left, _ := os.ReadDir(dir); len(left) != 1 || !strings.HasSuffix(left[0].Name(), doneSuffix) {
				t.Errorf("left: %v", left)
			}
		}
		if i%2 == 0 {
			s.Close()
		} // else killed
	}
	s := open(t, dir, nil)
	f := s.Feed("e")
	take(t, f)
	s.Record(d[0]) // without a position, as after a change of the settings
	flush(t, s)
	take(t, f)
	s.Close()
	if s := open(t, dir, nil); s.Position() != "6" || s.State().WaitingBatches != 0 {
		t.Errorf("position %q, %+v", s.Position(), s.State())
	}
}

// TestOddURLs: a viewer cannot keep a delivery out of the accounts by how it writes the publisher's path: web servers
// understand all of these.
func TestOddURLs(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), nil)
	f := s.Feed("e")
	odd := []string{"/" + segment, "/x/.." + segment, "/." + segment, "/%70" + segment[2:], "/" + segment + "?a=/b"}
	for _, url := range odd {
		s.Record(Delivery{noon, url, 200, 1, netip.Addr{}})
	}
	for _, url := range []string{"", "*", "/", "/%", "/%zz" + segment, "//", "/..", "/%2e%2e/x"} {
		s.Record(Delivery{noon, url, 404, 1, netip.Addr{}})
	}
	flush(t, s)
	b, _ := f.Next()
	for key, d := range b.Deliveries {
		if d.URL != segment {
			t.Errorf("%s: %s", key, d.URL)
		}
	}
	if got := sums(b.Deliveries); got.count != int64(len(odd)) {
		t.Errorf("%d deliveries, want %d", got.count, len(odd))
	}
}

// TestPositionAfterPowerFailure: until what has a position is on the disk, the one before is kept, also when its
// deliveries are acknowledged meanwhile.
func TestPositionAfterPowerFailure(t *testing.T) {
	t.Parallel()
	for _, late := range []bool{false, true} {
		dir := t.TempDir()
		s := open(t, dir, nil)
		f := s.Feed("e")
		d := []Delivery{{noon, segment, 200, 5, netip.Addr{}}}
		s.RecordAll(d, "1")
		flush(t, s)
		b, _ := f.Next()
		if !late {
			f.Counted(b.Traffic.Mark)
		}
		s.RecordAll(d, "2")
		flush(t, s)
		f.Counted(b.Traffic.Mark)
		files, err := filepath.Glob(filepath.Join(dir, "*-00000002"))
		if err != nil || len(files) != 1 || os.Truncate(files[0], 0) != nil {
			t.Fatalf("the open batch is not there: %v, %v", files, err)
		}
		again := open(t, dir, nil)
		if again.Position() != "1" || again.State().WaitingBatches != 0 {
			t.Errorf("acknowledged late %v: position %q, %+v", late, again.Position(), again.State())
		}
	}
}

// TestOneEntranceIsDead: the other has everything, once; for the dead one the oldest are dropped at the
// limit, to the byte.
func TestOneEntranceIsDead(t *testing.T) {
	t.Parallel()
	log := &lines{}
	s := open(t, t.TempDir(), func(c *Config) { c.MaxBytes, c.Log = 10*block, slog.New(slog.NewTextHandler(log, nil)) })
	live, dead := s.Feed("live"), s.Feed("dead")
	var all, got loss
	for i := range int64(100) {
		s.Record(Delivery{noon, segment, 200, i, netip.Addr{}})
		all.count, all.bytes = all.count+1, all.bytes+i
		flush(t, s)
		one, n := take(t, live)
		if n != 1 {
			t.Fatalf("%d batches", n)
		}
		got.count, got.bytes = got.count+one.count, got.bytes+one.bytes
	}
	st := s.State()
	if got != all || st.WaitingBatches != 10 || st.JournalBytes != 10*block || st.Dropped != 90 {
		t.Errorf("the live one has %+v of %+v; %+v", got, all, st)
	}
	b, _ := dead.Next()
	if b.Traffic.DroppedCount != 90 || b.Traffic.DroppedBytes != st.DroppedBytes {
		t.Errorf("the dead one is told %+v, %+v", b.Traffic, st)
	}
	dead.Broken()
	rest, _ := take(t, dead)
	if rest.count+st.Dropped != all.count || rest.bytes+st.DroppedBytes != all.bytes {
		t.Errorf("%+v and %+v are not %+v", rest, st, all)
	}
	s.Record(Delivery{noon, segment, 200, 1, netip.Addr{}})
	flush(t, s)
	if b, _ := live.Next(); b.Traffic.DroppedCount != 0 {
		t.Errorf("the live one is told %+v", b.Traffic)
	}
	if n := log.count("an entrance does not take accounts"); n != 1 {
		t.Errorf("%d lines for one episode", n)
	}
	if st := s.State(); st.WaitingBatches != 1 {
		t.Errorf("%+v", st)
	}
	live.Close()
	dead.Close()
	if st := s.State(); st.WaitingBatches != 0 {
		t.Errorf("nobody is there to wait for: %+v", st)
	}
}

// TestCannotBeWritten: what was recorded waits in memory, summed up, and goes when the disk takes it.
func TestCannotBeWritten(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "journal")
	log := &lines{}
	s := open(t, dir, func(c *Config) { c.Log = slog.New(slog.NewTextHandler(log, nil)) })
	if err := os.WriteFile(dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	f := s.Feed("e")
	for i := range 1000 {
		s.RecordAll([]Delivery{{noon, fmt.Sprint(segment, i), 200, 3, netip.Addr{}}}, fmt.Sprint(i))
		if i%100 == 0 && s.Flush() == nil {
			t.Error("it is written")
		}
	}
	if _, ok := f.Next(); ok || s.Position() != "" || s.State().Unwritten != 1000 || s.pending.cost > maxTable {
		t.Errorf("%q, %+v", s.Position(), s.State())
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	flush(t, s)
	if got, _ := take(t, f); got != (loss{1000, 3000}) || s.Position() != "999" {
		t.Errorf("%+v, %q", got, s.Position())
	}
	if log.count("cannot be written") != 1 || log.count("can be written again") != 1 {
		t.Error(log.buf.String())
	}
}

// TestFullInTheMiddle: a line that was written in part, and cannot be taken back, ends its batch.
func TestFullInTheMiddle(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir, nil)
	s.Feed("e")
	record := func() { s.Record(Delivery{noon, segment, 200, 1, netip.Addr{}}) }
	record()
	flush(t, s)
	first := s.journal.last()
	path := filepath.Join(dir, first.name())
	torn, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	torn.WriteString(`{"d":[{"t":17`)
	torn.Close()
	writable := s.journal.open
	if s.journal.open, err = os.Open(path); err != nil {
		t.Fatal(err)
	}
	record()
	if err := s.Flush(); err == nil {
		t.Fatal("it is written")
	}
	writable.Close()
	flush(t, s)
	if s.journal.last() == first {
		t.Error("the same batch goes on")
	}
	s.Close()
	s = open(t, dir, nil)
	if got, n := take(t, s.Feed("e")); got.count != 2 || n != 2 || s.journal.torn != 1 {
		t.Errorf("%+v in %d, %d torn", got, n, s.journal.torn)
	}
}

// TestDamaged: a batch that is not what it was is dropped and told, and the others go on.
func TestDamaged(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, spoil := range []func(string) error{
		os.Remove,
		func(name string) error { return os.Truncate(name, 10) },
		func(name string) error { return os.WriteFile(name, []byte(strings.Repeat("x", 500)), 0o600) },
	} {
		s := open(t, dir, nil)
		f, g := s.Feed("f"), s.Feed("g")
		for i := range 3 {
			s.Record(Delivery{noon, segment, 200, int64(i), netip.Addr{}})
			flush(t, s)
			take(t, g)
		}
		if err := spoil(filepath.Join(dir, s.journal.batches[1].name())); err != nil {
			t.Fatal(err)
		}
		got, n := take(t, f)
		if st := s.State(); got.count != 2 || n != 2 || st.Dropped != 1 || st.DroppedBytes != 1 || f.lost != (loss{1, 1}) || g.lost.count != 0 {
			t.Errorf("%+v in %d, %+v, %+v", got, n, st, f.lost)
		}
	}
}

// TestOthersFiles: what is not the journal's stays.
func TestOthersFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	names := []string{"notes", "0123456789abcdef-1", "0123456789ABCDEF-00000001", "0123456789abcdef-00000001.old", "0123456789abcdef-00000000"}
	for _, name := range names {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "0123456789abcdef-00000002"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "0123456789abcdef-00000003"), []byte("cut"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := open(t, dir, nil)
	left, _ := os.ReadDir(dir)
	if len(left) != len(names)+1 || s.State().WaitingBatches != 0 || s.journal.torn != 1 {
		t.Errorf("%v, %+v", left, s.State())
	}
}

// TestConcurrent: recording, writing and sending at once, nothing is lost or doubled.
func TestConcurrent(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir, nil)
	const recorders, each = 4, 5000
	var recording, rest sync.WaitGroup
	for i := range recorders {
		recording.Go(func() {
			for j := range each {
				s.Record(Delivery{noon, fmt.Sprint(segment, j%97), 200, 1, netip.AddrFrom4([4]byte{10, 0, byte(i), 1})})
			}
		})
	}
	done := make(chan struct{})
	rest.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				if err := s.Flush(); err != nil {
					t.Error(err)
				}
				s.State()
			}
		}
	})
	totals := make([]loss, 2)
	for i := range totals {
		f := s.Feed("e")
		rest.Go(func() {
			for running := true; running; {
				select {
				case <-done:
					running = false
					_ = s.Flush()
				default:
				}
				got, _ := take(t, f)
				totals[i].count, totals[i].bytes = totals[i].count+got.count, totals[i].bytes+got.bytes
			}
		})
	}
	recording.Wait()
	close(done)
	rest.Wait()
	for _, got := range totals {
		if got != (loss{recorders * each, recorders * each}) {
			t.Errorf("%+v", got)
		}
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("%d files are left", len(left))
	}
}

type lines struct {
	mu  sync.Mutex
	buf strings.Builder
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *lines) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.buf.String(), text)
}

// FuzzLines: whatever a file of the journal holds, what is taken of it is what this program could have
// written, and reads the same again.
func FuzzLines(f *testing.F) {
	whole, err := (&line{Entries: []entry{
		{Time: 1, URL: segment, Status: 200, Bytes: 5, Count: 1, Network: networkOf(netip.MustParseAddr("203.0.113.0"))},
		{Time: 1, URL: "/", Status: 400, Bytes: 5, Count: 9},
	}, Position: "p"}).encode()
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{string(whole), string(whole) + string(whole[:40]), "{}\n", "\n", "null\n", `{"p":"x"}` + "\n" + string(whole), `{"d":[{"t":-1}]}` + "\n"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		var again []byte
		n := 0
		whole := readLines(content, func(l line) bool {
			for i := range l.Entries {
				if e := &l.Entries[i]; !e.valid() || len(e.delivery().Datetime) != len(wire.DeliveryTime) {
					t.Fatalf("%+v", e)
				}
			}
			b, err := l.encode()
			if err != nil {
				t.Fatal(err)
			}
			again = append(again, b...)
			n++
			return true
		})
		if whole < 0 || whole > len(content) || whole > 0 && content[whole-1] != '\n' {
			t.Fatalf("%d of %d", whole, len(content))
		}
		if got := readLines(again, func(line) bool { n--; return true }); got != len(again) || n != 0 {
			t.Fatalf("%q is not read as %q", content, again)
		}
	})
}

// BenchmarkRecord: a delivery beside the least that any record would cost.
func BenchmarkRecord(b *testing.B) {
	viewer := netip.MustParseAddr("203.0.113.77")
	b.Run("below the rate", func(b *testing.B) {
		s := open(b, b.TempDir(), nil)
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			if i%maxSingle == 0 {
				s.pending = newTable() // as once a second
			}
			s.Record(Delivery{noon, segment, 200, 1000, viewer})
		}
	})
	b.Run("above the rate", func(b *testing.B) {
		s := open(b, b.TempDir(), nil)
		b.ReportAllocs()
		for b.Loop() {
			s.Record(Delivery{noon, segment, 200, 1000, viewer})
		}
	})
	b.Run("other paths each time", func(b *testing.B) {
		s := open(b, b.TempDir(), nil)
		var urls []string
		for i := range 100_000 {
			urls = append(urls, fmt.Sprintf("/%s/live/demo/720p/%012x/seg-%d.ts", pub, i, i))
		}
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			s.Record(Delivery{noon, urls[i%len(urls)], 200, 1000, viewer})
		}
	})
	b.Run("mutex and append", func(b *testing.B) {
		var mu sync.Mutex
		var list []Delivery
		b.ReportAllocs()
		for b.Loop() {
			mu.Lock()
			if len(list) == 4096 {
				list = list[:0]
			}
			list = append(list, Delivery{noon, segment, 200, 1000, viewer})
			mu.Unlock()
		}
	})
}

// BenchmarkRecordAll is a log that is read as fast as it can be, and written.
func BenchmarkRecordAll(b *testing.B) {
	s := open(b, b.TempDir(), func(c *Config) { c.MaxBytes = 1 << 20 })
	list := make([]Delivery, 1000)
	for i := range list {
		list[i] = Delivery{noon, fmt.Sprintf("/%s/live/demo/720p/%012x/seg-%d.ts", pub, i%40, i%40), 200, 1000, netip.AddrFrom4([4]byte{10, 0, byte(i), 1})}
	}
	b.ReportAllocs()
	i := 0
	for ; b.Loop(); i++ {
		s.RecordAll(list, strconv.Itoa(i))
		if i%100 == 0 {
			flush(b, s)
		}
	}
	b.ReportMetric(float64(i*len(list))/b.Elapsed().Seconds(), "lines/s")
}
