package edge

import (
	"container/list"
	"context"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// patience is how long a connection without a whole request is left alone where others need
	// its place: a request that is on its way is here within it.
	patience = time.Second
	// maxOver is how many connections beyond MaxConns get an answer that says so; who comes when
	// these have not ended yet is closed without a word.
	maxOver = 64
)

// conns are the connections of an Edge's servers, without those that were hijacked.
type conns struct {
	mu       sync.Mutex
	max      int
	all      map[net.Conn]*viewer
	waits    list.List // of *viewer; among those that are not served the longest waiting first
	over     int
	draining bool
}

// viewer is one connection. Its fields below place change under conns.mu.
type viewer struct {
	conn  net.Conn
	place *list.Element

	since  time.Time // it waits for a request; without meaning while served
	served bool      // a handler runs
	over   bool      // beyond MaxConns: to be told so
}

// viewerKey is the context key of a request's *viewer.
type viewerKey struct{}

func viewerOf(ctx context.Context) *viewer {
	v, _ := ctx.Value(viewerKey{}).(*viewer)
	return v
}

// arrived takes a new connection. Where there are too many, the one that waits longest for a request
// gives its place to it, and is returned to be closed; where all are served or have just come, the new
// one itself is marked, or returned.
func (c *conns) arrived(conn net.Conn, now time.Time) (_ *viewer, closes net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v := &viewer{conn: conn, since: now}
	v.place = c.waits.PushBack(v)
	c.all[conn] = v
	if len(c.all)-c.over <= c.max {
		return v, nil
	}
	if oldest := c.longestWaiting(false, now); oldest != nil {
		c.remove(oldest)
		return v, oldest.conn
	}
	if c.over >= maxOver {
		oldest := c.longestWaiting(true, now)
		if oldest == nil {
			oldest = v
		}
		c.remove(oldest)
		closes = oldest.conn
	}
	if closes != conn {
		v.over = true
		c.over++
	}
	return v, closes
}

// longestWaiting is the connection that has waited longest, at least for patience, among those beyond
// MaxConns or the others; nil: none. c.mu is held.
func (c *conns) longestWaiting(over bool, now time.Time) *viewer {
	for at := c.waits.Front(); at != nil; at = at.Next() {
		if v := at.Value.(*viewer); !v.served && v.over == over {
			if now.Sub(v.since) < patience {
				return nil
			}
			return v
		}
	}
	return nil
}

// gone forgets a connection that was closed or hijacked.
func (c *conns) gone(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if v := c.all[conn]; v != nil {
		c.remove(v)
	}
}

// remove takes v out. c.mu is held.
func (c *conns) remove(v *viewer) {
	delete(c.all, v.conn)
	c.waits.Remove(v.place)
	if v.over {
		c.over--
	}
}

// enter notes that a handler runs for v, and reports whether its answer is to be the last one.
func (c *conns) enter(v *viewer) (last bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v.served = true
	return c.draining || v.over
}

func (c *conns) leave(v *viewer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v.served, v.since = false, time.Now()
	if c.all[v.conn] == v {
		c.waits.MoveToBack(v.place)
	}
}

// isOver reports whether a request came over a connection too many.
func (c *conns) isOver(v *viewer) bool {
	if v == nil {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return v.over
}

func (c *conns) drain() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.draining = true
}

// closeWaiting closes connections that have waited for a request for the time of patience.
func (c *conns) closeWaiting(now time.Time, patience time.Duration) {
	c.mu.Lock()
	var closing []net.Conn
	for conn, v := range c.all {
		if !v.served && now.Sub(v.since) >= patience {
			closing = append(closing, conn)
		}
	}
	c.mu.Unlock()
	for _, conn := range closing {
		conn.Close()
	}
}

// count is how many connections there are, and how many of them are being served.
func (c *conns) count() (all, served int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, v := range c.all {
		if v.served {
			served++
		}
	}
	return len(c.all), served
}

// connContext is the servers' hook for a new connection, before anything is read from it.
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
	v, closes := e.conns.arrived(c, time.Now())
	switch {
	case closes == c:
		e.metrics.refused.Inc()
	case closes != nil:
		e.metrics.idleClosed.Inc()
	}
	if closes != nil {
		closes.Close()
	}
	return context.WithValue(ctx, viewerKey{}, v)
}

func (e *Edge) connState(c net.Conn, state http.ConnState) {
	if state == http.StateClosed || state == http.StateHijacked {
		e.conns.gone(c)
	}
}
