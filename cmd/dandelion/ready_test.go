package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"dandelion/pkg/debugweb"
)

// What a daemon's own page says is what the tool tells.
func TestReady(t *testing.T) {
	t.Parallel()
	wrong := errors.New("no answer from Redis")
	for name, test := range map[string]struct {
		page http.Handler
		want string // of the error; "": ready
	}{
		"ready": {page: debugweb.New(debugweb.Options{Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry()})},
		"not ready": {
			page: debugweb.New(debugweb.Options{Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(), Checks: []debugweb.Check{
				{Name: "redis", Ready: func(context.Context) error { return wrong }}, {Name: "other", Ready: func(context.Context) error { return nil }},
			}}),
			want: "is not ready: redis: no answer from Redis",
		},
		"another program": {
			page: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "<html>") }),
			want: "no daemon of Dandelion",
		},
		"not from here": {
			page: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(http.StatusForbidden)
				io.WriteString(w, `{"error": "only programs on this machine may"}`)
			}),
			want: "403 Forbidden: only programs on this machine may",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := httptest.NewServer(test.page)
			defer server.Close()
			root := newRoot()
			var out strings.Builder
			root.SetOut(&out)
			root.SetArgs([]string{"ready", server.URL})
			err := root.ExecuteContext(t.Context())
			switch {
			case test.want == "" && (err != nil || out.String() != server.URL+" is ready\n"):
				t.Errorf("%q, %v", out.String(), err)
			case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
	if err := ready(t.Context(), "http://127.0.0.1:1"); err == nil || !strings.Contains(err.Error(), "is the daemon running there?") {
		t.Errorf("nobody there: %v", err)
	}
}
