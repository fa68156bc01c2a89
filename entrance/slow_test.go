package entrance

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"dandelion/pkg/wire"
)

// TestSlowPeersHoldNobody: peers that connect and say nothing, that send half a message, that
// never read, and boxes that take the dial-back and never answer it.
func TestSlowPeersHoldNobody(t *testing.T) {
	t.Parallel()
	e := start(t, embedded, nil)
	for i := range 10 {
		silent, err := net.Dial("tcp", e.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer silent.Close()
		e.dialOld(upgrade11)
		half := e.dialOld(upgrade11)
		half.frame(false, textFrame, []byte(`{"ID": "box-`))

		deaf := newBox(t, 100+i)
		p := e.dial(wire.EntranceWSPath)
		for range 20 {
			p.send(deaf.report(nil))
		}
	}
	for i := range 10 {
		e.connectTarpit(t, i)
	}
	// Publishers that ask and never read.
	for range 10 {
		p := e.dial(wire.EntranceWSPath)
		for range 20 {
			p.send(searchMessage(""))
		}
	}

	begin := time.Now()
	good := newBox(t, 1)
	e.connect(good).alive()
	e.offered(good, true) // one after the other, the dials to the tarpits would take longer than that waits
	t.Logf("a good box was offered after %v", time.Since(begin))
	c := e.dialOld(upgrade11)
	if reply := c.ask(newBox(t, 2).oldReport(nil)); reply["MESSAGE"] != "ACCEPTED" {
		t.Errorf("%v", reply)
	}
}

// connectTarpit connects a box whose server takes the dial-back and never answers.
func (r *running) connectTarpit(t *testing.T, i int) {
	t.Helper()
	release := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}))
	t.Cleanup(server.Close)
	t.Cleanup(func() { close(release) })
	b := newBox(t, 200+i)
	p := r.dial(wire.EntranceWSPath)
	p.ask(b.report(func(m map[string]any) {
		m["CONNECT_WS"] = server.URL + wire.BoxWSPath(b.id)
		m["EDGE_URL"] = server.URL
	}))
}

// TestDialBackTakesLittle: an answer without end is not read to its end, and a redirect is not
// followed.
func TestDialBackTakesLittle(t *testing.T) {
	t.Parallel()
	e := start(t, embedded, nil)
	var followed bool
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { followed = true }))
	t.Cleanup(elsewhere.Close)
	for i, test := range []struct {
		name    string
		handler http.HandlerFunc
		want    string
	}{
		{"redirect", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, elsewhere.URL, http.StatusFound) }, "HTTP status 302"},
		{"endless", func(w http.ResponseWriter, _ *http.Request) {
			block := make([]byte, 64<<10)
			for {
				if _, err := w.Write(block); err != nil {
					return
				}
			}
		}, "another answer than the box's"},
		{"silent", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, "connection timed out"},
	} {
		server := httptest.NewServer(test.handler)
		t.Cleanup(server.Close)
		b := newBox(t, i)
		p := e.dial(wire.EntranceWSPath)
		report := b.report(func(m map[string]any) {
			m["CONNECT_WS"], m["EDGE_URL"] = server.URL+wire.BoxWSPath(b.id), server.URL
		})
		want := fmt.Sprintf("not reachable at %s (%s): ", server.URL, test.want)
		eventually(t, func() string {
			reason, _ := p.ask(report)["REASON"].(string)
			if len(reason) < len(want) || reason[:len(want)] != want {
				return fmt.Sprintf("%s: %q, want %q", test.name, reason, want)
			}
			return ""
		})
	}
	if followed {
		t.Error("a redirect was followed")
	}
}

// TestRequestsThatNeverEnd: connections that say nothing, or a byte of their request a second, are
// closed within 10 s, and while a crowd of them is there a good box is served.
func TestRequestsThatNeverEnd(t *testing.T) {
	t.Parallel()
	e := start(t, embedded, nil)
	ends := make(chan time.Duration, 200)
	begin := time.Now()
	var drips sync.WaitGroup // each notices within a second that its connection is closed
	for i := range cap(ends) {
		conn, err := net.Dial("tcp", e.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		go func() {
			_, _ = io.Copy(io.Discard, conn)
			ends <- time.Since(begin)
		}()
		if i%2 == 0 {
			continue
		}
		drips.Go(func() {
			tick := time.NewTicker(time.Second)
			defer tick.Stop()
			for _, b := range []byte("GET /dandelion/ws/ HTTP/1.1\r\nHost: x\r\n") {
				if _, err := conn.Write([]byte{b}); err != nil {
					return
				}
				<-tick.C
			}
		})
	}
	good := newBox(t, 1)
	e.connect(good).alive()
	e.offered(good, true)
	for range cap(ends) {
		if took := <-ends; took > 35*time.Second { // until then the drips' requests would be whole
			t.Errorf("a connection was closed only after %v", took)
		}
	}
	drips.Wait()
	if _, offered := e.search()[string(good.id)]; !offered {
		t.Error("the good box is not offered any more")
	}
}

// TestMissedPings: a box whose connection is dead without having been closed.
func TestMissedPings(t *testing.T) {
	t.Parallel()
	e := start(t, embedded, nil)
	b := newBox(t, 1)
	e.connect(b) // and reads no more, so that no ping is answered
	e.offered(b, true)
	e.offered(b, false)
	if got := e.api("/api/v1/boxes/" + string(b.id)); got["why_not"] != "it left: it gave no sign of life" {
		t.Errorf("%v", got)
	}
}
