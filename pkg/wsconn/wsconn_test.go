package wsconn

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"

	"dandelion/pkg/netaddr"
)

// serve starts a server whose handler gives each connection to f in a goroutine of its own.
func serve(t *testing.T, f func(*Conn)) string {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, err := Accept(w, r, netaddr.Addr(&net.TCPAddr{}))
		if err != nil {
			return
		}
		go func() {
			defer conn.Abort()
			f(conn)
		}()
	}))
	t.Cleanup(srv.Close)
	return srv.URL
}

func dial(t *testing.T, url string) *Conn {
	t.Helper()
	conn, err := Dial(t.Context(), url, Dialing{Files: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Abort)
	return conn
}

func TestFileArrivesWhole(t *testing.T) {
	t.Parallel()
	content := bytes.Repeat([]byte("0123456789"), 300_000)
	url := serve(t, func(c *Conn) {
		binary, r, err := c.Next()
		got, readErr := io.ReadAll(r)
		_ = c.WriteText(fmt.Appendf(nil, "%v %v %v %v", binary, bytes.Equal(got, append([]byte("head"), content...)), err, readErr))
		_, _, _ = c.Next()
	})
	conn := dial(t, url)
	if err := conn.WriteFile(t.Context(), []byte("head"), bytes.NewReader(content), int64(len(content))); err != nil {
		t.Fatal(err)
	}
	if reply, err := conn.ReadText(100); string(reply) != "true true <nil> <nil>" {
		t.Errorf("%s, %v", reply, err)
	}
}

// TestSlowReaderIsNotSilence: the time that a reader takes between two reads is not held against
// the peer, whose bytes may be there long since.
func TestSlowReaderIsNotSilence(t *testing.T) {
	t.Parallel()
	content := bytes.Repeat([]byte("0123456789"), 100_000)
	received := make(chan error, 1)
	url := serve(t, func(c *Conn) {
		_, r, err := c.Next()
		if err == nil {
			_, err = io.ReadFull(r, make([]byte, 10))
		}
		// As if a write to disk had taken longer than the silence limit.
		c.lastExtend = time.Time{}
		_ = c.ws.SetReadDeadline(time.Now().Add(-time.Second))
		if err == nil {
			_, err = io.Copy(io.Discard, r)
		}
		received <- err
	})
	if err := dial(t, url).WriteFile(t.Context(), nil, bytes.NewReader(content), int64(len(content))); err != nil {
		t.Fatal(err)
	}
	if err := <-received; err != nil {
		t.Error(err)
	}
}

// TestGivenUpFileIsNotFinished: a sender that gives up closes without the final frame, so that
// the receiver gets an error and not a short message.
func TestGivenUpFileIsNotFinished(t *testing.T) {
	t.Parallel()
	received := make(chan error, 1)
	url := serve(t, func(c *Conn) {
		_, r, err := c.Next()
		if err == nil {
			_, err = io.ReadAll(r)
		}
		received <- err
	})
	conn := dial(t, url)
	err := conn.WriteFile(t.Context(), []byte("head"), io.LimitReader(zeros{}, 700_000), 1_000_000)
	if err == nil || !strings.Contains(err.Error(), "700000 of 1000000") {
		t.Errorf("writing: %v", err)
	}
	if err := <-received; err == nil {
		t.Error("the receiver took the part for the whole")
	}
}

func TestCancelledWriteEnds(t *testing.T) {
	t.Parallel()
	url := serve(t, func(c *Conn) { select {} }) // reads nothing
	conn := dial(t, url)
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("too late")
	started := make(chan struct{})
	go func() { <-started; cancel(why) }()
	content := io.MultiReader(io.LimitReader(zeros{}, 1<<20), notify{started}, zeros{})
	if err := conn.WriteFile(ctx, nil, content, 1<<40); !errors.Is(err, why) {
		t.Errorf("%v", err)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

type notify struct{ ch chan struct{} }

func (n notify) Read([]byte) (int, error) { close(n.ch); return 0, io.EOF }

func TestRefuseDeliversItsMessage(t *testing.T) {
	t.Parallel()
	url := serve(t, func(c *Conn) {
		_, _ = c.ReadText(10)
		c.Refuse([]byte("no"))
	})
	conn := dial(t, url)
	// More than the socket's buffers hold is under way when the refusal comes.
	go func() { _ = conn.WriteText(bytes.Repeat([]byte("x"), 4<<20)) }()
	if got, err := conn.ReadText(10); string(got) != "no" {
		t.Fatalf("%q, %v", got, err)
	}
	if _, err := conn.ReadText(10); !SaidGoodbye(err) {
		t.Errorf("after the refusal: %v", err)
	}
}

func TestReadTextLimit(t *testing.T) {
	t.Parallel()
	result := make(chan error, 1)
	url := serve(t, func(c *Conn) {
		_, err := c.ReadText(9)
		result <- err
	})
	if err := dial(t, url).WriteText([]byte("0123456789")); err != nil {
		t.Fatal(err)
	}
	if err := <-result; !errors.Is(err, ErrTooLong) {
		t.Errorf("%v", err)
	}
}

// TestHTTP10Upgrade: behind the old nginx configuration the upgrade arrives as HTTP/1.0, with
// "Websocket" in the old client's spelling (docs/protocol.md).
func TestHTTP10Upgrade(t *testing.T) {
	t.Parallel()
	url := serve(t, func(c *Conn) { _ = c.WriteText([]byte("hello")); _, _, _ = c.Next() })
	conn, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "GET /dandelion/ws/ HTTP/1.0\r\nHost: x\r\nUpgrade: Websocket\r\nConnection: Upgrade\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n")
	br := bufio.NewReader(conn)
	resp, err := http.ReadResponse(br, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("%v, %v", resp, err)
	}
	frame := make([]byte, 7)
	if _, err := io.ReadFull(br, frame); err != nil || string(frame[2:]) != "hello" {
		t.Errorf("%q, %v", frame, err)
	}
}

// TestSilentPeerIsDropped: a peer that answers no ping is gone after the silence limit, one
// that answers is kept.
func TestSilentPeerIsDropped(t *testing.T) {
	t.Parallel()
	result := make(chan error, 1)
	url := serve(t, func(c *Conn) {
		c.KeepAlive(20*time.Millisecond, 600*time.Millisecond)
		_, err := c.ReadText(10)
		if err != nil {
			result <- err
			return
		}
		_, err = c.ReadText(10)
		result <- err
	})
	ws, _, err := websocket.DefaultDialer.Dial("ws"+strings.TrimPrefix(url, "http"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	pings := make(chan struct{}, 1000)
	var dead atomic.Bool
	ws.SetPingHandler(func(data string) error {
		if dead.Load() {
			return nil
		}
		pings <- struct{}{}
		return ws.WriteControl(websocket.PongMessage, []byte(data), time.Now().Add(time.Second))
	})
	go func() { _, _, _ = ws.ReadMessage() }()
	// Pongs alone carry the connection well beyond one silence limit.
	for range 60 {
		select {
		case <-pings:
		case err := <-result:
			t.Fatalf("dropped although it answers pings: %v", err)
		}
	}
	if err := ws.WriteMessage(websocket.TextMessage, []byte("1")); err != nil {
		t.Fatal(err)
	}
	dead.Store(true) // its socket is open and nothing comes
	var timeout net.Error
	if err := <-result; !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("%v", err)
	}
}

func TestDialRefusesForbiddenAddresses(t *testing.T) {
	t.Parallel()
	for _, url := range []string{"http://169.254.169.254/", "ftp://127.0.0.1/", "http://127.0.0.1:1/"} {
		if conn, err := Dial(t.Context(), url, Dialing{Least: netaddr.Private}); err == nil {
			conn.Abort()
			t.Errorf("dialled %s", url)
		}
	}
}

func TestBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := Backoff{Min: time.Second, Max: time.Minute}
		for i, ceiling := range []time.Duration{1, 2, 4, 8, 16, 32, 60, 60} {
			if wait := b.Next(); wait < ceiling*time.Second/2 || wait > ceiling*time.Second {
				t.Errorf("failure %d: %v", i, wait)
			}
		}
		b.Reset()
		start := time.Now()
		if err := b.Wait(t.Context()); err != nil || time.Since(start) > time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := b.Wait(ctx); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}
