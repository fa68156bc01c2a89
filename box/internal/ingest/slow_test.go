package ingest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"dandelion/box/internal/segstore"
	"dandelion/pkg/wire"
)

// hasty are limits under which a slow peer is cut while a test waits.
func hasty(c *Config, _ *segstore.Config) {
	c.Limits = Limits{Header: 300 * time.Millisecond, Grace: 600 * time.Millisecond, MinRate: 64 << 10}
}

// endsWithin fails unless the box ends the connection within the limit, whatever is sent on it
// meanwhile every 20 ms.
func endsWithin(t *testing.T, conn net.Conn, limit time.Duration, send func() error) {
	t.Helper()
	began := time.Now()
	pace := time.NewTicker(20 * time.Millisecond)
	defer pace.Stop()
	ended := make(chan error, 1)
	go func() { _, err := io.Copy(io.Discard, conn); ended <- err }()
	for {
		select {
		case <-ended:
			return
		case <-pace.C:
			if time.Since(began) > limit {
				t.Fatalf("the box still holds the connection after %v", limit)
			}
			_ = send() // fails when the box has ended it, which the reading shows
		}
	}
}

// TestSlowPublishers: whoever lets a message trickle is cut in bounded time, wherever in a message
// it does it, and holds no room and no file afterwards.
func TestSlowPublishers(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		accepted bool
		begin    func(conn net.Conn) error
		trickle  func(conn net.Conn) error
	}{
		"first message byte by byte": {
			false,
			func(c net.Conn) error { _, err := c.Write(frameHead(websocket.TextMessage, 1<<19)); return err },
			func(c net.Conn) error { _, err := c.Write([]byte("x")); return err },
		},
		"nothing but pings first": {
			false,
			func(net.Conn) error { return nil },
			func(c net.Conn) error { _, err := c.Write(frame(true, websocket.PingMessage, nil)); return err },
		},
		"a file's headers byte by byte": {
			true,
			func(c net.Conn) error {
				_, err := c.Write(append(frameHead(websocket.BinaryMessage, 1<<20), masked("<Dandelion>")...))
				return err
			},
			func(c net.Conn) error { _, err := c.Write([]byte("x")); return err },
		},
		"a file byte by byte": {
			true,
			func(c net.Conn) error {
				head := header(pubA, "/slow", pattern(1<<20)).AppendTo(nil)
				_, err := c.Write(append(frameHead(websocket.BinaryMessage, int64(len(head)+1<<20)), masked(string(head))...))
				return err
			},
			func(c net.Conn) error { _, err := c.Write([]byte("x")); return err },
		},
		"a file of which nothing more comes, but pings": {
			true,
			func(c net.Conn) error {
				head := header(pubA, "/slow", pattern(1<<20)).AppendTo(nil)
				_, err := c.Write(frame(false, websocket.BinaryMessage, head))
				return err
			},
			func(c net.Conn) error { _, err := c.Write(frame(true, websocket.PingMessage, nil)); return err },
		},
		"a command byte by byte": {
			true,
			func(c net.Conn) error { _, err := c.Write(frameHead(websocket.TextMessage, 1<<19)); return err },
			func(c net.Conn) error { _, err := c.Write([]byte("x")); return err },
		},
		"a refused file byte by byte": {
			true,
			func(c net.Conn) error {
				h := header(pubB, "/not-mine", pattern(1<<20))
				head := h.AppendTo(nil)
				_, err := c.Write(append(frameHead(websocket.BinaryMessage, int64(len(head)+1<<20)), masked(string(head))...))
				return err
			},
			func(c net.Conn) error { _, err := c.Write([]byte("x")); return err },
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBox(t, hasty)
			var c *client
			if tt.accepted {
				c = b.publish(pubA, wire.FeatureAck)
			} else {
				c = b.dial()
			}
			conn := c.ws.NetConn()
			conn.SetReadDeadline(time.Time{})
			if err := tt.begin(conn); err != nil {
				t.Fatal(err)
			}
			endsWithin(t, conn, 30*time.Second, func() error { return tt.trickle(conn) })
			eventually(t, func() (any, error) {
				if used := b.store.Usage().Data; used.Incoming != 0 || len(b.service.Sessions()) != 0 {
					return nil, errors.New("the box still holds room or a session for it")
				}
				return nil, nil
			})
			if files := b.visible(); len(files) != 0 {
				t.Errorf("left on disk: %v", files)
			}
		})
	}
}

// masked is what a payload is on the wire behind frameHead.
func masked(s string) []byte { return []byte(s) }

// frameHead begins a final frame of n bytes, with a mask of zeros.
func frameHead(opcode byte, n int64) []byte {
	b := []byte{0x80 | opcode, 0x80 | 127}
	b = binary.BigEndian.AppendUint64(b, uint64(n))
	return append(b, 0, 0, 0, 0)
}

// TestPatience: idle publishers stay, and one that is slow, but fast enough on the whole, too.
func TestPatience(t *testing.T) {
	t.Parallel()
	b := newBox(t, hasty)
	idle, slow := b.publish(pubB, wire.FeatureAck), b.publish(pubA, wire.FeatureAck)
	content := pattern(192 << 10)
	h := header(pubA, "/steady", content)
	w, err := slow.ws.NextWriter(websocket.BinaryMessage)
	if err != nil {
		t.Fatal(err)
	}
	w.Write(h.AppendTo(nil))
	pace := time.NewTicker(100 * time.Millisecond)
	defer pace.Stop()
	began := time.Now()
	for rest := content; len(rest) > 0; {
		n := min(len(rest), 12<<10) // 120 KB/s, in all 1.6 s
		if _, err := w.Write(rest[:n]); err != nil {
			t.Fatal(err)
		}
		rest = rest[n:]
		<-pace.C
	}
	if time.Since(began) < time.Second {
		t.Error("too fast to prove anything")
	}
	w.Close()
	var stored wire.Stored
	if slow.readInto(&stored); stored.Command != wire.CommandStored {
		t.Errorf("%+v", stored)
	}
	idle.sync(pubB)
}

// TestTooSlow: the rule itself.
func TestTooSlow(t *testing.T) {
	t.Parallel()
	limits := DefaultLimits()
	for _, tt := range []struct {
		content bool
		elapsed time.Duration
		n       int64
		want    bool
	}{
		{false, limits.Header - 1, 0, false},
		{false, limits.Header, 1 << 20, true},
		{true, limits.Grace, 0, false},
		{true, limits.Grace + 10*time.Second, 10*limits.MinRate - 1, true},
		{true, limits.Grace + 10*time.Second, 10 * limits.MinRate, false},
	} {
		p := pace{limits: &limits}
		p.n.Store(tt.n)
		p.content.Store(tt.content)
		if got := p.tooSlow(tt.elapsed); got != tt.want {
			t.Errorf("%+v: %v", tt, got)
		}
	}
}

// TestUnaccepted: connections that send no PUBLISH cannot keep publishers out: the one that waits
// longest gives its place away.
func TestUnaccepted(t *testing.T) {
	t.Parallel()
	b := newBox(t, func(c *Config, _ *segstore.Config) { c.Limits = Limits{Unaccepted: 2, Header: time.Minute} })
	b.publish(pubA) // does not count any more
	var silent []*client
	for range 2 { // one after the other: the handshake is over before the connection counts as one that waits
		silent = append(silent, b.dial())
		eventually(t, func() (any, error) {
			b.service.mu.Lock()
			defer b.service.mu.Unlock()
			if n := len(b.service.sessions) - 1; n < len(silent) {
				return nil, fmt.Errorf("%d connections wait", n)
			}
			return nil, nil
		})
	}
	url := "ws" + strings.TrimPrefix(b.url, "http")
	if _, _, err := websocket.DefaultDialer.Dial(url, nil); !errors.Is(err, websocket.ErrBadHandshake) {
		t.Errorf("a third one within the first second: %v", err)
	}
	b.service.mu.Lock()
	for ses := range b.service.sessions {
		ses.since = ses.since.Add(-2 * patience)
	}
	b.service.mu.Unlock()
	c := b.publish(pubB)
	if _, _, err := silent[0].ws.ReadMessage(); err == nil {
		t.Error("who waited longest is still there")
	}
	c.sync(pubB)
	silent[1].text(wire.Publish{})
	if reply := silent[1].read(); reply["ERROR"] == nil {
		t.Errorf("the other: %v", reply)
	}
}

// TestDrainRefusesTheRest: a file that does not arrive within the drain is refused, not dropped.
func TestDrainRefusesTheRest(t *testing.T) {
	t.Parallel()
	b := newBox(t, nil)
	c, old := b.publish(pubA, wire.FeatureAck), b.publish(pubB)
	for who, h := range map[*client][]byte{
		c:   header(pubA, "/x", pattern(1<<20)).AppendTo(nil),
		old: []byte(`<Dandelion>{"FILE_PATH": "/x", "TTL": 60}</Dandelion>`),
	} {
		w, err := who.ws.NextWriter(websocket.BinaryMessage)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(append(h, pattern(300_000)...)); err != nil { // more than a frame
			t.Fatal(err)
		}
	}
	eventually(t, func() (any, error) {
		if b.store.Usage().Data.Incoming < 1<<20+1 {
			return nil, errors.New("nothing comes in")
		}
		return nil, nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	drained := make(chan struct{})
	go func() { b.service.Drain(ctx, "the test"); close(drained) }()
	var goodbye wire.Goodbye
	if c.readInto(&goodbye); goodbye.Command != wire.CommandGoodbye {
		t.Errorf("%+v", goodbye)
	}
	var refused wire.Refused
	if c.readInto(&refused); refused.Kind != wire.KindDraining || !strings.HasPrefix(refused.RequestID, "r-") {
		t.Errorf("%+v", refused)
	}
	c.wantClosed(websocket.CloseNormalClosure)
	old.wantClosed(websocket.CloseNormalClosure) // nothing that it does not know
	<-drained
	if b.content(pubA, "/x") != nil || b.content(pubB, "/x") != nil {
		t.Error("a part is served")
	}
}
