package box

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
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
	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

	"dandelion/pkg/config"
	"dandelion/pkg/id"
	"dandelion/pkg/identity"
	"dandelion/pkg/keys"
	"dandelion/pkg/state"
	"dandelion/pkg/state/redistest"
	"dandelion/pkg/wire"
	"dandelion/pkg/wsconn"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var pub = id.PublisherIDOf([]byte("publisher"))

// running is a box in this process.
type running struct {
	*Box
	t    testing.TB
	base string // http://127.0.0.1:port
	stop func() // and wait
}

func testConfig(t testing.TB) Config {
	cfg := DefaultConfig()
	cfg.Listen = "127.0.0.1:0"
	cfg.DataDir, cfg.LiveDir = filepath.Join(t.TempDir(), "data"), filepath.Join(t.TempDir(), "live")
	cfg.StorageLimit, cfg.LiveLimit = config.Fixed(64*config.MB), config.Fixed(64*config.MB)
	return cfg
}

func start(t testing.TB, cfg Config, redis state.Config) *running {
	t.Helper()
	b, err := New(cfg, redis, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	r := &running{Box: b, t: t, base: "http://" + b.Addr().String()}
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		http.DefaultClient.CloseIdleConnections()
	})
	t.Cleanup(r.stop)
	return r
}

func (r *running) get(url string, headers ...string) (int, string) {
	r.t.Helper()
	if strings.HasPrefix(url, "/") {
		url = r.base + url
	}
	req, err := http.NewRequestWithContext(r.t.Context(), http.MethodGet, url, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Set(name, value)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// publisher is a session with the box.
func (r *running) publisher(path string) *wsconn.Conn {
	r.t.Helper()
	conn, err := wsconn.Dial(r.t.Context(), r.base+path, wsconn.Dialing{Files: true})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(conn.Abort)
	conn.SetSilence(20 * time.Second)
	if err := conn.WriteText(wire.Encode(wire.Publish{
		Peer: wire.Peer{ID: string(pub), IP: "198.51.100.1", Type: wire.TypePublisher}, Command: wire.CommandPublish, Features: wire.Ours(),
		FrontURL: "http://198.51.100.1:7071",
	})); err != nil {
		r.t.Fatal(err)
	}
	reply := read[wire.PublishReply](r.t, conn)
	host, port, _ := net.SplitHostPort(r.Addr().String())
	if reply.Message != wire.MessageAccepted || reply.ID != string(r.ID()) || reply.IP != host || string(reply.Port) != port {
		r.t.Fatalf("%+v", reply)
	}
	return conn
}

func read[T any](t testing.TB, conn *wsconn.Conn) T {
	t.Helper()
	raw, err := conn.ReadText(wire.MaxMessage)
	if err != nil {
		t.Fatal(err)
	}
	m, err := wire.Decode[T](raw)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func push(t testing.TB, conn *wsconn.Conn, path id.Path, ttl time.Duration, content []byte) {
	t.Helper()
	h := wire.FileHeader{Path: path, TTL: ttl, RequestID: "r", Publisher: pub, Size: int64(len(content)), Digest: id.DigestOf(content)}
	if err := conn.WriteFile(t.Context(), h.AppendTo(nil), bytes.NewReader(content), h.Size); err != nil {
		t.Fatal(err)
	}
	if stored := read[wire.Stored](t, conn); stored.Command != wire.CommandStored || stored.SHA256 != h.Digest {
		t.Fatalf("%+v", stored)
	}
}

// TestServes: what publishers bring is served on both ports; the other routes are where they
// should be.
func TestServes(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.EdgeListen = "127.0.0.1:0"
	b := start(t, cfg, state.Config{})
	content := bytes.Repeat([]byte("0123456789"), 50_000)
	live := id.Path("/live/demo/720p/" + id.DigestOf(content).Short() + "/seg-1.ts")
	conn := b.publisher(wire.BoxWSPath(b.ID()))
	push(t, conn, live, time.Minute, content)
	push(t, b.publisher(strings.TrimSuffix(wire.BoxWSPath(b.ID()), "/")), "/vod/film.mp4", 0, content)

	edge := "http://" + b.EdgeAddr().String()
	for _, url := range []string{b.base + "/" + string(pub) + string(live), edge + "/" + string(pub) + string(live), edge + "/" + string(pub) + "/vod/film.mp4"} {
		if status, body := b.get(url); status != 200 || body != string(content) {
			t.Errorf("%s: %d, %d bytes", url, status, len(body))
		}
	}
	// Live segments are kept apart from those that stay.
	for path, dir := range map[id.Path]string{live: cfg.LiveDir, "/vod/film.mp4": filepath.Join(cfg.DataDir, "files")} {
		if _, err := os.Stat(filepath.Join(dir, string(pub)+string(path))); err != nil {
			t.Error(err)
		}
	}
	index := "/dandelion/" + string(b.ID())
	for path, want := range map[string]struct {
		status int
		body   string
	}{
		index + "/":                          {200, "HI " + string(b.ID())},
		index:                                {200, "HI " + string(b.ID())},
		"/":                                  {200, "This is box " + string(b.ID())},
		index + "/nonce/0123456789abcdef":    {404, "no entrance gave this box such a nonce\n"},
		"/dandelion/box-x/":                  {404, "not found\n"},
		"/" + string(pub) + "/":              {404, "not found\n"},
		"/" + string(pub) + "/../../key.pem": {404, "not found\n"},
		"/" + string(pub) + "//vod/film.mp4": {404, "not found\n"}, // and no redirect
		"/debug/health":                      {200, "alive\n"},
		"/api/v1/other":                      {404, "not found\n"},
	} {
		if status, body := b.get(path); status != want.status || !strings.HasPrefix(body, want.body) {
			t.Errorf("%s: %d %q", path, status, body)
		}
	}
	if status, _ := b.get(edge + index + "/"); status != 200 {
		t.Errorf("index on the viewers' port: %d", status)
	}
	for _, path := range []string{"/api/v1/box", "/metrics", "/", wire.BoxWSPath(b.ID())} {
		if status, _ := b.get(edge + path); status != 404 {
			t.Errorf("%s on the viewers' port: %d", path, status)
		}
	}
	totals := b.Totals()
	if totals.TakenFiles != 2 || totals.TakenBytes != 1_000_000 || totals.Files != 2 || totals.ServedBytes < 1_500_000 || totals.ServedRequests < 3 {
		t.Errorf("%+v", totals)
	}
	_, metrics := b.get("/metrics")
	for _, name := range []string{
		`dandelion_box_ingest_files_total{result="stored"} 2`, `dandelion_box_storage_files{dir="live"} 1`, "dandelion_edge_body_bytes_total",
		"dandelion_box_entrances_connected 0",
	} {
		if !strings.Contains(metrics, name) {
			t.Errorf("%s is not in the metrics", name)
		}
	}
}

func TestAPI(t *testing.T) {
	t.Parallel()
	b := start(t, testConfig(t), state.Config{})
	b.publisher(wire.BoxWSPath(b.ID()))
	status, body := b.get("/api/v1/box")
	var answer apiBox
	if err := json.Unmarshal([]byte(body), &answer); status != 200 || err != nil {
		t.Fatalf("%d, %v: %s", status, err, body)
	}
	if answer.ID != b.ID() || answer.Listen != b.Addr().String() || len(answer.Sessions) != 1 || answer.Sessions[0].Publisher != pub ||
		answer.Storage["data"].Limit != 64_000_000 || !strings.Contains(answer.Reachable, "no entrance is configured") {
		t.Errorf("%s", body)
	}
	if status, _ := b.get("/api/v1/box", "X-Forwarded-For: 192.0.2.1"); status != http.StatusForbidden {
		t.Errorf("from elsewhere: %d", status)
	}
	if status, body := b.get("/debug/ready"); status != 503 || !strings.Contains(body, "box.entrances") {
		t.Errorf("ready: %d %s", status, body)
	}
}

// TestSameBoxAfterRestart: the ID, the files and their times stay.
func TestSameBoxAfterRestart(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	first := start(t, cfg, state.Config{})
	content := []byte("content")
	conn := first.publisher(wire.BoxWSPath(first.ID()))
	push(t, conn, "/live", time.Minute, content)
	push(t, conn, "/kept", 0, content)
	first.stop()

	second := start(t, cfg, state.Config{})
	if second.ID() != first.ID() {
		t.Errorf("%s became %s", first.ID(), second.ID())
	}
	for _, path := range []string{"/live", "/kept"} {
		if status, body := second.get("/" + string(pub) + path); status != 200 || body != "content" {
			t.Errorf("%s: %d %q", path, status, body)
		}
	}
}

// TestCannotStart: each error is one line that names cause and cure, and gives everything back.
func TestCannotStart(t *testing.T) {
	t.Parallel()
	b := start(t, testConfig(t), state.Config{})
	_, port, _ := net.SplitHostPort(b.Addr().String())
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		change func(*Config)
		want   []string
	}{
		"data_dir in use": {func(c *Config) { c.DataDir = b.cfg.DataDir }, []string{"data_dir", "in use by another part of this process", "stop that one"}},
		"port in use":     {func(c *Config) { c.Listen = b.Addr().String() }, []string{"box.listen", port, "another program", "another port"}},
		"edge in use":     {func(c *Config) { c.EdgeListen = b.Addr().String() }, []string{"box.edge_listen", port}},
		"no such address": {func(c *Config) { c.Listen = "192.0.2.1:0" }, []string{"box.listen", "192.0.2.1:0", ":7072"}},
		"data_dir a file": {func(c *Config) { c.DataDir = file }, []string{"data_dir", file}},
		"live_dir a file": {func(c *Config) { c.LiveDir = file }, []string{"box.live_dir", file}},
		"live_dir taken":  {func(c *Config) { c.LiveDir = b.cfg.LiveDir }, []string{b.cfg.LiveDir, "in use by another process"}},
		"no GeoIP":        {func(c *Config) { c.GeoIPDB = file }, []string{"box.geoip_db", file}},
		"bad config":      {func(c *Config) { c.ReportInterval = 0 }, []string{"report_interval", "want 1s to 1m"}},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig(t)
			tt.change(&cfg)
			_, err := New(cfg, state.Config{}, slog.New(slog.DiscardHandler))
			if err == nil {
				t.Fatal("it starts")
			}
			for _, part := range tt.want {
				if !strings.Contains(err.Error(), part) || strings.Contains(err.Error(), "\n") {
					t.Errorf("%v: want one line with %q", err, part)
				}
			}
			if cfg.DataDir != b.cfg.DataDir && cfg.DataDir != file {
				hold, err := identity.Open(cfg.DataDir)
				if err != nil {
					t.Fatalf("its data_dir is not given free: %v", err)
				}
				hold.Close()
			}
		})
	}
}

// TestDrain: a download under way comes to its end, the entrance and the publisher are told.
func TestDrain(t *testing.T) {
	t.Parallel()
	e := newEntrance(t)
	cfg := testConfig(t)
	cfg.Entrances = []string{e.url}
	b := start(t, cfg, state.Config{})
	<-e.reports
	conn := b.publisher(wire.BoxWSPath(b.ID()))
	content := bytes.Repeat([]byte("0123456789"), 2_000_000) // more than sockets hold
	push(t, conn, "/film", time.Hour, content)
	resp, err := http.Get(b.base + "/" + string(pub) + "/film")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	part := make([]byte, 1000)
	if _, err := io.ReadFull(resp.Body, part); err != nil {
		t.Fatal(err)
	}
	stopped := make(chan struct{})
	go func() { b.stop(); close(stopped) }()
	if g := <-e.goodbyes; g.ID != string(b.ID()) || g.Reason != leaveReason {
		t.Errorf("%+v", g)
	}
	if g := read[wire.Goodbye](t, conn); g.Command != wire.CommandGoodbye || g.Reason != leaveReason {
		t.Errorf("%+v", g)
	}
	rest, err := io.ReadAll(resp.Body)
	if err != nil || !bytes.Equal(append(part, rest...), content) {
		t.Errorf("the download under way: %d bytes, %v", len(rest), err)
	}
	conn.Abort()
	<-stopped
}

// entrance is a small one that records what boxes say and dials back.
type entrance struct {
	t        *testing.T
	url      string
	reports  chan wire.Exchange
	goodbyes chan wire.Goodbye
	probed   chan string
}

func newEntrance(t *testing.T) *entrance {
	e := &entrance{t: t, reports: make(chan wire.Exchange, 100), goodbyes: make(chan wire.Goodbye, 10), probed: make(chan string, 10)}
	srv := httptest.NewServer(http.HandlerFunc(e.serve))
	t.Cleanup(srv.Close)
	e.url = srv.URL
	return e
}

const nonce = "a nonce of the test"

func (e *entrance) serve(w http.ResponseWriter, r *http.Request) {
	ws, err := (&websocket.Upgrader{}).Upgrade(w, r, nil)
	if err != nil {
		return
	}
	defer ws.Close()
	for first := true; ; {
		_, raw, err := ws.ReadMessage()
		if err != nil {
			return
		}
		if envelope, _ := wire.DecodeEnvelope(raw); envelope.Command == wire.CommandGoodbye {
			g, _ := wire.Decode[wire.Goodbye](raw)
			e.goodbyes <- g
			continue
		}
		x, err := wire.DecodeExchange(raw)
		if err != nil {
			e.t.Errorf("%s: %v", raw, err)
			return
		}
		e.reports <- x
		_ = ws.WriteMessage(websocket.TextMessage, wire.Encode(wire.ExchangeReply{
			Peer:    wire.Peer{ID: string(id.EntranceIDOf([]byte("e"))), IP: "127.0.0.1", Port: "7070", Type: wire.TypeEntrance},
			Command: wire.CommandExchange, Message: wire.MessageAccepted, EntranceURLs: []string{}, Features: wire.Ours(),
			Address: "127.0.0.1", Nonce: nonce, Reachable: wire.ReachableYes,
		}))
		if first {
			first = false
			go e.probe(x)
		}
	}
}

// probe fetches the nonce at the box's public URL, with the address that the box is seen at.
func (e *entrance) probe(x wire.Exchange) {
	sum := sha256.Sum256([]byte(nonce))
	url := strings.Replace(x.EdgeBase(), "0.0.0.0", "127.0.0.1", 1) + wire.NoncePath(id.BoxID(x.ID), hex.EncodeToString(sum[:8]))
	resp, err := http.Get(url)
	if err != nil {
		e.probed <- err.Error()
		return
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	e.probed <- fmt.Sprint(resp.StatusCode, " ", string(body))
}

// TestDialBack: the nonce is found at the URL that the report names, with one port or two.
func TestDialBack(t *testing.T) {
	t.Parallel()
	for _, edgeListen := range []string{"", "127.0.0.1:0"} {
		e := newEntrance(t)
		cfg := testConfig(t)
		cfg.EdgeListen, cfg.Entrances = edgeListen, []string{e.url}
		b := start(t, cfg, state.Config{})
		if got := <-e.probed; got != "200 "+nonce {
			t.Errorf("edge_listen %q: %s", edgeListen, got)
		}
		eventually(t, func() error {
			_, body := b.get("/api/v1/box")
			if !strings.Contains(body, "answers from outside") {
				return errors.New(body)
			}
			return nil
		})
		if status, body := b.get("/debug/ready"); status != 200 {
			t.Errorf("ready: %d %s", status, body)
		}
		b.stop()
	}
}

func eventually(t testing.TB, f func() error) {
	t.Helper()
	limit := time.After(20 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for err := f(); err != nil; err = f() {
		select {
		case <-limit:
			t.Fatalf("not within 20 s: %v", err)
		case <-tick.C:
		}
	}
}

// TestRecords: what other programs find in Redis, embedded or real (wire.md section 4).
func TestRecords(t *testing.T) {
	t.Parallel()
	for name, open := range map[string]func(t *testing.T) state.Config{
		"embedded": func(t *testing.T) state.Config { return state.Config{EmbeddedListen: freeAddr(t)} },
		"real":     func(t *testing.T) state.Config { return state.Config{URL: redistest.Start(t)} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			redisConfig := open(t)
			url := redisConfig.URL
			if url == "" {
				url = "redis://" + redisConfig.EmbeddedListen
			}
			options, err := redis.ParseURL(url)
			if err != nil {
				t.Fatal(err)
			}
			client := redis.NewClient(options)
			defer client.Close()
			e := newEntrance(t)
			cfg := testConfig(t)
			cfg.Entrances = []string{e.url}
			b := start(t, cfg, redisConfig)
			conn := b.publisher(wire.BoxWSPath(b.ID()))
			push(t, conn, "/timed", time.Minute, []byte("x"))
			push(t, conn, "/kept", 0, []byte("y"))

			key := keys.Box(b.ID())
			entrance := id.EntranceIDOf([]byte("e"))
			eventually(t, func() error {
				files, err := client.ZRangeWithScores(t.Context(), key.ExpireFiles(), 0, -1).Result()
				if err != nil || len(files) != 1 || files[0].Member != "/"+string(pub)+"/timed" {
					return fmt.Errorf("EXPIRE_FILES %v, %v", files, err)
				}
				if left := time.Until(time.UnixMilli(int64(files[0].Score * 1000))); left < 30*time.Second || left > time.Minute {
					return fmt.Errorf("expires in %v", left)
				}
				return nil
			})
			for hash, want := range map[string]map[string]string{
				key.Subscribe(pub):     {"ID": string(pub), "IP": "198.51.100.1", "TYPE": "PUBLISHER", "COMMAND": "PUBLISH", "FEATURES": "ack", "FRONT_URL": "http://198.51.100.1:7071", "ADDRESS": "127.0.0.1"},
				key.SelfExchange():     {"ID": string(b.ID()), "TYPE": "BOX", "COMMAND": "EXCHANGE", "IP": "0.0.0.0"},
				key.Exchange(entrance): {"ID": string(entrance), "TYPE": "ENTRANCE", "MESSAGE": "ACCEPTED"},
			} {
				eventually(t, func() error {
					got, err := client.HGetAll(t.Context(), hash).Result()
					for field, value := range want {
						if got[field] != value {
							return fmt.Errorf("%s: %s is %q, %v", hash, field, got[field], err)
						}
					}
					return nil
				})
			}
			for hash, expires := range map[string]bool{key.Subscribe(pub): true, key.Exchange(entrance): true, key.SelfExchange(): false} {
				ttl, err := client.TTL(t.Context(), hash).Result()
				if err != nil || (ttl > 0) != expires {
					t.Errorf("%s: TTL %v, %v", hash, ttl, err)
				}
			}
			if err := conn.WriteText(wire.Encode(wire.Delete{
				Peer: wire.Peer{ID: string(pub), IP: "x", Type: wire.TypePublisher}, Command: wire.CommandDelete, FilePaths: []string{"/timed"},
			})); err != nil {
				t.Fatal(err)
			}
			eventually(t, func() error {
				if n, err := client.ZCard(t.Context(), key.ExpireFiles()).Result(); n != 0 || err != nil {
					return fmt.Errorf("%d left, %v", n, err)
				}
				return nil
			})
		})
	}
}

// TestRedisDown: a box whose Redis does not answer takes files and serves them.
func TestRedisDown(t *testing.T) {
	t.Parallel()
	b := start(t, testConfig(t), state.Config{URL: "redis://" + freeAddr(t)})
	conn := b.publisher(wire.BoxWSPath(b.ID()))
	// More than its queue holds, so that nothing may wait for it.
	for i := range 50 {
		push(t, conn, id.Path(fmt.Sprintf("/f%d", i)), time.Minute, []byte("x"))
	}
	for range 2 * recordQueue {
		b.records.Deleted(pub, "/x")
	}
	if status, body := b.get("/" + string(pub) + "/f49"); status != 200 || body != "x" {
		t.Errorf("%d %q", status, body)
	}
	if _, metrics := b.get("/metrics"); strings.Contains(metrics, "dandelion_box_records_dropped_total 0\n") {
		t.Error("nothing is counted as dropped")
	}
}

// freeAddr returns a loopback address that nobody listens on now.
func freeAddr(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}
