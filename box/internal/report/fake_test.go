package report

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"dandelion/box/internal/segstore"
	"dandelion/pkg/id"
	"dandelion/pkg/wire"
)

var boxID = id.BoxIDOf([]byte("box"))

// entrance is a small one: it takes EXCHANGE and answers what the test wants.
type entrance struct {
	t   *testing.T
	id  id.EntranceID
	url string
	srv *httptest.Server

	exchanges chan wire.Exchange // those that were taken; the newest are dropped when it is full
	raw       chan []byte
	goodbyes  chan wire.Goodbye
	closes    chan int // close codes of sessions

	mu       sync.Mutex
	down     bool
	silent   bool // takes reports and answers nothing
	answer   func(*wire.ExchangeReply)
	verbatim []byte // instead of a reply

	counts func(wire.Exchange) bool // whether a batch is acknowledged; nil: none is

	afterReply func() // called after each reply; may block
	open       map[*websocket.Conn]string
	most       int // sessions at once
	dials      int
}

func newEntrance(t *testing.T, name string, start func(http.Handler) *httptest.Server) *entrance {
	t.Helper()
	e := &entrance{
		t: t, id: id.EntranceIDOf([]byte(name)), open: make(map[*websocket.Conn]string),
		exchanges: make(chan wire.Exchange, 100), raw: make(chan []byte, 100), goodbyes: make(chan wire.Goodbye, 10), closes: make(chan int, 100),
	}
	if start == nil {
		start = httptest.NewServer
	}
	e.srv = start(http.HandlerFunc(e.serve))
	e.url = e.srv.URL
	t.Cleanup(func() { e.set(func() { e.down = true }); e.cut(); e.srv.Close() })
	return e
}

func (e *entrance) set(f func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	f()
}

// cut ends all sessions without a word.
func (e *entrance) cut() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for ws := range e.open {
		ws.Close()
	}
}

func (e *entrance) serve(w http.ResponseWriter, r *http.Request) {
	e.mu.Lock()
	down := e.down
	e.dials++
	e.mu.Unlock()
	if down || r.URL.Path != wire.EntranceWSPath {
		http.Error(w, "down", http.StatusServiceUnavailable)
		return
	}
	ws, err := (&websocket.Upgrader{}).Upgrade(w, r, nil)
	if err != nil {
		return
	}
	defer ws.Close()
	e.set(func() { e.open[ws] = r.Host; e.most = max(e.most, len(e.open)) })
	defer e.set(func() { delete(e.open, ws) })
	for {
		_, raw, err := ws.ReadMessage()
		var closed *websocket.CloseError
		if errors.As(err, &closed) {
			select {
			case e.closes <- closed.Code:
			default:
			}
		}
		if err != nil {
			return
		}
		if err := e.take(ws, raw); err != nil {
			return
		}
		e.mu.Lock()
		after := e.afterReply
		e.mu.Unlock()
		if after != nil {
			after()
		}
	}
}

func (e *entrance) take(ws *websocket.Conn, raw []byte) error {
	envelope, err := wire.DecodeEnvelope(raw)
	if err != nil {
		e.t.Errorf("the box sends %s: %v", raw, err)
		return err
	}
	if envelope.Command == wire.CommandGoodbye {
		g, _ := wire.Decode[wire.Goodbye](raw)
		e.goodbyes <- g
		return nil
	}
	x, err := wire.DecodeExchange(raw)
	if err != nil {
		e.t.Errorf("the box sends %s: %v", raw, err)
		return err
	}
	select {
	case e.exchanges <- x:
	default:
	}
	select {
	case e.raw <- raw:
	default:
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.silent {
		return nil
	}
	if e.verbatim != nil {
		return ws.WriteMessage(websocket.TextMessage, e.verbatim)
	}
	reply := wire.ExchangeReply{
		Peer:    wire.Peer{ID: string(e.id), IP: "127.0.0.1", Port: "7070", Type: wire.TypeEntrance},
		Command: wire.CommandExchange, Message: wire.MessageAccepted, EntranceURLs: []string{e.url}, Features: wire.Ours(),
		Address: "127.0.0.1",
	}
	if e.answer != nil {
		e.answer(&reply)
	}
	if err := ws.WriteMessage(websocket.TextMessage, wire.Encode(reply)); err != nil || x.Traffic == nil || e.counts == nil || !e.counts(x) {
		return err
	}
	return ws.WriteMessage(websocket.TextMessage, wire.Encode(wire.Counted{Peer: reply.Peer, Command: wire.CommandCounted, Mark: x.Traffic.Mark}))
}

func (e *entrance) sessions() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.open)
}

func receive[T any](t *testing.T, ch <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(20 * time.Second):
		t.Fatalf("no %s within 20 s", what)
		panic("unreachable")
	}
}

// reporter is a running service with its log.
type reporter struct {
	*Service
	log  *lines
	stop func()
}

type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
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

func newService(t *testing.T, log *slog.Logger, change func(*Config)) *Service {
	cfg := Config{
		Box: boxID, Port: 7072, EdgePort: 7073, LocalPort: 7074, Interval: 50 * time.Millisecond, DataDir: t.TempDir(), Log: log,
		Usage: func() segstore.Usage {
			return segstore.Usage{
				Live: segstore.DirUsage{Used: 1, Limit: 10},
				Data: segstore.DirUsage{Used: 2, Limit: 20, DiskTotal: 1000, DiskFree: 500},
			}
		},
	}
	if change != nil {
		change(&cfg)
	}
	return New(cfg)
}

func run(t *testing.T, change func(*Config)) *reporter {
	t.Helper()
	r := &reporter{log: &lines{}}
	r.Service = newService(t, slog.New(slog.NewTextHandler(r.log, nil)), change)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := receive(t, done, "end of Run"); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(r.stop)
	return r
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	limit := time.After(20 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !f() {
		select {
		case <-limit:
			t.Fatalf("not within 20 s: %s", what)
		case <-tick.C:
		}
	}
}

// status returns what the service says of the one URL.
func (r *reporter) status(url string) Status {
	for _, s := range r.Entrances() {
		if strings.HasPrefix(s.URL, url) {
			return s
		}
	}
	return Status{}
}
