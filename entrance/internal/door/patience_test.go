package door

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"
	"github.com/prometheus/client_golang/prometheus"

	"dandelion/pkg/wire"
)

// piped admits a session over a pipe, so that it can live in a bubble with its clock. The peer
// reads, and so answers pings, until the session ends.
func piped(t *testing.T, d *Door) (*websocket.Conn, net.Conn) {
	t.Helper()
	ours, theirs := net.Pipe()
	go func() {
		r, err := http.ReadRequest(bufio.NewReader(theirs))
		if err != nil {
			t.Error(err)
			return
		}
		r.RemoteAddr = "203.0.113.5:1"
		d.ServeHTTP(&pipeHijacker{conn: theirs, header: make(http.Header)}, r)
	}()
	dialer := websocket.Dialer{NetDialContext: func(context.Context, string, string) (net.Conn, error) { return ours, nil }}
	ws, _, err := dialer.Dial("ws://entrance.example"+wire.EntranceWSPath, nil)
	if err != nil {
		t.Fatal(err)
	}
	// Pipes have no buffers: a pong written by the reader would wait for a peer that writes too.
	ws.SetPingHandler(func(data string) error {
		go ws.WriteControl(websocket.PongMessage, []byte(data), time.Time{})
		return nil
	})
	return ws, ours
}

type pipeHijacker struct {
	conn   net.Conn
	header http.Header
}

func (h *pipeHijacker) Header() http.Header         { return h.header }
func (h *pipeHijacker) Write(b []byte) (int, error) { return h.conn.Write(b) }
func (h *pipeHijacker) WriteHeader(int)             {}

func (h *pipeHijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return h.conn, bufio.NewReadWriter(bufio.NewReader(h.conn), bufio.NewWriter(h.conn)), nil
}

// TestPatience: peers that show signs of life and say nothing are cut off in time, and counted.
func TestPatience(t *testing.T) {
	t.Parallel()
	every := func(d time.Duration, f func() error) {
		for f() == nil {
			time.Sleep(d)
		}
	}
	for _, test := range []struct {
		name     string
		features bool
		live     func(ws *websocket.Conn, raw net.Conn) // what the peer does; returns when it fails
		reason   string
		from, to time.Duration // when the session ends
		why      string        // what OnEnd is told; "" where the session was nobody's yet
	}{
		{"silent from the beginning", false, func(*websocket.Conn, net.Conn) {}, "", 10 * time.Second, 11 * time.Second, ""},
		{"pings, and no first message", false, func(ws *websocket.Conn, _ net.Conn) {
			every(time.Second, func() error { return ws.WriteControl(websocket.PingMessage, nil, time.Time{}) })
		}, "no_message", 10 * time.Second, 10 * time.Second, ""},
		{"pongs, and no first message", false, func(ws *websocket.Conn, _ net.Conn) {
			every(time.Second, func() error { return ws.WriteControl(websocket.PongMessage, nil, time.Time{}) })
		}, "no_message", 10 * time.Second, 10 * time.Second, ""},
		{"a byte a second", false, func(_ *websocket.Conn, raw net.Conn) {
			trickle(raw, message("HELLO"), every)
		}, "slow", 30 * time.Second, 37 * time.Second, ""},
		{"a fragment a second", false, func(ws *websocket.Conn, raw net.Conn) {
			first := true
			every(time.Second, func() error {
				frame := []byte{0x00, 0x81, 0, 0, 0, 0, ' '} // a continuation of one byte
				if first {
					frame[0], first = 0x01, false
				}
				_, err := raw.Write(frame)
				return err
			})
		}, "slow", 30 * time.Second, 31 * time.Second, ""},
		{"nothing after the first message, but pongs", true, func(ws *websocket.Conn, _ net.Conn) {
			_ = ws.WriteMessage(websocket.TextMessage, message("HELLO"))
		}, "idle", 5 * time.Minute, 5 * time.Minute, "it sent nothing but signs of life"},
		{"a byte a second later", false, func(ws *websocket.Conn, raw net.Conn) {
			_ = ws.WriteMessage(websocket.TextMessage, message("HELLO"))
			time.Sleep(61 * time.Second) // between two pings: their pongs would be in the frame's head
			trickle(raw, message("HELLO"), every)
		}, "slow", 91 * time.Second, 98 * time.Second, "its message took too long"},
		{"a goodbye, and pings", true, func(ws *websocket.Conn, _ net.Conn) {
			_ = ws.WriteMessage(websocket.TextMessage, message("GOODBYE"))
			every(time.Second, func() error { return ws.WriteControl(websocket.PingMessage, nil, time.Time{}) })
		}, "idle", 30 * time.Second, 30 * time.Second, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				why := ""
				d := newDoor(func(cfg *Config) {
					cfg.Commands = map[string]Command{"HELLO": func(s *Session, _ []byte) error {
						var features wire.Features
						if test.features {
							features = wire.Ours()
						}
						s.Named(features)
						s.OnEnd = func(text string) { why = text }
						return s.Reply(map[string]string{})
					}}
				})
				begin := time.Now()
				ws, raw := piped(t, d)
				lived := make(chan struct{})
				go func() { test.live(ws, raw); close(lived) }()
				for {
					if _, _, err := ws.ReadMessage(); err != nil {
						break
					}
				}
				ended := time.Since(begin)
				ws.Close()
				<-lived
				synctest.Wait()
				if ended < test.from || ended > test.to {
					t.Errorf("cut off after %v, want %v to %v", ended, test.from, test.to)
				}
				if test.reason != "" && counted(t, d, test.reason) != 1 {
					t.Errorf("not counted as %s", test.reason)
				}
				if why != test.why || d.Sessions() != 0 {
					t.Errorf("OnEnd was told %q, want %q; %d sessions", why, test.why, d.Sessions())
				}
			})
		})
	}
}

// trickle writes one masked text frame, a byte a second.
func trickle(raw net.Conn, text []byte, every func(time.Duration, func() error)) {
	frame := bytes.NewReader(append([]byte{0x81, 0xfe, byte(len(text) >> 8), byte(len(text)), 0, 0, 0, 0}, text...))
	every(time.Second, func() error {
		b, err := frame.ReadByte()
		if err == nil {
			_, err = raw.Write([]byte{b})
		}
		return err
	})
}

// TestPatienceWithTheDiligent: a peer that reports is not cut off, however long it stays.
func TestPatienceWithTheDiligent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := newDoor(func(cfg *Config) {
			cfg.Commands = map[string]Command{"HELLO": func(s *Session, _ []byte) error {
				s.Named(wire.Ours())
				return s.Reply(map[string]string{})
			}}
		})
		ws, _ := piped(t, d)
		replies := make(chan error, 1)
		go func() {
			for {
				_, _, err := ws.ReadMessage()
				replies <- err
				if err != nil {
					return
				}
			}
		}()
		for range 100 { // as rarely as a box can be configured to
			if err := ws.WriteMessage(websocket.TextMessage, message("HELLO")); err != nil {
				t.Fatal(err)
			}
			if err := <-replies; err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
		}
		ws.Close()
		<-replies
	})
}

// TestLongMessages: so many are read at a time and no more, of one network a part of those, and
// their places are given back.
func TestLongMessages(t *testing.T) {
	t.Parallel()
	d := newDoor(func(cfg *Config) {
		cfg.Trusted = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}
		cfg.Commands = map[string]Command{"HELLO": func(s *Session, m []byte) error {
			return s.Reply(map[string]int{"LENGTH": len(m)})
		}}
	})
	base := serve(t, d)
	long := bytes.Replace(message("HELLO"), []byte(`{`), []byte(`{"X": "`+strings.Repeat("x", 2*shortMessage)+`", `), 1)
	var held []net.Conn
	half := func(addr string) {
		ws, _, err := websocket.DefaultDialer.Dial(base, http.Header{"X-Forwarded-For": {addr}})
		if err != nil {
			t.Fatal(err)
		}
		raw := ws.UnderlyingConn()
		_, _ = raw.Write(append([]byte{0x81, 0xfe, byte(len(long) >> 8), byte(len(long)), 0, 0, 0, 0}, long[:len(long)-1]...))
		held = append(held, raw)
	}
	taken := func(n int) {
		t.Helper()
		limit := time.After(10 * time.Second)
		for {
			d.long.mu.Lock()
			now := d.long.taken
			d.long.mu.Unlock()
			if now == n {
				return
			}
			select {
			case <-limit:
				t.Fatalf("%d long messages are read, want %d", now, n)
			case <-time.After(time.Millisecond):
			}
		}
	}
	ask := func(addr string, m []byte) string {
		ws, _, err := websocket.DefaultDialer.Dial(base, http.Header{"X-Forwarded-For": {addr}})
		if err != nil {
			t.Fatal(err)
		}
		defer ws.Close()
		_ = ws.SetReadDeadline(time.Now().Add(10 * time.Second))
		_ = ws.WriteMessage(websocket.TextMessage, m)
		_, reply, err := ws.ReadMessage()
		if err != nil {
			return err.Error()
		}
		return string(reply)
	}
	for i := range longMessagesOfNet {
		half(fmt.Sprintf("203.0.113.%d", i))
	}
	taken(longMessagesOfNet)
	if reply := ask("203.0.113.200", long); !strings.Contains(reply, "try again in a moment") {
		t.Errorf("one more of the same network: %.100s", reply)
	}
	if reply := ask("203.0.113.200", message("HELLO")); !strings.Contains(reply, "LENGTH") {
		t.Errorf("a short one of the same network: %.100s", reply)
	}
	if reply := ask("198.51.100.1", long); !strings.Contains(reply, fmt.Sprint(len(long))) {
		t.Errorf("another network: %.100s", reply)
	}
	if n := counted(t, d, refusedLong); n != 1 {
		t.Errorf("%v are counted", n)
	}
	for _, raw := range held {
		raw.Close()
	}
	taken(0)
	if len(d.long.networks) != 0 {
		t.Errorf("%v after the end", d.long.networks)
	}
}

// counted returns how often a reason was counted.
func counted(t *testing.T, d *Door, reason string) float64 {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(d.metrics.refused)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if m.GetLabel()[0].GetValue() == reason {
				return m.GetCounter().GetValue()
			}
		}
	}
	return 0
}
