package edge

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"mime"
	"mime/multipart"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"dandelion/box/internal/segstore"
	"dandelion/pkg/id"
)

var pub = id.PublisherIDOf([]byte("a"))

func newStore(t testing.TB) *segstore.Store {
	t.Helper()
	dir := t.TempDir()
	s, err := segstore.Open(segstore.Config{
		LiveDir: filepath.Join(dir, "live"), DataDir: filepath.Join(dir, "data"), LiveLimit: 256 << 20, StorageLimit: 256 << 20,
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func content(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

func put(t testing.TB, s *segstore.Store, path string, ttl time.Duration, b []byte) segstore.Entry {
	t.Helper()
	w, err := s.Create(segstore.Meta{Publisher: pub, Path: id.Path(path), TTL: ttl, Size: int64(len(b))})
	if err != nil {
		t.Fatal(err)
	}
	w.Write(b)
	e, err := w.Commit()
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// serve runs an Edge on a loopback port and returns it with its base URL and its deliveries.
func serve(t testing.TB, cfg Config) (*Edge, string, <-chan Delivery) {
	t.Helper()
	deliveries := make(chan Delivery, 1000)
	cfg.OnDelivery = func(d Delivery) { deliveries <- d }
	cfg.Log = slog.New(slog.DiscardHandler)
	e := New(cfg)
	server := e.Server(e.Handler())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Close()
		<-served
	})
	return e, "http://" + l.Addr().String(), deliveries
}

func do(t testing.TB, method, url string, header ...string) (*http.Response, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, b
}

func TestAnswers(t *testing.T) {
	t.Parallel()
	store := newStore(t)
	b := content(100_000)
	addressed := "/live/demo/720p/" + id.DigestOf(b).Short() + "/seg-0.ts"
	etag := `"` + id.DigestOf(b).String() + `"`
	put(t, store, addressed, time.Minute, b)
	put(t, store, "/vod/a film.MP4", time.Hour, b)
	put(t, store, "/vod/kept.m4s", 0, b)
	put(t, store, "/vod/page.html", 0, []byte("<script>alert(1)</script>"))
	put(t, store, "/vod/empty.vtt", time.Hour, nil)
	_, base, deliveries := serve(t, Config{Store: store})
	base += "/" + string(pub)

	const immutable = "public, max-age=31536000, immutable"
	octet := "application/octet-stream"
	tests := []struct {
		name, method, path string
		header             []string
		status             int
		body               []byte
		want               map[string]string // "": absent
	}{
		{
			"addressed", "GET", addressed, nil, 200, b,
			map[string]string{"Etag": etag, "Cache-Control": immutable, "Content-Type": "video/mp2t", "Content-Length": "100000", "Accept-Ranges": "bytes", "Last-Modified": "", "Content-Security-Policy": ""},
		},
		{"head", "HEAD", addressed, nil, 200, nil, map[string]string{"Etag": etag, "Cache-Control": immutable, "Content-Length": "100000"}},
		{"escaped", "GET", "/vod/a%20film.MP4", nil, 200, b, map[string]string{"Content-Type": "video/mp4"}},
		{"escaped slash", "GET", "/vod%2Fkept.m4s", nil, 200, b, map[string]string{"Content-Type": "video/iso.segment", "Cache-Control": "public, max-age=60"}},
		{"active content", "GET", "/vod/page.html", nil, 200, []byte("<script>alert(1)</script>"), map[string]string{"Content-Type": octet, "Content-Security-Policy": "sandbox", "X-Content-Type-Options": "nosniff"}},
		{"empty", "GET", "/vod/empty.vtt", nil, 200, nil, map[string]string{"Content-Type": "text/vtt; charset=utf-8", "Content-Length": "0"}},
		{"range", "GET", addressed, []string{"Range", "bytes=1000-1999"}, 206, b[1000:2000], map[string]string{"Content-Range": "bytes 1000-1999/100000", "Etag": etag, "Cache-Control": immutable}},
		{"open range", "GET", addressed, []string{"Range", "bytes=99999-"}, 206, b[99_999:], nil},
		{"suffix range", "GET", addressed, []string{"Range", "bytes=-10"}, 206, b[99_990:], nil},
		{"range behind the end", "GET", addressed, []string{"Range", "bytes=100000-"}, 416, []byte("invalid range: failed to overlap\n"), map[string]string{"Content-Range": "bytes */100000", "Cache-Control": "no-store"}},
		{"same bytes", "GET", addressed, []string{"If-None-Match", etag}, 304, nil, map[string]string{"Etag": etag, "Cache-Control": immutable}},
		{"other bytes", "GET", addressed, []string{"If-None-Match", `"x"`}, 200, b, nil},
		{"if-range same", "GET", addressed, []string{"Range", "bytes=0-9", "If-Range", etag}, 206, b[:10], nil},
		{"if-range other", "GET", addressed, []string{"Range", "bytes=0-9", "If-Range", `"x"`}, 200, b, nil},
		{"unknown", "GET", "/vod/none.ts", nil, 404, []byte("not found\n"), map[string]string{"Cache-Control": "no-store", "Content-Type": "text/plain; charset=utf-8"}},
		{"directory", "GET", "/vod", nil, 404, []byte("not found\n"), nil},
		{"listing", "GET", "/vod/", nil, 404, []byte("not found\n"), nil},
		{"publisher", "GET", "", nil, 404, []byte("not found\n"), nil},
		{"up", "GET", "/vod/%2e%2e/vod/kept.m4s", nil, 404, []byte("not found\n"), nil},
		{"twice escaped", "GET", "/vod/kept%252em4s", nil, 404, []byte("not found\n"), nil},
		{"inner names", "GET", "/../.committed", nil, 404, []byte("not found\n"), nil},
		{"head unknown", "HEAD", "/vod/none.ts", nil, 404, nil, map[string]string{"Cache-Control": "no-store"}},
		{"post", "POST", addressed, nil, 405, []byte("only GET and HEAD\n"), map[string]string{"Allow": "GET, HEAD, OPTIONS", "Cache-Control": "no-store"}},
		{
			"preflight", "OPTIONS", addressed,
			[]string{"Origin", "https://player.example", "Access-Control-Request-Headers", "range"},
			204, nil,
			map[string]string{"Access-Control-Allow-Methods": "GET, HEAD, OPTIONS", "Access-Control-Max-Age": "86400"},
		},
	}
	for _, tt := range tests {
		resp, body := do(t, tt.method, base+tt.path, tt.header...)
		d := <-deliveries
		if resp.StatusCode != tt.status || !bytes.Equal(body, tt.body) {
			t.Errorf("%s: status %d, %d bytes, want %d and %d", tt.name, resp.StatusCode, len(body), tt.status, len(tt.body))
		}
		if d.Status != tt.status || d.Bytes != int64(len(tt.body)) || d.Aborted || d.Method != tt.method || d.URL != "/"+string(pub)+tt.path || !d.Viewer.IsLoopback() {
			t.Errorf("%s: delivery %+v", tt.name, d)
		}
		for k, v := range map[string]string{"Access-Control-Allow-Origin": "*", "Timing-Allow-Origin": "*", "Access-Control-Expose-Headers": "Content-Length, Content-Range, ETag"} {
			if resp.Header.Get(k) != v {
				t.Errorf("%s: %s is %q", tt.name, k, resp.Header.Get(k))
			}
		}
		for k, v := range tt.want {
			if got := resp.Header.Get(k); got != v {
				t.Errorf("%s: %s is %q, want %q", tt.name, k, got, v)
			}
		}
	}
}

func TestCacheControl(t *testing.T) {
	t.Parallel()
	now := time.Now()
	segment := segstore.Entry{Path: "/live/demo/720p/0123456789ab/seg-0.ts", Expires: now.Add(time.Minute)}
	for want, e := range map[string]segstore.Entry{
		"public, max-age=31536000, immutable": segment,
		"public, max-age=90":                  {Path: "/a.ts", Expires: now.Add(90*time.Second + time.Millisecond)},
		"public, max-age=0":                   {Path: "/a.ts", Expires: now.Add(-time.Second)},
		"public, max-age=60":                  {Path: "/a.ts"},
	} {
		if got := cacheControl(e, now); got != want {
			t.Errorf("%+v: %q, want %q", e, got, want)
		}
	}
}

func TestMultipleRanges(t *testing.T) {
	t.Parallel()
	store := newStore(t)
	b := content(100_000)
	put(t, store, "/a.ts", time.Hour, b)
	e, base, deliveries := serve(t, Config{Store: store})
	resp, body := do(t, "GET", base+"/"+string(pub)+"/a.ts", "Range", "bytes=0-9,50000-50099")
	_, params, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil || resp.StatusCode != 206 {
		t.Fatalf("status %d, %v", resp.StatusCode, err)
	}
	parts := multipart.NewReader(bytes.NewReader(body), params["boundary"])
	for _, want := range [][]byte{b[:10], b[50_000:50_100]} {
		part, err := parts.NextPart()
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := io.ReadAll(part); !bytes.Equal(got, want) {
			t.Error("a part has other bytes")
		}
	}
	if d := <-deliveries; d.Bytes != int64(len(body)) || d.Status != 206 {
		t.Errorf("delivery %+v, body %d bytes", d, len(body))
	}
	if requests, sent := e.Totals(); requests != 1 || sent != uint64(len(body)) {
		t.Errorf("totals %d, %d", requests, sent)
	}
}

func TestExpiredIsNotFound(t *testing.T) {
	t.Parallel()
	store := newStore(t)
	e := put(t, store, "/a.ts", time.Nanosecond, content(10)) // nobody runs the store: the file is still on disk
	if !e.Expires.Before(time.Now()) {
		t.Fatal("not expired yet")
	}
	_, base, _ := serve(t, Config{Store: store})
	if resp, _ := do(t, "GET", base+"/"+string(pub)+"/a.ts"); resp.StatusCode != 404 {
		t.Errorf("status %d for an expired file", resp.StatusCode)
	}
}

// hijacker stands for the websockets on the same listener: they must not inherit deadlines.
func TestOtherRoutesAndHijack(t *testing.T) {
	t.Parallel()
	store := newStore(t)
	put(t, store, "/a.ts", time.Hour, content(10))
	e := New(Config{Store: store, Log: slog.New(slog.DiscardHandler), RateWindow: 50 * time.Millisecond})
	mux := http.NewServeMux()
	mux.Handle("/", e.Handler())
	var hijackedWrite atomic.Int64
	mux.HandleFunc("/dandelion/ws/", func(w http.ResponseWriter, _ *http.Request) {
		c, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		rw.ReadByte() // until the other side goes on, later than any deadline
		n, _ := c.Write([]byte("late"))
		hijackedWrite.Store(int64(n))
	})
	server := httptest.NewUnstartedServer(nil)
	server.Config = e.Server(mux)
	server.Start()
	defer server.Close()
	c := dialRaw(t, server.URL, "GET /"+string(pub)+"/a.ts HTTP/1.1\r\nHost: x\r\n\r\n")
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != 200 {
		t.Fatal(resp, err)
	}
	io.Copy(io.Discard, resp.Body)
	io.WriteString(c, "GET /dandelion/ws/ HTTP/1.1\r\nHost: x\r\n\r\n")
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	<-ctx.Done()
	io.WriteString(c, "x")
	if b, err := io.ReadAll(r); string(b) != "late" {
		t.Errorf("got %q, %v", b, err)
	}
	if n, _ := e.conns.Count(); n != 0 {
		t.Errorf("%d connections counted after the hijack", n)
	}
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	store := newStore(t)
	b := content(5000)
	put(t, store, "/a.ts", time.Hour, b)
	reg := prometheus.NewRegistry()
	e, base, deliveries := serve(t, Config{Store: store, Registerer: reg})
	for _, p := range []string{"/a.ts", "/a.ts", "/none"} {
		do(t, "GET", base+"/"+string(pub)+p)
		<-deliveries
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]string)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += "," + l.GetValue()
			}
			got[name] = strconv.FormatFloat(m.GetCounter().GetValue(), 'f', -1, 64)
		}
	}
	want := map[string]string{"dandelion_edge_requests_total,200": "2", "dandelion_edge_requests_total,404": "1", "dandelion_edge_body_bytes_total": fmt.Sprint(10_000 + len("not found\n"))}
	for k, v := range want {
		if got[k] != v {
			t.Errorf("%s is %s, want %s", k, got[k], v)
		}
	}
	if requests, sent := e.Totals(); requests != 3 || sent != 10_010 {
		t.Errorf("totals %d, %d", requests, sent)
	}
}
