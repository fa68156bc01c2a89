package report

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"go.uber.org/goleak"

	"dandelion/pkg/id"
	"dandelion/pkg/netaddr"
	"dandelion/pkg/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type recorder struct {
	mu       sync.Mutex
	reported map[string]string
	answered map[id.EntranceID]map[string]string
}

func (r *recorder) Reported(flat map[string]string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reported = flat
}

func (r *recorder) Answered(e id.EntranceID, flat map[string]string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.answered == nil {
		r.answered = make(map[id.EntranceID]map[string]string)
	}
	r.answered[e] = flat
}

func TestReports(t *testing.T) {
	t.Parallel()
	e := newEntrance(t, "e", nil)
	records := &recorder{}
	place := wire.GeoIP{IP: "203.0.113.7", Country: "TW", Loc: "25.0,121.5"}
	r := run(t, func(c *Config) {
		c.Entrances = []string{e.url}
		c.Host = "203.0.113.7"
		c.Records = records
		c.Locate = func(a netip.Addr) (wire.GeoIP, bool) { return place, a == netip.MustParseAddr("203.0.113.7") }
	})
	x := receive(t, e.exchanges, "report")
	if x.ID != string(boxID) || x.IP != "203.0.113.7" || x.Port != "7072" || x.Type != wire.TypeBox || !x.Features.Has(wire.FeatureAck) ||
		x.ConnectWS != "http://203.0.113.7:7072/dandelion/"+string(boxID)+"/ws/" || x.EdgeURL != "http://203.0.113.7:7073" || x.GeoIP != place {
		t.Errorf("%+v", x)
	}
	for range 3 {
		x = receive(t, e.exchanges, "report")
	}
	if e.sessions() != 1 {
		t.Errorf("%d sessions", e.sessions())
	}
	s := x.System
	if s.StorageUsed != 3 || s.StorageLimit != 30 || s.StorageTotal != 1000 || s.StorageFree != 500 {
		t.Errorf("storage: %+v", s)
	}
	if s.MemTotal < 10 || s.MemAvailable <= 0 || s.MemAvailable > s.MemTotal || s.DiskTotal <= 0 || s.DiskAvailable > s.DiskTotal || s.CPUCount < 1 {
		t.Errorf("system: %+v", s)
	}
	// The old fields are all there, as strings (docs/protocol.md).
	var sent map[string]any
	if err := json.Unmarshal(receive(t, e.raw, "report"), &sent); err != nil {
		t.Fatal(err)
	}
	for _, name := range strings.Fields("CPU-HZ CPU-NUM CPU-USR CPU-SYS CPU-NIC CPU-IDLE CPU-IO CPU-IRQ CPU-SIRQ LOADAVG-1 LOADAVG-5 LOADAVG-15 MEM-TOTAL MEM-AVAIL DISK-TOTAL DISK-AVAIL") {
		if _, ok := sent[name].(string); !ok {
			t.Errorf("%s is %v", name, sent[name])
		}
	}
	st := r.status(e.url)
	if !st.Connected || st.Entrance != e.id || !st.Configured || st.LastReply.IsZero() {
		t.Errorf("%+v", st)
	}
	records.mu.Lock()
	defer records.mu.Unlock()
	if records.reported["EDGE_URL"] == "" || records.answered[e.id]["URL"] != st.URL {
		t.Errorf("recorded %v, %v", records.reported, records.answered)
	}
}

// TestUnsaidHost: without a public_address the box says "the address that you see".
func TestUnsaidHost(t *testing.T) {
	t.Parallel()
	e := newEntrance(t, "e", nil)
	run(t, func(c *Config) { c.Entrances = []string{e.url} })
	x := receive(t, e.exchanges, "report")
	if x.IP != "0.0.0.0" || x.EdgeURL != "http://0.0.0.0:7073" || !strings.HasPrefix(x.ConnectWS, "http://0.0.0.0:7072/") {
		t.Errorf("%+v", x)
	}
}

func TestDownThenUp(t *testing.T) {
	t.Parallel()
	e := newEntrance(t, "e", nil)
	e.set(func() { e.down = true })
	r := run(t, func(c *Config) { c.Entrances = []string{e.url} })
	eventually(t, "the failure is told", func() bool { return strings.Contains(r.status(e.url).Sentence, "503") })
	e.set(func() { e.down = false })
	receive(t, e.exchanges, "report after it came up")
	eventually(t, "connected", func() bool { return r.status(e.url).Connected })

	e.set(func() { e.down = true })
	e.cut()
	eventually(t, "lost", func() bool { return !r.status(e.url).Connected })
	e.set(func() { e.down = false; e.exchanges = make(chan wire.Exchange, 10) })
	eventually(t, "connected again", func() bool { return r.status(e.url).Connected })
	if n := r.log.count("no session with an entrance"); n > 4 {
		t.Errorf("%d lines about one entrance that was down twice", n)
	}
}

// TestEntrancesAreIndependent: one that says nothing, one that is not there and one that sends
// garbage do not delay the reports to the fourth.
func TestEntrancesAreIndependent(t *testing.T) {
	t.Parallel()
	good, mute, bad := newEntrance(t, "good", nil), newEntrance(t, "mute", nil), newEntrance(t, "bad", nil)
	mute.set(func() { mute.silent = true })
	bad.set(func() { bad.verbatim = []byte(`{"COMMAND": "EXCHANGE", "ID": "entrance-../../x"}`) })
	closed := httptest.NewServer(nil)
	closed.Close()
	r := run(t, func(c *Config) { c.Entrances = []string{mute.url, closed.URL, bad.url, good.url} })
	for range 10 {
		receive(t, good.exchanges, "report")
	}
	eventually(t, "the mute one is given up", func() bool { return strings.Contains(r.status(mute.url).Sentence, "got no reply") })
	eventually(t, "the bad one is given up", func() bool { return strings.Contains(r.status(bad.url).Sentence, "is not an ID") })
	eventually(t, "the closed one is told", func() bool { return strings.Contains(r.status(closed.URL).Sentence, "refused") })
	if !r.status(good.url).Connected {
		t.Error("the good one is lost")
	}
}

func TestBadReplies(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct{ reply, want string }{
		"ERROR":        {`{"ID":"x","ERROR":"your ID is\nalready taken"}`, "the entrance refuses our report: your ID is already taken"},
		"not JSON":     {`hello`, "is no message"},
		"not ACCEPTED": {`{"ID":"` + string(id.EntranceIDOf(nil)) + `","COMMAND":"EXCHANGE"}`, "neither ACCEPTED nor ERROR"},
		"URLs no list": {`{"ID":"` + string(id.EntranceIDOf(nil)) + `","COMMAND":"EXCHANGE","ENTRANCE_URLS":7}`, "the entrance's reply"},
		"too long":     {`{"ID":"` + strings.Repeat("x", wire.MaxMessage) + `"}`, "too long"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := newEntrance(t, "e", nil)
			e.set(func() { e.verbatim = []byte(tt.reply) })
			r := run(t, func(c *Config) { c.Entrances = []string{e.url} })
			eventually(t, tt.want, func() bool { return strings.Contains(r.status(e.url).Sentence, tt.want) })
		})
	}
}

// TestLearnedEntrances: URLs in replies become sessions, also those that come later, and stay when
// the entrance that named them is gone.
func TestLearnedEntrances(t *testing.T) {
	t.Parallel()
	a, b, late := newEntrance(t, "a", nil), newEntrance(t, "b", nil), newEntrance(t, "late", nil)
	a.set(func() {
		a.answer = func(r *wire.ExchangeReply) { r.EntranceURLs = []string{a.url, b.url, "ftp://x/", "junk"} }
	})
	r := run(t, func(c *Config) { c.Entrances = []string{a.url} })
	receive(t, b.exchanges, "report to the learned one")
	a.set(func() { a.answer = func(r *wire.ExchangeReply) { r.EntranceURLs = []string{late.url} } })
	receive(t, late.exchanges, "report to one that was named at run time")
	a.set(func() { a.down = true })
	a.cut()
	eventually(t, "the first one is lost", func() bool { return !r.status(a.url).Connected })
	eventually(t, "the learned ones stay", func() bool { return r.status(b.url).Connected && r.status(late.url).Connected })
	if r.status(b.url).Configured || len(r.Entrances()) != 3 {
		t.Errorf("%+v", r.Entrances())
	}
}

// TestLearnScope: an entrance names no address that is narrower than its own, and not too many.
func TestLearnScope(t *testing.T) {
	t.Parallel()
	s := newService(t, slog.New(slog.DiscardHandler), nil)
	var started []string
	s.start = func(l *link) { started = append(started, fmt.Sprint(l.url, " ", l.least)) }
	from := &link{s: s, url: "http://198.51.100.1/dandelion/ws/"}
	urls := []string{
		"http://127.0.0.1:7070", "http://[::1]:7070", "http://10.0.0.1", "http://169.254.169.254/latest/", "http://[::ffff:127.0.0.1]:7070",
		"http://0.0.0.0:7070", "http://192.0.2.9:7070/dandelion/ws/", "http://192.0.2.9:7070", "https://entrance.example",
	}
	s.learn(from, urls, netaddr.Public)
	want := []string{"http://192.0.2.9:7070/dandelion/ws/ public", "https://entrance.example/dandelion/ws/ public"}
	if !slices.Equal(started, want) {
		t.Errorf("%q\nwant %q", started, want)
	}
	started = nil
	for i := range 3 * maxLinks {
		s.learn(from, []string{fmt.Sprintf("http://192.0.2.9:%d", 8000+i)}, netaddr.Public)
	}
	if len(s.links) != maxLinks {
		t.Errorf("%d links", len(s.links))
	}
}

// TestTwoNames: two URLs of one entrance make one session, and the other takes over.
func TestTwoNames(t *testing.T) {
	t.Parallel()
	e := newEntrance(t, "e", nil)
	byName := strings.Replace(e.url, "127.0.0.1", "localhost", 1)
	r := run(t, func(c *Config) { c.Entrances = []string{e.url, byName}; c.Interval = time.Hour })
	one := func() bool {
		a, b := r.status(e.url), r.status(byName)
		return a.Connected != b.Connected && strings.Contains(a.Sentence+b.Sentence, "one session is enough") && e.sessions() == 1
	}
	eventually(t, "one session stays", one)
	receive(t, e.exchanges, "first report")
	receive(t, e.exchanges, "report of the other session")
	// The session that stays reports once more, lest the entrance takes the close for the end.
	receive(t, e.exchanges, "report after the close")

	kept := e.url
	if r.status(byName).Connected {
		kept = byName
	}
	since := r.status(kept).Since
	e.cut()
	eventually(t, "one session stays after a break", func() bool { return one() && !r.status(e.url).Since.Equal(since) })
}

func TestConfiguredBeforeLearned(t *testing.T) {
	t.Parallel()
	e := newEntrance(t, "e", nil)
	byName := strings.Replace(e.url, "127.0.0.1", "localhost", 1)
	e.set(func() { e.answer = func(r *wire.ExchangeReply) { r.EntranceURLs = []string{byName} } })
	r := run(t, func(c *Config) { c.Entrances = []string{e.url} })
	eventually(t, "the learned one gives way", func() bool {
		return r.status(e.url).Connected && strings.Contains(r.status(byName).Sentence, "one session is enough")
	})
}

func TestDrain(t *testing.T) {
	t.Parallel()
	e, mute := newEntrance(t, "e", nil), newEntrance(t, "mute", nil)
	mute.set(func() { mute.down = true })
	r := run(t, func(c *Config) { c.Entrances = []string{e.url, mute.url} })
	eventually(t, "connected", func() bool { return r.status(e.url).Connected })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	r.Drain(ctx, "moving house")
	if ctx.Err() != nil {
		t.Error("the drain took all its time")
	}
	g := receive(t, e.goodbyes, "goodbye")
	if g.ID != string(boxID) || g.Reason != "moving house" || g.Seconds < 5 || g.Seconds > 10 {
		t.Errorf("%+v", g)
	}
	if code := receive(t, e.closes, "close"); code != websocket.CloseNormalClosure {
		t.Errorf("close %d", code)
	}
	dials := func() int { e.mu.Lock(); defer e.mu.Unlock(); return e.dials }
	before := dials()
	r.stop()
	if dials() != before {
		t.Error("it dials while it leaves")
	}
}

// TestDrainBesideAHungEntrance: an entrance that reads no more does not delay the goodbye to others,
// and the drain does not wait for it beyond the second that a close is given.
func TestDrainBesideAHungEntrance(t *testing.T) {
	t.Parallel()
	good, hung := newEntrance(t, "good", nil), newEntrance(t, "hung", nil)
	release := make(chan struct{})
	t.Cleanup(sync.OnceFunc(func() { close(release) }))
	hung.set(func() {
		hung.afterReply = func() { <-release }
	})
	r := run(t, func(c *Config) { c.Entrances, c.Interval = []string{hung.url, good.url}, time.Hour })
	eventually(t, "connected", func() bool { return r.status(good.url).Connected && r.status(hung.url).Connected })
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	begin := time.Now()
	drained := make(chan struct{})
	go func() {
		r.Drain(ctx, "moving house")
		close(drained)
	}()
	receive(t, good.goodbyes, "goodbye")
	t.Logf("the goodbye came after %v", time.Since(begin))
	receive(t, drained, "end of the drain")
	if took := time.Since(begin); took > 30*time.Second {
		t.Errorf("the drain took %v", took)
	}
}

// TestEntranceSaysGoodbye: an entrance that restarts is dialled again.
func TestEntranceSaysGoodbye(t *testing.T) {
	t.Parallel()
	e := newEntrance(t, "e", nil)
	r := run(t, func(c *Config) { c.Entrances = []string{e.url} })
	eventually(t, "connected", func() bool { return r.status(e.url).Connected })
	since := r.status(e.url).Since
	e.set(func() {
		for ws := range e.open {
			_ = ws.WriteMessage(websocket.TextMessage, wire.Encode(wire.Goodbye{
				Peer: wire.Peer{ID: string(e.id), IP: "x", Type: wire.TypeEntrance}, Command: wire.CommandGoodbye, Reason: "restart",
			}))
			_ = ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Now().Add(time.Second))
		}
	})
	eventually(t, "connected again", func() bool { st := r.status(e.url); return st.Connected && st.Since.After(since) })
	if r.log.count("says goodbye") != 1 {
		t.Error("the goodbye is not in the log")
	}
}

// TestOldEntrance: one that names no features gets a connection for each exchange.
func TestOldEntrance(t *testing.T) {
	t.Parallel()
	e := newEntrance(t, "e", nil)
	e.set(func() { e.answer = func(r *wire.ExchangeReply) { r.Features, r.Address = nil, "" } })
	// Long enough for a reply to come before the next report is due, also on a busy machine.
	run(t, func(c *Config) { c.Entrances, c.Interval = []string{e.url}, 500*time.Millisecond })
	var x wire.Exchange
	for range 4 {
		x = receive(t, e.exchanges, "report")
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.dials < 4 || e.most > 2 {
		t.Errorf("%d dials for 4 reports, %d at once", e.dials, e.most)
	}
	if x.IP != "127.0.0.1" {
		t.Errorf("IP %s: an old entrance does not know what 0.0.0.0 means", x.IP)
	}
}

func TestInsecureTLS(t *testing.T) {
	t.Parallel()
	quiet := func(h http.Handler) *httptest.Server {
		srv := httptest.NewUnstartedServer(h)
		srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
		srv.StartTLS()
		return srv
	}
	e := newEntrance(t, "e", quiet)
	strict := run(t, func(c *Config) { c.Entrances = []string{e.url} })
	eventually(t, "the certificate is refused", func() bool { return strings.Contains(strict.status(e.url).Sentence, "certificate") })
	if len(e.exchanges) != 0 {
		t.Error("a report went to an entrance that could be anybody")
	}
	named := run(t, func(c *Config) { c.Entrances = []string{e.url}; c.Insecure = []string{e.url + "/"} })
	eventually(t, "connected", func() bool { return named.status(e.url).Connected })
}

func TestTame(t *testing.T) {
	t.Parallel()
	if got := tame("a\nb\x1b[31m\xff" + strings.Repeat("ü", 500)); strings.ContainsAny(got, "\n\x1b") || len(got) > 310 || !strings.HasPrefix(got, "a b") {
		t.Errorf("%q", got)
	}
}

// TestForget: a learned entrance that does not answer and that nobody names any more is let go.
func TestForget(t *testing.T) {
	t.Parallel()
	long := time.Now().Add(-forgetAfter - time.Second)
	for name, tt := range map[string]struct {
		learned, named bool
		began, lost    time.Time
		want           bool
	}{
		"configured":       {began: long},
		"new":              {learned: true, began: time.Now()},
		"named":            {learned: true, named: true, began: long},
		"seen lately":      {learned: true, began: long, lost: time.Now()},
		"never seen":       {learned: true, began: long, want: true},
		"seen long ago":    {learned: true, began: long, lost: long, want: true},
		"configured, lost": {began: long, lost: long},
	} {
		s := newService(t, slog.New(slog.DiscardHandler), nil)
		l := &link{s: s, url: "u", learned: tt.learned, lost: tt.lost}
		s.links["u"] = l
		if tt.named {
			s.links["other"] = &link{s: s, url: "other", connected: true, names: []string{"u"}}
		}
		if _, forget := l.ended(net.ErrClosed, tt.began); forget != tt.want || (s.links["u"] == nil) != tt.want {
			t.Errorf("%s: forget %v", name, forget)
		}
	}
}
