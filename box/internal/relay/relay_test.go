package relay

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"

	"dandelion/box/internal/capacity"
	"dandelion/pkg/id"
	"dandelion/pkg/netaddr"
	"dandelion/pkg/uplink"
	"dandelion/pkg/wire"
	"dandelion/pkg/wsconn"
)

var (
	ownID = id.BoxIDOf([]byte("own"))
	pubA  = id.PublisherIDOf([]byte("a"))
	pubB  = id.PublisherIDOf([]byte("b"))
)

// patience bounds what a broken test waits for.
const patience = 50 * time.Second

func newService(t *testing.T, rate int64) *Service {
	t.Helper()
	s := New(Config{
		Own: func(netip.Addr) wire.Peer {
			return wire.Peer{ID: string(ownID), IP: "192.0.2.1", Port: "7072", Type: wire.TypeBox}
		},
		Uplink: uplink.New(rate), Log: slog.New(slog.DiscardHandler),
	})
	s.patience = patience
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { _ = s.Run(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	return s
}

func (s *Service) result(name string) float64 {
	var m dto.Metric
	_ = s.metrics.WithLabelValues(name).Write(&m)
	return m.GetCounter().GetValue()
}

// drained waits for the end of what is under way.
func (s *Service) drained(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	s.Drain(ctx)
	if ctx.Err() != nil {
		t.Fatal("files are still under way")
	}
}

// child is a box that files are passed on to.
type child struct {
	id  id.BoxID
	url string // of its websocket

	mu       sync.Mutex
	says     string // its ID, where it lies
	refusal  string // to PUBLISH
	answer   func(conn *wsconn.Conn, h wire.FileHeader)
	take     func(conn *wsconn.Conn, r io.Reader) bool // instead of reading; false: no more of the session
	opened   []wire.Publish
	ended    int
	received []received
	changed  chan struct{}
}

type received struct {
	session int
	header  wire.FileHeader
	content []byte
}

func newChild(t *testing.T, name string) *child {
	t.Helper()
	c := &child{id: id.BoxIDOf([]byte(name)), changed: make(chan struct{})}
	mux := http.NewServeMux()
	mux.HandleFunc(wire.BoxWSPath(c.id), c.serve)
	srv := httptest.NewUnstartedServer(mux)
	srv.Config.ConnState = func(conn net.Conn, state http.ConnState) {
		if name == "slow" && state == http.StateNew { // who reads nothing takes little
			_ = conn.(*net.TCPConn).SetReadBuffer(16 << 10)
		}
	}
	srv.Start()
	c.url = srv.URL + wire.BoxWSPath(c.id)
	t.Cleanup(srv.Close)
	return c
}

func (c *child) node(request string) wire.RelayNode {
	return wire.RelayNode{Box: c.id, ConnectWS: c.url, RequestID: request}
}

// change does something under the lock and tells who waits.
func (c *child) change(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
	close(c.changed)
	c.changed = make(chan struct{})
}

// await waits until the condition, which is called under the lock, holds.
func (c *child) await(t *testing.T, what string, condition func() bool) {
	t.Helper()
	timeout := time.After(patience)
	for {
		c.mu.Lock()
		holds, changed := condition(), c.changed
		c.mu.Unlock()
		if holds {
			return
		}
		select {
		case <-changed:
		case <-timeout:
			t.Fatalf("waited in vain for: %s", what)
		}
	}
}

func (c *child) serve(w http.ResponseWriter, r *http.Request) {
	conn, err := wsconn.Accept(w, r, netip.MustParseAddrPort(r.RemoteAddr).Addr())
	if err != nil {
		return
	}
	defer conn.Abort()
	defer c.change(func() { c.ended++ })
	raw, err := conn.ReadText(wire.MaxMessage)
	if err != nil {
		return
	}
	publish, err := wire.Decode[wire.Publish](raw)
	if err != nil {
		return
	}
	reply := wire.PublishReply{
		Peer:    wire.Peer{ID: string(c.id), IP: "192.0.2.2", Port: "7072", Type: wire.TypeBox},
		Command: wire.CommandPublish, Message: wire.MessageAccepted, Features: publish.Features,
	}
	number := 0
	c.change(func() {
		c.opened = append(c.opened, publish)
		number = len(c.opened)
		if c.says != "" {
			reply.ID = c.says
		}
		if c.refusal != "" {
			reply.Error, reply.Message = c.refusal, ""
		}
	})
	if conn.WriteText(wire.Encode(reply)) != nil {
		return
	}
	for {
		binary, r, err := conn.Next()
		if err != nil || !binary {
			return
		}
		c.mu.Lock()
		take, answer := c.take, c.answer
		c.mu.Unlock()
		if take != nil && !take(conn, r) {
			return
		}
		br := bufio.NewReader(r)
		h, err := wire.ReadFileHeader(br)
		if err != nil {
			return
		}
		content, err := io.ReadAll(br)
		if err != nil {
			return
		}
		if answer != nil {
			answer(conn, h)
		}
		c.change(func() { c.received = append(c.received, received{number, h, content}) })
	}
}

// file returns a file with its answers.
func file(pub id.PublisherID, name string, content []byte) (File, chan any) {
	answers := make(chan any, 16)
	return File{
		Header: wire.FileHeader{Path: id.Path("/" + name), TTL: time.Minute, Plays: time.Minute, Publisher: pub, Size: int64(len(content)), Digest: id.DigestOf(content)},
		Open:   func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil },
		Least:  netaddr.Loopback,
		Answer: func(a any) { answers <- a },
	}, answers
}

func next[T any](t *testing.T, answers chan any) (answer T) {
	t.Helper()
	select {
	case a := <-answers:
		answer, ok := a.(T)
		if !ok {
			t.Fatalf("the answer is %#v", a)
		}
		return answer
	case <-time.After(patience):
		t.Fatal("no answer")
	}
	return answer
}

// TestCopiesTellOfTheLine: what is passed on shows what the line carries, and of what is here one transfer now and
// then goes ahead of the limit. What is on its way here does not: it shows no more than how fast it comes.
func TestCopiesTellOfTheLine(t *testing.T) {
	t.Parallel()
	everywhere := func(netip.Addr, netip.Addr) bool { return true }
	s, c := newService(t, 0), newChild(t, "child")
	s.cfg.Line = capacity.New(capacity.Config{Tells: everywhere})
	rate, learned := s.cfg.Line.Capacity()
	for n := 0; !learned && n < 200; n++ { // a transfer that this machine interrupts may tell nothing
		f, _ := file(pubA, fmt.Sprint(n), make([]byte, 1<<20))
		f.Arriving = n%2 == 0
		s.Pass(f, []wire.RelayNode{c.node("x")})
		s.drained(t)
		rate, learned = s.cfg.Line.Capacity()
	}
	if !learned || rate <= capacity.Default {
		t.Errorf("%d bytes/s, %v: loopback is faster than that", rate, learned)
	}

	s.cfg.Line = capacity.New(capacity.Config{Tells: everywhere, Trials: true})
	s.cfg.Uplink.SetRate(1 << 16)
	var group sync.WaitGroup
	for _, arriving := range []bool{true, false} {
		group.Go(func() {
			f, answers := file(pubA, "y", make([]byte, 1<<20))
			f.Arriving, f.Header.Plays = arriving, 0
			s.Pass(f, []wire.RelayNode{c.node("y")})
			if arriving { // 16 s, longer than a transfer may take
				next[wire.Refused](t, answers)
			}
		})
	}
	group.Wait()
	s.drained(t)
	c.await(t, "the copy", func() bool {
		return slices.ContainsFunc(c.received, func(r received) bool { return r.header.Path == "/y" })
	})
}

// TestSessionsAreKept: files of two publishers go over one session, each with its own publisher and request;
// it is closed when nobody needs it, and opened again.
func TestSessionsAreKept(t *testing.T) {
	t.Parallel()
	s, c := newService(t, 0), newChild(t, "child")
	content := []byte("a segment")
	for i, pub := range []id.PublisherID{pubA, pubB, pubA} {
		f, _ := file(pub, "x.ts", content)
		s.Pass(f, []wire.RelayNode{c.node(string("abc"[i]))})
		s.drained(t)
	}
	c.await(t, "three files", func() bool { return len(c.received) == 3 })
	c.mu.Lock()
	if len(c.opened) != 1 || c.opened[0].ID != string(ownID) || c.opened[0].Type != wire.TypeBox {
		t.Errorf("sessions: %+v", c.opened)
	}
	for i, got := range c.received {
		want := []id.PublisherID{pubA, pubB, pubA}[i]
		if got.header.Publisher != want || got.header.RequestID != string("abc"[i]) || !bytes.Equal(got.content, content) || got.session != 1 {
			t.Errorf("file %d: %+v", i, got)
		}
	}
	c.mu.Unlock()
	if got := s.Sent(); got != int64(3*len(content)) {
		t.Errorf("%d bytes count", got)
	}

	s.closeIdle(time.Now().Add(-time.Minute))
	f, _ := file(pubA, "y.ts", content)
	s.Pass(f, []wire.RelayNode{c.node("d")})
	s.drained(t)
	c.await(t, "a fourth file, over the session that was not idle for long", func() bool { return len(c.received) == 4 && len(c.opened) == 1 })
	s.closeIdle(time.Now())
	c.await(t, "the end of an idle session", func() bool { return c.ended == 1 })
	s.mu.Lock()
	if len(s.peers) != 0 {
		t.Errorf("%d boxes are still known", len(s.peers))
	}
	s.mu.Unlock()
	s.Pass(f, []wire.RelayNode{c.node("e")})
	s.drained(t)
	c.await(t, "a fifth file, over a new session", func() bool { return len(c.received) == 5 && len(c.opened) == 2 })
}

// TestBoxInUseIsNotForgotten: else its session would be nobody's, and never closed.
func TestBoxInUseIsNotForgotten(t *testing.T) {
	t.Parallel()
	s, c := newService(t, 0), newChild(t, "child")
	p := s.peer(c.node("a"), pubA)
	s.closeIdle(time.Now())
	session, err := p.acquire(t.Context(), s, netaddr.Loopback)
	if err != nil {
		t.Fatal(err)
	}
	p.release(session, true)
	s.leave(p)
	s.closeIdle(time.Now())
	c.await(t, "the end of the idle session", func() bool { return c.ended == 1 })
}

// TestChildDies: in the middle of a file. The publisher hears of it, and the next file goes over a new session.
func TestChildDies(t *testing.T) {
	t.Parallel()
	s, c := newService(t, 0), newChild(t, "child")
	c.take = func(conn *wsconn.Conn, r io.Reader) bool {
		_, _ = io.ReadFull(r, make([]byte, 1000))
		conn.Abort()
		return false
	}
	f, answers := file(pubA, "x.ts", make([]byte, 16<<20)) // more than sockets hold
	s.Pass(f, []wire.RelayNode{c.node("a")})
	if got := next[wire.Refused](t, answers); got.Box != c.id || got.RequestID != "a" || got.Kind != wire.KindRelay || got.Error == "" {
		t.Errorf("%+v", got)
	}
	c.change(func() { c.take = nil })
	f, answers = file(pubA, "y.ts", []byte("the next"))
	s.Pass(f, []wire.RelayNode{c.node("b")})
	s.drained(t)
	c.await(t, "the next file", func() bool { return len(c.received) == 1 && len(c.opened) == 2 })
	if len(answers) > 0 || s.result("failed") != 1 || s.result("sent") != 1 {
		t.Errorf("failed %v, sent %v, answers %d", s.result("failed"), s.result("sent"), len(answers))
	}
}

// TestSlowChild: one that reads nothing holds up neither its siblings nor what follows, nor the end of the service.
func TestSlowChild(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	s := New(Config{Own: func(netip.Addr) wire.Peer {
		return wire.Peer{ID: string(ownID), IP: "192.0.2.1", Port: "7072", Type: wire.TypeBox}
	}, Uplink: uplink.New(0), Log: slog.New(slog.DiscardHandler)})
	s.patience = patience
	done := make(chan struct{})
	go func() { _ = s.Run(ctx); close(done) }()
	slow, well := newChild(t, "slow"), newChild(t, "well")
	slow.take = func(*wsconn.Conn, io.Reader) bool { <-ctx.Done(); return false }
	const files = perPeer + 1
	began := time.Now()
	answers := make(chan any, 2*files)
	for range files {
		f, _ := file(pubA, "x.ts", make([]byte, 2<<20))
		f.Answer = func(a any) { answers <- a }
		s.Pass(f, []wire.RelayNode{slow.node("s"), well.node("w")})
	}
	well.await(t, "all files at the other", func() bool {
		for len(answers) > 0 {
			got := next[wire.Refused](t, answers)
			if got.Box != slow.id {
				t.Errorf("%+v", got)
			}
		}
		return len(well.received) == files
	})
	n := 0
	slow.await(t, "sessions", func() bool { n = len(slow.opened); return n > 0 })
	if took := time.Since(began); n > perPeer && took < wire.SilenceLimit { // then they are given up, one by one
		t.Errorf("%d sessions with the slow one after %v", n, took)
	}
	cancel()
	<-done
	for len(answers) > 0 { // sockets may have taken some files whole
		if got := next[wire.Refused](t, answers); got.Box != slow.id {
			t.Errorf("%+v", got)
		}
	}
	if len(well.opened) > perPeer {
		t.Errorf("%d sessions with the other", len(well.opened))
	}
	f, after := file(pubA, "late.ts", []byte("x"))
	s.Pass(f, []wire.RelayNode{well.node("l")})
	if got := next[wire.Refused](t, after); got.Error != errEnded.Error() {
		t.Errorf("after the end: %+v", got)
	}
}

// TestTooManyTransfers: beyond the bound files are dropped, counted, and the publisher hears of it.
func TestTooManyTransfers(t *testing.T) {
	t.Parallel()
	s, c := newService(t, 0), newChild(t, "child")
	for range maxTransfers {
		s.transfers <- struct{}{}
	}
	closed := false
	f, answers := file(pubA, "x.ts", []byte("x"))
	f.Open = func() (io.ReadCloser, error) { return closer{strings.NewReader("x"), &closed}, nil }
	s.Pass(f, []wire.RelayNode{c.node("a")})
	if got := next[wire.Refused](t, answers); got.Error != errBusy.Error() || got.Box != c.id || got.Kind != wire.KindRelay {
		t.Errorf("%+v", got)
	}
	if s.result("busy") != 1 || !closed || len(c.opened) != 0 {
		t.Errorf("busy %v, closed %v, %d sessions", s.result("busy"), closed, len(c.opened))
	}
	for range maxTransfers {
		<-s.transfers
	}
}

type closer struct {
	io.Reader
	closed *bool
}

func (c closer) Close() error { *c.closed = true; return nil }

// TestOldBoxes: they get files as from their publishers, each over a session of its own, and what one ping shows to
// have arrived is acknowledged for them.
func TestOldBoxes(t *testing.T) {
	t.Parallel()
	s, c := newService(t, 0), newChild(t, "old")
	content := []byte("a segment")
	for i, pub := range []id.PublisherID{pubA, pubB, pubA} {
		f, answers := file(pub, "x.ts", content)
		n := c.node(string("abc"[i]))
		n.Old = true
		s.Pass(f, []wire.RelayNode{n})
		if got := next[wire.Stored](t, answers); got.Box != c.id || got.RequestID != n.RequestID || got.SHA256 != f.Header.Digest || got.FilePath != "/x.ts" {
			t.Errorf("%+v", got)
		}
		s.drained(t)
	}
	c.await(t, "three files", func() bool { return len(c.received) == 3 })
	if len(c.opened) != 2 {
		t.Fatalf("%d sessions", len(c.opened))
	}
	for i, pub := range []id.PublisherID{pubA, pubB} {
		if p := c.opened[i]; p.ID != string(pub) || p.Type != wire.TypePublisher || p.Port != "" || len(p.Features) > 0 {
			t.Errorf("session %d: %+v", i, p)
		}
	}
	for i, got := range c.received {
		if got.header.RequestID != "" || got.session != []int{1, 2, 1}[i] || !bytes.Equal(got.content, content) {
			t.Errorf("file %d: %+v", i, got)
		}
	}
}

// TestRefusalsOnTheSession: a box that the publisher has no session with refuses on the one that the file came on. Its
// publisher hears of it, by its request.
func TestRefusalsOnTheSession(t *testing.T) {
	t.Parallel()
	s, c := newService(t, 0), newChild(t, "child")
	c.answer = func(conn *wsconn.Conn, h wire.FileHeader) {
		for _, request := range []string{"another", h.RequestID} {
			_ = conn.WriteText(wire.Encode(wire.Refused{Peer: wire.Peer{ID: string(c.id)}, Command: wire.CommandRefused, RequestID: request, Kind: wire.KindDenied, Error: "no session"}))
		}
	}
	for _, request := range []string{"a", "b"} {
		f, answers := file(pubA, request, []byte("x"))
		s.Pass(f, []wire.RelayNode{c.node(request)})
		if got := next[wire.Refused](t, answers); got.Box != c.id || got.RequestID != request || got.Kind != wire.KindDenied || got.ID != "" {
			t.Errorf("%+v", got)
		}
		s.drained(t)
	}
}

// TestWhoIsNotDialled: addresses narrower than the publisher's, what is no box's websocket, another box than the
// one that is named, this box itself; and one that does not want it.
func TestWhoIsNotDialled(t *testing.T) {
	t.Parallel()
	s, c := newService(t, 0), newChild(t, "child")
	self := newChild(t, "own")
	base := strings.TrimSuffix(c.url, wire.BoxWSPath(c.id))
	for name, tt := range map[string]struct {
		node  wire.RelayNode
		least netaddr.Scope
		lie   string
		deny  string
		want  string
		dials int
	}{
		"loopback for a public publisher":  {node: c.node("r"), least: netaddr.Public, want: "loopback"},
		"loopback for a private publisher": {node: c.node("r"), least: netaddr.Private, want: "loopback"},
		"another path":                     {node: wire.RelayNode{Box: c.id, ConnectWS: base + "/admin", RequestID: "r"}, want: "not the websocket of that box"},
		"a query":                          {node: wire.RelayNode{Box: c.id, ConnectWS: c.url + "?a=b", RequestID: "r"}, want: "not the websocket of that box"},
		"another box's path":               {node: wire.RelayNode{Box: ownID, ConnectWS: c.url, RequestID: "r"}, want: "not the websocket of that box"},
		"another box answers":              {node: c.node("r"), lie: string(ownID), want: "another peer answers there", dials: 1},
		"itself":                           {node: self.node("r"), want: "this box itself"},
		"it refuses":                       {node: c.node("r"), deny: "not you", want: "not you", dials: 1},
	} {
		c.mu.Lock()
		c.says, c.refusal, c.opened = tt.lie, tt.deny, nil
		c.mu.Unlock()
		f, answers := file(pubA, "x.ts", []byte("x"))
		f.Least = max(tt.least, netaddr.Loopback)
		s.Pass(f, []wire.RelayNode{tt.node})
		got := next[wire.Refused](t, answers)
		if got.Kind != wire.KindRelay || got.Box != tt.node.Box || !strings.Contains(got.Error, tt.want) {
			t.Errorf("%s: %+v, want %s", name, got, tt.want)
		}
		s.drained(t)
		if len(c.opened) != tt.dials || len(c.received) > 0 || len(self.opened) > 0 {
			t.Errorf("%s: %d sessions, %d files", name, len(c.opened), len(c.received))
		}
	}
}

// TestLiveBeforeCopies: while both wait for the upload, what is on its way to viewers gets most of it.
func TestLiveBeforeCopies(t *testing.T) {
	t.Parallel()
	const size = 200_000
	s := newService(t, size)
	live, other := newChild(t, "live"), newChild(t, "other")
	var copied, whenLiveEnded atomic.Int64
	whenLiveEnded.Store(-1)
	content := make([]byte, size)
	for _, c := range []*child{live, other} { // so that none has to be opened later
		f, _ := file(pubA, "first.ts", nil)
		s.Pass(f, []wire.RelayNode{c.node("first")})
	}
	s.drained(t)
	var both sync.WaitGroup // they begin together
	both.Add(2)
	begin := func() { both.Done(); both.Wait() }
	older, _ := file(pubA, "older.ts", content)
	older.Open = func() (io.ReadCloser, error) {
		return io.NopCloser(io.MultiReader(probe(begin), counted{bytes.NewReader(content), &copied})), nil
	}
	newest, _ := file(pubA, "newest.ts", content)
	newest.Arriving = true
	newest.Open = func() (io.ReadCloser, error) {
		return io.NopCloser(io.MultiReader(probe(begin), bytes.NewReader(content[1:]), probe(func() {
			whenLiveEnded.CompareAndSwap(-1, copied.Load())
		}), bytes.NewReader(content[:1]))), nil
	}
	s.Pass(older, []wire.RelayNode{other.node("c")})
	s.Pass(newest, []wire.RelayNode{live.node("l")})
	s.drained(t)
	if got := whenLiveEnded.Load(); got < 0 || got > size*8/10 {
		t.Errorf("when the live file ended, %d of %d bytes of the copy had gone out", got, size)
	}
	for _, c := range []*child{live, other} {
		c.await(t, "the file", func() bool { return len(c.received) == 2 && slices.Equal(c.received[1].content, content) })
	}
}

// probe is a reader of nothing that calls a function.
type probe func()

func (p probe) Read([]byte) (int, error) { p(); return 0, io.EOF }
