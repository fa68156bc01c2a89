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
// whoever took them, and no longer count. The caller calls Serve and Shutdown.
func (e *Edge) Server(h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       60 * time.Second,
		WriteTimeout:      2 * e.cfg.RateWindow, // for routes that are not ours, which move no deadline
		MaxHeaderBytes:    16 << 10,
		ConnContext:       e.connContext,
		ConnState:         e.connState,
		ErrorLog:          slog.NewLogLogger(e.cfg.Log.Handler(), slog.LevelDebug),
	}
}

func (e *Edge) connContext(ctx context.Context, c net.Conn) context.Context {
	if tcp, ok := c.(*net.TCPConn); ok {
		// A viewer that stops reading must not keep our last bytes in the kernel for long after
		// the answer is written.
		if raw, err := tcp.SyscallConn(); err == nil {
			timeout := int(max(e.cfg.RateWindow, DefaultRateWindow) / time.Millisecond)
			raw.Control(func(fd uintptr) {
				unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, timeout)
			})
		}
	}
	return withConn(ctx, c)
}

func (e *Edge) connState(c net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		if e.conns.Add(1) > int64(e.cfg.MaxConns) {
			e.metrics.refused.Inc()
			c.Close()
		}
	case http.StateClosed, http.StateHijacked:
		e.conns.Add(-1)
	}
}
