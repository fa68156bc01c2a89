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

// TestTooManyConnections: who comes when all places are taken by viewers who read is told to come
// back, and finds a place when one has ended.
func TestTooManyConnections(t *testing.T) {
	t.Parallel()
	store := newStore(t)
	put(t, store, "/a.ts", time.Hour, content(32<<20))
	e, base, deliveries := serve(t, Config{Store: store, MaxConns: 2})
	request := "GET /" + string(pub) + "/a.ts HTTP/1.1\r\nHost: x\r\n\r\n"
	var reading []*net.TCPConn
	for range 2 {
		c := dialRaw(t, base, request)
		if b, err := bufio.NewReaderSize(c, 16).ReadString('\n'); b != "HTTP/1.1 200 OK\r\n" {
			t.Fatal(b, err)
		}
		reading = append(reading, c)
	}
	late := dialRaw(t, base, request)
	if resp := answerOn(t, late); resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" || !resp.Close ||
		resp.Header.Get("Access-Control-Allow-Origin") != "*" {
		t.Errorf("one too many: %s %v", resp.Status, resp.Header)
	}
	<-deliveries
	// What a few more hold is bounded too: who says nothing is closed when there are many of them.
	var silent []net.Conn
	for range maxOver + 1 {
		c, err := net.Dial("tcp", strings.TrimPrefix(base, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		silent = append(silent, c)
	}
	last := silent[maxOver]
	last.SetReadDeadline(time.Now().Add(5 * time.Second)) // sooner than the time for a header ends
	if n, err := last.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the last one of too many got %d bytes, %v; want the end", n, err)
	}
	if all, served := e.conns.count(); all > 2+maxOver || served != 2 {
		t.Errorf("%d connections, %d served", all, served)
	}
	for _, c := range append(silent, late) {
		c.Close()
	}
	reading[0].SetLinger(0)
	reading[0].Close()
	<-deliveries // its place is free when the server has seen the end
	for {
		c := dialRaw(t, base, strings.Replace(request, "GET", "HEAD", 1))
		if resp, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: "HEAD"}); err == nil && resp.StatusCode == 200 {
			break
		}
		c.Close()
	}
}

// TestWaitingConnectionsMakeRoom: connections that ask for nothing, kept ones and those whose
// request comes byte by byte, give their places to viewers, the longest waiting first.
func TestWaitingConnectionsMakeRoom(t *testing.T) {
	t.Parallel()
	store := newStore(t)
	put(t, store, "/a.ts", time.Hour, content(10))
	e, base, _ := serve(t, Config{Store: store, MaxConns: 3})
	request := "GET /" + string(pub) + "/a.ts HTTP/1.1\r\nHost: x\r\n\r\n"
	trickling := dialRaw(t, base, "GET /")
	kept := dialRaw(t, base, request)
	answerOn(t, kept)
	e.aged(t, 2)
	fresh := dialRaw(t, base, request)
	answerOn(t, fresh)

	first := dialRaw(t, base, request)
	if resp := answerOn(t, first); resp.StatusCode != 200 {
		t.Errorf("a viewer in place of who trickles: %s", resp.Status)
	}
	if _, err := trickling.Read(make([]byte, 1)); err == nil {
		t.Error("who waited longest is still there")
	}
	io.WriteString(kept, request)
	if resp := answerOn(t, kept); resp.StatusCode != 200 {
		t.Errorf("the other was closed: %s", resp.Status)
	}
	// None has waited for long now.
	if resp := answerOn(t, dialRaw(t, base, request)); resp.StatusCode != 503 {
		t.Errorf("one too many: %s", resp.Status)
	}
}

// aged waits until n connections are known and makes them older than patience.
func (e *Edge) aged(t *testing.T, n int) {
	t.Helper()
	for {
		e.conns.mu.Lock()
		waiting := 0
		for at := e.conns.waits.Front(); at != nil; at = at.Next() {
			if v := at.Value.(*viewer); !v.served {
				v.since = v.since.Add(-2 * patience)
				waiting++
			}
		}
		e.conns.mu.Unlock()
		if waiting == n {
			return
		}
		if t.Context().Err() != nil {
			t.Fatal("never")
		}
	}
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
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	began := time.Now()
	const grace = 700 * time.Millisecond
	go func() { drained <- e.Drain(ctx, grace) }()
	for e.conns.isDraining() != true {
		<-time.After(time.Millisecond)
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
		c.SetReadDeadline(time.Now().Add(5 * time.Second))
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

func (c *conns) isDraining() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.draining
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
	if took := time.Since(began); took > 3*time.Second {
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
