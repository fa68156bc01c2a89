package door

import (
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"

	"dandelion/pkg/netaddr"
)

// Limits of connections that are not sessions: those that have not sent their request yet, and
// those that ask for pages. Those beyond are closed.
const (
	MaxVisitors           = 8_192
	MaxVisitorsPerNetwork = 256 // of one public /24 or /48 that is not a trusted proxy
)

// visitors are such connections. net/http bounds how long each may take for its request, not how
// many there are.
type visitors struct {
	places places

	mu    sync.Mutex
	conns map[net.Conn]bool // those that have a place
}

// ConnState is for http.Server.ConnState: it closes connections that come when there are too many.
func (d *Door) ConnState(conn net.Conn, state http.ConnState) {
	addr := netaddr.Addr(conn.RemoteAddr())
	if slices.ContainsFunc(d.cfg.Trusted, func(p netip.Prefix) bool { return p.Contains(addr) }) {
		addr = netip.Addr{} // it stands for many
	}
	v := &d.visitors
	switch state {
	case http.StateNew:
		if !v.places.enter(addr) {
			d.metrics.refused.WithLabelValues(refusedCrowd).Inc()
			conn.Close()
			return
		}
		v.mu.Lock()
		v.conns[conn] = true
		v.mu.Unlock()
	case http.StateHijacked, http.StateClosed:
		v.mu.Lock()
		entered := v.conns[conn]
		delete(v.conns, conn)
		v.mu.Unlock()
		if entered {
			v.places.leave(addr)
		}
	}
}
