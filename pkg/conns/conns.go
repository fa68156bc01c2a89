// Package conns bounds how many connections an HTTP server has: where there are too many, those
// that ask for nothing give their places to new ones, and who comes when all are busy is told to
// come back. It knows nothing of what is served.
package conns

import (
	"container/list"
	"context"
	"net"
	"net/http"
	"sync"
	"time"
)

const (
	// Patience is how long a connection without a whole request is left alone where others need
	// its place: a request that is on its way is here within it.
	Patience = time.Second
	// maxOver is how many connections beyond Max get an answer that says so; who comes when
	// these have not ended yet is closed without a word.
	maxOver = 64
)

// Config of a Limit.
type Config struct {
	Max int // connections at once, without those that were hijacked
	// Refused is called when one was closed without a word or told to come back, Closed when a
	// waiting one gave its place to another. nil: nobody asks.
	Refused, Closed func()
}

// Limit bounds the connections of one or more servers. Its methods may be called from any goroutine.
type Limit struct {
	cfg Config

	mu       sync.Mutex
	all      map[net.Conn]*visitor
	waits    list.List // of *visitor, those that are not served: the longest waiting first
	over     int
	draining bool
}

// visitor is one connection. Its fields below place change under Limit.mu.
type visitor struct {
	conn  net.Conn
	place *list.Element // in waits; nil while served

	since  time.Time // it waits for a request; without meaning while served
	served bool      // a handler runs
	over   bool      // beyond Max: to be told so
}

// New returns a limit without connections.
func New(cfg Config) *Limit {
	for _, f := range []*func(){&cfg.Refused, &cfg.Closed} {
		if *f == nil {
			*f = func() {}
		}
	}
	return &Limit{cfg: cfg, all: map[net.Conn]*visitor{}}
}

// Hold makes the server's connections count. It is called before Serve, with the server's Handler,
// ConnContext and ConnState as they shall be but for the limit. The handler is called for
// connections beyond Max too; Over tells it.
func (l *Limit) Hold(server *http.Server) {
	handler, connContext, connState := server.Handler, server.ConnContext, server.ConnState
	server.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		v := visitorOf(r.Context())
		last := l.enter(v)
		defer l.leave(v)
		if last {
			w.Header().Set("Connection", "close")
		}
		handler.ServeHTTP(w, r)
	})
	server.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		if connContext != nil {
			ctx = connContext(ctx, c)
		}
		return context.WithValue(ctx, visitorKey{}, l.admit(c))
	}
	server.ConnState = func(c net.Conn, state http.ConnState) {
		if state == http.StateClosed || state == http.StateHijacked {
			l.gone(c)
		}
		if connState != nil {
			connState(c, state)
		}
	}
}

// admit takes a connection before anything is read from it.
func (l *Limit) admit(c net.Conn) *visitor {
	v, closes := l.arrived(c, time.Now())
	switch {
	case closes == c:
		l.cfg.Refused()
	case closes != nil:
		l.cfg.Closed()
	}
	if closes != nil {
		closes.Close()
	}
	return v
}

// Over reports whether a request came over a connection too many. It should be answered with 503
// and Retry-After; the connection ends behind it.
func (l *Limit) Over(r *http.Request) bool {
	v := visitorOf(r.Context())
	if v == nil {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if v.over {
		l.cfg.Refused()
	}
	return v.over
}

// Of returns the connection that a request came over, nil where no Limit holds its server.
func Of(r *http.Request) net.Conn {
	if v := visitorOf(r.Context()); v != nil {
		return v.conn
	}
	return nil
}

// Drain lets each connection end with its next answer.
func (l *Limit) Drain() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.draining = true
}

// visitorKey is the context key of a request's *visitor.
type visitorKey struct{}

func visitorOf(ctx context.Context) *visitor {
	v, _ := ctx.Value(visitorKey{}).(*visitor)
	return v
}

// arrived takes a new connection. Where there are too many, the one that waits longest for a request
// gives its place to it, and is returned to be closed; where all are served or have just come, the new
// one itself is marked, or returned.
func (l *Limit) arrived(conn net.Conn, now time.Time) (_ *visitor, closes net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	v := &visitor{conn: conn, since: now}
	v.place = l.waits.PushBack(v)
	l.all[conn] = v
	if len(l.all)-l.over <= l.cfg.Max {
		return v, nil
	}
	if oldest := l.longestWaiting(false, now); oldest != nil {
		l.remove(oldest)
		return v, oldest.conn
	}
	if l.over >= maxOver {
		oldest := l.longestWaiting(true, now)
		if oldest == nil {
			oldest = v
		}
		l.remove(oldest)
		closes = oldest.conn
	}
	if closes != conn {
		v.over = true
		l.over++
	}
	return v, closes
}

// longestWaiting is the connection that has waited longest, at least for patience, among those beyond
// Max or the others; nil: none. l.mu is held.
func (l *Limit) longestWaiting(over bool, now time.Time) *visitor {
	for at := l.waits.Front(); at != nil; at = at.Next() {
		if v := at.Value.(*visitor); v.over == over {
			if now.Sub(v.since) < Patience {
				return nil
			}
			return v
		}
	}
	return nil
}

// gone forgets a connection that was closed or hijacked.
func (l *Limit) gone(conn net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if v := l.all[conn]; v != nil {
		l.remove(v)
	}
}

// remove takes v out. l.mu is held.
func (l *Limit) remove(v *visitor) {
	delete(l.all, v.conn)
	if v.place != nil {
		l.waits.Remove(v.place)
		v.place = nil
	}
	if v.over {
		l.over--
	}
}

// enter notes that a handler runs for v, and reports whether its answer is to be the last one.
func (l *Limit) enter(v *visitor) (last bool) {
	if v == nil {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	v.served = true
	if v.place != nil {
		l.waits.Remove(v.place)
		v.place = nil
	}
	return l.draining || v.over
}

func (l *Limit) leave(v *visitor) {
	if v == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	v.served, v.since = false, time.Now()
	if l.all[v.conn] == v {
		v.place = l.waits.PushBack(v)
	}
}

// Shutdown takes no more connections, lets answers under way come to their end, closes the servers,
// and returns how many it cut off because ctx ended first.
func (l *Limit) Shutdown(ctx context.Context, servers ...*http.Server) (cut int) {
	var ending sync.WaitGroup
	for _, server := range servers {
		ending.Go(func() { _ = server.Shutdown(ctx) })
	}
	ended := make(chan struct{})
	go func() { ending.Wait(); close(ended) }()
	// A server's own Shutdown waits longer for connections that have never sent a whole request.
	look := time.NewTicker(Patience / 10)
	defer look.Stop()
	for waiting := true; waiting; {
		select {
		case now := <-look.C:
			l.closeWaiting(now, Patience/2)
		case <-ended:
			waiting = false
		}
	}
	if ctx.Err() != nil {
		_, cut = l.Count()
	}
	for _, server := range servers {
		server.Close()
	}
	return cut
}

// closeWaiting closes connections that have waited for a request for the time of patience.
func (l *Limit) closeWaiting(now time.Time, patience time.Duration) {
	l.mu.Lock()
	var closing []net.Conn
	for conn, v := range l.all {
		if !v.served && now.Sub(v.since) >= patience {
			closing = append(closing, conn)
		}
	}
	l.mu.Unlock()
	for _, conn := range closing {
		conn.Close()
	}
}

// Count returns how many connections there are, and how many of them are being served.
func (l *Limit) Count() (all, served int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, v := range l.all {
		if v.served {
			served++
		}
	}
	return len(l.all), served
}
