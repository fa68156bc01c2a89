package edge

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"time"

	"golang.org/x/sys/unix"
)

// Server returns a server for h, which is Handler or a mux that has it beside the box's other
// routes. It bounds what a viewer can hold: time to send a request, idle time, header size, time
// to take an answer, number of connections. Connections that h hijacks (websockets) are bounded by
// whoever took them, and no longer count. The caller calls Serve, and Drain or Close. It is called
// before Drain.
func (e *Edge) Server(h http.Handler) *http.Server {
	server := &http.Server{
		Handler:           withoutBodies(h),
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       60 * time.Second,
		WriteTimeout:      2 * e.cfg.RateWindow, // for routes that are not ours, which move no deadline
		MaxHeaderBytes:    16 << 10,
		ConnContext:       e.drops,
		ErrorLog:          slog.NewLogLogger(e.cfg.Log.Handler(), slog.LevelDebug),
	}
	e.conns.Hold(server)
	e.servers = append(e.servers, server)
	return server
}

// withoutBodies waits for the rest of no body: nobody asked for one.
func withoutBodies(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength != 0 {
			w.Header().Set("Connection", "close")
			http.NewResponseController(w).SetReadDeadline(time.Now().Add(time.Second))
		}
		h.ServeHTTP(w, r)
	})
}

// drops makes the kernel give up what a viewer does not take: one that stops reading must not keep
// our last bytes for long after the answer is written.
func (e *Edge) drops(ctx context.Context, c net.Conn) context.Context {
	if tcp, ok := c.(*net.TCPConn); ok {
		if raw, err := tcp.SyscallConn(); err == nil {
			timeout := int(max(e.cfg.RateWindow, DefaultRateWindow) / time.Millisecond)
			raw.Control(func(fd uintptr) {
				unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, timeout)
			})
		}
	}
	return ctx
}

// Drain goes on taking viewers for grace, because some were sent here a moment ago, and lets each
// connection end with its next answer. Then it takes no more, lets answers under way come to their end,
// and returns how many it cut off because ctx ended first. It is called once.
func (e *Edge) Drain(ctx context.Context, grace time.Duration) (cut int) {
	e.conns.Drain()
	if grace > 0 {
		timer := time.NewTimer(grace)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
	}
	return e.conns.Shutdown(ctx, e.servers...)
}
