// Package door is an entrance's endpoint for websockets: it admits boxes and publishers, reads
// their messages, checks what all messages have in common (docs/protocol.md) and hands each to
// the command that it names. It owns sessions and their limits.
//
// It must not know what the commands do, nor anything of Redis.
package door

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"dandelion/pkg/access"
	"dandelion/pkg/httperr"
	"dandelion/pkg/id"
	"dandelion/pkg/netaddr"
	"dandelion/pkg/wire"
	"dandelion/pkg/wsconn"
)

// Limits of sessions. Those beyond are answered 503 before the upgrade.
const (
	MaxSessions   = 50_000
	MaxPerNetwork = 1_024 // of one public /24 or /48
)

// Command answers one kind of message. It is called by the session's own goroutine. message is
// good until it returns. An error is told to the peer in an ERROR and the session is closed; wrap
// Refusal for a text that is meant for the peer.
type Command func(s *Session, message []byte) error

// Config is what a Door needs to know.
type Config struct {
	ID id.EntranceID
	// URL is the entrance's own websocket URL; "" takes it from each request's Host.
	URL string
	// Trusted are the proxies whose word about a peer's address counts.
	Trusted []netip.Prefix
	// Commands by the COMMAND that they answer, besides GOODBYE, which the door answers itself.
	Commands map[string]Command
}

// Door admits sessions. It is an http.Handler for the websocket paths.
type Door struct {
	cfg     Config
	log     *slog.Logger
	metrics metrics
	lastID  atomic.Uint64

	visitors visitors
	long     places // long messages that are read
	mu       sync.Mutex
	sessions map[*Session]struct{}
	networks map[netip.Prefix]int
	selves   map[selfKey]*Self
	closed   bool
	wg       sync.WaitGroup
}

type metrics struct {
	messages *prometheus.CounterVec
	refused  *prometheus.CounterVec
}

// Reasons of refusals, as metric labels.
const (
	refusedFull     = "full"
	refusedFormat   = "format"
	refusedCommand  = "unknown_command"
	refusedTooLong  = "too_long"
	refusedByPolicy = "refused"
	refusedCrowd    = "too_many_visitors"
	refusedLong     = "too_many_long_messages"
)

// New returns a door that is open.
func New(cfg Config, log *slog.Logger, reg prometheus.Registerer) *Door {
	d := &Door{
		cfg:      cfg,
		log:      log,
		sessions: make(map[*Session]struct{}),
		networks: make(map[netip.Prefix]int),
		selves:   make(map[selfKey]*Self),
		visitors: visitors{conns: make(map[net.Conn]bool)},
	}
	d.visitors.places.init(MaxVisitors, MaxVisitorsPerNetwork)
	d.long.init(longMessages, longMessagesOfNet)
	d.metrics.messages = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "dandelion_entrance_messages_total", Help: "Messages of peers by command.",
	}, []string{"command"})
	d.metrics.refused = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "dandelion_entrance_refused_total", Help: "Messages and connections that were refused or cut off, by reason.",
	}, []string{"reason"})
	reg.MustRegister(d.metrics.messages, d.metrics.refused, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "dandelion_entrance_sessions", Help: "Websockets that are open.",
	}, func() float64 { return float64(d.Sessions()) }))
	return d
}

// Sessions returns the number of open websockets.
func (d *Door) Sessions() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.sessions)
}

// ServeHTTP upgrades a request to a websocket and returns; the session goes on in its own
// goroutine, so that net/http's buffers are given back.
func (d *Door) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := access.Check(r, access.PeerSession, d.cfg.Trusted); err != nil {
		httperr.Write(w, r, err)
		return
	}
	s := &Session{
		Number: d.lastID.Add(1),
		Remote: access.ClientAddr(r, d.cfg.Trusted),
		Self:   d.self(r),
	}
	if err := d.admit(s); err != nil {
		d.metrics.refused.WithLabelValues(refusedFull).Inc()
		w.Header().Set("Retry-After", "30")
		httperr.Write(w, r, httperr.New(http.StatusServiceUnavailable, err.Error(), nil))
		return
	}
	conn, err := wsconn.Accept(w, r, s.Remote)
	if err != nil {
		d.release(s)
		d.log.Debug("no websocket", "remote", r.RemoteAddr, "error", err)
		return
	}
	s.conn.Store(conn)
	if s.draining.Load() {
		go s.sayGoodbye() // Close found it in the middle of its upgrade
	}
	go d.serve(s)
}

var (
	errClosed = errors.New("this entrance is shutting down: connect to another one, or again in a moment")
	errFull   = errors.New("this entrance has as many connections as it takes")
)

func (d *Door) admit(s *Session) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	n, public := network(s.Remote)
	switch {
	case d.closed:
		return errClosed
	case len(d.sessions) >= MaxSessions:
		return errFull
	case public && d.networks[n] >= MaxPerNetwork:
		return fmt.Errorf("%w from %s", errFull, n)
	}
	if public {
		d.networks[n]++
	}
	d.sessions[s] = struct{}{}
	d.wg.Add(1)
	return nil
}

func (d *Door) release(s *Session) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.sessions, s)
	if n, public := network(s.Remote); public {
		if d.networks[n]--; d.networks[n] == 0 {
			delete(d.networks, n)
		}
	}
	d.wg.Done()
}

func network(a netip.Addr) (netip.Prefix, bool) {
	if netaddr.ScopeOf(a) != netaddr.Public {
		return netip.Prefix{}, false // proxies and test fleets
	}
	return netaddr.Household(a), true
}

// Close admits no more sessions, says goodbye to those that are open, ends them and waits for
// them; at the end of ctx it breaks them off. The boxes' leases stay: they are there, and come
// back to this entrance or to another process of it.
func (d *Door) Close(ctx context.Context) error {
	d.mu.Lock()
	d.closed = true
	open := make([]*Session, 0, len(d.sessions))
	for s := range d.sessions {
		open = append(open, s)
	}
	d.mu.Unlock()
	for _, s := range open {
		s.draining.Store(true)
		go s.sayGoodbye()
	}
	ended := make(chan struct{})
	go func() {
		d.wg.Wait()
		close(ended)
	}()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
	}
	for _, s := range open {
		if conn := s.conn.Load(); conn != nil {
			conn.Abort()
		}
	}
	<-ended
	return nil
}

const goodbyeReason = "the entrance stops or restarts"

func (s *Session) sayGoodbye() {
	conn := s.conn.Load()
	if conn == nil {
		return // in the middle of its upgrade: ServeHTTP sees to it
	}
	if s.hasFeatures.Load() {
		_ = conn.WriteText(wire.Encode(wire.Goodbye{Peer: s.Own, Command: wire.CommandGoodbye, Reason: goodbyeReason}))
	}
	conn.Close(goodbyeReason)
}
