package box

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dandelion/box/internal/segstore"
	"dandelion/pkg/config"
	"dandelion/pkg/id"
	"dandelion/pkg/state"
	"dandelion/pkg/testnginx"
	"dandelion/pkg/wire"
)

func printed(t testing.TB, cfg Config) string {
	t.Helper()
	var b bytes.Buffer
	if err := PrintNginx(&b, cfg); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(b.String(), "{{") {
		t.Errorf("not all is filled in:\n%s", b.String())
	}
	return b.String()
}

// TestDeployedNginxConf: deploy/nginx/box.conf is what the example's box prints.
func TestDeployedNginxConf(t *testing.T) {
	t.Parallel()
	const cure = "run: go run ./box/cmd/run_box --config docs/examples/box-nginx.yaml --print-nginx > deploy/nginx/box.conf"
	redis, cfg := state.Default(), DefaultConfig()
	sections := []config.Section{{Name: "redis", Value: &redis, Shared: true}, {Name: "box", Value: &cfg}}
	if _, err := config.Load(config.Options{File: "../docs/examples/box-nginx.yaml"}, sections...); err != nil {
		t.Fatal(err)
	}
	deployed, err := os.ReadFile("../deploy/nginx/box.conf")
	if err != nil || string(deployed) != printed(t, cfg) {
		t.Errorf("deploy/nginx/box.conf is not what the example gives (%v): %s", err, cure)
	}
}

// nginxConfig is a box's behind an nginx that listens on a free port.
func nginxConfig(t testing.TB) Config {
	cfg := testConfig(t)
	cfg.Edge, cfg.EdgeListen = edgeNginx, testnginx.FreeAddr(t)
	cfg.AccessLog = filepath.Join(t.TempDir(), "access.log")
	cfg.UploadCapacity, cfg.UploadLimit = config.AutoBitRate{}, config.Fixed(40*config.Mbit)
	return cfg
}

func TestValidateNginx(t *testing.T) {
	t.Parallel()
	for want, change := range map[string]func(*Config){
		"edge_listen":  func(c *Config) { c.EdgeListen = "" },
		"live_dir":     func(c *Config) { c.LiveDir = "" },
		"access_log":   func(c *Config) { c.AccessLog = "" },
		"upload_limit": func(c *Config) { c.UploadLimit = config.AutoBitRate{} },
		"data_dir":     func(c *Config) { c.DataDir = "/x;y" },
	} {
		cfg := nginxConfig(t)
		if err := cfg.Validate(); err != nil {
			t.Fatal(err)
		}
		change(&cfg)
		var field *config.FieldError
		if err := cfg.Validate(); !errors.As(err, &field) || field.Field != want || field.Want == "" {
			t.Errorf("%s: %v", want, err)
		}
	}
	if err := PrintNginx(io.Discard, testConfig(t)); err == nil || !strings.Contains(err.Error(), "box.edge") {
		t.Error(err)
	}
}

func TestPrintNginx(t *testing.T) {
	t.Parallel()
	cfg := nginxConfig(t)
	cfg.Listen = testnginx.FreeAddr(t)
	for name, tt := range map[string]struct {
		change func(*Config)
		want   []string
	}{
		"upload_limit":    {func(c *Config) { c.UploadLimit = config.Fixed(40 * config.Mbit) }, []string{"limit_rate 500000;", "limit_conn dandelion_box 10;", "proxy_pass http://127.0.0.1:"}},
		"a small one":     {func(c *Config) { c.UploadLimit = config.Fixed(2 * config.Mbit) }, []string{"limit_rate 250000;", "limit_conn dandelion_box 1;"}},
		"upload_capacity": {func(c *Config) { c.UploadLimit, c.UploadCapacity = config.AutoBitRate{}, config.Fixed(16*config.Mbit) }, []string{"half of upload_capacity: 8Mbit/s", "limit_conn dandelion_box 2;"}},
		"all addresses":   {func(c *Config) { c.Listen, c.EdgeListen = ":7073", ":7072" }, []string{"listen 7072;", "listen [::]:7072;", "proxy_pass http://127.0.0.1:7073;"}},
		"a space":         {func(c *Config) { c.LiveDir = "/a b" }, []string{`root "/a b";`}},
		"TLS":             {func(c *Config) { c.PublicAddress = "https://box.example.org:8443" }, []string{" ssl;", "server_name box.example.org;", "/etc/letsencrypt/live/box.example.org/fullchain.pem;"}},
	} {
		cfg := cfg
		tt.change(&cfg)
		text := printed(t, cfg)
		for _, want := range tt.want {
			if !strings.Contains(text, want) {
				t.Errorf("%s: no %q in\n%s", name, want, text)
			}
		}
		if name != "TLS" && name != "all addresses" { // this machine may have no IPv6
			testnginx.Check(t, text)
		}
	}
}

// store gives the box a file.
func (r *running) store(p id.Path, ttl time.Duration, content []byte) {
	r.t.Helper()
	w, err := r.Box.store.Create(segstore.Meta{Publisher: pub, Path: p, TTL: ttl, Size: int64(len(content))})
	if err == nil {
		if _, err = w.Write(content); err == nil {
			_, err = w.Commit()
		}
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

// ask answers with the headers and the body.
func ask(t testing.TB, client *http.Client, method, url string, headers ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Set(name, value)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

// TestNginx: nginx serves the box's files with TLS, and nothing else; what it sends is the box's account.
func TestNginx(t *testing.T) {
	t.Parallel()
	cfg := nginxConfig(t)
	cfg.PublicAddress = "https://" + cfg.EdgeListen
	b := start(t, cfg, state.Config{})
	cfg.Listen = b.Addr().String()
	cert, key := testnginx.Certificate(t)
	server := testnginx.Start(t, cfg.EdgeListen, testnginx.Edit(t, printed(t, cfg), map[string]string{
		"ssl_certificate": "ssl_certificate " + cert + ";", "ssl_certificate_key": "ssl_certificate_key " + key + ";",
	}))
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	t.Cleanup(transport.CloseIdleConnections)
	client := &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	base := "https://" + cfg.EdgeListen
	files := base + "/" + string(pub)

	live := bytes.Repeat([]byte("live"), 5000)
	const segment = "/live/demo/index/0123456789ab/seg 1.ts"
	b.store(segment, time.Minute, live)
	b.store("/films/film.html", time.Hour, []byte("<script>"))
	const escaped = "/live/demo/index/0123456789ab/seg%201.ts"

	var sent uint64
	var requests uint64
	for _, tt := range []struct {
		method, path string
		headers      []string
		status       int
		body         string
		has          []string // headers of the answer
	}{
		{"GET", escaped, nil, 200, string(live), []string{"Content-Type: video/mp2t", "Cache-Control: public, max-age=31536000, immutable", "Content-Security-Policy: "}},
		{"GET", escaped, []string{"Range: bytes=4-7"}, 206, "live", []string{"Content-Range: bytes 4-7/20000", "Cache-Control: public, max-age=31536000, immutable"}},
		{"GET", escaped, []string{"Range: bytes=99999-"}, 416, "-", nil},
		{"HEAD", escaped, nil, 200, "", []string{"Content-Length: 20000"}},
		{"OPTIONS", escaped, nil, 204, "", []string{"Access-Control-Allow-Methods: GET, HEAD, OPTIONS"}},
		{"POST", escaped, nil, 405, "-", nil},
		{"GET", "/films/film.html", nil, 200, "<script>", []string{"Content-Type: application/octet-stream", "Content-Security-Policy: sandbox", "Cache-Control: public, max-age=60"}},
		{"GET", "/live/demo/index/0123456789ab/gone.ts", nil, 404, "-", []string{"Cache-Control: no-store"}},
		{"GET", "/live/demo", nil, 404, "-", nil},
		{"GET", "/live/demo/", nil, 404, "-", nil},
		{"GET", "/", nil, 404, "-", nil},
		{"GET", "/../.boot", nil, 404, "-", nil},
		{"GET", "/%2e%2e/.committed/", nil, 404, "-", nil},
	} {
		resp, body := ask(t, client, tt.method, files+tt.path, tt.headers...)
		requests++
		sent += uint64(len(body))
		if resp.StatusCode != tt.status || tt.body != "-" && body != tt.body {
			t.Errorf("%s %s %v: %d, %d bytes", tt.method, tt.path, tt.headers, resp.StatusCode, len(body))
		}
		if got := resp.Header.Values("Access-Control-Allow-Origin"); len(got) != 1 || got[0] != "*" {
			t.Errorf("%s %s: CORS %q", tt.method, tt.path, got)
		}
		if tt.status == 416 {
			continue // nginx writes some headers twice then
		}
		for _, want := range append(tt.has, "X-Content-Type-Options: nosniff", "Timing-Allow-Origin: *") {
			name, value, _ := strings.Cut(want, ": ")
			if got := resp.Header.Values(name); strings.Join(got, "|") != value {
				t.Errorf("%s %s %v: %s is %q, want %q", tt.method, tt.path, tt.headers, name, got, value)
			}
		}
	}
	for _, path := range []string{"/", "/.boot", "/.committed/", "/.incoming", "/.lock", "/key.pem", "/api/v1/box", "/metrics", "/debug/health", "/dandelion/../api/v1/box"} {
		requests++
		resp, body := ask(t, client, "GET", base+path)
		sent += uint64(len(body))
		if resp.StatusCode != 404 {
			t.Errorf("%s: %d", path, resp.StatusCode)
		}
	}
	if resp, body := ask(t, client, "GET", base+wire.BoxIndexPath(b.ID())); resp.StatusCode != 200 || body != "HI "+string(b.ID()) {
		t.Errorf("the index: %d %s", resp.StatusCode, body)
	}

	awaitTotals(t, b, requests, sent)
	if err := os.Rename(cfg.AccessLog, cfg.AccessLog+".1"); err != nil {
		t.Fatal(err)
	}
	server.Reopen()
	for range 20 {
		_, body := ask(t, client, "GET", files+escaped)
		requests, sent = requests+1, sent+uint64(len(body))
	}
	awaitTotals(t, b, requests, sent)
	if got := b.limiter.Sent(); uint64(got) != sent {
		t.Errorf("%d bytes count against the upload, want %d", got, sent)
	}
}

// TestNginxAborted: of an answer that its viewer broke off, what was sent is accounted.
func TestNginxAborted(t *testing.T) {
	t.Parallel()
	cfg := nginxConfig(t)
	b := start(t, cfg, state.Config{})
	cfg.Listen = b.Addr().String()
	testnginx.Start(t, cfg.EdgeListen, printed(t, cfg))
	const size, taken = 20_000_000, 200_000
	b.store("/film.mp4", time.Hour, make([]byte, size))
	transport := &http.Transport{}
	resp, err := (&http.Client{Transport: transport}).Get("http://" + cfg.EdgeListen + "/" + string(pub) + "/film.mp4")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, resp.Body, taken); err != nil {
		t.Error(err)
	}
	resp.Body.Close()
	transport.CloseIdleConnections()
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for b.Totals().ServedRequests == 0 {
		<-ticker.C
	}
	if got := b.Totals().ServedBytes; got < taken || got > taken+3*usualRate {
		t.Errorf("%d bytes accounted, the viewer took %d of %d", got, taken, size)
	}
	if _, metrics := b.get("/metrics"); !strings.Contains(metrics, "\ndandelion_edge_aborted_total 1\n") {
		t.Error("not counted as aborted")
	}
}

func awaitTotals(t testing.TB, b *running, requests, sent uint64) {
	t.Helper()
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	deadline := time.After(20 * time.Second)
	for {
		got := b.Totals()
		if got.ServedRequests == requests && got.ServedBytes == sent {
			return
		}
		select {
		case <-ticker.C:
		case <-deadline:
			log, _ := os.ReadFile(b.cfg.AccessLog)
			t.Fatalf("%d requests and %d bytes accounted, want %d and %d\n%s", got.ServedRequests, got.ServedBytes, requests, sent, log)
		}
	}
}

// TestNginxIsNotRunning: the advice is to start it, and not to look at firewalls.
func TestNginxIsNotRunning(t *testing.T) {
	t.Parallel()
	cfg := nginxConfig(t)
	_, port, _ := net.SplitHostPort(cfg.EdgeListen)
	want := "nothing listens on port " + port + " of this machine: start nginx with the configuration that run_box --print-nginx prints"
	if got := cfg.startNginx(); got != want {
		t.Errorf("%q", got)
	}
	b := start(t, cfg, state.Config{})
	cfg.Listen = b.Addr().String()
	testnginx.Start(t, cfg.EdgeListen, printed(t, cfg))
	if got := cfg.startNginx(); got != "" {
		t.Errorf("%q, and nginx runs", got)
	}
	cfg.EdgeListen = ":" + port
	if got := cfg.startNginx(); got != "" {
		t.Errorf("%q of all addresses", got)
	}
}

// TestNginxFull: beyond what upload_limit carries, nginx lets run_box send viewers back, and together the answers stay
// within it.
func TestNginxFull(t *testing.T) {
	t.Parallel()
	cfg := nginxConfig(t)
	cfg.UploadLimit = config.Fixed(8 * config.Mbit) // two answers of 500 kB/s
	b := start(t, cfg, state.Config{})
	cfg.Listen = b.Addr().String()
	testnginx.Start(t, cfg.EdgeListen, printed(t, cfg))
	content := bytes.Repeat([]byte("x"), 3_000_000)
	const segment = "/live/demo/index/0123456789ab/1.ts"
	b.store(segment, time.Minute, content)
	url := "http://" + cfg.EdgeListen + "/" + string(pub) + segment

	client := &http.Client{Transport: &http.Transport{}}
	t.Cleanup(client.CloseIdleConnections)
	began := time.Now()
	var under [2]*http.Response
	for i := range under {
		var err error
		if under[i], err = client.Get(url); err != nil || under[i].StatusCode != 200 {
			t.Fatal(under[i], err)
		}
		defer under[i].Body.Close()
	}
	resp, body := ask(t, client, "GET", url)
	if resp.StatusCode != 503 || resp.Header.Get("Retry-After") != "1" || resp.Header.Get("Access-Control-Allow-Origin") != "*" || resp.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("the third: %d %v %s", resp.StatusCode, resp.Header, body) // no publisher is there to send it back to
	}
	if resp, _ := ask(t, client, "HEAD", url); resp.StatusCode != 200 {
		t.Errorf("HEAD: %d", resp.StatusCode)
	}
	for i := range under {
		if n, err := io.Copy(io.Discard, under[i].Body); err != nil || n != int64(len(content)) {
			t.Errorf("%d bytes, %v", n, err)
		}
	}
	rate := float64(2*len(content)) / time.Since(began).Seconds()
	if limit := float64(cfg.upload().BytesPerSecond()); rate > 1.2*limit { // nginx counts whole seconds
		t.Errorf("%.0f bytes/s, want at most %.0f", rate, limit)
	}
	if got := b.Totals().Bounced; got != 1 {
		t.Errorf("%d bounced, want 1", got)
	}
}

func (c *Config) upload() config.BitRate { v, _ := c.UploadLimit.Get(); return v }

// TestLetThrough: nginx's user may pass through a data_dir that a first start made for the box alone, and still not
// look into it or read the key.
func TestLetThrough(t *testing.T) {
	t.Parallel()
	cfg := nginxConfig(t)
	start(t, cfg, state.Config{}).stop()
	for name, want := range map[string]os.FileMode{".": 0o711, "files": 0o755, "key.pem": 0o600} {
		if info, err := os.Stat(filepath.Join(cfg.DataDir, name)); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v; want %o", name, info.Mode(), err, want)
		}
	}
}
