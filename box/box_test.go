package box

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"dandelion/pkg/config"
	"dandelion/pkg/id"
	"dandelion/pkg/identity"
	"dandelion/pkg/state"
	"dandelion/pkg/wire"
	"dandelion/pkg/wsconn"
)

func TestMain(m *testing.M) {
	if err := os.MkdirAll(buildDir, 0o755); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(status int) {
		os.RemoveAll(buildDir)
		os.Exit(status)
	}))
}

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
	cfg.UploadCapacity, cfg.UploadLimit = config.Fixed(config.Gbit), config.Fixed(config.Gbit)
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
		"no GeoIP":        {func(c *Config) { c.GeoIPDB = []string{file} }, []string{"box.geoip_db", file}},
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
