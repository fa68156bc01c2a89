package door

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"dandelion/pkg/id"
	"dandelion/pkg/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const boxID = "box-0123456789abcdef0123456789abcdef"

func newDoor(change func(*Config)) *Door {
	cfg := Config{ID: id.EntranceIDOf([]byte("test"))}
	if change != nil {
		change(&cfg)
	}
	return New(cfg, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
}

func serve(t *testing.T, d *Door) string {
	t.Helper()
	server := httptest.NewServer(d)
	t.Cleanup(server.Close)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		d.Close(ctx)
	})
	return "ws" + strings.TrimPrefix(server.URL, "http")
}

func dial(t *testing.T, url string) *websocket.Conn {
	t.Helper()
	ws, _, err := websocket.DefaultDialer.Dial(url, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ws.Close() })
	_ = ws.SetReadDeadline(time.Now().Add(10 * time.Second))
	return ws
}

func message(command string) []byte {
	return fmt.Appendf(nil, `{"ID": %q, "IP": "127.0.0.1", "PORT": "1", "TYPE": "BOX", "COMMAND": %q}`, boxID, command)
}

// TestAPanicEndsOneSession, and no other.
func TestAPanicEndsOneSession(t *testing.T) {
	t.Parallel()
	var ended atomic.Int32
	url := serve(t, newDoor(func(cfg *Config) {
		cfg.Commands = map[string]Command{
			"PANIC": func(s *Session, _ []byte) error {
				s.OnEnd = func(string) { ended.Add(1) }
				panic("on purpose")
			},
			"ECHO": func(s *Session, m []byte) error { return s.Reply(map[string]string{"GOT": string(m)}) },
		}
	}))
	good, bad := dial(t, url), dial(t, url)
	_ = bad.WriteMessage(websocket.TextMessage, message("PANIC"))
	if _, _, err := bad.ReadMessage(); err == nil {
		t.Error("the session goes on")
	}
	_ = good.WriteMessage(websocket.TextMessage, message("ECHO"))
	if _, m, err := good.ReadMessage(); err != nil || !strings.Contains(string(m), "ECHO") {
		t.Errorf("another session: %s, %v", m, err)
	}
	if n := ended.Load(); n != 1 {
		t.Errorf("OnEnd was called %d times", n)
	}
}

// TestCloseSaysGoodbyeAndKeepsLeases: OnEnd is for what the peer does.
func TestCloseSaysGoodbyeAndKeepsLeases(t *testing.T) {
	t.Parallel()
	var ended atomic.Int32
	d := newDoor(func(cfg *Config) {
		cfg.Commands = map[string]Command{"HELLO": func(s *Session, _ []byte) error {
			s.Named(wire.Ours())
			s.OnEnd = func(string) { ended.Add(1) }
			return s.Reply(map[string]string{})
		}}
	})
	url := serve(t, d)
	ws := dial(t, url)
	_ = ws.WriteMessage(websocket.TextMessage, message("HELLO"))
	if _, _, err := ws.ReadMessage(); err != nil {
		t.Fatal(err)
	}
	silent := dial(t, url) // said nothing, and answers nothing
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		d.Close(ctx)
	}()
	if _, m, err := ws.ReadMessage(); err != nil || !strings.Contains(string(m), "GOODBYE") {
		t.Errorf("%s, %v", m, err)
	}
	var code *websocket.CloseError
	if _, _, err := ws.ReadMessage(); !errors.As(err, &code) || code.Code != websocket.CloseNormalClosure {
		t.Errorf("%v", err)
	}
	<-closed
	if d.Sessions() != 0 || ended.Load() != 0 {
		t.Errorf("%d sessions, OnEnd called %d times", d.Sessions(), ended.Load())
	}
	if _, resp, err := websocket.DefaultDialer.Dial(url, nil); err == nil || resp == nil || resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("after Close: %v %v", resp, err)
	}
	silent.Close()
}

// TestCloseInTheMiddleOfAnUpgrade.
func TestCloseInTheMiddleOfAnUpgrade(t *testing.T) {
	t.Parallel()
	d := newDoor(nil)
	admitted, goOn := make(chan struct{}), make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d.ServeHTTP(&slowHijacker{w, admitted, goOn}, r)
	}))
	defer server.Close()
	dialled := make(chan *websocket.Conn)
	go func() {
		ws, _, _ := websocket.DefaultDialer.Dial("ws"+strings.TrimPrefix(server.URL, "http"), nil)
		dialled <- ws
	}()
	<-admitted
	closed := make(chan struct{})
	begin := time.Now()
	go func() {
		defer close(closed)
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		d.Close(ctx)
	}()
	for closing := false; !closing; {
		d.mu.Lock()
		for s := range d.sessions {
			closing = s.draining.Load()
		}
		d.mu.Unlock()
	}
	close(goOn)
	ws := <-dialled
	defer ws.Close()
	<-closed
	if took := time.Since(begin); took > 25*time.Second { // not its limit
		t.Errorf("Close took %v", took)
	}
}

type slowHijacker struct {
	http.ResponseWriter
	admitted, goOn chan struct{}
}

func (h *slowHijacker) Unwrap() http.ResponseWriter { return h.ResponseWriter }

func (h *slowHijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	close(h.admitted)
	<-h.goOn
	return http.NewResponseController(h.ResponseWriter).Hijack()
}

func TestLimits(t *testing.T) {
	t.Parallel()
	d := newDoor(nil)
	session := func(addr string) *Session { return &Session{Remote: netip.MustParseAddr(addr)} }
	var sessions []*Session
	for range MaxPerNetwork {
		s := session("203.0.113.5")
		if err := d.admit(s); err != nil {
			t.Fatal(err)
		}
		sessions = append(sessions, s)
	}
	if err := d.admit(session("203.0.113.77")); !errors.Is(err, errFull) {
		t.Errorf("one more of the same network: %v", err)
	}
	for _, addr := range []string{"203.0.114.5", "192.168.1.1", "127.0.0.1", "2001:db8::1"} {
		s := session(addr)
		if err := d.admit(s); err != nil {
			t.Errorf("%s: %v", addr, err)
		}
		sessions = append(sessions, s)
	}
	for _, s := range sessions {
		d.release(s)
	}
	if d.Sessions() != 0 || len(d.networks) != 0 {
		t.Errorf("%d sessions, %v after the end", d.Sessions(), d.networks)
	}
}

// TestAFloodIsReadSlowly: the first hundred messages pass, then 50 a second.
func TestAFloodIsReadSlowly(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &Session{}
		begin := time.Now()
		for range messageBurst {
			s.slowDown()
		}
		if took := time.Since(begin); took != 0 {
			t.Errorf("the first ones took %v", took)
		}
		for range 500 {
			s.slowDown()
		}
		if took := time.Since(begin); took < 9*time.Second || took > 11*time.Second {
			t.Errorf("500 more took %v", took)
		}
		time.Sleep(time.Minute)
		begin = time.Now()
		for range 100 {
			time.Sleep(200 * time.Millisecond) // five a second
			s.slowDown()
		}
		if took := time.Since(begin); took != 20*time.Second {
			t.Errorf("a peer that sends little was delayed: %v", took)
		}
	})
}

func TestSelf(t *testing.T) {
	t.Parallel()
	trusted := []netip.Prefix{netip.MustParsePrefix("10.0.0.1/32")}
	for _, test := range []struct {
		name                  string
		configured, host, xfp string
		remote                string
		tls                   bool
		url, ip, port         string
	}{
		{"as dialled", "", "192.0.2.1:7070", "", "203.0.113.1:5", false, "http://192.0.2.1:7070/dandelion/ws/", "192.0.2.1", "7070"},
		{"a name", "", "entrance.example", "", "203.0.113.1:5", false, "http://entrance.example/dandelion/ws/", "10.0.0.9", "80"},
		{"IPv6", "", "[2001:db8::1]:7070", "", "203.0.113.1:5", false, "http://[2001:db8::1]:7070/dandelion/ws/", "2001:db8::1", "7070"},
		{"TLS", "", "entrance.example", "", "203.0.113.1:5", true, "https://entrance.example/dandelion/ws/", "10.0.0.9", "443"},
		{"TLS at a trusted proxy", "", "entrance.example", "https", "10.0.0.1:5", false, "https://entrance.example/dandelion/ws/", "10.0.0.9", "443"},
		{"TLS that somebody claims", "", "entrance.example", "https", "203.0.113.1:5", false, "http://entrance.example/dandelion/ws/", "10.0.0.9", "80"},
		{"no Host", "", "", "", "203.0.113.1:5", false, "http://10.0.0.9:7070/dandelion/ws/", "10.0.0.9", "7070"},
		{"a bad Host", "", "a b\"<", "", "203.0.113.1:5", false, "http://10.0.0.9:7070/dandelion/ws/", "10.0.0.9", "7070"},
		{"a Host with a path", "", "evil.example/x?", "", "203.0.113.1:5", false, "http://10.0.0.9:7070/dandelion/ws/", "10.0.0.9", "7070"},
		{"configured", "https://e.example/dandelion/ws/", "192.0.2.1:7070", "", "203.0.113.1:5", false, "https://e.example/dandelion/ws/", "10.0.0.9", "443"},
	} {
		d := newDoor(func(cfg *Config) { cfg.URL, cfg.Trusted = test.configured, trusted })
		r := httptest.NewRequest(http.MethodGet, "/dandelion/ws/", nil)
		r.Host, r.RemoteAddr = test.host, test.remote
		r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, &net.TCPAddr{IP: net.IPv4(10, 0, 0, 9), Port: 7070}))
		if test.xfp != "" {
			r.Header.Set("X-Forwarded-Proto", test.xfp)
			r.Header.Set("X-Forwarded-For", "198.51.100.1")
		}
		if test.tls {
			r.TLS = new(tls.ConnectionState)
		}
		self := d.self(r)
		if self.URL != test.url || self.Own.IP != test.ip || string(self.Own.Port) != test.port || self.Own.Type != wire.TypeEntrance {
			t.Errorf("%s: %+v", test.name, self)
		}
		if d.self(r) != self {
			t.Errorf("%s: sessions do not share it", test.name)
		}
	}
	d := newDoor(nil)
	for i := range 10 * maxSelves {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Host = fmt.Sprintf("h%d.example", i)
		d.self(r)
	}
	if len(d.selves) > maxSelves {
		t.Errorf("%d names are kept", len(d.selves))
	}
}
