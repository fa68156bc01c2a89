package conns

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// serve starts a server that answers each request when release lets it, at once where that is nil.
func serve(t *testing.T, cfg Config, release chan struct{}) (l *Limit, addr string) {
	t.Helper()
	l = New(cfg)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if l.Over(r) {
			w.Header().Set("Retry-After", "2")
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		if release != nil && r.URL.Path == "/slow" {
			<-release
		}
		if Of(r) == nil {
			t.Error("a request without its connection")
		}
		_, _ = io.WriteString(w, "hello")
	}))
	l.Hold(srv.Config)
	srv.Start()
	t.Cleanup(srv.Close)
	return l, srv.Listener.Addr().String()
}

func dial(t *testing.T, addr, text string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_, _ = io.WriteString(c, text)
	return c
}

func answer(t *testing.T, c net.Conn) *http.Response {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Second)) // a bound for a broken test
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Fatal(err)
	}
	return resp
}

const (
	quick = "GET / HTTP/1.1\r\nHost: x\r\n\r\n"
	slow  = "GET /slow HTTP/1.1\r\nHost: x\r\n\r\n"
)

// TestTooMany: who comes when all places are taken by those who are served is told to come back,
// and finds a place when one has ended.
func TestTooMany(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	l, addr := serve(t, Config{Max: 2}, release)
	served := []net.Conn{dial(t, addr, slow), dial(t, addr, slow)}
	for _, n := l.Count(); n != 2; _, n = l.Count() {
		<-time.After(time.Millisecond)
	}
	late := dial(t, addr, quick)
	if resp := answer(t, late); resp.StatusCode != 503 || !resp.Close {
		t.Errorf("one too many: %s %v", resp.Status, resp.Header)
	}
	// What a few more hold is bounded too: who says nothing is closed when there are many of them.
	var silent []net.Conn
	for range maxOver + 1 {
		silent = append(silent, dial(t, addr, ""))
	}
	last := silent[maxOver]
	_ = last.SetReadDeadline(time.Now().Add(5 * time.Second))
	if n, err := last.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the last one of too many got %d bytes, %v; want the end", n, err)
	}
	if all, served := l.Count(); all > 2+maxOver || served != 2 {
		t.Errorf("%d connections, %d served", all, served)
	}
	for _, c := range append(silent, late) {
		c.Close()
	}
	close(release)
	answer(t, served[0])
	served[0].Close()
	for {
		c := dial(t, addr, quick)
		if answer(t, c).StatusCode == http.StatusOK {
			break
		}
		c.Close()
	}
}

// TestWaitingMakeRoom: connections that ask for nothing, kept ones and those whose request comes
// byte by byte, give their places to others, the longest waiting first.
func TestWaitingMakeRoom(t *testing.T) {
	t.Parallel()
	closed := 0
	l, addr := serve(t, Config{Max: 3, Closed: func() { closed++ }}, nil)
	trickling := dial(t, addr, "GET /")
	kept := dial(t, addr, quick)
	answer(t, kept)
	l.age(t, 2)
	fresh := dial(t, addr, quick)
	answer(t, fresh)
	if resp := answer(t, dial(t, addr, quick)); resp.StatusCode != 200 {
		t.Errorf("one in place of who trickles: %s", resp.Status)
	}
	if _, err := trickling.Read(make([]byte, 1)); err == nil {
		t.Error("who waited longest is still there")
	}
	_, _ = io.WriteString(kept, quick)
	if resp := answer(t, kept); resp.StatusCode != 200 {
		t.Errorf("the other was closed: %s", resp.Status)
	}
	// None has waited for long now.
	if resp := answer(t, dial(t, addr, quick)); resp.StatusCode != 503 {
		t.Errorf("one too many: %s", resp.Status)
	}
	if closed != 1 {
		t.Errorf("%d connections were told of as closed", closed)
	}
}

// age waits until n connections are known and makes them older than Patience.
func (l *Limit) age(t *testing.T, n int) {
	t.Helper()
	for {
		l.mu.Lock()
		waiting := 0
		for at := l.waits.Front(); at != nil; at = at.Next() {
			if v := at.Value.(*visitor); !v.served {
				v.since = v.since.Add(-2 * Patience)
				waiting++
			}
		}
		l.mu.Unlock()
		if waiting == n {
			return
		}
		if t.Context().Err() != nil {
			t.Fatal("never")
		}
	}
}

// TestDrain: connections end with their next answer, and those that ask for nothing when told to.
func TestDrain(t *testing.T) {
	t.Parallel()
	l, addr := serve(t, Config{Max: 10}, nil)
	kept, silent := dial(t, addr, quick), dial(t, addr, "GET /")
	if answer(t, kept).Close {
		t.Error("a kept connection ends before the drain")
	}
	l.Drain()
	_, _ = io.WriteString(kept, quick)
	if resp := answer(t, kept); resp.StatusCode != 200 || !resp.Close {
		t.Errorf("%s, closes %v", resp.Status, resp.Close)
	}
	l.closeWaiting(time.Now().Add(time.Minute), time.Second)
	_ = silent.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := silent.Read(make([]byte, 1)); err == nil || strings.Contains(err.Error(), "timeout") {
		t.Errorf("a silent one: %v, want the end", err)
	}
}
