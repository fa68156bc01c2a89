package edge

import (
	"bufio"
	"bytes"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// dialRaw sends one request over a connection of its own with a small receive buffer.
func dialRaw(t *testing.T, base, request string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(base, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.(*net.TCPConn).SetReadBuffer(16 << 10)
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	return c.(*net.TCPConn)
}

func TestSlowViewerIsCutOff(t *testing.T) {
	t.Parallel()
	store := newStore(t)
	const size = 32 << 20
	put(t, store, "/a.ts", time.Hour, content(size))
	_, base, deliveries := serve(t, Config{Store: store, MinRate: 1 << 20, RateWindow: 300 * time.Millisecond})
	dialRaw(t, base, "GET /"+string(pub)+"/a.ts HTTP/1.1\r\nHost: x\r\n\r\n") // and reads nothing
	d := <-deliveries
	if !d.Aborted || d.Bytes >= size || d.Status != 200 {
		t.Errorf("delivery %+v", d)
	}
}

// A viewer that is slow, but faster than the minimum, gets everything although the whole takes
// many windows.
func TestSteadyViewerIsServed(t *testing.T) {
	t.Parallel()
	store := newStore(t)
	const size = 32 << 20
	b := content(size)
	put(t, store, "/a.ts", time.Hour, b)
	window := 400 * time.Millisecond
	_, base, deliveries := serve(t, Config{Store: store, MinRate: 1, RateWindow: window})
	c, err := net.Dial("tcp", strings.TrimPrefix(base, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "GET /"+string(pub)+"/a.ts HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	got := bytes.NewBuffer(make([]byte, 0, size))
	pace := time.NewTicker(10 * time.Millisecond)
	defer pace.Stop()
	for err == nil {
		<-pace.C
		_, err = io.CopyN(got, resp.Body, 128<<10)
	}
	d := <-deliveries
	if d.Aborted || d.Bytes != size || !bytes.Equal(got.Bytes(), b) {
		t.Errorf("delivery %+v, the viewer got %d bytes (%v)", d, got.Len(), err)
	}
	if d.Took < 2*window {
		t.Errorf("took %v: too fast to prove anything", d.Took)
	}
}

func TestAbortedTransferCountsWhatArrived(t *testing.T) {
	t.Parallel()
	store := newStore(t)
	const size = 32 << 20
	put(t, store, "/a.ts", time.Hour, content(size))
	_, base, deliveries := serve(t, Config{Store: store})
	c := dialRaw(t, base, "GET /"+string(pub)+"/a.ts HTTP/1.1\r\nHost: x\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReaderSize(c, 4096), nil)
	if err != nil {
		t.Fatal(err)
	}
	const read = 1 << 20
	if _, err := io.CopyN(io.Discard, resp.Body, read); err != nil {
		t.Fatal(err)
	}
	c.SetLinger(0)
	c.Close()
	d := <-deliveries
	// What was read, less what was not acknowledged yet, and at most what this side's receive
	// buffer held besides.
	if !d.Aborted || d.Bytes < read-64<<10 || d.Bytes > read+512<<10 {
		t.Errorf("the viewer read %d bytes and left; delivery %+v", read, d)
	}
}

func TestSlowRequestsAreCutOff(t *testing.T) {
	t.Parallel()
	store := newStore(t)
	_, base, deliveries := serve(t, Config{Store: store})
	// A body that is announced and never comes.
	c := dialRaw(t, base, "POST /"+string(pub)+"/a.ts HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
	b, err := io.ReadAll(c)
	if !bytes.HasPrefix(b, []byte("HTTP/1.1 405 ")) {
		t.Errorf("answer %q, %v", b, err)
	}
	<-deliveries
	e := New(Config{Store: store, Log: slog.New(slog.DiscardHandler)})
	if s := e.Server(nil); s.ReadHeaderTimeout == 0 || s.IdleTimeout == 0 || s.WriteTimeout == 0 || s.MaxHeaderBytes == 0 {
		t.Errorf("the server waits for ever: %+v", s)
	}
}
