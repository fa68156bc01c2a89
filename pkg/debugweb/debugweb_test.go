package debugweb

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

func options(t *testing.T, checks ...Check) Options {
	t.Helper()
	registry := prometheus.NewRegistry()
	answers := prometheus.NewCounter(prometheus.CounterOpts{Name: "dandelion_test_answers_total", Help: "For the test."})
	registry.MustRegister(answers)
	answers.Add(42)
	return Options{Log: slog.New(slog.DiscardHandler), Metrics: registry, Checks: checks}
}

func TestPages(t *testing.T) {
	t.Parallel()
	broken := Check{"redis", func(context.Context) error { return errors.New("redis at 127.0.0.1:1 does not answer") }}
	fine := Check{"disk", func(context.Context) error { return nil }}
	tests := map[string]struct {
		method, path string
		checks       []Check
		status       int
		body         string // in it
	}{
		"health":              {path: "/debug/health", checks: []Check{broken}, status: 200, body: "alive\n"},
		"ready without check": {path: "/debug/ready", status: 200, body: `{"ready":true,"checks":[]}`},
		"ready":               {path: "/debug/ready", checks: []Check{fine}, status: 200, body: `{"ready":true,"checks":[{"name":"disk","ready":true}]}`},
		"not ready": {
			path: "/debug/ready", checks: []Check{fine, broken}, status: 503,
			body: `{"ready":false,"checks":[{"name":"disk","ready":true},{"name":"redis","ready":false,"reason":"redis at 127.0.0.1:1 does not answer"}]}`,
		},
		"metrics":       {path: "/metrics", status: 200, body: "\ndandelion_test_answers_total 42\n"},
		"no profile":    {path: "/debug/pprof/nothing", status: 404, body: "heap, allocs, goroutine"},
		"bad seconds":   {path: "/debug/pprof/profile?seconds=0", status: 400, body: "from 1 to"},
		"CPU profile":   {path: "/debug/pprof/profile?seconds=1", status: 200},
		"named profile": {path: "/debug/pprof/goroutine?debug=1", status: 200, body: "goroutine profile"},
		"nothing there": {path: "/debug/else", status: 404},
		"wrong method":  {path: "/debug/ready", method: "POST", status: 405},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			mux := http.NewServeMux()
			Register(mux, options(t, tt.checks...))
			srv := httptest.NewServer(mux)
			defer srv.Close()
			req, err := http.NewRequest(tt.method, srv.URL+tt.path, nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil || resp.StatusCode != tt.status || !strings.Contains(string(body), tt.body) {
				t.Errorf("%d %q, %v; want %d %q", resp.StatusCode, body, err, tt.status, tt.body)
			}
		})
	}
}

func TestThisMachineOnly(t *testing.T) {
	t.Parallel()
	h := New(options(t, Check{"never asked", func(context.Context) error { t.Error("a stranger made a check run"); return nil }}))
	for _, path := range []string{"/debug/health", "/debug/ready", "/metrics", "/debug/pprof/heap"} {
		for name, change := range map[string]func(*http.Request){
			"another machine":  func(r *http.Request) { r.RemoteAddr = "192.0.2.1:5" },
			"behind a proxy":   func(r *http.Request) { r.Header.Set("X-Forwarded-For", "127.0.0.1") },
			"a rebound domain": func(r *http.Request) { r.Host = "example.org" },
		} {
			r := httptest.NewRequest("GET", path, nil)
			r.RemoteAddr, r.Host = "127.0.0.1:5", "127.0.0.1:7072"
			change(r)
			rec := httptest.NewRecorder()
			h.ServeHTTP(rec, r)
			if rec.Code != http.StatusForbidden {
				t.Errorf("%s, %s: %d %s", path, name, rec.Code, rec.Body)
			}
		}
	}
}

func TestSlowCheckIsCut(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		slow := Check{"slow", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }}
		r := httptest.NewRequest("GET", "/debug/ready", nil)
		r.RemoteAddr, r.Host = "127.0.0.1:5", "127.0.0.1:7072"
		rec := httptest.NewRecorder()
		begin := time.Now()
		New(options(t, slow)).ServeHTTP(rec, r)
		if took := time.Since(begin); rec.Code != http.StatusServiceUnavailable || took != checkLimit {
			t.Errorf("%d after %s: %s", rec.Code, took, rec.Body)
		}
	})
}
