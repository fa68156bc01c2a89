package entrance

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"dandelion/pkg/config"
	"dandelion/pkg/id"
	"dandelion/pkg/state"
	"dandelion/pkg/wire"
)

// running is an entrance in this process.
type running struct {
	*Entrance
	t    testing.TB
	base string // http://127.0.0.1:port
	stop func() // and wait
}

// start starts an entrance on a port of its own. change may be nil.
func start(t testing.TB, redis state.Config, change func(*Config)) *running {
	t.Helper()
	cfg := DefaultConfig()
	cfg.Listen = "127.0.0.1:0"
	cfg.DataDir = t.TempDir()
	if change != nil {
		change(&cfg)
	}
	e, err := New(t.Context(), cfg, redis, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	r := &running{Entrance: e, t: t, base: "http://" + e.Addr().String()}
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(r.stop)
	return r
}

// sibling returns a change that makes an entrance another process of e.
func (r *running) sibling() func(*Config) {
	return func(cfg *Config) {
		key, err := os.ReadFile(filepath.Join(r.cfg.DataDir, "key.pem"))
		if err == nil {
			err = os.WriteFile(filepath.Join(cfg.DataDir, "key.pem"), key, 0o600)
		}
		if err != nil {
			r.t.Fatal(err)
		}
	}
}

// patience is how long a test waits for what should come at once: a bound for what is broken, and
// less than a lease, so that who left by then did not leave because the lease was over.
const patience = 15 * time.Second

// eventually waits until check returns "", or fails with what it last returned.
func eventually(t testing.TB, check func() string) {
	t.Helper()
	eventuallyWithin(t, patience, check)
}

func eventuallyWithin(t testing.TB, limit time.Duration, check func() string) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(limit)
	for {
		why := check()
		if why == "" {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("after %v: %s", limit, why)
		}
	}
}

// box is a box as others see it: a web server and its ID.
type box struct {
	t      testing.TB
	id     id.BoxID
	server *httptest.Server

	mu     sync.Mutex
	nonces map[string]string // by the digits of their path
}

func newBoxID(n int) id.BoxID { return id.BoxIDOf(fmt.Appendf(nil, "box %d", n)) }

func newBox(t testing.TB, n int) *box {
	b := &box{t: t, id: newBoxID(n), nonces: make(map[string]string)}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+wire.BoxIndexPath(b.id)+"{$}", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintf(w, "HI %s", b.id) })
	mux.HandleFunc("GET "+wire.NoncePath(b.id, "{short}"), func(w http.ResponseWriter, r *http.Request) {
		b.mu.Lock()
		defer b.mu.Unlock()
		nonce, ok := b.nonces[r.PathValue("short")]
		if !ok {
			http.NotFound(w, r)
			return
		}
		io.WriteString(w, nonce)
	})
	b.server = httptest.NewServer(mux)
	t.Cleanup(b.server.Close)
	return b
}

func (b *box) port() string {
	_, port, _ := net.SplitHostPort(b.server.Listener.Addr().String())
	return port
}

// learn remembers the nonce of a reply.
func (b *box) learn(nonce string) {
	sum := sha256.Sum256([]byte(nonce))
	b.mu.Lock()
	defer b.mu.Unlock()
	b.nonces[hex.EncodeToString(sum[:])[:16]] = nonce
}

// report is what the box sends; change may alter it.
func (b *box) report(change func(map[string]any)) []byte {
	x := wire.Exchange{
		Peer:      wire.Peer{ID: string(b.id), IP: "0.0.0.0", Port: wire.Text(b.port()), Type: wire.TypeBox},
		ConnectWS: "http://0.0.0.0:" + b.port() + wire.BoxWSPath(b.id),
		EdgeURL:   "http://0.0.0.0:" + b.port(),
		Features:  wire.Ours(),
		System:    wire.UnknownSystem(),
	}
	x.System.CPUIdle, x.System.NetCapacity, x.System.NetUp = 90, 5e6, 1e6
	return altered(b.t, wire.Encode(&x), change)
}

// oldReport is what an old box sends: a flat object of strings (docs/protocol.md).
func (b *box) oldReport(change func(map[string]any)) []byte {
	return altered(b.t, fmt.Appendf(nil, `{"ID": %q, "IP": "127.0.0.1", "PORT": %q, "TYPE": "BOX", "COMMAND": "EXCHANGE",
		"CONNECT_WS": "http://127.0.0.1:%s/dandelion/%s/ws/",
		"CPU-HZ": "1200", "CPU-NUM": "4", "CPU-USR": "1.2", "CPU-SYS": "0.8", "CPU-NIC": "0.0", "CPU-IDLE": "97.5", "CPU-IO": "0.3",
		"CPU-IRQ": "0.0", "CPU-SIRQ": "0.2", "LOADAVG-1": "0.07", "LOADAVG-5": "0.09", "LOADAVG-15": "0.05",
		"MEM-TOTAL": "926", "MEM-AVAIL": "511", "DISK-TOTAL": "29", "DISK-AVAIL": "21"}`,
		b.id, b.port(), b.port(), b.id), change)
}

func altered(t testing.TB, message []byte, change func(map[string]any)) []byte {
	t.Helper()
	if change == nil {
		return message
	}
	m := decode(t, message)
	change(m)
	out, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func decode(t testing.TB, message []byte) map[string]any {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal(message, &m); err != nil {
		t.Fatalf("%v: %s", err, message)
	}
	return m
}

// peer is a client's end of a session.
type peer struct {
	t  testing.TB
	ws *websocket.Conn
}

func (r *running) dial(path string) *peer {
	r.t.Helper()
	return r.dialWith(path, nil)
}

func (r *running) dialWith(path string, header http.Header) *peer {
	r.t.Helper()
	ws, resp, err := websocket.DefaultDialer.DialContext(r.t.Context(), "ws"+strings.TrimPrefix(r.base, "http")+path, header)
	if err != nil {
		r.t.Fatalf("%v %v", err, resp)
	}
	r.t.Cleanup(func() { ws.Close() })
	return &peer{r.t, ws}
}

func (p *peer) send(message []byte) {
	p.t.Helper()
	if err := p.ws.WriteMessage(websocket.TextMessage, message); err != nil {
		p.t.Fatal(err)
	}
}

func (p *peer) receive() map[string]any {
	p.t.Helper()
	_ = p.ws.SetReadDeadline(time.Now().Add(10 * time.Second))
	_, message, err := p.ws.ReadMessage()
	if err != nil {
		p.t.Fatal(err)
	}
	return decode(p.t, message)
}

func (p *peer) ask(message []byte) map[string]any {
	p.t.Helper()
	p.send(message)
	return p.receive()
}

// closed waits for the end of the session and returns the close code, -1 where there was none.
func (p *peer) closed() int {
	p.t.Helper()
	_ = p.ws.SetReadDeadline(time.Now().Add(10 * time.Second))
	for {
		if _, _, err := p.ws.ReadMessage(); err != nil {
			if e, ok := err.(*websocket.CloseError); ok {
				return e.Code
			}
			return -1
		}
	}
}

// connect opens a persistent session of a box, sends a report, and learns the nonce. The entrance
// ends the session after 8 s without a report, unless alive answers its pings.
func (r *running) connect(b *box) *peer {
	r.t.Helper()
	p := r.dial(wire.EntranceWSPath)
	b.reportOn(p)
	return p
}

func (b *box) reportOn(p *peer) map[string]any {
	b.t.Helper()
	reply := p.ask(b.report(nil))
	if reply["MESSAGE"] != wire.MessageAccepted {
		b.t.Fatalf("not accepted: %v", reply)
	}
	b.learn(reply["NONCE"].(string))
	return reply
}

const publisherID = "publisher-0123456789abcdef0123456789abcdef"

func searchMessage(extra string) []byte {
	return fmt.Appendf(nil, `{"ID": %q, "IP": "127.0.0.1", "TYPE": "PUBLISHER", "COMMAND": "SEARCH"%s}`, publisherID, extra)
}

// search returns the BOX_SET that a new session gets.
func (r *running) search() map[string]any {
	r.t.Helper()
	p := r.dial(wire.EntranceWSPath)
	defer p.ws.Close()
	return p.boxes()
}

func (p *peer) boxes() map[string]any {
	p.t.Helper()
	reply := p.ask(searchMessage(""))
	set, ok := reply["BOX_SET"].(map[string]any)
	if !ok {
		p.t.Fatalf("no BOX_SET: %v", reply)
	}
	return set
}

// offered waits until SEARCH offers the box, or does not.
func (r *running) offered(b *box, want bool) {
	r.t.Helper()
	p := r.dial(wire.EntranceWSPath)
	defer p.ws.Close()
	eventually(r.t, func() string {
		if _, found := p.boxes()[string(b.id)]; found != want {
			return fmt.Sprintf("offered: %v; %v", found, r.api("/api/v1/boxes/"+string(b.id)))
		}
		return ""
	})
}

// api returns what the API answers.
func (r *running) api(path string) map[string]any {
	r.t.Helper()
	resp, err := http.Get(r.base + path)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	return decode(r.t, body)
}

var embedded = state.Config{}

// shortLease makes leases end soon.
func shortLease(cfg *Config) { cfg.LeaseTTL = config.Second }

// metric returns the value of a metric without labels.
func (r *running) metric(name string) string {
	r.t.Helper()
	resp, err := http.Get(r.base + "/metrics")
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	for line := range strings.Lines(string(body)) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// offeredCount waits until SEARCH offers so many boxes.
func (r *running) offeredCount(n int) {
	r.t.Helper()
	p := r.dial(wire.EntranceWSPath)
	defer p.ws.Close()
	eventually(r.t, func() string {
		if got := len(p.boxes()); got != n {
			return fmt.Sprintf("%d boxes offered, want %d", got, n)
		}
		return ""
	})
}
