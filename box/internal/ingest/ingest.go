// Package ingest takes files from publishers: one websocket each, opened with PUBLISH, then
// binary messages that go into the segment store while they arrive (wire.md section 2). It owns
// the sessions, their limits and their answers. It must not know how files are kept (segstore),
// who views them, or what entrances are told.
//
// Each connection has its own state: the directory that its files go to is that of the publisher
// that opened it, whatever other connections say.
package ingest

import (
	"cmp"
	"context"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"dandelion/box/internal/segstore"
	"dandelion/pkg/access"
	"dandelion/pkg/httperr"
	"dandelion/pkg/id"
	"dandelion/pkg/wire"
	"dandelion/pkg/wsconn"
)

// Limits bound what publishers can make the box hold. A connection takes about 10 KB when idle
// and 260 KB while a file comes in; it brings one file at a time.
type Limits struct {
	Connections  int // in all
	PerAddress   int // from one address; loopback, where proxies are, is not counted
	PerPublisher int // accepted sessions of one publisher
}

// DefaultLimits is what a box of 1 GB can carry.
func DefaultLimits() Limits { return Limits{Connections: 256, PerAddress: 32, PerPublisher: 8} }

// Records hears of what other programs may want to know. Its methods must not block.
type Records interface {
	Stored(e segstore.Entry)
	Deleted(pub id.PublisherID, path id.Path)
	SessionsChanged()
}

// Config is what a Service needs. All but Records, Registerer and Limits is required.
type Config struct {
	Store      *segstore.Store
	Own        func(local netip.Addr) wire.Peer // what the box says of itself on a connection to local
	Trusted    []netip.Prefix                   // proxies whose word about the peer's address counts
	Records    Records
	Limits     Limits // zero: DefaultLimits
	Registerer prometheus.Registerer
	Log        *slog.Logger
}

// Service is the box's side of all publishers' sessions. All methods may be called concurrently.
type Service struct {
	cfg     Config
	metrics metrics

	files, bytes atomic.Int64

	mu         sync.Mutex
	sessions   map[*session]struct{}
	pending    int // connections that count already and are not in sessions yet
	addresses  map[netip.Addr]int
	publishers map[id.PublisherID]int
	draining   bool
	ended      sync.WaitGroup
	goodbye    wire.Goodbye // while draining
}

// New returns a Service that waits for connections.
func New(cfg Config) *Service {
	if cfg.Limits == (Limits{}) {
		cfg.Limits = DefaultLimits()
	}
	if cfg.Records == nil {
		cfg.Records = noRecords{}
	}
	return &Service{
		cfg:        cfg,
		metrics:    newMetrics(cfg.Registerer),
		sessions:   make(map[*session]struct{}),
		addresses:  make(map[netip.Addr]int),
		publishers: make(map[id.PublisherID]int),
	}
}

type noRecords struct{}

func (noRecords) Stored(segstore.Entry)           {}
func (noRecords) Deleted(id.PublisherID, id.Path) {}
func (noRecords) SessionsChanged()                {}

// Connect takes a publisher's connection: the httperr.Handler of wire.BoxWSPath. It returns once
// the connection is a websocket; the session lives on in a goroutine of its own.
func (s *Service) Connect(w http.ResponseWriter, r *http.Request) error {
	if err := access.Check(r, access.PeerSession, s.cfg.Trusted); err != nil {
		return err
	}
	remote := access.ClientAddr(r, s.cfg.Trusted)
	if !remote.IsValid() {
		// A proxy that nobody declared: its own address is all that is known.
		if ap, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
			remote = ap.Addr().Unmap().WithZone("")
		}
	}
	if reason := s.admit(remote); reason != "" {
		s.metrics.turnedAway.WithLabelValues(reason).Inc()
		w.Header().Set("Retry-After", "10")
		return httperr.New(http.StatusServiceUnavailable, "this box takes no more connections now ("+reason+"): try another box", nil)
	}
	conn, err := wsconn.Accept(w, r, remote)
	if err != nil {
		s.dismiss(remote)
		s.cfg.Log.Debug("a websocket upgrade failed", "remote", remote, "error", err)
		return nil // it has been answered
	}
	ses := newSession(s, conn)
	s.register(ses)
	go func() {
		defer s.ended.Done()
		defer s.unregister(ses)
		defer conn.Abort()
		ses.run()
	}()
	return nil
}

// admit counts a new connection, or says why there may be none.
func (s *Service) admit(remote netip.Addr) (reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.draining:
		return "draining"
	case len(s.sessions)+s.pending >= s.cfg.Limits.Connections:
		return "connections"
	case !remote.IsLoopback() && s.addresses[remote] >= s.cfg.Limits.PerAddress:
		return "connections of one address"
	}
	s.pending++
	s.addresses[remote]++
	s.ended.Add(1)
	return ""
}

// dismiss takes back admit for a connection that did not become a session.
func (s *Service) dismiss(remote netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending--
	decrement(s.addresses, remote)
	s.ended.Done()
}

func (s *Service) register(ses *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending--
	s.sessions[ses] = struct{}{}
}

func (s *Service) unregister(ses *session) {
	s.mu.Lock()
	delete(s.sessions, ses)
	decrement(s.addresses, ses.conn.Remote())
	if ses.publisher != "" {
		decrement(s.publishers, ses.publisher)
		s.metrics.sessions.Dec()
	}
	s.mu.Unlock()
	s.cfg.Records.SessionsChanged()
}

func decrement[K comparable](counts map[K]int, k K) {
	if counts[k]--; counts[k] <= 0 {
		delete(counts, k)
	}
}

// claim makes ses a session of a publisher, or says why it cannot be one.
func (s *Service) claim(ses *session, pub id.PublisherID, publish wire.Publish, features wire.Features) (refusal string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining {
		return "this box is about to leave: " + s.goodbye.Reason
	}
	if s.publishers[pub] >= s.cfg.Limits.PerPublisher {
		return "this publisher has too many sessions with this box already: close one first"
	}
	s.publishers[pub]++
	ses.publisher, ses.ip, ses.frontURL, ses.features = pub, publish.IP, publish.FrontURL, features
	s.metrics.sessions.Inc()
	return ""
}

// Info describes a publisher's accepted session.
type Info struct {
	Publisher id.PublisherID `json:"publisher"`
	Address   string         `json:"address"` // where the connection comes from
	IP        string         `json:"ip"`      // what the publisher says of itself
	FrontURL  string         `json:"front_url,omitempty"`
	Features  wire.Features  `json:"features,omitempty"`
	Since     time.Time      `json:"since"`
	Files     int64          `json:"files"` // stored
	Bytes     int64          `json:"bytes"` // of them
}

// Sessions lists the accepted sessions, ordered by publisher and age.
func (s *Service) Sessions() []Info {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]Info, 0, len(s.sessions))
	for ses := range s.sessions {
		if ses.publisher == "" {
			continue
		}
		list = append(list, Info{
			Publisher: ses.publisher, Address: ses.conn.Remote().String(), IP: ses.ip, FrontURL: ses.frontURL,
			Features: ses.features, Since: ses.since, Files: ses.files.Load(), Bytes: ses.bytes.Load(),
		})
	}
	slices.SortFunc(list, func(a, b Info) int {
		return cmp.Or(cmp.Compare(a.Publisher, b.Publisher), a.Since.Compare(b.Since))
	})
	return list
}

// Totals are what publishers brought since the start.
type Totals struct {
	Files int64 `json:"files"` // stored
	Bytes int64 `json:"bytes"` // of them
}

// Totals returns what publishers brought since the start.
func (s *Service) Totals() Totals { return Totals{s.files.Load(), s.bytes.Load()} }

// Drain takes no more connections and files, tells publishers so, lets files that are under way
// arrive, and closes all sessions. It returns when they have ended or ctx has; what is then
// still there is cut off. A publisher is told that it has until ctx's deadline, 10 s without one.
func (s *Service) Drain(ctx context.Context, reason string) {
	seconds := 10.0
	if deadline, ok := ctx.Deadline(); ok {
		seconds = max(0, time.Until(deadline).Seconds())
	}
	s.mu.Lock()
	s.draining = true
	s.goodbye = wire.Goodbye{Command: wire.CommandGoodbye, Reason: reason, Seconds: seconds}
	all := make([]*session, 0, len(s.sessions))
	for ses := range s.sessions {
		all = append(all, ses)
	}
	s.mu.Unlock()
	for _, ses := range all {
		go ses.leave(ctx, s.goodbye) // bounded by the connections; each write has a deadline
	}
	ended := make(chan struct{})
	go func() { s.ended.Wait(); close(ended) }()
	select {
	case <-ended:
		return
	case <-ctx.Done():
	}
	s.mu.Lock()
	for ses := range s.sessions {
		ses.conn.Abort()
	}
	s.mu.Unlock()
	<-ended
}

func (s *Service) isDraining() (wire.Goodbye, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.goodbye, s.draining
}
