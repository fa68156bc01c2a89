package edge

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// answerOn reads one answer.
func answerOn(t *testing.T, c net.Conn) *http.Response {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(20 * time.Second)) // a bound for a broken test
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Fatal(err)
	}
	return resp
}

// TestDrain: who was sent here a moment ago is served during the grace, on new connections and on
// kept ones, which end with that; a download under way gets all its bytes; then nobody is taken.
func TestDrain(t *testing.T) {
	t.Parallel()
	store := newStore(t)
	b := content(32 << 20)
	put(t, store, "/a.ts", time.Hour, b)
	put(t, store, "/b.ts", time.Hour, b[:10])
	e, base, _ := serve(t, Config{Store: store})
	small := "GET /" + string(pub) + "/b.ts HTTP/1.1\r\nHost: x\r\n\r\n"
	kept, silent, trickling := dialRaw(t, base, small), dialRaw(t, base, ""), dialRaw(t, base, "GET /")
	if resp := answerOn(t, kept); resp.Close {
		t.Error("a kept connection ends before the drain")
	}
	resp, err := http.Get(base + "/" + string(pub) + "/a.ts")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()

	drained := make(chan int, 1)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	began := time.Now()
	const grace = 3 * time.Second
	go func() { drained <- e.Drain(ctx, grace) }()
	for !answerOn(t, dialRaw(t, base, small)).Close { // until it has begun
	}
	for name, c := range map[string]net.Conn{"kept": kept, "new": dialRaw(t, base, "")} {
		io.WriteString(c, small)
		if resp := answerOn(t, c); resp.StatusCode != 200 || !resp.Close {
			t.Errorf("%s during the grace: %s, closes %v", name, resp.Status, resp.Close)
		}
		if time.Since(began) > grace {
			t.Error("too slow to prove anything")
		}
	}
	for name, c := range map[string]net.Conn{"silent": silent, "trickling": trickling} {
		c.SetReadDeadline(time.Now().Add(40 * time.Second))
		if _, err := c.Read(make([]byte, 1)); err == nil || isTimeout(err) {
			t.Errorf("%s: %v, want the end soon after the grace", name, err)
		}
	}
	for {
		c, err := net.Dial("tcp", strings.TrimPrefix(base, "http://"))
		if err != nil {
			break
		}
		c.Close()
	}
	select {
	case n := <-drained:
		t.Fatalf("ended with a download under way, %d cut", n)
	default:
	}
	if got, err := io.ReadAll(resp.Body); err != nil || !bytes.Equal(got, b) {
		t.Errorf("the download under way got %d bytes, %v", len(got), err)
	}
	if n := <-drained; n != 0 {
		t.Errorf("%d were cut", n)
	}
}

func isTimeout(err error) bool {
	e, ok := err.(net.Error)
	return ok && e.Timeout()
}

// TestDrainLimit: who is too slow for the drain is cut off at its end, and counted.
func TestDrainLimit(t *testing.T) {
	t.Parallel()
	store := newStore(t)
	put(t, store, "/a.ts", time.Hour, content(32<<20))
	e, base, deliveries := serve(t, Config{Store: store})
	c := dialRaw(t, base, "GET /"+string(pub)+"/a.ts HTTP/1.1\r\nHost: x\r\n\r\n")
	if _, err := io.ReadFull(c, make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	began := time.Now()
	if n := e.Drain(ctx, 0); n != 1 {
		t.Errorf("%d were cut, want 1", n)
	}
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("took %v", took)
	}
	if d := <-deliveries; !d.Aborted {
		t.Errorf("%+v", d)
	}
}

// TestTricklingRanges: the least rate holds also for an answer of many small writes.
func TestTricklingRanges(t *testing.T) {
	t.Parallel()
	store := newStore(t)
	put(t, store, "/a.ts", time.Hour, content(32<<20))
	_, base, deliveries := serve(t, Config{Store: store, MinRate: 64 << 20, RateWindow: time.Second})
	c, err := net.Dial("tcp", strings.TrimPrefix(base, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "GET /"+string(pub)+"/a.ts HTTP/1.1\r\nHost: x\r\nRange: bytes=0-16000000,16000001-32000000\r\n\r\n")
	pace := time.NewTicker(10 * time.Millisecond)
	defer pace.Stop()
	began := time.Now()
	for {
		select {
		case <-pace.C:
			c.SetReadDeadline(time.Now().Add(time.Millisecond))
			io.CopyN(io.Discard, c, 64<<10) // 6 MB/s: too slow, and never still
			if time.Since(began) > 20*time.Second {
				t.Fatal("a slow viewer is still served")
			}
			continue
		case d := <-deliveries:
			if d.Status != 206 || !d.Aborted {
				t.Errorf("%+v", d)
			}
		}
		break
	}
}
