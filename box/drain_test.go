package box

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"dandelion/pkg/id"
	"dandelion/pkg/state"
	"dandelion/pkg/wire"
)

// TestDrain: a download under way comes to its end, the entrance and the publisher are told.
func TestDrain(t *testing.T) {
	t.Parallel()
	e := newEntrance(t)
	cfg := testConfig(t)
	cfg.Entrances = []string{e.url}
	b := start(t, cfg, state.Config{})
	<-e.reports
	conn := b.publisher(wire.BoxWSPath(b.ID()))
	content := bytes.Repeat([]byte("0123456789"), 2_000_000) // more than sockets hold
	push(t, conn, "/film", time.Hour, content)
	resp, err := http.Get(b.base + "/" + string(pub) + "/film")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	part := make([]byte, 1000)
	if _, err := io.ReadFull(resp.Body, part); err != nil {
		t.Fatal(err)
	}
	stopped := make(chan struct{})
	go func() { b.stop(); close(stopped) }()
	if g := <-e.goodbyes; g.ID != string(b.ID()) || g.Reason != leaveReason {
		t.Errorf("%+v", g)
	}
	if g := read[wire.Goodbye](t, conn); g.Command != wire.CommandGoodbye || g.Reason != leaveReason {
		t.Errorf("%+v", g)
	}
	rest, err := io.ReadAll(resp.Body)
	if err != nil || !bytes.Equal(append(part, rest...), content) {
		t.Errorf("the download under way: %d bytes, %v", len(rest), err)
	}
	conn.Abort()
	<-stopped
}

// entrance is a small one that records what boxes say and dials back.
type entrance struct {
	t        *testing.T
	url      string
	reports  chan wire.Exchange
	goodbyes chan wire.Goodbye
	probed   chan string
	counts   func(wire.Exchange) bool // whether a batch is acknowledged; false: the connection is cut instead
}

func newEntrance(t *testing.T) *entrance {
	e := &entrance{t: t, reports: make(chan wire.Exchange, 100), goodbyes: make(chan wire.Goodbye, 10), probed: make(chan string, 10)}
	e.counts = func(wire.Exchange) bool { return true }
	srv := httptest.NewServer(http.HandlerFunc(e.serve))
	t.Cleanup(srv.Close)
	e.url = srv.URL
	return e
}

const nonce = "a nonce of the test"

func (e *entrance) serve(w http.ResponseWriter, r *http.Request) {
	ws, err := (&websocket.Upgrader{}).Upgrade(w, r, nil)
	if err != nil {
		return
	}
	defer ws.Close()
	for first := true; ; {
		_, raw, err := ws.ReadMessage()
		if err != nil {
			return
		}
		if envelope, _ := wire.DecodeEnvelope(raw); envelope.Command == wire.CommandGoodbye {
			g, _ := wire.Decode[wire.Goodbye](raw)
			e.goodbyes <- g
			continue
		}
		x, err := wire.DecodeExchange(raw)
		if err != nil {
			e.t.Errorf("%s: %v", raw, err)
			return
		}
		e.reports <- x
		_ = ws.WriteMessage(websocket.TextMessage, wire.Encode(wire.ExchangeReply{
			Peer:    wire.Peer{ID: string(id.EntranceIDOf([]byte("e"))), IP: "127.0.0.1", Port: "7070", Type: wire.TypeEntrance},
			Command: wire.CommandExchange, Message: wire.MessageAccepted, EntranceURLs: []string{}, Features: wire.Ours(),
			Address: "127.0.0.1", Nonce: nonce, Reachable: wire.ReachableYes,
		}))
		if x.Traffic != nil {
			if !e.counts(x) {
				return
			}
			_ = ws.WriteMessage(websocket.TextMessage, wire.Encode(wire.Counted{
				Peer: wire.Peer{ID: string(id.EntranceIDOf([]byte("e"))), Type: wire.TypeEntrance}, Command: wire.CommandCounted, Mark: x.Traffic.Mark,
			}))
		}
		if first {
			first = false
			go e.probe(x)
		}
	}
}

// probe fetches the nonce at the box's public URL, with the address that the box is seen at.
func (e *entrance) probe(x wire.Exchange) {
	sum := sha256.Sum256([]byte(nonce))
	url := strings.Replace(x.EdgeBase(), "0.0.0.0", "127.0.0.1", 1) + wire.NoncePath(id.BoxID(x.ID), hex.EncodeToString(sum[:8]))
	resp, err := http.Get(url)
	if err != nil {
		e.probed <- err.Error()
		return
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	e.probed <- fmt.Sprint(resp.StatusCode, " ", string(body))
}

// TestDialBack: the nonce is found at the URL that the report names, with one port or two.
func TestDialBack(t *testing.T) {
	t.Parallel()
	for _, edgeListen := range []string{"", "127.0.0.1:0"} {
		e := newEntrance(t)
		cfg := testConfig(t)
		cfg.EdgeListen, cfg.Entrances = edgeListen, []string{e.url}
		b := start(t, cfg, state.Config{})
		if got := <-e.probed; got != "200 "+nonce {
			t.Errorf("edge_listen %q: %s", edgeListen, got)
		}
		eventually(t, func() error {
			_, body := b.get("/api/v1/box")
			if !strings.Contains(body, "answers from outside") {
				return errors.New(body)
			}
			return nil
		})
		if status, body := b.get("/debug/ready"); status != 200 {
			t.Errorf("ready: %d %s", status, body)
		}
		b.stop()
	}
}
