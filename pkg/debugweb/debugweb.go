// Package debugweb is what operators and their tools look at inside a running peer: whether it
// lives and is ready, its metrics and its profiles. It owns these pages as one http.Handler,
// for programs on the same machine only, and must not know what the checks and metrics are about.
package debugweb

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"dandelion/pkg/access"
	"dandelion/pkg/httperr"
)

// checkLimit is how long all checks of one request may take.
const checkLimit = 2 * time.Second

// scrapesAtOnce is how many requests for metrics are answered at the same time.
const scrapesAtOnce = 4

// Check is one thing that must be in order for the peer to be ready.
type Check struct {
	Name string // "redis"
	// Ready returns nil, or why not, in one sentence for people. It may be called concurrently
	// and returns soon after its context ends.
	Ready func(ctx context.Context) error
}

// Options are what New needs.
type Options struct {
	Log            *slog.Logger
	Metrics        prometheus.Gatherer
	Checks         []Check
	TrustedProxies []netip.Prefix // for access.ClientAddr
}

// New returns the pages, for concurrent use:
//
//	/debug/health    200 while the process answers at all
//	/debug/ready     200 or 503, and JSON: {"ready": false, "checks": [{"name", "ready", "reason"}]}
//	/metrics         the metrics, in Prometheus' text format
//	/debug/pprof/…   profiles of Go's runtime, for `go tool pprof`
//
// Who asks from another machine gets 403.
func New(o Options) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /debug/health", health)
	mux.HandleFunc("GET /debug/ready", ready(o.Checks))
	mux.Handle("GET /metrics", promhttp.HandlerFor(o.Metrics, promhttp.HandlerOpts{
		ErrorLog:            slog.NewLogLogger(o.Log.Handler(), slog.LevelError),
		ErrorHandling:       promhttp.ContinueOnError,
		MaxRequestsInFlight: scrapesAtOnce,
	}))
	mux.Handle("GET /debug/pprof/{name}", httperr.Wrap(o.Log, profile))

	return httperr.Wrap(o.Log, func(w http.ResponseWriter, r *http.Request) error {
		if err := access.Check(r, access.Debug, o.TrustedProxies); err != nil {
			return err
		}
		mux.ServeHTTP(w, r)
		return nil
	})
}

// Register puts the pages into a mux that serves others too.
func Register(mux *http.ServeMux, o Options) {
	pages := New(o)
	mux.Handle("/debug/", pages)
	mux.Handle("/metrics", pages)
}

func health(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	io.WriteString(w, "alive\n")
}

type checkResult struct {
	Name   string `json:"name"`
	Ready  bool   `json:"ready"`
	Reason string `json:"reason,omitempty"` // why it is not
}

func ready(checks []Check) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), checkLimit)
		defer cancel()
		answer := struct {
			Ready  bool          `json:"ready"`
			Checks []checkResult `json:"checks"`
		}{Ready: true, Checks: []checkResult{}}
		for _, c := range checks {
			result := checkResult{Name: c.Name, Ready: true}
			if err := c.Ready(ctx); err != nil {
				result.Ready, result.Reason = false, err.Error()
				answer.Ready = false
			}
			answer.Checks = append(answer.Checks, result)
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		if !answer.Ready {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		json.NewEncoder(w).Encode(answer)
	}
}
