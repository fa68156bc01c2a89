package box

import (
	"bytes"
	"io"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"dandelion/pkg/id"
	"dandelion/pkg/wire"
)

// TestTerminate: SIGTERM while a viewer reads slowly, one is on the way, and a publisher is in the
// middle of a file.
func TestTerminate(t *testing.T) {
	t.Parallel()
	p := newProcess(t)
	p.start()
	conn := p.mustPublisher()
	film := random(1, 16<<20)
	push(t, conn, "/film", time.Hour, film)
	push(t, conn, "/late", time.Hour, film[:1000])
	_, slow := p.slowGet("/film")
	type result struct {
		body []byte
		err  error
	}
	read := make(chan result, 1)
	go func() {
		b, err := readFor(slow.Body, int64(len(film)), 4*time.Second)
		read <- result{b, err}
	}()

	// Half a file is there when it stops; a second one follows without waiting.
	ws, _, err := websocket.DefaultDialer.Dial("ws"+p.base[len("http"):]+wire.BoxWSPath(p.id), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	ws.SetReadDeadline(time.Now().Add(20 * time.Second))
	ws.WriteMessage(websocket.TextMessage, wire.Encode(wire.Publish{
		Peer: wire.Peer{ID: string(pub), IP: "198.51.100.1", Type: wire.TypePublisher}, Command: wire.CommandPublish, Features: wire.Ours(),
	}))
	next := func(want string) wire.Refused { // has the fields of the others that matter
		t.Helper()
		_, raw, err := ws.ReadMessage()
		if err != nil {
			t.Fatalf("waiting for %s: %v", want, err)
		}
		m, err := wire.Decode[wire.Refused](raw)
		if err != nil || m.Command != want {
			t.Fatalf("%s, want %s", raw, want)
		}
		return m
	}
	next(wire.CommandPublish)
	header := func(path id.Path, request string) []byte {
		return wire.FileHeader{
			Path: path, TTL: time.Hour, RequestID: request, Publisher: pub, Size: 1 << 20, Digest: id.DigestOf(film[:1<<20]),
		}.AppendTo(nil)
	}
	w, err := ws.NextWriter(websocket.BinaryMessage)
	if err != nil {
		t.Fatal(err)
	}
	w.Write(append(header("/under-way", "under way"), film[:600_000]...))

	p.terminate()
	began := time.Now()
	next(wire.CommandGoodbye)
	t.Logf("the publisher heard of it after %v", time.Since(began))
	w.Write(film[600_000 : 1<<20])
	w.Close()
	if m := next(wire.CommandStored); m.RequestID != "under way" {
		t.Errorf("%+v", m)
	}
	ws.WriteMessage(websocket.BinaryMessage, append(header("/new", "new"), film[:1<<20]...))
	if m := next(wire.CommandRefused); m.RequestID != "new" || m.Kind != wire.KindDraining {
		t.Errorf("%+v", m)
	}

	<-time.After(time.Until(began.Add(500 * time.Millisecond)))
	resp, body, err := p.fetch(t.Context(), "/late")
	if err != nil || resp.StatusCode != 200 || !bytes.Equal(body, film[:1000]) || !resp.Close {
		t.Errorf("a viewer who came half a second after the signal: %v, %v", resp, err)
	}
	if r := <-read; r.err != nil || !bytes.Equal(r.body, film) {
		t.Errorf("the download under way got %d bytes, %v", len(r.body), r.err)
	}
	if status := p.wait(); status != 0 {
		t.Errorf("status %d: %s", status, p.log.String())
	}
	if took := time.Since(began); took < 3*time.Second {
		t.Errorf("it took %v", took)
	}
	p.start()
	for path, want := range map[id.Path]int{"/under-way": 200, "/new": 404} {
		if resp, _, err := p.fetch(t.Context(), path); err != nil || resp.StatusCode != want {
			t.Errorf("%s after the restart: %v, %v; want %d", path, resp, err, want)
		}
	}
}

// TestTerminateTooSlow: a viewer who is too slow is cut at the limit, and the end is orderly.
func TestTerminateTooSlow(t *testing.T) {
	t.Parallel()
	p := newProcess(t)
	p.start()
	film := random(1, 40<<20)
	push(t, p.mustPublisher(), "/film", time.Hour, film)
	_, slow := p.slowGet("/film")
	p.terminate()
	began := time.Now()
	read := make(chan error, 1)
	go func() {
		_, err := readFor(slow.Body, int64(len(film)), time.Minute)
		read <- err
	}()
	if status := p.wait(); status != 0 {
		t.Errorf("status %d: %s", status, p.log.String())
	}
	if took := time.Since(began); took < 9*time.Second || took > 40*time.Second { // reading all takes a minute
		t.Errorf("it took %v", took)
	}
	if err := <-read; err == nil {
		t.Error("the viewer took a part for the whole")
	}
}

// TestTerminateIdle: nobody waits for a box that nobody uses, whatever hangs on it.
func TestTerminateIdle(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		peers bool
		limit time.Duration
	}{
		"empty":           {false, time.Second},
		"with idle peers": {true, 3500 * time.Millisecond},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			took := idleEnd(t, tt.peers)
			for range 2 { // other tests run beside this one: the best says what the box waits for
				if took > tt.limit {
					took = min(took, idleEnd(t, tt.peers))
				}
			}
			t.Logf("it took %v", took)
			if took > tt.limit {
				t.Errorf("it took %v, want at most %v", took, tt.limit)
			}
		})
	}
}

// idleEnd returns how long a process takes to end after SIGTERM, with idle peers or without any.
func idleEnd(t *testing.T, peers bool) time.Duration {
	t.Helper()
	p := newProcess(t)
	p.start()
	if peers {
		conn := p.mustPublisher()
		push(t, conn, "/a", time.Hour, []byte("x"))
		go func() { // answers pings and the close, and does not go by itself
			for {
				if _, r, err := conn.Next(); err != nil {
					return
				} else if _, err := io.Copy(io.Discard, r); err != nil {
					return
				}
			}
		}()
		for _, request := range []string{"", "GET / HT", "GET / HTTP/1.1\r\nHost: x\r\n\r\n"} {
			c, err := dialTCP(p.base)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			io.WriteString(c, request)
		}
	}
	p.terminate()
	began := time.Now()
	if status := p.wait(); status != 0 {
		t.Errorf("status %d: %s", status, p.log.String())
	}
	return time.Since(began)
}
