package publisher

import (
	"context"
	"log/slog"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dandelion/pkg/state"
)

// TestWhoMayAskWhat: viewers may be anywhere; uploads and what names boxes and directories are
// for this machine, and not for a page of another site that is open on it.
func TestWhoMayAskWhat(t *testing.T) {
	t.Parallel()
	cfg := DefaultConfig()
	cfg.Listen, cfg.DataDir = "127.0.0.1:0", filepath.Join(t.TempDir(), "data")
	cfg.Streams = []StreamConfig{{Name: "demo", Source: "dir:" + filepath.Join(t.TempDir(), "secret")}}
	p, err := New(t.Context(), cfg, state.Default(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()

	const world, here = "203.0.113.9:1234", "127.0.0.1:1234"
	ask := func(method, target, remote, host, origin string) *httptest.ResponseRecorder {
		r := httptest.NewRequest(method, target, strings.NewReader("x"))
		r.RemoteAddr, r.Host = remote, host
		if origin != "" {
			r.Header.Set("Origin", origin)
		}
		w := httptest.NewRecorder()
		p.server.Handler.ServeHTTP(w, r)
		return w
	}
	for _, tt := range []struct {
		method, target, remote, host, origin string
		want                                 int
	}{
		{"GET", "/", world, "a.example", "", 200},
		{"GET", "/api/v1/streams", world, "a.example", "https://b.example", 200},
		{"GET", "/api/v1/locate?path=/none", world, "a.example", "", 404},
		{"GET", "/live/demo/none.ts", world, "a.example", "", 404},
		{"GET", "/api/v1/boxes", world, "a.example", "", 403},
		{"GET", "/api/v1/boxes", here, "127.0.0.1:7071", "", 200},
		{"GET", "/api/v1/boxes", here, "rebound.example", "", 403},
		{"POST", "/api/v1/uploads?name=x", world, "127.0.0.1:7071", "", 403},
		{"POST", "/api/v1/uploads?name=x", here, "rebound.example", "", 403},
		{"POST", "/api/v1/uploads?name=x", here, "127.0.0.1:7071", "https://b.example", 403},
		{"POST", "/api/v1/uploads?name=x&ttl=soon", here, "localhost:7071", "", 400},
		{"GET", "/metrics", world, "a.example", "", 403},
		{"GET", "/debug/health", world, "a.example", "", 403},
		{"GET", "/debug/pprof/heap", here, "rebound.example", "", 403},
		{"GET", "/debug/health", here, "127.0.0.1:7071", "", 200},
	} {
		if w := ask(tt.method, tt.target, tt.remote, tt.host, tt.origin); w.Code != tt.want {
			t.Errorf("%s %s from %s as %s, Origin %q: %d %s, want %d", tt.method, tt.target, tt.remote, tt.host, tt.origin, w.Code, w.Body, tt.want)
		}
	}
	ticker := time.NewTicker(2 * time.Millisecond)
	defer ticker.Stop()
	for p.streams["demo"].Status().Problem == "" { // the source is not there
		select {
		case <-ticker.C:
		case <-t.Context().Done():
			t.Fatal("the source is never looked at")
		}
	}
	for remote, want := range map[string]bool{world: false, here: true} {
		body := ask("GET", "/api/v1/streams", remote, "127.0.0.1:7071", "").Body.String()
		if strings.Contains(body, "secret") != want {
			t.Errorf("the source's directory is shown to %s: %v: %s", remote, !want, body)
		}
	}
}
