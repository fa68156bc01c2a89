package edge

import (
	"context"
	"log/slog"
	"net/http"
	"sync"
	"time"
)

// Server returns a server for h, which is Handler or a mux that has it beside the box's other
// routes. It bounds what a viewer can hold: time to send a request, idle time, header size, time
// to take an answer, number of connections. Connections that h hijacks (websockets) are bounded by
// whoever took them, and no longer count. The caller calls Serve, and Drain or Close. It is called
// before Drain.
func (e *Edge) Server(h http.Handler) *http.Server {
	server := &http.Server{
		Handler:           e.bounded(h),
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       60 * time.Second,
		WriteTimeout:      2 * e.cfg.RateWindow, // for routes that are not ours, which move no deadline
		MaxHeaderBytes:    16 << 10,
		ConnContext:       e.connContext,
		ConnState:         e.connState,
		ErrorLog:          slog.NewLogLogger(e.cfg.Log.Handler(), slog.LevelDebug),
	}
	e.servers = append(e.servers, server)
	return server
}

// bounded is what holds for every request, whoever answers it.
func (e *Edge) bounded(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		v := viewerOf(r.Context())
		last := e.conns.enter(v)
		defer e.conns.leave(v)
		if r.ContentLength != 0 {
			// Nobody waits here for the rest of a body that nobody asked for.
			last = true
			http.NewResponseController(w).SetReadDeadline(time.Now().Add(time.Second))
		}
		if last {
			w.Header().Set("Connection", "close")
		}
		h.ServeHTTP(w, r)
	})
}

// Drain goes on taking viewers for grace, because some were sent here a moment ago, and lets each
// connection end with its next answer. Then it takes no more, lets answers under way come to their end,
// and returns how many it cut off because ctx ended first. It is called once.
func (e *Edge) Drain(ctx context.Context, grace time.Duration) (cut int) {
	e.conns.drain()
	if grace > 0 {
		timer := time.NewTimer(grace)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
	}
	var ending sync.WaitGroup
	for _, server := range e.servers {
		ending.Go(func() { _ = server.Shutdown(ctx) })
	}
	ended := make(chan struct{})
	go func() { ending.Wait(); close(ended) }()
	// Shutdown waits longer than we do for connections that have never sent a whole request.
	look := time.NewTicker(patience / 10)
	defer look.Stop()
	for {
		select {
		case now := <-look.C:
			e.conns.closeWaiting(now, patience/2)
			continue
		case <-ended:
		}
		break
	}
	if ctx.Err() != nil {
		_, cut = e.conns.count()
	}
	for _, server := range e.servers {
		server.Close()
	}
	return cut
}
